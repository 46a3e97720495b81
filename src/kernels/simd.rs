//! Vectors of `f32`, for each instruction set we use, and the functions that kernels are made of.
//!
//! A kernel is written once, generic over [`Simd`], and [`Isa::run`](crate::isa::Isa::run) compiles it for each
//! instruction set. Everything here is `inline(always)`: a vector that crosses a call would go through memory.
//!
//! `max` and `min` return their *second* argument if either is NaN, as x86 does, so that a NaN among the
//! activations is not lost on the way to the reward, where it is an error.

#![expect(unsafe_code, reason = "vector instructions")]

use half::bf16;

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
    /// Asks for a cache line that will be read; any address will do.
    #[inline(always)]
    fn prefetch(self, _: *const f32) {}
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

/// By way of memory, for units without instructions for it.
#[inline(always)]
fn pair_bf16(first: &[f32], second: &[f32], to: &mut [u32]) {
    for (column, to) in to.iter_mut().enumerate() {
        let [low, high] =
            [first, second].map(|row| bf16::from_f32(row.get(column).copied().unwrap_or(0.0)).to_bits());
        *to = u32::from(low) | u32::from(high) << 16;
    }
}

#[inline(always)]
fn transpose(rows: [&[u32; 16]; 16], to: &mut [u32], stride: usize) {
    for (j, row) in rows.into_iter().enumerate() {
        for (i, &word) in row.iter().enumerate() {
            to[i * stride + j] = word;
        }
    }
}

#[inline(always)]
fn store_bf16<S: Simd>(simd: S, to: &mut [bf16], x: S::V) {
    let mut wide = [0.0; 16];
    simd.store(&mut wide, x);
    to.iter_mut().zip(&wide[..S::LANES]).for_each(|(to, &x)| *to = bf16::from_f32(x));
}

