#include "common/dense_panel.h"
#include "common/winograd_avx512vnni.h"
#include "w4/variants.h"

namespace deploy {

const Variant winograd_w4_12x32c4_avx512vnni = {
    "winograd_w4_12x32c4_avx512vnni", DEPLOY_FAMILY_W4, kAvx512Vnni, 12, 32, 4, false, dense_pixel_bytes, nullptr,
    winograd_panel_bytes512<4>, winograd_pack512<4>, dense_refuse_bits<4>, nullptr, &kWinograd512<4>};

}  // namespace deploy
