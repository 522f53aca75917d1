#include "common/shape.h"

#include <stdint.h>

namespace deploy {
namespace {

constexpr int64_t kMaxElements = INT32_MAX;  ///< of each tensor, so that no product of sizes wraps
constexpr int64_t kMaxDepth = 1 << 16;       ///< products summed: 2^16 x 255 x 127 stays below 2^31

/// Whether a x b x c x d, each >= 1, is at most `limit`.
bool within(int64_t limit, int64_t a, int64_t b, int64_t c, int64_t d) {
  return a <= limit && b <= limit / a && c <= limit / (a * b) && d <= limit / (a * b * c);
}

bool fits_int8(int32_t value) { return value >= -128 && value <= 127; }

}  // namespace

const char* check_layer(DeployFamily family, const DeployConvShape& s, const DeployRequantization& r,
                        const DeployBinarization* binarization) {
  const int32_t positive[] = {s.batch,    s.in_h,     s.in_w,     s.in_c,     s.out_h,      s.out_w,      s.out_c,
                              s.kernel_h, s.kernel_w, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w, s.groups};
  for (const int32_t value : positive) {
    if (value < 1) return "a size is less than 1";
  }
  if (s.pad_top < 0 || s.pad_left < 0) return "a padding is negative";
  if (s.in_c % s.groups || s.out_c % s.groups) return "the groups do not divide the channels";
  if (!within(kMaxElements, s.batch, s.in_h, s.in_w, s.in_c)) return "the input has 2^31 elements or more";
  if (!within(kMaxElements, s.batch, s.out_h, s.out_w, s.out_c)) return "the output has 2^31 elements or more";
  if (!within(kMaxElements, s.out_c, s.kernel_h, s.kernel_w, s.in_c / s.groups)) {
    return "the weights have 2^31 elements or more";
  }
  if (!within(kMaxDepth, 1, s.kernel_h, s.kernel_w, s.in_c / s.groups)) return "a sum of more than 2^16 products";
  if (!within(kMaxElements, 1, 1, s.kernel_h, s.dilation_h) || !within(kMaxElements, 1, 1, s.kernel_w, s.dilation_w) ||
      !within(kMaxElements, 1, 1, s.out_h, s.stride_h) || !within(kMaxElements, 1, 1, s.out_w, s.stride_w)) {
    return "a stride or dilation reaches beyond 2^31";
  }
  if (!fits_int8(r.input_zero_point) || !fits_int8(r.output_zero_point)) return "a zero point does not fit int8";
  if (!fits_int8(r.clamp_min) || !fits_int8(r.clamp_max) || r.clamp_min > r.clamp_max) {
    return "the activation's range is not one of int8";
  }
  if (!r.multiplier || !r.shift) return "the requantization has no multipliers or shifts";
  for (int32_t i = 0; i < s.out_c; ++i) {
    if (r.multiplier[i] != 0 && r.multiplier[i] < (1 << 30)) return "a multiplier lies outside [2^30, 2^31)";
    if (r.shift[i] < -31 || r.shift[i] > 30) return "a shift lies outside [-31, 30]";
  }
  if (family == DEPLOY_FAMILY_BINARY) {
    if (!binarization || !binarization->threshold) return "a binary layer needs thresholds";
    if (!fits_int8(binarization->low) || !fits_int8(binarization->high) || binarization->low == binarization->high) {
      return "the two values of a binary input must differ and fit int8";
    }
    if (!within(64, 1, 1, s.kernel_h, s.kernel_w)) return "a binary layer has at most 64 taps";
  } else if (binarization) {
    return "only a binary layer has thresholds";
  }
  return nullptr;
}

bool is_single_row(const DeployConvShape& s) { return s.batch == 1 && s.out_h == 1 && s.out_w == 1; }

}  // namespace deploy
