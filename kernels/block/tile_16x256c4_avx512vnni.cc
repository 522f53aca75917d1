/// Block-pruned layers with AVX-512 VNNI: 16 rows in the lanes, so that every column may keep blocks of its own.
///
/// All windows in use are first rearranged to [window][16 rows][4 channels].  Then one window of one column is one
/// vpdpbusd: 64 products, as in a dense tile.  A single row takes another way: 16 channels of one row are a vector too.
#include <immintrin.h>
#include <string.h>

#include "block/panel.h"
#include "block/variants.h"
#include "common/requantize_rows_avx512.h"
#include "common/unroll.h"
#include "tile/panel.h"

namespace deploy {
namespace {

/// Transposes 16 x 16 words of 4 bytes.
inline void transpose16(__m512i (&v)[16]) {
  __m512i t[16];
  DEPLOY_UNROLL
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  DEPLOY_UNROLL
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // v[4 q + j] holds, in each 128-bit lane l, word 4 l + j of rows 4 q to 4 q + 3.
  DEPLOY_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x44), b = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x44);
    const __m512i d = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xee);
    t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
  DEPLOY_UNROLL
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

/// 16 words of each of 16 rows, to[word][row].
inline void transpose_rows(const uint8_t* const* rows, ptrdiff_t at, uint8_t* to) {
  __m512i v[16];
  DEPLOY_UNROLL
  for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_si512(rows[i] + at);
  transpose16(v);
  DEPLOY_UNROLL
  for (int i = 0; i < 16; ++i) _mm512_store_si512(to + 64 * i, v[i]);
}

inline __m512i broadcast4(const int8_t* at) {
  int32_t word;
  memcpy(&word, at, sizeof word);
  return _mm512_set1_epi32(word);
}

/// One column's sums over 16 rows.
template <int Windows>
inline __m512i sum_column(const BlockPanel& p, size_t col, const uint8_t* windows) {
  __m512i acc[4];
  DEPLOY_UNROLL
  for (int i = 0; i < 4; ++i) acc[i] = _mm512_setzero_si512();
  int32_t b = p.begin[col];
  const int32_t end = p.begin[col + 1];
  if (Windows == 4) {
    for (; b < end; ++b) {
      const uint8_t* const from = windows + static_cast<size_t>(p.window[b]) * 64;
      const int8_t* const weights = p.weights + static_cast<size_t>(b) * 16;
      DEPLOY_UNROLL
      for (int i = 0; i < 4; ++i) {
        acc[i] = _mm512_dpbusd_epi32(acc[i], _mm512_load_si512(from + 64 * i), broadcast4(weights + 4 * i));
      }
    }
  } else {
    for (; b + 4 <= end; b += 4) {
      DEPLOY_UNROLL
      for (int i = 0; i < 4; ++i) {
        acc[i] = _mm512_dpbusd_epi32(acc[i], _mm512_load_si512(windows + static_cast<size_t>(p.window[b + i]) * 64),
                                     broadcast4(p.weights + static_cast<size_t>(b + i) * 4));
      }
    }
    for (; b < end; ++b) {
      acc[0] = _mm512_dpbusd_epi32(acc[0], _mm512_load_si512(windows + static_cast<size_t>(p.window[b]) * 64),
                                   broadcast4(p.weights + static_cast<size_t>(b) * 4));
    }
  }
  return _mm512_add_epi32(_mm512_add_epi32(acc[0], acc[1]), _mm512_add_epi32(acc[2], acc[3]));
}

/// Requantizes [rows][32] sums to columns [first, first + 32) of the panel.
void finish(const BlockPanel& p, const TileArgs& args, size_t first, const int32_t* sums) {
  TileArgs part = args;
  part.cols = args.cols - first < 32 ? args.cols - first : 32;
  part.out = args.out + first;
  if (args.single_rounding) {
    requantize_store32(sums, args.rows, p.multiplier + first, p.shift + first, part);
  } else {
    requantize_rows<2>(sums, p.multiplier + first, p.shift + first, part);
  }
}

