/* The tile of 14 x 32 sums that the AVX-512 products share. They differ in the instruction that
 * multiplies: the file that includes this defines TILE512_MULTIPLY, "vfmadd231ps", and uses
 * TILE512_SHAPE in its cpu_gemm.
 *
 *     zmm0..zmm27   sums: row i in zmm(2 i), columns 0..15, and zmm(2 i + 1), columns 16..31
 *     zmm28, zmm29  the columns' numbers of one word
 *     k1            all ones when accumulating, else zeros: sums start as what c holds, or as zero
 *
 * The row's word is broadcast from memory by the multiplying instruction, whose operands are sum,
 * columns, rows (AT&T: from right to left). All this is inline assembly because gcc 12 keeps a part
 * of 28 sums in memory when they are written as intrinsics. */
#ifndef NN_CPU_X86_TILE512_H
#define NN_CPU_X86_TILE512_H

#include "nn/cpu/gemm.h"
#include "nn/cpu/x86/pack.h"
#include "nn/cpu/x86/pack512.h"

enum { TILE512_MR = 14, TILE512_NR = 32 };

/* X(row, register of its left half, of its right half) for all rows. */
#define TILE512_ROWS(X)                                                                            \
    X(0, 0, 1)                                                                                     \
    X(1, 2, 3)                                                                                     \
    X(2, 4, 5)                                                                                     \
    X(3, 6, 7)                                                                                     \
    X(4, 8, 9)                                                                                     \
    X(5, 10, 11)                                                                                   \
    X(6, 12, 13)                                                                                   \
    X(7, 14, 15)                                                                                   \
    X(8, 16, 17)                                                                                   \
    X(9, 18, 19)                                                                                   \
    X(10, 20, 21)                                                                                  \
    X(11, 22, 23)                                                                                  \
    X(12, 24, 25)                                                                                  \
    X(13, 26, 27)

#define TILE512_LOAD(row, left, right)                                                             \
    "vmovups   (%[from]), %%zmm" #left "%{%%k1%}%{z%}\n\t"                                         \
    "vmovups 64(%[from]), %%zmm" #right "%{%%k1%}%{z%}\n\t"                                        \
    "add %[stride], %[from]\n\t"

#define TILE512_MULTIPLY_ROW(row, left, right)                                                     \
    TILE512_MULTIPLY " 4*" #row "(%[a])%{1to16%}, %%zmm28, %%zmm" #left "\n\t" TILE512_MULTIPLY    \
                     " 4*" #row "(%[a])%{1to16%}, %%zmm29, %%zmm" #right "\n\t"

#define TILE512_STORE(row, left, right)                                                            \
    "vmovups %%zmm" #left ",   (%[c])\n\t"                                                         \
    "vmovups %%zmm" #right ", 64(%[c])\n\t"                                                        \
    "add %[stride], %[c]\n\t"

/* a [words][14], b [words][32], c [14][32] with rows ldc numbers of 4 bytes apart. The columns come
 * from the second-level cache, so they are fetched twelve words ahead; where that is past the end
 * of the panel nothing happens. What later tiles will read is asked for at every word, a line often
 * several times: that costs nothing beside 28 products. */
static void tile512_fetching(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                             bool accumulate, const void *next, int64_t lines)
{
    const void *from = c;
    /* clang-format off */
    __asm__ volatile(
        "kmovw %[mask], %%k1\n\t"
        TILE512_ROWS(TILE512_LOAD)
        ".p2align 5\n"
        "1:\n\t"
        "vmovups   (%[b]), %%zmm28\n\t"
        "vmovups 64(%[b]), %%zmm29\n\t"
        "prefetcht0 12*128(%[b])\n\t"
        "prefetcht0 12*128+64(%[b])\n\t"
        "prefetcht1 (%[next])\n\t"
        TILE512_ROWS(TILE512_MULTIPLY_ROW)
        "add $4*14, %[a]\n\t"
        "add $4*32, %[b]\n\t"
        "add %[pace], %[next]\n\t"
        "dec %[words]\n\t"
        "jnz 1b\n\t"
        TILE512_ROWS(TILE512_STORE)
        "vzeroupper"
        : [a] "+r"(a), [b] "+r"(b), [c] "+r"(c), [from] "+r"(from), [words] "+r"(words),
          [next] "+r"(next)
        : [stride] "r"(4 * ldc), [mask] "r"(accumulate ? 0xffff : 0),
          [pace] "r"((lines * 64 + words - 1) / words)
        : "memory", "cc", "k1", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7",
          "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17",
          "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", "zmm27",
          "zmm28", "zmm29");
    /* clang-format on */
}

static void tile512(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                    bool accumulate)
{
    tile512_fetching(words, a, b, c, ldc, accumulate, a, 0);
}

static void tile512_pack_rows(void *a, const void *const *rows, int64_t words)
{
    float *to = a;
    const void *sources[16];
    for (int i = 0; i < 16; i++)
        sources[i] = rows[i < TILE512_MR ? i : TILE512_MR - 1];
    int64_t word = 0;
    for (; word + 16 <= words; word += 16)
        pack_16x16(to + word * TILE512_MR, TILE512_MR, sources, word, (1 << TILE512_MR) - 1);
    pack_words_from(a, rows, TILE512_MR, word, words);
}

static void tile512_pack_columns(void *b, const void *const *columns, int64_t words)
{
    float *to = b;
    int64_t word = 0;
    for (; word + 16 <= words; word += 16)
        for (int i = 0; i < TILE512_NR; i += 16)
            pack_16x16(to + word * TILE512_NR + i, TILE512_NR, columns + i, word, 0xffff);
    pack_words_from(b, columns, TILE512_NR, word, words);
}

/* A row panel's slice is 21 KiB, a column panel's 48 KiB. A block's columns take 192 KiB and its
 * sums 546 KiB of 1 MiB (Zen 4, Skylake) or 2 MiB (Sapphire Rapids). */
#define TILE512_SHAPE                                                                              \
    .mr = TILE512_MR, .nr = TILE512_NR, .step = 1, .block_words = 384, .block_columns = 128,       \
    .block_rows = 1092, .pack_rows = tile512_pack_rows, .pack_columns = tile512_pack_columns,      \
    .tile = tile512, .tile_fetching = tile512_fetching

#endif
