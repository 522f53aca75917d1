/// Packed panels of the Arm variants, and the way from their accumulators back to int8.
///
/// Taps that lie side by side in the image (a kernel's row, at dilation 1) are one *segment* of bytes, rounded up to
/// 16; all segments of a layer are equally long.  A panel of a dense layer holds
///   int32 segments, steps of 16 in each, all_narrowing(), 0
///   int32 bias[nr] (zero point folded in), multiplier[nr], left shift[nr], right shift[nr] as a number <= 0
///   int32 offset[segments], filled up to 16 bytes
///   for each block of columns that a core computes: its weights, a sequence of 16-byte vectors.
/// One vector holds 16 / lane_depth output channels with lane_depth consecutive depth positions each: 16 for the
/// multiply-and-add-pairwise kernels, 4 for SDOT, 8 for SMMLA.  Of weights below 8 bits, 2 or 4 such vectors share 16
/// bytes ("planes"): vector p lies in bits [p * 8 / planes, (p + 1) * 8 / planes) of each byte, so that shifts restore
/// it.
#ifndef DEPLOY_KERNELS_COMMON_NEON_PANEL_H_
#define DEPLOY_KERNELS_COMMON_NEON_PANEL_H_

#include <arm_neon.h>
#include <string.h>

#include "common/variant.h"

namespace deploy {
namespace neon {
namespace {  // A copy for each file: files differ in their instruction sets.

/// Bytes that a core may read behind weights and gathered rows.
constexpr size_t kReadAhead = 64;

/// How the weights of a block of columns lie; constants of a core.
struct BlockLayout {
  size_t columns;
  size_t lane_depth;  ///< 16, 8 or 4.
  size_t planes;      ///< 1, 2 or 4 for 8, 4 and 2 bits.

