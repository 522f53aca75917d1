/// The variants of the tile-pruned families; an architecture has those whose files are compiled for it.
#ifndef DEPLOY_KERNELS_TILE_VARIANTS_H_
#define DEPLOY_KERNELS_TILE_VARIANTS_H_

#include "common/variant.h"

namespace deploy {

extern const Variant conv_tile8_4x32c4_reference, conv_tile4_4x32c4_reference;
extern const Variant conv_tile8_4x16c4_avx2, conv_tile4_4x16c4_avx2;
extern const Variant conv_tile8_8x32c4_avx512vnni, conv_tile4_8x32c4_avx512vnni;

}  // namespace deploy
#endif  // DEPLOY_KERNELS_TILE_VARIANTS_H_
