/// Dense tiles of 1 to 4 rows by 16 columns with AVX2, for weights of 8, 4 or 2 bits.
///
/// vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16 bits, saturating.  With weights of 4 bits or fewer
/// a pair stays below 2 x 255 x 8 and is exact; with 8 bits the two halves of each pair are multiplied apart.
/// Include it only from *_avx2.cc.
#ifndef DEPLOY_KERNELS_COMMON_DENSE_TILE_AVX2_H_
#define DEPLOY_KERNELS_COMMON_DENSE_TILE_AVX2_H_

#include <immintrin.h>
#include <string.h>

#include "common/dense_panel.h"
#include "common/requantize_avx2.h"
#include "common/unroll.h"

namespace deploy {
namespace {

/// A register holds 8 columns x 4; two make a step, and so many steps fill whole registers.
template <int Bits>
constexpr int kSteps256 = Bits == 2 ? 2 : 1;
template <int Bits>
using Packing256 = DensePacking<16, 4, Bits, kSteps256<Bits>, 128>;

/// The weights of kSteps256 steps, sign-extended to bytes: (x ^ m) - m with m the sign's bit.
template <int Bits>
static inline void load_weights256(const uint8_t* at, __m256i (&w)[kSteps256<Bits> * 2]) {
  if constexpr (Bits == 8) {
    w[0] = _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
    w[1] = _mm256_load_si256(reinterpret_cast<const __m256i*>(at + 32));
  } else {
    constexpr int kPlanes = kSteps256<Bits> * 2;
    const __m256i low = _mm256_set1_epi8((1 << Bits) - 1), sign = _mm256_set1_epi8(1 << (Bits - 1));
    const __m256i all = _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
    DEPLOY_UNROLL
    for (int p = 0; p < kPlanes; ++p) {
      const __m256i value = _mm256_and_si256(_mm256_srli_epi16(all, p * Bits), low);
      w[p] = _mm256_sub_epi8(_mm256_xor_si256(value, sign), sign);
    }
  }
}

template <int Bits>
static inline __m256i add_products(__m256i acc, __m256i a, __m256i w) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (Bits == 8) {
    const __m256i even = _mm256_set1_epi16(0xff);
    const __m256i first = _mm256_maddubs_epi16(_mm256_and_si256(a, even), w);
    const __m256i second = _mm256_maddubs_epi16(_mm256_andnot_si256(even, a), w);
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(first, ones));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(second, ones));
  } else {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, w), ones));
  }
}

template <int Rows, int Bits>
static void dense_rows256(const TileArgs& args) {
  constexpr size_t kBlock = 4 * static_cast<size_t>(kSteps256<Bits>);  // bytes of a row
  constexpr size_t kBlockBytes = 16 * kBlock * Bits / 8;               // of weights
  const DensePanel p = dense_panel(args.panel, 16);
  __m256i acc[Rows][2];
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
  const uint8_t* weights = p.weights;
  for (size_t s = 0; s < p.segments; ++s) {
    const uint8_t* row[Rows];
    DEPLOY_UNROLL
    for (int r = 0; r < Rows; ++r) row[r] = args.pixels[r] + p.offset[s];
    for (size_t k = 0; k < p.steps * 4; k += kBlock) {
      __m256i w[kSteps256<Bits> * 2];
      load_weights256<Bits>(weights, w);
      weights += kBlockBytes;
      DEPLOY_UNROLL
      for (int b = 0; b < kSteps256<Bits>; ++b) {
        DEPLOY_UNROLL
        for (int r = 0; r < Rows; ++r) {
          int32_t word;
          memcpy(&word, row[r] + k + 4 * b, sizeof word);
          const __m256i a = _mm256_set1_epi32(word);
          acc[r][0] = add_products<Bits>(acc[r][0], a, w[2 * b]);
          acc[r][1] = add_products<Bits>(acc[r][1], a, w[2 * b + 1]);
        }
      }
      DEPLOY_UNROLL
      for (int r = 0; r < Rows; ++r) __asm__("" : "+x"(acc[r][0]), "+x"(acc[r][1]));
    }
  }
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    int32_t sums[16];
    DEPLOY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const __m256i bias = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.bias + 8 * half));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 8 * half), _mm256_add_epi32(acc[r][half], bias));
    }
    requantize_row256(sums, args.cols, p.multiplier, p.shift, args, args.out + static_cast<size_t>(r) * args.out_stride);
  }
}

template <int Bits>
static void dense_tile256(const TileArgs& args) {
  switch (args.rows) {
    case 1: return dense_rows256<1, Bits>(args);
    case 2: return dense_rows256<2, Bits>(args);
    case 3: return dense_rows256<3, Bits>(args);
    default: return dense_rows256<4, Bits>(args);
  }
}

}  // namespace
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_DENSE_TILE_AVX2_H_
