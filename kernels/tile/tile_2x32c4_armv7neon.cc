/// Tile-pruned layers for armv7.
#include "common/neon_core.h"
#include "common/neon_tile_pruned.h"
#include "tile/variants.h"

namespace deploy {

const Variant conv_tile8_2x32c4_armv7neon = neon::tile_pruned_variant<neon::Core8<2>>(
    "conv_tile8_2x32c4_armv7neon", DEPLOY_FAMILY_TILE8, kNeon);

const Variant conv_tile4_2x32c4_armv7neon = neon::tile_pruned_variant<neon::CoreSubbyte<neon::Weights4, 2>>(
    "conv_tile4_2x32c4_armv7neon", DEPLOY_FAMILY_TILE4, kNeon);

}  // namespace deploy
