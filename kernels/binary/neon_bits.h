/// Binary layers on Arm: EOR, CNT and ADD on 128 bits, sums of bytes that stay in registers.
///
/// The arithmetic is panel.h's; the panel is not.  A prepared pixel has one bit per channel, bit c % 8 of byte c / 8;
/// bytes, not words, so that the taps of a kernel's row fill whole vectors also where channels are few.  With w = m (2
/// b - 1) and a = low + (high - low) x,
///   sum((a - zero_point) w) = sum((low - zero_point) w) + (high - low) m (sum(b) - popcount(x ^ b)):
/// a constant less a factor times what the loop counts.  The image's padding has bits of 0, which count as `low`;
/// where a tap lies in it, what that tap then adds, (low - zero_point) sum(w), is taken away again.
///
/// The taps of each row are gathered into a buffer, once for all columns of a panel: bits are few, and gathered taps
/// fill whole vectors where channels do not.
///
/// Panel: int32 segments, bytes of each, taps, all_narrowing();
///   int32 bias[nr], multiplier[nr], left[nr], right[nr], factor[nr], padding[taps][nr];
///   int32 offset[segments], filled up to 16 bytes;
///   for each 4 columns: for every 16 gathered bytes 4 vectors, column by column, filled up with 0.
#ifndef DEPLOY_KERNELS_BINARY_NEON_BITS_H_
#define DEPLOY_KERNELS_BINARY_NEON_BITS_H_

#include "binary/panel.h"
#include "common/neon_core.h"
#include "common/neon_dense.h"
#if defined(__aarch64__) && defined(__clang__)
#include "binary/neon_bits_in_order.h"
#endif

namespace deploy {
namespace neon {
namespace {  // A copy for each file: files differ in their instruction sets.

inline size_t bit_pixel_bytes(size_t channels) { return (channels + 7) / 8; }

/// 16 comparisons to 16 bits.
inline uint16x4_t pack_masks(uint8x16_t mask) {
  const uint8x8_t weights = vcreate_u8(0x8040201008040201u);
  const uint8x8_t low = vand_u8(vget_low_u8(mask), weights), high = vand_u8(vget_high_u8(mask), weights);
  uint8x8_t sum = vpadd_u8(low, high);
  sum = vpadd_u8(sum, sum);
  return vreinterpret_u16_u8(vpadd_u8(sum, sum));
}

inline void prepare_bits(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t,
                         const int8_t* threshold, uint8_t* prepared) {
  const size_t bytes = bit_pixel_bytes(channels);
  for (size_t i = 0; i < count; ++i, pixels += stride, prepared += bytes) {
    size_t c = 0;
    uint8_t* to = prepared;
#if defined(__aarch64__)
    const uint8x16_t weights = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    for (; c + 128 <= channels; c += 128, to += 16) {
      uint8x16_t part[8];
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const uint8x16_t set = vcgeq_s8(vld1q_s8(pixels + c + 16 * j), vld1q_s8(threshold + c + 16 * j));
        part[j] = vandq_u8(set, weights);
      }
      const uint8x16_t low = vpaddq_u8(vpaddq_u8(part[0], part[1]), vpaddq_u8(part[2], part[3]));
      const uint8x16_t high = vpaddq_u8(vpaddq_u8(part[4], part[5]), vpaddq_u8(part[6], part[7]));
      vst1q_u8(to, vpaddq_u8(low, high));
    }
    for (; c + 64 <= channels; c += 64, to += 8) {
      uint8x16_t part[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const uint8x16_t set = vcgeq_s8(vld1q_s8(pixels + c + 16 * j), vld1q_s8(threshold + c + 16 * j));
        part[j] = vandq_u8(set, weights);
      }
      const uint8x16_t pairs = vpaddq_u8(vpaddq_u8(part[0], part[1]), vpaddq_u8(part[2], part[3]));
      vst1_u8(to, vget_low_u8(vpaddq_u8(pairs, pairs)));
    }
#endif
    for (; c + 16 <= channels; c += 16, to += 2) {
      const uint16x4_t bits = pack_masks(vcgeq_s8(vld1q_s8(pixels + c), vld1q_s8(threshold + c)));
      const uint16_t two = vget_lane_u16(bits, 0);
      memcpy(to, &two, 2);
    }
    for (; c < channels; c += 8) {
      uint32_t byte = 0;
      for (size_t bit = 0; bit < 8 && c + bit < channels; ++bit) {
        byte |= static_cast<uint32_t>(pixels[c + bit] >= threshold[c + bit]) << bit;
      }
      *to++ = static_cast<uint8_t>(byte);
    }
  }
}

/// Sums of the bytes of four vectors, one per lane.
inline uint32x4_t sum_bytes(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
#if defined(__aarch64__)
  const uint16x8_t ab = vpaddq_u16(vpaddlq_u8(a), vpaddlq_u8(b)), cd = vpaddq_u16(vpaddlq_u8(c), vpaddlq_u8(d));
  return vpaddlq_u16(vpaddq_u16(ab, cd));
#else
  return vreinterpretq_u32_s32(
      sum_each(vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(a))), vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(b))),
               vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(c))), vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(d)))));
