/// Requantization of int32 accumulators in AVX-512 registers, equal to requantize.h bit for bit.
#ifndef DEPLOY_KERNELS_COMMON_REQUANTIZE_AVX512_H_
#define DEPLOY_KERNELS_COMMON_REQUANTIZE_AVX512_H_

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace deploy {

/// Multiplier and shift of 16 columns, spread to the 64-bit lanes of even and odd columns.
///
/// TFLite rounds twice: r = floor((a m + 2^30) / 2^31), halves up, then r / 2^e, halves away from zero.  With e > 0 the
/// second is floor((r + 2^(e-1) - [r < 0]) / 2^e), and since nested floors merge, both are one 64-bit shift:
///   floor((a m + 2^30 + 2^(30+e) - [a < 0] 2^31) / 2^(31+e)).
/// ([a < 0] may stand for [r < 0]: they differ only where a m >= -2^30, and there both give 0.)  With e = 0 the last two
/// terms vanish.  |a m| <= 2^62 and e <= 31, so nothing overflows.
struct Scales16 {
  __m512i left;                    ///< 32-bit lanes: left shift before the multiplication.
  __m512i multiplier[2];           ///< 64-bit lanes, even and odd columns.
  __m512i rounding[2], nudge[2];   ///< 2^30 + 2^(30+e) and 2^31, or 2^30 and 0.
  __m512i right[2];                ///< 31 + e.
  bool any_left;
};

static inline Scales16 load_scales16(const int32_t* multiplier, const int32_t* shift) {
  Scales16 s;
  const __m512i zero = _mm512_setzero_si512();
  const __m512i given = _mm512_loadu_si512(shift);
  s.left = _mm512_max_epi32(given, zero);
  s.any_left = _mm512_test_epi32_mask(s.left, s.left) != 0;
  const __m512i e = _mm512_max_epi32(_mm512_sub_epi32(zero, given), zero);
  const __m512i m = _mm512_loadu_si512(multiplier);
  s.multiplier[0] = m;
  s.multiplier[1] = _mm512_srli_epi64(m, 32);
  for (int odd = 0; odd < 2; ++odd) {
    const __m512i e64 = odd ? _mm512_srli_epi64(e, 32) : _mm512_and_si512(e, _mm512_set1_epi64(0xffffffff));
    const __mmask8 some = _mm512_test_epi64_mask(e64, e64);
    const __m512i first = _mm512_set1_epi64(int64_t{1} << 30);
    s.rounding[odd] = _mm512_mask_add_epi64(first, some, first, _mm512_sllv_epi64(first, e64));
    s.nudge[odd] = _mm512_maskz_set1_epi64(some, int64_t{1} << 31);
    s.right[odd] = _mm512_add_epi64(e64, _mm512_set1_epi64(31));
  }
  return s;
}

/// 16 accumulators times their scales, before the zero point.
static inline __m512i scale16(__m512i acc, const Scales16& s) {
  if (s.any_left) acc = _mm512_sllv_epi32(acc, s.left);
  __m512i part[2] = {acc, _mm512_srli_epi64(acc, 32)};
  for (int odd = 0; odd < 2; ++odd) {
    const __m512i product = _mm512_mul_epi32(part[odd], s.multiplier[odd]);
    const __mmask8 negative = _mm512_movepi64_mask(product);
    __m512i sum = _mm512_add_epi64(product, s.rounding[odd]);
    sum = _mm512_mask_sub_epi64(sum, negative, sum, s.nudge[odd]);
    part[odd] = _mm512_srav_epi64(sum, s.right[odd]);
  }
  return _mm512_mask_shuffle_epi32(part[0], 0xaaaa, part[1], _MM_PERM_CCAA);
}

/// Requantizes and stores Rows x `cols` accumulators, cols in [1, 32].
template <int Rows>
static inline void requantize_store32(__m512i (&acc)[Rows][2], const int32_t* multiplier, const int32_t* shift,
                               int32_t zero_point, int32_t clamp_min, int32_t clamp_max, size_t cols, int8_t* out,
                               size_t out_stride) {
  for (int half = 0; half < 2; ++half) {
    const Scales16 scales = load_scales16(multiplier + 16 * half, shift + 16 * half);
    for (int r = 0; r < Rows; ++r) acc[r][half] = scale16(acc[r][half], scales);
  }
  // Saturating packs are exact here: whatever int16 cannot hold is clamped anyway.
  const __m512i zero = _mm512_set1_epi16(static_cast<int16_t>(zero_point));
  const __m512i low = _mm512_set1_epi8(static_cast<char>(clamp_min));
  const __m512i high = _mm512_set1_epi8(static_cast<char>(clamp_max));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __mmask32 mask = cols >= 32 ? ~__mmask32{0} : (__mmask32{1} << cols) - 1;
  for (int r = 0; r < Rows; r += 2) {
    const int next = r + 1 < Rows ? r + 1 : r;
    const __m512i a = _mm512_adds_epi16(_mm512_packs_epi32(acc[r][0], acc[r][1]), zero);
    const __m512i b = _mm512_adds_epi16(_mm512_packs_epi32(acc[next][0], acc[next][1]), zero);
    __m512i bytes = _mm512_packs_epi16(a, b);
    bytes = _mm512_min_epi8(_mm512_max_epi8(bytes, low), high);
    bytes = _mm512_permutexvar_epi32(order, bytes);
    _mm256_mask_storeu_epi8(out + static_cast<size_t>(r) * out_stride, mask, _mm512_castsi512_si256(bytes));
    if (r + 1 < Rows) {
      _mm256_mask_storeu_epi8(out + static_cast<size_t>(r + 1) * out_stride, mask,
                              _mm512_extracti64x4_epi64(bytes, 1));
    }
  }
}

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_REQUANTIZE_AVX512_H_
