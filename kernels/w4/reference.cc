#include "w4/variants.h"

namespace deploy {

using Packing = DensePacking<8, 1, 8, 1, 0>;

const Variant conv_w4_4x8c1_reference = {
    "conv_w4_4x8c1_reference", DEPLOY_FAMILY_W4, kPortable, 4, 8, 1, false, dense_pixel_bytes, nullptr,
    Packing::panel_bytes, Packing::pack, dense_refuse_bits<4>, dense_reference_tile};

}  // namespace deploy
