/* Float32 products on 256-bit vectors. */
#define TILE256_MULTIPLY(columns, sum) "vfmadd231ps %%ymm14, %%ymm" #columns ", %%ymm" #sum "\n\t"
#include "nn/cpu/x86/tile256.h"

extern const cpu_gemm gemm_avx2_f32;
const cpu_gemm gemm_avx2_f32 = {
    .name = "avx2",
    .features = CPU_HAS_AVX2,
    .compute = CPU_F32,
    .element = GEMM_FLOAT32,
    TILE256_SHAPE,
};
