/// Inner loops for cores with SDOT: 4 columns x 4 depth positions in one instruction.
#ifndef DEPLOY_KERNELS_COMMON_NEON_CORE_DOT_H_
#define DEPLOY_KERNELS_COMMON_NEON_CORE_DOT_H_

#include <arm_neon.h>

#include "common/neon_panel.h"

namespace deploy {
namespace neon {
namespace {  // A copy for each file: files differ in their instruction sets.

/// Where kRows rows continue, 16 bytes a step: each at a pointer of its own, or, where a step is longer than 16 bytes,
/// one behind the other in each step.
template <size_t kRows, size_t kStep>
class Rows {
 public:
  Rows(const uint8_t* const* pixels, size_t offset) {
#pragma GCC unroll 8
    for (size_t r = 0; r < kPointers; ++r) at_[r] = reinterpret_cast<const int8_t*>(pixels[r]) + offset;
  }

  /// The next 16 bytes of the rows [first, first + 4), as many as there are; then `first` goes up, and to 0 again.
  void next4(size_t first, int8x16_t (&a)[4]) {
    if (kPointers == 1 && kRows - first >= 4) {
      load4(at_[0], a);
      if (first + 4 == kRows) advance(at_[0], kStep - 16 * kRows);
      return;
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4 && first + i < kRows; ++i) {
      a[i] = vld1q_s8(kPointers == 1 ? at_[0] + 16 * i : at_[first + i]);
      if (kPointers != 1) advance(at_[first + i], kStep);
    }
    if (kPointers == 1) advance(at_[0], kStep - 16 * first);
  }

 private:
  static constexpr size_t kPointers = kStep == 16 ? kRows : 1;
  const int8_t* at_[kPointers];
};

/// The 8 vectors of 8 columns x 16 depth positions: depth group g of 4, columns 0-3 in [2 * g], 4-7 in [2 * g + 1].
/// kScaleBits: the weights are restored 2^kScaleBits times too large, and the sums shifted back.  kMask: their bits.
struct DotWeights8 {
  static constexpr size_t kPlanes = 1;
  static constexpr int kScaleBits = 0;
  static constexpr int8_t kMask = 0;
  static void load(const int8_t*& from, int8x16_t, int8x16_t (&vectors)[8]) {
    load4(from, vectors);
    load4(from, vectors + 4);
  }
};

struct DotWeights4 {
  static constexpr size_t kPlanes = 2;
  static constexpr int kScaleBits = 4;
  static constexpr int8_t kMask = -16;
  static void load(const int8_t*& from, int8x16_t mask, int8x16_t (&vectors)[8]) {
    int8x16_t bytes[4];
    load4(from, bytes);
    for (int i = 0; i < 4; ++i) {
      vectors[2 * i] = vshlq_n_s8(bytes[i], 4);
      vectors[2 * i + 1] = vandq_s8(bytes[i], mask);
    }
  }
};

struct DotWeights2 {
  static constexpr size_t kPlanes = 4;
  static constexpr int kScaleBits = 6;
  static constexpr int8_t kMask = -64;
  static void load(const int8_t*& from, int8x16_t mask, int8x16_t (&vectors)[8]) {
    for (int i = 0; i < 2; ++i) {
      const int8x16_t bytes = vld1q_s8(from + 16 * i);
      vectors[4 * i] = vshlq_n_s8(bytes, 6);
      vectors[4 * i + 1] = vandq_s8(vshlq_n_s8(bytes, 4), mask);
      vectors[4 * i + 2] = vandq_s8(vshlq_n_s8(bytes, 2), mask);
      vectors[4 * i + 3] = vandq_s8(bytes, mask);
    }
    advance(from, 32);
  }
};

/// Brings 4 sums to their own size and adds them to acc, or stores them.
template <typename Weights>
inline void finish(int32x4_t total, int32_t* to, bool add) {
  if constexpr (Weights::kScaleBits > 0) total = vshrq_n_s32(total, Weights::kScaleBits);
  vst1q_s32(to, add ? vaddq_s32(total, vld1q_s32(to)) : total);
}

/// Keeps a constant in its register: compilers rather make it again in each step.
inline int8x16_t pinned(int8x16_t value) {
  __asm__("" : "+w"(value));
  return value;
}

/// 8 x 8 outputs per step: 16 accumulators, 8 registers of activations, the weights pass through.
template <typename Weights>
struct DotCore {
  static constexpr size_t kMaxRows = 8;
  static constexpr size_t kColumns = 8;
  static constexpr size_t kLaneDepth = 4;
  static constexpr size_t kPlanes = Weights::kPlanes;

  template <size_t kRows, size_t kStep>
  static void run(const uint8_t* const* pixels, const Segments& segments, const int8_t* weights, int32_t* acc,
                  size_t acc_stride, bool add) {
    const int8x16_t mask = pinned(vdupq_n_s8(Weights::kMask));
    int32x4_t sum[kRows][2];
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = vdupq_n_s32(0);
    for (size_t segment = 0; segment < segments.count; ++segment) {
      Rows<kRows, kStep> rows(pixels, static_cast<size_t>(segments.offset[segment]));
#pragma GCC unroll 1
      for (size_t steps = segments.steps; steps > 0; --steps) {
        int8x16_t w[8];
        Weights::load(weights, mask, w);
#pragma GCC unroll 2
        for (size_t first = 0; first < kRows; first += 4) {
          int8x16_t a[4];
          rows.next4(first, a);
#pragma GCC unroll 4
          for (size_t i = 0; i < 4 && first + i < kRows; ++i) {
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
              int32x4_t& total = sum[first + i][half];
              total = vdotq_laneq_s32(total, w[half], a[i], 0);
              total = vdotq_laneq_s32(total, w[2 + half], a[i], 1);
              total = vdotq_laneq_s32(total, w[4 + half], a[i], 2);
              total = vdotq_laneq_s32(total, w[6 + half], a[i], 3);
            }
          }
          // Later rows wait, or they take more registers than there are.
#pragma GCC unroll 4
          for (size_t i = 0; i < 4 && first + i < kRows; ++i) {
            __asm__ volatile("" : "+w"(sum[first + i][0]), "+w"(sum[first + i][1])::"memory");
          }
        }
      }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) finish<Weights>(sum[r][half], acc + r * acc_stride + 4 * half, add);
    }
  }
};

}  // namespace
}  // namespace neon
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_NEON_CORE_DOT_H_
