/// 8-bit weights with SDOT: 8 rows by 8 columns, 16 MAC an instruction.
#include "common/neon_core_dot.h"
#include "common/neon_dense.h"
#include "w8/variants.h"

namespace deploy {

const Variant conv_w8_8x16c16_neondot = neon::dense_variant<neon::DotCore<neon::DotWeights8>, 16>(
    "conv_w8_8x16c16_neondot", DEPLOY_FAMILY_W8, kNeonDotprod);

}  // namespace deploy
