/* Float32 products on vectors of 4, for processors without anything better. */
#include "nn/cpu/gemm.h"

#include <string.h>

enum { VL = 4, MR = 6, NV = 2, NR = VL * NV };

typedef float vf __attribute__((vector_size(VL * 4)));
/* The same at any alignment. */
typedef float vf_memory __attribute__((vector_size(VL * 4), aligned(4), may_alias));

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

static void pack(float *panel, const void *const *sources, int64_t words, int count)
{
    for (int64_t w = 0; w < words; w++)
        for (int i = 0; i < count; i++)
            memcpy(panel + w * count + i, (const char *)sources[i] + 4 * w, 4);
}

static void pack_rows(void *a, const void *const *rows, int64_t words)
{
    pack(a, rows, words, MR);
}

static void pack_columns(void *b, const void *const *columns, int64_t words)
{
    pack(b, columns, words, NR);
}

/* The sums stay in registers: MR rows of NV vectors. */
static void tile(int64_t words, const void *a, const void *b, void *c, int64_t ldc, bool accumulate)
{
    const float *x = a, *y = b;
    float *out = c;
    vf sum[MR][NV];
    UNROLL
    for (int m = 0; m < MR; m++) {
        UNROLL
        for (int v = 0; v < NV; v++)
            sum[m][v] = accumulate ? (vf) * (const vf_memory *)(out + m * ldc + v * VL) : (vf){0};
    }
    for (int64_t w = 0; w < words; w++, x += MR, y += NR) {
        vf column[NV];
        UNROLL
        for (int v = 0; v < NV; v++)
            column[v] = *(const vf_memory *)(y + v * VL);
        UNROLL
        for (int m = 0; m < MR; m++) {
            UNROLL
            for (int v = 0; v < NV; v++)
                sum[m][v] += x[m] * column[v];
        }
    }
    UNROLL
    for (int m = 0; m < MR; m++) {
        UNROLL
        for (int v = 0; v < NV; v++)
            *(vf_memory *)(out + m * ldc + v * VL) = sum[m][v];
    }
}

extern const cpu_gemm gemm_baseline_f32;
const cpu_gemm gemm_baseline_f32 = {
    .name = "baseline",
    .compute = CPU_F32,
    .element = GEMM_FLOAT32,
    .mr = MR,
    .nr = NR,
    .step = 1,
    .block_words = 256,
    .block_columns = 64,
    .block_rows = 768,
    .pack_rows = pack_rows,
    .pack_columns = pack_columns,
    .tile = tile,
};
