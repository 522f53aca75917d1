/// Inner loops for cores with SMMLA: 2 rows x 2 columns x 8 depth positions in one instruction.
#ifndef DEPLOY_KERNELS_COMMON_NEON_CORE_MMLA_H_
#define DEPLOY_KERNELS_COMMON_NEON_CORE_MMLA_H_

#include "common/neon_core_dot.h"

namespace deploy {
namespace neon {
namespace {  // A copy for each file: files differ in their instruction sets.

/// 8 x 8 outputs: 16 accumulators of 2 x 2.  An odd last row is paired with itself.
template <typename Weights>
struct MmlaCore {
  static constexpr size_t kMaxRows = 8;
  static constexpr size_t kColumns = 8;
  static constexpr size_t kLaneDepth = 8;
  static constexpr size_t kPlanes = Weights::kPlanes;

  template <size_t kRows, size_t kStep>
  static void run(const uint8_t* const* pixels, const Segments& segments, const int8_t* weights, int32_t* acc,
                  size_t acc_stride, bool add) {
    constexpr size_t kPairs = (kRows + 1) / 2;
    const int8x16_t mask = pinned(vdupq_n_s8(Weights::kMask));
    int32x4_t sum[kPairs][4];
#pragma GCC unroll 4
    for (size_t pair = 0; pair < kPairs; ++pair) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) sum[pair][c] = vdupq_n_s32(0);
    }
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
#pragma GCC unroll 2
          for (size_t i = 0; i < 4 && first + i < kRows; i += 2) {
            const int8x16_t upper = a[i], lower = first + i + 1 < kRows ? a[i + 1] : upper;
            const int8x16_t first8 = vcombine_s8(vget_low_s8(upper), vget_low_s8(lower));
            const int8x16_t last8 = vcombine_s8(vget_high_s8(upper), vget_high_s8(lower));
            int32x4_t(&total)[4] = sum[(first + i) / 2];
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) total[c] = vmmlaq_s32(total[c], first8, w[c]);
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) total[c] = vmmlaq_s32(total[c], last8, w[4 + c]);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (size_t pair = 0; pair < kPairs; ++pair) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int32x4_t a = sum[pair][2 * half], b = sum[pair][2 * half + 1];
        int32_t* const to = acc + 2 * pair * acc_stride + 4 * half;
        finish<Weights>(vcombine_s32(vget_low_s32(a), vget_low_s32(b)), to, add);
        if (2 * pair + 1 < kRows) {
          finish<Weights>(vcombine_s32(vget_high_s32(a), vget_high_s32(b)), to + acc_stride, add);
        }
      }
    }
  }
};

}  // namespace
}  // namespace neon
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_NEON_CORE_MMLA_H_
