/// The TFLite delegate: looks at the model's nodes, claims those that are worth it, and computes them.
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <new>

#include "common/memory.h"
#include "common/registry.h"
#include "delegate/binary.h"
#include "delegate/choose.h"
#include "delegate/graph.h"
#include "delegate/layer.h"
#include "delegate/report.h"
#include "delegate/tflite_abi.h"
#include "delegate/weights.h"
#include "kernels.h"

namespace deploy {
namespace {

/// A claimed layer.  The weights are packed when the node is claimed; the shape may change with the model's input.
struct Kernel {
  Layer layer;
  DeployFamily family = DEPLOY_FAMILY_W8;
  DeployConv* conv = nullptr;
  DeployConvShape shape = {};  ///< that conv was packed for
  Decision* decision = nullptr;
  TfLiteContext* context = nullptr;
  int node = 0;
  bool is_silent = false;  ///< nothing to do: the layer behind takes what goes into this node
  int input = -1, output = -1;
  BinaryInput binary;      ///< binary layers
  bool reads_whole = false;  ///< and it reads what goes into the CAST in front
  Kernel* next = nullptr;
};

struct Delegate {
  TfLiteDelegate tflite = {};
  Mode mode = Mode::kAuto;
  bool profile = false;
  char* report = nullptr;  ///< a path
  Decisions decisions;
  Kernel* claimed = nullptr;
};

/// What TFLite makes of adjacent claimed nodes: they are computed one after another.
struct Partition {
  Delegate* delegate;
  Kernel** kernels;
  int count;
};

void free_kernel(Kernel* kernel) {
  if (!kernel) return;
  deploy_conv_destroy(kernel->conv);
  kernel->~Kernel();
  free(kernel);
}

Kernel* new_kernel() {
  void* const memory = malloc(sizeof(Kernel));
  return memory ? new (memory) Kernel() : nullptr;
}

const char* op_name(const TfLiteRegistration& registration) {
  switch (registration.builtin_code) {
    case kTfLiteConv2d: return "CONV_2D";
    case kTfLiteDepthwiseConv2d: return "DEPTHWISE_CONV_2D";
    case kTfLiteFullyConnected: return "FULLY_CONNECTED";
    case kTfLiteDensify: return "DENSIFY";
    case kTfLiteCast: return "CAST";
    case kTfLiteGreaterEqual: return "GREATER_EQUAL";
    case kTfLiteSelectV2: return "SELECT_V2";
    default: return nullptr;
  }
}

/// Operators that a layer behind them may make superfluous.
bool op_is_silent(const TfLiteRegistration& registration) {
  switch (registration.builtin_code) {
    case kTfLiteDensify:
    case kTfLiteCast:
    case kTfLiteGreaterEqual:
    case kTfLiteSelectV2:
      return true;
    default:
      return false;
  }
}

void say_no(Decision* decision, const char* reason) {
  decision->claimed = false;
  decision->reason = reason;
}

/// Packs a kernel for its shape; the variant that was chosen first is kept.
bool pack(Kernel* kernel, const DeployConvShape& shape, Mode mode, const char** reason) {
  static const char* const kRefused = "the kernels refuse such a layer";
  const Variant* const reference = mode == Mode::kReference ? reference_of(kernel->family) : nullptr;
  DeployConv* const conv =
      deploy_conv_create(kernel->family, &shape, kernel->layer.weights, &kernel->layer.requantization,
                         kernel->family == DEPLOY_FAMILY_BINARY ? &kernel->layer.binarization : nullptr,
                         reference ? reference->name : nullptr, nullptr, 0);
  *reason = kRefused;
  if (!conv) return false;
  deploy_conv_destroy(kernel->conv);
  kernel->conv = conv;
  kernel->shape = shape;
  kernel->decision->kernel = deploy_conv_variant(conv);
  kernel->decision->packed_bytes = deploy_conv_packed_bytes(conv);
  return true;
}

/// Packs a layer as it was chosen and enters it among the claimed ones.
bool take(Delegate* delegate, Kernel* kernel, const Choice& choice, const char** reason) {
  kernel->family = choice.family;
  if (!pack(kernel, kernel->layer.shape, delegate->mode, reason)) return false;
  kernel->decision->claimed = true;
  kernel->decision->gain = choice.gain;
  kernel->decision->reason = choice.reason;
  kernel->next = delegate->claimed;
  delegate->claimed = kernel;
  return true;
}

/// Decides about one node; the kernel, where it is claimed.
Kernel* consider(Delegate* delegate, const Graph& graph, int position, Decision* decision) {
  const TfLiteContext& context = *graph.context;
  const TfLiteNode& node = *graph.nodes[position];
  const TfLiteRegistration& registration = *graph.registrations[position];
  const TfLiteTensor* filter = input_of(context, node, 1);
  bool densified = false;
  if (filter && !is_constant(*filter)) {
    const int producer = graph.producer(graph.input(position, 1));
    const TfLiteTensor* const dense = filter;
    filter = graph.is(producer, kTfLiteDensify) ? graph.tensor(graph.input(producer, 0)) : nullptr;
    densified = filter != nullptr;
    // DENSIFY changes nothing but the storage.
    if (filter && (!filter->dims || !dense->dims || filter->dims->size != dense->dims->size || filter->type != dense->type ||
                   memcmp(filter->dims->data, dense->dims->data,
                          static_cast<size_t>(filter->dims->size) * sizeof(int)) != 0)) {
      filter = nullptr;
    }
  }
  if (!filter) {
    say_no(decision, "the filter is not a constant");
    return nullptr;
  }
  Kernel* const kernel = new_kernel();
  if (!kernel) {
    say_no(decision, "memory is short");
    return nullptr;
  }
  const char* reason = read_layer(context, node, registration, *filter, &kernel->layer);
  kernel->layer.densified = densified;
  decision->stored_bytes = filter->bytes;
  if (!reason) {
    decision->macs = layer_macs(kernel->layer.shape);
    kernel->decision = decision;
    kernel->context = graph.context;
    kernel->node = graph.indices[position];
    kernel->input = node.inputs->data[0];
    kernel->output = node.outputs->data[0];
    kernel->binary = find_binary_input(graph, position, kernel->layer);
    if (kernel->binary.found) {
      kernel->reads_whole = kernel->binary.whole && binarize(graph, kernel->binary, true, &kernel->layer);
      const bool binary = kernel->reads_whole || binarize(graph, kernel->binary, false, &kernel->layer);
      if (kernel->reads_whole) kernel->input = graph.input(kernel->binary.cast, 0);
      const Choice choice = choose(kernel->layer, delegate->mode, true);
      if (binary && choice.claim && take(delegate, kernel, choice, &reason)) return kernel;
      kernel->binary.found = kernel->reads_whole = false;  // its weights may not be binary
      kernel->input = node.inputs->data[0];
      reason = nullptr;
    }
    const Choice choice = choose(kernel->layer, delegate->mode, false);
    if (choice.claim && take(delegate, kernel, choice, &reason)) return kernel;
    if (!reason) reason = choice.reason;
    decision->gain = choice.gain;
  }
  say_no(decision, reason);
  free_kernel(kernel);
  return nullptr;
}

Kernel* find_claimed(Delegate* delegate, const TfLiteContext* context, int node) {
  for (Kernel* kernel = delegate->claimed; kernel; kernel = kernel->next) {
    if (kernel->context == context && kernel->node == node) return kernel;
  }
  return nullptr;
}

/// Brings the output tensors and the packed layers in line with the inputs' present shapes.
TfLiteStatus prepare_kernel(TfLiteContext* context, Delegate* delegate, Kernel* kernel) {
  if (kernel->is_silent) return kTfLiteOk;
  const TfLiteTensor& input = context->tensors[kernel->input];
  TfLiteTensor& output = context->tensors[kernel->output];
  DeployConvShape shape;
  int dims[kMaxOutRank], rank;
  if (!shape_for_input(input, kernel->layer, &shape, dims, &rank)) {
    context->ReportError(context, "deploy kernels: node %d: the input's new shape does not fit the filter", kernel->node);
    return kTfLiteError;
  }
  const bool same = output.dims && output.dims->size == rank &&
                    memcmp(output.dims->data, dims, static_cast<size_t>(rank) * sizeof(int)) == 0;
  if (!same) {
    auto* const size = static_cast<TfLiteIntArray*>(malloc(sizeof(int) * (static_cast<size_t>(rank) + 1)));
    if (!size) return kTfLiteError;
    size->size = rank;
    memcpy(size->data, dims, static_cast<size_t>(rank) * sizeof(int));
    if (context->ResizeTensor(context, &output, size) != kTfLiteOk) return kTfLiteError;
  }
  const char* reason;
  if (memcmp(&shape, &kernel->shape, sizeof shape) != 0 && !pack(kernel, shape, delegate->mode, &reason)) {
    context->ReportError(context, "deploy kernels: node %d: %s", kernel->node, reason);
    return kTfLiteError;
  }
  return kTfLiteOk;
}

uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}

void flip(const uint8_t* from, uint8_t* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = from[i] ^ 0x80;
}

TfLiteStatus run_kernel(TfLiteContext* context, Kernel* kernel) {
  const TfLiteTensor& input = context->tensors[kernel->input];
  TfLiteTensor& output = context->tensors[kernel->output];
  const DeployConvShape& s = kernel->shape;
  const size_t in_bytes = static_cast<size_t>(s.batch) * s.in_h * s.in_w * s.in_c;
  const size_t out_bytes = static_cast<size_t>(s.batch) * s.out_h * s.out_w * s.out_c;
  if (!input.data || !output.data || input.bytes < in_bytes || output.bytes < out_bytes) return kTfLiteError;
  const int32_t threads = context->recommended_num_threads > 0 ? context->recommended_num_threads : 1;
  auto* const out = static_cast<int8_t*>(output.data);
  if (!kernel->layer.is_uint8) {
    return deploy_conv_run(kernel->conv, static_cast<const int8_t*>(input.data), out, threads) ? kTfLiteError : kTfLiteOk;
  }
  // uint8 is int8 with its highest bit turned over, in values and in zero points.
  auto* const flipped = static_cast<uint8_t*>(malloc(in_bytes));
  if (!flipped) return kTfLiteError;
  flip(static_cast<const uint8_t*>(input.data), flipped, in_bytes);
  const int32_t failed = deploy_conv_run(kernel->conv, reinterpret_cast<const int8_t*>(flipped), out, threads);
  free(flipped);
  flip(reinterpret_cast<const uint8_t*>(out), reinterpret_cast<uint8_t*>(out), out_bytes);
  return failed ? kTfLiteError : kTfLiteOk;
}

void* partition_init(TfLiteContext* context, const char* buffer, size_t) {
  const auto* const params = reinterpret_cast<const TfLiteDelegateParams*>(buffer);
  Delegate* const delegate = static_cast<Delegate*>(params->delegate->data);
  const int count = params->nodes_to_replace->size;
  auto* const partition = static_cast<Partition*>(calloc(1, sizeof(Partition)));
  auto** const kernels = static_cast<Kernel**>(calloc(static_cast<size_t>(count) + 1, sizeof(Kernel*)));
  if (!partition || !kernels) {
    free(partition);
    free(kernels);
    return nullptr;
  }
  *partition = {delegate, kernels, 0};
  for (int i = 0; i < count; ++i) {
    Kernel* const kernel = find_claimed(delegate, context, params->nodes_to_replace->data[i]);
    if (kernel) kernels[partition->count++] = kernel;
  }
  return partition;
}

void partition_free(TfLiteContext*, void* buffer) {
  auto* const partition = static_cast<Partition*>(buffer);
  if (!partition) return;
  free(partition->kernels);
  free(partition);
}

bool contains(const TfLiteIntArray* array, int value) {
  for (int i = 0; array && i < array->size; ++i) {
    if (array->data[i] == value) return true;
  }
  return false;
}

/// Tensors that pass between the nodes of a partition are nobody's any more, and would get no memory: they become the
/// partition's temporaries, for which TFLite plans memory while the partition runs.
bool adopt_temporaries(const Partition& partition, TfLiteNode* node) {
  auto* const temporaries =
      static_cast<TfLiteIntArray*>(malloc(sizeof(int) * (static_cast<size_t>(partition.count) + 1)));
  if (!temporaries) return false;
  temporaries->size = 0;
  for (int i = 0; i < partition.count; ++i) {
    const Kernel& kernel = *partition.kernels[i];
    if (!kernel.is_silent && !contains(node->outputs, kernel.output)) {
      temporaries->data[temporaries->size++] = kernel.output;
    }
  }
  free(node->temporaries);  // TFLite allocates and frees such arrays with malloc() and free() as well
  node->temporaries = temporaries;
  return true;
}

TfLiteStatus partition_prepare(TfLiteContext* context, TfLiteNode* node) {
  const auto* const partition = static_cast<Partition*>(node->user_data);
  if (!partition || !adopt_temporaries(*partition, node)) return kTfLiteError;
  for (int i = 0; i < partition->count; ++i) {
    if (prepare_kernel(context, partition->delegate, partition->kernels[i]) != kTfLiteOk) return kTfLiteError;
  }
  return kTfLiteOk;
}

TfLiteStatus partition_invoke(TfLiteContext* context, TfLiteNode* node) {
  const auto* const partition = static_cast<Partition*>(node->user_data);
  for (int i = 0; i < partition->count; ++i) {
    Kernel* const kernel = partition->kernels[i];
    if (kernel->is_silent) continue;
    const uint64_t started = partition->delegate->profile ? now_ns() : 0;
    if (run_kernel(context, kernel) != kTfLiteOk) {
      context->ReportError(context, "deploy kernels: node %d could not be computed", kernel->node);
      return kTfLiteError;
    }
    if (started) {
      __atomic_fetch_add(&kernel->decision->time_ns, now_ns() - started, __ATOMIC_RELAXED);
      __atomic_fetch_add(&kernel->decision->invocations, 1, __ATOMIC_RELAXED);
    }
  }
  return kTfLiteOk;
}

/// Nodes whose work a claimed layer does itself: DENSIFY, and the three that make a binary layer's input.
struct Bypassed {
  Delegate* delegate;
  const Graph& graph;
  bool* silent;  ///< [graph.count]
  bool* needed;  ///< [graph.count] its output is wanted outside, as an output of the model
  const char* reason = nullptr;

