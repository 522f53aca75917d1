/// The binary family in plain C++: what every variant must equal.
#include <string.h>

#include "binary/panel.h"
#include "binary/variants.h"
#include "common/requantize.h"

namespace deploy {
namespace {

constexpr size_t kColumns = 16;

void tile(const TileArgs& args) {
  const BinaryPanel p = binary_panel(args.panel, kColumns);
  for (size_t r = 0; r < args.rows; ++r) {
    for (size_t col = 0; col < args.cols; ++col) {
      int32_t count = 0;
      for (int32_t i = 0; i < p.words; ++i) {
        uint64_t bits;
        memcpy(&bits, args.pixels[r] + p.offset[i], sizeof bits);
        count += __builtin_popcountll(bits ^ p.weights[static_cast<size_t>(i) * kColumns + col]);
      }
      uint32_t acc = static_cast<uint32_t>(p.base[col]) - static_cast<uint32_t>(p.factor[col] * count);
      binary_corrections(p, kColumns, args.padded ? args.padded[r] : 0,
                         [&](const int32_t* correction) { acc -= static_cast<uint32_t>(correction[col]); });
      args.out[r * args.out_stride + col] =
          requantize(static_cast<int32_t>(acc), p.multiplier[col], p.shift[col], args.output_zero_point,
                     args.clamp_min, args.clamp_max, args.single_rounding);
    }
  }
}

}  // namespace

const Variant conv_binary_2x16c8_reference = {
    "conv_binary_2x16c8_reference", DEPLOY_FAMILY_BINARY, kPortable, 2, 16, 8, false,
    binary_pixel_bytes, binary_prepare, binary_panel_bytes<16>, binary_pack<16>, binary_refuse, tile};

}  // namespace deploy
