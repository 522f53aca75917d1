/// Requantization of 16 int32 accumulators with AVX2, equal to requantize.h bit for bit.
/// Include it only from *_avx2.cc.
#ifndef DEPLOY_KERNELS_COMMON_REQUANTIZE_AVX2_H_
#define DEPLOY_KERNELS_COMMON_REQUANTIZE_AVX2_H_

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "common/requantize.h"
#include "common/unroll.h"
#include "common/variant.h"

namespace deploy {
namespace {

static inline __m256i shifts8(const int8_t* shift) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(shift)));
}
static inline __m256i shifts8(const int32_t* shift) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(shift));
}

/// The lower half of floor((product + 2^(30 + e)) / 2^(31 + e)) of 4 products; each e in [0, 22] in 64 bits.  Moved up by
/// 2^62 before the shift and back down after it, since AVX2 shifts no signed 64-bit numbers.
static inline __m256i round_once64(__m256i product, __m256i e) {
  const __m256i one = _mm256_set1_epi64x(1);
  const __m256i half = _mm256_sllv_epi64(one, _mm256_add_epi64(e, _mm256_set1_epi64x(30)));
  const __m256i moved = _mm256_add_epi64(_mm256_add_epi64(product, half), _mm256_set1_epi64x(int64_t{1} << 62));
  return _mm256_sub_epi64(_mm256_srlv_epi64(moved, _mm256_add_epi64(e, _mm256_set1_epi64x(31))),
                          _mm256_sllv_epi64(one, _mm256_sub_epi64(_mm256_set1_epi64x(31), e)));
}

/// One row of `cols` accumulators, at most 16; multiplier and shift (int8 or int32) have 16 entries.
///
/// In vectors where every right shift e is in [0, 22] (see NearScales16 of requantize_avx512.h for why 32 bits are enough
/// then for rounding twice), else one by one.
template <typename Shift>
static inline void requantize_row256(const int32_t* acc, size_t cols, const int32_t* multiplier, const Shift* shift,
                                     const TileArgs& args, int8_t* out) {
  const __m256i zero = _mm256_setzero_si256(), first = _mm256_set1_epi64x(int64_t{1} << 30);
  __m256i right[2], outside = zero;
  for (int half = 0; half < 2; ++half) {
    right[half] = _mm256_sub_epi32(zero, shifts8(shift + 8 * half));
    outside = _mm256_or_si256(outside, _mm256_or_si256(_mm256_cmpgt_epi32(zero, right[half]),
                                                       _mm256_cmpgt_epi32(right[half], _mm256_set1_epi32(22))));
  }
  if (!_mm256_testz_si256(outside, outside)) {
    for (size_t c = 0; c < cols; ++c) {
      out[c] = requantize(acc[c], multiplier[c], shift[c], args.output_zero_point, args.clamp_min, args.clamp_max,
                          args.single_rounding);
    }
    return;
  }
  __m256i scaled[2];
  DEPLOY_UNROLL
  for (int half = 0; half < 2; ++half) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(acc + 8 * half));
    const __m256i m = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(multiplier + 8 * half));
    const __m256i even_product = _mm256_mul_epi32(a, m);
    const __m256i odd_product = _mm256_mul_epi32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(m, 32));
    if (args.single_rounding) {
      const __m256i low = _mm256_set1_epi64x(0xffffffff);
      const __m256i even = round_once64(even_product, _mm256_and_si256(right[half], low));
      const __m256i odd = round_once64(odd_product, _mm256_srli_epi64(right[half], 32));
      scaled[half] = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
      continue;
    }
    const __m256i even = _mm256_add_epi64(even_product, first), odd = _mm256_add_epi64(odd_product, first);
    // Bits 31 to 62 are the quotient by 2^31: moved to the lower half for even columns, to the upper for odd ones.
    __m256i r = _mm256_blend_epi32(_mm256_srli_epi64(even, 31), _mm256_add_epi64(odd, odd), 0xaa);
    const __m256i add = _mm256_srli_epi32(_mm256_sllv_epi32(_mm256_set1_epi32(1), right[half]), 1);
    r = _mm256_min_epi32(r, _mm256_sub_epi32(_mm256_set1_epi32(INT32_MAX), add));
    // -1 where a negative value is rounded at all.
    const __m256i nudge = _mm256_and_si256(_mm256_cmpgt_epi32(zero, r), _mm256_cmpgt_epi32(right[half], zero));
    scaled[half] = _mm256_srav_epi32(_mm256_add_epi32(_mm256_add_epi32(r, add), nudge), right[half]);
  }
  // Saturating packs are exact here: whatever int16 cannot hold is clamped anyway.
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(scaled[0], scaled[1]), 0xd8);
  const __m256i moved =
      _mm256_adds_epi16(words, _mm256_set1_epi16(static_cast<int16_t>(args.output_zero_point)));
  __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(moved), _mm256_extracti128_si256(moved, 1));
  bytes = _mm_max_epi8(bytes, _mm_set1_epi8(static_cast<char>(args.clamp_min)));
  bytes = _mm_min_epi8(bytes, _mm_set1_epi8(static_cast<char>(args.clamp_max)));
  if (cols == 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    return;
  }
  alignas(16) int8_t row[16];
  _mm_store_si128(reinterpret_cast<__m128i*>(row), bytes);
  for (size_t c = 0; c < cols; ++c) out[c] = row[c];
}

}  // namespace
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_REQUANTIZE_AVX2_H_
