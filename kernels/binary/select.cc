#include "binary/variants.h"

namespace deploy {
namespace {

const Variant* const kVariants[] = {
#if defined(__x86_64__)
    &conv_binary_6x32c8_avx512vpopcntdq,
    &conv_binary_2x16c8_avx2,
#elif defined(__aarch64__)
    &conv_binary_4x64c16_neon,
#elif defined(__arm__)
    &conv_binary_2x32c16_armv7neon,
#endif
    &conv_binary_2x16c8_reference,
};

}  // namespace

extern const VariantTable binary_table;
const VariantTable binary_table = {kVariants, sizeof kVariants / sizeof kVariants[0]};

}  // namespace deploy
