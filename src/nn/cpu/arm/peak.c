/* The fastest that the processor multiplies: loops on registers alone, with enough sums that none
 * waits for itself. What they compute does not matter (zeros). */
#include "nn/cpu/peak.h"

#include <stddef.h>

/* 24 sums: enough for 4 instructions at a time that take 6 cycles. */
#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define ALL(X) TWELVE(X) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)

#define LOOP(name, body)                                                                           \
    static void name(int64_t rounds)                                                               \
    {                                                                                              \
        __asm__ volatile(ALL(ZERO) ZERO(24) ZERO(25) ".p2align 5\n1:\n\t" body                     \
                                                     "subs %[rounds], %[rounds], #1\n\tb.ne 1b"    \
                         : [rounds] "+r"(rounds)                                                   \
                         :                                                                         \
                         : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9",       \
                           "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19",   \
                           "v20", "v21", "v22", "v23", "v24", "v25");                              \
    }

#define ZERO(n) "movi v" #n ".4s, #0\n\t"
#define FMLA(n) "fmla v" #n ".4s, v24.4s, v25.s[0]\n\t"
#define BFMMLA(n) "bfmmla v" #n ".4s, v24.8h, v25.8h\n\t"
#define SDOT(n) "sdot v" #n ".4s, v24.16b, v25.4b[0]\n\t"
#define SMMLA(n) "smmla v" #n ".4s, v24.16b, v25.16b\n\t"
/* The products that are added are those of the round before. */
#define SADALP(n, product)                                                                         \
    "sadalp v" #n ".4s, v" #product ".8h\n\tsmull v" #product ".8h, v24.8b, v25.8b\n\t"

LOOP(fmla, ALL(FMLA))
LOOP(bfmmla, ALL(BFMMLA))
LOOP(sdot, ALL(SDOT))
LOOP(smmla, ALL(SMMLA))
LOOP(smull_sadalp,
     SADALP(0, 12) SADALP(1, 13) SADALP(2, 14) SADALP(3, 15) SADALP(4, 16) SADALP(5, 17)
         SADALP(6, 18) SADALP(7, 19) SADALP(8, 20) SADALP(9, 21) SADALP(10, 22) SADALP(11, 23))

/* Operations: 2 for each product, products of an instruction, instructions of a round. */
const cpu_peak_loop cpu_peak_loops[] = {
    {CPU_F32, 0, 2 * 4 * 24, fmla},
    {CPU_BF16, CPU_HAS_BF16, 2 * 16 * 24, bfmmla},
    {CPU_INT8, 0, 2 * 8 * 12, smull_sadalp},
    {CPU_INT8, CPU_HAS_DOTPROD, 2 * 16 * 24, sdot},
    {CPU_INT8, CPU_HAS_I8MM, 2 * 32 * 24, smmla},
    {.run = NULL},
};
