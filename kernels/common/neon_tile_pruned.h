/// Tile-pruned layers on Arm: groups of 4 input channels of one tap, kept or zero for 32 output channels together.
///
/// The kept groups of each row are gathered into a buffer, once for all 32 columns; then a dense core runs over the
/// buffer.  A gathered group costs about 2 instructions per row, its 128 MACs 10 to 30.
///
/// Panel: int32 count of kept groups, rounded up to 4, all_narrowing(), 0, 0; the four arrays of 32 columns; the
/// groups' offsets from a row's point of reference (int32, filled up with the last one, weights 0); then for each
/// block of the core's columns the weights of the kept groups as in a dense panel (neon_panel.h).
#ifndef DEPLOY_KERNELS_COMMON_NEON_TILE_PRUNED_H_
#define DEPLOY_KERNELS_COMMON_NEON_TILE_PRUNED_H_

#include "common/neon_dense.h"

namespace deploy {
namespace neon {
namespace {  // A copy for each file: files differ in their instruction sets.

constexpr size_t kGroup = 4;  ///< channels that are kept together.

/// Pixels are filled up to whole groups.
inline size_t grouped_pixel_bytes(size_t channels) { return (channels + kGroup - 1) / kGroup * kGroup; }

inline void prepare_grouped(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t,
                            const int8_t*, uint8_t* prepared) {
  const size_t bytes = grouped_pixel_bytes(channels);
  if (bytes == channels && stride == channels) {
    memcpy(prepared, pixels, count * channels);
    return;
  }
  for (size_t i = 0; i < count; ++i, pixels += stride, prepared += bytes) {
    memcpy(prepared, pixels, channels);
    memset(prepared + channels, 0, bytes - channels);
  }
}

template <typename Core>
struct TilePruned {
  static constexpr size_t kNr = 32;
  static constexpr size_t kHeaderWords = 4 + 4 * kNr;
  static constexpr size_t kChunkSteps = 64;  ///< 1 KiB of gathered bytes per row at a time.
  static constexpr size_t kStepBytes = 16 * Core::kMaxRows;  ///< 16 bytes of each row, then the next 16 of each.

  static size_t channels_from(const GroupWeights& group, size_t first) {
    return group.out_c - first < kNr ? group.out_c - first : kNr;
  }

  /// Calls `visit(tap, channel)` for the first channel of each kept group of the panel that begins at `first`.
  template <typename Visit>
  static void each_kept(const GroupWeights& group, size_t first, const Visit& visit) {
    const size_t end = first + channels_from(group, first);
    for (size_t tap = 0; tap < group.taps; ++tap) {
      for (size_t channel = 0; channel < group.channels; channel += kGroup) {
        const size_t length = group.channels - channel < kGroup ? group.channels - channel : kGroup;
        bool kept = false;
        for (size_t out = first; out < end; ++out) {
          const int8_t* four = group.weights + (out * group.taps + tap) * group.channels + channel;
          for (size_t i = 0; i < length; ++i) kept |= four[i] != 0;
        }
        if (kept) visit(tap, channel);
      }
    }
  }

  /// Kept groups, rounded up to whole steps of the core.
  static size_t count_kept(const GroupWeights& group, size_t first) {
    size_t count = 0;
    each_kept(group, first, [&](size_t, size_t) { ++count; });
    return (count + 3) / 4 * 4;
  }

  static size_t weight_bytes(size_t groups) { return layout_of<Core>().weight_bytes(groups / 4); }

  static void panel_bytes(const GroupWeights& group, size_t* sizes) {
    for (size_t first = 0; first < group.out_c; first += kNr) {
      const size_t groups = count_kept(group, first);
      const size_t blocks = (channels_from(group, first) + Core::kColumns - 1) / Core::kColumns;
      const size_t bytes = 4 * (kHeaderWords + groups) + blocks * weight_bytes(groups) + kReadAhead;
      *sizes++ = (bytes + 63) / 64 * 64;
    }
  }