  /// Whether the reader at `position` has no use for `tensor`, which the node at `from` writes.
  bool needs_not(int position, int tensor, int from) const {
    if (silent[position]) return true;
    const Kernel* const kernel = find_claimed(delegate, graph.context, graph.indices[position]);
    if (!kernel || kernel->is_silent) return false;
    if (graph.is(from, kTfLiteDensify)) {
      return graph.input(position, 1) == tensor && graph.input(position, 0) != tensor;
    }
    return kernel->reads_whole && kernel->binary.select == from;
  }

  bool can_be_silent(int position) const {
    const int tensor = graph.output(position);
    if (needed[position] || tensor < 0) return false;
    bool any = false;
    for (int i = 0; i < graph.count; ++i) {
      const TfLiteIntArray* const inputs = graph.nodes[i]->inputs;
      for (int k = 0; inputs && k < inputs->size; ++k) {
        if (inputs->data[k] != tensor) continue;
        any = true;
        if (!needs_not(i, tensor, position)) return false;
      }
    }
    return any;
  }

  /// From the end of the graph to its beginning, so that readers are known before what they read.
  void find() {
    for (int i = graph.count - 1; i >= 0; --i) {
      const bool candidate = graph.is(i, kTfLiteDensify) || graph.is(i, kTfLiteCast) || graph.is(i, kTfLiteGreaterEqual) ||
                             graph.is(i, kTfLiteSelectV2);
      silent[i] = candidate && is_of_pattern(i) && can_be_silent(i);
    }
  }