/// Plain arrays: for every machine; compilers turn them into what it has.
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

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::Simd;

    /// 512-bit vectors: AVX-512 F, BW, DQ and VL; and BF16.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512<const BF16: bool>(());

    /// 256-bit vectors: AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(());

    impl<const BF16: bool> Avx512<BF16> {
        /// # Safety
        /// The machine must have AVX-512 F, BW, DQ and VL; and BF16, if so.
        #[inline(always)]
        pub(crate) unsafe fn new() -> Self {
            Self(())
        }
    }

    impl Avx2 {
        /// # Safety
        /// The machine must have AVX2 and FMA.
        #[inline(always)]
        pub(crate) unsafe fn new() -> Self {
            Self(())
        }
    }

    /// The lanes below `len`.
    #[inline(always)]
    fn mask16(len: usize) -> __mmask16 {
        if len >= 16 { u16::MAX } else { (1 << len) - 1 }
    }

    // SAFETY of every block below: a value of the type proves that the machine has the instructions, since only `new`
    // makes one, whose caller promised it. Memory is touched by `load_ptr` and `store_ptr` alone, as their callers
    // promise; by masked loads and stores, of which lanes beyond a slice's length touch nothing and do not fault; in
    // `pick` and `gather`, after the length of places was checked, those of `gather` brought inside; and in
    // `store_bf16`, after its length was checked. `__m256bh` is any 256 bits.
    impl<const BF16: bool> Simd for Avx512<BF16> {
        type V = __m512;
        const LANES: usize = 16;
        const TILE_ROWS: usize = 12; // 24 accumulators, two vectors of weights, one broadcast: 27 of 32 registers

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load_ptr(self, from: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store_ptr(self, to: *mut f32, x: __m512) {
            unsafe { _mm512_storeu_ps(to, x) }
        }
        #[inline(always)]
        fn prefetch(self, at: *const f32) {
            // SAFETY: a prefetch of any address is allowed
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        fn load_partial(self, from: &[f32]) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps(mask16(from.len()), from.as_ptr()) }
        }
        #[inline(always)]
        fn store_partial(self, to: &mut [f32], x: __m512) {
            unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask16(to.len()), x) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        fn abs(self, x: __m512) -> __m512 {
            unsafe { _mm512_abs_ps(x) }
        }
        #[inline(always)]
        fn round(self, x: __m512) -> __m512 {
            unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
        }
        #[inline(always)]
        fn store_bf16(self, to: &mut [bf16], x: __m512) {
            if to.len() < 16 || !BF16 {
                return super::store_bf16(self, to, x);
            }
            unsafe {
                let narrow: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(x));
                _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
            }
        }
        #[inline(always)]
        fn pair_bf16(self, first: &[f32], second: &[f32], to: &mut [u32]) {
            if !BF16 {
                return super::pair_bf16(first, second, to);
            }
            for (index, to) in to.chunks_mut(16).enumerate() {
                let rest = |row: &[f32]| self.load(row.get(index * 16..).unwrap_or_default());
                // what is beyond a row was loaded as zero
                unsafe {
                    let [low, high] = [rest(first), rest(second)].map(|row| {
                        _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(
                            row,
                        )))
                    });
                    let words = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                    _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask16(to.len()), words);
                }
            }
        }
        #[inline(always)]
        fn transpose(self, rows: [&[u32; 16]; 16], to: &mut [u32], stride: usize) {
            assert!(to.len() >= 15 * stride + 16);
            unsafe {
                let r = rows.map(|row| _mm512_loadu_si512(row.as_ptr().cast()));
                // pairs of rows, then fours: within each 128 bits, four rows of one column
                let mut pairs = [_mm512_setzero_si512(); 16];
                for i in 0..8 {
                    pairs[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
                    pairs[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
                }
                let mut fours = [_mm512_setzero_si512(); 16];
                for i in 0..4 {
                    for half in 0..2 {
                        let (a, b) = (pairs[4 * i + half], pairs[4 * i + 2 + half]);
                        fours[4 * i + 2 * half] = _mm512_unpacklo_epi64(a, b);
                        fours[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
                    }
                }
                // then quarters of vectors: column `4 q + c` is quarter `q` of `fours[c]`, `[4 + c]`, `[8 + c]`, `[12 + c]`
                for c in 0..4 {
                    let (a, b, d, e) = (fours[c], fours[4 + c], fours[8 + c], fours[12 + c]);
                    let (even_low, odd_low) =
                        (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
                    let (even_high, odd_high) =
                        (_mm512_shuffle_i32x4::<0x88>(d, e), _mm512_shuffle_i32x4::<0xdd>(d, e));
                    for (quarter, column) in [
                        (0, _mm512_shuffle_i32x4::<0x88>(even_low, even_high)),
                        (1, _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high)),
                        (2, _mm512_shuffle_i32x4::<0xdd>(even_low, even_high)),
                        (3, _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high)),
                    ] {
                        let to = to.as_mut_ptr().add((4 * quarter + c) * stride);
                        _mm512_storeu_si512(to.cast(), column);
                    }
                }
            }
        }
        #[inline(always)]
        fn scale(self, x: __m512, n: __m512) -> __m512 {
            unsafe { _mm512_scalef_ps(x, n) }
        }
        #[inline(always)]
        fn where_less(self, a: __m512, b: __m512, then: __m512, otherwise: __m512) -> __m512 {
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), otherwise, then) }
        }
        #[inline(always)]
        fn pick(self, from: &[f32], at: &[u32], less: u32) -> __m512 {
            assert!(at.len() >= 16);
            unsafe {
                let at =
                    _mm512_sub_epi32(_mm512_loadu_epi32(at.as_ptr().cast()), _mm512_set1_epi32(less as i32));
                _mm512_permutexvar_ps(at, self.load(from))
            }
        }
        #[inline(always)]
        fn gather(self, from: &[f32], at: &[u32], less: u32) -> __m512 {
            assert!(at.len() >= 16 && !from.is_empty());
            let last = (from.len() - 1).min(i32::MAX as usize) as i32;
            unsafe {
                let at =
                    _mm512_sub_epi32(_mm512_loadu_epi32(at.as_ptr().cast()), _mm512_set1_epi32(less as i32));
                let at = _mm512_min_epu32(at, _mm512_set1_epi32(last));
                _mm512_i32gather_ps::<4>(at, from.as_ptr())
            }
        }
        #[inline(always)]
        fn sum(self, x: __m512) -> f32 {
            unsafe { _mm512_reduce_add_ps(x) }
        }
        #[inline(always)]
        fn largest(self, x: __m512) -> f32 {
            unsafe { _mm512_reduce_max_ps(x) }
        }
    }

    impl Avx2 {
        #[inline(always)]
        fn mask(len: usize) -> __m256i {
            const ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
            let len = len.min(8);
            // SAFETY: 8 numbers from `8 - len` on are within the 16
            unsafe { _mm256_loadu_si256(ONES_THEN_ZEROS.as_ptr().add(8 - len).cast()) }
        }
    }

    // SAFETY of every block below: as above, of AVX2 and FMA.
    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const TILE_ROWS: usize = 6; // 12 accumulators, two vectors of weights, one broadcast: 15 of 16 registers

        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load_ptr(self, from: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store_ptr(self, to: *mut f32, x: __m256) {
            unsafe { _mm256_storeu_ps(to, x) }
        }
        #[inline(always)]
        fn prefetch(self, at: *const f32) {
            // SAFETY: a prefetch of any address is allowed
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        fn load_partial(self, from: &[f32]) -> __m256 {
            unsafe { _mm256_maskload_ps(from.as_ptr(), Self::mask(from.len())) }
        }
        #[inline(always)]
        fn store_partial(self, to: &mut [f32], x: __m256) {
            unsafe { _mm256_maskstore_ps(to.as_mut_ptr(), Self::mask(to.len()), x) }
        }
        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        fn abs(self, x: __m256) -> __m256 {
            unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), x) }
        }
        #[inline(always)]
        fn round(self, x: __m256) -> __m256 {
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
        }
        #[inline(always)]
        fn store_bf16(self, to: &mut [bf16], x: __m256) {
            super::store_bf16(self, to, x);
        }
        #[inline(always)]
        fn pair_bf16(self, first: &[f32], second: &[f32], to: &mut [u32]) {
            super::pair_bf16(first, second, to);
        }
        #[inline(always)]
        fn transpose(self, rows: [&[u32; 16]; 16], to: &mut [u32], stride: usize) {
            super::transpose(rows, to, stride);
        }
        #[inline(always)]
        fn scale(self, x: __m256, n: __m256) -> __m256 {
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
            }
        }
        #[inline(always)]
        fn where_less(self, a: __m256, b: __m256, then: __m256, otherwise: __m256) -> __m256 {
            unsafe { _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
        }
        #[inline(always)]
        fn pick(self, from: &[f32], at: &[u32], less: u32) -> __m256 {
            assert!(at.len() >= 8);
            unsafe {
                let at =
                    _mm256_sub_epi32(_mm256_loadu_si256(at.as_ptr().cast()), _mm256_set1_epi32(less as i32));
                _mm256_permutevar8x32_ps(self.load(from), at)
            }
        }
        #[inline(always)]
        fn gather(self, from: &[f32], at: &[u32], less: u32) -> __m256 {
            assert!(at.len() >= 8 && !from.is_empty());
            let last = (from.len() - 1).min(i32::MAX as usize) as i32;
            unsafe {
                let at =
                    _mm256_sub_epi32(_mm256_loadu_si256(at.as_ptr().cast()), _mm256_set1_epi32(less as i32));
                let at = _mm256_min_epu32(at, _mm256_set1_epi32(last));
                _mm256_i32gather_ps::<4>(from.as_ptr(), at)
            }
        }
        #[inline(always)]
        fn sum(self, x: __m256) -> f32 {
            unsafe {
                let half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
                let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
                _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
            }
        }
        #[inline(always)]
        fn largest(self, x: __m256) -> f32 {
            unsafe {
                let half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
                let quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
                _mm_cvtss_f32(_mm_max_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
            }
        }
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
