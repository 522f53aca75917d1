/// What a family's variant is to the driver: how pixels are prepared, weights packed, and a tile computed.
#ifndef DEPLOY_KERNELS_COMMON_VARIANT_H_
#define DEPLOY_KERNELS_COMMON_VARIANT_H_

#include <stddef.h>
#include <stdint.h>

#include "kernels.h"

namespace deploy {

/// What an instruction set needs; bits of CpuFeatures::isas.
enum Isa : uint32_t {
  kPortable = 0,
  kAvx2 = 1u << 0,
  kAvx512Vnni = 1u << 1,        ///< F, BW, VL, DQ and VNNI.
  kAvx512Vpopcntdq = 1u << 2,   ///< the above and VPOPCNTDQ, BITALG.
  kNeon = 1u << 3,              ///< aarch64 base, or armv7 with NEON.
  kNeonDotprod = 1u << 4,
  kNeonI8mm = 1u << 5,
};

/// Bytes that may be read behind the last pixel of an image.
constexpr size_t kSlackBytes = 64;

/// One tile: up to mr output pixels ("rows") by up to nr output channels ("columns").
struct TileArgs {
  size_t rows;            ///< [1, mr]
  size_t cols;            ///< [1, nr]; fewer only in the last panel of a group.
  const uint8_t* panel;   ///< the packed panel of these columns, 64-byte aligned; holds bias, multiplier and shift too.
  int32_t output_zero_point;
  int32_t clamp_min, clamp_max;
  bool single_rounding;   ///< DeployRequantization::single_rounding
  const uint8_t* const* pixels;  ///< [rows], each row's point of reference in the image; tap t lies tap_offset[t] behind.
  const uint64_t* padded;        ///< Binary: [rows], bit t set where tap t lies in the padding; null where none does.
  int8_t* out;            ///< [rows, cols], rows out_stride apart; nothing else is written.
  size_t out_stride;      ///< elements between two rows.
};

/// One group's weights, ready to be packed: dense [out_c, depth], depth = taps x channels.
struct GroupWeights {
  const int8_t* weights;
  size_t out_c;           ///< of this group.
  size_t taps;            ///< kernel_h x kernel_w.
  size_t channels;        ///< input channels of this group.
  DeployRequantization requantization;  ///< arrays begin at this group's first output channel.
  const int32_t* tap_offset;  ///< [taps]: bytes from a row's point of reference to the pixel of each tap.
  int32_t low, high;          ///< Binary: the int8 inputs that bits 0 and 1 stand for.
};

struct WinogradSteps;

/// A micro-kernel with its packing.  Every function is pure; a variant is a constant.
///
/// Gathering the taps of each output pixel (im2col) would take longer than using them where few multiplications are
/// left per pixel.  Tiles read an image of prepared pixels instead, padded with prepared pixels of value
/// input_zero_point: tap t of a row lies at pixels[row] + tap_offset[t], for every row.  The image may be read up to
/// kSlackBytes past any pixel, so that a tile can round a run of bytes up to whole steps (its weights are zero there).
struct Variant {
  const char* name;
  DeployFamily family;
  uint32_t isa;           ///< bits of Isa, all of them needed.
  uint16_t mr, nr, kr;    ///< kr in bytes of prepared pixels; mr <= 64.
  bool gemv;              ///< preferred for a single row.

  /// Bytes of one prepared pixel of `channels` channels.
  size_t (*pixel_bytes)(size_t channels);
  /// Prepares `count` pixels, `stride` elements apart, into pixel_bytes(channels) bytes each.  Null: they are copied as they
  /// are, or read in place where no padding is needed.
  /// `threshold` is null but for binary layers, where it has one entry per channel (DeployBinarization).
  void (*prepare)(const int8_t* pixels, size_t count, size_t stride, size_t channels, int32_t zero_point,
                  const int8_t* threshold, uint8_t* prepared);
  /// Bytes of each panel of nr output channels of a group, rounded up to 64; `sizes` has ceil(out_c / nr) entries.
  void (*panel_bytes)(const GroupWeights& group, size_t* sizes);
  /// Writes the panel that begins at output channel `first` of the group; unused columns compute zeros.
  void (*pack)(const GroupWeights& group, size_t first, uint8_t* panel);
  /// Null when `pack` can represent these weights, else the reason why not ("a weight of 9 does not fit 4 bits").
  const char* (*refuse)(const GroupWeights& group);
  void (*tile)(const TileArgs& args);  ///< null where `winograd` is not
  const WinogradSteps* winograd = nullptr;  ///< it multiplies transformed values (winograd.h), in 3x3 convolutions only
};

/// The variants of a family, best first for this library's architecture; each family has one such table in its
/// select.cc, and common/registry.cc knows the tables.
struct VariantTable {
  const Variant* const* variants;
  size_t count;
};

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_VARIANT_H_
