/// The packed panel of a binary layer, the same for every instruction set.
///
/// A *word* is the 64 bits of 64 input channels of one tap, channel 0 in bit 0; channels beyond the last are 0 in both
/// operands.  With a = low + (high - low) bit and w = s (2 b - 1), s > 0 per output channel, a sum over all taps is
///   sum (a - z) w  =  (low - z) sum w + (high - low) s (sum b - popcount(bits xor b)),
/// so a column needs one constant and one factor:  acc = base - factor * popcount.
/// In the padding TFLite adds nothing, while bits of 0 there stand for `low`; each padded tap takes its share back:
///   acc -= (low - z) * (sum of w over that tap)  =: correction[tap].
///
/// A panel is, each part rounded up to 64 bytes:
///   int32 words, taps
///   int32 base[nr], factor[nr], multiplier[nr], shift[nr]   (four parts in one)
///   int32 correction[taps][nr]
///   int32 offset[words]             bytes from a row's point of reference to the word
///   uint64 weights[words][nr]
#ifndef DEPLOY_KERNELS_BINARY_PANEL_H_
#define DEPLOY_KERNELS_BINARY_PANEL_H_

#include <stddef.h>
#include <stdint.h>

#include "common/variant.h"

namespace deploy {

struct BinaryPanel {
  int32_t words, taps;
  const int32_t *base, *factor, *multiplier, *shift, *correction, *offset;
  const uint64_t* weights;
};

static inline size_t binary_align(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

/// Reads a panel of nr columns.
static inline BinaryPanel binary_panel(const uint8_t* panel, size_t nr) {
  BinaryPanel p;
  const int32_t* const head = reinterpret_cast<const int32_t*>(panel);
  p.words = head[0];
  p.taps = head[1];
  p.base = head + 16;
  p.factor = p.base + nr;
  p.multiplier = p.factor + nr;
  p.shift = p.multiplier + nr;
  p.correction = head + 16 + binary_align(4 * nr * 4) / 4;
  p.offset = p.correction + binary_align(static_cast<size_t>(p.taps) * nr * 4) / 4;
  p.weights = reinterpret_cast<const uint64_t*>(p.offset + binary_align(static_cast<size_t>(p.words) * 4) / 4);
  return p;
}

/// Calls `subtract(correction)` with the [nr] corrections of each padded tap.
template <typename Subtract>
static inline void binary_corrections(const BinaryPanel& p, size_t nr, uint64_t padded, Subtract subtract) {
  for (; padded; padded &= padded - 1) {
    subtract(p.correction + static_cast<size_t>(__builtin_ctzll(padded)) * nr);
  }
}

size_t binary_pixel_bytes(size_t channels);
/// bit = pixel >= threshold of its channel.
void binary_prepare(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t zero_point,
                    const int8_t* threshold, uint8_t* prepared);

template <size_t Nr>
void binary_panel_bytes(const GroupWeights& group, size_t* sizes);
template <size_t Nr>
void binary_pack(const GroupWeights& group, size_t first, uint8_t* panel);
const char* binary_refuse(const GroupWeights& group);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_BINARY_PANEL_H_
