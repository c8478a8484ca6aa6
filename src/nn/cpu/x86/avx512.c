/* Float32 products on 512-bit vectors. */
#define TILE512_MULTIPLY "vfmadd231ps"
#include "nn/cpu/x86/tile512.h"

extern const cpu_gemm gemm_avx512_f32;
const cpu_gemm gemm_avx512_f32 = {
    .name = "avx512",
    .features = CPU_HAS_AVX512,
    .compute = CPU_F32,
    .element = GEMM_FLOAT32,
    TILE512_SHAPE,
};
