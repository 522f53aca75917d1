#include "w4/variants.h"

namespace deploy {
namespace {

const Variant* const kVariants[] = {
#if defined(__x86_64__)
    &winograd_w4_12x32c4_avx512vnni,
    &conv_w4_12x32c4_avx512vnni,
    &conv_w4_12x16c4_avx512vnni,
    &conv_w4_4x16c4_avx2,
#elif defined(__aarch64__)
    &conv_w4_8x16c16_neoni8mm,
    &conv_w4_8x16c16_neondot,
    &conv_w4_4x16c16_neon,
#elif defined(__arm__)
    &conv_w4_2x16c16_armv7neon,
#endif
    &conv_w4_4x8c1_reference,
};

}  // namespace

extern const VariantTable w4_table;
const VariantTable w4_table = {kVariants, sizeof kVariants / sizeof kVariants[0]};

}  // namespace deploy
