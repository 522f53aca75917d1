/// The steps of winograd.h with AVX-512 VNNI: panels of 32 columns, tiles multiplied 12 at a time.
///
/// vpdpwssd multiplies pairs of 16-bit values, half as many as vpdpbusd of bytes.  Include it only from *_avx512vnni.cc.
#ifndef DEPLOY_KERNELS_COMMON_WINOGRAD_AVX512VNNI_H_
#define DEPLOY_KERNELS_COMMON_WINOGRAD_AVX512VNNI_H_

#include <immintrin.h>
#include <string.h>

#include "common/requantize_rows_avx512.h"
#include "common/unroll.h"
#include "common/winograd.h"

namespace deploy {
namespace {

constexpr size_t kWinogradColumns = 32;
constexpr size_t kWinogradRows = 12;  ///< tiles whose sums fill 24 registers

/// v of winograd.h for 32 channels.
static inline void transform_inputs16(const __m512i (&d)[6], __m512i (&v)[6]) {
  const __m512i even = _mm512_sub_epi16(d[4], _mm512_slli_epi16(d[2], 2));  // d4 - 4 d2
  const __m512i odd = _mm512_sub_epi16(d[3], _mm512_slli_epi16(d[1], 2));   // d3 - 4 d1
  const __m512i less = _mm512_sub_epi16(d[4], d[2]), twice = _mm512_slli_epi16(_mm512_sub_epi16(d[3], d[1]), 1);
  v[0] = _mm512_add_epi16(even, _mm512_sub_epi16(_mm512_slli_epi16(d[0], 2), d[2]));
  v[1] = _mm512_add_epi16(even, odd);
  v[2] = _mm512_sub_epi16(even, odd);
  v[3] = _mm512_add_epi16(less, twice);
  v[4] = _mm512_sub_epi16(less, twice);
  // 4 d1 - 5 d3 + d5
  v[5] = _mm512_sub_epi16(_mm512_sub_epi16(d[5], d[3]), _mm512_slli_epi16(_mm512_sub_epi16(d[3], d[1]), 2));
}

static void winograd_inputs512(const int8_t* const* pixels, size_t channels, int16_t* values) {
  const size_t step = (channels + 31) / 32 * 32;
  for (size_t c = 0; c < channels; c += 32) {
    const __mmask32 used = channels - c >= 32 ? ~__mmask32{0} : (__mmask32{1} << (channels - c)) - 1;
    __m512i half[6][6];  // along the rows
    DEPLOY_UNROLL
    for (int y = 0; y < 6; ++y) {
      __m512i d[6];
      DEPLOY_UNROLL
      for (int x = 0; x < 6; ++x) d[x] = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(used, pixels[6 * y + x] + c));
      transform_inputs16(d, half[y]);
    }
    DEPLOY_UNROLL
    for (int x = 0; x < 6; ++x) {
      const __m512i column[6] = {half[0][x], half[1][x], half[2][x], half[3][x], half[4][x], half[5][x]};
      __m512i v[6];
      transform_inputs16(column, v);
      DEPLOY_UNROLL
      for (int y = 0; y < 6; ++y) _mm512_store_si512(values + (6 * static_cast<size_t>(y) + x) * step + c, v[y]);
    }
  }
}

/// u of winograd.h in bytes, or in 16 bits.
static inline void transform_weights8(const __m512i (&g)[3], __m512i (&u)[6]) {
  const __m512i sum = _mm512_add_epi8(g[0], g[2]), g2 = _mm512_add_epi8(g[2], g[2]);
  const __m512i even = _mm512_add_epi8(g[0], _mm512_add_epi8(g2, g2)), odd = _mm512_add_epi8(g[1], g[1]);
  u[0] = g[0];
  u[1] = _mm512_add_epi8(sum, g[1]);
  u[2] = _mm512_sub_epi8(sum, g[1]);
  u[3] = _mm512_add_epi8(even, odd);
  u[4] = _mm512_sub_epi8(even, odd);
  u[5] = g[2];
}

static inline void transform_weights16(const __m512i (&g)[3], __m512i (&u)[6]) {
  const __m512i sum = _mm512_add_epi16(g[0], g[2]), even = _mm512_add_epi16(g[0], _mm512_slli_epi16(g[2], 2));
  const __m512i odd = _mm512_add_epi16(g[1], g[1]);
  u[0] = g[0];
  u[1] = _mm512_add_epi16(sum, g[1]);
  u[2] = _mm512_sub_epi16(sum, g[1]);
  u[3] = _mm512_add_epi16(even, odd);
  u[4] = _mm512_sub_epi16(even, odd);
  u[5] = g[2];
}

/// Weights of `Bits` bits, 4 or 2, of whole blocks of channels.
template <int Bits>
static void winograd_weights512(const uint8_t* packed, size_t channels, int16_t* to, size_t stride) {
  constexpr int kPairs = 8 / Bits;  // of channels in a block
  const __m512i mask = _mm512_set1_epi8((1 << Bits) - 1), half = _mm512_set1_epi8(1 << (Bits - 1));
  for (size_t c = 0; c < channels; c += 2 * kPairs, packed += 9 * 64) {
    DEPLOY_UNROLL
    for (int pair = 0; pair < kPairs; ++pair, to += 64) {
      __m512i rows[3][6];  // transformed along the rows: at most 7 x 8
      DEPLOY_UNROLL
      for (int y = 0; y < 3; ++y) {
        __m512i g[3];
        DEPLOY_UNROLL
        for (int x = 0; x < 3; ++x) {
          const __m512i bits = _mm512_srli_epi16(_mm512_load_si512(packed + 64 * (3 * y + x)), Bits * pair);
          g[x] = _mm512_sub_epi8(_mm512_and_si512(bits, mask), half);
        }
        transform_weights8(g, rows[y]);
      }
      DEPLOY_UNROLL
      for (int x = 0; x < 6; ++x) {
        DEPLOY_UNROLL
        for (int side = 0; side < 2; ++side) {  // columns 0 to 15, 16 to 31
          __m512i column[3], u[6];
          DEPLOY_UNROLL
          for (int y = 0; y < 3; ++y) {
            column[y] = _mm512_cvtepi8_epi16(side ? _mm512_extracti64x4_epi64(rows[y][x], 1)
                                                  : _mm512_castsi512_si256(rows[y][x]));
          }
          transform_weights16(column, u);
          DEPLOY_UNROLL
          for (int y = 0; y < 6; ++y) {
            _mm512_store_si512(to + (6 * static_cast<size_t>(y) + x) * stride + 32 * side, u[y]);
          }
        }
      }
    }
  }
}

/// acc + the products of pairs.  Not by its intrinsic, which Clang splits into a multiplication and an addition.
static inline __m512i add_pairs(__m512i acc, __m512i a, __m512i b) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  return acc;
}

