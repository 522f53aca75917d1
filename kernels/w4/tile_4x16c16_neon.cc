/// 4-bit weights for aarch64 without dot product: 4 rows by 4 columns, sums of 16 bits, 16 MAC in 2 instructions.
#include "common/neon_core.h"
#include "common/neon_dense.h"
#include "w4/variants.h"

namespace deploy {
namespace {
using Kernels = neon::Dense<neon::CoreSubbyte<neon::Weights4, 4>, 16>;
}  // namespace

const Variant conv_w4_4x16c16_neon = {
    "conv_w4_4x16c16_neon",
    DEPLOY_FAMILY_W4,
    kNeon,
    4, 16, 16,
    false,
    neon::plain_pixel_bytes,
    nullptr,
    Kernels::panel_bytes,
    Kernels::pack,
    neon::refuse_w4,
    Kernels::tile,
};

}  // namespace deploy
