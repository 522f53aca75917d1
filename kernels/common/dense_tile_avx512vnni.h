/// Dense tiles of 1 to 12 rows by 32 columns with AVX-512 VNNI, for weights of 8, 4 or 2 bits.
///
/// vpdpbusd multiplies unsigned by signed bytes: pixels are prepared as value + 128, and weights stay signed.  4-bit
/// weights are unpacked in registers as 16 w (the upper nibble of a byte), 2-bit ones as 64 w, so that no sign needs to
/// be extended; the sum is shifted back at the end.  With at most 2^16 products, 2^16 x 255 x 128 stays below 2^31.
/// Include it only from *_avx512vnni.cc.
#ifndef DEPLOY_KERNELS_COMMON_DENSE_TILE_AVX512VNNI_H_
#define DEPLOY_KERNELS_COMMON_DENSE_TILE_AVX512VNNI_H_

#include <immintrin.h>
#include <string.h>

#include "common/dense_panel.h"
#include "common/requantize_avx512.h"

namespace deploy {
namespace {

/// Steps whose weights fill whole registers, and the packing for it.
template <int Bits>
constexpr int kSteps = Bits == 2 ? 2 : 1;
template <int Bits>
using Packing512 = DensePacking<32, 4, Bits, kSteps<Bits>, 128>;

/// The weights of kSteps steps, each two registers of 16 columns x 4.
template <int Bits>
static inline void load_weights(const uint8_t* at, __m512i (&w)[kSteps<Bits>][2]) {
  if constexpr (Bits == 8) {
    w[0][0] = _mm512_load_si512(at);
    w[0][1] = _mm512_load_si512(at + 64);
  } else if constexpr (Bits == 4) {
    const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xf0)), both = _mm512_load_si512(at);
    w[0][0] = _mm512_and_si512(_mm512_slli_epi16(both, 4), upper);
    w[0][1] = _mm512_and_si512(both, upper);
  } else {
    const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xc0)), all = _mm512_load_si512(at);
    w[0][0] = _mm512_and_si512(_mm512_slli_epi16(all, 6), upper);
    w[0][1] = _mm512_and_si512(_mm512_slli_epi16(all, 4), upper);
    w[1][0] = _mm512_and_si512(_mm512_slli_epi16(all, 2), upper);
    w[1][1] = _mm512_and_si512(all, upper);
  }
}

static inline __m512i broadcast4(const uint8_t* at) {
  int32_t word;
  memcpy(&word, at, sizeof word);
  return _mm512_set1_epi32(word);
}

/// With few rows `Apart` blocks of steps are summed apart, or each would wait for the one before.
template <int Rows, int Bits>
static void dense_rows(const TileArgs& args) {
  constexpr int kApart = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;
  constexpr int kPerBlock = kSteps<Bits>;
  constexpr size_t kBlockBytes = 32 * 4 * static_cast<size_t>(kPerBlock) * Bits / 8;
  const DensePanel p = dense_panel(args.panel, 32);
  __m512i acc[kApart][Rows][2];
  for (int u = 0; u < kApart; ++u) {
    for (int r = 0; r < Rows; ++r) acc[u][r][0] = acc[u][r][1] = _mm512_setzero_si512();
  }
  const uint8_t* weights = p.weights;
  for (size_t s = 0; s < p.segments; ++s) {
    const uint8_t* row[Rows];
    for (int r = 0; r < Rows; ++r) row[r] = args.pixels[r] + p.offset[s];
    const size_t end = p.steps * 4;
    size_t k = 0;
    if constexpr (kApart > 1) {
      for (; k + 4 * kApart * kPerBlock <= end; k += 4 * kApart * kPerBlock) {
        for (int u = 0; u < kApart; ++u) {
          __m512i w[kPerBlock][2];
          load_weights<Bits>(weights, w);
          weights += kBlockBytes;
          for (int b = 0; b < kPerBlock; ++b) {
            for (int r = 0; r < Rows; ++r) {
              const __m512i a = broadcast4(row[r] + k + 4 * (u * kPerBlock + b));
              acc[u][r][0] = _mm512_dpbusd_epi32(acc[u][r][0], a, w[b][0]);
              acc[u][r][1] = _mm512_dpbusd_epi32(acc[u][r][1], a, w[b][1]);
            }
          }
        }
      }
    }
    for (; k < end; k += 4 * kPerBlock) {
      __m512i w[kPerBlock][2];
      load_weights<Bits>(weights, w);
      weights += kBlockBytes;
      for (int b = 0; b < kPerBlock; ++b) {
        for (int r = 0; r < Rows; ++r) {
          const __m512i a = broadcast4(row[r] + k + 4 * b);
          acc[0][r][0] = _mm512_dpbusd_epi32(acc[0][r][0], a, w[b][0]);
          acc[0][r][1] = _mm512_dpbusd_epi32(acc[0][r][1], a, w[b][1]);
        }
      }
    }
  }
  for (int half = 0; half < 2; ++half) {
    const __m512i bias = _mm512_loadu_si512(p.bias + 16 * half);
    for (int r = 0; r < Rows; ++r) {
      __m512i& sum = acc[0][r][half];
      for (int u = 1; u < kApart; ++u) sum = _mm512_add_epi32(sum, acc[u][r][half]);
      if constexpr (Bits != 8) sum = _mm512_srai_epi32(sum, Bits == 4 ? 4 : 6);
      sum = _mm512_add_epi32(sum, bias);
    }
  }
  requantize_store32<Rows>(acc[0], p.multiplier, p.shift, args.output_zero_point, args.clamp_min, args.clamp_max,
                           args.cols, args.out, args.out_stride);
}

template <int Bits>
static void dense_tile(const TileArgs& args) {
  switch (args.rows) {
    case 1: return dense_rows<1, Bits>(args);
    case 2: return dense_rows<2, Bits>(args);
    case 3: return dense_rows<3, Bits>(args);
    case 4: return dense_rows<4, Bits>(args);
    case 5: return dense_rows<5, Bits>(args);
    case 6: return dense_rows<6, Bits>(args);
    case 7: return dense_rows<7, Bits>(args);
    case 8: return dense_rows<8, Bits>(args);
    case 9: return dense_rows<9, Bits>(args);
    case 10: return dense_rows<10, Bits>(args);
    case 11: return dense_rows<11, Bits>(args);
    default: return dense_rows<12, Bits>(args);
  }
}

}  // namespace
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_DENSE_TILE_AVX512VNNI_H_
