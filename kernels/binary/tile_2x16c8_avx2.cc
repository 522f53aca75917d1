/// Binary layers with AVX2: 2 rows by 16 columns, 64 channels per step, bits counted by nibbles.
#include <immintrin.h>
#include <string.h>

#include "binary/panel.h"
#include "binary/variants.h"
#include "common/requantize_avx2.h"
#include "common/unroll.h"

namespace deploy {
namespace {

/// Set bits of each 64-bit lane.
inline __m256i count64(__m256i value) {
  const __m256i bits_of_nibble = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                                  0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i bytes =
      _mm256_add_epi8(_mm256_shuffle_epi8(bits_of_nibble, _mm256_and_si256(value, low)),
                      _mm256_shuffle_epi8(bits_of_nibble, _mm256_and_si256(_mm256_srli_epi16(value, 4), low)));
  return _mm256_sad_epu8(bytes, _mm256_setzero_si256());
}

template <int Rows>
void tile_rows(const TileArgs& args) {
  const BinaryPanel p = binary_panel(args.panel, 16);
  __m256i count[Rows][4];
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    DEPLOY_UNROLL
    for (int j = 0; j < 4; ++j) count[r][j] = _mm256_setzero_si256();
  }
  const uint64_t* weights = p.weights;
  for (int32_t i = 0; i < p.words; ++i, weights += 16) {
    DEPLOY_UNROLL
    for (int r = 0; r < Rows; ++r) {
      int64_t word;
      memcpy(&word, args.pixels[r] + p.offset[i], sizeof word);
      const __m256i bits = _mm256_set1_epi64x(word);
      DEPLOY_UNROLL
      for (int j = 0; j < 4; ++j) {
        const __m256i weight = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + 4 * j));
        count[r][j] = _mm256_add_epi64(count[r][j], count64(_mm256_xor_si256(bits, weight)));
      }
    }
  }
  alignas(32) uint64_t counts[Rows][16];
  DEPLOY_UNROLL
  for (int r = 0; r < Rows; ++r) {
    DEPLOY_UNROLL
    for (int j = 0; j < 4; ++j) _mm256_store_si256(reinterpret_cast<__m256i*>(counts[r] + 4 * j), count[r][j]);
  }
  for (int r = 0; r < Rows; ++r) {
    alignas(32) int32_t sums[16];
    for (size_t col = 0; col < 16; ++col) {
      sums[col] = static_cast<int32_t>(static_cast<uint32_t>(p.base[col]) -
                                       static_cast<uint32_t>(p.factor[col] * static_cast<int32_t>(counts[r][col])));
    }
    binary_corrections(p, 16, args.padded ? args.padded[r] : 0, [&](const int32_t* correction) {
      for (size_t col = 0; col < 16; ++col) {
        sums[col] = static_cast<int32_t>(static_cast<uint32_t>(sums[col]) - static_cast<uint32_t>(correction[col]));
      }
    });
    requantize_row256(sums, args.cols, p.multiplier, p.shift, args,
                      args.out + static_cast<size_t>(r) * args.out_stride);
  }
}

void tile(const TileArgs& args) { args.rows == 1 ? tile_rows<1>(args) : tile_rows<2>(args); }

}  // namespace

const Variant conv_binary_2x16c8_avx2 = {
    "conv_binary_2x16c8_avx2", DEPLOY_FAMILY_BINARY, kAvx2, 2, 16, 8, true,
    binary_pixel_bytes, binary_prepare, binary_panel_bytes<16>, binary_pack<16>, binary_refuse, tile};

}  // namespace deploy
