/* 8-bit products on 256-bit vectors without instructions for them: the numbers are stored in 16
 * bits, whose products vpmaddwd adds in pairs to 32 bits. Exact. (vpmaddubsw multiplies twice as
 * many, but its sums saturate at 16 bits.) */
#define TILE256_MULTIPLY(columns, sum)                                                             \
    "vpmaddwd %%ymm14, %%ymm" #columns ", %%ymm15\n\t"                                             \
    "vpaddd %%ymm15, %%ymm" #sum ", %%ymm" #sum "\n\t"
#include "nn/cpu/x86/tile256.h"

extern const cpu_gemm gemm_avx2_int8;
const cpu_gemm gemm_avx2_int8 = {
    .name = "avx2",
    .features = CPU_HAS_AVX2,
    .compute = CPU_INT8,
    .element = GEMM_INT16,
    TILE256_SHAPE,
};
