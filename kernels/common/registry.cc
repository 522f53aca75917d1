#include "common/registry.h"

#include <stdlib.h>
#include <string.h>

#include "common/cpu_features.h"
#include "common/shape.h"
#include "common/winograd.h"

namespace deploy {

extern const VariantTable w8_table, w4_table, w2_table, binary_table, tile8_table, tile4_table, block8_table,
    nm8_table;

namespace {

const VariantTable* const kTables[] = {&w8_table,    &w4_table,    &w2_table,    &binary_table,
                                       &tile8_table, &tile4_table, &block8_table, &nm8_table};

/// "avx2" of "conv_w8_4x16c4_avx2".
const char* isa_of_variant(const Variant& variant) {
  const char* const last = strrchr(variant.name, '_');
  return last ? last + 1 : variant.name;
}

bool named_by(const Variant& variant, const char* force) {
  return strcmp(variant.name, force) == 0 || strcmp(isa_of_variant(variant), force) == 0;
}

}  // namespace

size_t variant_count() {
  size_t count = 0;
  for (const VariantTable* table : kTables) count += table->count;
  return count;
}

const Variant& variant_at(size_t index) {
  const VariantTable* const* table = kTables;
  while (index >= (*table)->count) index -= (*table++)->count;
  return *(*table)->variants[index];
}

bool variant_supported(const Variant& variant) { return (cpu_isas() & variant.isa) == variant.isa; }

const Variant* variant_named(const char* name) {
  for (size_t i = 0; i < variant_count(); ++i) {
    if (strcmp(variant_at(i).name, name) == 0) return &variant_at(i);
  }
  return nullptr;
}

const char* forced() {
  const char* const force = getenv("KERNELS_FORCE");
  return force && *force ? force : nullptr;
}

const Variant* select_variant(DeployFamily family, const DeployConvShape& shape, const char* force) {
  const Variant* best = nullptr;
  uint64_t least = UINT64_MAX;
  for (size_t i = 0; i < variant_count(); ++i) {
    const Variant& variant = variant_at(i);
    if (variant.family != family || !variant_supported(variant)) continue;
    if (force && !named_by(variant, force)) continue;
    if (best && best->isa != variant.isa) break;  // those of a better instruction set come first
    if (variant.winograd) {
      if (winograd_unfit(shape)) continue;
      if (winograd_pays(shape) || (force && strcmp(variant.name, force) == 0)) return &variant;
      continue;
    }
    // A variant for single rows may have mr = 1, and would take a layer of many rows one by one.
    const bool made_for_it = is_single_row(shape) ? variant.gemv : variant.mr > 1;
    const uint64_t out_c = static_cast<uint64_t>(shape.out_c / shape.groups);
    const uint64_t columns = (out_c + variant.nr - 1) / variant.nr * variant.nr;
    const uint64_t cost = columns + (made_for_it ? 0 : uint64_t{1} << 32);
    if (cost < least) {
      least = cost;
      best = &variant;
    }
  }
  return best ? best : reference_of(family);
}

const Variant* reference_of(DeployFamily family) {
  for (size_t i = variant_count(); i > 0; --i) {
    if (variant_at(i - 1).family == family) return &variant_at(i - 1);  // the last of its table
  }
  return nullptr;
}

}  // namespace deploy