  size_t weight_bytes(size_t steps) const { return steps * 16 * columns / planes; }
};

/// What a core sums over: from each row's point of reference, `count` runs of 16 * steps bytes.
struct Segments {
  const int32_t* offset;
  size_t count;
  size_t steps;
};

/// Depth in steps of 16, the depth step of every core.
inline size_t steps_of(size_t depth) { return (depth + 15) / 16; }

/// Moves a pointer on, in a register of its own: compilers rather keep a base and an index.
template <typename Byte>
inline void advance(const Byte*& at, size_t bytes) {
  at += bytes;
  __asm__("" : "+r"(at));
}

/// Four vectors that follow each other, on aarch64 by one instruction; moves behind them.
inline void load4(const int8_t*& from, int8x16_t* vectors) {
#if defined(__aarch64__)
  const int8x16x4_t four = vld1q_s8_x4(from);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) vectors[i] = four.val[i];
#else
  for (int i = 0; i < 4; ++i) vectors[i] = vld1q_s8(from + 16 * i);
#endif
  advance(from, 64);
}

inline int32_t at_or(const int32_t* values, size_t index, int32_t otherwise) {
  return values ? values[index] : otherwise;
}

/// Writes the four arrays of the panel that begins at channel `first`.  Unused columns
/// get zeros.
///
/// sum(w * (a - zero_point)) + bias = sum(w * a) + (bias - zero_point * sum(w)), modulo 2^32.
inline void pack_columns(const GroupWeights& group, size_t first, size_t nr, int32_t* header) {
  const size_t depth = group.taps * group.channels;
  const DeployRequantization& requantization = group.requantization;
  for (size_t column = 0; column < nr; ++column) {
    const size_t channel = first + column;
    const bool used = channel < group.out_c;
    uint32_t bias = 0;
    int32_t multiplier = 0, shift = 0;
    if (used) {
      uint32_t sum = 0;
      for (size_t k = 0; k < depth; ++k) sum += static_cast<uint32_t>(group.weights[channel * depth + k]);
      bias = static_cast<uint32_t>(at_or(requantization.bias, channel, 0)) -
             static_cast<uint32_t>(requantization.input_zero_point) * sum;
      multiplier = requantization.multiplier[channel];
      shift = requantization.shift[channel];
    }
    header[column] = static_cast<int32_t>(bias);
    header[nr + column] = multiplier;
    header[2 * nr + column] = shift > 0 ? shift : 0;
    header[3 * nr + column] = shift < 0 ? shift : 0;
  }
}

/// Writes the weight vectors of one block for `depth` positions, rounded up to 16 with zeros.  `weight(channel, k)`
/// gives one weight.
template <typename Weight>
inline void pack_vectors(const BlockLayout& layout, size_t out_c, size_t first, size_t depth, const Weight& weight,
                         uint8_t* out) {
  const size_t columns_of_vector = 16 / layout.lane_depth;
  const size_t vectors_of_depth = layout.columns / columns_of_vector;
  const size_t bits = 8 / layout.planes;
  const size_t count = steps_of(depth) * layout.columns;
  memset(out, 0, count / layout.planes * 16);
  for (size_t vector = 0; vector < count; ++vector) {
    for (size_t byte = 0; byte < 16; ++byte) {
      const size_t channel = first + vector % vectors_of_depth * columns_of_vector + byte / layout.lane_depth;
      const size_t k = vector / vectors_of_depth * layout.lane_depth + byte % layout.lane_depth;
      if (channel >= out_c || k >= depth) continue;
      const uint32_t value = static_cast<uint8_t>(weight(channel, k)) & ((1u << bits) - 1);
      out[vector / layout.planes * 16 + byte] |= static_cast<uint8_t>(value << (bits * (vector % layout.planes)));
    }
  }
}

/// Null where all weights lie in [low, high], else `reason`.
inline const char* refuse_outside(const GroupWeights& group, int low, int high, const char* reason) {
  for (size_t i = 0; i < group.out_c * group.taps * group.channels; ++i) {
    if (group.weights[i] < low || group.weights[i] > high) return reason;
  }
  return nullptr;
}

/// Two products of 128 * 128 do not fit the 16-bit sums, so -128 is no weight here; nor is it in TFLite's schema.
inline const char* refuse_w8(const GroupWeights& group) {
  return refuse_outside(group, -127, 127, "a weight of -128 is not symmetric int8");
}
inline const char* refuse_w4(const GroupWeights& group) {
  return refuse_outside(group, -8, 7, "a weight lies outside [-8, 7]");
}
inline const char* refuse_w2(const GroupWeights& group) {
  return refuse_outside(group, -2, 1, "a weight lies outside [-2, 1]");
}

/// What refuses a family's weights.
constexpr auto refuse_of(DeployFamily family) -> const char* (*)(const GroupWeights&) {
  switch (family) {
    case DEPLOY_FAMILY_W2: return refuse_w2;
    case DEPLOY_FAMILY_W4:
    case DEPLOY_FAMILY_TILE4: return refuse_w4;
    default: return refuse_w8;
  }
}

/// kTwiceNarrowing: kTwice where every right shift is below 0, and so every left shift 0.
enum Rounding { kTwice, kOnce, kTwiceNarrowing };

/// acc * multiplier * 2^(left + right - 31), rounded as common/requantize.h does.
///
/// Twice: SQRDMULH is the first rounding exactly.  The second divides by a power of two and rounds halves away from
/// zero, SRSHL rounds them up: where the shift is not 0, negative values are made smaller by one before.  That cannot
/// overflow, since |multiplier| < 2^31 keeps SQRDMULH's result above -2^31.
/// Once: floor((a m + 2^(30+e)) / 2^(31+e)) = floor((floor(a m / 2^31) + 2^(e-1)) / 2^e), SQDMULH and SRSHL; where the
/// shift is 0, SQRDMULH.
template <Rounding kRounding>
inline int32x4_t scale(int32x4_t acc, int32x4_t multiplier, int32x4_t left, int32x4_t right) {
  if (kRounding == kTwiceNarrowing) {
    const int32x4_t product = vqrdmulhq_s32(acc, multiplier);
    return vrshlq_s32(vsraq_n_s32(product, product, 31), right);
  }
  if (kRounding == kTwice) {
    const int32x4_t product = vqrdmulhq_s32(vshlq_s32(acc, left), multiplier);
    return vrshlq_s32(vsraq_n_s32(product, vandq_s32(product, right), 31), right);
  }
  const int32x4_t shifted = vqshlq_s32(acc, left);
  const uint32x4_t divided = vcltq_s32(right, vdupq_n_s32(0));
  return vrshlq_s32(vbslq_s32(divided, vqdmulhq_s32(shifted, multiplier), vqrdmulhq_s32(shifted, multiplier)), right);
}

/// What int8 values are clamped to.
struct Clamp {
  int8x16_t min, max;
  explicit Clamp(const TileArgs& args)
      : min(vdupq_n_s8(static_cast<int8_t>(args.clamp_min))), max(vdupq_n_s8(static_cast<int8_t>(args.clamp_max))) {}

