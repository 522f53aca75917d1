/// 4-bit weights for armv7: 2 rows by 4 columns, sums of 16 bits.
#include "common/neon_core.h"
#include "common/neon_dense.h"
#include "w4/variants.h"

namespace deploy {

const Variant conv_w4_2x16c16_armv7neon = neon::dense_variant<neon::CoreSubbyte<neon::Weights4, 2>, 16>(
    "conv_w4_2x16c16_armv7neon", DEPLOY_FAMILY_W4, kNeon);

}  // namespace deploy
