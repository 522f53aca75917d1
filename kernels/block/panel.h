/// The packed panel of a layer pruned in blocks of one output channel by 4 or 16 input channels.
///
/// A *window* is 4 consecutive input channels of one tap, from a multiple of 4 on; a *block* is 1 or 4 windows in a
/// row, whichever takes fewer bytes for the panel.  Windows that some block uses are grouped into *spans* of 16 that lie
/// side by side in the image; window i of span s has number 16 s + i.
///
/// A panel is, with each part rounded up to 64 bytes and `columns` to 32:
///   int32 columns, spans, windows per block, blocks
///   int32 bias[columns], multiplier[columns], shift[columns]   (three parts in one)
///   int32 begin[columns + 1]        each column's first block
///   int32 offset[spans]             bytes from a row's point of reference to the span
///   uint16 window[blocks]           number of each block's first window
///   int8 weights[blocks][4 or 16]
/// Bias is as in tile/panel.h, for unsigned activations.
#ifndef DEPLOY_KERNELS_BLOCK_PANEL_H_
#define DEPLOY_KERNELS_BLOCK_PANEL_H_

#include <stddef.h>
#include <stdint.h>

#include "common/variant.h"

namespace deploy {

constexpr size_t kBlockColumns = 256;    ///< nr: spans are rearranged once for so many columns.
constexpr size_t kBlockMaxSpans = 128;   ///< so that the spans of 16 rows, 1 KiB each, fit the stack.

struct BlockPanel {
  int32_t columns, spans, windows_per_block, blocks;
  const int32_t *bias, *multiplier, *shift, *begin, *offset;
  const uint16_t* window;
  const int8_t* weights;
};

static inline size_t block_align(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

static inline size_t block_panel_size(size_t columns, size_t spans, size_t windows_per_block, size_t blocks) {
  return 64 + block_align(3 * columns * 4) + block_align((columns + 1) * 4) + block_align(spans * 4) +
         block_align(blocks * 2) + block_align(blocks * windows_per_block * 4);
}

static inline BlockPanel block_panel(const uint8_t* panel) {
  BlockPanel p;
  const int32_t* const head = reinterpret_cast<const int32_t*>(panel);
  p.columns = head[0];
  p.spans = head[1];
  p.windows_per_block = head[2];
  p.blocks = head[3];
  const size_t columns = static_cast<size_t>(p.columns);
  p.bias = head + 16;
  p.multiplier = p.bias + columns;
  p.shift = p.multiplier + columns;
  p.begin = p.bias + block_align(3 * columns * 4) / 4;
  p.offset = p.begin + block_align((columns + 1) * 4) / 4;
  p.window = reinterpret_cast<const uint16_t*>(p.offset + block_align(static_cast<size_t>(p.spans) * 4) / 4);
  p.weights = reinterpret_cast<const int8_t*>(p.window + block_align(static_cast<size_t>(p.blocks) * 2) / 2);
  return p;
}

void block_panel_bytes(const GroupWeights& group, size_t* sizes);
void block_pack(const GroupWeights& group, size_t first, uint8_t* panel);
const char* block_refuse(const GroupWeights& group);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_BLOCK_PANEL_H_
