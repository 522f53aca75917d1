/// int8 for aarch64 without dot product: 4 rows by 4 columns, 16 MAC in 3 instructions.
#include "common/neon_core.h"
#include "common/neon_dense.h"
#include "w8/variants.h"

namespace deploy {
namespace {
using Kernels = neon::Dense<neon::Core8<4>, 16>;
}  // namespace

const Variant conv_w8_4x16c16_neon = {
    "conv_w8_4x16c16_neon",
    DEPLOY_FAMILY_W8,
    kNeon,
    4, 16, 16,
    false,
    neon::plain_pixel_bytes,
    nullptr,
    Kernels::panel_bytes,
    Kernels::pack,
    neon::refuse_w8,
    Kernels::tile,
};

}  // namespace deploy
