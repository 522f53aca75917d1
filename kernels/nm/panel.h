/// The packed panel of a layer that is pruned N:M per output (2:4, 1:4, 4:8 ...), the same for every instruction set.
///
/// A *window* is 16 consecutive input channels of one tap, the last of a tap perhaps fewer.  Of each window a column keeps
/// its weights that are not zero in *groups* of 4, each with its channel; a panel has as many groups of a window as its
/// fullest column needs: 2 for 2:4, 1 for 1:4, none where nothing is kept.  Two groups make a step.
/// A panel of 16 columns is, each part rounded up to 64 bytes:
///   int32 steps
///   int32 bias[16], multiplier[16], shift[16]   (three parts in one)
///   int32 offset[steps][2]          bytes from a row's point of reference to the window of each group
///   steps of: channels              [16][4] bytes: of the first group in the low nibble, of the second in the high one
///             weights[2]            int8 [16][4]
/// Pixels are prepared as value + 128; bias holds the layer's bias, less what that and the input's zero point add.
#ifndef DEPLOY_KERNELS_NM_PANEL_H_
#define DEPLOY_KERNELS_NM_PANEL_H_

#include <stddef.h>
#include <stdint.h>

#include "common/variant.h"

namespace deploy {

constexpr size_t kNmColumns = 16, kNmWindow = 16;
constexpr size_t kNmGroupBytes = kNmColumns * 4;     ///< of weights
constexpr size_t kNmStepBytes = 3 * kNmGroupBytes;  ///< of a step

struct NmPanel {
  size_t steps;
  const int32_t *bias, *multiplier, *shift, *offset;
  const uint8_t* weights;  ///< of the first step, its channels in front
};

static inline size_t nm_align(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

static inline size_t nm_weights_at(size_t steps) {
  return 64 + 3 * kNmColumns * sizeof(int32_t) + nm_align(2 * steps * sizeof(int32_t));
}

static inline NmPanel nm_panel(const uint8_t* panel) {
  NmPanel p;
  const int32_t* const words = reinterpret_cast<const int32_t*>(panel);
  p.steps = static_cast<size_t>(words[0]);
  p.bias = words + 16;
  p.multiplier = p.bias + kNmColumns;
  p.shift = p.multiplier + kNmColumns;
  p.offset = p.shift + kNmColumns;
  p.weights = panel + nm_weights_at(p.steps);
  return p;
}

void nm_panel_bytes(const GroupWeights& group, size_t* sizes);
void nm_pack(const GroupWeights& group, size_t first, uint8_t* panel);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_NM_PANEL_H_
