/// Tile-pruned layers with SMMLA.
#include "common/neon_core_mmla.h"
#include "common/neon_tile_pruned.h"
#include "tile/variants.h"

namespace deploy {
namespace {
using Kernels8 = neon::TilePruned<neon::MmlaCore<neon::DotWeights8>>;
using Kernels4 = neon::TilePruned<neon::MmlaCore<neon::DotWeights4>>;
}  // namespace

const Variant conv_tile8_8x32c4_neoni8mm = {
    "conv_tile8_8x32c4_neoni8mm",
    DEPLOY_FAMILY_TILE8,
    kNeonI8mm,
    8, 32, 4,
    false,
    neon::grouped_pixel_bytes,
    neon::prepare_grouped,
    Kernels8::panel_bytes,
    Kernels8::pack,
    neon::refuse_w8,
    Kernels8::tile,
};

const Variant conv_tile4_8x32c4_neoni8mm = {
    "conv_tile4_8x32c4_neoni8mm",
    DEPLOY_FAMILY_TILE4,
    kNeonI8mm,
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
