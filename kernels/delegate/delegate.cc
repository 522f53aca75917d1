/// The TFLite delegate: looks at the model's nodes, claims those that are worth it, and computes them.
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <new>

#include "common/memory.h"
#include "common/registry.h"
#include "delegate/choose.h"
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
  bool is_densify = false;  ///< nothing to do: the layer behind reads the sparse weights itself
  int input = -1, output = -1;
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
    default: return nullptr;
  }
}

/// The nodes of a model in order of execution.
struct Graph {
  TfLiteContext* context;
  int count = 0;
  int* indices = nullptr;  ///< a copy: TFLite's own array is gone with the next call
  TfLiteNode** nodes = nullptr;
  TfLiteRegistration** registrations = nullptr;

  explicit Graph(TfLiteContext* given) : context(given) {}
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    free(indices);
    free(nodes);
    free(registrations);
  }

  bool read() {
    TfLiteIntArray* plan = nullptr;
    if (context->GetExecutionPlan(context, &plan) != kTfLiteOk || !plan || plan->size < 0) return false;
    count = plan->size;
    const size_t n = static_cast<size_t>(count) + 1;
    indices = static_cast<int*>(calloc(n, sizeof(int)));
    nodes = static_cast<TfLiteNode**>(calloc(n, sizeof(TfLiteNode*)));
    registrations = static_cast<TfLiteRegistration**>(calloc(n, sizeof(TfLiteRegistration*)));
    if (!indices || !nodes || !registrations) return false;
    memcpy(indices, plan->data, static_cast<size_t>(count) * sizeof(int));
    for (int i = 0; i < count; ++i) {
      if (context->GetNodeAndRegistration(context, indices[i], &nodes[i], &registrations[i]) != kTfLiteOk) return false;
    }
    return true;
  }

  /// The position of the DENSIFY node that writes a tensor, or -1.
  int densify_of(int tensor) const {
    for (int i = 0; i < count; ++i) {
      const TfLiteIntArray* const outputs = nodes[i]->outputs;
      if (op_of(*registrations[i]) == Op::kDensify && outputs && outputs->size == 1 && outputs->data[0] == tensor) {
        return i;
      }
    }
    return -1;
  }
};

void say_no(Decision* decision, const char* reason) {
  decision->claimed = false;
  decision->reason = reason;
}

/// Packs a kernel for its shape; the variant that was chosen first is kept.
bool pack(Kernel* kernel, const DeployConvShape& shape, Mode mode, const char** reason) {
  static const char* const kRefused = "the kernels refuse such a layer";
  const bool single = shape.batch == 1 && shape.out_h == 1 && shape.out_w == 1;
  const Variant* const reference =
      mode == Mode::kReference ? select_variant(kernel->family, single, 1, "reference") : nullptr;
  DeployConv* const conv =
      deploy_conv_create(kernel->family, &shape, kernel->layer.weights, &kernel->layer.requantization, nullptr,
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

/// Decides about one node; the kernel, where it is claimed.
Kernel* consider(Delegate* delegate, const Graph& graph, int position, Decision* decision) {
  const TfLiteContext& context = *graph.context;
  const TfLiteNode& node = *graph.nodes[position];
  const TfLiteRegistration& registration = *graph.registrations[position];
  const TfLiteTensor* filter = input_of(context, node, 1);
  bool densified = false;
  if (filter && !is_constant(*filter)) {
    const int producer = graph.densify_of(node.inputs->data[1]);
    const TfLiteTensor* const dense = filter;
    filter = producer >= 0 ? input_of(context, *graph.nodes[producer], 0) : nullptr;
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
    const Choice choice = choose(kernel->layer, delegate->mode);
    decision->gain = choice.gain;
    decision->reason = choice.reason;
    if (choice.claim) {
      kernel->family = choice.family;
      kernel->decision = decision;
      kernel->context = graph.context;
      kernel->node = graph.indices[position];
      kernel->input = node.inputs->data[0];
      kernel->output = node.outputs->data[0];
      if (pack(kernel, kernel->layer.shape, delegate->mode, &reason)) {
        decision->claimed = true;
        kernel->next = delegate->claimed;
        delegate->claimed = kernel;
        return kernel;
      }
    } else {
      reason = choice.reason;
    }
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
  if (kernel->is_densify) return kTfLiteOk;
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
    if (!kernel.is_densify && !contains(node->outputs, kernel.output)) {
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
    if (kernel->is_densify) continue;
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

/// A DENSIFY node is ours when all its readers are: nobody needs the dense tensor then.
bool all_readers_claimed(Delegate* delegate, const Graph& graph, int tensor) {
  bool any = false;
  for (int i = 0; i < graph.count; ++i) {
    const TfLiteIntArray* const inputs = graph.nodes[i]->inputs;
    for (int k = 0; inputs && k < inputs->size; ++k) {
      if (inputs->data[k] != tensor) continue;
      any = true;
      if (k != 1 || !find_claimed(delegate, graph.context, graph.indices[i])) return false;
    }
  }
  return any;
}

TfLiteStatus delegate_prepare(TfLiteContext* context, TfLiteDelegate* tflite) {
  Delegate* const delegate = static_cast<Delegate*>(tflite->data);
  Graph graph(context);
  if (!graph.read()) return kTfLiteError;
  auto* const claims = static_cast<TfLiteIntArray*>(malloc(sizeof(int) * (static_cast<size_t>(graph.count) + 1)));
  auto** const decisions = static_cast<Decision**>(calloc(static_cast<size_t>(graph.count) + 1, sizeof(Decision*)));
  TfLiteStatus status = claims && decisions ? kTfLiteOk : kTfLiteError;
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
        say_no(decision, "XNNPACK computes a depthwise convolution as fast");
        break;
    }
  }
  if (status == kTfLiteOk) {
    claims->size = 0;
    for (int i = 0; i < graph.count; ++i) {
      if (op_of(*graph.registrations[i]) == Op::kDensify && decisions[i]) {
        const TfLiteIntArray* const outputs = graph.nodes[i]->outputs;
        if (!outputs || outputs->size != 1 || !all_readers_claimed(delegate, graph, outputs->data[0])) {
          say_no(decisions[i], "not every reader of its output is claimed");
          continue;
        }
        Kernel* const kernel = new_kernel();
        if (!kernel) continue;
        kernel->is_densify = true;
        kernel->context = context;
        kernel->node = graph.indices[i];
        kernel->decision = decisions[i];
        kernel->next = delegate->claimed;
        delegate->claimed = kernel;
        decisions[i]->claimed = true;
        decisions[i]->kernel = "none";
        decisions[i]->reason = "the layer behind it reads the sparse weights itself";
      }
      if (find_claimed(delegate, context, graph.indices[i])) claims->data[claims->size++] = graph.indices[i];
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
