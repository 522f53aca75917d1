#include "common/dense_tile_avx2.h"
#include "w2/variants.h"

namespace deploy {

const Variant conv_w2_4x16c4_avx2 = {
    "conv_w2_4x16c4_avx2", DEPLOY_FAMILY_W2, kAvx2, 4, 16, 4, true, dense_pixel_bytes, prepare_unsigned,
    Packing256<2>::panel_bytes, Packing256<2>::pack, dense_refuse_bits<2>, dense_tile256<2>};

}  // namespace deploy
