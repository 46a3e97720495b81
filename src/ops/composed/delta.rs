//! The gated delta rule, row after row.

use candle_core::D;
use candle_core::DType;
use candle_core::Result;
use candle_core::Tensor;

use super::Composed;
use super::activate;
use crate::ops::Delta;
use crate::ops::DeltaSpec;
use crate::ops::inputs::Inputs;

/// See [`Ops::delta`](crate::ops::Ops::delta): of all rows of a batch.
pub(super) fn delta(
    inputs: [&Tensor; 3],
    [learned, forgotten]: [&Tensor; 2],
    layer: &Delta<Composed>,
    batch: &Inputs<'_>,
) -> Result<Tensor> {
    let DeltaSpec { key_heads, value_heads, key_dim, value_dim, .. } = layer.spec;
    let dtype = inputs[0].dtype();
    let mixed = convolve(&Tensor::cat(&inputs, 1)?.to_dtype(DType::F32)?, layer, batch)?;
    let rows = mixed.dim(0)?;
    let keys = key_heads * key_dim;
    // a key head for each value head, of length one: `[rows, value_heads, key_dim]`
    let of_key = |first: usize| -> Result<Tensor> {
        let heads = mixed.narrow(1, first, keys)?.reshape((rows, key_heads, 1, key_dim))?;
        let length = (heads.sqr()?.sum_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
        let heads = heads.broadcast_div(&length)?;
        let heads = heads.broadcast_as((rows, key_heads, value_heads / key_heads, key_dim))?;
        heads.reshape((rows, value_heads, key_dim))
    };
    let (query, key) = ((of_key(0)? * (key_dim as f64).powf(-0.5))?, of_key(keys)?);
    let value =
        mixed.narrow(1, 2 * keys, value_heads * value_dim)?.reshape((rows, value_heads, value_dim))?;
    let learned = candle_nn::ops::sigmoid(&learned.to_dtype(DType::F32)?)?;
    let forgotten = forgotten.to_dtype(DType::F32)?.broadcast_add(&layer.offsets)?;
    let softplus = (forgotten.relu()? + (forgotten.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    let kept = softplus.broadcast_mul(&layer.rates.exp()?)?.neg()?.exp()?; // [rows, value_heads]

    let segments = batch.packed.segments();
    let mut at_ends: Vec<Tensor> = Vec::with_capacity(segments.len());
    let mut read = Vec::with_capacity(rows);
    for segment in segments {
        let mut memory = match segment.parent {
            Some(parent) => at_ends[parent].clone(),
            None => Tensor::zeros((value_heads, key_dim, value_dim), DType::F32, mixed.device())?,
        };
        for row in segment.rows.clone() {
            let of_row = |x: &Tensor| x.get(row);
            let key = of_row(&key)?.unsqueeze(2)?; // [value_heads, key_dim, 1]
            memory = memory.broadcast_mul(&of_row(&kept)?.reshape((value_heads, 1, 1))?)?;
            let known = memory.broadcast_mul(&key)?.sum(1)?; // [value_heads, value_dim]
            let change = (of_row(&value)? - known)?.broadcast_mul(&of_row(&learned)?.unsqueeze(1)?)?;
            memory = (memory + key.broadcast_mul(&change.unsqueeze(1)?)?)?;
            read.push(memory.broadcast_mul(&of_row(&query)?.unsqueeze(2)?)?.sum(1)?);
        }
        at_ends.push(memory);
    }
    Tensor::stack(&read, 0)?.flatten_from(1)?.to_dtype(dtype)
}

/// Of each column a sum over its own position and those before it, and the activation.
fn convolve(x: &Tensor, layer: &Delta<Composed>, batch: &Inputs<'_>) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let kernel = layer.spec.kernel;
    let ids: Vec<u32> = (0..rows)
        .flat_map(|row| {
            let seen = batch.packed.before(row, kernel);
            let zeros = std::iter::repeat_n(rows, kernel - seen.len());
            zeros.chain(seen).map(|row| row as u32).collect::<Vec<_>>()
        })
        .collect();
    let zeros = Tensor::zeros((1, columns), x.dtype(), x.device())?;
    let seen = Tensor::cat(&[x, &zeros], 0)?.index_select(&Tensor::new(ids, x.device())?, 0)?;
    let weights = layer.convolution.reshape((columns, kernel))?.t()?.contiguous()?;
    let sum = seen.reshape((rows, kernel, columns))?.broadcast_mul(&weights)?.sum(1)?;
    activate(&sum, layer.spec.activation)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::ops::textbook;
    use crate::values::Format;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn gated_delta_rules_are_the_textbooks(case in textbook::delta::cases()) {
            case.check(&Composed { device: Device::Cpu, format: Format::F32 }, false)?;
        }
    }
}
