/// The 8-bit loop of 4 x 4 outputs for in-order cores: written in the order in which a Cortex-A53 can begin one vector
/// instruction in every cycle.
///
/// Each product of a row and a column takes SMULL, SMLAL2, SADALP; here these belong to product j, j - 2 and j - 4, so
/// that each result is 6 cycles old when it is needed, and 5 or 6 registers hold what is under way.  Loads stand where
/// the register they fill has just been used for the last time, and have no write-back: that would delay the next.
#ifndef DEPLOY_KERNELS_COMMON_NEON_CORE_IN_ORDER_H_
#define DEPLOY_KERNELS_COMMON_NEON_CORE_IN_ORDER_H_

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

namespace deploy {
namespace neon {
namespace {  // A copy for each file: files differ in their instruction sets.

#define DEPLOY_PRODUCT(t0, a0, w0, t2, a2, w2, acc4, t4) \
  "smull " #t0 ".8h, " #a0 ".8b, " #w0 ".8b\n"           \
  "smlal2 " #t2 ".8h, " #a2 ".16b, " #w2 ".16b\n"        \
  "sadalp " acc4 ".4s, " #t4 ".8h\n"

/// sum[r][c] += products of 32 * pairs positions, pairs >= 1; `row` and `weights` move on.  Rows' next 16 bytes lie
/// kStep behind.  Reads 16 bytes of the first row and 64 bytes of weights too far.
template <int kStep>
inline void core_8bit_in_order(const int8_t* (&row)[4], size_t pairs, const int8_t*& weights, int32x4_t (&sum)[4][4]) {
  const int8_t* second = weights + 64;
  __asm__ volatile(
      "ldr q22, [%[row0]]\n"
      "ld1 {v24.16b, v25.16b, v26.16b, v27.16b}, [%[weights]]\n"
      "add %[weights], %[weights], #128\n"
      // What was under way before the first product: nothing.
      "movi v16.16b, #0\n movi v17.16b, #0\n movi v18.16b, #0\n movi v19.16b, #0\n movi v20.16b, #0\n"
      "movi v21.16b, #0\n movi v23.16b, #0\n movi v30.16b, #0\n movi v31.16b, #0\n"
      "1:\n"
      DEPLOY_PRODUCT(v16, v22, v24, v20, v23, v30, "%12", v18)
      DEPLOY_PRODUCT(v17, v22, v25, v21, v23, v31, "%13", v19)
      "ldr q23, [%[row1]]\n"
      DEPLOY_PRODUCT(v18, v22, v26, v16, v22, v24, "%14", v20)
      "ld1 {v28.16b, v29.16b, v30.16b, v31.16b}, [%[second]]\n"
      DEPLOY_PRODUCT(v19, v22, v27, v17, v22, v25, "%15", v21)
      DEPLOY_PRODUCT(v20, v23, v24, v18, v22, v26, "%0", v16)
      DEPLOY_PRODUCT(v16, v23, v25, v19, v22, v27, "%1", v17)
      "ldr q22, [%[row2]]\n"
      DEPLOY_PRODUCT(v17, v23, v26, v20, v23, v24, "%2", v18)
      DEPLOY_PRODUCT(v18, v23, v27, v16, v23, v25, "%3", v19)
      DEPLOY_PRODUCT(v19, v22, v24, v17, v23, v26, "%4", v20)
      DEPLOY_PRODUCT(v20, v22, v25, v18, v23, v27, "%5", v16)
      "ldr q23, [%[row3]]\n"
      DEPLOY_PRODUCT(v16, v22, v26, v19, v22, v24, "%6", v17)
      DEPLOY_PRODUCT(v17, v22, v27, v20, v22, v25, "%7", v18)
      DEPLOY_PRODUCT(v18, v23, v24, v16, v22, v26, "%8", v19)
      DEPLOY_PRODUCT(v19, v23, v25, v17, v22, v27, "%9", v20)
      "ldr q22, [%[row0], %c[step]]\n"
      DEPLOY_PRODUCT(v20, v23, v26, v18, v23, v24, "%10", v16)
      DEPLOY_PRODUCT(v16, v23, v27, v19, v23, v25, "%11", v17)
      DEPLOY_PRODUCT(v17, v22, v28, v20, v23, v26, "%12", v18)
      DEPLOY_PRODUCT(v18, v22, v29, v16, v23, v27, "%13", v19)
      "ldr q23, [%[row1], %c[step]]\n"
      DEPLOY_PRODUCT(v19, v22, v30, v17, v22, v28, "%14", v20)
      "ld1 {v24.16b, v25.16b, v26.16b, v27.16b}, [%[weights]]\n"
      DEPLOY_PRODUCT(v20, v22, v31, v18, v22, v29, "%15", v16)
      DEPLOY_PRODUCT(v16, v23, v28, v19, v22, v30, "%0", v17)
      DEPLOY_PRODUCT(v17, v23, v29, v20, v22, v31, "%1", v18)
      "ldr q22, [%[row2], %c[step]]\n"
      DEPLOY_PRODUCT(v18, v23, v30, v16, v23, v28, "%2", v19)
      DEPLOY_PRODUCT(v19, v23, v31, v17, v23, v29, "%3", v20)
      DEPLOY_PRODUCT(v20, v22, v28, v18, v23, v30, "%4", v16)
      DEPLOY_PRODUCT(v21, v22, v29, v19, v23, v31, "%5", v17)
      "ldr q23, [%[row3], %c[step]]\n"
      DEPLOY_PRODUCT(v16, v22, v30, v20, v22, v28, "%6", v18)
      DEPLOY_PRODUCT(v17, v22, v31, v21, v22, v29, "%7", v19)
      DEPLOY_PRODUCT(v18, v23, v28, v16, v22, v30, "%8", v20)
      DEPLOY_PRODUCT(v19, v23, v29, v17, v22, v31, "%9", v21)
      "ldr q22, [%[row0], %c[two]]\n"
      DEPLOY_PRODUCT(v20, v23, v30, v18, v23, v28, "%10", v16)
      DEPLOY_PRODUCT(v21, v23, v31, v19, v23, v29, "%11", v17)
      "add %[row0], %[row0], %[two]\n"
      "add %[row1], %[row1], %[two]\n"
      "add %[row2], %[row2], %[two]\n"
      "add %[row3], %[row3], %[two]\n"
      "add %[weights], %[weights], #128\n"
      "add %[second], %[second], #128\n"
      "subs %[pairs], %[pairs], #1\n"
      "b.ne 1b\n"
      "smlal2 v20.8h, v23.16b, v30.16b\n"
      "smlal2 v21.8h, v23.16b, v31.16b\n"
      "sadalp %12.4s, v18.8h\n"
      "sadalp %13.4s, v19.8h\n"
      "sadalp %14.4s, v20.8h\n"
      "sadalp %15.4s, v21.8h\n"
      : "+w"(sum[0][0]), "+w"(sum[0][1]), "+w"(sum[0][2]), "+w"(sum[0][3]), "+w"(sum[1][0]), "+w"(sum[1][1]),
        "+w"(sum[1][2]), "+w"(sum[1][3]), "+w"(sum[2][0]), "+w"(sum[2][1]), "+w"(sum[2][2]), "+w"(sum[2][3]),
        "+w"(sum[3][0]), "+w"(sum[3][1]), "+w"(sum[3][2]), "+w"(sum[3][3]), [row0] "+r"(row[0]), [row1] "+r"(row[1]),
        [row2] "+r"(row[2]), [row3] "+r"(row[3]), [weights] "+r"(weights), [second] "+r"(second), [pairs] "+r"(pairs)
      : [step] "i"(kStep), [two] "i"(2 * kStep)
      : "memory", "cc", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28",
        "v29", "v30", "v31");
  weights -= 128;  // the loop is one pair ahead
}

#undef DEPLOY_PRODUCT

/// The same for 4-bit weights: SMLAL of a row beside SMLAL2 of the row before, and each step's weights restored while
/// the step before is multiplied.  sum[r][c] += products of 32 * pairs positions, pairs in [1, 7].  Reads 16 bytes of
/// rows and 64 bytes of weights too far.
template <int kStep>
inline void core_4bit_in_order(const int8_t* (&row)[4], size_t pairs, const int8_t*& weights, int16x8_t (&sum)[4][4]) {
  const int8_t *even = weights + 64, *odd = weights + 96;
  const int8_t* const end = weights + 64 * pairs;
  __asm__ volatile(
      "ld1 {v28.16b, v29.16b}, [%[weights]]\n"
      "ldr q24, [%[row0]]\n ldr q25, [%[row1]]\n ldr q26, [%[row2]]\n movi v27.16b, #0\n"
      "shl v16.16b, v28.16b, #4\n sshr v17.16b, v28.16b, #4\n shl v18.16b, v29.16b, #4\n sshr v19.16b, v29.16b, #4\n"
      "sshr v16.16b, v16.16b, #4\n sshr v18.16b, v18.16b, #4\n ldp q28, q29, [%[weights], #32]\n"
      "1:\n"
      "smlal %0.8h, v24.8b, v16.8b\n" "smlal2 %12.8h, v27.16b, v20.16b\n"
      "smlal %1.8h, v24.8b, v17.8b\n" "smlal2 %13.8h, v27.16b, v21.16b\n"
      "smlal %2.8h, v24.8b, v18.8b\n" "smlal2 %14.8h, v27.16b, v22.16b\n"
      "smlal %3.8h, v24.8b, v19.8b\n" "smlal2 %15.8h, v27.16b, v23.16b\n"
      "ldr q27, [%[row3]]\n"
      "smlal %4.8h, v25.8b, v16.8b\n" "smlal2 %0.8h, v24.16b, v16.16b\n"
      "smlal %5.8h, v25.8b, v17.8b\n" "smlal2 %1.8h, v24.16b, v17.16b\n"
      "shl v20.16b, v28.16b, #4\n" "smlal %6.8h, v25.8b, v18.8b\n"
      "smlal2 %2.8h, v24.16b, v18.16b\n" "smlal %7.8h, v25.8b, v19.8b\n"
      "shl v22.16b, v29.16b, #4\n" "smlal2 %3.8h, v24.16b, v19.16b\n"
      "ldr q24, [%[row0], #%c[step]]\n"
      "smlal %8.8h, v26.8b, v16.8b\n" "smlal2 %4.8h, v25.16b, v16.16b\n"
      "smlal %9.8h, v26.8b, v17.8b\n" "smlal2 %5.8h, v25.16b, v17.16b\n"
      "sshr v21.16b, v28.16b, #4\n" "smlal %10.8h, v26.8b, v18.8b\n"
      "smlal2 %6.8h, v25.16b, v18.16b\n" "smlal %11.8h, v26.8b, v19.8b\n"
      "sshr v23.16b, v29.16b, #4\n" "smlal2 %7.8h, v25.16b, v19.16b\n"
      "ldr q25, [%[row1], #%c[step]]\n" "ld1 {v28.16b, v29.16b}, [%[even]]\n"
      "smlal %12.8h, v27.8b, v16.8b\n" "smlal2 %8.8h, v26.16b, v16.16b\n"
      "sshr v20.16b, v20.16b, #4\n" "smlal %13.8h, v27.8b, v17.8b\n"
      "smlal2 %9.8h, v26.16b, v17.16b\n" "sshr v22.16b, v22.16b, #4\n"
      "smlal %14.8h, v27.8b, v18.8b\n" "smlal2 %10.8h, v26.16b, v18.16b\n"
      "smlal %15.8h, v27.8b, v19.8b\n" "smlal2 %11.8h, v26.16b, v19.16b\n"
      "ldr q26, [%[row2], #%c[step]]\n"
      "smlal %0.8h, v24.8b, v20.8b\n" "smlal2 %12.8h, v27.16b, v16.16b\n"
      "smlal %1.8h, v24.8b, v21.8b\n" "smlal2 %13.8h, v27.16b, v17.16b\n"
      "smlal %2.8h, v24.8b, v22.8b\n" "smlal2 %14.8h, v27.16b, v18.16b\n"
      "smlal %3.8h, v24.8b, v23.8b\n" "smlal2 %15.8h, v27.16b, v19.16b\n"
      "ldr q27, [%[row3], #%c[step]]\n"
      "smlal %4.8h, v25.8b, v20.8b\n" "smlal2 %0.8h, v24.16b, v20.16b\n"
      "smlal %5.8h, v25.8b, v21.8b\n" "smlal2 %1.8h, v24.16b, v21.16b\n"
      "shl v16.16b, v28.16b, #4\n" "smlal %6.8h, v25.8b, v22.8b\n"
      "smlal2 %2.8h, v24.16b, v22.16b\n" "smlal %7.8h, v25.8b, v23.8b\n"
      "shl v18.16b, v29.16b, #4\n" "smlal2 %3.8h, v24.16b, v23.16b\n"
      "ldr q24, [%[row0], #%c[two]]\n"
      "smlal %8.8h, v26.8b, v20.8b\n" "smlal2 %4.8h, v25.16b, v20.16b\n"
      "smlal %9.8h, v26.8b, v21.8b\n" "smlal2 %5.8h, v25.16b, v21.16b\n"
      "sshr v17.16b, v28.16b, #4\n" "smlal %10.8h, v26.8b, v22.8b\n"
      "smlal2 %6.8h, v25.16b, v22.16b\n" "smlal %11.8h, v26.8b, v23.8b\n"
      "sshr v19.16b, v29.16b, #4\n" "smlal2 %7.8h, v25.16b, v23.16b\n"
      "ldr q25, [%[row1], #%c[two]]\n" "ld1 {v28.16b, v29.16b}, [%[odd]]\n"
      "smlal %12.8h, v27.8b, v20.8b\n" "smlal2 %8.8h, v26.16b, v20.16b\n"
      "sshr v16.16b, v16.16b, #4\n" "smlal %13.8h, v27.8b, v21.8b\n"
      "smlal2 %9.8h, v26.16b, v21.16b\n" "sshr v18.16b, v18.16b, #4\n"
      "smlal %14.8h, v27.8b, v22.8b\n" "smlal2 %10.8h, v26.16b, v22.16b\n"
      "smlal %15.8h, v27.8b, v23.8b\n" "smlal2 %11.8h, v26.16b, v23.16b\n"
      "ldr q26, [%[row2], #%c[two]]\n"
      "add %[row0], %[row0], #%c[two]\n add %[row1], %[row1], #%c[two]\n"
      "add %[row2], %[row2], #%c[two]\n add %[row3], %[row3], #%c[two]\n"
      "add %[even], %[even], #64\n add %[odd], %[odd], #64\n"
      "subs %[pairs], %[pairs], #1\n"
      "b.ne 1b\n"
      "smlal2 %12.8h, v27.16b, v20.16b\n smlal2 %13.8h, v27.16b, v21.16b\n"
      "smlal2 %14.8h, v27.16b, v22.16b\n smlal2 %15.8h, v27.16b, v23.16b\n"
      : "+w"(sum[0][0]), "+w"(sum[0][1]), "+w"(sum[0][2]), "+w"(sum[0][3]), "+w"(sum[1][0]), "+w"(sum[1][1]),
        "+w"(sum[1][2]), "+w"(sum[1][3]), "+w"(sum[2][0]), "+w"(sum[2][1]), "+w"(sum[2][2]), "+w"(sum[2][3]),
        "+w"(sum[3][0]), "+w"(sum[3][1]), "+w"(sum[3][2]), "+w"(sum[3][3]), [row0] "+r"(row[0]), [row1] "+r"(row[1]),
        [row2] "+r"(row[2]), [row3] "+r"(row[3]), [even] "+r"(even), [odd] "+r"(odd), [pairs] "+r"(pairs)
      : [weights] "r"(weights), [step] "i"(kStep), [two] "i"(2 * kStep)
      : "memory", "cc", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28",
        "v29");
  weights = end;
}

}  // namespace
}  // namespace neon
}  // namespace deploy
#endif  // DEPLOY_KERNELS_COMMON_NEON_CORE_IN_ORDER_H_
