/// 2-bit weights for aarch64 without dot product: 6 rows by 4 columns, sums of 16 bits, 16 MAC in 2 instructions.
#include "common/neon_core.h"
#include "common/neon_dense.h"
#include "w2/variants.h"

namespace deploy {

const Variant conv_w2_6x16c16_neon = neon::dense_variant<neon::CoreSubbyte<neon::Weights2, 6>, 16>(
    "conv_w2_6x16c16_neon", DEPLOY_FAMILY_W2, kNeon);

}  // namespace deploy
