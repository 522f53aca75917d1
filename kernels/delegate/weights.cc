#include "delegate/weights.h"

#include <string.h>

namespace deploy {
namespace {

constexpr int kMaxRank = 8;  ///< of the traversal, blocks included; TFLite's filters have rank 4, or 6 with blocks

/// The values as they are stored, one after another.
struct Values {
  const uint8_t* data;
  TfLiteType type;
  int32_t zero_point;
  int64_t count;
  bool fits = true;

  int8_t at(int64_t index) {
    switch (type) {
      case kTfLiteInt4: {
        const int nibble = data[index / 2] >> (index % 2 * 4) & 0xf;
        return static_cast<int8_t>(nibble >= 8 ? nibble - 16 : nibble);
      }
      case kTfLiteInt2: {
        const int crumb = data[index / 4] >> (index % 4 * 2) & 0x3;
        return static_cast<int8_t>(crumb >= 2 ? crumb - 4 : crumb);
      }
      case kTfLiteUInt8: {
        const int32_t value = data[index] - zero_point;
        if (value < -128 || value > 127) fits = false;
        return static_cast<int8_t>(value);
      }
      default:
        return static_cast<int8_t>(data[index]);
    }
  }
};

/// How many values `bytes` hold.
int64_t capacity(TfLiteType type, size_t bytes) {
  const int64_t limit = static_cast<int64_t>(bytes > INT32_MAX ? INT32_MAX : bytes);
  return type == kTfLiteInt4 ? limit * 2 : type == kTfLiteInt2 ? limit * 4 : limit;
}

/// Walks the tree of levels that sparsity parameters describe; level i of the traversal is dimension order[i].
struct Walk {
  const TfLiteSparsity& sparsity;
  Values& values;
  int8_t* dense;
  int rank, levels;            ///< of the tensor; of the traversal
  int block_of[kMaxRank];      ///< of dimensions >= rank: the dimension that they cut into blocks
  int64_t extent[kMaxRank];    ///< of each level
  int64_t block[kMaxRank];     ///< of each of the tensor's dimensions: its block's size, or 1
  int64_t stride[kMaxRank];    ///< of each of the tensor's dimensions, in elements
  int64_t next = 0;            ///< the value that is read next

