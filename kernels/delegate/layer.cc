#include "delegate/layer.h"

#include <stdlib.h>
#include <string.h>

#include "delegate/scales.h"
#include "delegate/weights.h"

namespace deploy {
namespace {

/// The extent and leading padding of one spatial dimension, as TFLite computes them; false where there is no output.
bool spatial(TfLitePadding padding, int64_t in, int64_t kernel, int64_t stride, int64_t dilation, int32_t* out,
             int32_t* pad) {
  const int64_t reach = (kernel - 1) * dilation + 1;
  int64_t size = 0;
  if (padding == kTfLitePaddingSame) size = (in + stride - 1) / stride;
  if (padding == kTfLitePaddingValid) size = in >= reach ? (in - reach) / stride + 1 : 0;
  if (size < 1) return false;
  const int64_t missing = (size - 1) * stride + reach - in;
  *out = static_cast<int32_t>(size);
  *pad = missing > 0 ? static_cast<int32_t>(missing / 2) : 0;
  return missing / 2 <= INT32_MAX;
}

/// The scales of a filter: one, or one per output channel, along dimension 0.
struct FilterScales {
  const float* scale;
  int count;
};

const char* filter_scales(const TfLiteTensor& filter, int32_t out_c, FilterScales* scales, int32_t* zero_point) {
  *scales = {&filter.params.scale, 1};
  *zero_point = filter.params.zero_point;
  if (filter.quantization.type != 0 && filter.quantization.type != 1) return "the filter's quantization is not affine";
  const auto* affine = static_cast<const TfLiteAffineQuantization*>(filter.quantization.params);
  if (filter.quantization.type == 1 && affine && affine->scale && affine->scale->size > 0) {
    const int count = affine->scale->size;
    if (count != 1 && (count != out_c || affine->quantized_dimension != 0)) {
      return "the filter has neither one scale nor one per output channel";
    }
    *scales = {affine->scale->data, count};
    if (affine->zero_point && affine->zero_point->size > 0) {
      *zero_point = affine->zero_point->data[0];
      for (int i = 1; i < affine->zero_point->size; ++i) {
        if (affine->zero_point->data[i] != *zero_point) return "the filter's zero points differ";
      }
    }
  }
  if (filter.type == kTfLiteUInt8 ? *zero_point < 0 || *zero_point > 255 : *zero_point != 0) {
    return "the filter's zero point is not 0";
  }
  return nullptr;
}

const char* read_requantization(const TfLiteTensor& input, const TfLiteTensor& filter, const TfLiteTensor* bias,
                                const TfLiteTensor& output, TfLiteFusedActivation activation,
                                const FilterScales& scales, Layer* layer) {
  const int32_t out_c = layer->shape.out_c, move = layer->is_uint8 ? 128 : 0;
  DeployRequantization& r = layer->requantization;
  const int64_t zero_in = static_cast<int64_t>(input.params.zero_point) - move;
  const int64_t zero_out = static_cast<int64_t>(output.params.zero_point) - move;
  if (zero_in < -128 || zero_in > 127 || zero_out < -128 || zero_out > 127) return "a zero point lies outside its type";
  if (!(input.params.scale > 0) || !(output.params.scale > 0)) return "a scale is not positive";
  r.input_zero_point = static_cast<int32_t>(zero_in);
  r.output_zero_point = static_cast<int32_t>(zero_out);
  if (!activation_range(activation, output.params.scale, r.output_zero_point, layer->is_uint8, &r.clamp_min,
                        &r.clamp_max)) {
    return "the fused activation is not one that is known";
  }
  layer->multiplier = static_cast<int32_t*>(malloc(static_cast<size_t>(out_c) * sizeof(int32_t)));
  layer->shift = static_cast<int32_t*>(malloc(static_cast<size_t>(out_c) * sizeof(int32_t)));
  layer->bias = static_cast<int32_t*>(calloc(static_cast<size_t>(out_c), sizeof(int32_t)));
  if (!layer->multiplier || !layer->shift || !layer->bias) return "memory is short";
  for (int32_t c = 0; c < out_c; ++c) {
    const float scale = scales.scale[scales.count == 1 ? 0 : c];
    const double real = static_cast<double>(input.params.scale) * static_cast<double>(scale) /
                        static_cast<double>(output.params.scale);
    if (!quantize_multiplier(real, &layer->multiplier[c], &layer->shift[c])) return "a scale is out of bounds";
  }
  r.multiplier = layer->multiplier;
  r.shift = layer->shift;
  r.bias = layer->bias;
  r.single_rounding = layer->op == Op::kFullyConnected;
  if (!bias) return nullptr;
  if (bias->type != kTfLiteInt32 || !is_constant(*bias)) return "the bias is not a constant of INT32";
  if (element_count(bias->dims) != out_c || bias->bytes < static_cast<size_t>(out_c) * sizeof(int32_t)) {
    return "the bias has not one value per output channel";
  }
  // TFLite refuses such a layer as well, where it has one scale for all channels.
  if (scales.count == 1 && (layer->is_uint8 || layer->op == Op::kFullyConnected)) {
    const double product = static_cast<double>(input.params.scale) * static_cast<double>(filter.params.scale);
    const double difference = product - static_cast<double>(bias->params.scale);
    const double error = (difference < 0 ? -difference : difference) / static_cast<double>(output.params.scale);
    if (!(error <= 0.02)) return "the bias's scale is not that of the products";
  }
  memcpy(layer->bias, bias->data, static_cast<size_t>(out_c) * sizeof(int32_t));
  return nullptr;
}

}  // namespace

Layer::~Layer() {
  free(weights);
  free(bias);
  free(multiplier);
  free(shift);
  free(threshold);
}

Op op_of(const TfLiteRegistration& registration) {
  switch (registration.builtin_code) {
    case kTfLiteConv2d: return Op::kConv2d;
    case kTfLiteFullyConnected: return Op::kFullyConnected;
    case kTfLiteDensify: return Op::kDensify;
    default: return Op::kNone;
  }
}

const TfLiteTensor* input_of(const TfLiteContext& context, const TfLiteNode& node, int index) {
  if (!node.inputs || index >= node.inputs->size) return nullptr;
  const int tensor = node.inputs->data[index];
  return tensor >= 0 && static_cast<size_t>(tensor) < context.tensors_size ? &context.tensors[tensor] : nullptr;
}

bool shape_for_input(const TfLiteTensor& input, const Layer& layer, DeployConvShape* shape, int* out_dims,
                     int* out_rank) {
  *shape = layer.shape;
  const int64_t elements = element_count(input.dims);
  if (elements < 1 || input.dims->size > kMaxOutRank) return false;
  const int* const dims = input.dims->data;
  if (layer.op == Op::kFullyConnected) {
    if (elements % shape->in_c != 0) return false;
    shape->batch = static_cast<int32_t>(elements / shape->in_c);
    if (layer.keep_num_dims) {
      if (input.dims->size < 1 || dims[input.dims->size - 1] != shape->in_c) return false;
      *out_rank = input.dims->size;
      memcpy(out_dims, dims, static_cast<size_t>(*out_rank) * sizeof(int));
      out_dims[*out_rank - 1] = shape->out_c;
    } else {
      *out_rank = 2;
      out_dims[0] = shape->batch;
      out_dims[1] = shape->out_c;
    }
    return true;
  }
  if (input.dims->size != 4 || dims[3] != shape->in_c) return false;
  shape->batch = dims[0];
  shape->in_h = dims[1];
  shape->in_w = dims[2];
  if (!spatial(layer.padding, shape->in_h, shape->kernel_h, shape->stride_h, shape->dilation_h, &shape->out_h,
               &shape->pad_top) ||
      !spatial(layer.padding, shape->in_w, shape->kernel_w, shape->stride_w, shape->dilation_w, &shape->out_w,
               &shape->pad_left)) {
    return false;
  }
  *out_rank = 4;
  out_dims[0] = shape->batch;
  out_dims[1] = shape->out_h;
  out_dims[2] = shape->out_w;
  out_dims[3] = shape->out_c;
  return true;
}

const char* read_layer(const TfLiteContext& context, const TfLiteNode& node, const TfLiteRegistration& registration,
                       const TfLiteTensor& filter, Layer* layer) {
  layer->op = op_of(registration);
  const bool conv = layer->op == Op::kConv2d;
  const TfLiteTensor* const input = input_of(context, node, 0);
  const TfLiteTensor* const bias = input_of(context, node, 2);
  if (!input || !input->dims || !node.outputs || node.outputs->size != 1 || !node.builtin_data) {
    return "the node is incomplete";
  }
  const int out_index = node.outputs->data[0];
  if (out_index < 0 || static_cast<size_t>(out_index) >= context.tensors_size) return "the node is incomplete";
  const TfLiteTensor& output = context.tensors[out_index];
  if ((input->type != kTfLiteInt8 && input->type != kTfLiteUInt8) || output.type != input->type) {
    return "the activations are not 8-bit integers";
  }
  layer->is_uint8 = input->type == kTfLiteUInt8;
  layer->filter_type = filter.type;
  layer->sparse = filter.sparsity != nullptr;
  if (filter.type != kTfLiteInt8 && filter.type != kTfLiteInt4 && filter.type != kTfLiteInt2 &&
      !(filter.type == kTfLiteUInt8 && layer->is_uint8)) {
    return "the filter's type is not supported";
  }
  if (layer->is_uint8 && filter.type == kTfLiteInt8) return "uint8 activations with int8 weights";
  if (!is_constant(filter) || !filter.dims) return "the filter is not a constant";
  layer->elements = element_count(filter.dims);
  if (layer->elements < 1) return "the filter has no elements, or too many";
  if (filter.dims->size != (conv ? 4 : 2)) return "the filter's rank does not fit the operator";

  const int* const f = filter.dims->data;
  DeployConvShape& s = layer->shape;
  TfLiteFusedActivation activation;
  s = {1, 1, 1, 1, 1, 1, f[0], 1, 1, 1, 1, 1, 1, 0, 0, 1};
  if (conv) {
    const auto& params = *static_cast<const TfLiteConvParams*>(node.builtin_data);
    activation = params.activation;
    layer->padding = params.padding;
    s.kernel_h = f[1];
    s.kernel_w = f[2];
    s.stride_h = params.stride_height;
    s.stride_w = params.stride_width;
    s.dilation_h = params.dilation_height_factor;
    s.dilation_w = params.dilation_width_factor;
    if (s.stride_h < 1 || s.stride_w < 1 || s.dilation_h < 1 || s.dilation_w < 1) {
      return "a stride or dilation is less than 1";
    }
    if (input->dims->size != 4 || input->dims->data[3] < 1 || input->dims->data[3] % f[3] != 0) {
      return "the input's channels do not fit the filter's";
    }
    s.in_c = input->dims->data[3];
    s.groups = s.in_c / f[3];
    if (s.out_c % s.groups != 0) return "the groups do not divide the output channels";
  } else {
    const auto& params = *static_cast<const TfLiteFullyConnectedParams*>(node.builtin_data);
    activation = params.activation;
    layer->keep_num_dims = params.keep_num_dims;
    if (params.weights_format != 0) return "the filter's format is not the default one";
    s.in_c = f[1];
  }
  int out_dims[kMaxOutRank], out_rank;
  if (!shape_for_input(*input, *layer, &s, out_dims, &out_rank)) return "the input's shape does not fit the filter";

  FilterScales scales;
  int32_t filter_zero_point;
  const char* reason = filter_scales(filter, s.out_c, &scales, &filter_zero_point);
  if (!reason) reason = read_requantization(*input, filter, bias, output, activation, scales, layer);
  if (reason) return reason;
  layer->weights = static_cast<int8_t*>(malloc(static_cast<size_t>(layer->elements)));
  if (!layer->weights) return "memory is short";
  return read_weights(filter, filter_zero_point, layer->weights);
}

}  // namespace deploy
