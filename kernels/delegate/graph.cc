#include "delegate/graph.h"

#include <stdlib.h>
#include <string.h>

namespace deploy {

Graph::~Graph() {
  free(indices);
  free(nodes);
  free(registrations);
}

bool Graph::read() {
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

int Graph::producer(int tensor) const {
  for (int i = 0; i < count && tensor >= 0; ++i) {
    const TfLiteIntArray* const outputs = nodes[i]->outputs;
    for (int k = 0; outputs && k < outputs->size; ++k) {
      if (outputs->data[k] == tensor) return i;
    }
  }
  return -1;
}

bool Graph::is(int position, TfLiteBuiltin op) const {
  return position >= 0 && registrations[position]->builtin_code == op;
}

int Graph::input(int position, int index) const {
  const TfLiteIntArray* const inputs = nodes[position]->inputs;
  return inputs && index < inputs->size ? inputs->data[index] : -1;
}

int Graph::output(int position) const {
  const TfLiteIntArray* const outputs = nodes[position]->outputs;
  return outputs && outputs->size == 1 ? outputs->data[0] : -1;
}

const TfLiteTensor* Graph::tensor(int index) const {
  return index >= 0 && static_cast<size_t>(index) < context->tensors_size ? &context->tensors[index] : nullptr;
}

}  // namespace deploy
