/* Bfloat16 products on 512-bit vectors: each sum takes both products of a word. Denormal numbers
 * count as zero. */
#define TILE512_MULTIPLY "vdpbf16ps"
#include "nn/cpu/x86/tile512.h"

extern const cpu_gemm gemm_avx512bf16;
const cpu_gemm gemm_avx512bf16 = {
    .name = "avx512bf16",
    .features = CPU_HAS_AVX512 | CPU_HAS_AVX512BF16,
    .compute = CPU_BF16,
    .element = GEMM_BFLOAT16,
    TILE512_SHAPE,
};
