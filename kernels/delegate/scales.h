/// From a model's real-valued scales to a layer's integers, as TFLite does it.
#ifndef DEPLOY_KERNELS_DELEGATE_SCALES_H_
#define DEPLOY_KERNELS_DELEGATE_SCALES_H_

#include <stdint.h>

#include "delegate/tflite_abi.h"

namespace deploy {

/// TFLite's QuantizeMultiplier: scale = multiplier 2^(shift - 31).  False where scale is not a finite number >= 0, or so
/// large that shift leaves [-31, 30].
bool quantize_multiplier(double scale, int32_t* multiplier, int32_t* shift);

/// The integers that a fused activation lets through, within [-128, 127] after `zero_point` was moved by -128 for uint8.
/// False where they are none, or the activation is none of the four that convolutions have.
bool activation_range(TfLiteFusedActivation activation, float scale, int32_t zero_point, bool is_uint8, int32_t* min,
                      int32_t* max);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_DELEGATE_SCALES_H_