  const char* level(int depth, int64_t parent, int64_t offset) {
    if (depth == levels) {
      if (parent >= values.count) return "the sparse filter has fewer values than its indices say";
      dense[offset] = values.at(parent);
      return nullptr;
    }
    const int dimension = sparsity.traversal_order->data[depth];
    const bool is_block = dimension >= rank;
    const int target = is_block ? block_of[dimension] : dimension;
    const int64_t step = stride[target] * (is_block ? 1 : block[target]);
    const TfLiteDimensionMetadata& metadata = sparsity.dim_metadata[depth];
    if (metadata.format == kTfLiteDimDense) {
      for (int64_t i = 0; i < extent[depth]; ++i) {
        const char* const reason = level(depth + 1, parent * extent[depth] + i, offset + i * step);
        if (reason) return reason;
      }
      return nullptr;
    }
    const TfLiteIntArray* const segments = metadata.array_segments;
    const TfLiteIntArray* const indices = metadata.array_indices;
    if (parent >= segments->size - 1) return "a sparse dimension has too few segments";
    for (int i = segments->data[parent]; i < segments->data[parent + 1]; ++i) {
      const int index = indices->data[i];
      if (index < 0 || index >= extent[depth]) return "a sparse index lies outside its dimension";
      const char* const reason = level(depth + 1, i, offset + index * step);
      if (reason) return reason;
    }
    return nullptr;
  }
};

/// Whether the segments cut `count` indices into runs, so that no index is met twice.
bool is_partition(const TfLiteIntArray& segments, int count) {
  if (segments.size < 2 || segments.data[0] != 0 || segments.data[segments.size - 1] != count) return false;
  for (int i = 1; i < segments.size; ++i) {
    if (segments.data[i] < segments.data[i - 1]) return false;
  }
  return true;
}

const char* read_sparse(const TfLiteTensor& tensor, Values& values, int8_t* dense) {
  const TfLiteSparsity& s = *tensor.sparsity;
  if (!s.traversal_order || !s.dim_metadata) return "the sparsity parameters are incomplete";
  Walk walk = {s, values, dense, tensor.dims->size, s.traversal_order->size, {}, {}, {}, {}};
  const int blocks = s.block_map ? s.block_map->size : 0;
  if (walk.levels > kMaxRank || walk.levels != walk.rank + blocks || s.dim_metadata_size != walk.levels) {
    return "the sparsity parameters do not fit the filter's rank";
  }
  bool seen[kMaxRank] = {};
  for (int d = 0; d < walk.rank; ++d) walk.block[d] = 1;
  for (int b = 0; b < blocks; ++b) {
    const int target = s.block_map->data[b];
    if (target < 0 || target >= walk.rank) return "a block lies along no dimension of the filter";
    walk.block_of[walk.rank + b] = target;
  }
  for (int level = 0; level < walk.levels; ++level) {
    const int dimension = s.traversal_order->data[level];
    if (dimension < 0 || dimension >= walk.levels || seen[dimension]) return "the traversal order is not one";
    seen[dimension] = true;
    const TfLiteDimensionMetadata& metadata = s.dim_metadata[level];
    if (dimension >= walk.rank) {
      if (metadata.format != kTfLiteDimDense || metadata.dense_size < 1) return "a block is not dense";
      int64_t& size = walk.block[walk.block_of[dimension]];
      if (size != 1) return "two blocks lie along one dimension";
      size = metadata.dense_size;
    }
    if (metadata.format != kTfLiteDimDense && metadata.format != kTfLiteDimSparseCsr) return "an unknown sparse format";
    if (metadata.format == kTfLiteDimSparseCsr && (!metadata.array_segments || !metadata.array_indices)) {
      return "a sparse dimension has no indices";
    }
    if (metadata.format == kTfLiteDimSparseCsr && !is_partition(*metadata.array_segments, metadata.array_indices->size)) {
      return "a sparse dimension's segments do not fit its indices";
    }
  }
  int64_t stride = 1;
  for (int d = walk.rank - 1; d >= 0; --d) {
    walk.stride[d] = stride;
    stride *= tensor.dims->data[d];
    if (tensor.dims->data[d] % walk.block[d] != 0) return "a block does not divide its dimension";
  }
  for (int level = 0; level < walk.levels; ++level) {
    const int dimension = s.traversal_order->data[level];
    const TfLiteDimensionMetadata& metadata = s.dim_metadata[level];
    walk.extent[level] = dimension >= walk.rank ? metadata.dense_size
                                                : tensor.dims->data[dimension] / walk.block[dimension];
    if (metadata.format == kTfLiteDimDense && metadata.dense_size != walk.extent[level]) {
      return "a dense dimension's size is not that of the filter";
    }
  }
  return walk.level(0, 0, 0);
}

}  // namespace

int64_t element_count(const TfLiteIntArray* dims) {
  if (!dims) return -1;
  int64_t count = 1;
  for (int i = 0; i < dims->size; ++i) {
    if (dims->data[i] < 1) return -1;
    count *= dims->data[i];
    if (count > INT32_MAX) return -1;
  }
  return count;
}

bool is_constant(const TfLiteTensor& tensor) {
  return tensor.allocation_type == kTfLiteMmapRo && tensor.data != nullptr;
}

const char* read_weights(const TfLiteTensor& tensor, int32_t zero_point, int8_t* dense) {
  const int64_t count = element_count(tensor.dims);
  if (count < 0) return "the filter has no elements, or too many";
  Values values = {static_cast<const uint8_t*>(tensor.data), tensor.type, zero_point,
                   capacity(tensor.type, tensor.bytes)};
  if (tensor.sparsity) {
    memset(dense, 0, static_cast<size_t>(count));
    const char* const reason = read_sparse(tensor, values, dense);
    if (reason) return reason;
  } else {
    if (values.count < count) return "the filter has fewer values than its shape says";
    for (int64_t i = 0; i < count; ++i) dense[i] = values.at(i);
  }
  return values.fits ? nullptr : "a filter value less its zero point does not fit int8";
}

}  // namespace deploy
