/// All variants that are compiled in, and which of them computes a layer.
#ifndef DEPLOY_KERNELS_COMMON_REGISTRY_H_
#define DEPLOY_KERNELS_COMMON_REGISTRY_H_

#include <stddef.h>

#include "common/variant.h"

namespace deploy {

size_t variant_count();
const Variant& variant_at(size_t index);

/// Whether this CPU can execute it.
bool variant_supported(const Variant& variant);

/// The variant called `name`, or null.
const Variant* variant_named(const char* name);

/// What KERNELS_FORCE asks for: nothing, "reference", an instruction set ("avx2"), or a variant's name.
const char* forced();

/// The best variant of `family` here for a layer; null where there is none.  Of those for the same instruction set it is
/// one made for a single row or for many, as the layer has; one that transforms where that pays; and else the one whose
/// tiles waste the fewest columns.
///
/// `force` is null, or a value of KERNELS_FORCE: of the variants that it names the best, and where it names none of this
/// family, the reference.
const Variant* select_variant(DeployFamily family, const DeployConvShape& shape, const char* force);

/// The family's plain reference, which fits every layer; null for what is no family.
const Variant* reference_of(DeployFamily family);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_REGISTRY_H_
