#include <stdlib.h>
#include <string.h>

#include "block/panel.h"

namespace deploy {
namespace {

/// The columns of one panel, seen as blocks of `windows` windows.
struct View {
  const GroupWeights& group;
  size_t first, cols, windows;

  size_t blocks_per_tap() const { return (group.channels + 4 * windows - 1) / (4 * windows); }

  /// Weight `c` of a block, 0 beyond the last channel.
  int8_t weight(size_t col, size_t tap, size_t block, size_t c) const {
    const size_t channel = block * windows * 4 + c;
    if (channel >= group.channels) return 0;
    return group.weights[((first + col) * group.taps + tap) * group.channels + channel];
  }

  bool used(size_t col, size_t tap, size_t block) const {
    for (size_t c = 0; c < 4 * windows; ++c) {
      if (weight(col, tap, block, c) != 0) return true;
    }
    return false;
  }

  bool used_by_any(size_t tap, size_t block) const {
    for (size_t col = 0; col < cols; ++col) {
      if (used(col, tap, block)) return true;
    }
    return false;
  }

  size_t count() const {
    size_t blocks = 0;
    for (size_t col = 0; col < cols; ++col) {
      for (size_t tap = 0; tap < group.taps; ++tap) {
        for (size_t block = 0; block < blocks_per_tap(); ++block) blocks += used(col, tap, block);
      }
    }
    return blocks;
  }

  /// Numbers the windows of all used blocks, by what comes first: `use(tap, block, number of its first window)`, and
  /// `span(offset)` where a span begins.
  template <typename Use, typename Span>
  void number(Use use, Span span) const {
    int64_t begin = 0, spans = 0;
    for (size_t tap = 0; tap < group.taps; ++tap) {
      for (size_t block = 0; block < blocks_per_tap(); ++block) {
        if (!used_by_any(tap, block)) continue;
        for (size_t w = 0; w < windows; ++w) {
          // Only differences of offsets matter, but for those that are written.
          const int64_t at = (group.tap_offset ? group.tap_offset[tap] : static_cast<int64_t>(tap) << 32) +
                             static_cast<int64_t>((block * windows + w) * 4);
          const int64_t step = at - begin;
          if (spans == 0 || step < 0 || step >= 64 || step % 4 != 0) {
            begin = at;
            ++spans;
            span(static_cast<int32_t>(at));
          }
          if (w == 0) use(tap, block, static_cast<uint16_t>(16 * (spans - 1) + (at - begin) / 4));
        }
      }
    }
  }
};

size_t columns_of(const GroupWeights& group, size_t first) {
  return group.out_c - first < kBlockColumns ? group.out_c - first : kBlockColumns;
}

size_t rounded(size_t cols) { return (cols + 31) / 32 * 32; }

/// A window number and 4 weights take 6 bytes, a window number and 16 weights 18.
size_t windows_per_block(const GroupWeights& group, size_t first) {
  const size_t cols = columns_of(group, first);
  return View{group, first, cols, 4}.count() * 18 <= View{group, first, cols, 1}.count() * 6 ? 4 : 1;
}

size_t span_count(const View& view) {
  size_t spans = 0;
  view.number([](size_t, size_t, uint16_t) {}, [&](int32_t) { ++spans; });
  return spans;
}

}  // namespace

void block_panel_bytes(const GroupWeights& group, size_t* sizes) {
  for (size_t first = 0; first < group.out_c; first += kBlockColumns) {
    const size_t cols = columns_of(group, first), windows = windows_per_block(group, first);
    const View view{group, first, cols, windows};
    *sizes++ = block_panel_size(rounded(cols), span_count(view), windows, view.count());
  }
}

void block_pack(const GroupWeights& group, size_t first, uint8_t* panel) {
  const size_t cols = columns_of(group, first), windows = windows_per_block(group, first);
  const View view{group, first, cols, windows};
  const size_t spans = span_count(view), blocks = view.count(), per_tap = view.blocks_per_tap();
  const DeployRequantization& q = group.requantization;
  memset(panel, 0, block_panel_size(rounded(cols), spans, windows, blocks));
  const int32_t head[4] = {static_cast<int32_t>(rounded(cols)), static_cast<int32_t>(spans),
                           static_cast<int32_t>(windows), static_cast<int32_t>(blocks)};
  memcpy(panel, head, sizeof head);
  const BlockPanel p = block_panel(panel);
  int32_t* const begin = const_cast<int32_t*>(p.begin);
  uint16_t* const window = const_cast<uint16_t*>(p.window);
  int8_t* const weights = const_cast<int8_t*>(p.weights);
  // Columns are written one after the other, windows are numbered tap by tap: count first, then fill in.
  int32_t written = 0;
  for (size_t col = 0; col <= rounded(cols); ++col) {
    begin[col] = written;
    if (col >= cols) continue;
    for (size_t tap = 0; tap < group.taps; ++tap) {
      for (size_t block = 0; block < per_tap; ++block) written += view.used(col, tap, block);
    }
  }
  size_t span = 0;
  int32_t taken[kBlockColumns] = {};
  view.number(
      [&](size_t tap, size_t block, uint16_t number) {
        for (size_t col = 0; col < cols; ++col) {
          if (!view.used(col, tap, block)) continue;
          const size_t at = static_cast<size_t>(begin[col] + taken[col]++);
          window[at] = number;
          for (size_t c = 0; c < 4 * windows; ++c) weights[at * 4 * windows + c] = view.weight(col, tap, block, c);
        }
      },
      [&](int32_t offset) { const_cast<int32_t*>(p.offset)[span++] = offset; });
  for (size_t col = 0; col < cols; ++col) {
    uint32_t sum = 0;  // Sums wrap like the accumulator they are folded into.
    const int8_t* const of = group.weights + (first + col) * group.taps * group.channels;
    for (size_t i = 0; i < group.taps * group.channels; ++i) sum += static_cast<uint32_t>(static_cast<int32_t>(of[i]));
    const uint32_t given = q.bias ? static_cast<uint32_t>(q.bias[first + col]) : 0;
    const_cast<int32_t*>(p.bias)[col] =
        static_cast<int32_t>(given - sum * static_cast<uint32_t>(q.input_zero_point + 128));
    const_cast<int32_t*>(p.multiplier)[col] = q.multiplier[first + col];
    const_cast<int32_t*>(p.shift)[col] = q.shift[first + col];
  }
}

const char* block_refuse(const GroupWeights& group) {
  // The worst layout begins a span with every tap.
  if (group.taps * ((group.channels + 63) / 64) > kBlockMaxSpans) {
    return "more than 8192 weights per output channel, each tap rounded up to 64";
  }
  return nullptr;
}

}  // namespace deploy
