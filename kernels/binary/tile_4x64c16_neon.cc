/// Binary layers for aarch64: 4 rows by 4 columns of byte sums, 128 MAC in 3 instructions.
#include "binary/neon_bits.h"
#include "binary/variants.h"

namespace deploy {
namespace {
using Kernels = neon::Binary<neon::BitCore<4>, 64>;
}  // namespace

const Variant conv_binary_4x64c16_neon = {
    "conv_binary_4x64c16_neon",
    DEPLOY_FAMILY_BINARY,
    kNeon,
    4, 64, 16,
    false,
    neon::bit_pixel_bytes,
    neon::prepare_bits,
    Kernels::panel_bytes,
    Kernels::pack,
    Kernels::refuse,
    Kernels::tile,
};

}  // namespace deploy
