/// Inner loops for cores without dot product: products of 16 depth positions, added up pairwise.
///
/// 8-bit weights: SMULL + SMLAL2 put two products into each 16-bit lane, SADALP adds pairs into 32 bits: 16 MAC in 3
/// instructions.  Two products fit, since |w| <= 127 and |a| <= 128 give at most 32512.
/// Below 8 bits many products fit into 16 bits, so SMLAL + SMLAL2 alone carry the loop: 16 MAC in 2 instructions; sums
/// go to 32 bits after kSteps steps.
#ifndef DEPLOY_KERNELS_COMMON_NEON_CORE_H_
#define DEPLOY_KERNELS_COMMON_NEON_CORE_H_

#include <arm_neon.h>

#include "common/neon_panel.h"
#if defined(__aarch64__) && defined(__clang__)
#include "common/neon_core_in_order.h"
#endif

namespace deploy {
namespace neon {
namespace {  // A copy for each file: files differ in their instruction sets.

inline int16x8_t multiply_low(int8x16_t a, int8x16_t b) { return vmull_s8(vget_low_s8(a), vget_low_s8(b)); }
inline int16x8_t multiply_add_low(int16x8_t sum, int8x16_t a, int8x16_t b) {
  return vmlal_s8(sum, vget_low_s8(a), vget_low_s8(b));
}
inline int16x8_t multiply_add_high(int16x8_t sum, int8x16_t a, int8x16_t b) {
  return vmlal_s8(sum, vget_high_s8(a), vget_high_s8(b));
}

/// One sum per input vector: lane i of the result is the sum of the i-th vector's lanes.
inline int32x4_t sum_each(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
#if defined(__aarch64__)
  return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
#else
  const int32x2_t pair_a = vpadd_s32(vget_low_s32(a), vget_high_s32(a));
  const int32x2_t pair_b = vpadd_s32(vget_low_s32(b), vget_high_s32(b));
  const int32x2_t pair_c = vpadd_s32(vget_low_s32(c), vget_high_s32(c));
  const int32x2_t pair_d = vpadd_s32(vget_low_s32(d), vget_high_s32(d));
  return vcombine_s32(vpadd_s32(pair_a, pair_b), vpadd_s32(pair_c, pair_d));
#endif
}

/// Weights of 4 columns x 16 depth positions, and how many steps of 16 fit 16-bit sums.
struct Weights4 {
  static constexpr size_t kPlanes = 2;
  static constexpr size_t kSteps = 14;  ///< 2 products a step, |w * a| <= 8 * 128: 28 * 1024 < 2^15.
  static void load(const int8_t*& from, int8x16_t (&columns)[4]) {
    for (int pair = 0; pair < 2; ++pair, from += 16) {
      const int8x16_t bytes = vld1q_s8(from);
      columns[2 * pair] = vshrq_n_s8(vshlq_n_s8(bytes, 4), 4);
      columns[2 * pair + 1] = vshrq_n_s8(bytes, 4);
    }
  }
};

struct Weights2 {
  static constexpr size_t kPlanes = 4;
  static constexpr size_t kSteps = 63;  ///< |w * a| <= 2 * 128: 126 * 256 < 2^15.
  static void load(const int8_t*& from, int8x16_t (&columns)[4]) {
    const int8x16_t bytes = vld1q_s8(from);
    columns[0] = vshrq_n_s8(vshlq_n_s8(bytes, 6), 6);
    columns[1] = vshrq_n_s8(vshlq_n_s8(bytes, 4), 6);
    columns[2] = vshrq_n_s8(vshlq_n_s8(bytes, 2), 6);
    columns[3] = vshrq_n_s8(bytes, 6);
    from += 16;
  }
};

/// Adds one row's four sums to acc, or stores them.
inline void finish_row(int32x4_t total, int32_t* to, bool add) {
  vst1q_s32(to, add ? vaddq_s32(total, vld1q_s32(to)) : total);
}

/// 8-bit weights: kRows x 4 sums of 32 bits stay in registers.
template <size_t kMax>
struct Core8 {
  static constexpr size_t kMaxRows = kMax;
  static constexpr size_t kColumns = 4;
  static constexpr size_t kLaneDepth = 16;
  static constexpr size_t kPlanes = 1;

