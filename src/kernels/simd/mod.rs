//! Vectors of `f32`, for each instruction set we use, and the functions that kernels are made of.
//!
//! A kernel is written once, generic over [`Simd`], and [`Isa::run`](crate::isa::Isa::run) compiles it for each
//! instruction set. Everything here is `inline(always)`: a vector that crosses a call would go through memory.
//!
//! `max` and `min` return their *second* argument if either is NaN, as x86 does, so that a NaN among the
//! activations is not lost on the way to the reward, where it is an error.

#![expect(unsafe_code, reason = "loads and stores by pointer")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::bf16;

#[cfg(target_arch = "x86_64")]
pub(crate) use self::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::avx512::Avx512;
pub(crate) use self::portable::Portable;

/// A vector unit that this machine has; a value proves it.
pub(crate) trait Simd: Copy + Send + Sync {
    /// [`Self::LANES`] numbers.
    type V: Copy;
    /// Numbers in a vector.
    const LANES: usize;
    /// Rows of the register tile of a product.
    const TILE_ROWS: usize;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `LANES` numbers must be readable.
    unsafe fn load_ptr(self, from: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` numbers must be writable.
    unsafe fn store_ptr(self, to: *mut f32, x: Self::V);
    /// Asks for a cache line that is read soon; any address will do.
    #[inline(always)]
    fn prefetch(self, _: *const f32) {}
    /// Asks for one that is read later, into the second-level cache.
    #[inline(always)]
    fn prefetch_for_later(self, _: *const f32) {}
    /// The first numbers, and zeros if they are fewer than a vector has.
    fn load_partial(self, from: &[f32]) -> Self::V;
    /// As many numbers as there is room for.
    fn store_partial(self, to: &mut [f32], x: Self::V);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn abs(self, x: Self::V) -> Self::V;
    /// To the nearest whole number.
    fn round(self, x: Self::V) -> Self::V;
    /// Rounded to bfloat16; as [`Self::store`].
    fn store_bf16(self, to: &mut [bf16], x: Self::V);
    /// Two rows of numbers, each rounded to bfloat16, a pair of each column in a word; zeros where a row ends.
    fn pair_bf16(self, first: &[f32], second: &[f32], to: &mut [u32]);
    /// Turns 16 rows of 16 words: word `i` of row `j` goes to `to[i * stride + j]`.
    fn transpose(self, rows: [&[u32; 16]; 16], to: &mut [u32], stride: usize);
    /// `x · 2^n` for whole `n` between -126 and 127.
    fn scale(self, x: Self::V, n: Self::V) -> Self::V;
    /// `then` where `a < b`, else `otherwise`.
    fn where_less(self, a: Self::V, b: Self::V, then: Self::V, otherwise: Self::V) -> Self::V;
    /// Of as many numbers as a vector has, those at these places, `less` subtracted from each; none may be beyond.
    fn pick(self, from: &[f32], at: &[u32], less: u32) -> Self::V;
    /// The numbers at these places, `less` subtracted from each; the last one beyond the end.
    fn gather(self, from: &[f32], at: &[u32], less: u32) -> Self::V;
    /// In a fixed order.
    fn sum(self, x: Self::V) -> f32;
    /// The largest.
    fn largest(self, x: Self::V) -> f32;

    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::V {
        if from.len() >= Self::LANES {
            // SAFETY: it is as long
            unsafe { self.load_ptr(from.as_ptr()) }
        } else {
            self.load_partial(from)
        }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32], x: Self::V) {
        if to.len() >= Self::LANES {
            // SAFETY: it is as long
            unsafe { self.store_ptr(to.as_mut_ptr(), x) }
        } else {
            self.store_partial(to, x);
        }
    }

    /// `e^x`, to about one unit in the last place; of anything below -87.3 or above 88.3, what it is there (1.2e-38
    /// and 2.2e38). Source: Cephes, `expf`.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let x = self.max(self.splat(-87.3), self.min(self.splat(88.3), x));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.mul_add(n, self.splat(-0.693_359_4), x);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let p = self
            .polynomial(r, &[1.987_569_2e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
        let p = self.mul_add(p, self.mul(r, r), self.add(r, self.splat(1.0)));
        self.scale(p, n)
    }

    /// Highest power first.
    #[inline(always)]
    fn polynomial(self, x: Self::V, coefficients: &[f32]) -> Self::V {
        let mut p = self.splat(coefficients[0]);
        for &c in &coefficients[1..] {
            p = self.mul_add(p, x, self.splat(c));
        }
        p
    }

    /// Hyperbolic tangent. Source: Cephes, `tanhf`.
    #[inline(always)]
    fn tanh(self, x: Self::V) -> Self::V {
        let size = self.abs(x);
        let square = self.mul(x, x);
        let p = self.polynomial(
            square,
            &[-5.704_988_7e-3, 2.063_908_6e-2, -5.373_971e-2, 1.333_144_2e-1, -0.333_332_8],
        );
        let near = self.mul_add(self.mul(p, square), x, x);
        let e = self.exp(self.add(size, size));
        let far = self.sub(self.splat(1.0), self.div(self.splat(2.0), self.add(e, self.splat(1.0))));
        let far = self.where_less(x, self.splat(0.0), self.sub(self.splat(0.0), far), far);
        self.where_less(size, self.splat(0.625), near, far)
    }

    /// `x · Φ(x)`, with the error function to 1.5e-7. Source: Abramowitz and Stegun, 7.1.26.
    #[inline(always)]
    fn gelu_erf(self, x: Self::V) -> Self::V {
        let z = self.mul(self.abs(x), self.splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = self.div(self.splat(1.0), self.mul_add(z, self.splat(0.327_591_1), self.splat(1.0)));
        let p = self.polynomial(t, &[1.061_405_4, -1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6]);
        let tail = self.mul(self.mul(p, t), self.exp(self.sub(self.splat(0.0), self.mul(z, z))));
        let erf = self.sub(self.splat(1.0), tail);
        let half = self.mul(x, self.splat(0.5));
        self.mul_add(self.abs(half), erf, half)
    }

    /// `x · Φ(x)` by tanh.
    #[inline(always)]
    fn gelu_tanh(self, x: Self::V) -> Self::V {
        let cube = self.mul(self.mul(x, x), x);
        let inner = self.mul_add(cube, self.splat(0.044_715), x);
        let t = self.tanh(self.mul(inner, self.splat(0.797_884_6)));
        let half = self.mul(x, self.splat(0.5));
        self.mul_add(half, t, half)
    }

    /// `x · sigmoid(x)`; below -1e30, where `exp` no longer grows, `x / 2.2e38` and not yet zero.
    #[inline(always)]
    fn silu(self, x: Self::V) -> Self::V {
        let e = self.exp(self.sub(self.splat(0.0), x));
        self.div(x, self.add(self.splat(1.0), e))
    }
}

#[cfg(test)]
mod tests {
    use libm::erfc;

    use super::Simd;
    use crate::isa::Isa;
    use crate::isa::Kernel;

    #[derive(Clone, Copy, Debug)]
    enum Function {
        Exp,
        Tanh,
        GeluErf,
        GeluTanh,
        Silu,
    }

    impl Function {
        const ALL: [Self; 5] = [Self::Exp, Self::Tanh, Self::GeluErf, Self::GeluTanh, Self::Silu];

        fn exact(self, x: f64) -> f64 {
            match self {
                Self::Exp => x.clamp(f64::from(-87.3_f32), f64::from(88.3_f32)).exp(),
                Self::Tanh => x.tanh(),
                Self::GeluErf => 0.5 * x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
                Self::GeluTanh => {
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                    0.5 * x * (1.0 + inner.tanh())
                }
                Self::Silu => x / (1.0 + (-x).exp()),
            }
        }

        /// How far we may be from `exact`, in units in the last place of 1 (2^-23).
        fn most_units(self, x: f64, exact: f64) -> f64 {
            // where a function goes through zero; and everywhere
            let (x, exact) = (x.abs().max(f64::from(f32::MIN_POSITIVE)), exact.abs());
            match self {
                Self::Exp => 1.0 * exact,
                Self::Tanh => 1.25 * exact.max(f64::from(f32::MIN_POSITIVE)),
                Self::GeluErf => (2.75 * x).min(3.0 * exact.max(1.0)),
                Self::GeluTanh => x.min(1.75 * exact.max(1.0)),
                // the last: what is left where `exp` no longer grows
                Self::Silu => x.min(exact.max(1.0)) + x / 2.2e38 / f64::from(f32::EPSILON),
            }
        }
    }

    struct Apply<'a> {
        function: Function,
        x: &'a mut [f32],
    }

    impl Kernel for Apply<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for x in self.x.chunks_mut(S::LANES) {
                let value = simd.load(x);
                let value = match self.function {
                    Function::Exp => simd.exp(value),
                    Function::Tanh => simd.tanh(value),
                    Function::GeluErf => simd.gelu_erf(value),
                    Function::GeluTanh => simd.gelu_tanh(value),
                    Function::Silu => simd.silu(value),
                };
                simd.store(x, value);
            }
        }
    }

    fn apply(isa: Isa, function: Function, x: &[f32]) -> Vec<f32> {
        let mut x = x.to_vec();
        isa.run(Apply { function, x: &mut x });
        x
    }

    /// Every so many of all finite numbers.
    fn check(step: usize) {
        let x: Vec<f32> =
            (0..=u32::MAX).step_by(step).map(f32::from_bits).filter(|x| x.is_finite()).collect();
        for function in Function::ALL {
            let exact: Vec<f64> = x.iter().map(|&x| function.exact(f64::from(x))).collect();
            for isa in Isa::all() {
                for ((&x, ours), &exact) in x.iter().zip(apply(isa, function, &x)).zip(&exact) {
                    let units = (f64::from(ours) - exact).abs() / f64::from(f32::EPSILON);
                    let most = function.most_units(f64::from(x), exact);
                    assert!(
                        units <= most,
                        "{function:?}({x}) {isa:?}: {ours}, not {exact}: {units} > {most}"
                    );
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "long there, and without a pointer")]
    fn functions_are_those_of_f64_to_a_few_units_in_the_last_place() {
        check(16_411);
    }

    #[test]
    #[ignore = "long: one number in 257"]
    fn functions_are_those_of_f64_almost_everywhere() {
        check(257);
    }

    #[test]
    #[cfg_attr(miri, ignore = "long there, and without a pointer")]
    fn functions_pass_on_nan_in_every_lane_and_know_infinity() {
        for isa in Isa::all() {
            for function in Function::ALL {
                for lane in 0..19 {
                    let mut x = [0.5; 19];
                    x[lane] = f32::NAN;
                    let ours = apply(isa, function, &x);
                    let lost = ours.iter().enumerate().find(|&(i, x)| x.is_nan() != (i == lane));
                    assert_eq!(lost, None, "{function:?} {isa:?}");
                }
                let ours = apply(isa, function, &[f32::INFINITY, f32::NEG_INFINITY]);
                let is_right = match function {
                    Function::Exp => ours[0] > 2e38 && ours[1] < 1.3e-38,
                    Function::Tanh => ours == [1.0, -1.0],
                    // not zero: what overflowed is an error
                    Function::GeluErf | Function::GeluTanh | Function::Silu => {
                        ours[0] == f32::INFINITY && !ours[1].is_finite()
                    }
                };
                assert!(is_right, "{function:?} {isa:?}: {ours:?}");
            }
        }
    }
}
