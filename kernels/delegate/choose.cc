#include "delegate/choose.h"

#include "common/cpu_features.h"
#include "common/registry.h"
#include "common/winograd.h"

namespace deploy {
namespace {

/// What the weights are, beside dense int8.
struct Pattern {
  bool fits_4 = true, fits_2 = true;
  double tiles = 1.0;   ///< share of the 4-channel windows of 32 outputs that are not all zero
  double blocks = 1.0;  ///< share of the runs of 4 input channels of one output that are not all zero
  double groups = 1.0;  ///< products of the N:M family, as a share of all
};

/// Of each 16 input channels of 16 outputs the N:M family multiplies as many as the fullest output keeps, in fours.
double share_of_groups(const Layer& layer) {
  const DeployConvShape& s = layer.shape;
  const int64_t channels = s.in_c / s.groups, taps = static_cast<int64_t>(s.kernel_h) * s.kernel_w;
  const int64_t depth = taps * channels, per_group = s.out_c / s.groups;
  int64_t multiplied = 0;
  for (int64_t first = 0, columns; first < s.out_c; first += columns) {
    const int64_t left = per_group - first % per_group;
    columns = left < 16 ? left : 16;
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t begin = 0; begin < channels; begin += 16) {
        const int64_t end = begin + 16 < channels ? begin + 16 : channels;
        int64_t most = 0;
        for (int64_t column = first; column < first + columns; ++column) {
          int64_t kept = 0;
          for (int64_t c = begin; c < end; ++c) kept += layer.weights[column * depth + tap * channels + c] != 0;
          most = kept > most ? kept : most;
        }
        multiplied += (most + 3) / 4 * 4 * columns;
      }
    }
  }
  return static_cast<double>(multiplied) / static_cast<double>(layer.elements);
}

Pattern pattern_of(const Layer& layer) {
  Pattern p;
  const DeployConvShape& s = layer.shape;
  const int64_t channels = s.in_c / s.groups, taps = static_cast<int64_t>(s.kernel_h) * s.kernel_w;
  const int64_t depth = taps * channels, per_group = s.out_c / s.groups, windows = (channels + 3) / 4;
  for (int64_t i = 0; i < layer.elements; ++i) {
    if (layer.weights[i] < -2 || layer.weights[i] > 1) p.fits_2 = false;
    if (layer.weights[i] < -8 || layer.weights[i] > 7) p.fits_4 = false;
  }
  int64_t tiles = 0, kept_tiles = 0, blocks = 0, kept_blocks = 0;
  for (int64_t group = 0; group < s.groups; ++group) {
    for (int64_t first = 0; first < per_group; first += 32) {
      const int64_t columns = per_group - first < 32 ? per_group - first : 32;
      for (int64_t window = 0; window < taps * windows; ++window) {
        const int64_t begin = window % windows * 4, end = begin + 4 < channels ? begin + 4 : channels;
        int64_t kept = 0;
        for (int64_t c = 0; c < columns; ++c) {
          const int8_t* const row = layer.weights + (group * per_group + first + c) * depth + window / windows * channels;
          bool zero = true;
          for (int64_t k = begin; k < end; ++k) zero &= row[k] == 0;
          kept += zero ? 0 : 1;
        }
        tiles += columns;
        kept_tiles += kept ? columns : 0;
        blocks += columns;
        kept_blocks += kept;
      }
    }
  }
  p.tiles = static_cast<double>(kept_tiles) / static_cast<double>(tiles);
  p.blocks = static_cast<double>(kept_blocks) / static_cast<double>(blocks);
  p.groups = share_of_groups(layer);
  return p;
}

/// What a layer takes, one multiplication of the stock runtime's dense int8 convolution on the same CPU being 1.
struct Line {
  double per_product;  ///< that is kept
  double per_output;   ///< for each output value, whatever is summed to it
  double per_weight;   ///< of the dense filter, kept or not: reading it, which a single row does not share

  double of(double products, double outputs, double weights) const {
    return products * per_product + outputs * per_output + weights * per_weight;
  }
};

struct Cost {
  uint32_t isa;  ///< of the variant; kPortable: the reference
  DeployFamily family;
  Line line;
};

