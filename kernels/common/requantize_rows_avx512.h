/// Requantization of a whole tile held in AVX-512 registers, equal to requantize.h bit for bit.
///
/// With a right shift e >= 1, TFLite's two roundings of y = a m / 2^(31+e) are together
///   floor(y + 1/2 + 2^-(e+1)) for a >= 0,  floor(y + 1/2 - 2^-(e+1)) for a < 0
/// (see requantize_avx512.h), so t = y +- 2^-(e+1) only needs to be rounded to the nearest integer; where TFLite rounds
/// once, t = y.  In single precision
/// t is wrong by less than 3 2^-24 |t|, and from |t| = 257 on the output saturates whatever it is: only a t within
/// 257 x 3 2^-24 < 2^-14 of a half can go the wrong way.  A tile with such a one, some 3 in 100, is done again exactly.
/// Include it only from files for AVX-512.
#ifndef DEPLOY_KERNELS_COMMON_REQUANTIZE_ROWS_AVX512_H_
#define DEPLOY_KERNELS_COMMON_REQUANTIZE_ROWS_AVX512_H_

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "common/requantize_avx512.h"
#include "common/unroll.h"
#include "common/variant.h"

namespace deploy {
namespace {

/// The exact rule for [args.rows][16 vecs] accumulators in memory, readable for 4 bytes behind.
__attribute__((noinline, cold, unused)) void requantize_exactly(const int32_t* acc, int vecs,
                                                                const int32_t* multiplier, const int32_t* shift,
                                                                const TileArgs& args) {
  const __m512i zero = _mm512_set1_epi32(args.output_zero_point);
  const __m512i low = _mm512_set1_epi32(args.clamp_min - args.output_zero_point);
  const __m512i high = _mm512_set1_epi32(args.clamp_max - args.output_zero_point);
  for (int v = 0; v < vecs && static_cast<size_t>(16 * v) < args.cols; ++v) {
    const Scales16 twice = load_scales16(multiplier + 16 * v, shift + 16 * v);
    const OnceScales16 once = load_once_scales16(multiplier + 16 * v, shift + 16 * v);
    const size_t left = args.cols - static_cast<size_t>(16 * v);
    const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    for (size_t r = 0; r < args.rows; ++r) {
      const int32_t* const at = acc + 16 * (r * static_cast<size_t>(vecs) + static_cast<size_t>(v));
      __m512i scaled = args.single_rounding ? scale16_once(at, once) : scale16(_mm512_load_si512(at), twice);
      scaled = _mm512_min_epi32(_mm512_max_epi32(scaled, low), high);
      _mm512_mask_cvtepi32_storeu_epi8(args.out + r * args.out_stride + 16 * v, mask, _mm512_add_epi32(scaled, zero));
    }
  }
}

static inline __m512i load_shift16(const int32_t* shift) { return _mm512_loadu_si512(shift); }
static inline __m512i load_shift16(const int8_t* shift) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(shift)));
}

/// requantize_exactly() for either width of `shift`.
template <int Vecs, class Shift>
__attribute__((noinline, cold)) void requantize_again(const int32_t* acc, const int32_t* multiplier,
                                                      const Shift* shift, const TileArgs& args) {
  alignas(64) int32_t wide[16 * Vecs];
  for (int v = 0; v < Vecs; ++v) _mm512_store_si512(wide + 16 * v, load_shift16(shift + 16 * v));
  requantize_exactly(acc, Vecs, multiplier, wide, args);
}

