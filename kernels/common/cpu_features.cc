#include "common/cpu_features.h"

#include <pthread.h>
#include <string.h>

#include "common/variant.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

namespace deploy {
namespace {

struct IsaName {
  uint32_t isa;
  const char* name;
};

constexpr IsaName kNames[] = {
    {kPortable, "portable"},     {kAvx2, "avx2"}, {kAvx512Vnni, "avx512vnni"}, {kAvx512Vpopcntdq, "avx512vpopcntdq"},
    {kNeon, "neon"},             {kNeonDotprod, "neondot"}, {kNeonI8mm, "neoni8mm"},
};

pthread_once_t g_once = PTHREAD_ONCE_INIT;
uint32_t g_isas;
char g_names[96];

#if defined(__x86_64__)
bool bit(uint32_t word, int index) { return (word >> index & 1) != 0; }

uint32_t detect() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return 0;  // 27: OSXSAVE, xgetbv may be asked
  const bool fma = bit(c, 12);
  uint32_t saved, unused;
  __asm__("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  uint32_t isas = 0;
  // The operating system must save what we use: bits 1, 2 the ymm state; 5, 6, 7 masks and zmm.
  if ((saved & 0x6) == 0x6 && bit(b, 5) && fma) isas |= kAvx2;
  const bool zmm = (saved & 0xe6) == 0xe6;
  const bool base = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);  // F, DQ, BW, VL
  if (isas && zmm && base && bit(c, 11)) isas |= kAvx512Vnni;
  if ((isas & kAvx512Vnni) && bit(c, 14) && bit(c, 12)) isas |= kAvx512Vpopcntdq;
  return isas;
}
#elif defined(__aarch64__)
uint32_t detect() {
  uint32_t isas = kNeon;  // part of the base
  if (getauxval(AT_HWCAP) >> 20 & 1) isas |= kNeonDotprod;                           // HWCAP_ASIMDDP
  if ((isas & kNeonDotprod) && (getauxval(AT_HWCAP2) >> 13 & 1)) isas |= kNeonI8mm;  // HWCAP2_I8MM
  return isas;
}
#elif defined(__arm__)
uint32_t detect() { return getauxval(AT_HWCAP) >> 12 & 1 ? kNeon : 0; }  // HWCAP_NEON
#else
uint32_t detect() { return 0; }
#endif

void find() {
  g_isas = detect();
  char* end = g_names;
  for (const IsaName& entry : kNames) {
    if ((g_isas & entry.isa) != entry.isa) continue;
    if (end != g_names) *end++ = ' ';
    const size_t length = strlen(entry.name);
    memcpy(end, entry.name, length);
    end += length;
  }
  *end = 0;
}

}  // namespace

uint32_t cpu_isas() {
  pthread_once(&g_once, find);
  return g_isas;
}

const char* cpu_isa_names() {
  pthread_once(&g_once, find);
  return g_names;
}

uint32_t isa_of_name(const char* name) {
  for (const IsaName& entry : kNames) {
    if (strcmp(entry.name, name) == 0) return entry.isa;
  }
  return UINT32_MAX;
}

}  // namespace deploy
