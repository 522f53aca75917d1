#include "common/winograd.h"

#include <string.h>

namespace deploy {
namespace {

constexpr size_t kInputBytes = 1024 * 1024;  ///< Transformed inputs of a unit, unless that is too few tiles.
constexpr size_t kMostTiles = 49, kFewestTiles = 8;
constexpr size_t kTogether = 4;       ///< tiles side by side whose outputs are stored together

/// 2^6 |y| < 2^31 where |y| <= 9 x channels x 128 x 8.
constexpr int32_t kMaxChannels = 3640;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

size_t divide_up(size_t n, size_t by) { return (n + by - 1) / by; }

/// The tiles of a layer, image by image and row by row.
struct Tiles {
  size_t across, down, all;
  explicit Tiles(const DeployConvShape& s)
      : across(divide_up(static_cast<size_t>(s.out_w), kWinogradSide)),
        down(divide_up(static_cast<size_t>(s.out_h), kWinogradSide)),
        all(across * down * static_cast<size_t>(s.batch)) {}
};

/// How work is cut: runs of `run` tiles, and shares of the panels.
struct Cut {
  size_t run, runs, shares;
};

size_t panels_of(const DirectPlan& plan) {
  return divide_up(static_cast<size_t>(plan.shape.out_c / plan.shape.groups), plan.variant->nr);
}

/// One line more than needed, so that neighbours do not meet in the same cache sets.
size_t input_stride(const DirectPlan& plan) { return kWinogradPoints * round_up(plan.channels, 32) + 32; }

Cut cut(const DirectPlan& plan, int32_t threads) {
  const size_t tiles = Tiles(plan.shape).all, fitting = kInputBytes / (input_stride(plan) * sizeof(int16_t));
  const size_t most = fitting > kMostTiles ? kMostTiles : fitting < kFewestTiles ? kFewestTiles : fitting;
  const size_t runs = divide_up(tiles, most), run = divide_up(tiles, runs), panels = panels_of(plan);
  // Weights are transformed anew for each run, inputs for each share: no more of either than there are threads.
  const size_t wanted = divide_up(static_cast<size_t>(threads), runs);
  return {run, divide_up(tiles, run), wanted < panels ? wanted : panels};
}

struct Scratch {
  WinogradBuffers buffers;
  int8_t* pad;  ///< a pixel outside of the input
  size_t bytes;
};

Scratch scratch_of(const DirectPlan& plan, uint8_t* at) {
  const Variant& variant = *plan.variant;
  const size_t run = cut(plan, 1).run, channels = round_up(plan.channels, variant.kr), nr = variant.nr;
  Scratch s;
  s.buffers.input_stride = input_stride(plan);
  s.buffers.weight_stride = channels * nr + 32;
  const size_t sizes[] = {run * s.buffers.input_stride * sizeof(int16_t),
                          kWinogradPoints * s.buffers.weight_stride * sizeof(int16_t),
                          run * kWinogradPoints * nr * sizeof(int32_t),
                          (kWinogradSide * kWinogradSide * kTogether + 1) * nr * sizeof(int32_t), plan.channels};
  uint8_t* begin[5];
  s.bytes = 0;
  for (int i = 0; i < 5; ++i) {
    begin[i] = at ? at + s.bytes : nullptr;
    s.bytes += round_up(sizes[i], 64);
  }
  s.buffers.inputs = reinterpret_cast<int16_t*>(begin[0]);
  s.buffers.weights = reinterpret_cast<int16_t*>(begin[1]);
  s.buffers.products = reinterpret_cast<int32_t*>(begin[2]);
  s.buffers.sums = reinterpret_cast<int32_t*>(begin[3]);
  s.pad = reinterpret_cast<int8_t*>(begin[4]);
  return s;
}

/// The 36 pixels under tile (y, x) of an image; those outside of it are `pad`.
void find_pixels(const DeployConvShape& s, const int8_t* image, size_t y, size_t x, const int8_t* pad,
                 const int8_t** pixels) {
  for (int64_t row = 0; row < 6; ++row) {
    const int64_t in_y = static_cast<int64_t>(y * kWinogradSide) - s.pad_top + row;
    for (int64_t column = 0; column < 6; ++column) {
      const int64_t in_x = static_cast<int64_t>(x * kWinogradSide) - s.pad_left + column;
      const bool inside = in_y >= 0 && in_y < s.in_h && in_x >= 0 && in_x < s.in_w;
      *pixels++ = inside ? image + (in_y * s.in_w + in_x) * s.in_c : pad;
    }
  }
}

size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

/// The outputs of the tiles [first, first + count), of which `products` has the products with one panel; `out` is the
/// first of the panel's columns in the whole output.
void store_outputs(const DirectPlan& plan, const WinogradBuffers& buffers, size_t first, size_t count,
                   const uint8_t* panel, int8_t* out, TileArgs* args) {
  const DeployConvShape& s = plan.shape;
  const Tiles tiles(s);
  const size_t nr = plan.variant->nr, out_w = static_cast<size_t>(s.out_w), out_h = static_cast<size_t>(s.out_h);
  const int32_t* const bias = reinterpret_cast<const int32_t*>(panel);
  const int32_t* const multiplier = bias + nr;
  const int8_t* const shift = reinterpret_cast<const int8_t*>(multiplier + nr);
  for (size_t done = 0, together; done < count; done += together) {
    const size_t tile = first + done, x = tile % tiles.across, row = tile / tiles.across;
    together = min_size(min_size(kTogether, count - done), tiles.across - x);
    plan.variant->winograd->outputs(buffers.products + done * kWinogradPoints * nr, together, bias, buffers.sums);
    const size_t left = x * kWinogradSide, top = row % tiles.down * kWinogradSide;
    int8_t* to = out + ((row / tiles.down * out_h + top) * out_w + left) * static_cast<size_t>(s.out_c);
    args->rows = min_size(together * kWinogradSide, out_w - left);
    for (size_t y = 0; y < kWinogradSide && top + y < out_h; ++y, to += out_w * static_cast<size_t>(s.out_c)) {
      args->out = to;
      plan.variant->winograd->store(buffers.sums + y * kWinogradSide * kTogether * nr, multiplier, shift, *args);
    }
  }
}

}  // namespace

size_t winograd_header_bytes(size_t nr) { return round_up(nr * (2 * sizeof(int32_t) + sizeof(int8_t)), 64); }

void winograd_panel_bytes(const GroupWeights& group, size_t nr, int bits, size_t* sizes) {
  const size_t kr = 16 / static_cast<size_t>(bits);
  for (size_t first = 0; first < group.out_c; first += nr) {
    *sizes++ = winograd_header_bytes(nr) + round_up(group.channels, kr) / kr * group.taps * 2 * nr;
  }
}

void winograd_pack(const GroupWeights& group, size_t first, size_t nr, int bits, uint8_t* panel) {
  const size_t kr = 16 / static_cast<size_t>(bits), depth = group.taps * group.channels;
  const DeployRequantization& r = group.requantization;
  int32_t* const bias = reinterpret_cast<int32_t*>(panel);
  int32_t* const multiplier = bias + nr;
  int8_t* const shift = reinterpret_cast<int8_t*>(multiplier + nr);
  uint8_t* const to = panel + winograd_header_bytes(nr);
  const unsigned half = 1u << (bits - 1);
  for (size_t block = 0; block < round_up(group.channels, kr); block += kr) {
    for (size_t tap = 0; tap < group.taps; ++tap) {
      uint8_t* const bytes = to + (block / kr * group.taps + tap) * 2 * nr;
      for (size_t value = 0; value < kr * nr; ++value) {
        const size_t c = block + value / (2 * nr) * 2 + value % 2, column = first + value / 2 % nr;
        const bool inside = c < group.channels && column < group.out_c;
        const int weight = inside ? group.weights[column * depth + tap * group.channels + c] : 0;
        bytes[value % (2 * nr)] |= static_cast<uint8_t>((static_cast<unsigned>(weight) + half)
                                                        << (value / (2 * nr) * static_cast<size_t>(bits)));
      }
    }
  }
  for (size_t column = 0; column < nr && first + column < group.out_c; ++column) {
    uint32_t sum = 0;
    for (size_t i = 0; i < depth; ++i) {
      sum += static_cast<uint32_t>(static_cast<int32_t>(group.weights[(first + column) * depth + i]));
    }
    const uint32_t given = r.bias ? static_cast<uint32_t>(r.bias[first + column]) : 0;
    bias[column] = static_cast<int32_t>(given - sum * static_cast<uint32_t>(r.input_zero_point));
    multiplier[column] = r.multiplier[first + column];
    shift[column] = static_cast<int8_t>(r.shift[first + column]);
  }
}

const char* winograd_unfit(const DeployConvShape& s) {
  if (s.kernel_h != 3 || s.kernel_w != 3 || s.stride_h != 1 || s.stride_w != 1 || s.dilation_h != 1 ||
      s.dilation_w != 1) {
    return "this variant computes 3x3 convolutions without stride and dilation only";
  }
  return s.in_c / s.groups > kMaxChannels ? "more input channels than this variant can add up" : nullptr;
}

double winograd_products(const DeployConvShape& s) {
  const double tiles = static_cast<double>(Tiles(s).all), groups = s.groups, in_c = s.in_c / s.groups;
  const double columns = static_cast<double>(round_up(static_cast<size_t>(s.out_c / s.groups), 32));
  // Cycles of AVX-512 VNNI: of 32 products each, and of the transforms of weights, inputs and outputs as measured.
  const double multiplied = tiles * static_cast<double>(kWinogradPoints) * in_c * columns / 32;
  return 64 * groups * (multiplied + 3.2 * in_c * columns + tiles * (9 * in_c + 11 * columns));
}

bool winograd_pays(const DeployConvShape& s) {
  const double columns = static_cast<double>(round_up(static_cast<size_t>(s.out_c / s.groups), 16)) * s.groups;
  return winograd_products(s) < 0.95 * s.batch * s.out_h * s.out_w * 9.0 * (s.in_c / s.groups) * columns;
}

size_t winograd_units(const DirectPlan& plan, int32_t threads) {
  const Cut c = cut(plan, threads);
  return c.runs * c.shares;
}

size_t winograd_scratch_bytes(const DirectPlan& plan) { return scratch_of(plan, nullptr).bytes; }

void winograd_run(const DirectPlan& plan, const DirectRun& run, size_t unit, int32_t threads, uint8_t* scratch) {
  const DeployConvShape& s = plan.shape;
  const Variant& variant = *plan.variant;
  const WinogradSteps& steps = *variant.winograd;
  const Cut c = cut(plan, threads);
  const Tiles tiles(s);
  const Scratch at = scratch_of(plan, scratch);
  const size_t first = unit / c.shares * c.run, count = min_size(c.run, tiles.all - first);
  const size_t groups = static_cast<size_t>(s.groups), out_c = static_cast<size_t>(s.out_c) / groups;
  const size_t panels = panels_of(plan), channels = round_up(plan.channels, variant.kr);
  memset(at.pad, run.input_zero_point, plan.channels);
  TileArgs args = tile_args(plan, run);
  for (size_t group = 0; group < groups; ++group) {
    for (size_t i = 0; i < count; ++i) {
      const size_t tile = first + i, row = tile / tiles.across;
      const int8_t* const image =
          run.input + row / tiles.down * static_cast<size_t>(s.in_h) * s.in_w * s.in_c + group * plan.channels;
      const int8_t* pixels[kWinogradPoints];
      find_pixels(s, image, row % tiles.down, tile % tiles.across, at.pad, pixels);
      steps.inputs(pixels, plan.channels, at.buffers.inputs + i * at.buffers.input_stride);
    }
    for (size_t panel = unit % c.shares; panel < panels; panel += c.shares) {
      const uint8_t* const packed = run.panels[group * panels + panel];
      steps.weights(packed + winograd_header_bytes(variant.nr), channels, at.buffers.weights, at.buffers.weight_stride);
      steps.multiply(at.buffers, count, channels);
      args.cols = min_size(variant.nr, out_c - panel * variant.nr);
      store_outputs(plan, at.buffers, first, count, packed, run.output + group * out_c + panel * variant.nr, &args);
    }
  }
}

}  // namespace deploy