/// One point of `Rows` tiles.
template <int Rows>
static inline void multiply_point(const int16_t* inputs, size_t stride, const int16_t* weights, size_t channels,
                                  int32_t* products) {
  __m512i acc[Rows][2];
  const int16_t* row[Rows];
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    row[r] = inputs + static_cast<size_t>(r) * stride;
    acc[r][0] = acc[r][1] = _mm512_setzero_si512();
  }
  for (size_t c = 0; c < channels; c += 2, weights += 64) {
    const __m512i w0 = _mm512_load_si512(weights), w1 = _mm512_load_si512(weights + 32);
    DEPLOY_UNROLL
    for (int r = 0; r < Rows; ++r) {
      int32_t two;
      memcpy(&two, row[r] + c, sizeof two);
      const __m512i v = _mm512_set1_epi32(two);
      acc[r][0] = add_pairs(acc[r][0], v, w0);
      acc[r][1] = add_pairs(acc[r][1], v, w1);
    }
  }
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    int32_t* const to = products + static_cast<size_t>(r) * kWinogradPoints * kWinogradColumns;
    _mm512_store_si512(to, acc[r][0]);
    _mm512_store_si512(to + 16, acc[r][1]);
  }
}

template <int Rows = kWinogradRows>
static inline void multiply_points(size_t rows, const int16_t* inputs, size_t stride, const int16_t* weights,
                                   size_t channels, int32_t* products) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return multiply_points<Rows - 1>(rows, inputs, stride, weights, channels, products);
  }
  multiply_point<Rows>(inputs, stride, weights, channels, products);
}

