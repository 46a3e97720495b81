//! Norms over runs of columns.

use candle_core::CpuStorage;
use candle_core::CustomOp2;
use candle_core::CustomOp3;
use candle_core::Layout;
use candle_core::Result;
use candle_core::Shape;
use candle_core::Tensor;

use super::Kept;
use super::like;
use super::slice;
use super::storage;
use super::sum_of;
use super::with_slices;

/// With what each run was normed.
struct Run {
    mean: f32,
    /// One over the standard deviation, or over the root of the mean square.
    factor: f32,
}

struct Norm {
    eps: f64,
    runs: Kept<Vec<Run>>,
}

/// `(x - mean) / std · weight + bias` over each run of as many columns as `weight` and `bias` have.
pub(in crate::ops::training) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Norm { eps, runs: Kept::new() })
}

/// `x / rms(x) · weight` over each run of as many columns as `weight` has.
pub(in crate::ops::training) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&weight.contiguous()?, Norm { eps, runs: Kept::new() })
}

/// Gradients of a norm.
struct Gradients {
    by_x: Vec<f32>,
    by_weight: Vec<f32>,
    by_bias: Vec<f32>,
}

impl Norm {
    fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let width = weight.len();
        let mut normed = vec![0.0; x.len()];
        let mut runs = Vec::with_capacity(x.len() / width);
        for (x, normed) in x.chunks_exact(width).zip(normed.chunks_exact_mut(width)) {
            let mean = if bias.is_some() { sum_of(x, x, |x, _| x) / width as f32 } else { 0.0 };
            let square = sum_of(x, x, |x, _| (x - mean) * (x - mean)) / width as f32;
            let factor = (1.0 / (f64::from(square) + self.eps).sqrt()) as f32;
            for ((to, x), weight) in normed.iter_mut().zip(x).zip(weight) {
                *to = (x - mean) * factor * weight;
            }
            if let Some(bias) = bias {
                normed.iter_mut().zip(bias).for_each(|(to, bias)| *to += bias);
            }
            runs.push(Run { mean, factor });
        }
        self.runs.keep(runs);
        normed
    }

    /// With `centered`, the mean of each run was taken off.
    fn backward(&self, x: &[f32], weight: &[f32], of_result: &[f32], centered: bool) -> Result<Gradients> {
        let width = weight.len();
        let mut by_x = vec![0.0; x.len()];
        let (mut by_weight, mut by_bias) = (vec![0.0; width], vec![0.0; width]);
        let mut scaled = vec![0.0; width]; // the gradient by the normed x
        let mut normed = vec![0.0; width];
        let rows = x.chunks_exact(width).zip(of_result.chunks_exact(width)).zip(by_x.chunks_exact_mut(width));
        for (((x, of_result), by_x), Run { mean, factor }) in rows.zip(self.runs.get()?) {
            for (to, x) in normed.iter_mut().zip(x) {
                *to = (x - mean) * factor;
            }
            for ((to, of_result), weight) in scaled.iter_mut().zip(of_result).zip(weight) {
                *to = of_result * weight;
            }
            for ((sum, of_result), normed) in by_weight.iter_mut().zip(of_result).zip(&normed) {
                *sum += of_result * normed;
            }
            let along = sum_of(&scaled, &normed, |a, b| a * b) / width as f32;
            let mut common = 0.0;
            if centered {
                by_bias.iter_mut().zip(of_result).for_each(|(sum, of_result)| *sum += of_result);
                common = sum_of(&scaled, &scaled, |a, _| a) / width as f32;
            }
            for ((to, scaled), normed) in by_x.iter_mut().zip(&scaled).zip(&normed) {
                *to = factor * (scaled - common - normed * along);
            }
        }
        Ok(Gradients { by_x, by_weight, by_bias })
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "layer norm"
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
        let (weight, bias) = (slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        Ok(storage(self.forward(slice(x, x_layout)?, weight, Some(bias)), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        of_result: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradients = with_slices([x, weight, of_result], |[x_values, weight, of_result]| {
            self.backward(x_values, weight, of_result, true)
        })?;
        Ok((
            Some(like(gradients.by_x, x)?),
            Some(like(gradients.by_weight, weight)?),
            Some(like(gradients.by_bias, bias)?),
        ))
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "rms norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let normed = self.forward(slice(x, x_layout)?, slice(weight, weight_layout)?, None);
        Ok(storage(normed, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        of_result: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = with_slices([x, weight, of_result], |[x_values, weight, of_result]| {
            self.backward(x_values, weight, of_result, false)
        })?;
        Ok((Some(like(gradients.by_x, x)?), Some(like(gradients.by_weight, weight)?)))
    }
}
