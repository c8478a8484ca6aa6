/* What tile_lanes.h and tile_blocks.h need to know of 8-bit numbers and their 32-bit sums. */
#ifndef NN_CPU_ARM_INT8_H
#define NN_CPU_ARM_INT8_H

#include <arm_neon.h>

typedef int32_t number;
typedef int8x16_t operand;
typedef int32x4_t sums;

static inline operand load_operand(const void *p)
{
    return vld1q_s8(p);
}

static inline sums load_sums(const int32_t *p)
{
    return vld1q_s32(p);
}

static inline void store_sums(int32_t *p, sums s)
{
    vst1q_s32(p, s);
}

#endif
