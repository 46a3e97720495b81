//! The reference form: plain candle operations, differentiable; one block of all rows.
//!
//! Where candle has a fused kernel, inference uses that. A tensor that carries a gradient takes the composed form
//! (`forms`) instead, since candle's fused kernels (`layer_norm`, `rms_norm`, `softmax_last_dim`, `rope_thd`)
//! have none and drop it in silence.

mod attention;
mod delta;
mod forms;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use candle_core::D;
use candle_core::DType;
use candle_core::Device;
use candle_core::Tensor;

use super::Activation;
use super::AttentionSpec;
use super::Clamp;
use super::Convolution;
use super::Delta;
use super::Gate;
use super::Ops;
use super::Precision;
use super::Term;
use super::whole;
use crate::ops::error::OpsError;
use crate::ops::error::Result;
use crate::ops::inputs::Inputs;
use crate::ops::inputs::Which;
use crate::ops::source::LinearSource;
use crate::ops::source::RowMap;
use crate::values::Format;
use crate::values::Values;

pub use attention::Batch;

/// Plain candle operations.
#[derive(Clone, Debug)]
pub struct Composed {
    /// Where weights and activations are.
    pub device: Device,
    /// What they are kept in, but for norms and heads.
    pub format: Format,
}

/// A linear layer, laid out for the product.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[input, output]` and contiguous: candle's products with a transposed weight are 3 to 5 times slower at few
    /// rows.
    pub weight: Tensor,
    /// `[output]`
    pub bias: Option<Tensor>,
}

/// Two linear layers on the same input.
#[derive(Clone, Debug)]
pub struct Gated {
    /// What the activation is applied to.
    pub gate: Linear,
    /// What the gate lets through.
    pub up: Linear,
}

/// Keys of a batch, `[rows, kv_heads, head_dim]`, and values, `[rows, kv_heads, value_dim]`.
pub struct Remembered<'a> {
    pub(super) key: Tensor,
    pub(super) value: Tensor,
    pub(super) by_distance: Option<&'a ByDistance>,
    /// `[heads]`
    pub(super) sinks: Option<&'a Tensor>,
    pub(super) batch: &'a Batch<'a>,
    pub(super) spec: &'a AttentionSpec,
}

/// Tables of a layer by distance.
#[derive(Debug)]
pub enum ByDistance {
    /// What queries are multiplied with, `[buckets, kv_heads, head_dim]`, and keys, `[buckets, heads, head_dim]`.
    Products {
        /// The one.
        keys: Option<Tensor>,
        /// The other.
        queries: Option<Tensor>,
    },
    /// What scores have, `[buckets, heads]`.
    Biases(Tensor),
}

impl Composed {
    fn dtype(&self) -> DType {
        match self.format {
            Format::F64 => DType::F64,
            Format::F32 => DType::F32,
            Format::Bf16 => DType::BF16,
            Format::F16 => DType::F16,
        }
    }

    fn tensor(&self, values: &Values, shape: &[usize]) -> Result<Tensor> {
        Ok(match values {
            Values::F64(values) => Tensor::from_slice(values, shape, &self.device)?,
            Values::F32(values) => Tensor::from_slice(values, shape, &self.device)?,
            Values::F16(values) => Tensor::from_slice(values, shape, &self.device)?,
            Values::Bf16(values) => Tensor::from_slice(values, shape, &self.device)?,
            Values::Other(_) => return Err(OpsError::Unsupported("weights that are no numbers")),
        })
    }
}

/// The outputs of a layer among the rows of a tensor, or among the values of a vector.
pub(super) fn outputs_of(tensor: &Tensor, rows: &RowMap, outputs: usize) -> candle_core::Result<Tensor> {
    let of_stack = rows.place_in_stack().map(|index| tensor.get(index)).transpose()?;
    let tensor = of_stack.as_ref().unwrap_or(tensor);
    let tensor = if rows.transposed && tensor.rank() == 2 { &tensor.t()? } else { tensor };
    match rows.picked(outputs) {
        None => Ok(tensor.clone()),
        Some(rows) => {
            let ids = Tensor::from_vec(rows, outputs, tensor.device())?;
            tensor.contiguous()?.index_select(&ids, 0)
        }
    }
}