/// Requantizes and stores args.rows x args.cols accumulators of tiles 16 Vecs columns wide, Vecs 1 or 2.
///
/// `acc` is [rows rounded up to 4 / Vecs][16 Vecs], 64-byte aligned and readable for 4 bytes behind.  It comes through memory, and the function is not
/// inlined, so that its registers are not taken from the loop that sums up.
template <int Vecs, class Shift>
__attribute__((noinline)) void requantize_rows(const int32_t* acc, const int32_t* multiplier, const Shift* shift,
                                               const TileArgs& args) {
  const __m512i sign = _mm512_set1_epi32(INT32_MIN);
  __m512 scale[Vecs];
  __m512i nudge[Vecs];  // 2^-(e+1), as bits
  bool near = true;
  DEPLOY_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    const __m512i m = _mm512_loadu_si512(multiplier + 16 * v), s = load_shift16(shift + 16 * v);
    scale[v] = _mm512_scalef_ps(_mm512_cvtepi32_ps(m), _mm512_cvtepi32_ps(_mm512_sub_epi32(s, _mm512_set1_epi32(31))));
    nudge[v] = args.single_rounding ? _mm512_setzero_si512() : _mm512_slli_epi32(_mm512_add_epi32(s, _mm512_set1_epi32(126)), 23);
    near &= _mm512_mask_cmpge_epi32_mask(_mm512_test_epi32_mask(m, m), s, _mm512_setzero_si512()) == 0;
  }
  if (__builtin_expect(!near, 0)) return requantize_again<Vecs>(acc, multiplier, shift, args);
  const __m512i zero = _mm512_set1_epi16(static_cast<int16_t>(args.output_zero_point));
  const __m512i low = _mm512_set1_epi8(static_cast<char>(args.clamp_min));
  const __m512i high = _mm512_set1_epi8(static_cast<char>(args.clamp_max));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const uint32_t columns = args.cols >= 32 ? ~uint32_t{0} : (uint32_t{1} << args.cols) - 1;
  __m512 furthest[4];  // distances from the nearest integer
  DEPLOY_UNROLL
  for (int i = 0; i < 4; ++i) furthest[i] = _mm512_setzero_ps();
  const int32_t* from = acc;
  int8_t* out = args.out;
  for (size_t left = args.rows;; from += 64, left -= 4 / Vecs) {
    __m512i scaled[4];
    DEPLOY_UNROLL
    for (int i = 0; i < 4; ++i) {
      const __m512i sum = _mm512_load_si512(from + 16 * i);
      const __m512i towards = _mm512_ternarylogic_epi32(sum, sign, nudge[i % Vecs], 0xea);  // (sum & sign) | nudge
      const __m512 t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale[i % Vecs], _mm512_castsi512_ps(towards));
      scaled[i] = _mm512_cvtps_epi32(t);
      furthest[i] = _mm512_range_ps(furthest[i], _mm512_reduce_ps(t, 0), 0x0b);  // the larger magnitude, positive
    }
    // Saturating packs are exact here: whatever int16 cannot hold is clamped anyway.
    const __m512i a = _mm512_adds_epi16(_mm512_packs_epi32(scaled[0], scaled[1]), zero);
    const __m512i b = _mm512_adds_epi16(_mm512_packs_epi32(scaled[2], scaled[3]), zero);
    const __m512i bytes = _mm512_permutexvar_epi32(
        order, _mm512_min_epi8(_mm512_max_epi8(_mm512_packs_epi16(a, b), low), high));
    if constexpr (Vecs == 2) {
      _mm256_mask_storeu_epi8(out, columns, _mm512_castsi512_si256(bytes));
      out += args.out_stride;
      if (left == 1) break;
      _mm256_mask_storeu_epi8(out, columns, _mm512_extracti64x4_epi64(bytes, 1));
      out += args.out_stride;
      if (left == 2) break;
    } else {
      const __mmask16 mask = static_cast<__mmask16>(columns);
      _mm_mask_storeu_epi8(out, mask, _mm512_castsi512_si128(bytes));
      out += args.out_stride;
      if (left == 1) break;
      _mm_mask_storeu_epi8(out, mask, _mm512_extracti32x4_epi32(bytes, 1));
      out += args.out_stride;
      if (left == 2) break;
      _mm_mask_storeu_epi8(out, mask, _mm512_extracti32x4_epi32(bytes, 2));
      out += args.out_stride;
      if (left == 3) break;
      _mm_mask_storeu_epi8(out, mask, _mm512_extracti32x4_epi32(bytes, 3));
      out += args.out_stride;
      if (left == 4) break;
    }
  }
  const __m512 most = _mm512_max_ps(_mm512_max_ps(furthest[0], furthest[1]), _mm512_max_ps(furthest[2], furthest[3]));
  const __mmask16 doubtful = _mm512_cmp_ps_mask(most, _mm512_set1_ps(0.5f - 0x1p-14f), _CMP_GT_OQ);
  if (__builtin_expect(doubtful != 0, 0)) requantize_again<Vecs>(acc, multiplier, shift, args);
}

}  // namespace
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_REQUANTIZE_ROWS_AVX512_H_