/// Lines through 3x3 and 1x1 convolutions and fully-connected layers of 1 and of many rows.  With AVX-512 they are CPU
/// times, taken in turns with the stock runtime.  Elsewhere instructions stand for time: AVX2 counted on an emulated
/// Haswell, NEON on Cortex-A72 and dot products on A76, the cores where the stock runtime is best, I8MM on QEMU's `max`
/// without SVE, armv7 on Cortex-A9 with tflite-runtime 2.14.  Dense int8 would win by count on the A72, but that is no
/// time: it is left alone.
constexpr Cost kCosts[] = {
    {kAvx512Vnni, DEPLOY_FAMILY_W8, {1.0, 14, 1.8}},     {kAvx512Vnni, DEPLOY_FAMILY_W4, {1.0, 16, 0.3}},
    {kAvx512Vnni, DEPLOY_FAMILY_W2, {1.0, 17, 0.4}},     {kAvx512Vnni, DEPLOY_FAMILY_TILE8, {1.08, 32, 0.3}},
    {kAvx512Vnni, DEPLOY_FAMILY_TILE4, {1.08, 32, 0.1}}, {kAvx512Vnni, DEPLOY_FAMILY_BLOCK8, {1.85, 38, 1.4}},
    {kAvx512Vnni, DEPLOY_FAMILY_NM8, {2.25, 60, 0.9}},
    {kAvx512Vpopcntdq, DEPLOY_FAMILY_BINARY, {0.2, 44, 0.1}},
    {kAvx2, DEPLOY_FAMILY_W8, {1.21, 49, 0.5}},          {kAvx2, DEPLOY_FAMILY_W4, {0.75, 49, 1.1}},
    {kAvx2, DEPLOY_FAMILY_W2, {0.79, 50, 0.8}},          {kAvx2, DEPLOY_FAMILY_TILE8, {0.75, 45, 0.3}},
    {kAvx2, DEPLOY_FAMILY_TILE4, {0.76, 46, 0.4}},       {kAvx2, DEPLOY_FAMILY_BINARY, {0.2, 108, 0.1}},
    {kNeonI8mm, DEPLOY_FAMILY_W8, {1.2, 119, 1.8}},      {kNeonI8mm, DEPLOY_FAMILY_W4, {1.6, 124, 2.6}},
    {kNeonI8mm, DEPLOY_FAMILY_W2, {1.43, 123, 3.5}},     {kNeonI8mm, DEPLOY_FAMILY_TILE8, {1.36, 123, 0.9}},
    {kNeonI8mm, DEPLOY_FAMILY_TILE4, {1.58, 129, 1.2}},
    {kNeonDotprod, DEPLOY_FAMILY_W8, {0.94, 61, 0.5}},   {kNeonDotprod, DEPLOY_FAMILY_W4, {1.02, 65, 1.0}},
    {kNeonDotprod, DEPLOY_FAMILY_W2, {1.06, 65, 1.4}},   {kNeonDotprod, DEPLOY_FAMILY_TILE8, {1.02, 61, 0.3}},
    {kNeonDotprod, DEPLOY_FAMILY_TILE4, {1.12, 66, 0.5}},
#if defined(__arm__)
    {kNeon, DEPLOY_FAMILY_W8, {1.23, 63, 0.0}},          {kNeon, DEPLOY_FAMILY_W4, {0.74, 62, 0.4}},
    {kNeon, DEPLOY_FAMILY_W2, {0.65, 66, 0.4}},          {kNeon, DEPLOY_FAMILY_TILE8, {1.24, 54, 0.0}},
    {kNeon, DEPLOY_FAMILY_TILE4, {0.74, 66, 0.2}},       {kNeon, DEPLOY_FAMILY_BINARY, {0.108, 70, 0.0}},
#else
    {kNeon, DEPLOY_FAMILY_W8, {0.88, 39, 0.2}},          {kNeon, DEPLOY_FAMILY_W4, {0.82, 42, 0.4}},
    {kNeon, DEPLOY_FAMILY_W2, {0.66, 38, 0.5}},          {kNeon, DEPLOY_FAMILY_TILE8, {0.94, 37, 0.2}},
    {kNeon, DEPLOY_FAMILY_TILE4, {0.84, 41, 0.2}},       {kNeon, DEPLOY_FAMILY_BINARY, {0.101, 33, 0.05}},
#endif
};
/// Without an entry: the plain reference.
constexpr Cost kReference = {kPortable, DEPLOY_FAMILY_W8, {60.0, 0, 0}};