impl Ops for Composed {
    type Rows = Tensor;
    type Linear = Linear;
    type Gated = Gated;
    type Joined = Vec<Linear>;
    type Vector = Tensor;
    type Table = Tensor;
    type Batch<'a> = Batch<'a>;
    type Remembered<'a> = Remembered<'a>;
    type ByDistance = ByDistance;
    type Moment = Instant;

    fn name(&self) -> String {
        format!("composed {:?} {:?}", self.device.location(), self.format)
    }

    fn format(&self, precision: Precision) -> Format {
        match precision {
            Precision::Working => self.format,
            Precision::F32 => Format::F32,
        }
    }

    fn load_linear(&self, source: LinearSource<'_>, _: Precision) -> Result<Linear> {
        let LinearSource { weight, bias, output, input } = source;
        let rows = self.tensor(weight.values, &weight.rows.shape(input))?;
        let rows = outputs_of(&rows, &weight.rows, output)?;
        let bias = match bias {
            Some(bias) => {
                let all = self.tensor(bias.values, &bias.rows.shape_of_bias())?;
                Some(outputs_of(&all, &bias.rows, output)?)
            }
            None => None,
        };
        Ok(Linear { weight: rows.t()?.contiguous()?, bias })
    }

    fn load_gated(&self, gate: LinearSource<'_>, up: LinearSource<'_>) -> Result<Gated> {
        let load = |source| self.load_linear(source, Precision::Working);
        Ok(Gated { gate: load(gate)?, up: load(up)? })
    }

    fn load_joined(&self, sources: &[LinearSource<'_>]) -> Result<Vec<Linear>> {
        sources.iter().map(|source| self.load_linear(*source, Precision::Working)).collect()
    }

    fn load_vector(&self, _: &[String], values: Vec<f32>, offset: f32) -> Result<Tensor> {
        let values: Vec<f32> = values.into_iter().map(|value| value + offset).collect();
        Ok(Tensor::new(values, &self.device)?)
    }

    fn constant(&self, values: Vec<f32>) -> Result<Tensor> {
        Ok(Tensor::new(values, &self.device)?)
    }

    fn load_table(&self, _: &str, values: Values, rows: usize, width: usize) -> Result<Tensor> {
        self.tensor(&values, &[rows, width])
    }

    fn batch<'a>(&self, inputs: &'a Inputs<'a>) -> Result<Batch<'a>> {
        Ok(Batch::new(inputs, &self.device, self.dtype())?)
    }

    fn moment(&self) -> Result<Instant> {
        self.device.synchronize()?;
        Ok(Instant::now())
    }

    fn between(&self, from: &Instant, to: &Instant) -> Result<Duration> {
        Ok(to.duration_since(*from))
    }

    fn blocks(&self, rows: usize) -> Vec<Range<usize>> {
        std::iter::once(0..rows).collect()
    }

    fn each<A: Send, B: Send>(&self, blocks: Vec<A>, f: impl Fn(A) -> Result<B> + Sync) -> Result<Vec<B>> {
        blocks.into_iter().map(f).collect()
    }

    fn embed(
        &self,
        tables: &[(&Tensor, usize)],
        scale: Option<f64>,
        batch: &Batch<'_>,
        which: &Which,
    ) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (table, ids) in tables {
            let rows = table.index_select(&batch.ids(*ids, which)?, 0)?;
            sum = Some(match sum {
                Some(sum) => (sum + rows)?,
                None => rows,
            });
        }
        let sum = sum.expect("a model has at least one embedding");
        match scale {
            Some(scale) => {
                let scale = Tensor::new(scale as f32, &self.device)?.to_dtype(sum.dtype())?;
                Ok(sum.broadcast_mul(&scale)?)
            }
            None => Ok(sum),
        }
    }

    fn rows_of(&self, table: &Tensor, rows: Range<usize>) -> Result<Tensor> {
        Ok(table.narrow(0, rows.start, rows.len())?)
    }

