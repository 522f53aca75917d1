/// Binary layers for aarch64: 4 rows by 4 columns of byte sums, 128 MAC in 3 instructions.
#include "binary/neon_bits.h"
#include "binary/variants.h"

namespace deploy {

const Variant conv_binary_4x64c16_neon = neon::binary_variant<neon::BitCore<4>, 64>("conv_binary_4x64c16_neon");

}  // namespace deploy
