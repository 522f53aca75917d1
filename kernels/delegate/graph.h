/// The model's operators in order of execution.
#ifndef DEPLOY_KERNELS_DELEGATE_GRAPH_H_
#define DEPLOY_KERNELS_DELEGATE_GRAPH_H_

#include "delegate/tflite_abi.h"

namespace deploy {

struct Graph {
  TfLiteContext* context;
  int count = 0;
  int* indices = nullptr;  ///< TFLite's index of each node; a copy, its own array is gone with the next call
  TfLiteNode** nodes = nullptr;
  TfLiteRegistration** registrations = nullptr;

  explicit Graph(TfLiteContext* given) : context(given) {}
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph();

  /// False where TFLite does not tell, or memory is short.
  bool read();

  /// The position of the node that writes `tensor`, or -1.
  int producer(int tensor) const;
  bool is(int position, TfLiteBuiltin op) const;
  /// The tensor's index of a node's input or of its only output, or -1.
  int input(int position, int index) const;
  int output(int position) const;
  /// A tensor by its index, or null.
  const TfLiteTensor* tensor(int index) const;
};

}  // namespace deploy
#endif  // DEPLOY_KERNELS_DELEGATE_GRAPH_H_