  int8x8_t narrow(int16x8_t sum) const {
    return vmin_s8(vmax_s8(vqmovn_s16(sum), vget_low_s8(min)), vget_low_s8(max));
  }
  int8x16_t narrow(int16x8_t first, int16x8_t second) const {
    return vminq_s8(vmaxq_s8(vcombine_s8(vqmovn_s16(first), vqmovn_s16(second)), min), max);
  }
};

/// Writes 8 columns of `rows` rows, or the first `width` of 8: `value(row)` gives their int16x8_t before clamping.  Two
/// rows at a time share the clamping.
template <typename Value>
inline void store_column8(size_t rows, size_t width, const Clamp& clamp, int8_t* to, size_t stride,
                          const Value& value) {
  if (width < 8) {
    for (size_t row = 0; row < rows; ++row, to += stride) {
      int8_t some[8];
      vst1_s8(some, clamp.narrow(value(row)));
      for (size_t i = 0; i < width; ++i) to[i] = some[i];
    }
    return;
  }
  for (size_t row = 0, pairs = rows / 2; pairs > 0; --pairs, row += 2) {
    const int8x16_t bytes = clamp.narrow(value(row), value(row + 1));
    vst1_s8(to, vget_low_s8(bytes));
    vst1_s8(to + stride, vget_high_s8(bytes));
    to += 2 * stride;
  }
  if (rows % 2 != 0) vst1_s8(to, clamp.narrow(value(rows - 1)));
}

template <Rounding kRounding, typename Columns>
inline void store_sums_rounded(const int32_t* header, size_t nr, const TileArgs& args, const Columns& columns) {
  const int16x8_t zero_point = vdupq_n_s16(static_cast<int16_t>(args.output_zero_point));
  const Clamp clamp(args);
  const size_t rows = args.rows, cols = args.cols, stride = args.out_stride;  // the stores below might change args
  int8_t* to = args.out;
  for (size_t column = 0; column < cols; column += 8, to += 8) {
    const int32_t* at = header + column;
    const int32x4_t multiplier[2] = {vld1q_s32(at + nr), vld1q_s32(at + nr + 4)};
    const int32x4_t left[2] = {vld1q_s32(at + 2 * nr), vld1q_s32(at + 2 * nr + 4)};
    const int32x4_t right[2] = {vld1q_s32(at + 3 * nr), vld1q_s32(at + 3 * nr + 4)};
    const auto sum = columns(column);
    store_column8(rows, cols - column, clamp, to, stride, [&](size_t row) {
      int32x4_t value[2];
#pragma GCC unroll 2
      for (size_t i = 0; i < 2; ++i) value[i] = scale<kRounding>(sum(row, i), multiplier[i], left[i], right[i]);
      return vqaddq_s16(vcombine_s16(vqmovn_s32(value[0]), vqmovn_s32(value[1])), zero_point);
    });
  }
}

/// Whether every used column of a panel is made smaller, which saves the left shift and the question whether to round.
inline bool all_narrowing(const int32_t* header, size_t nr, size_t cols) {
  bool all = true;
  for (size_t column = 0; column < cols; ++column) all &= header[3 * nr + column] < 0;
  return all;
}

/// Brings args.rows x args.cols sums to int8 in args.out.  `columns(column)`, for every eighth column, gives a function
/// that gives a row's sums of columns column + 4 i to column + 4 i + 3 as int32x4_t: `sum(row, i)`.
/// `narrowing` as all_narrowing() found it when the panel was packed.
template <typename Columns>
inline void store_sums(const int32_t* header, size_t nr, bool narrowing, const TileArgs& args, const Columns& columns) {
  if (args.single_rounding) {
    store_sums_rounded<kOnce>(header, nr, args, columns);
  } else if (narrowing) {
    store_sums_rounded<kTwiceNarrowing>(header, nr, args, columns);
  } else {
    store_sums_rounded<kTwice>(header, nr, args, columns);
  }
}

/// The same for accumulators, rows acc_stride apart, a multiple of 8; the header's bias is not yet added.
inline void store_rows(const int32_t* acc, size_t acc_stride, const int32_t* header, size_t nr, bool narrowing,
                       const TileArgs& args) {
  store_sums(header, nr, narrowing, args, [=](size_t column) {
    const int32x4x2_t bias = {{vld1q_s32(header + column), vld1q_s32(header + column + 4)}};
    const int32_t* const from = acc + column;
    return [=](size_t row, size_t i) { return vaddq_s32(vld1q_s32(from + row * acc_stride + 4 * i), bias.val[i]); };
  });
}

}  // namespace
}  // namespace neon
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_NEON_PANEL_H_
