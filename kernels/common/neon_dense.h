/// From a core (the inner loops of rows x columns) to the functions of a variant, for dense layers.
#ifndef DEPLOY_KERNELS_COMMON_NEON_DENSE_H_
#define DEPLOY_KERNELS_COMMON_NEON_DENSE_H_

#include "common/neon_panel.h"

namespace deploy {
namespace neon {
namespace {  // A copy for each file: files differ in their instruction sets.

/// Runs the core made for exactly `rows` rows, so that no lane works for a row that is not there.
///
/// A core is a struct with kMaxRows, kColumns, kLaneDepth, kPlanes, and `run<rows, step>(pixels, segments, weights,
/// acc, acc_stride, add)`: acc[row * acc_stride + column] (+)= the sum of a[row][k] * w[column][k] over all segments,
/// where the next 16 bytes of a row lie `step` bytes behind.
template <typename Core, size_t kStep = 16, size_t kRows = Core::kMaxRows>
inline void run_rows(const uint8_t* const* pixels, size_t rows, const Segments& segments, const int8_t* weights,
                     int32_t* acc, size_t acc_stride, bool add) {
  if (rows == kRows) {
    Core::template run<kRows, kStep>(pixels, segments, weights, acc, acc_stride, add);
  } else if constexpr (kRows > 1) {
    run_rows<Core, kStep, kRows - 1>(pixels, rows, segments, weights, acc, acc_stride, add);
  }
}

template <typename Core>
constexpr BlockLayout layout_of() {
  return {Core::kColumns, Core::kLaneDepth, Core::kPlanes};
}

/// Bytes of a pixel that is used as it is.
inline size_t plain_pixel_bytes(size_t channels) { return channels; }

/// How many taps from each segment's first lie side by side, in pixels of `pixel_bytes`.
inline size_t taps_side_by_side(const GroupWeights& group, size_t pixel_bytes) {
  const int32_t pixel = static_cast<int32_t>(pixel_bytes);
  size_t run = 1;
  while (run < group.taps && group.tap_offset[run] - group.tap_offset[run - 1] == pixel) ++run;
  if (group.taps % run != 0) return 1;
  for (size_t tap = 0; tap < group.taps; ++tap) {
    if (group.tap_offset[tap] - group.tap_offset[tap / run * run] != static_cast<int32_t>(tap % run) * pixel) return 1;
  }
  return run;
}

/// A dense layer with panels of kNr columns, computed in blocks of the core's.  pixel_bytes = channels.
template <typename Core, size_t kNr>
struct Dense {
  static constexpr size_t kHeaderWords = 4 + 4 * kNr;

  static size_t offset_words(size_t segments) { return (segments + 3) / 4 * 4; }

  static void panel_bytes(const GroupWeights& group, size_t* sizes) {
    const size_t taps = taps_side_by_side(group, group.channels), segments = group.taps / taps;
    const size_t block = segments * layout_of<Core>().weight_bytes(steps_of(taps * group.channels));
    for (size_t first = 0; first < group.out_c; first += kNr) {
      const size_t columns = group.out_c - first < kNr ? group.out_c - first : kNr;
      const size_t blocks = (columns + Core::kColumns - 1) / Core::kColumns;
      *sizes++ = (4 * (kHeaderWords + offset_words(segments)) + blocks * block + kReadAhead + 63) / 64 * 64;
    }
  }

  static void pack(const GroupWeights& group, size_t first, uint8_t* panel) {
    const size_t taps = taps_side_by_side(group, group.channels), segments = group.taps / taps;
    const size_t length = taps * group.channels;
    int32_t* words = reinterpret_cast<int32_t*>(panel);
    words[0] = static_cast<int32_t>(segments);
    words[1] = static_cast<int32_t>(steps_of(length));
    pack_columns(group, first, kNr, words + 4);
    words[2] = all_narrowing(words + 4, kNr, group.out_c - first < kNr ? group.out_c - first : kNr);
    words[3] = 0;
    int32_t* offsets = words + kHeaderWords;
    for (size_t i = 0; i < offset_words(segments); ++i) offsets[i] = i < segments ? group.tap_offset[i * taps] : 0;
    uint8_t* weights = reinterpret_cast<uint8_t*>(offsets + offset_words(segments));
    for (size_t column = first; column < first + kNr && column < group.out_c; column += Core::kColumns) {
      for (size_t segment = 0; segment < segments; ++segment) {
        const auto weight = [&](size_t channel, size_t k) {
          return group.weights[(channel * segments + segment) * length + k];
        };
        pack_vectors(layout_of<Core>(), group.out_c, column, length, weight, weights);
        weights += layout_of<Core>().weight_bytes(steps_of(length));
      }
    }
  }

  static void tile(const TileArgs& args) {
    const int32_t* words = reinterpret_cast<const int32_t*>(args.panel);
    const size_t count = static_cast<size_t>(words[0]), steps = static_cast<size_t>(words[1]);
    const int32_t* offsets = words + kHeaderWords;
    const int8_t* weights = reinterpret_cast<const int8_t*>(offsets + offset_words(count));
    const size_t block = count * layout_of<Core>().weight_bytes(steps);
    int32_t acc[Core::kMaxRows * kNr];
    for (size_t column = 0; column < args.cols; column += Core::kColumns, weights += block) {
      run_rows<Core>(args.pixels, args.rows, {offsets, count, steps}, weights, acc + column, kNr, false);
    }
    store_rows(acc, kNr, words + 4, kNr, words[2] != 0, args);
  }
};

/// The variant that a core makes of a dense family.
template <typename Core, size_t kNr>
constexpr Variant dense_variant(const char* name, DeployFamily family, Isa isa) {
  using Kernels = Dense<Core, kNr>;
  return {name, family, isa, Core::kMaxRows, kNr, 16, false, plain_pixel_bytes, nullptr,
          Kernels::panel_bytes, Kernels::pack, refuse_of(family), Kernels::tile};
}

}  // namespace
}  // namespace neon
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_NEON_DENSE_H_