  /// A CAST or GREATER_EQUAL of no binary layer must not look silent for want of readers that matter.
  bool is_of_pattern(int position) const {
    if (graph.is(position, kTfLiteDensify)) return true;
    for (const Kernel* k = delegate->claimed; k; k = k->next) {
      if (k->context != graph.context || !k->reads_whole) continue;
      if (k->binary.select == position || k->binary.compare == position || k->binary.cast == position) return true;
    }
    return false;
  }

  /// A binary layer may read what goes into the CAST only if that runs with it, or TFLite's memory plan may have given
  /// the tensor away.  Any that cannot reads SELECT_V2's output instead.  False where memory is short.
  bool settle() {
    for (bool changed = true; changed;) {
      changed = false;
      find();
      for (Kernel* k = delegate->claimed; k; k = k->next) {
        if (k->context != graph.context || !k->reads_whole) continue;
        const BinaryInput& b = k->binary;
        if (silent[b.select] && silent[b.compare] && silent[b.cast]) continue;
        k->reads_whole = false;
        k->input = graph.output(b.select);
        const char* why;
        if (!binarize(graph, b, false, &k->layer) || !pack(k, k->shape, delegate->mode, &why)) return false;
        changed = true;
      }
    }
    return true;
  }
};

/// Asks TFLite which tensors would leave the claimed parts, and marks silent nodes that make one of them.
bool mark_needed(TfLiteContext* context, const TfLiteIntArray* claims, Bypassed* bypassed, bool* changed) {
  TfLiteDelegateParams* partitions = nullptr;
  int count = 0;
  *changed = false;
  if (context->PreviewDelegatePartitioning(context, claims, &partitions, &count) != kTfLiteOk) return false;
  for (int p = 0; p < count; ++p) {
    for (int i = 0; i < bypassed->graph.count; ++i) {
      const TfLiteIntArray* const outputs = partitions[p].output_tensors;
      for (int k = 0; bypassed->silent[i] && outputs && k < outputs->size; ++k) {
        if (outputs->data[k] != bypassed->graph.output(i)) continue;
        bypassed->needed[i] = true;
        *changed = true;
      }
    }
  }
  return true;
}

void list_claims(Delegate* delegate, const Graph& graph, const bool* silent, TfLiteIntArray* claims) {
  claims->size = 0;
  for (int i = 0; i < graph.count; ++i) {
    if (silent[i] || find_claimed(delegate, graph.context, graph.indices[i])) {
      claims->data[claims->size++] = graph.indices[i];
    }
  }
}

TfLiteStatus delegate_prepare(TfLiteContext* context, TfLiteDelegate* tflite) {
  Delegate* const delegate = static_cast<Delegate*>(tflite->data);
  Graph graph(context);
  if (!graph.read()) return kTfLiteError;
  auto* const claims = static_cast<TfLiteIntArray*>(malloc(sizeof(int) * (static_cast<size_t>(graph.count) + 1)));
  auto** const decisions = static_cast<Decision**>(calloc(static_cast<size_t>(graph.count) + 1, sizeof(Decision*)));
  auto* const silent = static_cast<bool*>(calloc(static_cast<size_t>(graph.count) + 1, sizeof(bool)));
  auto* const needed = static_cast<bool*>(calloc(static_cast<size_t>(graph.count) + 1, sizeof(bool)));
  TfLiteStatus status = claims && decisions && silent && needed ? kTfLiteOk : kTfLiteError;
  for (int i = 0; i < graph.count && status == kTfLiteOk; ++i) {
    const char* const op = op_name(*graph.registrations[i]);
    if (!op) continue;
    const TfLiteIntArray* const outputs = graph.nodes[i]->outputs;
    const bool named = outputs && outputs->size > 0 && outputs->data[0] >= 0 &&
                       static_cast<size_t>(outputs->data[0]) < context->tensors_size;
    Decision* const decision =
        add_decision(&delegate->decisions, named ? context->tensors[outputs->data[0]].name : nullptr);
    if (!decision) {
      status = kTfLiteError;
      break;
    }
    decisions[i] = decision;
    decision->node = graph.indices[i];
    decision->op = op;
    decision->reason = "";
    switch (op_of(*graph.registrations[i])) {
      case Op::kConv2d:
      case Op::kFullyConnected:
        consider(delegate, graph, i, decision);
        break;
      case Op::kDensify:
        break;
      case Op::kNone:
        if (op_is_silent(*graph.registrations[i])) break;
        say_no(decision, "XNNPACK computes a depthwise convolution as fast");
        break;
    }
  }
  Bypassed bypassed = {delegate, graph, silent, needed};
  bool changed = status == kTfLiteOk;
  while (changed) {
    if (!bypassed.settle()) status = kTfLiteError;
    list_claims(delegate, graph, silent, claims);
    changed = false;
    if (status == kTfLiteOk && claims->size > 0 && !mark_needed(context, claims, &bypassed, &changed)) {
      status = kTfLiteError;
    }
  }
  if (status == kTfLiteOk) {
    for (int i = 0; i < graph.count; ++i) {
      if (!decisions[i] || !op_is_silent(*graph.registrations[i])) continue;
      decisions[i]->claimed = silent[i];
      decisions[i]->kernel = silent[i] ? "none" : nullptr;
      decisions[i]->reason = silent[i] ? "the layer behind it does this itself" : "its output is needed";
      Kernel* const kernel = silent[i] ? new_kernel() : nullptr;
      if (!kernel) continue;
      kernel->is_silent = true;
      kernel->context = context;
      kernel->node = graph.indices[i];
      kernel->output = graph.output(i);
      kernel->decision = decisions[i];
      kernel->next = delegate->claimed;
      delegate->claimed = kernel;
    }
    TfLiteRegistration registration = {};
    registration.init = partition_init;
    registration.free = partition_free;
    registration.prepare = partition_prepare;
    registration.invoke = partition_invoke;
    registration.custom_name = "DeployKernels";
    registration.version = 1;
    if (claims->size > 0) {
      status = context->ReplaceNodeSubsetsWithDelegateKernels(context, registration, claims, tflite);
    }
    if (delegate->report && !write_report(&delegate->decisions, delegate->report)) {
      context->ReportError(context, "deploy kernels: cannot write the report to %s", delegate->report);
      status = kTfLiteError;
    }
  }
  free(claims);
  free(decisions);
  free(silent);
  free(needed);
  return status;
}

struct ModeName {
  const char* name;
  Mode mode;
};
constexpr ModeName kModes[] = {
    {"off", Mode::kOff}, {"auto", Mode::kAuto}, {"all", Mode::kAll}, {"reference", Mode::kReference}};

/// Applies one option; the sentence why not, or null.
const char* apply_option(Delegate* delegate, const char* key, const char* value) {
  if (strcmp(key, "mode") == 0) {
    for (const ModeName& entry : kModes) {
      if (strcmp(entry.name, value) != 0) continue;
      delegate->mode = entry.mode;
      delegate->decisions.mode = entry.name;
      return nullptr;
    }
    return "deploy kernels: mode is off, auto, all or reference";
  }
  if (strcmp(key, "profile") == 0) {
    if (strcmp(value, "0") != 0 && strcmp(value, "1") != 0) return "deploy kernels: profile is 0 or 1";
    delegate->profile = value[0] == '1';
    return nullptr;
  }
  if (strcmp(key, "report") == 0) {
    free(delegate->report);
    delegate->report = strdup(value);
    return delegate->report ? nullptr : "deploy kernels: memory is short";
  }
  return "deploy kernels: the options are mode, profile and report";
}

void destroy(Delegate* delegate) {
  delist(&delegate->decisions);
  for (Kernel* kernel = delegate->claimed; kernel;) {
    Kernel* const next = kernel->next;
    free_kernel(kernel);
    kernel = next;
  }
  free_decisions(&delegate->decisions);
  free(delegate->report);
  free(delegate);
}

}  // namespace
}  // namespace deploy