  template <size_t kRows, size_t kStep>
  static void run(const uint8_t* const* pixels, const Segments& segments, const int8_t* weights, int32_t* acc,
                  size_t acc_stride, bool add) {
    int32x4_t sum[kRows][4];
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) sum[r][c] = vdupq_n_s32(0);
    }
    for (size_t segment = 0; segment < segments.count; ++segment) {
      const int8_t* row[kRows];
#pragma GCC unroll 8
      for (size_t r = 0; r < kRows; ++r) {
        row[r] = reinterpret_cast<const int8_t*>(pixels[r]) + segments.offset[segment];
      }
      size_t steps = segments.steps;
#if defined(__aarch64__) && defined(__clang__)
      if constexpr (kRows == 4) {
        if (steps >= 2) core_8bit_in_order<kStep>(row, steps / 2, weights, sum);
        steps %= 2;
      }
#endif
#pragma GCC unroll 1
      for (; steps > 0; --steps) {
        int8x16_t a[kRows];
#pragma GCC unroll 8
        for (size_t r = 0; r < kRows; ++r) {
          a[r] = vld1q_s8(row[r]);
          row[r] += kStep;
        }
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) {
          const int8x16_t w = vld1q_s8(weights);
          weights += 16;
#pragma GCC unroll 8
          for (size_t r = 0; r < kRows; ++r) {
            sum[r][c] = vpadalq_s16(sum[r][c], multiply_add_high(multiply_low(a[r], w), a[r], w));
          }
        }
      }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      finish_row(sum_each(sum[r][0], sum[r][1], sum[r][2], sum[r][3]), acc + r * acc_stride, add);
    }
  }
};

/// 4 and 2 bits: kRows x 4 x 8 sums of 16 bits stay in registers.
template <typename Weights, size_t kMax>
struct CoreSubbyte {
  static constexpr size_t kMaxRows = kMax;
  static constexpr size_t kColumns = 4;
  static constexpr size_t kLaneDepth = 16;
  static constexpr size_t kPlanes = Weights::kPlanes;

  template <size_t kRows, size_t kStep>
  static void run(const uint8_t* const* pixels, const Segments& segments, const int8_t* weights, int32_t* acc,
                  size_t acc_stride, bool add) {
    int16x8_t sum[kRows][4];
    zero<kRows>(sum);
    size_t room = Weights::kSteps;
    for (size_t segment = 0; segment < segments.count; ++segment) {
      const int8_t* row[kRows];
#pragma GCC unroll 8
      for (size_t r = 0; r < kRows; ++r) {
        row[r] = reinterpret_cast<const int8_t*>(pixels[r]) + segments.offset[segment];
      }
      for (size_t left = segments.steps; left > 0;) {
        if (room == 0) {
          flush<kRows>(sum, acc, acc_stride, add);
          zero<kRows>(sum);
          add = true;
          room = Weights::kSteps;
        }
        size_t now = left < room ? left : room;
        left -= now;
        room -= now;
#if defined(__aarch64__) && defined(__clang__)
        if constexpr (kRows == 4 && Weights::kPlanes == 2) {
          if (now >= 2) core_4bit_in_order<kStep>(row, now / 2, weights, sum);
          now %= 2;
        }
#endif
#pragma GCC unroll 1
        for (; now > 0; --now) {
          int8x16_t w[4];
          Weights::load(weights, w);
#pragma GCC unroll 8
          for (size_t r = 0; r < kRows; ++r) {
            const int8x16_t a = vld1q_s8(row[r]);
            row[r] += kStep;
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) sum[r][c] = multiply_add_low(sum[r][c], a, w[c]);
#pragma GCC unroll 4
            for (int c = 0; c < 4; ++c) sum[r][c] = multiply_add_high(sum[r][c], a, w[c]);
          }
        }
      }
    }
    flush<kRows>(sum, acc, acc_stride, add);
  }

 private:
  template <size_t kRows>
  static void zero(int16x8_t (&sum)[kRows][4]) {
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) sum[r][c] = vdupq_n_s16(0);
    }
  }

  template <size_t kRows>
  static void flush(const int16x8_t (&sum)[kRows][4], int32_t* acc, size_t acc_stride, bool add) {
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      finish_row(sum_each(vpaddlq_s16(sum[r][0]), vpaddlq_s16(sum[r][1]), vpaddlq_s16(sum[r][2]),
                          vpaddlq_s16(sum[r][3])), acc + r * acc_stride, add);
    }
  }
};

}  // namespace
}  // namespace neon
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_NEON_CORE_H_
