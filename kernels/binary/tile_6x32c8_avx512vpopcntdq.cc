/// Binary layers with AVX-512 VPOPCNTDQ: 6 rows by 32 columns, 64 channels per step.
///
/// Columns lie in the 64-bit lanes, and a row's word is broadcast, so no sum crosses lanes: xor, count, add.
#include <immintrin.h>
#include <string.h>

#include "binary/panel.h"
#include "binary/variants.h"
#include "common/requantize_rows_avx512.h"
#include "common/unroll.h"

namespace deploy {
namespace {

/// `Rows` in [1, 6].
template <int Rows>
void tile_rows(const TileArgs& args) {
  const BinaryPanel p = binary_panel(args.panel, 32);
  const uint8_t* row[Rows];
  __m512i count[Rows][4];
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    row[r] = args.pixels[r];
    DEPLOY_UNROLL
    for (int j = 0; j < 4; ++j) count[r][j] = _mm512_setzero_si512();
  }
  const uint64_t* weights = p.weights;
  for (int32_t i = 0; i < p.words; ++i, weights += 32) {
    const ptrdiff_t at = p.offset[i];
    DEPLOY_UNROLL
    for (int r = 0; r < Rows; ++r) {
      int64_t word;
      memcpy(&word, row[r] + at, sizeof word);
      const __m512i bits = _mm512_set1_epi64(word);
      DEPLOY_UNROLL
      for (int j = 0; j < 4; ++j) {
        const __m512i differ = _mm512_xor_si512(bits, _mm512_load_si512(weights + 8 * j));
        count[r][j] = _mm512_add_epi64(count[r][j], _mm512_popcnt_epi64(differ));
      }
    }
  }
  alignas(64) int32_t sums[(Rows + 1) * 32];
  const __m512i lower = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    DEPLOY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const __m512i counts = _mm512_permutex2var_epi32(count[r][2 * half], lower, count[r][2 * half + 1]);
      const __m512i scaled = _mm512_mullo_epi32(counts, _mm512_loadu_si512(p.factor + 16 * half));
      _mm512_store_si512(sums + r * 32 + half * 16,
                         _mm512_sub_epi32(_mm512_loadu_si512(p.base + 16 * half), scaled));
    }
  }
  if (args.padded) {
    for (int r = 0; r < Rows; ++r) {
      if (!args.padded[r]) continue;
      __m512i sum[2] = {_mm512_load_si512(sums + r * 32), _mm512_load_si512(sums + r * 32 + 16)};
      binary_corrections(p, 32, args.padded[r], [&](const int32_t* correction) {
        sum[0] = _mm512_sub_epi32(sum[0], _mm512_loadu_si512(correction));
        sum[1] = _mm512_sub_epi32(sum[1], _mm512_loadu_si512(correction + 16));
      });
      _mm512_store_si512(sums + r * 32, sum[0]);
      _mm512_store_si512(sums + r * 32 + 16, sum[1]);
    }
  }
  if (args.single_rounding) {
    requantize_store32(sums, Rows, p.multiplier, p.shift, args);
  } else {
    requantize_rows<2>(sums, p.multiplier, p.shift, args);
  }
}

void tile(const TileArgs& args) {
  switch (args.rows) {
    case 1: return tile_rows<1>(args);
    case 2: return tile_rows<2>(args);
    case 3: return tile_rows<3>(args);
    case 4: return tile_rows<4>(args);
    case 5: return tile_rows<5>(args);
    default: return tile_rows<6>(args);
  }
}

void prepare(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t, const int8_t* threshold,
             uint8_t* prepared) {
  for (; count > 0; --count, pixels += stride) {
    for (size_t c = 0; c < channels; c += 64, prepared += 8) {
      const __mmask64 used = channels - c >= 64 ? ~__mmask64{0} : (__mmask64{1} << (channels - c)) - 1;
      const __m512i values = _mm512_maskz_loadu_epi8(used, pixels + c);
      const __m512i least = _mm512_maskz_loadu_epi8(used, threshold + c);
      const uint64_t word = _mm512_mask_cmpge_epi8_mask(used, values, least);
      memcpy(prepared, &word, sizeof word);
    }
  }
}

}  // namespace

const Variant conv_binary_6x32c8_avx512vpopcntdq = {
    "conv_binary_6x32c8_avx512vpopcntdq", DEPLOY_FAMILY_BINARY, kAvx512Vpopcntdq, 6, 32, 8, true,
    binary_pixel_bytes, prepare, binary_panel_bytes<32>, binary_pack<32>, binary_refuse, tile};

}  // namespace deploy
