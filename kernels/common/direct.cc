#include "common/direct.h"

#include <string.h>

namespace deploy {
namespace {

constexpr size_t kImageBytes = 192 * 1024;  ///< A band's image stays in the L2 cache beside the panels.
constexpr size_t kMaxRows = 64;             ///< The largest mr of a direct variant.
constexpr size_t kBandsPerThread = 4, kTilesOfBand = 4;

size_t align64(size_t n) { return (n + 63) & ~size_t{63}; }

size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

size_t divide_up(size_t n, size_t by) { return (n + by - 1) / by; }

/// Rows of the padded image below `rows` output rows.
size_t image_rows(const DirectPlan& plan, size_t rows) {
  const DeployConvShape& s = plan.shape;
  return (rows - 1) * static_cast<size_t>(s.stride_h / plan.every_y) +
         static_cast<size_t>(s.kernel_h - 1) * s.dilation_h + 1;
}

size_t image_bytes(const DirectPlan& plan, size_t rows) {
  return image_rows(plan, rows) * static_cast<size_t>(plan.image_w) * plan.pixel_bytes;
}

/// How the output is cut: bands of whole output rows, and where those are fewer than threads, shares of the panels.
struct Cut {
  size_t band;    ///< output rows of a band; the last one of an image may have fewer.
  size_t bands;   ///< of one image.
  size_t shares;  ///< of the panels.
};

size_t panels_per_group(const DirectPlan& plan) {
  const size_t out_c = static_cast<size_t>(plan.shape.out_c / plan.shape.groups);
  return (out_c + plan.variant->nr - 1) / plan.variant->nr;
}

Cut cut(const DirectPlan& plan, int32_t threads) {
  const size_t out_h = static_cast<size_t>(plan.shape.out_h), batch = static_cast<size_t>(plan.shape.batch);
  // More bands than threads, so that one which others keep waiting does not keep all waiting; but not of too few tiles.
  const size_t wanted = divide_up(static_cast<size_t>(threads), batch);
  const size_t tiles = divide_up(kTilesOfBand * plan.variant->mr, static_cast<size_t>(plan.shape.out_w));
  const size_t even = divide_up(out_h, wanted), finer = divide_up(out_h, threads > 1 ? kBandsPerThread * wanted : 1);
  size_t band = finer > tiles ? finer : min_size(even, tiles);
  while (band > 1 && image_bytes(plan, band) > kImageBytes) band = (band + 1) / 2;
  const size_t bands = (out_h + band - 1) / band;
  const size_t free_threads = static_cast<size_t>(threads) / (bands * batch);
  const size_t shares = min_size(panels_per_group(plan), free_threads > 1 ? free_threads : 1);
  return {band, bands, shares};
}

/// Fills `count` pixels with copies of `pad`.
void fill(uint8_t* to, const uint8_t* pad, size_t count, size_t pixel_bytes) {
  if (count == 0) return;
  memcpy(to, pad, pixel_bytes);
  // What is filled is copied again: few long copies instead of many short ones.
  for (size_t done = pixel_bytes, all = count * pixel_bytes, next; done < all; done += next) {
    next = min_size(done, all - done);
    memcpy(to + done, to, next);
  }
}

/// Prepares `count` pixels of one group, or copies them where the variant needs no preparation.
void prepare(const DirectPlan& plan, const int8_t* pixels, size_t count, int32_t zero_point, const int8_t* threshold,
             uint8_t* to) {
  const size_t stride = static_cast<size_t>(plan.shape.in_c) * plan.every_x;
  if (plan.variant->prepare) {
    plan.variant->prepare(pixels, count, stride, plan.channels, zero_point, threshold, to);
  } else if (stride == plan.channels) {
    memcpy(to, pixels, count * plan.channels);
  } else {
    for (size_t i = 0; i < count; ++i) memcpy(to + i * plan.channels, pixels + i * stride, plan.channels);
  }
}

/// Prepares one group's padded image for `rows` output rows that begin at `first`.
void make_image(const DirectPlan& plan, const DirectRun& run, const int8_t* input, size_t group, int32_t first,
                size_t rows, const uint8_t* pad, uint8_t* image) {
  const DeployConvShape& s = plan.shape;
  const size_t stride = static_cast<size_t>(s.in_c), row_bytes = static_cast<size_t>(plan.image_w) * plan.pixel_bytes;
  const int32_t left = s.pad_left < plan.image_w ? s.pad_left : plan.image_w;
  const int32_t columns = (s.in_w - 1) / plan.every_x + 1;
  const int32_t inside = columns < plan.image_w - left ? columns : plan.image_w - left;
  const int8_t* const threshold = run.threshold ? run.threshold + group * plan.channels : nullptr;
  const size_t count = image_rows(plan, rows);
  const int64_t top = static_cast<int64_t>(first) * s.stride_h - s.pad_top;
  if (plan.every_x == 1 && plan.every_y == 1 && inside == plan.image_w && inside == s.in_w && top >= 0 &&
      top + static_cast<int64_t>(count) <= s.in_h) {
    // No padding: the rows of the image follow each other as those of the input do.
    prepare(plan, input + static_cast<size_t>(top) * s.in_w * stride + group * plan.channels, count * s.in_w,
            run.input_zero_point, threshold, image);
    return;
  }
  for (size_t row = 0; row < count; ++row, image += row_bytes) {
    const int64_t y = top + static_cast<int64_t>(row) * plan.every_y;
    if (y < 0 || y >= s.in_h) {
      fill(image, pad, static_cast<size_t>(plan.image_w), plan.pixel_bytes);
      continue;
    }
    const int8_t* from = input + static_cast<size_t>(y) * s.in_w * stride + group * plan.channels;
    uint8_t* to = image + static_cast<size_t>(left) * plan.pixel_bytes;
    fill(image, pad, static_cast<size_t>(left), plan.pixel_bytes);
    prepare(plan, from, static_cast<size_t>(inside), run.input_zero_point, threshold, to);
    fill(to + static_cast<size_t>(inside) * plan.pixel_bytes, pad, static_cast<size_t>(plan.image_w - left - inside),
         plan.pixel_bytes);
  }
}

/// The output pixels of one image, one after another, and where each begins in the padded image.
struct Walk {
  const uint8_t* image;
  size_t out_w, row_step, column_step;
  size_t x, y;

