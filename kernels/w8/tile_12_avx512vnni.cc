#include "common/dense_tile_avx512vnni.h"
#include "w8/variants.h"

namespace deploy {

const Variant conv_w8_12x32c4_avx512vnni = {
    "conv_w8_12x32c4_avx512vnni", DEPLOY_FAMILY_W8, kAvx512Vnni, 12, 32, 4, true, dense_pixel_bytes,
    prepare_unsigned512, Packing512<2, 8>::panel_bytes, Packing512<2, 8>::pack, dense_refuse_nothing,
    dense_tile<2, 8>};

const Variant conv_w8_12x16c4_avx512vnni = {
    "conv_w8_12x16c4_avx512vnni", DEPLOY_FAMILY_W8, kAvx512Vnni, 12, 16, 4, false, dense_pixel_bytes,
    prepare_unsigned512, Packing512<1, 8>::panel_bytes, Packing512<1, 8>::pack, dense_refuse_nothing,
    dense_tile<1, 8>};

}  // namespace deploy
