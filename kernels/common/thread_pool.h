/// Workers that share the units of one layer.
#ifndef DEPLOY_KERNELS_COMMON_THREAD_POOL_H_
#define DEPLOY_KERNELS_COMMON_THREAD_POOL_H_

#include <stddef.h>
#include <stdint.h>

namespace deploy {

/// Calls work(context, unit) once for each unit in [0, units) and returns when all are done.
///
/// The calling thread takes part; at most `threads` - 1 workers help.  Workers are started when first needed, are shared
/// by the whole process, watch for the next layer for a moment and sleep when there is none.  A caller that finds them busy with another caller's
/// layer, or that cannot start one, does all the work itself.
void parallel_for(size_t units, int32_t threads, void (*work)(void* context, size_t unit), void* context);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_THREAD_POOL_H_
