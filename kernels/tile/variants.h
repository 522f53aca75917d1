/// The variants of the tile-pruned families; an architecture has those whose files are compiled for it.
#ifndef DEPLOY_KERNELS_TILE_VARIANTS_H_
#define DEPLOY_KERNELS_TILE_VARIANTS_H_

#include "common/variant.h"

namespace deploy {

extern const Variant conv_tile8_4x32c4_reference, conv_tile4_4x32c4_reference;
extern const Variant conv_tile8_4x16c4_avx2, conv_tile4_4x16c4_avx2;
extern const Variant conv_tile8_8x32c4_avx512vnni, conv_tile4_8x32c4_avx512vnni;
extern const Variant conv_tile8_8x32c4_neoni8mm, conv_tile4_8x32c4_neoni8mm;
extern const Variant conv_tile8_8x32c4_neondot, conv_tile4_8x32c4_neondot;
extern const Variant conv_tile8_4x32c4_neon, conv_tile4_4x32c4_neon;
extern const Variant conv_tile8_2x32c4_armv7neon, conv_tile4_2x32c4_armv7neon;

}  // namespace deploy
#endif  // DEPLOY_KERNELS_TILE_VARIANTS_H_
