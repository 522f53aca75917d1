#include <string.h>

#include "tile/panel.h"

namespace deploy {
namespace {

/// Sums of 16 times a 4-bit product stay below 2^31 up to this depth (16 * 8 * 255 * depth).
constexpr size_t kMaxDepth4 = 65536;

bool column_is_used(const GroupWeights& group, size_t first, size_t cols, size_t at) {
  const size_t depth = group.taps * group.channels;
  for (size_t col = first; col < first + cols; ++col) {
    if (group.weights[col * depth + at] != 0) return true;
  }
  return false;
}

/// Calls `use(tap, channel)` for each window, left to right: one begins at the first channel that no window covers yet,
/// which takes the fewest windows wherever the zeros lie.  The last may begin earlier, so that it ends with the pixel.
template <typename Use>
void for_each_window(const GroupWeights& group, size_t first, size_t cols, Use use) {
  for (size_t tap = 0; tap < group.taps; ++tap) {
    for (size_t channel = 0; channel < group.channels;) {
      if (!column_is_used(group, first, cols, tap * group.channels + channel)) {
        ++channel;
        continue;
      }
      use(tap, channel);
      channel += 4;
    }
  }
}

size_t columns(const GroupWeights& group, size_t first, size_t nr) {
  return group.out_c - first < nr ? group.out_c - first : nr;
}

}  // namespace

size_t tile_pixel_bytes(size_t channels) { return channels < 4 ? 4 : channels; }

void tile_prepare_signed(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t, const int8_t*,
                         uint8_t* prepared) {
  for (; count > 0; --count, pixels += stride, prepared += tile_pixel_bytes(channels)) {
    memcpy(prepared, pixels, channels);
    if (channels < 4) memset(prepared + channels, 0, 4 - channels);
  }
}

void tile_prepare_unsigned(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t, const int8_t*,
                           uint8_t* prepared) {
  for (; count > 0; --count, pixels += stride, prepared += tile_pixel_bytes(channels)) {
    for (size_t c = 0; c < channels; ++c) prepared[c] = static_cast<uint8_t>(pixels[c]) ^ 0x80;
    if (channels < 4) memset(prepared + channels, 0, 4 - channels);
  }
}

template <size_t Nr, int Bits>
void tile_panel_bytes(const GroupWeights& group, size_t* sizes) {
  for (size_t first = 0; first < group.out_c; first += Nr) {
    size_t count = 0;
    for_each_window(group, first, columns(group, first, Nr), [&](size_t, size_t) { ++count; });
    *sizes++ = 64 + tile_align(3 * Nr * sizeof(int32_t)) + tile_align(count * sizeof(int32_t)) +
               tile_align(count * Nr * 4 * Bits / 8);
  }
}

template <size_t Nr, int Bits, int32_t LhsBias>
void tile_pack(const GroupWeights& group, size_t first, uint8_t* panel) {
  const size_t cols = columns(group, first, Nr), depth = group.taps * group.channels;
  const DeployRequantization& q = group.requantization;
  int32_t count = 0;
  for_each_window(group, first, cols, [&](size_t, size_t) { ++count; });
  memset(panel, 0, 64 + tile_align(3 * Nr * sizeof(int32_t)) + tile_align(static_cast<size_t>(count) * 4));
  memcpy(panel, &count, sizeof count);
  const TilePanel p = tile_panel(panel, Nr);
  int32_t* const bias = const_cast<int32_t*>(p.bias);
  int32_t* offset = const_cast<int32_t*>(p.offset);
  uint8_t* weights = const_cast<uint8_t*>(p.weights);
  memset(weights, 0, tile_align(static_cast<size_t>(count) * Nr * 4 * Bits / 8));
  for (size_t col = 0; col < cols; ++col) {
    uint32_t sum = 0;  // Sums wrap like the accumulator they are folded into.
    for (size_t at = 0; at < depth; ++at) {
      sum += static_cast<uint32_t>(static_cast<int32_t>(group.weights[(first + col) * depth + at]));
    }
    const uint32_t given = q.bias ? static_cast<uint32_t>(q.bias[first + col]) : 0;
    bias[col] = static_cast<int32_t>(given - sum * static_cast<uint32_t>(q.input_zero_point + LhsBias));
    const_cast<int32_t*>(p.multiplier)[col] = q.multiplier[first + col];
    const_cast<int32_t*>(p.shift)[col] = q.shift[first + col];
  }
  for_each_window(group, first, cols, [&](size_t tap, size_t channel) {
    // What a window that was moved back covers a second time stays zero here.
    const size_t begin = channel + 4 <= group.channels ? channel : group.channels < 4 ? 0 : group.channels - 4;
    *offset++ = group.tap_offset[tap] + static_cast<int32_t>(begin);
    for (size_t col = 0; col < cols; ++col) {
      for (size_t c = channel; c < channel + 4 && c < group.channels; ++c) {
        const uint8_t weight = static_cast<uint8_t>(group.weights[(first + col) * depth + tap * group.channels + c]);
        const size_t at = col * 4 + c - begin;
        if (Bits == 8) {
          weights[at] = weight;
        } else {
          weights[at % (Nr * 2)] |= static_cast<uint8_t>((weight & 15) << (at < Nr * 2 ? 0 : 4));
        }
      }
    }
    weights += Nr * 4 * Bits / 8;
  });
}

template <int Bits>
const char* tile_refuse(const GroupWeights& group) {
  const size_t depth = group.taps * group.channels;
  if (Bits == 4 && depth > kMaxDepth4) return "more than 65536 weights per output channel";
  for (size_t i = 0; i < group.out_c * depth; ++i) {
    if (Bits == 4 && (group.weights[i] < -8 || group.weights[i] > 7)) return "a weight does not fit 4 bits";
    if (Bits == 8 && group.weights[i] == -128) return "a weight of -128";
  }
  return nullptr;
}

template void tile_panel_bytes<32, 8>(const GroupWeights&, size_t*);
template void tile_panel_bytes<32, 4>(const GroupWeights&, size_t*);
template void tile_panel_bytes<16, 8>(const GroupWeights&, size_t*);
template void tile_panel_bytes<16, 4>(const GroupWeights&, size_t*);
template void tile_panel_bytes<8, 8>(const GroupWeights&, size_t*);
template void tile_panel_bytes<8, 4>(const GroupWeights&, size_t*);
template void tile_pack<32, 8, 128>(const GroupWeights&, size_t, uint8_t*);
template void tile_pack<32, 4, 128>(const GroupWeights&, size_t, uint8_t*);
template void tile_pack<32, 8, 0>(const GroupWeights&, size_t, uint8_t*);
template void tile_pack<32, 4, 0>(const GroupWeights&, size_t, uint8_t*);
template void tile_pack<16, 8, 0>(const GroupWeights&, size_t, uint8_t*);
template void tile_pack<16, 4, 0>(const GroupWeights&, size_t, uint8_t*);
template void tile_pack<8, 8, 0>(const GroupWeights&, size_t, uint8_t*);
template void tile_pack<8, 4, 0>(const GroupWeights&, size_t, uint8_t*);
template const char* tile_refuse<8>(const GroupWeights&);
template const char* tile_refuse<4>(const GroupWeights&);

}  // namespace deploy
