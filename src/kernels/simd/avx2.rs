//! 256-bit vectors: AVX2, on x86-64.

#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::*;

use half::bf16;

use super::Simd;
use super::portable;

/// 256-bit vectors: AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine must have AVX2 and FMA.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }

    /// The lanes below `len`.
    #[inline(always)]
    fn mask(len: usize) -> __m256i {
        const ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        let len = len.min(8);
        // SAFETY: 8 numbers from `8 - len` on are within the 16
        unsafe { _mm256_loadu_si256(ONES_THEN_ZEROS.as_ptr().add(8 - len).cast()) }
    }
}

// SAFETY of every block below: a value of the type proves that the machine has the instructions, since only `new`
// makes one, whose caller promised it. Memory is touched by `load_ptr` and `store_ptr` alone, as their callers
// promise; by masked loads and stores, of which lanes beyond a slice's length touch nothing and do not fault; and in
// `pick` and `gather`, after the length of places was checked, those of `gather` brought inside.
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
    fn prefetch_for_later(self, at: *const f32) {
        // SAFETY: as above
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
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
        portable::store_bf16(self, to, x);
    }
    #[inline(always)]
    fn pair_bf16(self, first: &[f32], second: &[f32], to: &mut [u32]) {
        portable::pair_bf16(first, second, to);
    }
    #[inline(always)]
    fn transpose(self, rows: [&[u32; 16]; 16], to: &mut [u32], stride: usize) {
        portable::transpose(rows, to, stride);
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
            let at = _mm256_sub_epi32(_mm256_loadu_si256(at.as_ptr().cast()), _mm256_set1_epi32(less as i32));
            _mm256_permutevar8x32_ps(self.load(from), at)
        }
    }
    #[inline(always)]
    fn gather(self, from: &[f32], at: &[u32], less: u32) -> __m256 {
        assert!(at.len() >= 8 && !from.is_empty());
        let last = (from.len() - 1).min(i32::MAX as usize) as i32;
        unsafe {
            let at = _mm256_sub_epi32(_mm256_loadu_si256(at.as_ptr().cast()), _mm256_set1_epi32(less as i32));
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