/// The stock runtime's own lines, by the kind of node and filter; measured and counted with those above.
struct StockLines {
  uint32_t isa;
  Line conv8, fc8, conv4, fc4, fc2;
};
constexpr StockLines kStock[] = {
    {kAvx512Vnni, {1.0, 10, 2.0}, {1.0, 10, 2.0}, {3.2, 10, 2.0}, {1.0, 10, 0.7}, {2.0, 10, 1.4}},
    {kAvx2, {1.0, 20, 0.5}, {0.96, 20, 0.5}, {1.8, 12, 0.5}, {0.97, 20, 0.4}, {0.95, 20, 0.35}},
    {kNeonI8mm, {1.0, 41, 8.5}, {0.94, 63, 1.4}, {1.85, 56, 29}, {1.76, 56, 1.7}, {1.76, 64, 2.5}},
    {kNeonDotprod, {1.0, 18, 3}, {0.95, 34, 0.7}, {1.13, 38, 18}, {1.08, 35, 1.0}, {1.08, 40, 1.6}},
#if defined(__arm__)
    // It runs no int2, and of int4 convolutions only, as fast as int8.
    {kNeon, {1.0, 55, 10}, {1.0, 70, 1.7}, {1.0, 55, 12}, {1.0, 70, 1.7}, {1.0, 70, 1.7}},
#else
    {kNeon, {1.0, 11, 2.7}, {0.97, 17, 0.2}, {0.92, 36, 4.7}, {4.8, 64, -2.5}, {5.8, 61, 4.0}},
#endif
};
/// Where nothing is known of the stock runtime: as the reference is to us.
constexpr StockLines kUnknownStock = {kPortable, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}};

/// The stock runtime is so much faster where the CPU has dot products, or matrix products, which a variant without them
/// has to make up for.
constexpr double kDotProducts = 3.25, kMatrixProducts = 5.3;

/// Claiming a node costs a switch between two delegates, worth about so many multiplications.
constexpr double kSwitchProducts = 40e3;

Line line_of(const Variant& variant) {
  for (const Cost& cost : kCosts) {
    if (cost.family != variant.family || !(variant.isa & cost.isa)) continue;
    constexpr uint32_t kDots = kAvx512Vnni | kAvx512Vpopcntdq | kNeonDotprod | kNeonI8mm;
    const double faster = cpu_isas() & kNeonI8mm ? kMatrixProducts : kDotProducts;
    const double unit = (cpu_isas() & kDots) && !(variant.isa & kDots) ? faster : 1.0;
    return {cost.line.per_product * unit, cost.line.per_output * unit, cost.line.per_weight * unit};
  }
  return kReference.line;
}

const StockLines& stock_lines() {
  for (const StockLines& lines : kStock) {
    if (cpu_isas() & lines.isa) return lines;
  }
  return kUnknownStock;
}

/// What the stock runtime needs for such a node.
struct Stock {
  bool runs;
  Line line;
  const char* sentence;   ///< where the node is left
  const char* because;    ///< where it is claimed for what the stock runtime does; null: for what we do
};

Stock stock_of(const Layer& layer, const Pattern& pattern) {
  const bool fc = layer.op == Op::kFullyConnected;
  const StockLines& lines = stock_lines();
  static const char* const kAsFast = "XNNPACK computes such a filter as fast";
  if (layer.filter_type == kTfLiteInt4 && !fc) {
    return {true, lines.conv4, kAsFast, "the stock runtime unpacks an int4 filter at every call"};
  }
  if (layer.filter_type == kTfLiteInt2 && !fc) {
    return {false, {}, nullptr, "the stock runtime does not run an int2 convolution"};
  }
  if (layer.filter_type == kTfLiteInt4) {
    return {true, lines.fc4, kAsFast, "the stock runtime is slower with int4 filters here"};
  }
  if (layer.filter_type == kTfLiteInt2) {
    return {true, lines.fc2, kAsFast, "the stock runtime is slower with int2 filters here"};
  }
  if (layer.sparse && fc && !layer.densified) {
    return {true, {60.0 * pattern.blocks, 0, 0}, kAsFast,
            "the stock runtime is slower with sparse filters than with dense ones"};
  }
  return {true, fc ? lines.fc8 : lines.conv8, "XNNPACK computes dense int8 as fast", nullptr};
}

}  // namespace

