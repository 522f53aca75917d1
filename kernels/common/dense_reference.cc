#include "common/dense_panel.h"
#include "common/requantize.h"

namespace deploy {

void dense_reference_tile(const TileArgs& args) {
  constexpr size_t kNr = 8;
  const DensePanel p = dense_panel(args.panel, kNr);
  for (size_t row = 0; row < args.rows; ++row) {
    for (size_t column = 0; column < args.cols; ++column) {
      uint32_t acc = static_cast<uint32_t>(p.bias[column]);  // wraps where TFLite's int32 would
      const int8_t* weight = reinterpret_cast<const int8_t*>(p.weights) + column;
      for (size_t s = 0; s < p.segments; ++s) {
        const int8_t* const pixel = reinterpret_cast<const int8_t*>(args.pixels[row] + p.offset[s]);
        for (size_t k = 0; k < p.steps; ++k, weight += kNr) acc += static_cast<uint32_t>(pixel[k] * *weight);
      }
      args.out[row * args.out_stride + column] =
          requantize(static_cast<int32_t>(acc), p.multiplier[column], p.shift[column], args.output_zero_point,
                     args.clamp_min, args.clamp_max, args.single_rounding);
    }
  }
}

}  // namespace deploy