template <int Windows>
void tile_rows(const BlockPanel& p, const TileArgs& args) {
  alignas(64) uint8_t windows[kBlockMaxSpans * 16 * 64];
  const uint8_t* rows[16];
  for (size_t r = 0; r < 16; ++r) rows[r] = args.pixels[r < args.rows ? r : args.rows - 1];
  for (int32_t s = 0; s < p.spans; ++s) transpose_rows(rows, p.offset[s], windows + static_cast<size_t>(s) * 1024);
  for (size_t first = 0; first < args.cols; first += 32) {
    alignas(64) int32_t sums[17 * 32];
    for (size_t half = 0; half < 32; half += 16) {
      alignas(64) __m512i columns[16];
      for (size_t col = 0; col < 16; ++col) columns[col] = sum_column<Windows>(p, first + half + col, windows);
      transpose16(columns);
      const __m512i bias = _mm512_loadu_si512(p.bias + first + half);
      for (size_t r = 0; r < 16; ++r) {
        _mm512_store_si512(sums + r * 32 + half, _mm512_add_epi32(columns[r], bias));
      }
    }
    finish(p, args, first, sums);
  }
}

template <int Windows>
void tile_row(const BlockPanel& p, const TileArgs& args) {
  alignas(64) uint8_t windows[kBlockMaxSpans * 64 + 16];
  for (int32_t s = 0; s < p.spans; ++s) {
    _mm512_store_si512(windows + static_cast<size_t>(s) * 64, _mm512_loadu_si512(args.pixels[0] + p.offset[s]));
  }
  for (size_t first = 0; first < args.cols; first += 32) {
    alignas(64) int32_t sums[2 * 32];
    for (size_t col = 0; col < 32; ++col) {
      __m128i acc = _mm_setzero_si128();
      int32_t b = p.begin[first + col];
      const int32_t end = p.begin[first + col + 1];
      if (Windows == 1) {
        for (; b + 4 <= end; b += 4) {
          int32_t a[4];
          DEPLOY_UNROLL
          for (int i = 0; i < 4; ++i) memcpy(&a[i], windows + static_cast<size_t>(p.window[b + i]) * 4, 4);
          const int8_t* const weights = p.weights + static_cast<size_t>(b) * 4;
          acc = _mm_dpbusd_epi32(acc, _mm_setr_epi32(a[0], a[1], a[2], a[3]),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
        }
      }
      for (; b < end; ++b) {
        const uint8_t* const from = windows + static_cast<size_t>(p.window[b]) * 4;
        const int8_t* const weights = p.weights + static_cast<size_t>(b) * 4 * Windows;
        acc = Windows == 4 ? _mm_dpbusd_epi32(acc, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)),
                                              _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)))
                           : _mm_dpbusd_epi32(acc, _mm_loadu_si32(from), _mm_loadu_si32(weights));
      }
      acc = _mm_add_epi32(acc, _mm_shuffle_epi32(acc, 0x4e));
      acc = _mm_add_epi32(acc, _mm_shuffle_epi32(acc, 0xb1));
      sums[col] = _mm_cvtsi128_si32(acc) + p.bias[first + col];
    }
    memset(sums + 32, 0, 32 * sizeof(int32_t));
    finish(p, args, first, sums);
  }
}

void tile(const TileArgs& args) {
  const BlockPanel p = block_panel(args.panel);
  const bool wide = p.windows_per_block == 4;
  if (args.rows == 1) return wide ? tile_row<4>(p, args) : tile_row<1>(p, args);
  return wide ? tile_rows<4>(p, args) : tile_rows<1>(p, args);
}

}  // namespace

const Variant conv_block8_16x256c4_avx512vnni = {
    "conv_block8_16x256c4_avx512vnni", DEPLOY_FAMILY_BLOCK8, kAvx512Vnni, 16, kBlockColumns, 4, true,
    tile_pixel_bytes, tile_prepare_unsigned, block_panel_bytes, block_pack, block_refuse, tile};

}  // namespace deploy
