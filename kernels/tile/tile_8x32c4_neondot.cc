/// Tile-pruned layers with SDOT.
#include "common/neon_core_dot.h"
#include "common/neon_tile_pruned.h"
#include "tile/variants.h"

namespace deploy {

const Variant conv_tile8_8x32c4_neondot = neon::tile_pruned_variant<neon::DotCore<neon::DotWeights8>>(
    "conv_tile8_8x32c4_neondot", DEPLOY_FAMILY_TILE8, kNeonDotprod);

const Variant conv_tile4_8x32c4_neondot = neon::tile_pruned_variant<neon::DotCore<neon::DotWeights4>>(
    "conv_tile4_8x32c4_neondot", DEPLOY_FAMILY_TILE4, kNeonDotprod);

}  // namespace deploy
