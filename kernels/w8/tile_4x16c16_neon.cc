/// int8 for aarch64 without dot product: 4 rows by 4 columns, 16 MAC in 3 instructions.
#include "common/neon_core.h"
#include "common/neon_dense.h"
#include "w8/variants.h"

namespace deploy {

const Variant conv_w8_4x16c16_neon = neon::dense_variant<neon::Core8<4>, 16>(
    "conv_w8_4x16c16_neon", DEPLOY_FAMILY_W8, kNeon);

}  // namespace deploy
