/// The few structs of TFLite's C API that a delegate touches, declared anew so that nothing of TFLite is needed to build.
///
/// The layouts are those of tensorflow/lite/core/c/common.h and builtin_op_data.h, and hold for tflite-runtime 2.14 and
/// ai-edge-litert 2.1 to 2.3: fields were only added behind those used here.  The assertions below guard our side of it,
/// for 64-bit and 32-bit machines.
#ifndef DEPLOY_KERNELS_DELEGATE_TFLITE_ABI_H_
#define DEPLOY_KERNELS_DELEGATE_TFLITE_ABI_H_

#include <stddef.h>
#include <stdint.h>

extern "C" {

enum TfLiteStatus : int { kTfLiteOk = 0, kTfLiteError = 1, kTfLiteDelegateError = 2 };

enum TfLiteType : int {
  kTfLiteInt32 = 2,
  kTfLiteUInt8 = 3,
  kTfLiteInt8 = 9,
  kTfLiteInt4 = 18,
  kTfLiteInt2 = 20,
};

enum TfLiteAllocationType : int { kTfLiteMmapRo = 1, kTfLitePersistentRo = 5 };

enum TfLiteBuiltin : int32_t {
  kTfLiteConv2d = 3,
  kTfLiteDepthwiseConv2d = 4,
  kTfLiteFullyConnected = 9,
  kTfLiteCast = 53,
  kTfLiteGreaterEqual = 62,
  kTfLiteSelectV2 = 123,
  kTfLiteDensify = 124,
};

enum TfLitePadding : int { kTfLitePaddingSame = 1, kTfLitePaddingValid = 2 };

enum TfLiteFusedActivation : int { kTfLiteActNone = 0, kTfLiteActRelu = 1, kTfLiteActReluN1To1 = 2, kTfLiteActRelu6 = 3 };

enum TfLiteDimensionType : int { kTfLiteDimDense = 0, kTfLiteDimSparseCsr = 1 };

struct TfLiteIntArray {
  int size;
  int data[1];  ///< `size` of them
};

struct TfLiteFloatArray {
  int size;
  float data[1];  ///< `size` of them
};

struct TfLiteQuantizationParams {
  float scale;
  int32_t zero_point;
};

struct TfLiteAffineQuantization {
  TfLiteFloatArray* scale;
  TfLiteIntArray* zero_point;
  int32_t quantized_dimension;
};

struct TfLiteQuantization {
  int type;      ///< 0 none, 1 affine
  void* params;  ///< a TfLiteAffineQuantization where type is 1
};

struct TfLiteDimensionMetadata {
  TfLiteDimensionType format;
  int dense_size;
  TfLiteIntArray* array_segments;
  TfLiteIntArray* array_indices;
};

struct TfLiteSparsity {
  TfLiteIntArray* traversal_order;
  TfLiteIntArray* block_map;
  TfLiteDimensionMetadata* dim_metadata;
  int dim_metadata_size;
};

struct TfLiteTensor {
  TfLiteType type;
  void* data;
  TfLiteIntArray* dims;
  TfLiteQuantizationParams params;
  TfLiteAllocationType allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  struct TfLiteDelegate* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  TfLiteQuantization quantization;
  TfLiteSparsity* sparsity;
  const TfLiteIntArray* dims_signature;
};

struct TfLiteNode {
  TfLiteIntArray* inputs;
  TfLiteIntArray* outputs;
  TfLiteIntArray* intermediates;
  TfLiteIntArray* temporaries;
  void* user_data;
  void* builtin_data;
  const void* custom_initial_data;
  int custom_initial_data_size;
  struct TfLiteDelegate* delegate;
  bool might_have_side_effect;
};

struct TfLiteContext;

struct TfLiteRegistration {
  void* (*init)(TfLiteContext* context, const char* buffer, size_t length);
  void (*free)(TfLiteContext* context, void* buffer);
  TfLiteStatus (*prepare)(TfLiteContext* context, TfLiteNode* node);
  TfLiteStatus (*invoke)(TfLiteContext* context, TfLiteNode* node);
  const char* (*profiling_string)(const TfLiteContext* context, const TfLiteNode* node);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* registration_external;
  void* async_kernel;
  uint64_t inplace_operator;
};

struct TfLiteContext {
  size_t tensors_size;
  TfLiteStatus (*GetExecutionPlan)(TfLiteContext* context, TfLiteIntArray** execution_plan);
  TfLiteTensor* tensors;
  void* impl;
  TfLiteStatus (*ResizeTensor)(TfLiteContext* context, TfLiteTensor* tensor, TfLiteIntArray* new_size);  ///< takes it
  void (*ReportError)(TfLiteContext* context, const char* message, ...);
  TfLiteStatus (*AddTensors)(TfLiteContext* context, int count, int* first);
  TfLiteStatus (*GetNodeAndRegistration)(TfLiteContext* context, int index, TfLiteNode** node,
                                         TfLiteRegistration** registration);
  TfLiteStatus (*ReplaceNodeSubsetsWithDelegateKernels)(TfLiteContext* context, TfLiteRegistration registration,
                                                        const TfLiteIntArray* nodes, struct TfLiteDelegate* delegate);
  int recommended_num_threads;
  void* (*GetExternalContext)(TfLiteContext* context, int type);
  void (*SetExternalContext)(TfLiteContext* context, int type, void* external);
  bool allow_fp32_relax_to_fp16;
  void* profiler;
  void* (*AllocatePersistentBuffer)(TfLiteContext* context, size_t bytes);
  TfLiteStatus (*AllocateBufferForEval)(TfLiteContext* context, size_t bytes, void** buffer);
  TfLiteStatus (*RequestScratchBufferInArena)(TfLiteContext* context, size_t bytes, int* index);
  void* (*GetScratchBuffer)(TfLiteContext* context, int index);
  TfLiteStatus (*ResizeTensorExplicit)(TfLiteContext* context, TfLiteTensor* tensor, int dims, const int* shape);
  TfLiteStatus (*PreviewDelegatePartitioning)(TfLiteContext* context, const TfLiteIntArray* nodes,
                                              struct TfLiteDelegateParams** partitions, int* count);
};

struct TfLiteDelegateParams {
  struct TfLiteDelegate* delegate;
  TfLiteIntArray* nodes_to_replace;
  TfLiteIntArray* input_tensors;
  TfLiteIntArray* output_tensors;
};

struct TfLiteDelegate {
  void* data;
  TfLiteStatus (*Prepare)(TfLiteContext* context, TfLiteDelegate* delegate);
  TfLiteStatus (*CopyFromBufferHandle)(TfLiteContext*, TfLiteDelegate*, int, TfLiteTensor*);
  TfLiteStatus (*CopyToBufferHandle)(TfLiteContext*, TfLiteDelegate*, int, TfLiteTensor*);
  void (*FreeBufferHandle)(TfLiteContext*, TfLiteDelegate*, int*);
  int64_t flags;
  void* opaque_delegate_builder;
};

/// Without it the interpreter would first prepare every node with its own kernels, and fail at an INT2 convolution.
constexpr int64_t kTfLiteDelegateFlagsAllowDynamicTensors = 1;

struct TfLiteConvParams {
  TfLitePadding padding;
  int stride_width, stride_height;
  TfLiteFusedActivation activation;
  int dilation_width_factor, dilation_height_factor;
};

struct TfLiteFullyConnectedParams {
  TfLiteFusedActivation activation;
  int weights_format;  ///< 0: the default
  bool keep_num_dims;
};

}  // extern "C"

