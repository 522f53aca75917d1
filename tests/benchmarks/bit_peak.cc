// What one core counts at most: xor, vpopcntq and vpaddq on registers, as in the binary micro-kernel.
#include <immintrin.h>
#include <stdint.h>

/// Executes `rounds` x 24 steps of 512 bits; the result only keeps the compiler from dropping them.
extern "C" __attribute__((visibility("default"))) int64_t count_bits(int64_t rounds, int64_t seed) {
  __m512i count[24];
  __m512i weights[4];
  for (int i = 0; i < 4; ++i) weights[i] = _mm512_set1_epi64(seed * (i + 3));
#pragma clang loop unroll(full)
  for (int i = 0; i < 24; ++i) count[i] = _mm512_setzero_si512();
  __m512i bits = _mm512_set1_epi64(seed);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma clang loop unroll(full)
    for (int i = 0; i < 24; ++i) {
      __asm__ volatile("" : "+v"(bits));  // or what is the same in every round would be computed once
      count[i] = _mm512_add_epi64(count[i], _mm512_popcnt_epi64(_mm512_xor_si512(bits, weights[i & 3])));
    }
  }
  __m512i sum = count[0];
  for (int i = 1; i < 24; ++i) sum = _mm512_add_epi64(sum, count[i]);
  return _mm512_reduce_add_epi64(sum);
}