#endif
}

/// The same where every four bytes add up to less than 256.
inline uint32x4_t sum_few(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
#if defined(__aarch64__)
  return vpaddlq_u16(vpaddlq_u8(vpaddq_u8(vpaddq_u8(a, b), vpaddq_u8(c, d))));
#else
  return sum_bytes(a, b, c, d);
#endif
}

/// Counts differing bits of kRows rows and 4 columns.  Rows are gathered 16 bytes of each, then the next 16 of each.
template <size_t kMax>
struct BitCore {
  static constexpr size_t kMaxRows = kMax;
  static constexpr size_t kColumns = 4;
  static constexpr size_t kSteps = 31;     ///< steps of at most 8 that fit a byte.
  static constexpr size_t kFewSteps = 7;   ///< steps of which four bytes together fit one.
  static constexpr size_t kStepBytes = 16 * kMax;

  /// counts[row * stride + column] = bits in which 16 * steps > 0 bytes of a row differ from the column's.
  template <size_t kRows>
  static __attribute__((always_inline)) inline void run(const uint8_t* rows, size_t steps, const int8_t* weights,
                                                        uint32_t* counts, size_t stride) {
    uint8x16_t sum[kRows][4];
    if (steps <= kFewSteps) {
      add_steps<kRows>(rows, steps, weights, sum);
      flush_few<kRows>(sum, counts, stride);
      return;
    }
    for (bool add = false; steps > 0; add = true) {
      const size_t now = steps < kSteps ? steps : kSteps;
      steps -= now;
      add_steps<kRows>(rows, now, weights, sum);
      flush<kRows>(sum, counts, stride, add);
    }
  }

 private:
  /// sum[r][c] = differing bits in each of 16 bytes of `steps` > 0 steps; rows and weights move on.
  template <size_t kRows>
  static void add_steps(const uint8_t*& rows, size_t steps, const int8_t*& weights, uint8x16_t (&sum)[kRows][4]) {
    add_differences<kRows, true>(rows, weights, sum);
    if (--steps == 0) return;
#if defined(__aarch64__) && defined(__clang__)
    if constexpr (kRows == 4) {
      count_in_order(rows, steps, weights, sum);
      return;
    }
#endif
#pragma GCC unroll 1
    for (; steps > 0; --steps) add_differences<kRows, false>(rows, weights, sum);
  }

