#include "common/dense_tile_avx2.h"
#include "w8/variants.h"

namespace deploy {

const Variant conv_w8_4x16c4_avx2 = {
    "conv_w8_4x16c4_avx2", DEPLOY_FAMILY_W8, kAvx2, 4, 16, 4, true, dense_pixel_bytes, prepare_unsigned,
    Packing256<8>::panel_bytes, Packing256<8>::pack, dense_refuse_nothing, dense_tile256<8>};

}  // namespace deploy
