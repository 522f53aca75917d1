#include "block/variants.h"

namespace deploy {
namespace {

const Variant* const kVariants[] = {
#if defined(__x86_64__)
    &conv_block8_16x256c4_avx512vnni,
#endif
    &conv_block8_4x256c4_reference,
};

}  // namespace

extern const VariantTable block8_table;
const VariantTable block8_table = {kVariants, sizeof kVariants / sizeof kVariants[0]};

}  // namespace deploy
