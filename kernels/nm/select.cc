#include "nm/variants.h"

namespace deploy {
namespace {

const Variant* const kVariants[] = {
#if defined(__x86_64__)
    &conv_nm8_12x16c16_avx512vnni,
#endif
    &conv_nm8_4x16c16_reference,
};

}  // namespace

extern const VariantTable nm8_table;
const VariantTable nm8_table = {kVariants, sizeof kVariants / sizeof kVariants[0]};

}  // namespace deploy