  /// One step.  The `kFirst` ones are the sum, the others are added to it.
  template <size_t kRows, bool kFirst>
  static void add_differences(const uint8_t*& rows, const int8_t*& weights, uint8x16_t (&sum)[kRows][4]) {
    uint8x16_t a[kRows];
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) a[r] = vld1q_u8(rows + 16 * r);
    advance(rows, kStepBytes);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const uint8x16_t w = vreinterpretq_u8_s8(vld1q_s8(weights + 16 * c));
#pragma GCC unroll 8
      for (size_t r = 0; r < kRows; ++r) {
        const uint8x16_t differing = vcntq_u8(veorq_u8(a[r], w));
        sum[r][c] = kFirst ? differing : vaddq_u8(sum[r][c], differing);
      }
    }
    advance(weights, 64);
  }

  template <size_t kRows>
  static void flush_few(const uint8x16_t (&sum)[kRows][4], uint32_t* counts, size_t stride) {
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      vst1q_u32(counts + r * stride, sum_few(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
    }
  }

  template <size_t kRows>
  static void flush(const uint8x16_t (&sum)[kRows][4], uint32_t* counts, size_t stride, bool add) {
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const uint32x4_t total = sum_bytes(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
      uint32_t* to = counts + r * stride;
      vst1q_u32(to, add ? vaddq_u32(total, vld1q_u32(to)) : total);
    }
  }
};

/// `count` rows and `columns` columns, whose weights follow each other.
template <typename Core, size_t kRows = Core::kMaxRows>
inline void count_rows(const uint8_t* rows, size_t count, size_t columns, size_t steps, const int8_t* weights,
                       uint32_t* counts, size_t stride) {
  if (count == kRows) {
    for (size_t column = 0; column < columns; column += Core::kColumns, weights += steps * 16 * Core::kColumns) {
      Core::template run<kRows>(rows, steps, weights, counts + column, stride);
    }
  } else if constexpr (kRows > 1) {
    count_rows<Core, kRows - 1>(rows, count, columns, steps, weights, counts, stride);
  }
}

template <typename Core, size_t kNr>
struct Binary {
  static constexpr size_t kHeaderWords = 4 + 5 * kNr;
  static constexpr size_t kMaxDepth = 16384;             ///< bits of a row that are gathered on the stack.
  static constexpr size_t kRowBytes = kMaxDepth / 8 + 64;  ///< with what is copied too far.

  /// How the taps of a panel fall into segments.
  struct Plan {
    size_t taps, segments, bytes;  ///< taps and bytes of one segment.
    explicit Plan(const GroupWeights& group)
        : taps(taps_side_by_side(group, bit_pixel_bytes(group.channels))),
          segments(group.taps / taps),
          bytes(taps * bit_pixel_bytes(group.channels)) {}
    size_t offset_words() const { return (segments + 3) / 4 * 4; }
    size_t block_bytes() const { return steps_of(segments * bytes) * 16 * Core::kColumns; }
  };

  static size_t columns_from(const GroupWeights& group, size_t first) {
    return group.out_c - first < kNr ? group.out_c - first : kNr;
  }

  static void panel_bytes(const GroupWeights& group, size_t* sizes) {
    const Plan plan(group);
    for (size_t first = 0; first < group.out_c; first += kNr) {
      const size_t blocks = (columns_from(group, first) + Core::kColumns - 1) / Core::kColumns;
      const size_t words = kHeaderWords + group.taps * kNr + plan.offset_words();
      *sizes++ = (4 * words + blocks * plan.block_bytes() + 63) / 64 * 64;
    }
  }

  static const char* refuse(const GroupWeights& group) {
    if (group.taps * bit_pixel_bytes(group.channels) > kMaxDepth / 8) return "more than 16384 bits per output channel";
    return binary_refuse(group);
  }

