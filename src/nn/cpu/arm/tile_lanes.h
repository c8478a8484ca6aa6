/* A tile of 8 x 12 sums from products by lane: one word of 4 columns times that of one row.
 *
 * The file that includes this defines
 *     number                        of a sum: float or int32_t
 *     operand, sums                 vectors of 4 words and of 4 sums
 *     load_operand, load_sums, store_sums
 *     MULTIPLY(sums, columns, rows, lane)
 *
 * The 24 vectors of sums, 2 of the rows and 3 of the columns are 29 of the 32 registers. For each
 * word there are 24 products, none of which waits for another (cores of 2 to 4 pipes and a latency
 * of 4 need 8 to 16), and 5 loads. */
#include "nn/cpu/arm/pack.h"

#include <stdbool.h>

#define LANES_ROW(m, rows, lane)                                                                   \
    s##m##0 = MULTIPLY(s##m##0, b0, rows, lane);                                                   \
    s##m##1 = MULTIPLY(s##m##1, b1, rows, lane);                                                   \
    s##m##2 = MULTIPLY(s##m##2, b2, rows, lane);

#define LANES_BEGIN(m)                                                                             \
    sums s##m##0 = accumulate ? load_sums(out + (m)*ldc) : zero;                                   \
    sums s##m##1 = accumulate ? load_sums(out + (m)*ldc + 4) : zero;                               \
    sums s##m##2 = accumulate ? load_sums(out + (m)*ldc + 8) : zero;

#define LANES_END(m)                                                                               \
    store_sums(out + (m)*ldc, s##m##0);                                                            \
    store_sums(out + (m)*ldc + 4, s##m##1);                                                        \
    store_sums(out + (m)*ldc + 8, s##m##2);

static void tile(int64_t words, const void *a, const void *b, void *c, int64_t ldc, bool accumulate)
{
    number *out = c;
    const char *rows = a, *columns = b;
    const sums zero = {0};
    LANES_BEGIN(0)
    LANES_BEGIN(1)
    LANES_BEGIN(2)
    LANES_BEGIN(3)
    LANES_BEGIN(4)
    LANES_BEGIN(5)
    LANES_BEGIN(6)
    LANES_BEGIN(7)
    do {
        operand b0 = load_operand(columns), b1 = load_operand(columns + 16),
                b2 = load_operand(columns + 32);
        operand a0 = load_operand(rows), a1 = load_operand(rows + 16);
        LANES_ROW(0, a0, 0)
        LANES_ROW(1, a0, 1)
        LANES_ROW(2, a0, 2)
        LANES_ROW(3, a0, 3)
        LANES_ROW(4, a1, 0)
        LANES_ROW(5, a1, 1)
        LANES_ROW(6, a1, 2)
        LANES_ROW(7, a1, 3)
        rows += 8 * 4;
        columns += 12 * 4;
    } while (--words);
    LANES_END(0)
    LANES_END(1)
    LANES_END(2)
    LANES_END(3)
    LANES_END(4)
    LANES_END(5)
    LANES_END(6)
    LANES_END(7)
}

#undef LANES_ROW
#undef LANES_BEGIN
#undef LANES_END

/* One pass of k needs 8 KiB of the rows and 12 KiB of the columns in a first-level cache of 32 KiB
 * or more; a block needs 128 KiB of rows, 96 of columns and 48 of sums in a second-level cache of
 * 512 KiB or more. */
#define LANES_SHAPE                                                                                \
    .mr = 8, .nr = 12, .step = 1, .block_words = 256, .block_columns = 96, .block_rows = 128,      \
    .pack_rows = arm_pack_8x1, .pack_columns = arm_pack_12x1, .tile = tile
