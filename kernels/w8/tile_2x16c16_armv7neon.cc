/// int8 for armv7: 2 rows by 4 columns fill half of the 16 registers with sums.
#include "common/neon_core.h"
#include "common/neon_dense.h"
#include "w8/variants.h"

namespace deploy {

const Variant conv_w8_2x16c16_armv7neon = neon::dense_variant<neon::Core8<2>, 16>(
    "conv_w8_2x16c16_armv7neon", DEPLOY_FAMILY_W8, kNeon);

}  // namespace deploy
