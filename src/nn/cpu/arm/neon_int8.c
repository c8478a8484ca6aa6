/* int8 for every AArch64: products of 16 bits (SMULL), which are added in pairs to sums of 32 bits
 * (SADALP) at once, since two products of -128 and -128 would not fit into 16 bits. */
#include "nn/cpu/arm/pack.h"
#include "nn/cpu/gemm.h"

#include <arm_neon.h>

/* 16 products of each row and one column, to 4 partial sums of each row. */
#define COLUMN(n)                                                                                  \
    y = vld1q_s8(columns + 16 * (n));                                                              \
    p0 = vmull_s8(vget_low_s8(x0), vget_low_s8(y));                                                \
    p1 = vmull_s8(vget_low_s8(x1), vget_low_s8(y));                                                \
    p2 = vmull_s8(vget_low_s8(x2), vget_low_s8(y));                                                \
    p3 = vmull_s8(vget_low_s8(x3), vget_low_s8(y));                                                \
    q0 = vmull_high_s8(x0, y);                                                                     \
    s0##n = vpadalq_s16(s0##n, p0);                                                                \
    q1 = vmull_high_s8(x1, y);                                                                     \
    s1##n = vpadalq_s16(s1##n, p1);                                                                \
    q2 = vmull_high_s8(x2, y);                                                                     \
    s2##n = vpadalq_s16(s2##n, p2);                                                                \
    q3 = vmull_high_s8(x3, y);                                                                     \
    s3##n = vpadalq_s16(s3##n, p3);                                                                \
    s0##n = vpadalq_s16(s0##n, q0);                                                                \
    s1##n = vpadalq_s16(s1##n, q1);                                                                \
    s2##n = vpadalq_s16(s2##n, q2);                                                                \
    s3##n = vpadalq_s16(s3##n, q3);

#define BEGIN(m) int32x4_t s##m##0 = zero, s##m##1 = zero, s##m##2 = zero, s##m##3 = zero;

#define END(m)                                                                                     \
    s##m##0 = vpaddq_s32(vpaddq_s32(s##m##0, s##m##1), vpaddq_s32(s##m##2, s##m##3));              \
    if (accumulate)                                                                                \
        s##m##0 = vaddq_s32(s##m##0, vld1q_s32(out + (m)*ldc));                                    \
    vst1q_s32(out + (m)*ldc, s##m##0);

/* 4 x 4: 16 vectors of partial sums, 4 of the rows, 1 or 2 of the columns and 8 of products. For 4
 * words there are 32 SMULL, 32 SADALP and 8 loads. */
static void tile(int64_t words, const void *a, const void *b, void *c, int64_t ldc, bool accumulate)
{
    int32_t *out = c;
    const int8_t *rows = a, *columns = b;
    const int32x4_t zero = {0};
    BEGIN(0)
    BEGIN(1)
    BEGIN(2)
    BEGIN(3)
    for (; words > 0; words -= 4) {
        const int8x16_t x0 = vld1q_s8(rows), x1 = vld1q_s8(rows + 16), x2 = vld1q_s8(rows + 32),
                        x3 = vld1q_s8(rows + 48);
        int8x16_t y;
        int16x8_t p0, p1, p2, p3, q0, q1, q2, q3;
        COLUMN(0)
        COLUMN(1)
        COLUMN(2)
        COLUMN(3)
        rows += 64;
        columns += 64;
    }
    END(0)
    END(1)
    END(2)
    END(3)
}

extern const cpu_gemm gemm_neon_int8;
const cpu_gemm gemm_neon_int8 = {.name = "neon",
                                 .compute = CPU_INT8,
                                 .element = GEMM_INT8,
                                 .mr = 4,
                                 .nr = 4,
                                 .step = 4,
                                 .block_words = 512,
                                 .block_columns = 64,
                                 .block_rows = 64,
                                 .pack_rows = arm_pack_4x4,
                                 .pack_columns = arm_pack_4x4,
                                 .tile = tile};
