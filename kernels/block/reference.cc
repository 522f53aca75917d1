/// The block-pruned family in plain C++: what every variant must equal.
#include "block/panel.h"
#include "block/variants.h"
#include "common/requantize.h"
#include "tile/panel.h"

namespace deploy {
namespace {

void tile(const TileArgs& args) {
  const BlockPanel p = block_panel(args.panel);
  const size_t bytes = 4 * static_cast<size_t>(p.windows_per_block);
  for (size_t r = 0; r < args.rows; ++r) {
    for (size_t col = 0; col < args.cols; ++col) {
      uint32_t acc = static_cast<uint32_t>(p.bias[col]);
      for (int32_t b = p.begin[col]; b < p.begin[col + 1]; ++b) {
        const int8_t* const weights = p.weights + static_cast<size_t>(b) * bytes;
        for (size_t c = 0; c < bytes; ++c) {
          const size_t window = p.window[b] + c / 4;
          const uint8_t a = args.pixels[r][p.offset[window / 16] + static_cast<int32_t>(window % 16 * 4 + c % 4)];
          acc += static_cast<uint32_t>(static_cast<int32_t>(a) * weights[c]);
        }
      }
      args.out[r * args.out_stride + col] =
          requantize(static_cast<int32_t>(acc), p.multiplier[col], p.shift[col], args.output_zero_point,
                     args.clamp_min, args.clamp_max, args.single_rounding);
    }
  }
}

}  // namespace

const Variant conv_block8_4x256c4_reference = {
    "conv_block8_4x256c4_reference", DEPLOY_FAMILY_BLOCK8, kPortable, 4, kBlockColumns, 4, false,
    tile_pixel_bytes, tile_prepare_unsigned, block_panel_bytes, block_pack, block_refuse, tile};

}  // namespace deploy
