#include "common/dense_panel.h"
#include "common/winograd_avx512vnni.h"
#include "w2/variants.h"

namespace deploy {

const Variant winograd_w2_12x32c8_avx512vnni = {
    "winograd_w2_12x32c8_avx512vnni", DEPLOY_FAMILY_W2, kAvx512Vnni, 12, 32, 8, false, dense_pixel_bytes, nullptr,
    winograd_panel_bytes512<2>, winograd_pack512<2>, dense_refuse_bits<2>, nullptr, &kWinograd512<2>};

}  // namespace deploy
