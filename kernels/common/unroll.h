/// Full unrolling, without which compilers leave an array of accumulators in memory instead of in registers.
#ifndef DEPLOY_KERNELS_COMMON_UNROLL_H_
#define DEPLOY_KERNELS_COMMON_UNROLL_H_

#if defined(__clang__)
#define DEPLOY_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DEPLOY_UNROLL _Pragma("GCC unroll 64")
#endif

#endif  // DEPLOY_KERNELS_COMMON_UNROLL_H_
