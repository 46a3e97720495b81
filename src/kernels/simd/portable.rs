//! Plain arrays: for every machine; compilers turn them into what it has.

#![expect(unsafe_code, reason = "loads and stores by pointer")]

use half::bf16;

use super::Simd;

/// Eight numbers in an array.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const PORTABLE_LANES: usize = 8;

impl Portable {
    #[inline(always)]
    fn map2(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }
}

impl Simd for Portable {
    type V = [f32; PORTABLE_LANES];
    const LANES: usize = PORTABLE_LANES;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> Self::V {
        // SAFETY: the caller's promise
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, to: *mut f32, x: Self::V) {
        // SAFETY: the caller's promise
        unsafe { to.cast::<Self::V>().write_unaligned(x) }
    }
    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> Self::V {
        std::array::from_fn(|i| from.get(i).copied().unwrap_or(0.0))
    }
    #[inline(always)]
    fn store_partial(self, to: &mut [f32], x: Self::V) {
        to.iter_mut().zip(x).for_each(|(to, x)| *to = x);
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // without the instruction, `f32::mul_add` is a call into the C library
        let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
        std::array::from_fn(|i| if fused { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] })
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        Self::map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, x: Self::V) -> Self::V {
        x.map(f32::abs)
    }
    #[inline(always)]
    fn round(self, x: Self::V) -> Self::V {
        // adding 1.5 · 2^23 leaves no room for a fraction; a call of `round_ties_even` is slow without SSE 4.1
        x.map(|x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16], x: Self::V) {
        store_bf16(self, to, x);
    }
    #[inline(always)]
    fn pair_bf16(self, first: &[f32], second: &[f32], to: &mut [u32]) {
        pair_bf16(first, second, to);
    }
    #[inline(always)]
    fn transpose(self, rows: [&[u32; 16]; 16], to: &mut [u32], stride: usize) {
        transpose(rows, to, stride);
    }
    #[inline(always)]
    fn scale(self, x: Self::V, n: Self::V) -> Self::V {
        Self::map2(x, n, |x, n| x * f32::from_bits(((n as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    fn where_less(self, a: Self::V, b: Self::V, then: Self::V, otherwise: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { then[i] } else { otherwise[i] })
    }
    #[inline(always)]
    fn pick(self, from: &[f32], at: &[u32], less: u32) -> Self::V {
        std::array::from_fn(|i| from[at[i].wrapping_sub(less) as usize % PORTABLE_LANES])
    }
    #[inline(always)]
    fn gather(self, from: &[f32], at: &[u32], less: u32) -> Self::V {
        std::array::from_fn(|i| from[(at[i].wrapping_sub(less) as usize).min(from.len() - 1)])
    }
    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
    }
    #[inline(always)]
    fn largest(self, x: Self::V) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
}

/// By way of memory, for units without instructions for it.
#[inline(always)]
pub(super) fn pair_bf16(first: &[f32], second: &[f32], to: &mut [u32]) {
    for (column, to) in to.iter_mut().enumerate() {
        let [low, high] =
            [first, second].map(|row| bf16::from_f32(row.get(column).copied().unwrap_or(0.0)).to_bits());
        *to = u32::from(low) | u32::from(high) << 16;
    }
}

#[inline(always)]
pub(super) fn transpose(rows: [&[u32; 16]; 16], to: &mut [u32], stride: usize) {
    for (j, row) in rows.into_iter().enumerate() {
        for (i, &word) in row.iter().enumerate() {
            to[i * stride + j] = word;
        }
    }
}

#[inline(always)]
pub(super) fn store_bf16<S: Simd>(simd: S, to: &mut [bf16], x: S::V) {
    let mut wide = [0.0; 16];
    simd.store(&mut wide, x);
    to.iter_mut().zip(&wide[..S::LANES]).for_each(|(to, &x)| *to = bf16::from_f32(x));
}
