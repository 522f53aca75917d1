/// Convolution without gathering: the input is prepared once into a padded image, and tiles read it in place.
#ifndef DEPLOY_KERNELS_COMMON_DIRECT_H_
#define DEPLOY_KERNELS_COMMON_DIRECT_H_

#include <stddef.h>
#include <stdint.h>

#include "common/variant.h"

namespace deploy {

/// What stays the same between two runs of a layer; plain values, nothing to free.
struct DirectPlan {
  DeployConvShape shape;  ///< The layer's; a pointwise layer is seen as one column of batch x height x width pixels.
  const Variant* variant;
  size_t channels;        ///< of one group.
  size_t pixel_bytes;     ///< of one prepared pixel of one group.
  int32_t image_w;        ///< pixels in a row of the padded image.
  int32_t every_x, every_y;  ///< Of the input's columns and rows, one in so many is in the image: others are never read.
};

/// The layer's data for one run.
struct DirectRun {
  const uint8_t* const* panels;  ///< [groups x ceil(out_c / groups / nr)]
  const int8_t* threshold;       ///< [in_c]; null but for binary layers.
  int32_t input_zero_point, output_zero_point;
  int32_t clamp_min, clamp_max;
  bool single_rounding;
  const int8_t* input;
  int8_t* output;
};

/// What every tile of a run is told alike; the rest is zero.
inline TileArgs tile_args(const DirectPlan& plan, const DirectRun& run) {
  TileArgs args = {};
  args.output_zero_point = run.output_zero_point;
  args.clamp_min = run.clamp_min;
  args.clamp_max = run.clamp_max;
  args.single_rounding = run.single_rounding;
  args.out_stride = static_cast<size_t>(plan.shape.out_c);
  return args;
}

/// Plans a layer for a direct variant and fills `tap_offset`, which has kernel_h x kernel_w entries.  Returns null, or
/// the reason why the layer does not fit.
const char* direct_plan(const DeployConvShape& shape, const Variant& variant, DirectPlan* plan, int32_t* tap_offset);

/// Into how many independent units the work is best cut for so many threads.
size_t direct_units(const DirectPlan& plan, int32_t threads);

/// Scratch that each thread needs.
size_t direct_scratch_bytes(const DirectPlan& plan, int32_t threads);

/// Computes unit `unit` of direct_units(plan, threads).  `scratch` is 64-byte aligned.
void direct_run(const DirectPlan& plan, const DirectRun& run, size_t unit, int32_t threads, uint8_t* scratch);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_DIRECT_H_