  static void pack(const GroupWeights& group, size_t first, uint8_t* panel) {
    const size_t groups = count_kept(group, first);
    int32_t* words = reinterpret_cast<int32_t*>(panel);
    words[0] = static_cast<int32_t>(groups);
    pack_columns(group, first, kNr, words + 4);
    words[1] = all_narrowing(words + 4, kNr, channels_from(group, first));
    words[2] = words[3] = 0;
    int32_t* offsets = words + kHeaderWords;
    uint8_t* weights = reinterpret_cast<uint8_t*>(offsets + groups);
    size_t at = 0;
    // Until the offsets are final they hold where the group lies in the weights of one output channel.
    each_kept(group, first, [&](size_t tap, size_t channel) {
      offsets[at++] = static_cast<int32_t>(tap * group.channels + channel);
    });
    const size_t kept = at;
    const auto weight = [&](size_t out, size_t k) -> int8_t {
      if (k / kGroup >= kept) return 0;
      const size_t position = static_cast<size_t>(offsets[k / kGroup]);
      if (position % group.channels + k % kGroup >= group.channels) return 0;
      return group.weights[out * group.taps * group.channels + position + k % kGroup];
    };
    for (size_t column = 0; column < channels_from(group, first); column += Core::kColumns) {
      pack_vectors(layout_of<Core>(), group.out_c, first + column, groups * kGroup, weight, weights);
      weights += weight_bytes(groups);
    }
    for (at = 0; at < groups; ++at) {
      if (at >= kept) {
        offsets[at] = offsets[kept - 1];
        continue;
      }
      const size_t position = static_cast<size_t>(offsets[at]);
      offsets[at] = group.tap_offset[position / group.channels] + static_cast<int32_t>(position % group.channels);
    }
  }

  static void tile(const TileArgs& args) {
    const int32_t* words = reinterpret_cast<const int32_t*>(args.panel);
    const size_t groups = static_cast<size_t>(words[0]);
    const int32_t* offsets = words + kHeaderWords;
    const int8_t* weights = reinterpret_cast<const int8_t*>(offsets + groups);
    const size_t block_bytes = weight_bytes(groups);
    int32_t acc[Core::kMaxRows * kNr];
    alignas(16) uint8_t gathered[kChunkSteps * kStepBytes + kReadAhead];
    const uint8_t* lhs[Core::kMaxRows];
    for (size_t row = 0; row < args.rows; ++row) lhs[row] = gathered + 16 * row;
    static constexpr int32_t kNoOffset = 0;
    size_t step = 0;
    const size_t all_steps = groups / 4;
    do {
      const size_t steps = all_steps - step < kChunkSteps ? all_steps - step : kChunkSteps;
      gather_rows(args.pixels, args.rows, offsets + 4 * step, steps, gathered);
      const int8_t* block = weights + layout_of<Core>().weight_bytes(step);
      for (size_t column = 0; column < args.cols; column += Core::kColumns, block += block_bytes) {
        run_rows<Core, kStepBytes>(lhs, args.rows, {&kNoOffset, 1, steps}, block, acc + column, kNr, step > 0);
      }
      step += steps;
    } while (step < all_steps);
    store_rows(acc, kNr, words + 4, kNr, words[1] != 0, args);
  }

 private:
  /// Rows are gathered up to 8 at a time, so that one offset serves them all.
  static void gather_rows(const uint8_t* const* pixels, size_t rows, const int32_t* offsets, size_t steps,
                          uint8_t* to) {
    for (; rows >= 8; rows -= 8, pixels += 8, to += 128) gather<8>(pixels, offsets, steps, to);
    for (; rows >= 4; rows -= 4, pixels += 4, to += 64) gather<4>(pixels, offsets, steps, to);
    for (; rows > 0; --rows, ++pixels, to += 16) gather<1>(pixels, offsets, steps, to);
  }

  template <size_t kRows>
  static void gather(const uint8_t* const* pixels, const int32_t* offsets, size_t steps, uint8_t* to) {
    const uint8_t* from[kRows];
#pragma GCC unroll 8
    for (size_t row = 0; row < kRows; ++row) from[row] = pixels[row];
#pragma GCC unroll 1
    for (; steps > 0; --steps, offsets += 4, to += kStepBytes) {
      const ptrdiff_t a = offsets[0], b = offsets[1], c = offsets[2], d = offsets[3];
#pragma GCC unroll 8
      for (size_t row = 0; row < kRows; ++row) {
        uint32_t four[4];
        memcpy(&four[0], from[row] + a, 4);
        memcpy(&four[1], from[row] + b, 4);
        memcpy(&four[2], from[row] + c, 4);
        memcpy(&four[3], from[row] + d, 4);
        memcpy(to + 16 * row, four, 16);
      }
    }
  }
};

/// The variant that a core makes of a tile-pruned family.
template <typename Core>
constexpr Variant tile_pruned_variant(const char* name, DeployFamily family, Isa isa) {
  using Kernels = TilePruned<Core>;
  return {name, family, isa, Core::kMaxRows, Kernels::kNr, kGroup, false, grouped_pixel_bytes, prepare_grouped,
          Kernels::panel_bytes, Kernels::pack, refuse_of(family), Kernels::tile};
}

}  // namespace
}  // namespace neon
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_NEON_TILE_PRUNED_H_
