/// How int32 accumulators become 8 bits again: TFLite's reference rule, the one rule of this library.
#ifndef DEPLOY_KERNELS_COMMON_REQUANTIZE_H_
#define DEPLOY_KERNELS_COMMON_REQUANTIZE_H_

#include <stdint.h>

namespace deploy {

/// acc * multiplier * 2^(shift - 31), rounded twice as TFLite's reference kernels do: first to an integer with halves
/// up (its "saturating rounding doubling high multiply"), then to a multiple of 2^-shift with halves away from zero.
///
/// `multiplier` is 0 or in [2^30, 2^31), `shift` in [-31, 30].  A positive shift is applied to acc first, and wraps.
static inline int32_t scale_accumulator(int32_t acc, int32_t multiplier, int32_t shift) {
  if (shift > 0) acc = static_cast<int32_t>(static_cast<uint32_t>(acc) << shift);
  const int64_t product = static_cast<int64_t>(acc) * multiplier;
  const int32_t high = static_cast<int32_t>((product + (int64_t{1} << 30)) >> 31);
  if (shift >= 0) return high;
  // Halves away from zero: a negative value needs one more than half a step to go up.  In 64 bits nothing overflows.
  const int64_t half = int64_t{1} << (-shift - 1);
  return static_cast<int32_t>((high + half - (high < 0)) >> -shift);
}

/// The same rounded once, halves up, as TFLite's FULLY_CONNECTED does: floor(acc * multiplier * 2^(shift - 31) + 1/2).
/// A positive shift does not wrap here.
static inline int32_t scale_accumulator_once(int32_t acc, int32_t multiplier, int32_t shift) {
  const int64_t product = static_cast<int64_t>(acc) * multiplier;
  return static_cast<int32_t>((product + (int64_t{1} << (30 - shift))) >> (31 - shift));
}

/// One accumulator to an int8 output, clamped to [clamp_min, clamp_max].
static inline int8_t requantize(int32_t acc, int32_t multiplier, int32_t shift, int32_t zero_point, int32_t clamp_min,
                                int32_t clamp_max, bool single_rounding) {
  const int32_t scaled = single_rounding ? scale_accumulator_once(acc, multiplier, shift)
                                         : scale_accumulator(acc, multiplier, shift);
  // A scaled value near the end of int32 must not wrap when the zero point is added.
  int64_t out = static_cast<int64_t>(scaled) + zero_point;
  if (out < clamp_min) out = clamp_min;
  if (out > clamp_max) out = clamp_max;
  return static_cast<int8_t>(out);
}

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_REQUANTIZE_H_
