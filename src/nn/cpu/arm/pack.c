#include "nn/cpu/arm/pack.h"

#include <arm_neon.h>
#include <string.h>

/* Four rows of a panel of blocks of 1: squares of 4 x 4 words are transposed in registers. */
static void pack_4_rows(uint32_t *panel, const void *const *rows, int64_t words, int count)
{
    int64_t w = 0;
    for (; w + 4 <= words; w += 4) {
        uint32x4_t row[4];
        for (int i = 0; i < 4; i++)
            row[i] = vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)rows[i] + 4 * w));
        uint32x4x2_t low = vzipq_u32(row[0], row[2]), high = vzipq_u32(row[1], row[3]);
        for (int i = 0; i < 2; i++) {
            uint32x4x2_t pair = vzipq_u32(low.val[i], high.val[i]);
            vst1q_u32(panel + (w + 2 * i) * count, pair.val[0]);
            vst1q_u32(panel + (w + 2 * i + 1) * count, pair.val[1]);
        }
    }
    for (; w < words; w++)
        for (int i = 0; i < 4; i++)
            memcpy(panel + w * count + i, (const char *)rows[i] + 4 * w, 4);
}

void arm_pack_8x1(void *panel, const void *const *rows, int64_t words)
{
    for (int i = 0; i < 8; i += 4)
        pack_4_rows((uint32_t *)panel + i, rows + i, words, 8);
}

void arm_pack_12x1(void *panel, const void *const *rows, int64_t words)
{
    for (int i = 0; i < 12; i += 4)
        pack_4_rows((uint32_t *)panel + i, rows + i, words, 12);
}

/* count and bytes (of a block) are constants wherever this is called. */
static inline void pack_blocks(void *panel, const void *const *rows, int64_t words, int count,
                               int64_t bytes)
{
    char *to = panel;
    for (int64_t at = 0; at < words * 4; at += bytes)
        for (int i = 0; i < count; i++, to += bytes)
            memcpy(to, (const char *)rows[i] + at, (size_t)bytes);
}

void arm_pack_8x2(void *panel, const void *const *rows, int64_t words)
{
    pack_blocks(panel, rows, words, 8, 8);
}

void arm_pack_12x2(void *panel, const void *const *rows, int64_t words)
{
    pack_blocks(panel, rows, words, 12, 8);
}

void arm_pack_4x4(void *panel, const void *const *rows, int64_t words)
{
    pack_blocks(panel, rows, words, 4, 16);
}
