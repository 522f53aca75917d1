#include "delegate/scales.h"

#include <string.h>

namespace deploy {
namespace {

constexpr int32_t kFar = 1 << 24;  ///< Far beyond every 8-bit value: nothing is clamped there.

/// TFLite's TfLiteRound(), halves away from zero, limited to +-kFar.
int32_t round_near(float value) {
  if (!(value > -static_cast<float>(kFar))) return -kFar;
  if (value >= static_cast<float>(kFar)) return kFar;
  const int32_t whole = static_cast<int32_t>(value);
  const float rest = value - static_cast<float>(whole);
  return whole + (rest >= 0.5f ? 1 : 0) - (rest <= -0.5f ? 1 : 0);
}

int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

}  // namespace

bool quantize_multiplier(double scale, int32_t* multiplier, int32_t* shift) {
  if (!(scale >= 0.0) || scale > 1e300) return false;
  *multiplier = *shift = 0;
  // As frexp(): scale = fraction 2^exponent, fraction in [0.5, 1).  Subnormal scales are far below 2^-32, thus zero.
  uint64_t bits;
  memcpy(&bits, &scale, sizeof bits);
  const int32_t exponent = static_cast<int32_t>(bits >> 52) - 1022;
  if (exponent < -100) return true;
  const uint64_t fraction = (bits & ((uint64_t{1} << 52) - 1)) | uint64_t{1} << 52;  // 53 bits
  uint64_t fixed = (fraction + (uint64_t{1} << 21)) >> 22;                          // to 31 bits, halves up
  int32_t left = exponent;
  if (fixed == uint64_t{1} << 31) {
    fixed >>= 1;
    ++left;
  }
  if (left < -31) return true;
  if (left > 30) return false;
  *multiplier = static_cast<int32_t>(fixed);
  *shift = left;
  return true;
}

bool activation_range(TfLiteFusedActivation activation, float scale, int32_t zero_point, bool is_uint8, int32_t* min,
                      int32_t* max) {
  const int32_t given = zero_point + (is_uint8 ? 128 : 0);  // the model's own
  const int32_t low = is_uint8 ? 0 : -128, high = is_uint8 ? 255 : 127;
  *min = low;
  *max = high;
  switch (activation) {
    case kTfLiteActNone:
      break;
    case kTfLiteActRelu:
      *min = larger(low, given + round_near(0.0f / scale));
      break;
    case kTfLiteActRelu6:
      *min = larger(low, given + round_near(0.0f / scale));
      *max = smaller(high, given + round_near(6.0f / scale));
      break;
    case kTfLiteActReluN1To1:
      *min = larger(low, given + round_near(-1.0f / scale));
      *max = smaller(high, given + round_near(1.0f / scale));
      break;
    default:
      return false;
  }
  if (*min > *max) return false;
  if (is_uint8) {
    *min -= 128;
    *max -= 128;
  }
  return true;
}

}  // namespace deploy
