/// Which family should compute a layer, and whether that beats what the stock runtime would do with it.
#ifndef DEPLOY_KERNELS_DELEGATE_CHOOSE_H_
#define DEPLOY_KERNELS_DELEGATE_CHOOSE_H_

#include "delegate/layer.h"

namespace deploy {

/// What the user wants: the option `mode`.
enum class Mode {
  kOff,        ///< nothing is claimed
  kAuto,       ///< what the cost table says is faster here
  kAll,        ///< every layer that can be computed, by the best variant
  kReference,  ///< every layer that can be computed, by the plain reference
};

struct Choice {
  bool claim;
  DeployFamily family;
  const char* reason;  ///< a constant sentence
  double gain;         ///< expected time of the stock runtime / ours; 0 where the stock runtime cannot run it
};

/// Decides from the layer's weights; for a binary layer (`binary`) whether that way of computing it is worth while.
Choice choose(const Layer& layer, Mode mode, bool binary);

/// Multiplications of the dense layer for one input.
int64_t layer_macs(const DeployConvShape& shape);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_DELEGATE_CHOOSE_H_
