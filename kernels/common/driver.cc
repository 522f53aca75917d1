/// The C ABI: checks a layer, packs it for one variant, and runs it.
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cpu_features.h"
#include "common/direct.h"
#include "common/memory.h"
#include "common/registry.h"
#include "common/shape.h"
#include "common/thread_pool.h"
#include "common/variant.h"
#include "common/winograd.h"
#include "kernels.h"

struct DeployConv {
  deploy::DirectPlan plan;
  deploy::DirectRun run;  ///< input and output are filled in for each run
  uint8_t* packed;
  size_t packed_bytes;
  const uint8_t** panels;
  int8_t* threshold;  ///< null but for binary layers
};

namespace deploy {
namespace {

__attribute__((format(printf, 3, 4))) void say(char* error, size_t error_bytes, const char* format, ...) {
  if (!error || error_bytes == 0) return;
  va_list values;
  va_start(values, format);
  vsnprintf(error, error_bytes, format, values);
  va_end(values);
}

GroupWeights group_weights(const DeployConvShape& shape, const int8_t* weights,
                           const DeployRequantization& requantization, const DeployBinarization* binarization,
                           const int32_t* tap_offset, size_t group) {
  GroupWeights g;
  g.out_c = static_cast<size_t>(shape.out_c / shape.groups);
  g.taps = static_cast<size_t>(shape.kernel_h) * static_cast<size_t>(shape.kernel_w);
  g.channels = static_cast<size_t>(shape.in_c / shape.groups);
  g.weights = weights + group * g.out_c * g.taps * g.channels;
  g.requantization = requantization;
  if (g.requantization.bias) g.requantization.bias += group * g.out_c;
  g.requantization.multiplier += group * g.out_c;
  g.requantization.shift += group * g.out_c;
  g.tap_offset = tap_offset;
  g.low = binarization ? binarization->low : 0;
  g.high = binarization ? binarization->high : 0;
  return g;
}

/// The reason why `variant` cannot hold these weights, or null.
const char* refusal(const Variant& variant, const DeployConvShape& shape, const int8_t* weights,
                    const DeployRequantization& requantization, const DeployBinarization* binarization) {
  for (size_t group = 0; group < static_cast<size_t>(shape.groups); ++group) {
    const char* reason =
        variant.refuse(group_weights(shape, weights, requantization, binarization, nullptr, group));
    if (reason) return reason;
  }
  return nullptr;
}

/// Packs all groups; false when memory is short.
bool pack(DeployConv* conv, const DeployConvShape& shape, const int8_t* weights,
          const DeployRequantization& requantization, const DeployBinarization* binarization,
          const int32_t* tap_offset) {
  const Variant& variant = *conv->plan.variant;
  const size_t groups = static_cast<size_t>(shape.groups), out_c = static_cast<size_t>(shape.out_c) / groups;
  const size_t panels = (out_c + variant.nr - 1) / variant.nr;
  size_t* const sizes = static_cast<size_t*>(malloc(groups * panels * sizeof(size_t)));
  conv->panels = static_cast<const uint8_t**>(malloc(groups * panels * sizeof(uint8_t*)));
  if (!sizes || !conv->panels) {
    free(sizes);
    return false;
  }
  for (size_t group = 0; group < groups; ++group) {
    variant.panel_bytes(group_weights(shape, weights, requantization, binarization, tap_offset, group),
                        sizes + group * panels);
  }
  for (size_t i = 0; i < groups * panels; ++i) {
    sizes[i] = (sizes[i] + 63) & ~size_t{63};
    conv->packed_bytes += sizes[i];
  }
  conv->packed = allocate(conv->packed_bytes);
  if (conv->packed) {
    memset(conv->packed, 0, conv->packed_bytes);
    uint8_t* to = conv->packed;
    for (size_t group = 0; group < groups; ++group) {
      const GroupWeights g = group_weights(shape, weights, requantization, binarization, tap_offset, group);
      for (size_t panel = 0; panel < panels; ++panel) {
        variant.pack(g, panel * variant.nr, to);
        conv->panels[group * panels + panel] = to;
        to += sizes[group * panels + panel];
      }
    }
  }
  free(sizes);
  return conv->packed != nullptr;
}

struct Job {
  const DeployConv* conv;
  DirectRun run;
  int32_t threads;
  int32_t failed;  ///< atomic
};

void run_unit(void* context, size_t unit) {
  Job* const job = static_cast<Job*>(context);
  const DirectPlan& plan = job->conv->plan;
  const WinogradSteps* const winograd = plan.variant->winograd;
  uint8_t* const scratch =
      thread_scratch(winograd ? winograd_scratch_bytes(plan) : direct_scratch_bytes(plan, job->threads));
  if (!scratch) {
    __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  (winograd ? winograd_run : direct_run)(plan, job->run, unit, job->threads, scratch);
}

}  // namespace
}  // namespace deploy

extern "C" {

int32_t deploy_kernels_abi(void) { return DEPLOY_KERNELS_ABI; }

const char* deploy_kernels_cpu(void) { return deploy::cpu_isa_names(); }

int32_t deploy_kernels_variant_count(void) { return static_cast<int32_t>(deploy::variant_count()); }

DeployVariant deploy_kernels_variant(int32_t index) {
  const deploy::Variant& variant = deploy::variant_at(static_cast<size_t>(index));
  return {variant.name, variant.family, variant.mr,       variant.nr,
          variant.kr,   deploy::variant_supported(variant), variant.gemv};
}

DeployConv* deploy_conv_create(DeployFamily family, const DeployConvShape* shape, const int8_t* weights,
                               const DeployRequantization* requantization, const DeployBinarization* binarization,
                               const char* variant, char* error, size_t error_bytes) {
  using namespace deploy;
  const char* reason = !shape || !weights || !requantization ? "an argument is null"
                                                             : check_layer(family, *shape, *requantization, binarization);
  if (reason) {
    say(error, error_bytes, "%s", reason);
    return nullptr;
  }
  const Variant* chosen = variant ? variant_named(variant)
                                  : select_variant(family, *shape, forced());
  if (!chosen || chosen->family != family) {
    say(error, error_bytes, variant ? "no variant of this family is called '%s'" : "no variant for this family%s",
        variant ? variant : "");
    return nullptr;
  }
  if (!variant_supported(*chosen)) {
    say(error, error_bytes, "this CPU (%s) cannot execute %s", cpu_isa_names(), chosen->name);
    return nullptr;
  }
  reason = chosen->winograd ? winograd_unfit(*shape) : nullptr;
  if (!reason) reason = refusal(*chosen, *shape, weights, *requantization, binarization);
  if (reason && !variant) {
    const Variant* const reference = reference_of(family);
    if (reference && !refusal(*reference, *shape, weights, *requantization, binarization)) {
      chosen = reference;
      reason = nullptr;
    }
  }
  if (reason) {
    say(error, error_bytes, "%s", reason);
    return nullptr;
  }
  const size_t taps = static_cast<size_t>(shape->kernel_h) * static_cast<size_t>(shape->kernel_w);
  DeployConv* conv = static_cast<DeployConv*>(calloc(1, sizeof(DeployConv)));
  int32_t* const tap_offset = static_cast<int32_t*>(malloc(taps * sizeof(int32_t)));
  reason = conv && tap_offset ? direct_plan(*shape, *chosen, &conv->plan, tap_offset) : "memory is short";
  if (!reason && !pack(conv, *shape, weights, *requantization, binarization, tap_offset)) reason = "memory is short";
  if (!reason && binarization) {
    conv->threshold = static_cast<int8_t*>(malloc(static_cast<size_t>(shape->in_c)));
    if (conv->threshold) memcpy(conv->threshold, binarization->threshold, static_cast<size_t>(shape->in_c));
    if (!conv->threshold) reason = "memory is short";
  }
  free(tap_offset);
  if (reason) {
    say(error, error_bytes, "%s", reason);
    deploy_conv_destroy(conv);
    return nullptr;
  }
  conv->run.panels = conv->panels;
  conv->run.threshold = conv->threshold;
  conv->run.input_zero_point = requantization->input_zero_point;
  conv->run.output_zero_point = requantization->output_zero_point;
  conv->run.clamp_min = requantization->clamp_min;
  conv->run.clamp_max = requantization->clamp_max;
  conv->run.single_rounding = requantization->single_rounding != 0;
  return conv;
}

const char* deploy_conv_variant(const DeployConv* conv) { return conv->plan.variant->name; }

size_t deploy_conv_packed_bytes(const DeployConv* conv) { return conv->packed_bytes; }

int32_t deploy_conv_run(DeployConv* conv, const int8_t* input, int8_t* output, int32_t threads) {
  if (threads < 1) threads = 1;
  deploy::Job job = {conv, conv->run, threads, 0};
  job.run.input = input;
  job.run.output = output;
  const auto units = conv->plan.variant->winograd ? deploy::winograd_units : deploy::direct_units;
  deploy::parallel_for(units(conv->plan, threads), threads, deploy::run_unit, &job);
  return __atomic_load_n(&job.failed, __ATOMIC_RELAXED);
}

void deploy_conv_destroy(DeployConv* conv) {
  if (!conv) return;
  free(conv->packed);
  free(conv->panels);
  free(conv->threshold);
  free(conv);
}

}  // extern "C"
