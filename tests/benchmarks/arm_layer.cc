// One convolution of a family, counted: arm_layer FAMILY SIZE CHANNELS OUT_CHANNELS KERNEL KEPT_PERCENT [VARIANT]
//
// Input is SIZE x SIZE x CHANNELS, padding SAME, stride 1; pruned families keep so many groups of 4 channels by 32
// outputs. Marks 0 and 1 stand before and after deploy_conv_run(), 2 after nothing; prints the variant and its packed
// bytes.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deploy/virtual/guest/mark.h"
#include "kernels.h"

static uint32_t random_below(uint32_t n) {
  static uint32_t seed = 1;
  seed = seed * 1664525u + 1013904223u;
  return static_cast<uint32_t>((static_cast<uint64_t>(seed >> 4) * n) >> 28);
}

int main(int argc, char** argv) {
  if (argc < 7) return 2;
  const int family = atoi(argv[1]), size = atoi(argv[2]), channels = atoi(argv[3]), out_c = atoi(argv[4]);
  const int kernel = atoi(argv[5]), kept = atoi(argv[6]), depth = kernel * kernel * channels;
  const int bits = family == DEPLOY_FAMILY_W4 || family == DEPLOY_FAMILY_TILE4 ? 4 : family == DEPLOY_FAMILY_W2 ? 2 : 8;
  int8_t* weights = static_cast<int8_t*>(malloc(static_cast<size_t>(out_c * depth)));
  for (int i = 0; i < out_c * depth; ++i) {
    const int low = bits == 8 ? -127 : -(1 << (bits - 1)), values = bits == 8 ? 255 : 1 << bits;
    const int8_t any = static_cast<int8_t>(low + static_cast<int>(random_below(static_cast<uint32_t>(values))));
    weights[i] = family == DEPLOY_FAMILY_BINARY ? (any < 0 ? -1 : 1) : any;
  }
  for (int tile = 0; tile < out_c && kept < 100; tile += 32) {
    // Chosen one after another, each with the chance that makes the number come out exactly.
    int left = depth / 4, wanted = (left * kept + 50) / 100;
    for (int k = 0; k < depth; k += 4, --left) {
      if (random_below(static_cast<uint32_t>(left)) < static_cast<uint32_t>(wanted)) {
        --wanted;
        continue;
      }
      for (int out = tile; out < tile + 32 && out < out_c; ++out) memset(weights + out * depth + k, 0, 4);
    }
  }
  int32_t* multiplier = static_cast<int32_t*>(malloc(sizeof(int32_t) * static_cast<size_t>(out_c)));
  int32_t* shift = static_cast<int32_t*>(malloc(sizeof(int32_t) * static_cast<size_t>(out_c)));
  for (int out = 0; out < out_c; ++out) multiplier[out] = 1518500250, shift[out] = -9;
  const DeployRequantization requantization = {nullptr, multiplier, shift, 3, -5, -128, 127, 0};
  int8_t* threshold = static_cast<int8_t*>(calloc(static_cast<size_t>(channels), 1));
  const DeployBinarization binarization = {threshold, -1, 1};
  const DeployConvShape shape = {1, size, size, channels, size, size, out_c, kernel, kernel, 1, 1, 1, 1,
                                 kernel / 2, kernel / 2, 1};
  char error[200];
  DeployConv* conv = deploy_conv_create(static_cast<DeployFamily>(family), &shape, weights, &requantization,
                                        family == DEPLOY_FAMILY_BINARY ? &binarization : nullptr,
                                        argc > 7 ? argv[7] : nullptr, error, sizeof error);
  if (!conv) return fprintf(stderr, "%s\n", error), 1;
  int8_t* input = static_cast<int8_t*>(malloc(static_cast<size_t>(size * size * channels)));
  int8_t* output = static_cast<int8_t*>(malloc(static_cast<size_t>(size * size * out_c)));
  for (int i = 0; i < size * size * channels; ++i) input[i] = static_cast<int8_t>(random_below(256));
  if (deploy_conv_run(conv, input, output, 1)) return 1;  // the first run fetches its scratch memory
  count_mark(0);
  const int32_t failed = deploy_conv_run(conv, input, output, 1);
  count_mark(1);
  count_mark(2);
  printf("%s %zu\n", deploy_conv_variant(conv), deploy_conv_packed_bytes(conv));
  return failed;
}
