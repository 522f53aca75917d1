/// The variants of the w2 family; an architecture has those whose files are compiled for it.
#ifndef DEPLOY_KERNELS_W2_VARIANTS_H_
#define DEPLOY_KERNELS_W2_VARIANTS_H_

#include "common/dense_panel.h"

namespace deploy {

extern const Variant conv_w2_4x8c1_reference;
extern const Variant conv_w2_4x16c4_avx2;
extern const Variant conv_w2_12x32c4_avx512vnni, conv_w2_12x16c4_avx512vnni, winograd_w2_12x32c8_avx512vnni;
extern const Variant conv_w2_8x16c16_neoni8mm, conv_w2_8x16c16_neondot, conv_w2_6x16c16_neon;
extern const Variant conv_w2_2x16c16_armv7neon;

}  // namespace deploy
#endif  // DEPLOY_KERNELS_W2_VARIANTS_H_
