/// 3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3), exact in integers.
///
/// 4x4 outputs take 36 multiplications for each channel instead of 144 (Winograd 1980; Lavin and Gray, arXiv 1509.09308).
/// Values grow to 16 bits, which halves what an instruction multiplies, so that twice as much is left.
///
/// In one dimension, with the points 0, 1, -1, 2, -2 and infinity, four outputs y of six inputs d and three weights g are
///   v0 = 4 d0 - 5 d2 + d4                u0 = g0
///   v1 = -4 d1 - 4 d2 + d3 + d4          u1 = g0 + g1 + g2
///   v2 = 4 d1 - 4 d2 - d3 + d4           u2 = g0 - g1 + g2
///   v3 = -2 d1 - d2 + 2 d3 + d4          u3 = g0 + 2 g1 + 4 g2
///   v4 = 2 d1 - d2 - 2 d3 + d4           u4 = g0 - 2 g1 + 4 g2
///   v5 = 4 d1 - 5 d3 + d5                u5 = g2
/// and, with m = sum over the channels of u v, s = m1 + m2, d = m1 - m2, S = m3 + m4, e = m3 - m4,
///   24 y0 = 6 m0 - 4 s + S,  12 y1 = e - 2 d,  6 y2 = S - s,  6 y3 = 2 e - d + 6 m5.
/// (The usual fractions of u are multiplied away: rows 0 to 4 by 4, -6, -6, 24, 24.)  In two dimensions each is done along
/// both.  |v| <= 10 x 10 x 128 and |u| <= 7 x 7 x 8 fit 16 bits.  All sums are taken modulo 2^32, where 9 has an inverse:
/// what is left of 24 y, 12 y and 6 y is a power of two of at most 2^6, and an arithmetic shift brings y back as long as
/// |y| < 2^25, whatever wrapped on the way.
#ifndef DEPLOY_KERNELS_COMMON_WINOGRAD_H_
#define DEPLOY_KERNELS_COMMON_WINOGRAD_H_

#include <stddef.h>
#include <stdint.h>

#include "common/direct.h"

namespace deploy {

constexpr size_t kWinogradPoints = 36;  ///< 6x6, row by row: of the input under a tile, and of what is multiplied.
constexpr size_t kWinogradSide = 4;     ///< a tile is 4x4 outputs
constexpr uint32_t kInverseOf9 = 954437177;  ///< modulo 2^32

/// The buffers of one unit of work: a run of tiles, one panel of nr columns at a time.  64-byte aligned.
struct WinogradBuffers {
  int16_t* inputs;   ///< [tiles][36][channels rounded up to 32], tiles input_stride apart
  int16_t* weights;  ///< [36][channels / 2][nr][2], points weight_stride apart
  int32_t* products; ///< [tiles][36][nr]
  int32_t* sums;     ///< [4][16][nr] and one row more: 4 tiles side by side
  size_t input_stride, weight_stride;
};

/// The steps, for one instruction set and one width of weights.
struct WinogradSteps {
  /// Transforms the 36 pixels under a tile: `channels` of each, to values[36][channels rounded up to 32].
  void (*inputs)(const int8_t* const* pixels, size_t channels, int16_t* values);
  /// Restores and transforms the weights of a panel.
  void (*weights)(const uint8_t* packed, size_t channels, int16_t* to, size_t stride);
  /// All products of `tiles` tiles with one panel.
  void (*multiply)(const WinogradBuffers& buffers, size_t tiles, size_t channels);
  /// Adds up the products of `tiles` tiles in [1, 4] side by side: sums[y][4 tile + x][nr], bias included.
  void (*outputs)(const int32_t* products, size_t tiles, const int32_t* bias, int32_t* sums);
  /// Requantizes args.rows sums of a row.
  void (*store)(const int32_t* sums, const int32_t* multiplier, const int8_t* shift, const TileArgs& args);
};

/// A panel of nr columns and steps of kr = 16 / bits channels: int32 bias[nr], multiplier[nr], int8 shift[nr], filled up
/// to 64 bytes; then for every kr channels and each of 9 taps 2 nr bytes.  Those hold the values of [kr / 2][nr][2], as
/// many to a byte as fit: byte i has value i + 2 nr p in its p-th bits from below, as value + 2^(bits - 1).
size_t winograd_header_bytes(size_t nr);
void winograd_panel_bytes(const GroupWeights& group, size_t nr, int bits, size_t* sizes);
void winograd_pack(const GroupWeights& group, size_t first, size_t nr, int bits, uint8_t* panel);

/// Null, or the reason why a layer of this shape cannot be computed so.
const char* winograd_unfit(const DeployConvShape& shape);

/// As many products as could be multiplied directly, 64 to an instruction, in the time that such a layer takes.
double winograd_products(const DeployConvShape& shape);

/// Whether that is less than the layer has: transforming the weights has to be shared by enough tiles, and not too much of
/// the last ones may lie outside of the output.
bool winograd_pays(const DeployConvShape& shape);

/// direct.h's three functions, for a variant with WinogradSteps.
size_t winograd_units(const DirectPlan& plan, int32_t threads);
size_t winograd_scratch_bytes(const DirectPlan& plan);
void winograd_run(const DirectPlan& plan, const DirectRun& run, size_t unit, int32_t threads, uint8_t* scratch);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_WINOGRAD_H_
