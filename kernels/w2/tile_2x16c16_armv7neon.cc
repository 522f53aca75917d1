/// 2-bit weights for armv7: 2 rows by 4 columns, sums of 16 bits.
#include "common/neon_core.h"
#include "common/neon_dense.h"
#include "w2/variants.h"

namespace deploy {
namespace {
using Kernels = neon::Dense<neon::CoreSubbyte<neon::Weights2, 2>, 16>;
}  // namespace

const Variant conv_w2_2x16c16_armv7neon = {
    "conv_w2_2x16c16_armv7neon",
    DEPLOY_FAMILY_W2,
    kNeon,
    2, 16, 16,
    false,
    neon::plain_pixel_bytes,
    nullptr,
    Kernels::panel_bytes,
    Kernels::pack,
    neon::refuse_w2,
    Kernels::tile,
};

}  // namespace deploy
