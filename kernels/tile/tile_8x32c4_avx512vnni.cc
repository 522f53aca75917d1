/// Tile-pruned layers with AVX-512 VNNI: 8 rows by 32 columns, one window of 4 channels per step.
#include <immintrin.h>
#include <string.h>

#include "common/requantize_rows_avx512.h"
#include "common/unroll.h"
#include "tile/panel.h"
#include "tile/variants.h"

namespace deploy {
namespace {

/// 4-bit weights come as 16 w in the upper nibble, which leaves 16 times the sum.
template <int Bits>
inline void load_weights(const uint8_t* at, __m512i& w0, __m512i& w1) {
  if (Bits == 8) {
    w0 = _mm512_load_si512(at);
    w1 = _mm512_load_si512(at + 64);
  } else {
    const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xf0));
    const __m512i both = _mm512_load_si512(at);
    w0 = _mm512_and_si512(_mm512_slli_epi16(both, 4), upper);
    w1 = _mm512_and_si512(both, upper);
  }
}

inline __m512i broadcast4(const uint8_t* at) {
  int32_t word;
  memcpy(&word, at, sizeof word);
  return _mm512_set1_epi32(word);
}

/// `Rows` in [1, 8].  With one or two rows several windows are summed apart, or each would wait for the one before.
template <int Rows, int Bits>
void tile_rows(const TileArgs& args) {
  constexpr int kApart = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;
  constexpr size_t kWindowBytes = 32 * 4 * Bits / 8;
  const TilePanel p = tile_panel(args.panel, 32);
  const uint8_t* row[Rows];
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) row[r] = args.pixels[r];
  __m512i acc[kApart][Rows][2];
  DEPLOY_UNROLL
  for (int u = 0; u < kApart; ++u) {
    DEPLOY_UNROLL
    for (int r = 0; r < Rows; ++r) acc[u][r][0] = acc[u][r][1] = _mm512_setzero_si512();
  }
  const uint8_t* weights = p.weights;
  const int32_t* offset = p.offset;
  int32_t left = p.count;
  for (; left >= kApart; left -= kApart) {
    DEPLOY_UNROLL
    for (int u = 0; u < kApart; ++u) {
      __m512i w0, w1;
      load_weights<Bits>(weights, w0, w1);
      const ptrdiff_t at = *offset++;
      weights += kWindowBytes;
      DEPLOY_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const __m512i a = broadcast4(row[r] + at);
        acc[u][r][0] = _mm512_dpbusd_epi32(acc[u][r][0], a, w0);
        acc[u][r][1] = _mm512_dpbusd_epi32(acc[u][r][1], a, w1);
      }
    }
  }
  if (kApart > 1) {
    for (; left > 0; --left) {
      __m512i w0, w1;
      load_weights<Bits>(weights, w0, w1);
      const ptrdiff_t at = *offset++;
      weights += kWindowBytes;
      DEPLOY_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const __m512i a = broadcast4(row[r] + at);
        acc[0][r][0] = _mm512_dpbusd_epi32(acc[0][r][0], a, w0);
        acc[0][r][1] = _mm512_dpbusd_epi32(acc[0][r][1], a, w1);
      }
    }
    DEPLOY_UNROLL
    for (int u = 1; u < kApart; ++u) {
      DEPLOY_UNROLL
      for (int r = 0; r < Rows; ++r) {
        acc[0][r][0] = _mm512_add_epi32(acc[0][r][0], acc[u][r][0]);
        acc[0][r][1] = _mm512_add_epi32(acc[0][r][1], acc[u][r][1]);
      }
    }
  }
  alignas(64) int32_t sums[(Rows + 1) * 32];
  const __m512i bias[2] = {_mm512_loadu_si512(p.bias), _mm512_loadu_si512(p.bias + 16)};
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    DEPLOY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const __m512i sum = Bits == 4 ? _mm512_srai_epi32(acc[0][r][half], 4) : acc[0][r][half];
      _mm512_store_si512(sums + r * 32 + half * 16, _mm512_add_epi32(sum, bias[half]));
    }
  }
  if (args.single_rounding) {
    requantize_store32(sums, Rows, p.multiplier, p.shift, args);
  } else {
    requantize_rows<2>(sums, p.multiplier, p.shift, args);
  }
}

template <int Bits>
void tile(const TileArgs& args) {
  switch (args.rows) {
    case 1: return tile_rows<1, Bits>(args);
    case 2: return tile_rows<2, Bits>(args);
    case 3: return tile_rows<3, Bits>(args);
    case 4: return tile_rows<4, Bits>(args);
    case 5: return tile_rows<5, Bits>(args);
    case 6: return tile_rows<6, Bits>(args);
    case 7: return tile_rows<7, Bits>(args);
    default: return tile_rows<8, Bits>(args);
  }
}

void prepare(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t, const int8_t*,
             uint8_t* prepared) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const size_t bytes = tile_pixel_bytes(channels);
  for (; count > 0; --count, pixels += stride, prepared += bytes) {
    for (size_t c = 0; c < bytes; c += 64) {
      const __mmask64 read = channels - c >= 64 ? ~__mmask64{0} : (__mmask64{1} << (channels - c)) - 1;
      const __mmask64 write = bytes - c >= 64 ? ~__mmask64{0} : (__mmask64{1} << (bytes - c)) - 1;
      _mm512_mask_storeu_epi8(prepared + c, write, _mm512_xor_si512(_mm512_maskz_loadu_epi8(read, pixels + c), flip));
    }
  }
}

}  // namespace

const Variant conv_tile8_8x32c4_avx512vnni = {
    "conv_tile8_8x32c4_avx512vnni", DEPLOY_FAMILY_TILE8, kAvx512Vnni, 8, 32, 4, true,
    tile_pixel_bytes, prepare, tile_panel_bytes<32, 8>, tile_pack<32, 8, 128>, tile_refuse<8>, tile<8>};
const Variant conv_tile4_8x32c4_avx512vnni = {
    "conv_tile4_8x32c4_avx512vnni", DEPLOY_FAMILY_TILE4, kAvx512Vnni, 8, 32, 4, true,
    tile_pixel_bytes, prepare, tile_panel_bytes<32, 4>, tile_pack<32, 4, 128>, tile_refuse<4>, tile<4>};

}  // namespace deploy
