/* int8 by SMMLA (FEAT_I8MM, Armv8.6: Cortex-A510, A710, X2 and later, Neoverse V1, N2, Apple M2):
 * 2 rows times 2 columns of 8 numbers, 32 products in an instruction. */
#include "nn/cpu/arm/int8.h"
#include "nn/cpu/gemm.h"

static inline sums first_halves(sums x, sums y)
{
    return vreinterpretq_s32_u64(vzip1q_u64(vreinterpretq_u64_s32(x), vreinterpretq_u64_s32(y)));
}

static inline sums second_halves(sums x, sums y)
{
    return vreinterpretq_s32_u64(vzip2q_u64(vreinterpretq_u64_s32(x), vreinterpretq_u64_s32(y)));
}

static inline sums multiply(sums s, operand rows, operand columns)
{
    return vmmlaq_s32(s, rows, columns);
}

#include "nn/cpu/arm/tile_blocks.h"

extern const cpu_gemm gemm_i8mm;
const cpu_gemm gemm_i8mm = {.name = "i8mm",
                            .features = CPU_HAS_I8MM,
                            .compute = CPU_INT8,
                            .element = GEMM_INT8,
                            BLOCKS_SHAPE};