extern "C" {

DEPLOY_KERNELS_API TfLiteDelegate* tflite_plugin_create_delegate(const char* const* keys, const char* const* values,
                                                                 size_t count, void (*report_error)(const char*));
DEPLOY_KERNELS_API void tflite_plugin_destroy_delegate(TfLiteDelegate* delegate);

TfLiteDelegate* tflite_plugin_create_delegate(const char* const* keys, const char* const* values, size_t count,
                                              void (*report_error)(const char*)) {
  void* const memory = malloc(sizeof(deploy::Delegate));
  if (!memory) return nullptr;
  auto* const delegate = new (memory) deploy::Delegate();
  deploy::enlist(&delegate->decisions);
  for (size_t i = 0; i < count; ++i) {
    const char* const reason = deploy::apply_option(delegate, keys[i], values[i]);
    if (!reason) continue;
    if (report_error) report_error(reason);
    deploy::destroy(delegate);
    return nullptr;
  }
  delegate->tflite.data = delegate;
  delegate->tflite.Prepare = deploy::delegate_prepare;
  delegate->tflite.flags = kTfLiteDelegateFlagsAllowDynamicTensors;
  return &delegate->tflite;
}

void tflite_plugin_destroy_delegate(TfLiteDelegate* delegate) {
  if (delegate) deploy::destroy(static_cast<deploy::Delegate*>(delegate->data));
}

}  // extern "C"
