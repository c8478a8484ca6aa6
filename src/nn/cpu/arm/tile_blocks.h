/* A tile of 8 x 12 sums from products of blocks: 2 words of 2 rows times 2 words of 2 columns are 4
 * sums, in the order (0, 0), (0, 1), (1, 0), (1, 1).
 *
 * The file that includes this defines
 *     number                        of a sum: float or int32_t
 *     operand, sums                 vectors of 2 x 2 words and of 2 x 2 sums
 *     load_operand, load_sums, store_sums
 *     first_halves, second_halves   of two vectors of sums, side by side
 *     multiply(sums, rows, columns)
 *
 * The 24 vectors of sums, 4 of the rows and 2 of the columns are 30 of the 32 registers. For each 2
 * words there are 24 products, none of which waits for another, and 10 loads. */
#include "nn/cpu/arm/pack.h"

#include <stdbool.h>

#define BLOCKS_COLUMN(n, y)                                                                        \
    s0##n = multiply(s0##n, x0, y);                                                                \
    s1##n = multiply(s1##n, x1, y);                                                                \
    s2##n = multiply(s2##n, x2, y);                                                                \
    s3##n = multiply(s3##n, x3, y);

/* Between rows 2 m and 2 m + 1 of c, columns 2 n to 2 n + 3, and blocks n and o = n + 1. */
#define BLOCKS_BEGIN(m, n, o)                                                                      \
    sums s##m##n = zero, s##m##o = zero;                                                           \
    if (accumulate) {                                                                              \
        const sums first = load_sums(out + 2 * (m)*ldc + 2 * (n)),                                 \
                   second = load_sums(out + (2 * (m) + 1) * ldc + 2 * (n));                        \
        s##m##n = first_halves(first, second);                                                     \
        s##m##o = second_halves(first, second);                                                    \
    }

#define BLOCKS_END(m, n, o)                                                                        \
    store_sums(out + 2 * (m)*ldc + 2 * (n), first_halves(s##m##n, s##m##o));                       \
    store_sums(out + (2 * (m) + 1) * ldc + 2 * (n), second_halves(s##m##n, s##m##o));

#define BLOCKS_ALL(WHAT)                                                                           \
    WHAT(0, 0, 1)                                                                                  \
    WHAT(0, 2, 3)                                                                                  \
    WHAT(0, 4, 5)                                                                                  \
    WHAT(1, 0, 1)                                                                                  \
    WHAT(1, 2, 3)                                                                                  \
    WHAT(1, 4, 5)                                                                                  \
    WHAT(2, 0, 1)                                                                                  \
    WHAT(2, 2, 3)                                                                                  \
    WHAT(2, 4, 5)                                                                                  \
    WHAT(3, 0, 1)                                                                                  \
    WHAT(3, 2, 3)                                                                                  \
    WHAT(3, 4, 5)

static void tile(int64_t words, const void *a, const void *b, void *c, int64_t ldc, bool accumulate)
{
    number *out = c;
    const char *rows = a, *columns = b;
    const sums zero = {0};
    BLOCKS_ALL(BLOCKS_BEGIN)
    for (; words > 0; words -= 2) {
        const operand x0 = load_operand(rows), x1 = load_operand(rows + 16),
                      x2 = load_operand(rows + 32), x3 = load_operand(rows + 48);
        /* Each is loaded 4 products before its use, which helps cores that work in order. */
        operand y0 = load_operand(columns), y1 = load_operand(columns + 16);
        BLOCKS_COLUMN(0, y0)
        y0 = load_operand(columns + 32);
        BLOCKS_COLUMN(1, y1)
        y1 = load_operand(columns + 48);
        BLOCKS_COLUMN(2, y0)
        y0 = load_operand(columns + 64);
        BLOCKS_COLUMN(3, y1)
        y1 = load_operand(columns + 80);
        BLOCKS_COLUMN(4, y0)
        BLOCKS_COLUMN(5, y1)
        rows += 8 * 8;
        columns += 12 * 8;
    }
    BLOCKS_ALL(BLOCKS_END)
}

#undef BLOCKS_COLUMN
#undef BLOCKS_BEGIN
#undef BLOCKS_END
#undef BLOCKS_ALL

/* In bytes as tile_lanes.h. */
#define BLOCKS_SHAPE                                                                               \
    .mr = 8, .nr = 12, .step = 2, .block_words = 256, .block_columns = 96, .block_rows = 128,      \
    .pack_rows = arm_pack_8x2, .pack_columns = arm_pack_12x2, .tile = tile
