/* Products of matrices: what an instruction set brings, for each way to compute.
 *
 * Both operands are stored along the summed dimension k in words of 4 bytes: one float32, two
 * bfloat16, four int8 or two int16. A kernel sees words only; how wide k is in elements is known to
 * the code that encodes them (operand.h). The first operand comes in panels of mr rows, the second
 * in panels of nr columns, each in a layout private to the kernel, which its pack functions make.
 *
 *     c [mr][nr] = sum over words of a [mr][words] * b [nr][words]
 *
 * op_gemm.c, op_attention.c and op_conv.c cut the work into such tiles. */
#ifndef NN_CPU_GEMM_H
#define NN_CPU_GEMM_H

#include "nn/cpu/features.h"

#include <stdbool.h>

#define GEMM_MAX_MR 32
#define GEMM_MAX_NR 64

typedef enum cpu_compute {
    CPU_F32,  /* float32 products and sums */
    CPU_BF16, /* bfloat16 products, float32 sums */
    CPU_INT8, /* 8-bit products, int32 sums: exact, so equal on every instruction set */
    CPU_COMPUTES
} cpu_compute;

/* How a number of an operand is stored. */
typedef enum gemm_element {
    GEMM_FLOAT32,  /* 1 in a word */
    GEMM_BFLOAT16, /* 2 in a word */
    GEMM_INT8,     /* 4 in a word */
    GEMM_INT16     /* 2 in a word; values of 8 bits, for processors that multiply these faster */
} gemm_element;

typedef struct cpu_gemm {
    const char *name;  /* "avx512bf16" */
    uint32_t features; /* CPU_HAS_... that it needs */
    cpu_compute compute;
    gemm_element element;
    int mr, nr; /* rows and columns of a tile */
    int step;   /* words: operands are padded with zeros to a multiple of this */
    /* GEMM_INT8 only: the second operand is stored as value + 128, unsigned. The caller subtracts
     * 128 times the sum of each row of the first operand. */
    bool offset_columns;

    /* Caches: words of k that one pass takes (a multiple of step), and columns (a multiple of nr)
     * and rows (a multiple of mr) of a block whose sums stay in the second-level cache. */
    int block_words, block_columns, block_rows;

    /* Before the first and after the last tile of a task, on its thread; NULL: nothing to do. */
    void (*begin)(void);
    void (*end)(void);

    /* mr rows (nr columns) of words each, to a panel of mr * words (nr * words) words. words is a
     * multiple of step. Sources and panels are aligned to 4 bytes.
     * The panel of a part of k, starting at word w, starts at word w * mr (w * nr) of the panel,
     * for every w that is a multiple of step. Nothing is read or written outside. */
    void (*pack_rows)(void *a, const void *const *rows, int64_t words);
    void (*pack_columns)(void *b, const void *const *columns, int64_t words);

    /* c [mr][nr], float or (CPU_INT8) int32_t, with row stride ldc in elements; it is added to if
     * accumulate, else overwritten. words > 0. Each sum has one order, that of the words, and a
     * product done in parts with accumulate gives the same bits as one done at once. */
    void (*tile)(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                 bool accumulate);
    /* The same, and asks for so many lines of 64 bytes from next on, which later tiles will read,
     * between its products. They need not be memory at all. NULL: see gemm_tile. */
    void (*tile_fetching)(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                          bool accumulate, const void *next, int64_t lines);
} cpu_gemm;

/* A tile, with part of parts of the `bytes` at next on their way to the second-level cache: what
 * comes from the third level, or from memory, comes too late otherwise. */
static inline void gemm_tile(const cpu_gemm *g, int64_t words, const void *a, const void *b,
                             void *c, int64_t ldc, bool accumulate, const char *next, int64_t bytes,
                             int64_t part, int64_t parts)
{
    const int64_t first = bytes / 64 * part / parts, last = bytes / 64 * (part + 1) / parts;
    if (g->tile_fetching) {
        g->tile_fetching(words, a, b, c, ldc, accumulate, next + first * 64, last - first);
        return;
    }
    for (int64_t line = first; line < last; line++)
        __builtin_prefetch(next + line * 64, 0, 2);
    g->tile(words, a, b, c, ldc, accumulate);
}

/* Every product that this program has: for each way to compute the slowest first, the definition
 * (gemm_reference.c) before all others. NULL at the end. Tests and benchmarks run all of them. */
extern const cpu_gemm *const cpu_gemms[];

/* The fastest that needs nothing but these features; never NULL for CPU_F32 and CPU_INT8. NULL for
 * CPU_BF16: there are no bfloat16 products; round the operands and compute in float32. */
const cpu_gemm *cpu_gemm_choose(cpu_compute compute, uint32_t features);
/* The definition. */
const cpu_gemm *cpu_gemm_reference(cpu_compute compute);

#endif
