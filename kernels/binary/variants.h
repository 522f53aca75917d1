/// The variants of the binary family; an architecture has those whose files are compiled for it.
#ifndef DEPLOY_KERNELS_BINARY_VARIANTS_H_
#define DEPLOY_KERNELS_BINARY_VARIANTS_H_

#include "common/variant.h"

namespace deploy {

extern const Variant conv_binary_2x16c8_reference;
extern const Variant conv_binary_2x16c8_avx2;
extern const Variant conv_binary_6x32c8_avx512vpopcntdq;
extern const Variant conv_binary_4x64c16_neon, conv_binary_2x32c16_armv7neon;

}  // namespace deploy
#endif  // DEPLOY_KERNELS_BINARY_VARIANTS_H_