  static void pack(const GroupWeights& group, size_t first, uint8_t* panel) {
    const Plan plan(group);
    int32_t* words = reinterpret_cast<int32_t*>(panel);
    words[0] = static_cast<int32_t>(plan.segments);
    words[1] = static_cast<int32_t>(plan.bytes);
    words[2] = static_cast<int32_t>(group.taps);
    pack_columns(group, first, kNr, words + 4);
    words[3] = all_narrowing(words + 4, kNr, columns_from(group, first));
    int32_t* factor = words + 4 + 4 * kNr;
    int32_t* padding = words + kHeaderWords;
    for (size_t i = 0; i < kNr * (1 + group.taps); ++i) factor[i] = 0;
    const size_t columns = columns_from(group, first), depth = group.taps * group.channels;
    for (size_t column = 0; column < columns; ++column) {
      const int8_t* weights = group.weights + (first + column) * depth;
      const int32_t magnitude = weights[0] < 0 ? -weights[0] : weights[0];
      factor[column] = (group.high - group.low) * magnitude;
      uint32_t sum = 0, positive = 0;
      for (size_t tap = 0; tap < group.taps; ++tap) {
        int32_t of_tap = 0;
        for (size_t c = 0; c < group.channels; ++c) {
          of_tap += weights[tap * group.channels + c];
          positive += weights[tap * group.channels + c] > 0;
        }
        sum += static_cast<uint32_t>(of_tap);
        padding[tap * kNr + column] = (group.low - group.requantization.input_zero_point) * of_tap;
      }
      // pack_columns() has put bias - zero_point * sum.
      words[4 + column] = static_cast<int32_t>(static_cast<uint32_t>(words[4 + column]) +
                                               static_cast<uint32_t>(group.low) * sum +
                                               static_cast<uint32_t>(factor[column]) * positive);
    }
    int32_t* offsets = padding + group.taps * kNr;
    for (size_t i = 0; i < plan.offset_words(); ++i) {
      offsets[i] = i < plan.segments ? group.tap_offset[i * plan.taps] : 0;
    }
    uint8_t* to = reinterpret_cast<uint8_t*>(offsets + plan.offset_words());
    for (size_t column = 0; column < columns; column += Core::kColumns, to += plan.block_bytes()) {
      pack_bits(group, plan, first + column, to);
    }
  }

  static void tile(const TileArgs& args) {
    const int32_t* words = reinterpret_cast<const int32_t*>(args.panel);
    const size_t segments = static_cast<size_t>(words[0]), bytes = static_cast<size_t>(words[1]);
    const size_t taps = static_cast<size_t>(words[2]), steps = steps_of(segments * bytes);
    const int32_t* factor = words + 4 + 4 * kNr;
    const int32_t* padding = words + kHeaderWords;
    const int32_t* offsets = padding + taps * kNr;
    const int8_t* weights = reinterpret_cast<const int8_t*>(offsets + (segments + 3) / 4 * 4);
    alignas(16) uint8_t gathered[Core::kMaxRows * kRowBytes];
    if (args.rows == Core::kMaxRows) {
      gather<Core::kMaxRows>(args.pixels, offsets, segments, bytes, steps, gathered);
    } else {
      for (size_t row = 0; row < args.rows; ++row) {
        gather<1>(args.pixels + row, offsets, segments, bytes, steps, gathered + 16 * row);
      }
    }
    uint32_t counts[Core::kMaxRows * kNr];
    count_rows<Core>(gathered, args.rows, args.cols, steps, weights, counts, kNr);
    const int32_t* bias[Core::kMaxRows];
    int32_t less[Core::kMaxRows][kNr];
    for (size_t row = 0; row < args.rows; ++row) {
      bias[row] = words + 4;
      uint64_t outside = args.padded ? args.padded[row] : 0;
      if (row > 0 && outside != 0 && outside == args.padded[row - 1]) {
        bias[row] = bias[row - 1];
        continue;
      }
      for (; outside != 0; outside &= outside - 1) {
        const int32_t* of_tap = padding + static_cast<size_t>(__builtin_ctzll(outside)) * kNr;
        for (size_t column = 0; column < args.cols; column += 16) {
#pragma GCC unroll 4
          for (size_t i = column; i < column + 16; i += 4) {
            vst1q_s32(less[row] + i, vsubq_s32(vld1q_s32(bias[row] + i), vld1q_s32(of_tap + i)));
          }
        }
        bias[row] = less[row];
      }
    }
    // bias - factor * counts; every row has its own bias, which holds what its padding takes away.
    store_sums(words + 4, kNr, words[3] != 0, args, [&](size_t column) {
      const int32x4x2_t factors = {{vld1q_s32(factor + column), vld1q_s32(factor + column + 4)}};
      return [&, factors, column](size_t row, size_t i) {
        const int32x4_t count = vreinterpretq_s32_u32(vld1q_u32(counts + row * kNr + column + 4 * i));
        return vmlsq_s32(vld1q_s32(bias[row] + column + 4 * i), count, factors.val[i]);
      };
    });
  }