  void next(size_t rows, const uint8_t** pixels) {
    while (rows > 0) {
      const size_t run = min_size(rows, out_w - x);
      const uint8_t* at = image + y * row_step + x * column_step;
      for (size_t i = 0; i < run; ++i, at += column_step) pixels[i] = at;
      pixels += run;
      rows -= run;
      x += run;
      if (x == out_w) x = 0, ++y;
    }
  }
};

/// Along one dimension: bit i is set where tap i of `kernel`, at first + i * dilation, lies outside [0, in).
uint64_t outside(int64_t first, int64_t in, int64_t kernel, int64_t dilation) {
  const int64_t before = first < 0 ? (dilation - 1 - first) / dilation : 0;                // so many lie before 0
  const int64_t within = in > first ? (in - first + dilation - 1) / dilation : 0;          // so many lie before `in`
  const uint64_t all = ~uint64_t{0} >> (64 - kernel);
  const uint64_t low = before < kernel ? (uint64_t{1} << before) - 1 : all;
  const uint64_t high = within < kernel ? all << within : 0;
  return (low | high) & all;
}

/// Bit t is set where tap t of the output pixel (oy, ox) lies in the padding; there are at most 64 taps.
uint64_t padded_taps(const DeployConvShape& s, int32_t oy, int32_t ox) {
  const int64_t top = static_cast<int64_t>(oy) * s.stride_h - s.pad_top;
  const int64_t left = static_cast<int64_t>(ox) * s.stride_w - s.pad_left;
  const uint64_t all = ~uint64_t{0} >> (64 - s.kernel_w), columns = outside(left, s.in_w, s.kernel_w, s.dilation_w);
  uint64_t rows = outside(top, s.in_h, s.kernel_h, s.dilation_h), mask = 0;
  for (int32_t at = 0; at < s.kernel_h * s.kernel_w; at += s.kernel_w, rows >>= 1) {
    mask |= (rows & 1 ? all : columns) << at;
  }
  return mask;
}

/// One input position in how many a dimension reads: with a kernel of 1 and no padding the strides in between are skipped.
int32_t every(int32_t in, int32_t out, int32_t kernel, int32_t stride, int32_t pad) {
  return kernel == 1 && pad == 0 && static_cast<int64_t>(out - 1) * stride < in ? stride : 1;
}

/// Output indices [begin, end) along one dimension that no tap's padding touches.
struct Inner {
  int64_t begin, end;
};

Inner inner(int64_t in, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad) {
  const int64_t room = in + pad - (kernel - 1) * dilation - 1;
  return {(pad + stride - 1) / stride, room < 0 ? 0 : room / stride + 1};
}

}  // namespace

const char* direct_plan(const DeployConvShape& shape, const Variant& variant, DirectPlan* plan, int32_t* tap_offset) {
  plan->shape = shape;
  plan->variant = &variant;
  DeployConvShape& s = plan->shape;
  const bool pointwise = s.kernel_h == 1 && s.kernel_w == 1 && s.pad_top == 0 && s.pad_left == 0 &&
                         s.in_h == s.out_h && s.in_w == s.out_w && (s.stride_h == 1 || s.out_h == 1) &&
                         (s.stride_w == 1 || s.out_w == 1);
  const int64_t pixels = static_cast<int64_t>(s.batch) * s.in_h * s.in_w;
  if (pointwise && pixels <= INT32_MAX) {
    s.in_h = s.out_h = static_cast<int32_t>(pixels);
    s.batch = s.in_w = s.out_w = s.stride_h = s.stride_w = 1;
  }
  plan->every_x = every(s.in_w, s.out_w, s.kernel_w, s.stride_w, s.pad_left);
  plan->every_y = every(s.in_h, s.out_h, s.kernel_h, s.stride_h, s.pad_top);
  const int64_t width = static_cast<int64_t>(s.out_w - 1) * (s.stride_w / plan->every_x) +
                        static_cast<int64_t>(s.kernel_w - 1) * s.dilation_w + 1;
  plan->channels = static_cast<size_t>(s.in_c / s.groups);
  plan->pixel_bytes = variant.pixel_bytes(plan->channels);
  const int64_t height = static_cast<int64_t>(s.kernel_h - 1) * s.dilation_h + 1;
  // One output row's image is the least that a unit holds, and all offsets in it are int32.
  if (width > INT32_MAX || height * width > INT32_MAX / static_cast<int64_t>(plan->pixel_bytes)) {
    return "an output row reads an image of more than 2 GiB";
  }
  plan->image_w = static_cast<int32_t>(width);
  for (int32_t ky = 0, tap = 0; ky < s.kernel_h; ++ky) {
    for (int32_t kx = 0; kx < s.kernel_w; ++kx, ++tap) {
      tap_offset[tap] = static_cast<int32_t>(
          (static_cast<int64_t>(ky) * s.dilation_h * width + static_cast<int64_t>(kx) * s.dilation_w) *
          static_cast<int64_t>(plan->pixel_bytes));
    }
  }
  return nullptr;
}

size_t direct_units(const DirectPlan& plan, int32_t threads) {
  const Cut c = cut(plan, threads);
  return c.bands * c.shares * static_cast<size_t>(plan.shape.batch);
}

size_t direct_scratch_bytes(const DirectPlan& plan, int32_t threads) {
  return align64(plan.pixel_bytes) + align64(plan.channels) +
         align64(image_bytes(plan, cut(plan, threads).band) + kSlackBytes);
}

void direct_run(const DirectPlan& plan, const DirectRun& run, size_t unit, int32_t threads, uint8_t* scratch) {
  const DeployConvShape& s = plan.shape;
  const Variant& variant = *plan.variant;
  const Cut c = cut(plan, threads);
  const size_t share = unit % c.shares, band = unit / c.shares % c.bands, image_index = unit / c.shares / c.bands;
  const size_t groups = static_cast<size_t>(s.groups), out_c = static_cast<size_t>(s.out_c) / groups;
  const size_t panels = panels_per_group(plan), out_w = static_cast<size_t>(s.out_w);
  const size_t first_row = band * c.band, rows = min_size(c.band, static_cast<size_t>(s.out_h) - first_row);
  const int8_t* input = run.input + image_index * static_cast<size_t>(s.in_h) * s.in_w * s.in_c;
  int8_t* output = run.output + (image_index * static_cast<size_t>(s.out_h) + first_row) * out_w * s.out_c;

  uint8_t* const pad = scratch;
  uint8_t* const image = pad + align64(plan.pixel_bytes) + align64(plan.channels);
  if (variant.family == DEPLOY_FAMILY_BINARY) {
    memset(pad, 0, plan.pixel_bytes);
  } else {
    int8_t* const zeros = reinterpret_cast<int8_t*>(pad + align64(plan.pixel_bytes));
    memset(zeros, run.input_zero_point, plan.channels);
    if (variant.prepare) {
      variant.prepare(zeros, 1, plan.channels, plan.channels, run.input_zero_point, nullptr, pad);
    } else {
      memcpy(pad, zeros, plan.channels);
    }
  }

  TileArgs args = tile_args(plan, run);
  const size_t row_step = static_cast<size_t>(s.stride_h / plan.every_y) * plan.image_w * plan.pixel_bytes;
  const size_t column_step = static_cast<size_t>(s.stride_w / plan.every_x) * plan.pixel_bytes;
  const bool masked = variant.family == DEPLOY_FAMILY_BINARY;
  const Inner inner_y = inner(s.in_h, s.kernel_h, s.stride_h, s.dilation_h, s.pad_top);
  const Inner inner_x = inner(s.in_w, s.kernel_w, s.stride_w, s.dilation_w, s.pad_left);
  for (size_t group = 0; group < groups; ++group) {
    make_image(plan, run, input, group, static_cast<int32_t>(first_row), rows, pad, image);
    Walk walk = {image, out_w, row_step, column_step, 0, 0};
    for (size_t done = 0; done < rows * out_w; done += args.rows) {
      const uint8_t* pixels[kMaxRows];
      uint64_t padded[kMaxRows], any = 0;
      args.rows = min_size(variant.mr, rows * out_w - done);
      if (masked) {
        int64_t oy = static_cast<int64_t>(first_row + walk.y), ox = static_cast<int64_t>(walk.x);
        for (size_t r = 0; r < args.rows; ++r) {
          const bool inside = oy >= inner_y.begin && oy < inner_y.end && ox >= inner_x.begin && ox < inner_x.end;
          padded[r] = inside ? 0 : padded_taps(s, static_cast<int32_t>(oy), static_cast<int32_t>(ox));
          any |= padded[r];
          if (++ox == s.out_w) ox = 0, ++oy;
        }
      }
      walk.next(args.rows, pixels);
      args.pixels = pixels;
      args.padded = any ? padded : nullptr;
      for (size_t panel = share; panel < panels; panel += c.shares) {
        const size_t first = panel * variant.nr;
        args.cols = min_size(variant.nr, out_c - first);
        args.panel = run.panels[group * panels + panel];
        args.out = output + done * static_cast<size_t>(s.out_c) + group * out_c + first;
        variant.tile(args);
      }
    }
  }
}

}  // namespace deploy
