// What one core multiplies at most: vpdpbusd on registers alone, 24 sums as in the dense micro-kernel.
#include <immintrin.h>
#include <stdint.h>

/// Executes `rounds` x 24 instructions of 64 products; the result only keeps the compiler from dropping them.
extern "C" __attribute__((visibility("default"))) int64_t multiply(int64_t rounds, int64_t seed) {
  __m512i sum[24];
#pragma clang loop unroll(full)
  for (int i = 0; i < 24; ++i) sum[i] = _mm512_setzero_si512();
  const __m512i pixels = _mm512_set1_epi64(seed), weights = _mm512_set1_epi64(3 * seed);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma clang loop unroll(full)
    for (int i = 0; i < 24; ++i) sum[i] = _mm512_dpbusd_epi32(sum[i], pixels, weights);
#pragma clang loop unroll(full)
    for (int i = 0; i < 24; ++i) __asm__ volatile("" : "+v"(sum[i]));
  }
  for (int i = 1; i < 24; ++i) sum[0] = _mm512_add_epi32(sum[0], sum[i]);
  return _mm512_reduce_add_epi32(sum[0]);
}
