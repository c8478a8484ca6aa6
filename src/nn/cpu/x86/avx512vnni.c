/* 8-bit products on 512-bit vectors: each sum takes the four products of a word. The instruction
 * multiplies unsigned numbers (the register: columns) by signed ones (memory: the row). */
#define TILE512_MULTIPLY "vpdpbusd"
#include "nn/cpu/x86/tile512.h"

extern const cpu_gemm gemm_avx512vnni;
const cpu_gemm gemm_avx512vnni = {
    .name = "avx512vnni",
    .features = CPU_HAS_AVX512 | CPU_HAS_AVX512VNNI,
    .compute = CPU_INT8,
    .element = GEMM_INT8,
    .offset_columns = true,
    TILE512_SHAPE,
};
