/// Binary layers for armv7: 2 rows by 4 columns of byte sums, 128 MAC in 3 instructions.
#include "binary/neon_bits.h"
#include "binary/variants.h"

namespace deploy {

const Variant conv_binary_2x32c16_armv7neon = neon::binary_variant<neon::BitCore<2>, 32>(
    "conv_binary_2x32c16_armv7neon");

}  // namespace deploy
