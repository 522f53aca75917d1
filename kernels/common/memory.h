/// Memory: aligned blocks, and each thread's scratch.
#ifndef DEPLOY_KERNELS_COMMON_MEMORY_H_
#define DEPLOY_KERNELS_COMMON_MEMORY_H_

#include <stddef.h>
#include <stdint.h>

namespace deploy {

/// A block of `bytes`, 64-byte aligned, to be given to free(); null when memory is short.
uint8_t* allocate(size_t bytes);

/// At least `bytes` of the calling thread's own scratch, 64-byte aligned; what it held before is lost.  It grows, is
/// kept for the next call, and is freed with the thread.  Null when memory is short.
uint8_t* thread_scratch(size_t bytes);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_MEMORY_H_
