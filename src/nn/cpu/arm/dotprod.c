/* int8 by SDOT (Armv8.2 with FEAT_DotProd: Cortex-A55, A75 and later, Neoverse, Apple A11): each
 * lane adds the 4 products of a word. */
#include "nn/cpu/gemm.h"

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

#define MULTIPLY(sums, columns, rows, lane) vdotq_laneq_s32(sums, columns, rows, lane)

#include "nn/cpu/arm/tile_lanes.h"

extern const cpu_gemm gemm_dotprod;
const cpu_gemm gemm_dotprod = {.name = "dotprod",
                               .features = CPU_HAS_DOTPROD,
                               .compute = CPU_INT8,
                               .element = GEMM_INT8,
                               LANES_SHAPE};
