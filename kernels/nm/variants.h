/// The variants of the N:M family; an architecture has those whose files are compiled for it.
#ifndef DEPLOY_KERNELS_NM_VARIANTS_H_
#define DEPLOY_KERNELS_NM_VARIANTS_H_

#include "common/variant.h"

namespace deploy {

extern const Variant conv_nm8_4x16c16_reference;
extern const Variant conv_nm8_12x16c16_avx512vnni;

}  // namespace deploy
#endif  // DEPLOY_KERNELS_NM_VARIANTS_H_
