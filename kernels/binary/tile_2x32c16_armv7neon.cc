/// Binary layers for armv7: 2 rows by 4 columns of byte sums, 128 MAC in 3 instructions.
#include "binary/neon_bits.h"
#include "binary/variants.h"

namespace deploy {
namespace {
using Kernels = neon::Binary<neon::BitCore<2>, 32>;
}  // namespace

const Variant conv_binary_2x32c16_armv7neon = {
    "conv_binary_2x32c16_armv7neon",
    DEPLOY_FAMILY_BINARY,
    kNeon,
    2, 32, 16,
    false,
    neon::bit_pixel_bytes,
    neon::prepare_bits,
    Kernels::panel_bytes,
    Kernels::pack,
    Kernels::refuse,
    Kernels::tile,
};

}  // namespace deploy
