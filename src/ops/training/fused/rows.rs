//! What happens to each value of some rows.

use candle_core::CpuStorage;
use candle_core::CustomOp1;
use candle_core::CustomOp2;
use candle_core::Layout;
use candle_core::Result;
use candle_core::Shape;
use candle_core::Tensor;

use super::like;
use super::slice;
use super::storage;
use super::with_slices;

/// `x + y · factors`
pub(in crate::ops::training) fn add_dropped(x: &Tensor, y: &Tensor, factors: Vec<f32>) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&y.contiguous()?, AddDropped { factors })
}

struct AddDropped {
    factors: Vec<f32>,
}

impl CustomOp2 for AddDropped {
    fn name(&self) -> &'static str {
        "add with dropout"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let values = slice(x, x_layout)?.iter().zip(slice(y, y_layout)?).zip(&self.factors);
        let sums = values.map(|((x, y), factor)| x + y * factor).collect();
        Ok(storage(sums, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        y: &Tensor,
        _: &Tensor,
        of_result: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let by_y = with_slices([of_result], |[of_result]| {
            Ok(of_result.iter().zip(&self.factors).map(|(of_result, factor)| of_result * factor).collect())
        })?;
        Ok((Some(of_result.clone()), Some(like(by_y, y)?)))
    }
}

/// Turns each pair (`i`, `i + pairs`) of each head by the angles of its row, `[rows, pairs]`.
pub(in crate::ops::training) fn rotary(
    x: &Tensor,
    head_dim: usize,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<Tensor> {
    let pairs = cos.dim(1)?;
    let [cos, sin] = [cos, sin].map(|angles| angles.flatten_all()?.to_vec1::<f32>());
    x.contiguous()?.apply_op1(Rotary { head_dim, pairs, cos: cos?, sin: sin? })
}

struct Rotary {
    head_dim: usize,
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// Backwards where `direction` is -1: the gradient is turned the other way.
    fn turn(&self, x: &[f32], direction: f32) -> Vec<f32> {
        let pairs = self.pairs;
        let rows = self.cos.len() / pairs;
        let width = x.len() / rows.max(1);
        let mut turned = x.to_vec();
        let angles = self.cos.chunks_exact(pairs).zip(self.sin.chunks_exact(pairs));
        for ((x, to), (cos, sin)) in x.chunks_exact(width).zip(turned.chunks_exact_mut(width)).zip(angles) {
            for (x, to) in x.chunks_exact(self.head_dim).zip(to.chunks_exact_mut(self.head_dim)) {
                let ((first, second), (to_first, to_second)) = (x.split_at(pairs), to.split_at_mut(pairs));
                for i in 0..pairs {
                    let sin = direction * sin[i];
                    to_first[i] = first[i] * cos[i] - second[i] * sin;
                    to_second[i] = second[i] * cos[i] + first[i] * sin;
                }
            }
        }
        turned
    }
}

impl CustomOp1 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(storage(self.turn(slice(x, layout)?, 1.0), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, of_result: &Tensor) -> Result<Option<Tensor>> {
        let by_x = with_slices([of_result], |[of_result]| Ok(self.turn(of_result, -1.0)))?;
        Ok(Some(like(by_x, x)?))
    }
}
