/// Tile-pruned layers with SDOT.
#include "common/neon_core_dot.h"
#include "common/neon_tile_pruned.h"
#include "tile/variants.h"

namespace deploy {
namespace {
using Kernels8 = neon::TilePruned<neon::DotCore<neon::DotWeights8>>;
using Kernels4 = neon::TilePruned<neon::DotCore<neon::DotWeights4>>;
}  // namespace

const Variant conv_tile8_8x32c4_neondot = {
    "conv_tile8_8x32c4_neondot",
    DEPLOY_FAMILY_TILE8,
    kNeonDotprod,
    8, 32, 4,
    false,
    neon::grouped_pixel_bytes,
    neon::prepare_grouped,
    Kernels8::panel_bytes,
    Kernels8::pack,
    neon::refuse_w8,
    Kernels8::tile,
};

const Variant conv_tile4_8x32c4_neondot = {
    "conv_tile4_8x32c4_neondot",
    DEPLOY_FAMILY_TILE4,
    kNeonDotprod,
    8, 32, 4,
    false,
    neon::grouped_pixel_bytes,
    neon::prepare_grouped,
    Kernels4::panel_bytes,
    Kernels4::pack,
    neon::refuse_w4,
    Kernels4::tile,
};

}  // namespace deploy
