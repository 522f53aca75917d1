#include "w4/variants.h"

namespace deploy {
namespace {

const Variant* const kVariants[] = {
#if defined(__x86_64__)
    &conv_w4_12x32c4_avx512vnni,
#endif
    &conv_w4_4x8c1_reference,
};

}  // namespace

extern const VariantTable w4_table;
const VariantTable w4_table = {kVariants, sizeof kVariants / sizeof kVariants[0]};

}  // namespace deploy
