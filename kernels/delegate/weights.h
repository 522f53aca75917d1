/// A filter tensor's values as dense int8, whatever way the model stores them.
#ifndef DEPLOY_KERNELS_DELEGATE_WEIGHTS_H_
#define DEPLOY_KERNELS_DELEGATE_WEIGHTS_H_

#include <stddef.h>
#include <stdint.h>

#include "delegate/tflite_abi.h"

namespace deploy {

/// The number of elements, or -1 where an extent is not positive or there are 2^31 or more.
int64_t element_count(const TfLiteIntArray* dims);

/// Whether the tensor's data are there before anything has run.
bool is_constant(const TfLiteTensor& tensor);

/// Reads INT8, UINT8 (less `zero_point`), INT4 or INT2 values, dense or with sparsity parameters, into dense int8
/// [element_count(dims)].  Nothing about the tensor is trusted.  Returns null, or the reason why it cannot be read.
const char* read_weights(const TfLiteTensor& tensor, int32_t zero_point, int8_t* dense);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_DELEGATE_WEIGHTS_H_