int64_t layer_macs(const DeployConvShape& s) {
  return static_cast<int64_t>(s.batch) * s.out_h * s.out_w * s.out_c * s.kernel_h * s.kernel_w * (s.in_c / s.groups);
}

Choice choose(const Layer& layer, Mode mode, bool binary) {
  Choice best = {false, DEPLOY_FAMILY_W8, "kernels are switched off", 0.0};
  if (mode == Mode::kOff) return best;
  const Pattern pattern = pattern_of(layer);
  const DeployConvShape& s = layer.shape;
  const bool single = s.batch == 1 && s.out_h == 1 && s.out_w == 1;
  const double products = static_cast<double>(layer_macs(s));
  const double outputs = static_cast<double>(s.batch) * s.out_h * s.out_w * s.out_c;
  const double weights = static_cast<double>(layer.elements);

  struct Candidate {
    DeployFamily family;
    bool fits;
    double kept;
    const char* sentence;
  };
  const double channels = static_cast<double>(s.in_c / s.groups), words = static_cast<double>((s.in_c / s.groups + 63) / 64);
  // Dense weights stay as narrow in memory as they are, also where a wider variant would be a few percent ahead.
  const Candidate candidates[] = {
      {DEPLOY_FAMILY_BINARY, binary, words * 64 / channels, "binary activations and weights"},
      {DEPLOY_FAMILY_W2, pattern.fits_2, 1.0, "the weights fit 2 bits"},
      {DEPLOY_FAMILY_W4, pattern.fits_4 && !pattern.fits_2, 1.0, "the weights fit 4 bits"},
      {DEPLOY_FAMILY_W8, !pattern.fits_4, 1.0, "dense int8 weights"},
      {DEPLOY_FAMILY_TILE4, pattern.fits_4 && pattern.tiles < 1, pattern.tiles, "4-bit weights, pruned in tiles"},
      {DEPLOY_FAMILY_TILE8, pattern.tiles < 1, pattern.tiles, "weights pruned in tiles"},
      {DEPLOY_FAMILY_BLOCK8, pattern.blocks < 1, pattern.blocks, "weights pruned in blocks"},
      {DEPLOY_FAMILY_NM8, pattern.groups < 1, pattern.groups, "weights pruned N:M"},
  };
  double least = 0.0;
  for (const Candidate& candidate : candidates) {
    if (!candidate.fits || (binary && candidate.family != DEPLOY_FAMILY_BINARY)) continue;
    const Variant* const variant = select_variant(candidate.family, s, nullptr);
    if (!variant) continue;
    // In blocks the rows lie in the lanes, so that a single row leaves most of them idle.
    const double idle = candidate.family == DEPLOY_FAMILY_BLOCK8 && single ? 6.0 : 1.0;
    const double multiplied = variant->winograd ? winograd_products(s) : products * candidate.kept * idle;
    const double cost = line_of(*variant).of(multiplied, outputs, weights) + kSwitchProducts;
    if (best.claim && cost >= least) continue;
    least = cost;
    best = {true, candidate.family, candidate.sentence, 0.0};
  }
  if (!best.claim) {
    best.reason = "no variant for this CPU";
    return best;
  }
  const Stock stock = stock_of(layer, pattern);
  const double theirs = stock.line.of(products, outputs, weights);
  best.gain = stock.runs ? theirs / least : 0.0;
  if (mode != Mode::kAuto) return best;
  if (best.family == DEPLOY_FAMILY_W8 && !stock.because) {
    best.claim = false;
    best.reason = stock.sentence;
  } else if (stock.runs && best.gain < 1.05) {
    best.claim = false;
    best.reason = theirs > least - kSwitchProducts ? "too small to be worth a switch between delegates" : stock.sentence;
  } else if (stock.because) {
    best.reason = stock.because;
  }
  return best;
}

}  // namespace deploy
