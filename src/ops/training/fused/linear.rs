//! Linear layers.

use candle_core::CpuStorage;
use candle_core::CustomOp2;
use candle_core::CustomOp3;
use candle_core::Layout;
use candle_core::Result;
use candle_core::Shape;
use candle_core::Tensor;
use candle_core::backend::BackendStorage;

use super::slice;
use super::with_slices;

struct Linear;

/// `x · weightᵀ + bias`, with `weight` `[output, input]` as checkpoints keep it, so that its gradient needs no transposing.
pub(in crate::ops::training) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let x = x.contiguous()?;
    match bias {
        Some(bias) => x.apply_op3(weight, bias, Linear),
        None => x.apply_op2(weight, Linear),
    }
}

fn product(
    x: &CpuStorage,
    x_layout: &Layout,
    weight: &CpuStorage,
    weight_layout: &Layout,
) -> Result<(CpuStorage, [usize; 2])> {
    let ((rows, input), (output, _)) = (x_layout.shape().dims2()?, weight_layout.shape().dims2()?);
    let product = x.matmul(weight, (1, rows, output, input), x_layout, &weight_layout.transpose(0, 1)?)?;
    Ok((product, [rows, output]))
}

/// Gradients by `x` and `weight`.
fn gradients(x: &Tensor, weight: &Tensor, of_result: &Tensor) -> Result<[Option<Tensor>; 2]> {
    let by_x = x.track_op().then(|| of_result.matmul(&weight.detach())).transpose()?;
    let by_weight = weight.track_op().then(|| of_result.t()?.matmul(&x.detach())).transpose()?;
    Ok([by_x, by_weight])
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (product, shape) = product(x, x_layout, weight, weight_layout)?;
        Ok((product, shape.to_vec().into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        of_result: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [by_x, by_weight] = gradients(x, weight, &of_result.contiguous()?)?;
        Ok((by_x, by_weight))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear with bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (mut product, shape) = product(x, x_layout, weight, weight_layout)?;
        let CpuStorage::F32(values) = &mut product else { candle_core::bail!("a product that is not f32") };
        let bias = slice(bias, bias_layout)?;
        for row in values.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
        Ok((product, shape.to_vec().into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        of_result: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let of_result = of_result.contiguous()?;
        let [by_x, by_weight] = gradients(x, weight, &of_result)?;
        let by_bias = bias.track_op().then(|| {
            let mut sums = vec![0.0; bias.elem_count()];
            with_slices([&of_result], |[of_result]| {
                for row in of_result.chunks_exact(sums.len()) {
                    sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
                Ok(())
            })?;
            super::like(sums, bias)
        });
        Ok((by_x, by_weight, by_bias.transpose()?))
    }
}
