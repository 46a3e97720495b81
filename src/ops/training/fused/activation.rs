//! Activations. The forward computes the slopes too: they share the exponential, which is most of the work.

use candle_core::CpuStorage;
use candle_core::CustomOp1;
use candle_core::CustomOp2;
use candle_core::Layout;
use candle_core::Result;
use candle_core::Shape;
use candle_core::Tensor;

use super::Kept;
use super::exp;
use super::like;
use super::slice;
use super::storage;
use super::with_slices;
use crate::ops::Activation;

/// `activation(x)`
pub(in crate::ops::training) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Activate { activation, slopes: Kept::new() })
}

/// `activation(x) · up`
pub(in crate::ops::training) fn gate(x: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&up.contiguous()?, Gate { activation, kept: Kept::new() })
}

struct Activate {
    activation: Activation,
    slopes: Kept<Vec<f32>>,
}

struct Gate {
    activation: Activation,
    /// Values and slopes.
    kept: Kept<[Vec<f32>; 2]>,
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let [values, slopes] = values_and_slopes(slice(x, layout)?, self.activation);
        self.slopes.keep(slopes);
        Ok(storage(values, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, of_result: &Tensor) -> Result<Option<Tensor>> {
        let slopes = self.slopes.get()?;
        let by_x = with_slices([of_result], |[of_result]| {
            Ok(of_result.iter().zip(slopes).map(|(of_result, slope)| of_result * slope).collect())
        })?;
        Ok(Some(like(by_x, x)?))
    }
}

impl CustomOp2 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [values, slopes] = values_and_slopes(slice(x, x_layout)?, self.activation);
        let gated = values.iter().zip(slice(up, up_layout)?).map(|(value, up)| value * up).collect();
        self.kept.keep([values, slopes]);
        Ok(storage(gated, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        up: &Tensor,
        _: &Tensor,
        of_result: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [values, slopes] = self.kept.get()?;
        let (by_x, by_up) = with_slices([up, of_result], |[up, of_result]| {
            let by_x =
                of_result.iter().zip(slopes).zip(up).map(|((of_result, slope), up)| of_result * slope * up);
            let by_up = of_result.iter().zip(values).map(|(of_result, value)| of_result * value);
            Ok((by_x.collect(), by_up.collect()))
        })?;
        Ok((Some(like(by_x, x)?), Some(like(by_up, up)?)))
    }
}

fn values_and_slopes(x: &[f32], activation: Activation) -> [Vec<f32>; 2] {
    match activation {
        Activation::GeluErf => map(x, gelu_erf),
        Activation::GeluTanh => map(x, gelu_tanh),
        Activation::Silu => map(x, silu),
        Activation::Relu => map(x, |x| (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 })),
        Activation::ReluSquared => map(x, |x| (x.max(0.0) * x.max(0.0), 2.0 * x.max(0.0))),
        Activation::Tanh => map(x, |x| (x.tanh(), 1.0 - x.tanh() * x.tanh())), // of heads: few values
    }
}

fn map(x: &[f32], f: impl Fn(f32) -> (f32, f32)) -> [Vec<f32>; 2] {
    let (mut values, mut slopes) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    for ((value, slope), &x) in values.iter_mut().zip(&mut slopes).zip(x) {
        (*value, *slope) = f(x);
    }
    [values, slopes]
}

/// `x · Φ(x)`, slope `Φ(x) + x · φ(x)`. Abramowitz and Stegun's 7.1.26, which is within 1.5e-7 of erf, shares the
/// exponential with the slope.
#[inline(always)]
fn gelu_erf(x: f32) -> (f32, f32) {
    let bell = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let mut p = 1.061_405_4_f32;
    for c in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        p = p * t + c;
    }
    let tail = 0.5 * p * t * bell; // Φ(-|x|)
    let below = if x < 0.0 { tail } else { 1.0 - tail };
    /// `1 / √(2π)`
    const BELL: f32 = 0.398_942_3;
    (x * below, below + x * bell * BELL)
}

/// `x · sigmoid(2u)` with `u = √(2/π) (x + 0.044715 x³)`
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const ROOT: f32 = 0.797_884_6; // √(2/π)
    const CUBIC: f32 = 0.044_715;
    let twice = 2.0 * ROOT * (x + CUBIC * x * x * x);
    let share = 1.0 / (1.0 + exp(-twice));
    let slope = 2.0 * ROOT * (1.0 + 3.0 * CUBIC * x * x);
    (x * share, share + x * share * (1.0 - share) * slope)
}

#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let share = 1.0 / (1.0 + exp(-x));
    (x * share, share * (1.0 + x * (1.0 - share)))
}
