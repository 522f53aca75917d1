/// What the CPU and its operating system can execute, found at run time.
#ifndef DEPLOY_KERNELS_COMMON_CPU_FEATURES_H_
#define DEPLOY_KERNELS_COMMON_CPU_FEATURES_H_

#include <stdint.h>

namespace deploy {

/// The bits of Isa (variant.h) that hold here; found once.
uint32_t cpu_isas();

/// Their names, separated by blanks ("portable" first).
const char* cpu_isa_names();

/// The bit of a name as it ends a variant's name ("avx512vnni"); 0 for "portable", UINT32_MAX for an unknown one.
uint32_t isa_of_name(const char* name);

}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_CPU_FEATURES_H_
