/// Tile-pruned layers with SMMLA.
#include "common/neon_core_mmla.h"
#include "common/neon_tile_pruned.h"
#include "tile/variants.h"

namespace deploy {

const Variant conv_tile8_8x32c4_neoni8mm = neon::tile_pruned_variant<neon::MmlaCore<neon::DotWeights8>>(
    "conv_tile8_8x32c4_neoni8mm", DEPLOY_FAMILY_TILE8, kNeonI8mm);

const Variant conv_tile4_8x32c4_neoni8mm = neon::tile_pruned_variant<neon::MmlaCore<neon::DotWeights4>>(
    "conv_tile4_8x32c4_neoni8mm", DEPLOY_FAMILY_TILE4, kNeonI8mm);

}  // namespace deploy
