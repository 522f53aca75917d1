/// The C ABI of libdeploy_kernels.so: everything that Python, tests and benchmarks may call.
///
/// Beside it the library exports `tflite_plugin_create_delegate` and `tflite_plugin_destroy_delegate`, by which stock
/// LiteRT loads it.  Sizes and strides count elements unless a name ends in `_bytes`.  Nothing here throws or prints.
#ifndef DEPLOY_KERNELS_KERNELS_H_
#define DEPLOY_KERNELS_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DEPLOY_KERNELS_ABI 1
#define DEPLOY_KERNELS_API __attribute__((visibility("default")))

/// How a layer's weights are stored for its micro-kernel.  The weights themselves are always given as dense int8.
typedef enum DeployFamily {
  DEPLOY_FAMILY_W8 = 0,      ///< int8, dense; each in [-127, 127].
  DEPLOY_FAMILY_W4 = 1,      ///< 4 bits; each in [-8, 7].
  DEPLOY_FAMILY_W2 = 2,      ///< 2 bits, ternary included; each in [-2, 1].
  DEPLOY_FAMILY_BINARY = 3,  ///< 1 bit; weights and activations each take two values, see binary/README.md.
  DEPLOY_FAMILY_TILE8 = 4,   ///< int8, pruned in groups of 4 input channels shared by all outputs of a tile.
  DEPLOY_FAMILY_TILE4 = 5,   ///< the same pattern with 4-bit weights.
  DEPLOY_FAMILY_BLOCK8 = 6,  ///< int8, pruned in blocks of one output channel by 4 or 16 input channels.
  DEPLOY_FAMILY_NM8 = 7,     ///< int8, pruned N:M: few of any 16 input channels, others for each output channel.
} DeployFamily;

/// A 2-D convolution over NHWC.  A fully-connected layer of [rows, k] is one with batch = rows and 1x1 everywhere.
typedef struct DeployConvShape {
  int32_t batch, in_h, in_w, in_c;       ///< each >= 1; in_c counts the channels of all groups.
  int32_t out_h, out_w, out_c;           ///< each >= 1; out_c counts the channels of all groups.
  int32_t kernel_h, kernel_w;            ///< >= 1.
  int32_t stride_h, stride_w;            ///< >= 1.
  int32_t dilation_h, dilation_w;        ///< >= 1.
  int32_t pad_top, pad_left;             ///< >= 0; rows and columns of input_zero_point before the input.
  int32_t groups;                        ///< >= 1; divides in_c and out_c.
} DeployConvShape;

/// What brings int32 accumulators back to 8 bits, as TFLite's reference kernels do it (common/requantize.h).
typedef struct DeployRequantization {
  const int32_t* bias;        ///< [out_c], or null for zeros.
  const int32_t* multiplier;  ///< [out_c]; each 0 or in [2^30, 2^31).
  const int32_t* shift;       ///< [out_c]; each in [-31, 30]; negative makes values smaller.
  int32_t input_zero_point;   ///< [-128, 127].
  int32_t output_zero_point;  ///< [-128, 127].
  int32_t clamp_min;          ///< [-128, 127]; fused activation.
  int32_t clamp_max;          ///< [clamp_min, 127].
  int32_t single_rounding;    ///< 1: round once, halves up, as TFLite's FULLY_CONNECTED does; 0: twice, as its CONV_2D.
} DeployRequantization;

/// How a binary layer sees its int8 input: bit = input >= threshold of its channel (binary/README.md).
typedef struct DeployBinarization {
  const int8_t* threshold;  ///< [in_c]
  int32_t low, high;        ///< [-128, 127], different: the values that bits 0 and 1 stand for, on the input's grid.
} DeployBinarization;

/// One variant: a micro-kernel with its packing.
typedef struct DeployVariant {
  const char* name;     ///< <op>_<weights>_<mr>x<nr>c<kr>_<isa>
  DeployFamily family;
  int32_t mr, nr, kr;   ///< rows, columns and depth step of a tile.
  int32_t supported;    ///< 1 where this CPU can execute it.
  int32_t gemv;         ///< 1 where it is made for a single row.
} DeployVariant;

/// A layer, its weights packed for one variant.
typedef struct DeployConv DeployConv;

/// DEPLOY_KERNELS_ABI of the library that was loaded.
DEPLOY_KERNELS_API int32_t deploy_kernels_abi(void);

/// Names of the CPU features found at run time, separated by blanks.
DEPLOY_KERNELS_API const char* deploy_kernels_cpu(void);

/// What the delegates that are loaded in this process decided, as JSON: {"abi", "cpu", "mode", "nodes": [{"node", "op",
/// "name", "claimed", "kernel" (null where not claimed), "reason", "packed_bytes", "stored_bytes", "macs",
/// "expected_gain" (null where the stock runtime cannot run the node), "invocations", "time_ns"}]}.  The last two stay 0
/// without the delegate's option profile=1.  Valid until the next call.
DEPLOY_KERNELS_API const char* deploy_kernels_report(void);

/// How many variants are compiled in; `index` in [0, count).
DEPLOY_KERNELS_API int32_t deploy_kernels_variant_count(void);
DEPLOY_KERNELS_API DeployVariant deploy_kernels_variant(int32_t index);

/// Packs a layer.
///
/// `weights` is [out_c, kernel_h, kernel_w, in_c / groups], dense int8 whatever the family; it is not needed afterwards,
/// nor are the arrays of `requantization`.  `variant` is a variant's name, or null for the best of `family` here
/// (KERNELS_FORCE in the environment overrides).  `binarization` is null but for DEPLOY_FAMILY_BINARY.  Returns null and
/// a sentence in `error` (at most `error_bytes` with its final 0) when the arguments do not fit the family, the CPU
/// lacks what the variant needs, or memory is short.
DEPLOY_KERNELS_API DeployConv* deploy_conv_create(DeployFamily family, const DeployConvShape* shape,
                                                  const int8_t* weights, const DeployRequantization* requantization,
                                                  const DeployBinarization* binarization,
                                                  const char* variant, char* error, size_t error_bytes);

DEPLOY_KERNELS_API const char* deploy_conv_variant(const DeployConv* conv);

/// Bytes that stay resident for the weights: the packed panels, indices included.
DEPLOY_KERNELS_API size_t deploy_conv_packed_bytes(const DeployConv* conv);

/// Runs the layer: `input` int8 [batch, in_h, in_w, in_c], `output` int8 [batch, out_h, out_w, out_c], which must not
/// overlap.  `threads` >= 1.  Reads and writes nothing outside both.  Returns 0, or 1 when memory for scratch is short.
DEPLOY_KERNELS_API int32_t deploy_conv_run(DeployConv* conv, const int8_t* input, int8_t* output, int32_t threads);

DEPLOY_KERNELS_API void deploy_conv_destroy(DeployConv* conv);

#ifdef __cplusplus
}
#endif
#endif  // DEPLOY_KERNELS_KERNELS_H_