    fn operand<'a>(&self, x: Cow<'a, Tensor>) -> Result<Cow<'a, Tensor>> {
        Ok(x)
    }

    fn linear(&self, x: &Tensor, layer: &Linear) -> Result<Tensor> {
        let product = x.to_dtype(layer.weight.dtype())?.matmul(&layer.weight)?;
        match &layer.bias {
            Some(bias) => Ok(product.broadcast_add(bias)?),
            None => Ok(product),
        }
    }

    fn joined(&self, x: &Tensor, layers: &Vec<Linear>, which: Range<usize>) -> Result<Vec<Tensor>> {
        layers[which].iter().map(|layer| self.linear(x, layer)).collect()
    }

    fn linear_add(&self, x: &Tensor, layer: &Linear, residual: Tensor) -> Result<Tensor> {
        Ok((residual + self.linear(x, layer)?)?)
    }

    fn linear_act(&self, x: &Tensor, layer: &Linear, activation: Activation) -> Result<Tensor> {
        Ok(activate(&self.linear(x, layer)?, activation)?)
    }

    fn gated(&self, x: &Tensor, layer: &Gated, activation: Activation) -> Result<Tensor> {
        Ok((self.linear_act(x, &layer.gate, activation)? * self.linear(x, &layer.up)?)?)
    }

    fn gated_clamped(&self, x: &Tensor, layer: &Gated, Clamp { alpha, limit }: Clamp) -> Result<Tensor> {
        let (alpha, limit) = (f64::from(alpha), f64::from(limit));
        let gate = self.linear(x, &layer.gate)?.minimum(limit)?;
        let up = self.linear(x, &layer.up)?.clamp(-limit, limit)?;
        let inside = (candle_nn::ops::sigmoid(&(&gate * alpha)?)? * gate)?;
        Ok((inside * (up + 1.0)?)?)
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        Ok((x + y)?)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let runs = x.reshape(((), weight.dim(0)?))?;
        let normed = if x.track_op() || weight.track_op() {
            forms::rms_norm(&runs, weight, eps)?
        } else {
            candle_nn::ops::rms_norm(&runs.to_dtype(DType::F32)?.contiguous()?, weight, eps as f32)?
                .to_dtype(x.dtype())?
        };
        Ok(normed.reshape(x.shape())?)
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let runs = x.reshape(((), weight.dim(0)?))?;
        let normed = if [x, weight, bias].iter().any(|tensor| tensor.track_op()) {
            forms::layer_norm(&runs, weight, bias, eps)?
        } else {
            candle_nn::ops::layer_norm(&runs.to_dtype(DType::F32)?.contiguous()?, weight, bias, eps as f32)?
                .to_dtype(x.dtype())?
        };
        Ok(normed.reshape(x.shape())?)
    }

    fn scale(&self, x: Tensor, factors: &Tensor) -> Result<Tensor> {
        Ok(x.to_dtype(DType::F32)?.broadcast_mul(factors)?.to_dtype(x.dtype())?)
    }

    fn rotary(
        &self,
        x: Tensor,
        head_dim: usize,
        rope: usize,
        batch: &Batch<'_>,
        which: &Which,
    ) -> Result<Tensor> {
        let (cos, sin) = batch.angles(rope, which)?;
        let heads = x.reshape((x.dim(0)?, (), head_dim))?;
        let columns = 2 * cos.dim(1)?;
        let turning = heads.narrow(D::Minus1, 0, columns)?;
        let mut turned = if x.track_op() {
            forms::rotary(&turning, &cos, &sin)?
        } else {
            candle_nn::rotary_emb::rope_thd(&turning.unsqueeze(0)?.contiguous()?, &cos, &sin)?.squeeze(0)?
        };
        if columns < head_dim {
            let rest = heads.narrow(D::Minus1, columns, head_dim - columns)?;
            turned = Tensor::cat(&[turned, rest], D::Minus1)?;
        }
        Ok(turned.reshape(x.shape())?)
    }

    fn before_heads(&self, x: &Tensor, head_dim: usize, shared: &Tensor) -> Result<Tensor> {
        let heads = by_head(x, head_dim)?;
        let (rows, count, _) = heads.dims3()?;
        let shared = shared.unsqueeze(1)?.broadcast_as((rows, count, shared.dim(1)?))?;
        Ok(Tensor::cat(&[&shared, &heads], D::Minus1)?.flatten_from(1)?)
    }

    fn products_by_distance(
        &self,
        keys: Option<Tensor>,
        queries: Option<Tensor>,
        spec: &AttentionSpec,
    ) -> Result<ByDistance> {
        let of_head = |x: Tensor| by_head(&x, spec.head_dim);
        let [keys, queries] = [keys, queries].map(|table| table.map(of_head).transpose());
        Ok(ByDistance::Products { keys: keys?, queries: queries? })
    }

    fn biases_by_distance(&self, table: Tensor) -> Result<ByDistance> {
        Ok(ByDistance::Biases(table))
    }

    fn remember<'a>(
        &self,
        keys: Vec<Tensor>,
        values: Vec<Tensor>,
        by_distance: Option<&'a ByDistance>,
        batch: &'a Batch<'_>,
        spec: &'a AttentionSpec,
    ) -> Result<Remembered<'a>> {
        let (key, value) =
            (by_head(whole(&keys)?, spec.head_dim)?, by_head(whole(&values)?, spec.value_dim)?);
        Ok(Remembered { key, value, by_distance, sinks: None, batch, spec })
    }

    fn with_sinks<'a>(&self, remembered: Remembered<'a>, sinks: &'a Tensor) -> Result<Remembered<'a>> {
        Ok(Remembered { sinks: Some(sinks), ..remembered })
    }

    fn attend(&self, queries: &Tensor, which: &Which, to: &Remembered<'_>) -> Result<Tensor> {
        let query = by_head(queries, to.spec.head_dim)?;
        Ok(attention::attention(&query, which, to)?.flatten_from(1)?)
    }

    fn delta(
        &self,
        inputs: [Vec<Tensor>; 3],
        gates: [Vec<Tensor>; 2],
        layer: &Delta<Self>,
        batch: &Batch<'_>,
    ) -> Result<Vec<Tensor>> {
        let [query, key, value] = inputs.each_ref().map(|blocks| whole(blocks));
        let [learned, forgotten] = gates.each_ref().map(|blocks| whole(blocks));
        Ok(vec![delta::delta([query?, key?, value?], [learned?, forgotten?], layer, batch.inputs())?])
    }

    fn let_through(&self, x: &Tensor, by: &Tensor, gate: Gate) -> Result<Tensor> {
        let by = by.to_dtype(DType::F32)?;
        let factor = match gate {
            Gate::Sigmoid => candle_nn::ops::sigmoid(&by)?,
            Gate::Silu => by.silu()?,
        };
        Ok((x.to_dtype(DType::F32)? * factor)?.to_dtype(x.dtype())?)
    }

    fn convolve(
        &self,
        blocks: &[Tensor],
        which: &Which,
        layer: &Convolution<Self>,
        batch: &Batch<'_>,
    ) -> Result<Tensor> {
        convolve(self, blocks, which, layer, batch.inputs())
    }

    fn gather(&self, blocks: &[Tensor], list: usize, batch: &Batch<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![whole(blocks)?.index_select(batch.list(list), 0)?])
    }

    fn pick(&self, blocks: &[Tensor], rows: &[usize]) -> Result<Tensor> {
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        Ok(Tensor::cat(blocks, 0)?.index_select(&Tensor::new(rows, &self.device)?, 0)?)
    }

    fn combine(&self, blocks: &[Tensor], terms: &[Term], of_row: usize) -> Result<Tensor> {
        let mut starts = Vec::with_capacity(blocks.len());
        let mut rows = 0;
        for block in blocks {
            starts.push(rows);
            rows += block.dim(0)?;
        }
        let from = Tensor::cat(blocks, 0)?;
        let mut sum: Option<Tensor> = None;
        for place in 0..of_row {
            let terms = || terms.iter().skip(place).step_by(of_row);
            let rows: Vec<u32> = terms().map(|term| (starts[term.block] + term.row) as u32).collect();
            let weights: Vec<f32> = terms().map(|term| term.weight).collect();
            let weights = Tensor::new(weights, &self.device)?.unsqueeze(1)?;
            let rows = from.index_select(&Tensor::new(rows, &self.device)?, 0)?.to_dtype(DType::F32)?;
            let term = rows.broadcast_mul(&weights)?;
            sum = Some(match sum {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        Ok(sum.expect("a sum has a term").to_dtype(from.dtype())?)
    }

    fn mean(&self, blocks: &[Tensor], batch: &Batch<'_>) -> Result<Vec<Tensor>> {
        let x = whole(blocks)?;
        let packed = batch.inputs().packed;
        let mean = |sequence: usize| -> Result<Tensor> {
            let runs = packed.runs(sequence).into_iter().map(|rows| x.narrow(0, rows.start, rows.len()));
            let rows = Tensor::cat(&runs.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
            Ok(rows.to_dtype(DType::F32)?.mean(0)?)
        };
        Ok(vec![Tensor::stack(&(0..packed.len()).map(mean).collect::<Result<Vec<_>>>()?, 0)?])
    }

    fn read(&self, results: &[Vec<Tensor>]) -> Result<Vec<Vec<f32>>> {
        let flat = |blocks: &Vec<Tensor>| -> Result<Tensor> {
            Ok(whole(blocks)?.to_dtype(DType::F32)?.flatten_all()?)
        };
        let flat = results.iter().map(flat).collect::<Result<Vec<_>>>()?;
        let mut values = Tensor::cat(&flat, 0)?.to_vec1::<f32>()?;
        let mut read = Vec::with_capacity(flat.len());
        for tensor in &flat {
            let rest = values.split_off(tensor.elem_count());
            read.push(std::mem::replace(&mut values, rest));
        }
        Ok(read)
    }
}

/// `[rows, heads, width]`
fn by_head(x: &Tensor, width: usize) -> candle_core::Result<Tensor> {
    x.reshape((x.dim(0)?, (), width))
}

/// Of each row that `which` says the columns at `kernel` positions around it: `[rows, columns, kernel]`.
fn neighbours(x: &Tensor, which: &Which, kernel: usize, inputs: &Inputs<'_>) -> candle_core::Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let around = inputs.rows(which).flat_map(|row| inputs.packed.neighbours(row, kernel));
    let ids: Vec<u32> = around.map(|row| row.unwrap_or(rows) as u32).collect();
    let zeros = Tensor::zeros((1, columns), x.dtype(), x.device())?;
    let rows = Tensor::cat(&[x, &zeros], 0)?.index_select(&Tensor::new(ids, x.device())?, 0)?;
    rows.reshape((which.len(), kernel, columns))?.transpose(1, 2)
}

/// [`Ops::convolve`] of a form whose rows are tensors: each group of the columns, beside each other.
pub(super) fn convolve<O: Ops<Rows = Tensor>>(
    ops: &O,
    blocks: &[Tensor],
    which: &Which,
    layer: &Convolution<O>,
    inputs: &Inputs<'_>,
) -> Result<Tensor> {
    let neighbours = neighbours(whole(blocks)?, which, layer.kernel, inputs)?;
    let columns = neighbours.dim(1)? / layer.groups.len();
    let of_group = |(group, linear): (usize, &Arc<O::Linear>)| {
        let x = neighbours.narrow(1, group * columns, columns)?.contiguous()?.flatten_from(1)?;
        ops.linear_act(&x, linear, layer.activation)
    };
    let groups = layer.groups.iter().enumerate().map(of_group).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&groups, 1)?)
}

pub(super) fn activate(x: &Tensor, activation: Activation) -> candle_core::Result<Tensor> {
    match activation {
        Activation::GeluErf => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
        Activation::ReluSquared => x.relu()?.sqr(),
        Activation::Tanh => x.tanh(),
    }
}

/// Softmax over the last dimension, of `f32` scores.
fn softmax(scores: &Tensor) -> candle_core::Result<Tensor> {
    if scores.track_op() {
        return forms::softmax(scores);
    }
    candle_nn::ops::softmax_last_dim(scores)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::Buckets;
    use crate::ops::Distance;
    use crate::ops::batch::PackedBatch;
    use crate::ops::batch::Sequence;
    use crate::ops::inputs::AngleTable;
    use crate::ops::inputs::Angles;

    const OPS: Composed = Composed { device: Device::Cpu, format: Format::F32 };

    fn wave(shape: &[usize], step: f32) -> Tensor {
        let count: usize = shape.iter().product();
        Tensor::from_vec(waves(count, step), shape, &Device::Cpu).unwrap()
    }

    fn waves(count: usize, step: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * step).sin() * 3.0).collect()
    }

    fn batch(lengths: &[usize]) -> PackedBatch {
        let sequence = |&length: &usize| Sequence { token_ids: vec![1; length], type_ids: vec![0; length] };
        PackedBatch::pack(&lengths.iter().map(sequence).collect::<Vec<_>>())
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn the_fused_forms_equal_the_composed_ones() {
        for (rows, heads, width) in [(1, 1, 2), (3, 2, 6), (17, 5, 34), (64, 4, 128)] {
            let x = wave(&[rows, heads * width], 0.37);
            let by_head = x.reshape((rows, heads, width)).unwrap();
            let flat = |x: candle_core::Result<Tensor>| x.unwrap().flatten_from(1);
            let (weight, bias) = (wave(&[width], 0.7), wave(&[width], 1.3));
            let (wide_weight, wide_bias) = (wave(&[heads * width], 0.7), wave(&[heads * width], 1.1));
            let batch = batch(&[rows]);
            let angles = (waves(rows * width / 2, 0.2), waves(rows * width / 2, 0.3));
            let (cos, sin) = angles;
            let inputs = Inputs {
                ropes: vec![Angles::of_batch(AngleTable { cos, sin, pairs: width / 2 })],
                ..Inputs::of(&batch)
            };
            let batch = OPS.batch(&inputs).unwrap();
            let (cos, sin) = (wave(&[rows, width / 2], 0.2), wave(&[rows, width / 2], 0.3));
            let (eps, scores) = (1e-6, wave(&[rows, heads, width], 2.3));
            for (name, fused, composed) in [
                ("rms_norm", OPS.rms_norm(&x, &weight, eps), flat(forms::rms_norm(&by_head, &weight, eps))),
                (
                    "layer_norm",
                    OPS.layer_norm(&x, &wide_weight, &wide_bias, eps),
                    forms::layer_norm(&x, &wide_weight, &wide_bias, eps),
                ),
                (
                    "layer_norm of heads",
                    OPS.layer_norm(&x, &weight, &bias, eps),
                    flat(forms::layer_norm(&by_head, &weight, &bias, eps)),
                ),
                (
                    "rotary",
                    OPS.rotary(x.clone(), width, 0, &batch, &Which::Run(0..rows)),
                    flat(forms::rotary(&by_head, &cos, &sin)),
                ),
                ("softmax", softmax(&scores).map_err(OpsError::from), forms::softmax(&scores)),
            ] {
                let difference = largest_difference(&fused.unwrap(), &composed.unwrap());
                assert!(difference < 2e-5, "{name} {rows}x{heads}x{width}: {difference}");
            }
        }
    }

    /// candle's fused kernels drop gradients in silence: whoever trains must get the composed forms.
    #[test]
    fn every_operation_passes_a_gradient_to_every_input() {
        // low waves: no gradient passes a function that is saturated
        let var = |shape: &[usize], step: f32| {
            Var::from_tensor(&(wave(shape, step) * 0.1).unwrap()).unwrap().into_inner()
        };
        let linear = |input: usize, output: usize, step: f32| Linear {
            weight: var(&[input, output], step),
            bias: Some(var(&[output], step + 0.04)),
        };
        let (table, other_table) = (var(&[7, 16], 0.11), var(&[3, 16], 0.23));
        let (query, key, value) = (linear(16, 32, 0.3), linear(16, 16, 0.5), linear(16, 16, 0.7));
        let (head_weight, weight, bias) = (var(&[8], 0.9), var(&[16], 1.1), var(&[16], 1.3));
        let (of_keys, of_queries) = (var(&[3, 16], 0.43), var(&[3, 32], 0.53));
        let gated = Gated { gate: linear(16, 6, 0.13), up: linear(16, 6, 0.19) };
        let (output, down, dense) = (linear(32, 16, 0.17), linear(6, 16, 0.29), linear(16, 4, 0.31));
        let spec = AttentionSpec {
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            value_dim: 8,
            causal: true,
            window: Some(3),
            scale: 0.5,
            distance: Distance::Buckets(Buckets::new(3, 1, |distance| (distance + 1).clamp(0, 2) as usize)),
            softcap: Some(2.0),
        };
        let batch = batch(&[2, 3]);
        let angles = Angles::of_batch(AngleTable { cos: waves(15, 0.2), sin: waves(15, 0.3), pairs: 3 });
        let inputs = Inputs {
            ids: vec![vec![3, 1, 4, 1, 5].into(), vec![0, 1, 2, 0, 1].into()],
            ropes: vec![angles],
            lists: vec![vec![1, 3, 4]],
            ..Inputs::of(&batch)
        };
        let (batch, all, listed) = (OPS.batch(&inputs).unwrap(), Which::Run(0..5), inputs.listed(0));

        let x = OPS.embed(&[(&table, 0), (&other_table, 1)], Some(0.5), &batch, &all).unwrap();
        let normed = OPS.layer_norm(&x, &weight, &bias, 1e-6).unwrap();
        let normed = OPS.operand(Cow::Owned(normed)).unwrap();
        let q = OPS.rms_norm(&OPS.linear(&normed, &query).unwrap(), &head_weight, 1e-6).unwrap();
        let [k, v] = [&key, &value].map(|layer| OPS.linear(&normed, layer).unwrap());
        let k = OPS.rotary(k, 8, 0, &batch, &all).unwrap();
        let q = OPS.gather(&[q], 0, &batch).unwrap().swap_remove(0);
        let q = OPS.rotary(q, 8, 0, &batch, &listed).unwrap();
        let relative =
            OPS.products_by_distance(Some(of_keys.clone()), Some(of_queries.clone()), &spec).unwrap();
        let memory = OPS.remember(vec![k], vec![v], Some(&relative), &batch, &spec).unwrap();
        let attended = OPS.attend(&q, &listed, &memory).unwrap();
        let x = OPS.gather(&[x], 0, &batch).unwrap().swap_remove(0);
        let x = OPS.linear_add(&attended, &output, x).unwrap();
        let mut inside = OPS.gated(&x, &gated, Activation::GeluErf).unwrap();
        for activation in [
            Activation::GeluTanh,
            Activation::Silu,
            Activation::Tanh,
            Activation::Relu,
            Activation::ReluSquared,
        ] {
            inside = OPS.add(activate(&inside, activation).unwrap(), &inside).unwrap();
        }
        let x = OPS.linear_add(&inside, &down, x).unwrap();
        let pooled = self::batch(&[2, 1]);
        let inputs = Inputs::of(&pooled);
        let means = OPS.mean(&[x], &OPS.batch(&inputs).unwrap()).unwrap();
        let rewards = OPS.linear_act(&means[0], &dense, Activation::Silu).unwrap();
        let gradients = rewards.sum_all().unwrap().backward().unwrap();

        let layers = [&query, &key, &value, &output, &gated.gate, &gated.up, &down, &dense]
            .into_iter()
            .zip(["query", "key", "value", "output", "gate", "up", "down", "dense"]);
        let layers =
            layers.flat_map(|(layer, name)| [(name, Some(&layer.weight)), (name, layer.bias.as_ref())]);
        let others = [
            ("table", &table),
            ("other table", &other_table),
            ("head norm", &head_weight),
            ("norm weight", &weight),
            ("norm bias", &bias),
            ("table of keys", &of_keys),
            ("table of queries", &of_queries),
        ];
        let layers = layers.filter_map(|(name, input)| Some((name, input?)));
        for (name, input) in layers.chain(others) {
            let gradient = gradients.get(input).unwrap_or_else(|| panic!("{name} has no gradient"));
            let size: f32 = gradient.abs().unwrap().sum_all().unwrap().to_scalar().unwrap();
            assert!(size > 0.0 && size.is_finite(), "{name}: {size}");
        }
    }
}
