#include "common/dense_tile_avx512vnni.h"
#include "w4/variants.h"

namespace deploy {

const Variant conv_w4_12x32c4_avx512vnni = {
    "conv_w4_12x32c4_avx512vnni", DEPLOY_FAMILY_W4, kAvx512Vnni, 12, 32, 4, true, dense_pixel_bytes,
    prepare_unsigned512, Packing512<2, 4>::panel_bytes, Packing512<2, 4>::pack, dense_refuse_bits<4>,
    dense_tile<2, 4>};

const Variant conv_w4_12x16c4_avx512vnni = {
    "conv_w4_12x16c4_avx512vnni", DEPLOY_FAMILY_W4, kAvx512Vnni, 12, 16, 4, false, dense_pixel_bytes,
    prepare_unsigned512, Packing512<1, 4>::panel_bytes, Packing512<1, 4>::pack, dense_refuse_bits<4>,
    dense_tile<1, 4>};

}  // namespace deploy
