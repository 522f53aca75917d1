/// What a layer must fulfil before anything is computed with its numbers.
#ifndef DEPLOY_KERNELS_COMMON_SHAPE_H_
#define DEPLOY_KERNELS_COMMON_SHAPE_H_

#include "kernels.h"

namespace deploy {

/// The first rule of kernels.h that the layer breaks, as a sentence, or null.
const char* check_layer(DeployFamily family, const DeployConvShape& shape, const DeployRequantization& requantization,
                        const DeployBinarization* binarization);

/// Whether there is one output pixel in all, as in a fully-connected layer of one row.
bool is_single_row(const DeployConvShape& shape);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_SHAPE_H_
