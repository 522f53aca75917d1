#include "w2/variants.h"

namespace deploy {

using Packing = DensePacking<8, 1, 8, 1, 0>;

const Variant conv_w2_4x8c1_reference = {
    "conv_w2_4x8c1_reference", DEPLOY_FAMILY_W2, kPortable, 4, 8, 1, false, dense_pixel_bytes, nullptr,
    Packing::panel_bytes, Packing::pack, dense_refuse_bits<2>, dense_reference_tile};

}  // namespace deploy
