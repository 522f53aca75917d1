/// Dense tiles of 1 to 12 rows by 32 or 16 columns with AVX-512 VNNI, for weights of 8, 4 or 2 bits.
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
#include "common/prepare_avx512.h"
#include "common/requantize_rows_avx512.h"
#include "common/unroll.h"

namespace deploy {
namespace {

/// A register of weights holds 16 columns x 4; Vecs of them, 1 or 2, make a step.  Steps in whole registers:
template <int Vecs, int Bits>
constexpr int kSteps = 8 / Bits > Vecs ? 8 / Bits / Vecs : 1;
template <int Vecs, int Bits>
using Packing512 = DensePacking<16 * Vecs, 4, Bits, kSteps<Vecs, Bits>, 128>;

/// The weights of kSteps steps.
template <int Vecs, int Bits>
static inline void load_weights(const uint8_t* at, __m512i (&w)[kSteps<Vecs, Bits> * Vecs]) {
  if constexpr (Bits == 8) {
    DEPLOY_UNROLL
    for (int v = 0; v < Vecs; ++v) w[v] = _mm512_load_si512(at + 64 * v);
  } else if constexpr (Bits == 4) {
    const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xf0)), both = _mm512_load_si512(at);
    w[0] = _mm512_and_si512(_mm512_slli_epi16(both, 4), upper);
    w[1] = _mm512_and_si512(both, upper);
  } else {
    const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xc0)), all = _mm512_load_si512(at);
    w[0] = _mm512_and_si512(_mm512_slli_epi16(all, 6), upper);
    w[1] = _mm512_and_si512(_mm512_slli_epi16(all, 4), upper);
    w[2] = _mm512_and_si512(_mm512_slli_epi16(all, 2), upper);
    w[3] = _mm512_and_si512(all, upper);
  }
}

static inline __m512i broadcast4(const uint8_t* at) {
  int32_t word;
  memcpy(&word, at, sizeof word);
  return _mm512_set1_epi32(word);
}

/// One block of kSteps steps added to `acc`, the rows' bytes from k on.
template <int Rows, int Vecs, int Bits>
static inline void add_block(const uint8_t* const (&row)[Rows], size_t k, const uint8_t* weights,
                             __m512i (&acc)[Rows][Vecs]) {
  __m512i w[kSteps<Vecs, Bits> * Vecs];
  load_weights<Vecs, Bits>(weights, w);
  DEPLOY_UNROLL
  for (int b = 0; b < kSteps<Vecs, Bits>; ++b) {
    DEPLOY_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const __m512i a = broadcast4(row[r] + k + 4 * b);
      DEPLOY_UNROLL
      for (int v = 0; v < Vecs; ++v) acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], a, w[b * Vecs + v]);
    }
  }
}

/// With few rows kApart blocks are summed apart, or each multiplication would wait for the one before.
template <int Rows, int Vecs, int Bits>
static void dense_rows(const TileArgs& args) {
  constexpr int kApart = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;
  constexpr size_t kBlock = 4 * static_cast<size_t>(kSteps<Vecs, Bits>);  // bytes of a row
  constexpr size_t kBlockBytes = 16 * Vecs * kBlock * Bits / 8;           // of weights
  const DensePanel p = dense_panel(args.panel, 16 * Vecs);
  __m512i acc[kApart][Rows][Vecs];
  DEPLOY_UNROLL
  for (int u = 0; u < kApart; ++u) {
    DEPLOY_UNROLL
    for (int r = 0; r < Rows; ++r) {
      DEPLOY_UNROLL
      for (int v = 0; v < Vecs; ++v) acc[u][r][v] = _mm512_setzero_si512();
    }
  }
  const uint8_t* weights = p.weights;
  for (size_t s = 0; s < p.segments; ++s) {
    const uint8_t* row[Rows];
    DEPLOY_UNROLL
    for (int r = 0; r < Rows; ++r) row[r] = args.pixels[r] + p.offset[s];
    const size_t end = p.steps * 4;
    size_t k = 0;
    if constexpr (kApart > 1) {
      for (; k + kApart * kBlock <= end; k += kApart * kBlock) {
        DEPLOY_UNROLL
        for (int u = 0; u < kApart; ++u) {
          add_block<Rows, Vecs, Bits>(row, k + static_cast<size_t>(u) * kBlock, weights, acc[u]);
          weights += kBlockBytes;
        }
      }
    }
    for (; k < end; k += kBlock) {
      add_block<Rows, Vecs, Bits>(row, k, weights, acc[0]);
      weights += kBlockBytes;
      // Clang would otherwise keep a second copy of each sum for use behind the loop, and run out of registers.
      DEPLOY_UNROLL
      for (int r = 0; r < Rows; ++r) {
        DEPLOY_UNROLL
        for (int v = 0; v < Vecs; ++v) __asm__("" : "+v"(acc[0][r][v]));
      }
    }
  }
  alignas(64) int32_t sums[(Rows + 3) / 4 * 4 + 1][16 * Vecs];  // one row more than is used, see requantize_rows()
  DEPLOY_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    const __m512i bias = _mm512_loadu_si512(p.bias + 16 * v);
    DEPLOY_UNROLL
    for (int r = 0; r < Rows; ++r) {
      __m512i sum = acc[0][r][v];
      DEPLOY_UNROLL
      for (int u = 1; u < kApart; ++u) sum = _mm512_add_epi32(sum, acc[u][r][v]);
      if constexpr (Bits != 8) sum = _mm512_srai_epi32(sum, Bits == 4 ? 4 : 6);
      _mm512_store_si512(&sums[r][16 * v], _mm512_add_epi32(sum, bias));
    }
    // Rows that fill the last group up take part in the search for doubtful sums: let them be of no doubt.
    DEPLOY_UNROLL
    for (int r = Rows; r < (Rows + 3) / 4 * 4; ++r) _mm512_store_si512(&sums[r][16 * v], _mm512_setzero_si512());
  }
  requantize_rows<Vecs>(sums[0], p.multiplier, p.shift, args);
}

template <int Vecs, int Bits>
static void dense_tile(const TileArgs& args) {
  switch (args.rows) {
    case 1: return dense_rows<1, Vecs, Bits>(args);
    case 2: return dense_rows<2, Vecs, Bits>(args);
    case 3: return dense_rows<3, Vecs, Bits>(args);
    case 4: return dense_rows<4, Vecs, Bits>(args);
    case 5: return dense_rows<5, Vecs, Bits>(args);
    case 6: return dense_rows<6, Vecs, Bits>(args);
    case 7: return dense_rows<7, Vecs, Bits>(args);
    case 8: return dense_rows<8, Vecs, Bits>(args);
    case 9: return dense_rows<9, Vecs, Bits>(args);
    case 10: return dense_rows<10, Vecs, Bits>(args);
    case 11: return dense_rows<11, Vecs, Bits>(args);
    default: return dense_rows<12, Vecs, Bits>(args);
  }
}

}  // namespace
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_DENSE_TILE_AVX512VNNI_H_
