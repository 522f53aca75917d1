/// The packed panel of a tile-pruned layer, the same for every instruction set.
///
/// A *window* is 4 consecutive input channels of one tap where some column of the panel has a weight that is not zero.
/// A panel is, each part rounded up to 64 bytes:
///   int32 count                     windows kept
///   int32 bias[nr], multiplier[nr], shift[nr]   (three parts in one)
///   int32 offset[count]             bytes from a row's point of reference to the window
///   weights[count]                  int8: [nr][4] bytes; 4 bits: 2 nr bytes, byte i of the first nr/2 columns in the
///                                   low nibble, of the others in the high nibble, two's complement
/// Bias holds the layer's bias, less what the input's zero point (and the lhs bias, 128 where the micro-kernel wants
/// unsigned activations) adds to the sum over the windows.
#ifndef DEPLOY_KERNELS_TILE_PANEL_H_
#define DEPLOY_KERNELS_TILE_PANEL_H_

#include <stddef.h>
#include <stdint.h>

#include "common/variant.h"

namespace deploy {

struct TilePanel {
  int32_t count;
  const int32_t *bias, *multiplier, *shift, *offset;
  const uint8_t* weights;
};

static inline size_t tile_align(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

/// Reads a panel of nr columns.
static inline TilePanel tile_panel(const uint8_t* panel, size_t nr) {
  TilePanel p;
  const int32_t* words = reinterpret_cast<const int32_t*>(panel);
  p.count = words[0];
  p.bias = words + 16;
  p.multiplier = p.bias + nr;
  p.shift = p.multiplier + nr;
  p.offset = words + 16 + tile_align(3 * nr * sizeof(int32_t)) / sizeof(int32_t);
  p.weights = reinterpret_cast<const uint8_t*>(p.offset) + tile_align(static_cast<size_t>(p.count) * sizeof(int32_t));
  return p;
}

/// Bytes of a prepared pixel: its channels as they are (signed) or plus 128 (unsigned); never less than one window.
size_t tile_pixel_bytes(size_t channels);
void tile_prepare_signed(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t zero_point,
                         const int8_t* threshold, uint8_t* prepared);
void tile_prepare_unsigned(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t zero_point,
                           const int8_t* threshold, uint8_t* prepared);

/// Packing for `Nr` columns, which divides 32, of weights of `Bits` (8 or 4) bits; `LhsBias` is 0 or 128.
template <size_t Nr, int Bits>
void tile_panel_bytes(const GroupWeights& group, size_t* sizes);
template <size_t Nr, int Bits, int32_t LhsBias>
void tile_pack(const GroupWeights& group, size_t first, uint8_t* panel);
template <int Bits>
const char* tile_refuse(const GroupWeights& group);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_TILE_PANEL_H_
