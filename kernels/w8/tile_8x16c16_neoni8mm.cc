/// 8-bit weights with SMMLA: 8 rows by 8 columns, 32 MAC an instruction.
#include "common/neon_core_mmla.h"
#include "common/neon_dense.h"
#include "w8/variants.h"

namespace deploy {

const Variant conv_w8_8x16c16_neoni8mm = neon::dense_variant<neon::MmlaCore<neon::DotWeights8>, 16>(
    "conv_w8_8x16c16_neoni8mm", DEPLOY_FAMILY_W8, kNeonI8mm);

}  // namespace deploy
