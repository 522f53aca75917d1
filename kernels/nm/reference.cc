/// The N:M family in plain C++: what every variant must equal.
#include "common/dense_panel.h"
#include "common/requantize.h"
#include "nm/panel.h"
#include "nm/variants.h"

namespace deploy {
namespace {

void tile(const TileArgs& args) {
  const NmPanel p = nm_panel(args.panel);
  for (size_t r = 0; r < args.rows; ++r) {
    for (size_t column = 0; column < args.cols; ++column) {
      uint32_t acc = static_cast<uint32_t>(p.bias[column]);
      for (size_t group = 0; group < 2 * p.steps; ++group) {
        const uint8_t* const step = p.weights + group / 2 * kNmStepBytes;
        const uint8_t* const window = args.pixels[r] + p.offset[group];
        for (size_t i = column * 4; i < column * 4 + 4; ++i) {
          const int32_t weight = static_cast<int8_t>(step[(1 + group % 2) * kNmGroupBytes + i]);
          if (weight != 0) acc += static_cast<uint32_t>(weight * window[step[i] >> (group % 2 * 4) & 15]);
        }
      }
      args.out[r * args.out_stride + column] =
          requantize(static_cast<int32_t>(acc), p.multiplier[column], p.shift[column], args.output_zero_point,
                     args.clamp_min, args.clamp_max, args.single_rounding);
    }
  }
}

}  // namespace

const Variant conv_nm8_4x16c16_reference = {
    "conv_nm8_4x16c16_reference", DEPLOY_FAMILY_NM8, kPortable, 4, 16, 16, false, dense_pixel_bytes, prepare_unsigned,
    nm_panel_bytes, nm_pack, dense_refuse_nothing, tile};

}  // namespace deploy
