/// 4-bit weights for aarch64 without dot product: 4 rows by 4 columns, sums of 16 bits, 16 MAC in 2 instructions.
#include "common/neon_core.h"
#include "common/neon_dense.h"
#include "w4/variants.h"

namespace deploy {

const Variant conv_w4_4x16c16_neon = neon::dense_variant<neon::CoreSubbyte<neon::Weights4, 4>, 16>(
    "conv_w4_4x16c16_neon", DEPLOY_FAMILY_W4, kNeon);

}  // namespace deploy
