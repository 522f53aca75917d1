/// A node of the model as a layer of kernels.h.
#ifndef DEPLOY_KERNELS_DELEGATE_LAYER_H_
#define DEPLOY_KERNELS_DELEGATE_LAYER_H_

#include <stdint.h>

#include "delegate/tflite_abi.h"
#include "kernels.h"

namespace deploy {

/// The op that a node is, as far as this delegate knows it.
enum class Op { kNone, kConv2d, kFullyConnected, kDensify };

Op op_of(const TfLiteRegistration& registration);

/// Everything about a node's layer; owns its arrays.
struct Layer {
  Op op = Op::kNone;
  DeployConvShape shape = {};
  DeployRequantization requantization = {};
  TfLiteType filter_type = kTfLiteInt8;  ///< as stored
  bool sparse = false;                   ///< as stored
  bool densified = false;                ///< a DENSIFY node stands in front
  bool is_uint8 = false;                 ///< activations
  TfLitePadding padding = kTfLitePaddingValid;
  bool keep_num_dims = false;            ///< FULLY_CONNECTED: the output has the input's rank
  int64_t elements = 0;                  ///< of the filter
  int8_t* weights = nullptr;             ///< [out_c, kernel_h, kernel_w, in_c / groups]
  int32_t *bias = nullptr, *multiplier = nullptr, *shift = nullptr;
  int8_t* threshold = nullptr;           ///< binary layers, with `binarization`
  DeployBinarization binarization = {};

  Layer() = default;
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  ~Layer();
};

/// Reads a CONV_2D or FULLY_CONNECTED node.  `filter` is the tensor that holds its constant weights: its own second
/// input, or the input of the DENSIFY node in front.  Returns null, or why the node cannot be taken: nothing about it is
/// trusted.
const char* read_layer(const TfLiteContext& context, const TfLiteNode& node, const TfLiteRegistration& registration,
                       const TfLiteTensor& filter, Layer* layer);

/// The layer's shape for the input that the node has now; false where they do not fit.  `out_dims` receives the extents
/// of the output, at most kMaxOutRank, and their number.
constexpr int kMaxOutRank = 8;
bool shape_for_input(const TfLiteTensor& input, const Layer& layer, DeployConvShape* shape, int* out_dims,
                     int* out_rank);

/// The tensor of a node's input, or null where it has none.
const TfLiteTensor* input_of(const TfLiteContext& context, const TfLiteNode& node, int index);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_DELEGATE_LAYER_H_