 private:
  /// The taps of kRows rows, 16 bytes a step, steps kStepBytes apart; behind them zeros.
  template <size_t kRows>
  static void gather(const uint8_t* const* pixels, const int32_t* offsets, size_t segments, size_t bytes, size_t steps,
                     uint8_t* to) {
    const uint8_t* from[kRows];
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r) from[r] = pixels[r];
    if (bytes % 16 == 0) {
      for (; segments > 0; --segments) {
        const ptrdiff_t offset = *offsets++;
        for (ptrdiff_t i = offset, end = offset + static_cast<ptrdiff_t>(bytes); i < end; i += 16) {
#pragma GCC unroll 4
          for (size_t r = 0; r < kRows; ++r) vst1q_u8(to + 16 * r, vld1q_u8(from[r] + i));
          to += Core::kStepBytes;
        }
      }
      return;
    }
    // Each segment is copied a bit too far.
    alignas(16) uint8_t lines[kRows][kRowBytes];
    size_t end = 0;
    for (; segments > 0; --segments, end += bytes) {
      const ptrdiff_t offset = *offsets++;
      for (size_t i = 0; i < bytes; i += 32) {
#pragma GCC unroll 4
        for (size_t r = 0; r < kRows; ++r) {
          const uint8_t* const at = from[r] + offset + i;
          const uint8x16_t first = vld1q_u8(at), second = vld1q_u8(at + 16);
          vst1q_u8(lines[r] + end + i, first);
          vst1q_u8(lines[r] + end + i + 16, second);
        }
      }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r) vst1q_u8(lines[r] + end, vdupq_n_u8(0));
    for (size_t at = 0; at < 16 * steps; at += 16, to += Core::kStepBytes) {
#pragma GCC unroll 4
      for (size_t r = 0; r < kRows; ++r) vst1q_u8(to + 16 * r, vld1q_u8(lines[r] + at));
    }
  }

  static void pack_bits(const GroupWeights& group, const Plan& plan, size_t first, uint8_t* to) {
    const size_t pixel = bit_pixel_bytes(group.channels);
    memset(to, 0, plan.block_bytes());
    for (size_t column = 0; column < Core::kColumns && first + column < group.out_c; ++column) {
      const int8_t* weights = group.weights + (first + column) * group.taps * group.channels;
      for (size_t tap = 0; tap < group.taps; ++tap) {
        for (size_t c = 0; c < group.channels; ++c) {
          const size_t byte = tap * pixel + c / 8;
          const size_t vector = byte / 16 * Core::kColumns + column;
          const uint32_t bit = weights[tap * group.channels + c] > 0;
          to[vector * 16 + byte % 16] |= static_cast<uint8_t>(bit << (c % 8));
        }
      }
    }
  }
};

/// The variant that a core makes.
template <typename Core, size_t kNr>
constexpr Variant binary_variant(const char* name) {
  using Kernels = Binary<Core, kNr>;
  return {name, DEPLOY_FAMILY_BINARY, kNeon, Core::kMaxRows, kNr, 16, false, bit_pixel_bytes, prepare_bits,
          Kernels::panel_bytes, Kernels::pack, Kernels::refuse, Kernels::tile};
}

}  // namespace
}  // namespace neon
}  // namespace deploy
#endif  // DEPLOY_KERNELS_BINARY_NEON_BITS_H_
