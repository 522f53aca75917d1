/// Requantization of int32 accumulators in AVX-512 registers, equal to requantize.h bit for bit.
#ifndef DEPLOY_KERNELS_COMMON_REQUANTIZE_AVX512_H_
#define DEPLOY_KERNELS_COMMON_REQUANTIZE_AVX512_H_

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "common/unroll.h"
#include "common/variant.h"

namespace deploy {

/// Multiplier and shift of 16 columns, spread to the 64-bit lanes of even and odd columns.
///
/// TFLite rounds twice: r = floor((a m + 2^30) / 2^31), halves up, then r / 2^e, halves away from zero.  With e > 0 the
/// second is floor((r + 2^(e-1) - [r < 0]) / 2^e), and since nested floors merge, both are one 64-bit shift:
///   floor((a m + 2^30 + 2^(30+e) - [a < 0] 2^31) / 2^(31+e)).
/// ([a < 0] may stand for [r < 0]: they differ only where a m >= -2^30, and there both give 0.)  With e = 0 the last
/// two terms vanish.  |a m| <= 2^62 and e <= 31, so nothing overflows.
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
  DEPLOY_UNROLL
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
  DEPLOY_UNROLL
  for (int odd = 0; odd < 2; ++odd) {
    const __m512i product = _mm512_mul_epi32(part[odd], s.multiplier[odd]);
    const __mmask8 negative = _mm512_movepi64_mask(product);
    __m512i sum = _mm512_add_epi64(product, s.rounding[odd]);
    sum = _mm512_mask_sub_epi64(sum, negative, sum, s.nudge[odd]);
    part[odd] = _mm512_srav_epi64(sum, s.right[odd]);
  }
  return _mm512_mask_shuffle_epi32(part[0], 0xaaaa, part[1], _MM_PERM_CCAA);
}

/// The scales of 16 columns when every right shift e is in [0, 22] and nothing is shifted left: nearly all layers.
///
/// Then both roundings are cheaper in 32 bits.  r + half could leave int32 for r beyond `limit` = 2^31 - 1 - half only;
/// such an r is at least 2^30, which no e <= 22 brings below 255 + 128: clamping it first changes no int8 output.
struct NearScales16 {
  __m512i multiplier[2];    ///< 64-bit lanes, even and odd columns.
  __m512i half, limit, right;
  __mmask16 rounds;         ///< columns with e > 0.
};

static inline NearScales16 load_near_scales16(const int32_t* multiplier, const int32_t* shift) {
  NearScales16 s;
  s.multiplier[0] = _mm512_loadu_si512(multiplier);
  s.multiplier[1] = _mm512_srli_epi64(s.multiplier[0], 32);
  s.right = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(shift));
  s.half = _mm512_srli_epi32(_mm512_sllv_epi32(_mm512_set1_epi32(1), s.right), 1);
  s.limit = _mm512_sub_epi32(_mm512_set1_epi32(INT32_MAX), s.half);
  s.rounds = _mm512_test_epi32_mask(s.right, s.right);
  return s;
}

static inline bool scales_are_near(const int32_t* shift) {
  const __m512i right = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(shift));
  return _mm512_cmpgt_epu32_mask(right, _mm512_set1_epi32(22)) == 0;
}

/// scale16 of the 16 accumulators at `acc`; reads one more behind them.
static inline __m512i scale16_near(const int32_t* acc, const NearScales16& s) {
  const __m512i first = _mm512_set1_epi64(int64_t{1} << 30);
  const __m512i even = _mm512_add_epi64(_mm512_mul_epi32(_mm512_load_si512(acc), s.multiplier[0]), first);
  const __m512i odd = _mm512_add_epi64(_mm512_mul_epi32(_mm512_loadu_si512(acc + 1), s.multiplier[1]), first);
  // Bits 31 to 62 are the quotient by 2^31: moved to the lower half for even columns, to the upper for odd ones.
  __m512i r = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 31), _mm512_add_epi64(odd, odd));
  r = _mm512_min_epi32(r, s.limit);
  const __mmask16 nudged = _mm512_mask_cmplt_epi32_mask(s.rounds, r, _mm512_setzero_si512());
  r = _mm512_add_epi32(r, s.half);
  r = _mm512_mask_sub_epi32(r, nudged, r, _mm512_set1_epi32(1));
  return _mm512_srav_epi32(r, s.right);
}

