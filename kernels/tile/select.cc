#include "tile/variants.h"

namespace deploy {
namespace {

const Variant* const kVariants8[] = {
#if defined(__x86_64__)
    &conv_tile8_8x32c4_avx512vnni,
    &conv_tile8_4x16c4_avx2,
#elif defined(__aarch64__)
    &conv_tile8_8x32c4_neoni8mm,
    &conv_tile8_8x32c4_neondot,
    &conv_tile8_4x32c4_neon,
#elif defined(__arm__)
    &conv_tile8_2x32c4_armv7neon,
#endif
    &conv_tile8_4x32c4_reference,
};

const Variant* const kVariants4[] = {
#if defined(__x86_64__)
    &conv_tile4_8x32c4_avx512vnni,
    &conv_tile4_4x16c4_avx2,
#elif defined(__aarch64__)
    &conv_tile4_8x32c4_neoni8mm,
    &conv_tile4_8x32c4_neondot,
    &conv_tile4_4x32c4_neon,
#elif defined(__arm__)
    &conv_tile4_2x32c4_armv7neon,
#endif
    &conv_tile4_4x32c4_reference,
};

}  // namespace

extern const VariantTable tile8_table, tile4_table;
const VariantTable tile8_table = {kVariants8, sizeof kVariants8 / sizeof kVariants8[0]};
const VariantTable tile4_table = {kVariants4, sizeof kVariants4 / sizeof kVariants4[0]};

}  // namespace deploy
