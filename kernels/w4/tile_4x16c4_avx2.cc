#include "common/dense_tile_avx2.h"
#include "w4/variants.h"

namespace deploy {

const Variant conv_w4_4x16c4_avx2 = {
    "conv_w4_4x16c4_avx2", DEPLOY_FAMILY_W4, kAvx2, 4, 16, 4, true, dense_pixel_bytes, prepare_unsigned,
    Packing256<4>::panel_bytes, Packing256<4>::pack, dense_refuse_bits<4>, dense_tile256<4>};

}  // namespace deploy
