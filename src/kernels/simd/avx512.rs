//! 512-bit vectors: AVX-512, on x86-64.

#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::*;

use half::bf16;

use super::Simd;
use super::portable;

/// 512-bit vectors: AVX-512 F, BW, DQ and VL; and BF16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// The machine must have AVX-512 F, BW, DQ and VL; and BF16, if so.
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
    fn prefetch_for_later(self, at: *const f32) {
        // SAFETY: as above
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
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
            return portable::store_bf16(self, to, x);
        }
        unsafe {
            let narrow: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(x));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
        }
    }
    #[inline(always)]
    fn pair_bf16(self, first: &[f32], second: &[f32], to: &mut [u32]) {
        if !BF16 {
            return portable::pair_bf16(first, second, to);
        }
        for (index, to) in to.chunks_mut(16).enumerate() {
            let rest = |row: &[f32]| self.load(row.get(index * 16..).unwrap_or_default());
            // what is beyond a row was loaded as zero
            unsafe {
                let [low, high] = [rest(first), rest(second)].map(|row| {
                    _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(row)))
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
            let at = _mm512_sub_epi32(_mm512_loadu_epi32(at.as_ptr().cast()), _mm512_set1_epi32(less as i32));
            _mm512_permutexvar_ps(at, self.load(from))
        }
    }
    #[inline(always)]
    fn gather(self, from: &[f32], at: &[u32], less: u32) -> __m512 {
        assert!(at.len() >= 16 && !from.is_empty());
        let last = (from.len() - 1).min(i32::MAX as usize) as i32;
        unsafe {
            let at = _mm512_sub_epi32(_mm512_loadu_epi32(at.as_ptr().cast()), _mm512_set1_epi32(less as i32));
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
