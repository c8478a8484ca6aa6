/* bfloat16 by BFMMLA (FEAT_BF16, Armv8.6: Cortex-A510, A710, X2 and later, Neoverse V1, N2, Apple
 * M2): 2 rows times 2 columns of 4 numbers, 16 products in an instruction.
 *
 * It adds products two by two, and rounds each such pair and each sum to odd (the last bit is set
 * when anything was lost): errors of up to 1 unit in the last place where float32 has 1/2, without
 * bias. Subnormal numbers are zero. k random numbers take k / 2 steps, and the relative L2 of the
 * sums was 1.5e-8 sqrt(k) where the signs were random and 2.1e-8 sqrt(k) where all were positive,
 * for k of 32 to 10240: no more than the 2e-8 sqrt(k) of fused multiply-adds in float32, and below
 * 1e-6 for k up to 2048. */
#include "nn/cpu/gemm.h"

#include <arm_neon.h>

typedef float number;
typedef bfloat16x8_t operand;
typedef float32x4_t sums;

static inline operand load_operand(const void *p)
{
    return vld1q_bf16(p);
}

static inline sums load_sums(const float *p)
{
    return vld1q_f32(p);
}

static inline void store_sums(float *p, sums s)
{
    vst1q_f32(p, s);
}

static inline sums first_halves(sums x, sums y)
{
    return vreinterpretq_f32_u64(vzip1q_u64(vreinterpretq_u64_f32(x), vreinterpretq_u64_f32(y)));
}

static inline sums second_halves(sums x, sums y)
{
    return vreinterpretq_f32_u64(vzip2q_u64(vreinterpretq_u64_f32(x), vreinterpretq_u64_f32(y)));
}

static inline sums multiply(sums s, operand rows, operand columns)
{
    return vbfmmlaq_f32(s, rows, columns);
}

#include "nn/cpu/arm/tile_blocks.h"

extern const cpu_gemm gemm_neon_bf16;
const cpu_gemm gemm_neon_bf16 = {.name = "neonbf16",
                                 .features = CPU_HAS_BF16,
                                 .compute = CPU_BF16,
                                 .element = GEMM_BFLOAT16,
                                 BLOCKS_SHAPE};
