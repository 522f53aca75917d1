/// 2-bit weights with SDOT: 8 rows by 8 columns, 16 MAC an instruction.
#include "common/neon_core_dot.h"
#include "common/neon_dense.h"
#include "w2/variants.h"

namespace deploy {
namespace {
using Kernels = neon::Dense<neon::DotCore<neon::DotWeights2>, 16>;
}  // namespace

const Variant conv_w2_8x16c16_neondot = {
    "conv_w2_8x16c16_neondot",
    DEPLOY_FAMILY_W2,
    kNeonDotprod,
    8, 16, 16,
    false,
    neon::plain_pixel_bytes,
    nullptr,
    Kernels::panel_bytes,
    Kernels::pack,
    neon::refuse_w2,
    Kernels::tile,
};

}  // namespace deploy
