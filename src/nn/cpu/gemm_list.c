/* Which products this program has. */
#include "nn/cpu/gemm.h"

#include <stddef.h>

extern const cpu_gemm gemm_reference_f32, gemm_reference_bf16, gemm_reference_int8;
extern const cpu_gemm gemm_baseline_f32;
#if defined(__x86_64__)
extern const cpu_gemm gemm_avx2_f32, gemm_avx2_int8, gemm_avxvnni, gemm_avx512_f32, gemm_avx512bf16,
    gemm_avx512vnni, gemm_amx_bf16, gemm_amx_int8;
#endif

const cpu_gemm *const cpu_gemms[] = {
    &gemm_reference_f32,
    &gemm_reference_bf16,
    &gemm_reference_int8,
    &gemm_baseline_f32,
#if defined(__x86_64__)
    &gemm_avx2_f32,
    &gemm_avx2_int8,
    &gemm_avxvnni,
    &gemm_avx512_f32,
    &gemm_avx512bf16,
    &gemm_avx512vnni,
    &gemm_amx_bf16,
    &gemm_amx_int8,
#endif
    NULL,
};

const cpu_gemm *cpu_gemm_choose(cpu_compute compute, uint32_t features)
{
    const cpu_gemm *best = NULL;
    for (int i = 0; cpu_gemms[i]; i++) {
        /* The definition of bfloat16 products is for tests: slower than float32. */
        if (cpu_gemms[i] == &gemm_reference_bf16)
            continue;
        if (cpu_gemms[i]->compute == compute && !(cpu_gemms[i]->features & ~features))
            best = cpu_gemms[i];
    }
    return best;
}

const cpu_gemm *cpu_gemm_reference(cpu_compute compute)
{
    static const cpu_gemm *const definition[CPU_COMPUTES] = {
        &gemm_reference_f32, &gemm_reference_bf16, &gemm_reference_int8};
    return definition[compute];
}
