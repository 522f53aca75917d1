#include "common/registry.h"

#include <stdlib.h>
#include <string.h>

#include "common/cpu_features.h"

namespace deploy {

extern const VariantTable w8_table, w4_table, w2_table;

namespace {

const VariantTable* const kTables[] = {&w8_table, &w4_table, &w2_table};

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

const Variant* select_variant(DeployFamily family, bool single, const char* force) {
  const Variant* fitting = nullptr;
  const Variant* reference = nullptr;
  for (size_t i = 0; i < variant_count(); ++i) {
    const Variant& variant = variant_at(i);
    if (variant.family != family || !variant_supported(variant)) continue;
    reference = &variant;  // the last of its table
    if (force && !named_by(variant, force)) continue;
    // A variant for single rows has mr = 1, and would take a layer of many rows one by one.
    if (single ? variant.gemv : variant.mr > 1) return &variant;
    if (!fitting) fitting = &variant;
  }
  return fitting ? fitting : reference;
}

}  // namespace deploy
