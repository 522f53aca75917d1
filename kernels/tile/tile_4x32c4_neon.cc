/// Tile-pruned layers for aarch64 without dot product.
#include "common/neon_core.h"
#include "common/neon_tile_pruned.h"
#include "tile/variants.h"

namespace deploy {
namespace {
using Kernels8 = neon::TilePruned<neon::Core8<4>>;
using Kernels4 = neon::TilePruned<neon::CoreSubbyte<neon::Weights4, 4>>;
}  // namespace

const Variant conv_tile8_4x32c4_neon = {
    "conv_tile8_4x32c4_neon",
    DEPLOY_FAMILY_TILE8,
    kNeon,
    4, 32, 4,
    false,
    neon::grouped_pixel_bytes,
    neon::prepare_grouped,
    Kernels8::panel_bytes,
    Kernels8::pack,
    neon::refuse_w8,
    Kernels8::tile,
};

const Variant conv_tile4_4x32c4_neon = {
    "conv_tile4_4x32c4_neon",
    DEPLOY_FAMILY_TILE4,
    kNeon,
    4, 32, 4,
    false,
    neon::grouped_pixel_bytes,
    neon::prepare_grouped,
    Kernels4::panel_bytes,
    Kernels4::pack,
    neon::refuse_w4,
    Kernels4::tile,
};

}  // namespace deploy
