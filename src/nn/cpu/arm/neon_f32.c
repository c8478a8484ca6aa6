/* float32 by fused multiply-add, which every AArch64 has. */
#include "nn/cpu/gemm.h"

#include <arm_neon.h>

typedef float number;
typedef float32x4_t operand;
typedef float32x4_t sums;

static inline operand load_operand(const void *p)
{
    return vld1q_f32(p);
}

static inline sums load_sums(const float *p)
{
    return vld1q_f32(p);
}

static inline void store_sums(float *p, sums s)
{
    vst1q_f32(p, s);
}

#define MULTIPLY(sums, columns, rows, lane) vfmaq_laneq_f32(sums, columns, rows, lane)

#include "nn/cpu/arm/tile_lanes.h"

extern const cpu_gemm gemm_neon_f32;
const cpu_gemm gemm_neon_f32 = {
    .name = "neon", .compute = CPU_F32, .element = GEMM_FLOAT32, LANES_SHAPE};
