#include "delegate/choose.h"

#include "common/cpu_features.h"
#include "common/registry.h"

namespace deploy {
namespace {

/// What the weights are, beside dense int8.
struct Pattern {
  bool fits_4 = true, fits_2 = true;
  double tiles = 1.0;   ///< share of the 4-channel windows of 32 outputs that are not all zero
  double blocks = 1.0;  ///< share of the runs of 4 input channels of one output that are not all zero
};

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
  return p;
}

/// What a variant takes, the stock runtime's dense int8 multiplication on the same CPU being 1.
struct Cost {
  uint32_t isa;         ///< of the variant; kPortable: the reference
  DeployFamily family;
  double per_product;   ///< that is kept
  double per_output;    ///< for each output value, whatever is summed to it; 0: 2 % of the dense products
};

/// Measured on x86 (tests/benchmarks/kernels.py).  On Arm instructions stand for time: lines through what
/// tests/benchmarks/arm.py counts on Cortex-A72 (neon) and A76 (dotprod), the cores where the stock runtime is best;
/// nobody has counted I8MM or armv7.  Dense int8 would win by count (0.86), but that is no time: it is left alone.
constexpr Cost kCosts[] = {
    {kAvx512Vnni, DEPLOY_FAMILY_W8, 1.0, 0},      {kAvx512Vnni, DEPLOY_FAMILY_W4, 1.0, 0},
    {kAvx512Vnni, DEPLOY_FAMILY_W2, 1.0, 0},      {kAvx512Vnni, DEPLOY_FAMILY_TILE8, 1.15, 0},
    {kAvx512Vnni, DEPLOY_FAMILY_TILE4, 1.2, 0},   {kAvx512Vnni, DEPLOY_FAMILY_BLOCK8, 2.2, 0},
    {kAvx2, DEPLOY_FAMILY_W8, 1.5, 0},            {kAvx2, DEPLOY_FAMILY_W4, 1.6, 0},
    {kAvx2, DEPLOY_FAMILY_W2, 1.6, 0},            {kAvx2, DEPLOY_FAMILY_TILE8, 1.6, 0},
    {kAvx2, DEPLOY_FAMILY_TILE4, 1.7, 0},
    {kNeonI8mm, DEPLOY_FAMILY_W8, 1.1, 85},    {kNeonI8mm, DEPLOY_FAMILY_W4, 1.2, 85},
    {kNeonI8mm, DEPLOY_FAMILY_W2, 1.3, 85},    {kNeonI8mm, DEPLOY_FAMILY_TILE8, 1.3, 105},
    {kNeonI8mm, DEPLOY_FAMILY_TILE4, 1.4, 110},
    {kNeonDotprod, DEPLOY_FAMILY_W8, 1.0, 82}, {kNeonDotprod, DEPLOY_FAMILY_W4, 1.09, 85},
    {kNeonDotprod, DEPLOY_FAMILY_W2, 1.12, 85}, {kNeonDotprod, DEPLOY_FAMILY_TILE8, 1.17, 102},
    {kNeonDotprod, DEPLOY_FAMILY_TILE4, 1.26, 108},
    {kNeon, DEPLOY_FAMILY_W8, 1.0, 58},        {kNeon, DEPLOY_FAMILY_W4, 0.82, 57},
    {kNeon, DEPLOY_FAMILY_W2, 0.67, 42},       {kNeon, DEPLOY_FAMILY_TILE8, 0.91, 57},
    {kNeon, DEPLOY_FAMILY_TILE4, 0.86, 50},    {kNeon, DEPLOY_FAMILY_BINARY, 0.105, 78},
    {kAvx512Vpopcntdq, DEPLOY_FAMILY_BINARY, 0.25, 0}, {kAvx2, DEPLOY_FAMILY_BINARY, 0.5, 0},
};
/// Without an entry: the plain reference.
constexpr Cost kReference = {kPortable, DEPLOY_FAMILY_W8, 60.0, 0};

/// The stock runtime is so much faster where the CPU has dot products, which a variant without them has to make up for.
constexpr double kDotProducts = 3.4;

/// Claiming a node costs a switch between two delegates, worth about so many multiplications.
constexpr double kSwitchProducts = 40e3;

Cost cost_of(const Variant& variant) {
  // The most demanding instruction set names the variant: bits of Isa are ordered so within an architecture.
  for (const Cost& cost : kCosts) {
    if (cost.family != variant.family || !(variant.isa & cost.isa)) continue;
    constexpr uint32_t kDots = kAvx512Vnni | kAvx512Vpopcntdq | kNeonDotprod | kNeonI8mm;
    const double unit = (cpu_isas() & kDots) && !(variant.isa & kDots) ? kDotProducts : 1.0;
    return {cost.isa, cost.family, cost.per_product * unit, cost.per_output * unit};
  }
  return kReference;
}

/// What the stock runtime needs per dense multiplication for such a node; 0 where it cannot run it.
struct Stock {
  double per_product;
  const char* sentence;
};

/// What it needs for each output value, where the table above counts that too.
double stock_per_output() {
  if (cpu_isas() & (kNeonDotprod | kNeonI8mm)) return 63;
  return cpu_isas() & kNeon ? 37 : 0;
}

Stock stock_of(const Layer& layer, const Pattern& pattern) {
  const bool fc = layer.op == Op::kFullyConnected, x86 = select_variant(DEPLOY_FAMILY_W8, false, 32, nullptr)->isa &
                                                         (kAvx2 | kAvx512Vnni);
  const bool dot = select_variant(DEPLOY_FAMILY_W8, false, 32, nullptr)->isa & (kNeonDotprod | kNeonI8mm);
  if (layer.filter_type == kTfLiteInt4 && !fc) return {4.0, "the stock runtime unpacks an int4 filter at every call"};
  if (layer.filter_type == kTfLiteInt2 && !fc) return {0.0, "the stock runtime does not run an int2 convolution"};
  if (layer.filter_type == kTfLiteInt4 || layer.filter_type == kTfLiteInt2) {
    if (!x86 && !dot) return {8.0, "the stock runtime has only scalar code for such a filter here"};
    // A single row is bound by reading the weights, of which the stock runtime reads as few as we do.
    if (layer.filter_type == kTfLiteInt2 && layer.shape.batch > 1) {
      return {2.0, "the stock runtime is slow with int2 filters of many rows"};
    }
    return {layer.shape.batch == 1 ? 0.5 : 1.0, "XNNPACK computes such a filter as fast"};
  }
  if (layer.sparse && fc && !layer.densified) {
    return {60.0 * pattern.blocks, "the stock runtime is slower with sparse filters than with dense ones"};
  }
  return {1.0, "XNNPACK computes dense int8 as fast"};
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

  struct Candidate {
    DeployFamily family;
    bool fits;
    double kept;
    const char* sentence;
  };
  const double channels = static_cast<double>(s.in_c / s.groups), words = static_cast<double>((s.in_c / s.groups + 63) / 64);
  const Candidate candidates[] = {
      {DEPLOY_FAMILY_BINARY, binary, words * 64 / channels, "binary activations and weights"},
      {DEPLOY_FAMILY_W2, pattern.fits_2, 1.0, "the weights fit 2 bits"},
      {DEPLOY_FAMILY_W4, pattern.fits_4, 1.0, "the weights fit 4 bits"},
      {DEPLOY_FAMILY_W8, true, 1.0, "dense int8 weights"},
      {DEPLOY_FAMILY_TILE4, pattern.fits_4 && pattern.tiles < 1, pattern.tiles, "4-bit weights, pruned in tiles"},
      {DEPLOY_FAMILY_TILE8, pattern.tiles < 1, pattern.tiles, "weights pruned in tiles"},
      {DEPLOY_FAMILY_BLOCK8, pattern.blocks < 1, pattern.blocks, "weights pruned in blocks"},
  };
  double least = 0.0;
  for (const Candidate& candidate : candidates) {
    if (!candidate.fits || (binary && candidate.family != DEPLOY_FAMILY_BINARY)) continue;
    const Variant* const variant = select_variant(candidate.family, single, s.out_c / s.groups, nullptr);
    if (!variant) continue;
    // In blocks the rows lie in the lanes, so that a single row leaves most of them idle.
    const double idle = candidate.family == DEPLOY_FAMILY_BLOCK8 && single ? 6.0 : 1.0;
    const Cost of = cost_of(*variant);
    const double fixed = of.per_output > 0 ? outputs * of.per_output : 0.02 * products * of.per_product * idle;
    const double cost = products * candidate.kept * of.per_product * idle + fixed + kSwitchProducts;
    if (best.claim && cost >= least) continue;
    least = cost;
    best = {true, candidate.family, candidate.sentence, 0.0};
  }
  if (!best.claim) {
    best.reason = "no variant for this CPU";
    return best;
  }
  const Stock stock = stock_of(layer, pattern);
  best.gain = stock.per_product > 0 ? (stock.per_product * products + outputs * stock_per_output()) / least : 0.0;
  if (mode != Mode::kAuto) return best;
  const bool only_we = stock.per_product == 0.0;
  if (!only_we && best.gain < 1.05) {
    best.claim = false;
    best.reason = stock.per_product > 1.0 ? "too small to be worth a switch between delegates" : stock.sentence;
  } else if (stock.per_product != 1.0) {
    best.reason = stock.sentence;
  }
  return best;
}

}  // namespace deploy
