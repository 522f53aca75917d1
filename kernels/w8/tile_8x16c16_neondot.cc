/// 8-bit weights with SDOT: 8 rows by 8 columns, 16 MAC an instruction.
#include "common/neon_core_dot.h"
#include "common/neon_dense.h"
#include "w8/variants.h"

namespace deploy {
namespace {
using Kernels = neon::Dense<neon::DotCore<neon::DotWeights8>, 16>;
}  // namespace

const Variant conv_w8_8x16c16_neondot = {
    "conv_w8_8x16c16_neondot",
    DEPLOY_FAMILY_W8,
    kNeonDotprod,
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
