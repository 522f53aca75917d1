/// 4-bit weights with SDOT: 8 rows by 8 columns, 16 MAC an instruction.
#include "common/neon_core_dot.h"
#include "common/neon_dense.h"
#include "w4/variants.h"

namespace deploy {

const Variant conv_w4_8x16c16_neondot = neon::dense_variant<neon::DotCore<neon::DotWeights4>, 16>(
    "conv_w4_8x16c16_neondot", DEPLOY_FAMILY_W4, kNeonDotprod);

}  // namespace deploy
