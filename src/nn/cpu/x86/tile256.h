/* The tile of 6 x 16 sums that the products on 256-bit vectors share. They differ in how two words
 * are multiplied: the file that includes this defines TILE256_MULTIPLY(columns, sum), which adds
 * the products of ymm14 with a register of columns to one of sums (numbers of registers) and may
 * use ymm15, and uses TILE256_SHAPE in its cpu_gemm.
 *
 *     ymm0..ymm11   sums: row i in ymm(2 i), columns 0..7, and ymm(2 i + 1), columns 8..15
 *     ymm12, ymm13  the columns' numbers of one word
 *     ymm14         a row's word on all lanes
 *     ymm15         free; before the loop all ones when accumulating, else zeros: sums start as
 *                   what c holds, or as zero
 *
 * Inline assembly because gcc 12 stores the sums of the same loop in intrinsics to memory each time
 * round. */
#ifndef NN_CPU_X86_TILE256_H
#define NN_CPU_X86_TILE256_H

#include "nn/cpu/gemm.h"
#include "nn/cpu/x86/pack.h"

enum { TILE256_MR = 6, TILE256_NR = 16 };

/* X(row, register of its left half, of its right half) for all rows. */
#define TILE256_ROWS(X)                                                                            \
    X(0, 0, 1)                                                                                     \
    X(1, 2, 3)                                                                                     \
    X(2, 4, 5)                                                                                     \
    X(3, 6, 7)                                                                                     \
    X(4, 8, 9)                                                                                     \
    X(5, 10, 11)

#define TILE256_LOAD(row, left, right)                                                             \
    "vmaskmovps   (%[from]), %%ymm15, %%ymm" #left "\n\t"                                          \
    "vmaskmovps 32(%[from]), %%ymm15, %%ymm" #right "\n\t"                                         \
    "add %[stride], %[from]\n\t"

#define TILE256_MULTIPLY_ROW(row, left, right)                                                     \
    "vbroadcastss 4*" #row "(%[a]), %%ymm14\n\t" TILE256_MULTIPLY(12, left)                        \
        TILE256_MULTIPLY(13, right)

#define TILE256_STORE(row, left, right)                                                            \
    "vmovups %%ymm" #left ",   (%[c])\n\t"                                                         \
    "vmovups %%ymm" #right ", 32(%[c])\n\t"                                                        \
    "add %[stride], %[c]\n\t"

/* a [words][6], b [words][16], c [6][16] with rows ldc numbers of 4 bytes apart. The columns come
 * from the second-level cache, so they are fetched sixteen words ahead; where that is past the end
 * of the panel nothing happens. */
static void tile256(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                    bool accumulate)
{
    const void *from = c;
    /* clang-format off */
    __asm__ volatile(
        "vmovd %[mask], %%xmm15\n\t"
        "vpbroadcastd %%xmm15, %%ymm15\n\t"
        TILE256_ROWS(TILE256_LOAD)
        ".p2align 5\n"
        "1:\n\t"
        "vmovups   (%[b]), %%ymm12\n\t"
        "vmovups 32(%[b]), %%ymm13\n\t"
        "prefetcht0 16*64(%[b])\n\t"
        TILE256_ROWS(TILE256_MULTIPLY_ROW)
        "add $4*6, %[a]\n\t"
        "add $4*16, %[b]\n\t"
        "dec %[words]\n\t"
        "jnz 1b\n\t"
        TILE256_ROWS(TILE256_STORE)
        "vzeroupper"
        : [a] "+r"(a), [b] "+r"(b), [c] "+r"(c), [from] "+r"(from), [words] "+r"(words)
        : [stride] "r"(4 * ldc), [mask] "r"(accumulate ? -1 : 0)
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
          "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    /* clang-format on */
}

static void tile256_pack_rows(void *a, const void *const *rows, int64_t words)
{
    pack_words(a, rows, TILE256_MR, words);
}

static void tile256_pack_columns(void *b, const void *const *columns, int64_t words)
{
    pack_words(b, columns, TILE256_NR, words);
}

/* A row panel's slice is 9 KiB, a column panel's 24 KiB. A block's columns take 144 KiB and its
 * sums 270 KiB of 512 KiB (Zen 2, Zen 3). */
#define TILE256_SHAPE                                                                              \
    .mr = TILE256_MR, .nr = TILE256_NR, .step = 1, .block_words = 384, .block_columns = 96,        \
    .block_rows = 720, .pack_rows = tile256_pack_rows, .pack_columns = tile256_pack_columns,       \
    .tile = tile256

#endif
