#include "delegate/binary.h"

#include <stdlib.h>
#include <string.h>

#include "delegate/weights.h"

namespace deploy {
namespace {

bool same_dims(const TfLiteTensor& a, const TfLiteTensor& b) {
  return a.dims && b.dims && a.dims->size == b.dims->size &&
         memcmp(a.dims->data, b.dims->data, static_cast<size_t>(a.dims->size) * sizeof(int)) == 0;
}

/// A constant int8 tensor of one value, quantized as `like` is.
bool read_value(const TfLiteTensor* tensor, const TfLiteTensor& like, int32_t* value) {
  if (!tensor || tensor->type != kTfLiteInt8 || !is_constant(*tensor) || tensor->sparsity) return false;
  if (element_count(tensor->dims) != 1 || tensor->bytes < 1) return false;
  if (memcmp(&tensor->params, &like.params, sizeof like.params) != 0) return false;
  *value = *static_cast<const int8_t*>(tensor->data);
  return true;
}

/// A constant int32 tensor of one value, or of `channels` along its last dimension.
bool are_thresholds(const TfLiteTensor* tensor, int32_t channels) {
  if (!tensor || tensor->type != kTfLiteInt32 || !is_constant(*tensor) || tensor->sparsity) return false;
  const int64_t count = element_count(tensor->dims);
  if (tensor->bytes < static_cast<size_t>(count < 0 ? 0 : count) * sizeof(int32_t)) return false;
  if (count == 1) return true;
  return count == channels && tensor->dims->data[tensor->dims->size - 1] == channels;
}

}  // namespace

BinaryInput find_binary_input(const Graph& graph, int position, const Layer& layer) {
  BinaryInput found;
  if (layer.is_uint8 || layer.filter_type != kTfLiteInt8) return found;
  const TfLiteTensor* const selected = graph.tensor(graph.input(position, 0));
  const int select = graph.producer(graph.input(position, 0));
  if (!selected || !graph.is(select, kTfLiteSelectV2)) return found;
  if (!read_value(graph.tensor(graph.input(select, 1)), *selected, &found.if_true) ||
      !read_value(graph.tensor(graph.input(select, 2)), *selected, &found.if_false) || found.if_true == found.if_false) {
    return found;
  }
  found.found = true;
  found.select = select;
  const int compare = graph.producer(graph.input(select, 0));
  if (!graph.is(compare, kTfLiteGreaterEqual)) return found;
  const int cast = graph.producer(graph.input(compare, 0));
  if (!graph.is(cast, kTfLiteCast)) return found;
  const TfLiteTensor* const x = graph.tensor(graph.input(cast, 0));
  const TfLiteTensor* const wide = graph.tensor(graph.output(cast));
  if (!x || x->type != kTfLiteInt8 || !wide || wide->type != kTfLiteInt32 || !same_dims(*x, *selected)) return found;
  const TfLiteTensor* const thresholds = graph.tensor(graph.input(compare, 1));
  if (!are_thresholds(thresholds, layer.shape.in_c)) return found;
  const auto* const values = static_cast<const int32_t*>(thresholds->data);
  for (int64_t i = 0; i < element_count(thresholds->dims); ++i) {
    int32_t value;
    memcpy(&value, values + i, sizeof value);
    if (value > 127) return found;  // "never", which int8 cannot say
  }
  found.whole = true;
  found.compare = compare;
  found.cast = cast;
  return found;
}

bool binarize(const Graph& graph, const BinaryInput& input, bool whole, Layer* layer) {
  const size_t channels = static_cast<size_t>(layer->shape.in_c);
  if (!layer->threshold) layer->threshold = static_cast<int8_t*>(malloc(channels));
  if (!layer->threshold) return false;
  DeployBinarization& b = layer->binarization;
  b.threshold = layer->threshold;
  if (!whole) {
    b.low = input.if_true < input.if_false ? input.if_true : input.if_false;
    b.high = input.if_true < input.if_false ? input.if_false : input.if_true;
    memset(layer->threshold, b.high, channels);
    return true;
  }
  b.low = input.if_false;
  b.high = input.if_true;
  const TfLiteTensor& thresholds = *graph.tensor(graph.input(input.compare, 1));
  const bool one = element_count(thresholds.dims) == 1;
  for (size_t c = 0; c < channels; ++c) {
    int32_t value;
    memcpy(&value, static_cast<const int32_t*>(thresholds.data) + (one ? 0 : c), sizeof value);
    layer->threshold[c] = static_cast<int8_t>(value < -128 ? -128 : value);
  }
  return true;
}

}  // namespace deploy
