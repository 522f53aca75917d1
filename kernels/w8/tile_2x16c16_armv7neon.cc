/// int8 for armv7: 2 rows by 4 columns fill half of the 16 registers with sums.
#include "common/neon_core.h"
#include "common/neon_dense.h"
#include "w8/variants.h"

namespace deploy {
namespace {
using Kernels = neon::Dense<neon::Core8<2>, 16>;
}  // namespace

const Variant conv_w8_2x16c16_armv7neon = {
    "conv_w8_2x16c16_armv7neon",
    DEPLOY_FAMILY_W8,
    kNeon,
    2, 16, 16,
    false,
    neon::plain_pixel_bytes,
    nullptr,
    Kernels::panel_bytes,
    Kernels::pack,
    neon::refuse_w8,
    Kernels::tile,
};

}  // namespace deploy
