#include "common/registry.h"

#include <stdlib.h>
#include <string.h>

#include "common/cpu_features.h"

namespace deploy {

extern const VariantTable w8_table, w4_table, w2_table, binary_table, tile8_table, tile4_table, block8_table;

namespace {

const VariantTable* const kTables[] = {&w8_table,    &w4_table,    &w2_table,    &binary_table,
                                       &tile8_table, &tile4_table, &block8_table};

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

const Variant* select_variant(DeployFamily family, bool single, int32_t out_c, const char* force) {
  const Variant* best = nullptr;
  const Variant* reference = nullptr;
  uint64_t least = UINT64_MAX;
  for (size_t i = 0; i < variant_count(); ++i) {
    const Variant& variant = variant_at(i);
    if (variant.family != family || !variant_supported(variant)) continue;
    reference = &variant;  // the last of its table
    if (force && !named_by(variant, force)) continue;
    // A variant for single rows may have mr = 1, and would take a layer of many rows one by one.
    const bool made_for_it = single ? variant.gemv : variant.mr > 1;
    const uint64_t columns = (static_cast<uint64_t>(out_c) + variant.nr - 1) / variant.nr * variant.nr;
    const uint64_t cost = columns + (made_for_it ? 0 : uint64_t{1} << 32);
    if (strcmp(isa_of_variant(variant), "reference") == 0 && best) continue;
    if (best && best->isa != variant.isa) continue;  // those of a better instruction set come first
    if (cost < least) {
      least = cost;
      best = &variant;
    }
  }
  return best ? best : reference;
}

}  // namespace deploy
