/// The packed panel of a dense layer, the same for w8, w4 and w2 and for every instruction set.
///
/// Taps that lie side by side in the image (a kernel row without dilation) are read as one *segment*; all segments of a
/// layer are equally long.  A segment is walked in steps of kr bytes, the last one rounded up with weights of zero.
/// A panel of nr columns is:
///   int32 bias[nr], multiplier[nr]
///   int8 shift[nr]
///   int32 segments, steps, offset[segments]     steps of each segment; bytes from a row's point of reference to it
///   weights                                     [segments][steps][...], see DenseOrder; begin at a multiple of 64 bytes
/// Bias holds the layer's bias, less what the input's zero point (and 128 where pixels are prepared as unsigned) adds to
/// the sum.
#ifndef DEPLOY_KERNELS_COMMON_DENSE_PANEL_H_
#define DEPLOY_KERNELS_COMMON_DENSE_PANEL_H_

#include <stddef.h>
#include <stdint.h>

#include "common/variant.h"

namespace deploy {

struct DensePanel {
  size_t segments, steps;
  const int32_t *bias, *multiplier, *offset;
  const int8_t* shift;
  const uint8_t* weights;
};

static inline size_t dense_align(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

/// Where the weights of a panel begin; nr is a multiple of 4.
static inline size_t dense_weights_at(size_t nr, size_t segments) {
  return dense_align(nr * (2 * sizeof(int32_t) + sizeof(int8_t)) + (2 + segments) * sizeof(int32_t));
}

/// Reads a panel of nr columns.
static inline DensePanel dense_panel(const uint8_t* panel, size_t nr) {
  DensePanel p;
  p.bias = reinterpret_cast<const int32_t*>(panel);
  p.multiplier = p.bias + nr;
  p.shift = reinterpret_cast<const int8_t*>(p.multiplier + nr);
  const int32_t* const sizes = reinterpret_cast<const int32_t*>(p.shift + nr);
  p.segments = static_cast<size_t>(sizes[0]);
  p.steps = static_cast<size_t>(sizes[1]);
  p.offset = sizes + 2;
  p.weights = panel + dense_weights_at(nr, p.segments);
  return p;
}

/// How a variant wants its weights.  One step is nr columns of kr consecutive weights: [nr][kr].
///
/// 8 bits: one byte each.  Fewer: `planes` = 8 / bits values share a byte, the first plane in the lowest bits, in two's
/// complement.  The values of `steps_per_block` consecutive steps are written one after another and cut into `planes`
/// equal runs; byte i of a block holds the i-th value of every run.  So one register unpacks into one run per plane.
struct DenseOrder {
  size_t nr, kr;
  int bits;
  size_t steps_per_block;  ///< steps of a segment are rounded up to a multiple of it
  int32_t lhs_bias;        ///< 128 where pixels are prepared as unsigned (value + 128), else 0
};

/// Variant::panel_bytes, pack and refuse in terms of an order.  `min`, `max`: the weights that fit.
void dense_panel_bytes(const DenseOrder& order, const GroupWeights& group, size_t* sizes);
void dense_pack(const DenseOrder& order, const GroupWeights& group, size_t first, uint8_t* panel);
const char* dense_refuse(const GroupWeights& group, int bits);

/// A prepared pixel has as many bytes as channels: as they are, or plus 128.
size_t dense_pixel_bytes(size_t channels);
void prepare_unsigned(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t zero_point,
                      const int8_t* threshold, uint8_t* prepared);

/// The functions of a Variant for one order.
template <size_t Nr, size_t Kr, int Bits, size_t StepsPerBlock, int32_t LhsBias>
struct DensePacking {
  static constexpr DenseOrder kOrder = {Nr, Kr, Bits, StepsPerBlock, LhsBias};
  static void panel_bytes(const GroupWeights& group, size_t* sizes) { dense_panel_bytes(kOrder, group, sizes); }
  static void pack(const GroupWeights& group, size_t first, uint8_t* panel) { dense_pack(kOrder, group, first, panel); }
};

static inline const char* dense_refuse_nothing(const GroupWeights&) { return nullptr; }

/// Any weights that fit `Bits`.
template <int Bits>
const char* dense_refuse_bits(const GroupWeights& group) {
  return dense_refuse(group, Bits);
}

/// The plain loop that defines the answer of every dense family: 4x8 tiles, kr = 1, signed pixels, int8 weights.
void dense_reference_tile(const TileArgs& args);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_DENSE_PANEL_H_
