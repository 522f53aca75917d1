/// Tile-pruned layers for aarch64 without dot product.
#include "common/neon_core.h"
#include "common/neon_tile_pruned.h"
#include "tile/variants.h"

namespace deploy {

const Variant conv_tile8_4x32c4_neon = neon::tile_pruned_variant<neon::Core8<4>>(
    "conv_tile8_4x32c4_neon", DEPLOY_FAMILY_TILE8, kNeon);

const Variant conv_tile4_4x32c4_neon = neon::tile_pruned_variant<neon::CoreSubbyte<neon::Weights4, 4>>(
    "conv_tile4_4x32c4_neon", DEPLOY_FAMILY_TILE4, kNeon);

}  // namespace deploy
