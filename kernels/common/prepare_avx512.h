/// Pixels as unsigned bytes (value + 128) with AVX-512: prepare_unsigned() of dense_panel.h, 64 bytes at a time.
/// Include it only from files for AVX-512.
#ifndef DEPLOY_KERNELS_COMMON_PREPARE_AVX512_H_
#define DEPLOY_KERNELS_COMMON_PREPARE_AVX512_H_

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace deploy {
namespace {

__attribute__((unused)) void prepare_unsigned512(const int8_t* pixels, size_t count, size_t stride, size_t channels,
                                                 int32_t, const int8_t*, uint8_t* prepared) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  if (stride == channels) {
    channels *= count;
    count = 1;
  }
  const __mmask64 rest = (__mmask64{1} << (channels % 64)) - 1;
  for (; count > 0; --count, pixels += stride, prepared += channels) {
    size_t c = 0;
    for (; c + 64 <= channels; c += 64) {
      _mm512_storeu_si512(prepared + c, _mm512_xor_si512(_mm512_loadu_si512(pixels + c), sign));
    }
    if (rest) {
      const __m512i last = _mm512_maskz_loadu_epi8(rest, pixels + c);
      _mm512_mask_storeu_epi8(prepared + c, rest, _mm512_xor_si512(last, sign));
    }
  }
}

}  // namespace
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_PREPARE_AVX512_H_
