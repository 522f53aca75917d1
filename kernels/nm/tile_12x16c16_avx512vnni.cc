/// N:M per output with AVX-512 VNNI: 12 rows by 16 columns.
///
/// 16 bytes of a row are broadcast; vpshufb brings each column the four that it keeps, for vpdpbusd.  Columns choose
/// differently, so every row has to be shuffled for every 16 columns: one shuffle for each multiplication.
#include <immintrin.h>

#include "common/dense_panel.h"
#include "common/prepare_avx512.h"
#include "common/requantize_rows_avx512.h"
#include "common/unroll.h"
#include "nm/panel.h"
#include "nm/variants.h"

namespace deploy {
namespace {

/// `Rows` in [1, 12].  With few rows the two groups of a step are summed apart, or each would wait for the one before.
template <int Rows>
void tile_rows(const TileArgs& args) {
  constexpr int kApart = Rows < 6 ? 2 : 1;
  const NmPanel p = nm_panel(args.panel);
  const uint8_t* row[Rows];
  __m512i acc[kApart][Rows];
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    row[r] = args.pixels[r];
    DEPLOY_UNROLL
    for (int u = 0; u < kApart; ++u) acc[u][r] = _mm512_setzero_si512();
  }
  const __m512i nibble = _mm512_set1_epi8(15);
  const uint8_t* at = p.weights;
  for (size_t step = 0; step < p.steps; ++step, at += kNmStepBytes) {
    const __m512i both = _mm512_load_si512(at);
    const __m512i channels[2] = {_mm512_and_si512(both, nibble), _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble)};
    DEPLOY_UNROLL
    for (int g = 0; g < 2; ++g) {
      const __m512i weights = _mm512_load_si512(at + kNmGroupBytes * (1 + static_cast<size_t>(g)));
      const ptrdiff_t offset = p.offset[2 * step + static_cast<size_t>(g)];
      DEPLOY_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const __m512i window =
            _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row[r] + offset)));
        __m512i& sum = acc[g % kApart][r];
        sum = _mm512_dpbusd_epi32(sum, _mm512_shuffle_epi8(window, channels[g]), weights);
      }
    }
  }
  alignas(64) int32_t sums[(Rows + 3) / 4 * 4 + 1][16];  // one row more than is used, see requantize_rows()
  const __m512i bias = _mm512_loadu_si512(p.bias);
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    __m512i sum = _mm512_add_epi32(acc[0][r], bias);
    if constexpr (kApart == 2) sum = _mm512_add_epi32(sum, acc[1][r]);
    _mm512_store_si512(sums[r], sum);
  }
  DEPLOY_UNROLL
  for (int r = Rows; r < (Rows + 3) / 4 * 4; ++r) _mm512_store_si512(sums[r], _mm512_setzero_si512());
  requantize_rows<1>(sums[0], p.multiplier, p.shift, args);
}

template <int Rows = 12>
void tile(const TileArgs& args) {
  if constexpr (Rows > 1) {
    if (args.rows < Rows) return tile<Rows - 1>(args);
  }
  tile_rows<Rows>(args);
}

}  // namespace

const Variant conv_nm8_12x16c16_avx512vnni = {
    "conv_nm8_12x16c16_avx512vnni", DEPLOY_FAMILY_NM8, kAvx512Vnni, 12, 16, 16, true, dense_pixel_bytes,
    prepare_unsigned512, nm_panel_bytes, nm_pack, dense_refuse_nothing, tile<12>};

}  // namespace deploy
