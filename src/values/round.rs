//! Rounding once.
//!
//! Rounding from `f64` to `f16` or `bf16` by way of `f32` would round twice, and differ from a reference in the last
//! place; the `half` crate does so on machines with F16C. [`round_to_odd`] makes the first step harmless.

use half::bf16;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::values::CHUNK;

/// What weights are kept as. Written for slices without branches, so that compilers make vectors of it, and inlined where
/// it is used, so that they are as wide as the vectors there.
pub trait Kept: Copy + Send + Sync {
    /// One rounding.
    fn from_f64s(exact: &[f64], to: &mut [Self]);
    /// One rounding.
    fn from_f32s(exact: &[f32], to: &mut [Self]);
    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool;
    /// Exactly.
    fn to_f64(self) -> f64;

    /// Whether all are finite.
    #[inline(always)]
    fn are_finite(values: &[Self]) -> bool {
        values.iter().fold(true, |all, value| all & value.is_finite())
    }
}

impl Kept for f32 {
    #[inline(always)]
    fn from_f64s(exact: &[f64], to: &mut [Self]) {
        to.iter_mut().zip(exact).for_each(|(to, &x)| *to = x as f32);
    }
    #[inline(always)]
    fn from_f32s(exact: &[f32], to: &mut [Self]) {
        to.copy_from_slice(exact);
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Kept for f16 {
    #[inline(always)]
    fn from_f64s(exact: &[f64], to: &mut [Self]) {
        let mut odd = [0.0; CHUNK];
        all_to_odd(exact, &mut odd);
        Self::from_f32s(&odd[..exact.len()], to);
    }
    #[inline(always)]
    fn from_f32s(exact: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(exact);
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Kept for bf16 {
    #[inline(always)]
    fn from_f64s(exact: &[f64], to: &mut [Self]) {
        let mut odd = [0.0; CHUNK];
        all_to_odd(exact, &mut odd);
        Self::from_f32s(&odd[..exact.len()], to);
    }
    #[inline(always)]
    fn from_f32s(exact: &[f32], to: &mut [Self]) {
        to.iter_mut().zip(exact).for_each(|(to, &x)| *to = to_bf16(x));
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self.into()
    }
}

/// As `bf16::from_f32`, whose branches cost ten times as much: to the nearest, ties to even, and a NaN stays one.
#[inline(always)]
pub fn to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    bf16::from_bits(if x.is_nan() { bits >> 16 | 0x40 } else { nearest } as u16)
}

/// As [`bf16::to_f32`], of a number.
#[inline(always)]
pub fn from_bf16(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// Rounds to `f32` such that a second rounding to a narrower format gives what one rounding would have given:
/// an inexact value goes to the neighbour whose last bit is 1.
///
/// Source: Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums: proved algorithms using
/// rounding to odd".
pub fn round_to_odd(exact: f64) -> f32 {
    let nearest = exact as f32;
    if nearest.is_nan() || f64::from(nearest) == exact {
        return nearest;
    }
    let toward_zero =
        if f64::from(nearest).abs() > exact.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest };
    f32::from_bits(toward_zero.to_bits() | 1)
}

/// [`round_to_odd`] of each; without branches, where no result is subnormal.
///
/// The bits that `f32` has no room for are cut off, and if there were any, adding all ones to them carries into the
/// last bit that stays. What is above the largest `f32` becomes infinite or that: both overflow in 16 bits.
#[inline(always)]
fn all_to_odd(exact: &[f64], odd: &mut [f32]) {
    const CUT: u64 = (1 << (52 - 23)) - 1;
    let is_subnormal = |x: f64| (x.abs() < f64::from(f32::MIN_POSITIVE)) & (x != 0.0);
    if exact.iter().fold(false, |any, &x| any | is_subnormal(x)) {
        odd.iter_mut().zip(exact).for_each(|(odd, &x)| *odd = round_to_odd(x));
        return;
    }
    for (odd, x) in odd.iter_mut().zip(exact) {
        let bits = x.to_bits();
        *odd = f64::from_bits((bits | ((bits & CUT) + CUT)) & !CUT) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Just above the middle between two neighbours: by way of `f32` it would be rounded to the middle first, and
    /// then down to the even neighbour.
    #[test]
    fn one_rounding_is_not_two() {
        let exact = 1.0 + 2.0_f64.powi(-11) + 2.0_f64.powi(-40); // f16 has 10 bits after the point
        assert_eq!(f16::from_f32(exact as f32).to_f64(), 1.0, "the trap is not set");
        assert_eq!(f16::from_f32(round_to_odd(exact)).to_f64(), 1.0 + 2.0_f64.powi(-10));
        let exact = -(1.0 + 2.0_f64.powi(-8) + 2.0_f64.powi(-40)); // bf16 has 7
        assert_eq!(bf16::from_f32(exact as f32).to_f64(), -1.0, "the trap is not set");
        assert_eq!(bf16::from_f32(round_to_odd(exact)).to_f64(), -(1.0 + 2.0_f64.powi(-7)));
    }

    #[test]
    fn what_f32_holds_stays_as_it_is() {
        for value in [0.0, -0.0, 1.0, -3.25, f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX), f64::INFINITY]
        {
            assert_eq!(f64::from(round_to_odd(value)).to_bits(), value.to_bits());
        }
        assert!(round_to_odd(f64::NAN).is_nan());
        assert_eq!(f16::from_f32(round_to_odd(1e300)), f16::INFINITY);
    }

    #[test]
    fn rounding_without_branches_is_the_same() {
        for exponent in -160..130 {
            for i in 0..200_u64 {
                let hash = blake3::hash(&i.to_le_bytes());
                let bits = u64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap());
                // from all 52 bits to few, around halves and quarters of what f32 and bf16 tell apart
                let fraction = bits >> 12 & !((1 << (i % 52)) - 1);
                let x = (1.0 + fraction as f64 / 2.0_f64.powi(52)) * 2.0_f64.powi(exponent);
                let x = if bits & 1 == 0 { x } else { -x };
                let mut odd = [0.0];
                all_to_odd(&[x], &mut odd);
                let expected = round_to_odd(x);
                assert_eq!(bf16::from_f32(odd[0]), bf16::from_f32(expected), "{x:e}");
                assert_eq!(f16::from_f32(odd[0]), f16::from_f32(expected), "{x:e}");
                assert_eq!(to_bf16(expected), bf16::from_f32(expected), "{x:e}");
                assert_eq!(to_bf16(x as f32).to_bits(), bf16::from_f32(x as f32).to_bits(), "{x:e}");
            }
        }
        for x in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE] {
            assert_eq!(to_bf16(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
            assert_eq!(from_bf16(to_bf16(x)).to_bits(), to_bf16(x).to_f32().to_bits(), "{x}");
        }
        assert!(to_bf16(f32::NAN).is_nan() && to_bf16(f32::from_bits(0x7fff_ffff)).is_nan());
    }
}
