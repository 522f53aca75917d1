#include "w8/variants.h"

namespace deploy {
namespace {

const Variant* const kVariants[] = {
#if defined(__x86_64__)
    &conv_w8_12x32c4_avx512vnni,
#endif
    &conv_w8_4x8c1_reference,
};

}  // namespace

extern const VariantTable w8_table;
const VariantTable w8_table = {kVariants, sizeof kVariants / sizeof kVariants[0]};

}  // namespace deploy
