/// The tile-pruned families in plain C++: what every variant must equal.
#include "common/requantize.h"
#include "tile/panel.h"
#include "tile/variants.h"

namespace deploy {
namespace {

constexpr size_t kColumns = 32;

int32_t weight_at(const uint8_t* window, size_t at, int bits) {
  if (bits == 8) return static_cast<int8_t>(window[at]);
  const uint8_t byte = window[at % (kColumns * 2)];
  const int32_t nibble = at < kColumns * 2 ? byte & 15 : byte >> 4;
  return nibble < 8 ? nibble : nibble - 16;
}

template <int Bits>
void tile(const TileArgs& args) {
  const TilePanel p = tile_panel(args.panel, kColumns);
  for (size_t r = 0; r < args.rows; ++r) {
    for (size_t col = 0; col < args.cols; ++col) {
      uint32_t acc = static_cast<uint32_t>(p.bias[col]);
      for (int32_t i = 0; i < p.count; ++i) {
        const uint8_t* window = p.weights + static_cast<size_t>(i) * (kColumns * 4 * Bits / 8);
        for (size_t c = 0; c < 4; ++c) {
          const int32_t a = static_cast<int8_t>(args.pixels[r][p.offset[i] + static_cast<int32_t>(c)]);
          acc += static_cast<uint32_t>(a * weight_at(window, col * 4 + c, Bits));
        }
      }
      args.out[r * args.out_stride + col] =
          requantize(static_cast<int32_t>(acc), p.multiplier[col], p.shift[col], args.output_zero_point,
                     args.clamp_min, args.clamp_max, args.single_rounding);
    }
  }
}

}  // namespace

const Variant conv_tile8_4x32c4_reference = {
    "conv_tile8_4x32c4_reference", DEPLOY_FAMILY_TILE8, kPortable, 4, 32, 4, false,
    tile_pixel_bytes, tile_prepare_signed, tile_panel_bytes<32, 8>, tile_pack<32, 8, 0>, tile_refuse<8>, tile<8>};
const Variant conv_tile4_4x32c4_reference = {
    "conv_tile4_4x32c4_reference", DEPLOY_FAMILY_TILE4, kPortable, 4, 32, 4, false,
    tile_pixel_bytes, tile_prepare_signed, tile_panel_bytes<32, 4>, tile_pack<32, 4, 0>, tile_refuse<4>, tile<4>};

}  // namespace deploy
