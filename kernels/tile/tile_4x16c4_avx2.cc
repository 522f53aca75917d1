/// Tile-pruned layers with AVX2: 4 rows by 16 columns, one window of 4 channels per step.
///
/// vpmaddubsw multiplies unsigned by signed bytes: here |a| by w carrying the sign of a.  A sum of two products stays
/// within int16, since |a| <= 128 and |w| <= 127.
#include <immintrin.h>
#include <string.h>

#include "common/requantize_avx2.h"
#include "common/unroll.h"
#include "tile/panel.h"
#include "tile/variants.h"

namespace deploy {
namespace {

template <int Bits>
inline void load_weights(const uint8_t* at, __m256i& w0, __m256i& w1) {
  const __m256i first = _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
  if (Bits == 8) {
    w0 = first;
    w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(at + 32));
  } else {
    const __m256i value = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1,  //
                                           0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    const __m256i nibble = _mm256_set1_epi8(15);
    w0 = _mm256_shuffle_epi8(value, _mm256_and_si256(first, nibble));
    w1 = _mm256_shuffle_epi8(value, _mm256_and_si256(_mm256_srli_epi16(first, 4), nibble));
  }
}

inline __m256i accumulate(__m256i acc, __m256i a, __m256i magnitude, __m256i w) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, a));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

template <int Rows, int Bits>
void tile_rows(const TileArgs& args) {
  const TilePanel p = tile_panel(args.panel, 16);
  __m256i acc[Rows][2];
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    acc[r][0] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.bias));
    acc[r][1] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.bias + 8));
  }
  const uint8_t* weights = p.weights;
  for (int32_t i = 0; i < p.count; ++i, weights += 16 * 4 * Bits / 8) {
    __m256i w0, w1;
    load_weights<Bits>(weights, w0, w1);
    DEPLOY_UNROLL
    for (int r = 0; r < Rows; ++r) {
      int32_t window;
      memcpy(&window, args.pixels[r] + p.offset[i], sizeof window);
      const __m256i a = _mm256_set1_epi32(window), magnitude = _mm256_abs_epi8(a);
      acc[r][0] = accumulate(acc[r][0], a, magnitude, w0);
      acc[r][1] = accumulate(acc[r][1], a, magnitude, w1);
    }
  }
  alignas(32) int32_t sums[Rows][16];
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r]), acc[r][0]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r] + 8), acc[r][1]);
  }
  for (int r = 0; r < Rows; ++r) {
    requantize_row256(sums[r], args.cols, p.multiplier, p.shift, args,
                      args.out + static_cast<size_t>(r) * args.out_stride);
  }
}

template <int Bits>
void tile(const TileArgs& args) {
  switch (args.rows) {
    case 1: return tile_rows<1, Bits>(args);
    case 2: return tile_rows<2, Bits>(args);
    case 3: return tile_rows<3, Bits>(args);
    default: return tile_rows<4, Bits>(args);
  }
}

}  // namespace

const Variant conv_tile8_4x16c4_avx2 = {
    "conv_tile8_4x16c4_avx2", DEPLOY_FAMILY_TILE8, kAvx2, 4, 16, 4, true,
    tile_pixel_bytes, tile_prepare_signed, tile_panel_bytes<16, 8>, tile_pack<16, 8, 0>, tile_refuse<8>, tile<8>};
const Variant conv_tile4_4x16c4_avx2 = {
    "conv_tile4_4x16c4_avx2", DEPLOY_FAMILY_TILE4, kAvx2, 4, 16, 4, true,
    tile_pixel_bytes, tile_prepare_signed, tile_panel_bytes<16, 4>, tile_pack<16, 4, 0>, tile_refuse<4>, tile<4>};

}  // namespace deploy
