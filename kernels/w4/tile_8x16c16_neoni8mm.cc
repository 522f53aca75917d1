/// 4-bit weights with SMMLA: 8 rows by 8 columns, 32 MAC an instruction.
#include "common/neon_core_mmla.h"
#include "common/neon_dense.h"
#include "w4/variants.h"

namespace deploy {
namespace {
using Kernels = neon::Dense<neon::MmlaCore<neon::DotWeights4>, 16>;
}  // namespace

const Variant conv_w4_8x16c16_neoni8mm = {
    "conv_w4_8x16c16_neoni8mm",
    DEPLOY_FAMILY_W4,
    kNeonI8mm,
    8, 16, 16,
    false,
    neon::plain_pixel_bytes,
    nullptr,
    Kernels::panel_bytes,
    Kernels::pack,
    neon::refuse_w4,
    Kernels::tile,
};

}  // namespace deploy
