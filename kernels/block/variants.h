/// The variants of the block-pruned family.
#ifndef DEPLOY_KERNELS_BLOCK_VARIANTS_H_
#define DEPLOY_KERNELS_BLOCK_VARIANTS_H_

#include "common/variant.h"

namespace deploy {

extern const Variant conv_block8_4x256c4_reference;
extern const Variant conv_block8_16x256c4_avx512vnni;

}  // namespace deploy
#endif  // DEPLOY_KERNELS_BLOCK_VARIANTS_H_
