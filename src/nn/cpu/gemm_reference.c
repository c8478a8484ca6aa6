/* The definition of the products: scalar C for reading, sums in the order of the words. */
#include "core/dtype.h"
#include "nn/cpu/gemm.h"

#include <string.h>

enum { MR = 4, NR = 8 };

/* Panels as the header suggests: word by word, the numbers of all rows side by side. */
static void pack(uint32_t *panel, const void *const *sources, int64_t words, int count)
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

static void tile_f32(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                     bool accumulate)
{
    const float *x = a, *y = b;
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) {
            float *out = (float *)c + m * ldc + n, sum = accumulate ? *out : 0;
            for (int64_t w = 0; w < words; w++)
                sum += x[w * MR + m] * y[w * NR + n];
            *out = sum;
        }
}

static void tile_bf16(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                      bool accumulate)
{
    const uint16_t *x = a, *y = b;
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) {
            float *out = (float *)c + m * ldc + n, sum = accumulate ? *out : 0;
            for (int64_t w = 0; w < words; w++)
                for (int i = 0; i < 2; i++)
                    sum += bf16_to_float(x[(w * MR + m) * 2 + i]) *
                           bf16_to_float(y[(w * NR + n) * 2 + i]);
            *out = sum;
        }
}

static void tile_int8(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                      bool accumulate)
{
    const int8_t *x = a, *y = b;
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) {
            int32_t *out = (int32_t *)c + m * ldc + n, sum = accumulate ? *out : 0;
            for (int64_t w = 0; w < words; w++)
                for (int i = 0; i < 4; i++)
                    sum += x[(w * MR + m) * 4 + i] * y[(w * NR + n) * 4 + i];
            *out = sum;
        }
}

#define SHAPE                                                                                      \
    .mr = MR, .nr = NR, .step = 1, .block_words = 256, .block_columns = 32, .block_rows = 64,      \
    .pack_rows = pack_rows, .pack_columns = pack_columns

extern const cpu_gemm gemm_reference_f32, gemm_reference_bf16, gemm_reference_int8;
const cpu_gemm gemm_reference_f32 = {
    .name = "reference", .compute = CPU_F32, .element = GEMM_FLOAT32, SHAPE, .tile = tile_f32};
const cpu_gemm gemm_reference_bf16 = {
    .name = "reference", .compute = CPU_BF16, .element = GEMM_BFLOAT16, SHAPE, .tile = tile_bf16};
const cpu_gemm gemm_reference_int8 = {
    .name = "reference", .compute = CPU_INT8, .element = GEMM_INT8, SHAPE, .tile = tile_int8};
