#include "common/dense_panel.h"

#include <string.h>

namespace deploy {
namespace {

/// The runs of taps that lie side by side.
struct Segments {
  size_t count, taps;  ///< of each
};

/// Without tap offsets (none are known yet) nothing is merged.
Segments segments_of(const GroupWeights& group) {
  const int64_t pixel = static_cast<int64_t>(dense_pixel_bytes(group.channels));
  size_t run = 1;
  while (run < group.taps && group.tap_offset[run] - group.tap_offset[run - 1] == pixel) ++run;
  if (group.taps % run != 0) return {group.taps, 1};
  for (size_t tap = 0; tap < group.taps; ++tap) {
    const bool inside = tap % run != 0;
    if (inside && group.tap_offset[tap] - group.tap_offset[tap - 1] != pixel) return {group.taps, 1};
  }
  return {group.taps / run, run};
}

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

size_t steps_of(const DenseOrder& order, const GroupWeights& group, const Segments& segments) {
  return round_up((segments.taps * group.channels + order.kr - 1) / order.kr, order.steps_per_block);
}

}  // namespace

void dense_panel_bytes(const DenseOrder& order, const GroupWeights& group, size_t* sizes) {
  const Segments segments = segments_of(group);
  const size_t values = segments.count * steps_of(order, group, segments) * order.nr * order.kr;
  const size_t bytes = dense_weights_at(order.nr, segments.count) + dense_align(values * static_cast<size_t>(order.bits) / 8);
  const size_t panels = (group.out_c + order.nr - 1) / order.nr;
  for (size_t panel = 0; panel < panels; ++panel) sizes[panel] = bytes;
}

void dense_pack(const DenseOrder& order, const GroupWeights& group, size_t first, uint8_t* panel) {
  const Segments segments = segments_of(group);
  const size_t steps = steps_of(order, group, segments), length = segments.taps * group.channels;
  const size_t depth = group.taps * group.channels;
  const DeployRequantization& r = group.requantization;
  int32_t* const bias = reinterpret_cast<int32_t*>(panel);
  int32_t* const multiplier = bias + order.nr;
  int8_t* const shift = reinterpret_cast<int8_t*>(multiplier + order.nr);
  int32_t* const sizes = reinterpret_cast<int32_t*>(shift + order.nr);
  sizes[0] = static_cast<int32_t>(segments.count);
  sizes[1] = static_cast<int32_t>(steps);
  for (size_t s = 0; s < segments.count; ++s) sizes[2 + s] = group.tap_offset[s * segments.taps];

  uint8_t* const weights = panel + dense_weights_at(order.nr, segments.count);
  const size_t planes = 8 / static_cast<size_t>(order.bits);
  const size_t block = order.steps_per_block * order.nr * order.kr, run = block / planes;
  const unsigned mask = (1u << order.bits) - 1;
  for (size_t column = 0; column < order.nr && first + column < group.out_c; ++column) {
    const int8_t* const from = group.weights + (first + column) * depth;
    uint32_t sum = 0;  // wraps as the accumulator would
    for (size_t s = 0; s < segments.count; ++s) {
      for (size_t k = 0; k < length; ++k) {
        const int8_t weight = from[s * length + k];
        sum += static_cast<uint32_t>(static_cast<int32_t>(weight));
        const size_t step = s * steps + k / order.kr;
        const size_t value = (step % order.steps_per_block * order.nr + column) * order.kr + k % order.kr;
        weights[step / order.steps_per_block * run + value % run] |= static_cast<uint8_t>(
            (static_cast<unsigned>(weight) & mask) << (value / run * static_cast<size_t>(order.bits)));
      }
    }
    const uint32_t given = r.bias ? static_cast<uint32_t>(r.bias[first + column]) : 0;
    bias[column] = static_cast<int32_t>(given - sum * static_cast<uint32_t>(r.input_zero_point + order.lhs_bias));
    multiplier[column] = r.multiplier[first + column];
    shift[column] = static_cast<int8_t>(r.shift[first + column]);
  }
}

const char* dense_refuse(const GroupWeights& group, int bits) {
  const int low = -(1 << (bits - 1)), high = (1 << (bits - 1)) - 1;
  for (size_t i = 0; i < group.out_c * group.taps * group.channels; ++i) {
    if (group.weights[i] < low || group.weights[i] > high) {
      return bits == 4 ? "a weight does not fit 4 bits" : "a weight does not fit 2 bits";
    }
  }
  return nullptr;
}

size_t dense_pixel_bytes(size_t channels) { return channels; }

void prepare_unsigned(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t, const int8_t*,
                      uint8_t* prepared) {
  if (stride == channels) {
    channels *= count;
    count = 1;
  }
  for (; count > 0; --count, pixels += stride, prepared += channels) {
    for (size_t c = 0; c < channels; ++c) prepared[c] = static_cast<uint8_t>(pixels[c]) ^ 0x80;
  }
}

}  // namespace deploy