/// Packs two rows of 32 scaled accumulators and stores them; `second` may be null.
struct Stores32 {
  __m512i zero, low, high, order;
  __mmask32 mask;
  explicit Stores32(const TileArgs& args)
      : zero(_mm512_set1_epi16(static_cast<int16_t>(args.output_zero_point))),
        low(_mm512_set1_epi8(static_cast<char>(args.clamp_min))),
        high(_mm512_set1_epi8(static_cast<char>(args.clamp_max))),
        order(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)),
        mask(args.cols >= 32 ? ~__mmask32{0} : (__mmask32{1} << args.cols) - 1) {}

  void operator()(__m512i a0, __m512i a1, __m512i b0, __m512i b1, int8_t* first, int8_t* second) const {
    // Saturating packs are exact here: whatever int16 cannot hold is clamped anyway.
    const __m512i a = _mm512_adds_epi16(_mm512_packs_epi32(a0, a1), zero);
    const __m512i b = _mm512_adds_epi16(_mm512_packs_epi32(b0, b1), zero);
    __m512i bytes = _mm512_min_epi8(_mm512_max_epi8(_mm512_packs_epi16(a, b), low), high);
    bytes = _mm512_permutexvar_epi32(order, bytes);
    _mm256_mask_storeu_epi8(first, mask, _mm512_castsi512_si256(bytes));
    if (second) _mm256_mask_storeu_epi8(second, mask, _mm512_extracti64x4_epi64(bytes, 1));
  }
};

/// The scales of 16 columns that are rounded once: floor((a m + 2^(30+e)) / 2^(31+e)), e in [-30, 31].
struct OnceScales16 {
  __m512i multiplier[2], rounding[2], right[2];  ///< 64-bit lanes, even and odd columns.
};

static inline OnceScales16 load_once_scales16(const int32_t* multiplier, const int32_t* shift) {
  OnceScales16 s;
  const __m512i right = _mm512_sub_epi32(_mm512_set1_epi32(31), _mm512_loadu_si512(shift));
  s.multiplier[0] = _mm512_loadu_si512(multiplier);
  s.multiplier[1] = _mm512_srli_epi64(s.multiplier[0], 32);
  s.right[0] = _mm512_and_si512(right, _mm512_set1_epi64(0xffffffff));
  s.right[1] = _mm512_srli_epi64(right, 32);
  for (int odd = 0; odd < 2; ++odd) {
    s.rounding[odd] = _mm512_srli_epi64(_mm512_sllv_epi64(_mm512_set1_epi64(1), s.right[odd]), 1);
  }
  return s;
}

/// Reads one accumulator more, behind the 16.
static inline __m512i scale16_once(const int32_t* acc, const OnceScales16& s) {
  __m512i part[2] = {_mm512_load_si512(acc), _mm512_loadu_si512(acc + 1)};
  for (int odd = 0; odd < 2; ++odd) {
    const __m512i product = _mm512_mul_epi32(part[odd], s.multiplier[odd]);
    part[odd] = _mm512_srav_epi64(_mm512_add_epi64(product, s.rounding[odd]), s.right[odd]);
  }
  return _mm512_mask_shuffle_epi32(part[0], 0xaaaa, part[1], _MM_PERM_CCAA);
}

/// Requantizes and stores `rows` x `cols` accumulators, `cols` in [1, 32].  `acc` is [rows][32], 64-byte aligned, and
/// readable for 4 bytes behind.
///
/// It takes memory, since a compiler that must keep an array for one part of a function spills it in all others.
static __attribute__((noinline, unused)) void requantize_store32(const int32_t* acc, size_t rows,
                                                                 const int32_t* multiplier, const int32_t* shift,
                                                                 const TileArgs& args) {
  const Stores32 store(args);
  int8_t* out = args.out;
  const size_t step = args.out_stride;
  if (args.single_rounding) {
    const OnceScales16 left = load_once_scales16(multiplier, shift);
    const OnceScales16 right = load_once_scales16(multiplier + 16, shift + 16);
    for (; rows > 0; rows -= rows >= 2 ? 2 : 1, acc += 64, out += 2 * step) {
      const __m512i a = scale16_once(acc, left), b = scale16_once(acc + 16, right);
      if (rows == 1) {
        store(a, b, a, b, out, nullptr);
      } else {
        store(a, b, scale16_once(acc + 32, left), scale16_once(acc + 48, right), out, out + step);
      }
    }
    return;
  }
  if (scales_are_near(shift) && scales_are_near(shift + 16)) {
    const NearScales16 left = load_near_scales16(multiplier, shift);
    const NearScales16 right = load_near_scales16(multiplier + 16, shift + 16);
    for (; rows >= 2; rows -= 2, acc += 64, out += 2 * step) {
      store(scale16_near(acc, left), scale16_near(acc + 16, right), scale16_near(acc + 32, left),
            scale16_near(acc + 48, right), out, out + step);
    }
    if (rows > 0) {
      const __m512i a = scale16_near(acc, left), b = scale16_near(acc + 16, right);
      store(a, b, a, b, out, nullptr);
    }
    return;
  }
  const Scales16 left = load_scales16(multiplier, shift), right = load_scales16(multiplier + 16, shift + 16);
  for (; rows > 0; --rows, acc += 32, out += step) {
    const __m512i a = scale16(_mm512_load_si512(acc), left), b = scale16(_mm512_load_si512(acc + 16), right);
    store(a, b, a, b, out, nullptr);
  }
}

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_REQUANTIZE_AVX512_H_
