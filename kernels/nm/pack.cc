#include <string.h>

#include "nm/panel.h"

namespace deploy {
namespace {

size_t columns_from(const GroupWeights& group, size_t first) {
  return group.out_c - first < kNmColumns ? group.out_c - first : kNmColumns;
}

/// Calls `use(tap, channel, groups)` for each window of which some column keeps a weight.
template <typename Use>
void for_each_window(const GroupWeights& group, size_t first, Use use) {
  const size_t depth = group.taps * group.channels, columns = columns_from(group, first);
  for (size_t tap = 0; tap < group.taps; ++tap) {
    for (size_t begin = 0; begin < group.channels; begin += kNmWindow) {
      const size_t end = begin + kNmWindow < group.channels ? begin + kNmWindow : group.channels;
      size_t most = 0;
      for (size_t column = 0; column < columns; ++column) {
        const int8_t* const weights = group.weights + (first + column) * depth + tap * group.channels;
        size_t kept = 0;
        for (size_t c = begin; c < end; ++c) kept += weights[c] != 0;
        if (kept > most) most = kept;
      }
      if (most > 0) use(tap, begin, (most + 3) / 4);
    }
  }
}

size_t steps_of(const GroupWeights& group, size_t first) {
  size_t groups = 0;
  for_each_window(group, first, [&](size_t, size_t, size_t more) { groups += more; });
  return (groups + 1) / 2;
}

}  // namespace

void nm_panel_bytes(const GroupWeights& group, size_t* sizes) {
  for (size_t first = 0; first < group.out_c; first += kNmColumns) {
    const size_t steps = steps_of(group, first);
    *sizes++ = nm_weights_at(steps) + steps * kNmStepBytes;
  }
}

void nm_pack(const GroupWeights& group, size_t first, uint8_t* panel) {
  const size_t steps = steps_of(group, first), depth = group.taps * group.channels;
  const DeployRequantization& r = group.requantization;
  memset(panel, 0, nm_weights_at(steps) + steps * kNmStepBytes);
  reinterpret_cast<int32_t*>(panel)[0] = static_cast<int32_t>(steps);
  const NmPanel p = nm_panel(panel);
  int32_t* const offset = const_cast<int32_t*>(p.offset);
  uint8_t* const weights = const_cast<uint8_t*>(p.weights);
  size_t at = 0;  // groups so far
  for_each_window(group, first, [&](size_t tap, size_t begin, size_t groups) {
    const size_t end = begin + kNmWindow < group.channels ? begin + kNmWindow : group.channels;
    for (size_t i = 0; i < groups; ++i) offset[at + i] = group.tap_offset[tap] + static_cast<int32_t>(begin);
    for (size_t column = 0; column < columns_from(group, first); ++column) {
      const int8_t* const from = group.weights + (first + column) * depth + tap * group.channels;
      size_t kept = 0;
      for (size_t c = begin; c < end; ++c) {
        if (from[c] == 0) continue;
        const size_t to = at + kept / 4, byte = column * 4 + kept % 4;
        uint8_t* const step = weights + to / 2 * kNmStepBytes;
        step[byte] |= static_cast<uint8_t>((c - begin) << (to % 2 * 4));
        step[(1 + to % 2) * kNmGroupBytes + byte] = static_cast<uint8_t>(from[c]);
        ++kept;
      }
    }
    at += groups;
  });
  if (at % 2) offset[at] = offset[at - 1];  // multiplied by zeros
  for (size_t column = 0; column < columns_from(group, first); ++column) {
    uint32_t sum = 0;
    for (size_t k = 0; k < depth; ++k) {
      sum += static_cast<uint32_t>(static_cast<int32_t>(group.weights[(first + column) * depth + k]));
    }
    const uint32_t given = r.bias ? static_cast<uint32_t>(r.bias[first + column]) : 0;
    const_cast<int32_t*>(p.bias)[column] =
        static_cast<int32_t>(given - sum * static_cast<uint32_t>(r.input_zero_point + 128));
    const_cast<int32_t*>(p.multiplier)[column] = r.multiplier[first + column];
    const_cast<int32_t*>(p.shift)[column] = r.shift[first + column];
  }
}

}  // namespace deploy