#if UINTPTR_MAX > UINT32_MAX
#define DEPLOY_ABI_OFFSET(type, field, wide, narrow) \
  static_assert(offsetof(type, field) == (wide), #type "::" #field " lies elsewhere in TFLite")
#else
#define DEPLOY_ABI_OFFSET(type, field, wide, narrow) \
  static_assert(offsetof(type, field) == (narrow), #type "::" #field " lies elsewhere in TFLite")
#endif

DEPLOY_ABI_OFFSET(TfLiteTensor, data, 8, 4);
DEPLOY_ABI_OFFSET(TfLiteTensor, dims, 16, 8);
DEPLOY_ABI_OFFSET(TfLiteTensor, params, 24, 12);
DEPLOY_ABI_OFFSET(TfLiteTensor, allocation_type, 32, 20);
DEPLOY_ABI_OFFSET(TfLiteTensor, bytes, 40, 24);
DEPLOY_ABI_OFFSET(TfLiteTensor, name, 56, 32);
DEPLOY_ABI_OFFSET(TfLiteTensor, quantization, 80, 48);
DEPLOY_ABI_OFFSET(TfLiteTensor, sparsity, 96, 56);
DEPLOY_ABI_OFFSET(TfLiteTensor, dims_signature, 104, 60);
static_assert(sizeof(TfLiteTensor) == (sizeof(void*) == 8 ? 112 : 64), "tensors lie elsewhere in TFLite's array");
DEPLOY_ABI_OFFSET(TfLiteNode, user_data, 32, 16);
DEPLOY_ABI_OFFSET(TfLiteNode, builtin_data, 40, 20);
DEPLOY_ABI_OFFSET(TfLiteRegistration, builtin_code, 40, 20);
DEPLOY_ABI_OFFSET(TfLiteRegistration, custom_name, 48, 24);
DEPLOY_ABI_OFFSET(TfLiteContext, tensors, 16, 8);
DEPLOY_ABI_OFFSET(TfLiteContext, ResizeTensor, 32, 16);
DEPLOY_ABI_OFFSET(TfLiteContext, ReplaceNodeSubsetsWithDelegateKernels, 64, 32);
DEPLOY_ABI_OFFSET(TfLiteContext, recommended_num_threads, 72, 36);
DEPLOY_ABI_OFFSET(TfLiteContext, PreviewDelegatePartitioning, 152, 76);
DEPLOY_ABI_OFFSET(TfLiteDelegate, Prepare, 8, 4);
DEPLOY_ABI_OFFSET(TfLiteDelegate, flags, 40, 24);
DEPLOY_ABI_OFFSET(TfLiteDimensionMetadata, array_segments, 8, 8);
DEPLOY_ABI_OFFSET(TfLiteSparsity, dim_metadata_size, 24, 12);
DEPLOY_ABI_OFFSET(TfLiteConvParams, dilation_width_factor, 16, 16);
DEPLOY_ABI_OFFSET(TfLiteFullyConnectedParams, keep_num_dims, 8, 8);
#undef DEPLOY_ABI_OFFSET

#endif  // DEPLOY_KERNELS_DELEGATE_TFLITE_ABI_H_
