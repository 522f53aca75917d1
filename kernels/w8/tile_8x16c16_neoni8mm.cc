/// 8-bit weights with SMMLA: 8 rows by 8 columns, 32 MAC an instruction.
#include "common/neon_core_mmla.h"
#include "common/neon_dense.h"
#include "w8/variants.h"

namespace deploy {
namespace {
using Kernels = neon::Dense<neon::MmlaCore<neon::DotWeights8>, 16>;
}  // namespace

const Variant conv_w8_8x16c16_neoni8mm = {
    "conv_w8_8x16c16_neoni8mm",
    DEPLOY_FAMILY_W8,
    kNeonI8mm,
    8, 16, 16,
    false,
    neon::plain_pixel_bytes,
    nullptr,
    Kernels::panel_bytes,
    Kernels::pack,
    neon::refuse_w8,
    Kernels::tile,
};

}  // namespace deploy
