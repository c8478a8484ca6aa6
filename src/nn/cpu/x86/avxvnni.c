/* 8-bit products on 256-bit vectors: each sum takes the four products of a word. The instruction
 * multiplies unsigned numbers (columns) by signed ones (the row). */
#define TILE256_MULTIPLY(columns, sum)                                                             \
    "%{vex%} vpdpbusd %%ymm14, %%ymm" #columns ", %%ymm" #sum "\n\t"
#include "nn/cpu/x86/tile256.h"

extern const cpu_gemm gemm_avxvnni;
const cpu_gemm gemm_avxvnni = {
    .name = "avxvnni",
    .features = CPU_HAS_AVX2 | CPU_HAS_AVXVNNI,
    .compute = CPU_INT8,
    .element = GEMM_INT8,
    .offset_columns = true,
    TILE256_SHAPE,
};