static void winograd_multiply512(const WinogradBuffers& b, size_t tiles, size_t channels) {
  const size_t step = (channels + 31) / 32 * 32, blocks = (tiles + kWinogradRows - 1) / kWinogradRows;
  for (size_t point = 0; point < kWinogradPoints; ++point) {
    for (size_t block = 0, first = 0; block < blocks; ++block) {
      const size_t rows = (tiles - first) / (blocks - block);  // blocks that differ by one at most
      multiply_points(rows, b.inputs + first * b.input_stride + point * step, b.input_stride,
                      b.weights + point * b.weight_stride, channels,
                      b.products + (first * kWinogradPoints + point) * kWinogradColumns);
      first += rows;
    }
  }
}

/// 24 y0, 12 y1, 6 y2, 6 y3 of winograd.h.
static inline void transform_outputs32(const __m512i (&m)[6], __m512i (&y)[4]) {
  const __m512i s = _mm512_add_epi32(m[1], m[2]), d = _mm512_sub_epi32(m[1], m[2]);
  const __m512i big = _mm512_add_epi32(m[3], m[4]), e = _mm512_sub_epi32(m[3], m[4]);
  const __m512i three0 = _mm512_add_epi32(m[0], _mm512_slli_epi32(m[0], 1));
  const __m512i three5 = _mm512_add_epi32(m[5], _mm512_slli_epi32(m[5], 1));
  y[0] = _mm512_add_epi32(big, _mm512_slli_epi32(_mm512_sub_epi32(three0, _mm512_slli_epi32(s, 1)), 1));
  y[1] = _mm512_sub_epi32(e, _mm512_slli_epi32(d, 1));
  y[2] = _mm512_sub_epi32(big, s);
  y[3] = _mm512_sub_epi32(_mm512_slli_epi32(_mm512_add_epi32(three5, e), 1), d);
}

static void winograd_outputs512(const int32_t* products, size_t tiles, const int32_t* bias, int32_t* sums) {
  constexpr int kPower[4] = {3, 2, 1, 1};  // of 2 in 24, 12, 6, 6
  const __m512i inverse = _mm512_set1_epi32(static_cast<int32_t>(kInverseOf9));
  for (size_t tile = 0; tile < tiles; ++tile, products += kWinogradPoints * kWinogradColumns) {
    for (size_t side = 0; side < kWinogradColumns; side += 16) {
      const __m512i offset = _mm512_loadu_si512(bias + side);
      __m512i half[4][6];
      DEPLOY_UNROLL
      for (int x = 0; x < 6; ++x) {
        __m512i m[6], y[4];
        DEPLOY_UNROLL
        for (int i = 0; i < 6; ++i) {
          m[i] = _mm512_load_si512(products + static_cast<size_t>(6 * i + x) * kWinogradColumns + side);
        }
        transform_outputs32(m, y);
        DEPLOY_UNROLL
        for (int i = 0; i < 4; ++i) half[i][x] = y[i];
      }
      DEPLOY_UNROLL
      for (int i = 0; i < 4; ++i) {
        __m512i y[4];
        transform_outputs32(half[i], y);
        DEPLOY_UNROLL
        for (int j = 0; j < 4; ++j) {
          const __m512i exact = _mm512_srai_epi32(_mm512_mullo_epi32(y[j], inverse), kPower[i] + kPower[j]);
          _mm512_store_si512(sums + (static_cast<size_t>(16 * i + j) + 4 * tile) * kWinogradColumns + side,
                             _mm512_add_epi32(exact, offset));
        }
      }
    }
  }
}

template <int Bits>
constexpr WinogradSteps kWinograd512 = {winograd_inputs512, winograd_weights512<Bits>, winograd_multiply512,
                                        winograd_outputs512, requantize_rows<2, int8_t>};

template <int Bits>
static void winograd_panel_bytes512(const GroupWeights& group, size_t* sizes) {
  winograd_panel_bytes(group, kWinogradColumns, Bits, sizes);
}

template <int Bits>
static void winograd_pack512(const GroupWeights& group, size_t first, uint8_t* panel) {
  winograd_pack(group, first, kWinogradColumns, Bits, panel);
}

}  // namespace
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_WINOGRAD_AVX512VNNI_H_
