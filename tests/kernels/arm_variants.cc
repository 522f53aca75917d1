// Runs every variant that the CPU supports against its family's reference, on layers that fit no tile.
//
//   arm_variants [part of a variant's name]
//
// Prints "VARIANT N layers" for each, then "equal"; or the first value that differs, and exits with 1.  A read or write
// outside of a buffer kills the program: weights, input and output lie flush with pages that may not be touched.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"

namespace {

uint32_t g_seed = 1;

uint32_t random_below(uint32_t n) {
  g_seed = g_seed * 1664525u + 1013904223u;
  return static_cast<uint32_t>((static_cast<uint64_t>(g_seed >> 4) * n) >> 28);
}

int between(int low, int high) { return low + static_cast<int>(random_below(static_cast<uint32_t>(high - low + 1))); }

/// Bytes that end (or begin) where a page that cannot be touched begins (or ends).
class Guarded {
 public:
  Guarded(size_t bytes, bool at_end) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t room = (bytes + page - 1) / page * page;
    all_ = room + 2 * page;
    block_ = static_cast<uint8_t*>(mmap(nullptr, all_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (block_ == MAP_FAILED) abort();
    mprotect(block_, page, PROT_NONE);
    mprotect(block_ + page + room, page, PROT_NONE);
    bytes_ = block_ + page + (at_end ? room - bytes : 0);
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(block_, all_); }
  int8_t* int8() { return reinterpret_cast<int8_t*>(bytes_); }

 private:
  uint8_t *block_, *bytes_;
  size_t all_;
};

struct Family {
  int low, high;  // of weights
  bool pruned;
  bool two_valued;  // a magnitude per output channel, and its negative
};

Family family_of(DeployFamily family) {
  switch (family) {
    case DEPLOY_FAMILY_W4: return {-8, 7, false, false};
    case DEPLOY_FAMILY_W2: return {-2, 1, false, false};
    case DEPLOY_FAMILY_TILE4: return {-8, 7, true, false};
    case DEPLOY_FAMILY_TILE8: return {-127, 127, true, false};
    case DEPLOY_FAMILY_BINARY: return {-127, 127, false, true};
    default: return {-127, 127, false, false};
  }
}

enum Fill { kRandom, kLowest, kHighest, kFills };  // extremes overflow what a variant sums in too few bits

struct Size {
  int batch, h, w, in_c, out_c, kernel, stride, dilation, groups, pad;
};

// Channels around the depth steps of 4, 8 and 16, columns around 4, 8, 16 and 32, rows around every mr; a kernel row
// that is one segment and one that is not; depth beyond the 16-bit sums of w4 (240) and w2 (1008), and beyond a chunk
// (1024).
constexpr Size kSizes[] = {
    {1, 1, 1, 1, 1, 1, 1, 1, 1, 0},      {1, 5, 3, 16, 16, 1, 1, 1, 1, 0},   {1, 1, 1, 33, 37, 1, 1, 1, 1, 0},
    {1, 3, 3, 3, 5, 3, 1, 1, 1, 1},      {2, 5, 5, 15, 33, 3, 2, 1, 1, 1},   {1, 7, 5, 17, 4, 3, 1, 2, 1, 2},
    {1, 4, 5, 24, 18, 3, 1, 1, 3, 1},    {1, 3, 2, 70, 35, 3, 1, 1, 1, 1},   {1, 2, 3, 1100, 20, 1, 1, 1, 1, 0},
    {1, 6, 6, 128, 31, 2, 3, 1, 1, 0},   {1, 1, 7, 5000, 3, 1, 1, 1, 1, 0},  {1, 9, 1, 4, 64, 5, 1, 1, 1, 2},
};

void fill_weights(const Family& family, Fill fill, const DeployConvShape& s, int keep_percent, int8_t* weights) {
  const int channels = s.in_c / s.groups, taps = s.kernel_h * s.kernel_w, of_group = s.out_c / s.groups;
  for (int out = 0; out < s.out_c; ++out) {
    const int magnitude = between(1, 127);
    for (int i = 0; i < taps * channels; ++i) {
      const int any = between(family.low, family.high);
      const int value = fill == kLowest ? family.low : fill == kHighest ? family.high : any;
      const int8_t sign = static_cast<int8_t>(value < 0 ? -magnitude : magnitude);
      weights[out * taps * channels + i] = family.two_valued ? sign : static_cast<int8_t>(value);
    }
  }
  if (!family.pruned) return;
  for (int group = 0; group < s.groups; ++group) {
    for (int tile = 0; tile < of_group; tile += 32) {
      for (int tap = 0; tap < taps; ++tap) {
        for (int channel = 0; channel < channels; channel += 4) {
          if (between(0, 99) < keep_percent) continue;
          for (int out = tile; out < tile + 32 && out < of_group; ++out) {
            for (int c = channel; c < channel + 4 && c < channels; ++c) {
              weights[((group * of_group + out) * taps + tap) * channels + c] = 0;
            }
          }
        }
      }
    }
  }
}

DeployConvShape shape_of(const Size& z) {
  const int extent = (z.kernel - 1) * z.dilation + 1;
  const int out_h = (z.h + 2 * z.pad - extent) / z.stride + 1, out_w = (z.w + 2 * z.pad - extent) / z.stride + 1;
  return {z.batch,  z.h,      z.w,      z.in_c,     out_h,      out_w, z.out_c, z.kernel,
          z.kernel, z.stride, z.stride, z.dilation, z.dilation, z.pad, z.pad,   z.groups};
}

DeployConv* create(const DeployVariant& variant, const DeployConvShape& shape, const int8_t* weights,
                   const DeployRequantization& requantization, const DeployBinarization* bits, const char* name) {
  char error[200];
  DeployConv* conv = deploy_conv_create(variant.family, &shape, weights, &requantization, bits, name, error,
                                        sizeof error);
  if (!conv) {
    printf("%s: %s\n", name, error);
    exit(1);
  }
  return conv;
}

/// One layer through the variant and the reference; ends the program where they differ.
void compare(const DeployVariant& variant, const char* reference, const Size& size, Fill fill, bool at_end) {
  const Family family = family_of(variant.family);
  const DeployConvShape shape = shape_of(size);
  const size_t weights_bytes = static_cast<size_t>(shape.out_c) * static_cast<size_t>(shape.kernel_h * shape.kernel_w) *
                               static_cast<size_t>(shape.in_c / shape.groups);
  const size_t in_bytes = static_cast<size_t>(shape.batch * shape.in_h * shape.in_w * shape.in_c);
  const size_t out_bytes = static_cast<size_t>(shape.batch * shape.out_h * shape.out_w * shape.out_c);
  Guarded weights(weights_bytes, at_end), input(in_bytes, at_end);
  Guarded output(out_bytes, at_end), expected(out_bytes, at_end);
  fill_weights(family, fill, shape, between(0, 3) * 30, weights.int8());
  for (size_t i = 0; i < in_bytes; ++i) {
    input.int8()[i] = static_cast<int8_t>(fill == kRandom ? between(-128, 127) : fill == kLowest ? -128 : 127);
  }
  int32_t bias[64], multiplier[64], shift[64];
  for (int out = 0; out < shape.out_c; ++out) {
    bias[out] = between(-100000, 100000);
    multiplier[out] = between(1 << 30, INT32_MAX - 1) | (out % 5 == 0 ? INT32_MAX : 0);
    if (out % 13 == 7) multiplier[out] = 0;
    shift[out] = out % 9 == 4 ? between(-31, 3) : between(-16, -4);
  }
  const DeployRequantization requantization = {bias, multiplier, shift, fill == kRandom ? between(-128, 127) : -128,
                                               between(-128, 127), between(-128, -60), between(60, 127),
                                               between(0, 1)};
  static int8_t threshold[8192];
  for (int channel = 0; channel < shape.in_c; ++channel) threshold[channel] = static_cast<int8_t>(between(-128, 127));
  const int low = between(-128, 126);
  const DeployBinarization binarization = {threshold, low, between(low + 1, 127)};
  const DeployBinarization* const bits = variant.family == DEPLOY_FAMILY_BINARY ? &binarization : nullptr;
  DeployConv* const fast = create(variant, shape, weights.int8(), requantization, bits, variant.name);
  DeployConv* const plain = create(variant, shape, weights.int8(), requantization, bits, reference);
  memset(output.int8(), 0x55, out_bytes);
  if (deploy_conv_run(fast, input.int8(), output.int8(), 1) ||
      deploy_conv_run(plain, input.int8(), expected.int8(), 1)) {
    printf("%s: no memory\n", variant.name);
    exit(1);
  }
  for (size_t i = 0; i < out_bytes; ++i) {
    if (expected.int8()[i] == output.int8()[i]) continue;
    printf("%s: layer %zu, fill %d, value %zu (channel %zu): expected %d, not %d\n", variant.name,
           static_cast<size_t>(&size - kSizes), fill, i, i % static_cast<size_t>(shape.out_c), expected.int8()[i],
           output.int8()[i]);
    exit(1);
  }
  deploy_conv_destroy(fast);
  deploy_conv_destroy(plain);
}

}  // namespace

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IONBF, 0);
  const int32_t count = deploy_kernels_variant_count();
  for (int32_t i = 0; i < count; ++i) {
    const DeployVariant variant = deploy_kernels_variant(i);
    if (!variant.supported || strstr(variant.name, "reference")) continue;
    if (argc > 1 && !strstr(variant.name, argv[1])) continue;
    const char* reference = nullptr;
    for (int32_t j = 0; j < count; ++j) {
      const DeployVariant other = deploy_kernels_variant(j);
      if (other.family == variant.family && strstr(other.name, "reference")) reference = other.name;
    }
    if (!reference) return printf("%s has no reference\n", variant.name), 1;
    int layers = 0;
    for (const Size& size : kSizes) {
      for (int fill = 0; fill < kFills; ++fill) {
        compare(variant, reference, size, static_cast<Fill>(fill), layers++ % 2 == 0);
      }
    }
    printf("%s %d layers\n", variant.name, layers);
  }
  puts("equal");
  return 0;
}
