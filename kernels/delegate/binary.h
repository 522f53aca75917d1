/// Recognises the operators that binarize a layer's input (kernels/binary/README.md).
#ifndef DEPLOY_KERNELS_DELEGATE_BINARY_H_
#define DEPLOY_KERNELS_DELEGATE_BINARY_H_

#include "delegate/graph.h"
#include "delegate/layer.h"

namespace deploy {

/// Where the input of a binary layer comes from.
struct BinaryInput {
  bool found = false;   ///< a SELECT_V2 with two constants makes the layer's input
  bool whole = false;   ///< and CAST and GREATER_EQUAL with constant thresholds stand in front of it
  int select = -1, compare = -1, cast = -1;  ///< positions in the graph; the last two only where `whole`
  int32_t if_true = 0, if_false = 0;
};

/// Looks in front of the layer at `position`.
BinaryInput find_binary_input(const Graph& graph, int position, const Layer& layer);

/// Fills the layer's thresholds and values: those of the whole pattern, or, not `whole`, those that tell SELECT_V2's two
/// values apart.  False where memory is short or a threshold cannot be said in int8.
bool binarize(const Graph& graph, const BinaryInput& input, bool whole, Layer* layer);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_DELEGATE_BINARY_H_
