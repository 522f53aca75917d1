#include <string.h>

#include "binary/panel.h"

namespace deploy {
namespace {

/// 255 * 127 times this many weights stays below 2^31.
constexpr size_t kMaxDepth = 65536;

size_t words_per_tap(const GroupWeights& group) { return (group.channels + 63) / 64; }

size_t panel_size(const GroupWeights& group, size_t nr) {
  const size_t words = group.taps * words_per_tap(group);
  return 64 + binary_align(4 * nr * 4) + binary_align(group.taps * nr * 4) + binary_align(words * 4) + words * nr * 8;
}

int32_t absolute(int32_t value) { return value < 0 ? -value : value; }

}  // namespace

size_t binary_pixel_bytes(size_t channels) { return (channels + 63) / 64 * 8; }

void binary_prepare(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t,
                    const int8_t* threshold, uint8_t* prepared) {
  for (; count > 0; --count, pixels += stride) {
    for (size_t begin = 0; begin < channels; begin += 64, prepared += 8) {
      const size_t end = channels - begin < 64 ? channels : begin + 64;
      uint64_t word = 0;
      for (size_t c = begin; c < end; ++c) {
        word |= static_cast<uint64_t>(pixels[c] >= threshold[c]) << (c - begin);
      }
      memcpy(prepared, &word, sizeof word);
    }
  }
}

template <size_t Nr>
void binary_panel_bytes(const GroupWeights& group, size_t* sizes) {
  for (size_t first = 0; first < group.out_c; first += Nr) *sizes++ = binary_align(panel_size(group, Nr));
}

template <size_t Nr>
void binary_pack(const GroupWeights& group, size_t first, uint8_t* panel) {
  const size_t cols = group.out_c - first < Nr ? group.out_c - first : Nr;
  const size_t per_tap = words_per_tap(group), depth = group.taps * group.channels;
  const DeployRequantization& q = group.requantization;
  memset(panel, 0, binary_align(panel_size(group, Nr)));
  const int32_t head[2] = {static_cast<int32_t>(group.taps * per_tap), static_cast<int32_t>(group.taps)};
  memcpy(panel, head, sizeof head);
  const BinaryPanel p = binary_panel(panel, Nr);
  int32_t* const offset = const_cast<int32_t*>(p.offset);
  uint64_t* const words = const_cast<uint64_t*>(p.weights);
  for (size_t tap = 0; tap < group.taps; ++tap) {
    for (size_t word = 0; word < per_tap; ++word) {
      offset[tap * per_tap + word] = group.tap_offset[tap] + static_cast<int32_t>(word * 8);
    }
  }
  for (size_t col = 0; col < cols; ++col) {
    const int8_t* const weights = group.weights + (first + col) * depth;
    const int32_t magnitude = absolute(weights[0]), span = group.high - group.low;
    const int32_t low = group.low - q.input_zero_point;
    int32_t sum = 0, ones = 0;
    for (size_t tap = 0; tap < group.taps; ++tap) {
      int32_t tap_sum = 0;
      for (size_t c = 0; c < group.channels; ++c) {
        const int32_t weight = weights[tap * group.channels + c];
        tap_sum += weight;
        if (weight <= 0) continue;
        ++ones;
        words[(tap * per_tap + c / 64) * Nr + col] |= uint64_t{1} << (c % 64);
      }
      sum += tap_sum;
      const_cast<int32_t*>(p.correction)[tap * Nr + col] = low * tap_sum;
    }
    // Each term stays below 2^31; their sum may wrap, as the accumulator does.
    const uint32_t bias = q.bias ? static_cast<uint32_t>(q.bias[first + col]) : 0;
    const_cast<int32_t*>(p.base)[col] = static_cast<int32_t>(bias + static_cast<uint32_t>(low * sum) +
                                                             static_cast<uint32_t>(span * magnitude * ones));
    const_cast<int32_t*>(p.factor)[col] = span * magnitude;
    const_cast<int32_t*>(p.multiplier)[col] = q.multiplier[first + col];
    const_cast<int32_t*>(p.shift)[col] = q.shift[first + col];
  }
}

const char* binary_refuse(const GroupWeights& group) {
  const size_t depth = group.taps * group.channels;
  if (group.taps > 64) return "more than 64 taps";
  if (depth > kMaxDepth) return "more than 65536 weights per output channel";
  for (size_t o = 0; o < group.out_c; ++o) {
    const int8_t* const weights = group.weights + o * depth;
    for (size_t i = 0; i < depth; ++i) {
      if (weights[i] == -128 || absolute(weights[i]) != absolute(weights[0])) {
        return "the weights of an output channel are not +w and -w";
      }
    }
  }
  return nullptr;
}

template void binary_panel_bytes<32>(const GroupWeights&, size_t*);
template void binary_panel_bytes<16>(const GroupWeights&, size_t*);
template void binary_panel_bytes<8>(const GroupWeights&, size_t*);
template void binary_panel_bytes<4>(const GroupWeights&, size_t*);
template void binary_pack<32>(const GroupWeights&, size_t, uint8_t*);
template void binary_pack<16>(const GroupWeights&, size_t, uint8_t*);
template void binary_pack<8>(const GroupWeights&, size_t, uint8_t*);
template void binary_pack<4>(const GroupWeights&, size_t, uint8_t*);

}  // namespace deploy
