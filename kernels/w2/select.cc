#include "w2/variants.h"

namespace deploy {
namespace {

const Variant* const kVariants[] = {
#if defined(__x86_64__)
    &conv_w2_12x32c4_avx512vnni,
#endif
    &conv_w2_4x8c1_reference,
};

}  // namespace

extern const VariantTable w2_table;
const VariantTable w2_table = {kVariants, sizeof kVariants / sizeof kVariants[0]};

}  // namespace deploy
