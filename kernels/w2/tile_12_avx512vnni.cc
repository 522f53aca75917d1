#include "common/dense_tile_avx512vnni.h"
#include "w2/variants.h"

namespace deploy {

const Variant conv_w2_12x32c4_avx512vnni = {
    "conv_w2_12x32c4_avx512vnni", DEPLOY_FAMILY_W2, kAvx512Vnni, 12, 32, 4, true, dense_pixel_bytes,
    prepare_unsigned512, Packing512<2, 2>::panel_bytes, Packing512<2, 2>::pack, dense_refuse_bits<2>,
    dense_tile<2, 2>};

const Variant conv_w2_12x16c4_avx512vnni = {
    "conv_w2_12x16c4_avx512vnni", DEPLOY_FAMILY_W2, kAvx512Vnni, 12, 16, 4, false, dense_pixel_bytes,
    prepare_unsigned512, Packing512<1, 2>::panel_bytes, Packing512<1, 2>::pack, dense_refuse_bits<2>,
    dense_tile<1, 2>};

}  // namespace deploy
