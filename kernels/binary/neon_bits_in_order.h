/// The loop of 4 x 4 outputs of a binary layer for Clang, in the order that an in-order core needs.  As intrinsics it
/// begins so much at once that sums go to memory and back.
///
/// Each product of a row and a column takes EOR, CNT, ADD; here these belong to product j, j - 4 and j - 7, so that each
/// result is at least 6 cycles old when it is needed, and 8 registers hold what is under way.  Loads have no write-back:
/// that would delay the next.
#ifndef DEPLOY_KERNELS_BINARY_NEON_BITS_IN_ORDER_H_
#define DEPLOY_KERNELS_BINARY_NEON_BITS_IN_ORDER_H_

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

namespace deploy {
namespace neon {
namespace {  // A copy for each file: files differ in their instruction sets.

#define DEPLOY_DIFFER(t, w, a) "eor " #t ".16b, " #w ".16b, " #a ".16b\n"
#define DEPLOY_COUNT(t) "cnt " #t ".16b, " #t ".16b\n"
#define DEPLOY_ADD(sum, t) "add %" #sum ".16b, %" #sum ".16b, " #t ".16b\n"

/// sum[r][c] += differing bits in each of 16 bytes, `steps` >= 1 times; `rows` (16 bytes of each of 4) and `weights` (of
/// each of 4 columns) move on.
inline void count_in_order(const uint8_t*& rows, size_t steps, const int8_t*& weights, uint8x16_t (&sum)[4][4]) {
  __asm__ volatile(
      "1:\n"
      "ld1 {v16.16b, v17.16b, v18.16b, v19.16b}, [%[rows]]\n"
      "ld1 {v20.16b, v21.16b, v22.16b, v23.16b}, [%[weights]]\n"
      "add %[rows], %[rows], #64\n"
      "add %[weights], %[weights], #64\n"
      "subs %[steps], %[steps], #1\n"
      DEPLOY_DIFFER(v24, v20, v16) DEPLOY_DIFFER(v25, v20, v17) DEPLOY_DIFFER(v26, v20, v18)
      DEPLOY_DIFFER(v27, v20, v19) DEPLOY_DIFFER(v28, v21, v16) DEPLOY_DIFFER(v29, v21, v17)
      DEPLOY_COUNT(v24) DEPLOY_DIFFER(v30, v21, v18) DEPLOY_COUNT(v25)
      DEPLOY_DIFFER(v31, v21, v19) DEPLOY_COUNT(v26) DEPLOY_COUNT(v27)
      DEPLOY_ADD(0, v24)
      DEPLOY_DIFFER(v24, v22, v16) DEPLOY_COUNT(v28) DEPLOY_ADD(4, v25)
      DEPLOY_DIFFER(v25, v22, v17) DEPLOY_COUNT(v29) DEPLOY_ADD(8, v26)
      DEPLOY_DIFFER(v26, v22, v18) DEPLOY_COUNT(v30) DEPLOY_ADD(12, v27)
      DEPLOY_DIFFER(v27, v22, v19) DEPLOY_COUNT(v31) DEPLOY_ADD(1, v28)
      DEPLOY_DIFFER(v28, v23, v16) DEPLOY_COUNT(v24) DEPLOY_ADD(5, v29)
      DEPLOY_DIFFER(v29, v23, v17) DEPLOY_COUNT(v25) DEPLOY_ADD(9, v30)
      DEPLOY_DIFFER(v30, v23, v18) DEPLOY_COUNT(v26) DEPLOY_ADD(13, v31)
      DEPLOY_DIFFER(v31, v23, v19) DEPLOY_COUNT(v27) DEPLOY_ADD(2, v24)
      DEPLOY_COUNT(v28) DEPLOY_ADD(6, v25) DEPLOY_COUNT(v29)
      DEPLOY_ADD(10, v26) DEPLOY_COUNT(v30) DEPLOY_ADD(14, v27)
      DEPLOY_COUNT(v31) DEPLOY_ADD(3, v28) DEPLOY_ADD(7, v29)
      DEPLOY_ADD(11, v30) DEPLOY_ADD(15, v31)
      "b.ne 1b\n"
      : "+w"(sum[0][0]), "+w"(sum[0][1]), "+w"(sum[0][2]), "+w"(sum[0][3]), "+w"(sum[1][0]), "+w"(sum[1][1]),
        "+w"(sum[1][2]), "+w"(sum[1][3]), "+w"(sum[2][0]), "+w"(sum[2][1]), "+w"(sum[2][2]), "+w"(sum[2][3]),
        "+w"(sum[3][0]), "+w"(sum[3][1]), "+w"(sum[3][2]), "+w"(sum[3][3]), [rows] "+r"(rows),
        [weights] "+r"(weights), [steps] "+r"(steps)
      :
      : "cc", "memory", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28",
        "v29", "v30", "v31");
}

#undef DEPLOY_DIFFER
#undef DEPLOY_COUNT
#undef DEPLOY_ADD

}  // namespace
}  // namespace neon
}  // namespace deploy
#endif  // DEPLOY_KERNELS_BINARY_NEON_BITS_IN_ORDER_H_
