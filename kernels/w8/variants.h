/// The variants of the w8 family; an architecture has those whose files are compiled for it.
#ifndef DEPLOY_KERNELS_W8_VARIANTS_H_
#define DEPLOY_KERNELS_W8_VARIANTS_H_

#include "common/dense_panel.h"

namespace deploy {

extern const Variant conv_w8_4x8c1_reference;
extern const Variant conv_w8_4x16c4_avx2;
extern const Variant conv_w8_12x32c4_avx512vnni;

}  // namespace deploy
#endif  // DEPLOY_KERNELS_W8_VARIANTS_H_
