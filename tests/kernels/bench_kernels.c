#include "bench_kernels.h"

#include "test_support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "nn/cpu/kernels.h"

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#define N 1024 /* numbers of a call */
#define CHANNELS 64
#define TILE_CHANNELS 32
#define TIERS 8
#define SECONDS 0.02 /* for each cell of the table */

/* What all kernels work on: a row of each, aligned. */
typedef struct row {
    float *x, *y, *w, *out;
    uint8_t *codes;
    double *sums; /* [2][CHANNELS] */
} row;

/* ---- Calls ----------------------------------------------------------------------------------- */

/* Kernels that work in place would soon have numbers that are too small for a normal float. */
static void begin_again(const row *r)
{
    memcpy(r->out, r->x, N * sizeof(float));
}

static void decode_f16(const cpu_kernels *k, const row *r)
{
    k->decode(r->out, r->x, DTYPE_F16, N, 1);
}

static void decode_bf16(const cpu_kernels *k, const row *r)
{
    k->decode(r->out, r->x, DTYPE_BF16, N, 1);
}

static void decode_f8(const cpu_kernels *k, const row *r)
{
    k->decode(r->out, r->x, DTYPE_F8_E4M3, N, 1);
}

static void decode_codes(const cpu_kernels *k, const row *r)
{
    k->decode_codes(r->out, r->codes, N, 0.1f, -1);
}

static void unpack4(const cpu_kernels *k, const row *r)
{
    k->unpack4(r->codes, (const uint8_t *)r->y, N);
}

static void round_bf16(const cpu_kernels *k, const row *r)
{
    k->round_bf16(r->out, r->x, N);
}

static void encode_bf16(const cpu_kernels *k, const row *r)
{
    k->encode_bf16((uint16_t *)(void *)r->out, r->x, N);
}

static void encode_bf16_pairs(const cpu_kernels *k, const row *r)
{
    k->encode_bf16_pairs((uint32_t *)(void *)r->out, r->x, r->y, N / 2);
}

static void transpose(const cpu_kernels *k, const row *r)
{
    k->transpose((uint32_t *)(void *)r->out, 32, (const uint32_t *)(const void *)r->x, N / 32, 32,
                 N / 32);
}

static void max_abs(const cpu_kernels *k, const row *r)
{
    r->out[0] = k->max_abs(r->x, N);
}

static void encode_int8(const cpu_kernels *k, const row *r)
{
    k->encode_int8((int8_t *)r->codes, r->x, N, 100);
}

static void encode_uint8(const cpu_kernels *k, const row *r)
{
    k->encode_uint8(r->codes, r->x, N, 100);
}

static void encode_int16(const cpu_kernels *k, const row *r)
{
    k->encode_int16((int16_t *)(void *)r->out, r->x, N, 100);
}

/* The numbers stay as large as they were. */
static void hadamard(const cpu_kernels *k, const row *r)
{
    k->hadamard(r->out, N, 256);
}

static void decode_sums(const cpu_kernels *k, const row *r)
{
    k->decode_sums(r->out, (const int32_t *)(const void *)r->x, N, 7, 0.01f, r->w);
}

static void row_max(const cpu_kernels *k, const row *r)
{
    r->out[0] = k->row_max(r->x, N);
}

static void exp2_row(const cpu_kernels *k, const row *r)
{
    k->exp2_row(r->out, r->x, N, N, 0.5f, 1);
}

static void exp2_row_bf16(const cpu_kernels *k, const row *r)
{
    k->exp2_row_bf16((uint16_t *)(void *)r->out, r->x, N, N, 0.5f, 1);
}

static void scale(const cpu_kernels *k, const row *r)
{
    k->scale(r->out, N, 1);
}

static void rms_norm(const cpu_kernels *k, const row *r)
{
    k->rms_norm(r->out, r->x, r->w, NULL, N, 1e-5f);
}

static void add_rms_norm(const cpu_kernels *k, const row *r)
{
    k->add_rms_norm(r->out, r->x, r->w, NULL, N, 1e-5f);
}

static void layer_norm(const cpu_kernels *k, const row *r)
{
    k->layer_norm(r->out, r->x, r->w, NULL, N, 1e-6f);
}

static void rope_halves(const cpu_kernels *k, const row *r)
{
    begin_again(r);
    k->rope(r->out, r->w, r->y, N, NN_ROPE_HALVES);
}

static void rope_interleaved(const cpu_kernels *k, const row *r)
{
    begin_again(r);
    k->rope(r->out, r->w, r->y, N, NN_ROPE_INTERLEAVED);
}

static void silu(const cpu_kernels *k, const row *r)
{
    k->silu(r->out, r->x, N);
}

static void gelu(const cpu_kernels *k, const row *r)
{
    begin_again(r);
    k->gelu(r->out, N);
}

static void swiglu(const cpu_kernels *k, const row *r)
{
    begin_again(r);
    k->swiglu(r->out, r->y, N);
}

static void add(const cpu_kernels *k, const row *r)
{
    k->add(r->out, r->y, N);
}

static void add_product(const cpu_kernels *k, const row *r)
{
    k->add_product(r->out, r->x, r->w, N);
}

static void channel_sums(const cpu_kernels *k, const row *r)
{
    k->channel_sums(r->sums, r->sums + CHANNELS, r->x, N / CHANNELS, CHANNELS);
}

static void channel_affine(const cpu_kernels *k, const row *r)
{
    k->channel_affine(r->out, r->x, CHANNELS, r->w, r->y, N / CHANNELS, CHANNELS, true);
}

static void winograd_weights(const cpu_kernels *k, const row *r)
{
    k->winograd_weights(r->out, TILE_CHANNELS, r->x, TILE_CHANNELS);
}

static void winograd_input(const cpu_kernels *k, const row *r)
{
    const float *rows[6];
    int64_t columns[6];
    for (int i = 0; i < 6; i++) {
        rows[i] = r->x + 6 * i * TILE_CHANNELS;
        columns[i] = i * TILE_CHANNELS;
    }
    k->winograd_input(r->out, TILE_CHANNELS, rows, columns, TILE_CHANNELS);
}

static void winograd_output(const cpu_kernels *k, const row *r)
{
    k->winograd_output(r->out, 4 * TILE_CHANNELS, TILE_CHANNELS, r->x, TILE_CHANNELS, r->w,
                       TILE_CHANNELS, false);
}

#define CALL(name)                                                                                 \
    {                                                                                              \
#name, name, N                                                                             \
    }
static const struct {
    const char *name;
    void (*run)(const cpu_kernels *k, const row *r);
    int numbers; /* of a call: read, or written where those are more */
} calls[] = {
    CALL(decode_f16),
    CALL(decode_bf16),
    CALL(decode_f8),
    CALL(decode_codes),
    CALL(unpack4),
    CALL(round_bf16),
    CALL(encode_bf16),
    CALL(encode_bf16_pairs),
    CALL(transpose),
    CALL(max_abs),
    CALL(encode_int8),
    CALL(encode_uint8),
    CALL(encode_int16),
    CALL(hadamard),
    CALL(decode_sums),
    CALL(row_max),
    CALL(exp2_row),
    CALL(exp2_row_bf16),
    CALL(scale),
    CALL(rms_norm),
    CALL(add_rms_norm),
    CALL(layer_norm),
    CALL(rope_halves),
    CALL(rope_interleaved),
    CALL(silu),
    CALL(gelu),
    CALL(swiglu),
    CALL(add),
    CALL(add_product),
    CALL(channel_sums),
    CALL(channel_affine),
    {"winograd_weights", winograd_weights, 36 * TILE_CHANNELS},
    {"winograd_input", winograd_input, 36 * TILE_CHANNELS},
    {"winograd_output", winograd_output, 36 * TILE_CHANNELS},
};

/* ---- Time ------------------------------------------------------------------------------------ */

#if defined(__x86_64__)
static const char unit[] = "cycles of the time stamp counter";
static double now(void)
{
    return (double)__rdtsc();
}
#else
static const char unit[] = "nanoseconds";
static double now(void)
{
    return clock_seconds() * 1e9;
}
#endif

/* The best of many times eight calls, for each number. */
static double best(int call, const cpu_kernels *k, const row *r)
{
    double least = 1e300;
    for (const double end = clock_seconds() + SECONDS; clock_seconds() < end;) {
        const double start = now();
        for (int i = 0; i < 8; i++)
            calls[call].run(k, r);
        const double time = now() - start;
        least = time < least ? time : least;
    }
    return least / 8 / calls[call].numbers;
}

/* The definition and one tier of each table of rows that the processor can run. */
static int find_tables(cpu_kernels tables[TIERS])
{
    cpu_kernels tier;
    int count = 0;
    for (int i = 0; cpu_kernels_tier(&tier, i) && count < TIERS; i++)
        if (cpu_kernels_usable(&tier) &&
            (count == 0 || tier.rms_norm != tables[count - 1].rms_norm))
            tables[count++] = tier;
    return count;
}

static float *new_floats(float least, float most)
{
    const int64_t n = 2 * N; /* winograd's tiles are a little more than N */
    float *p = aligned_alloc(64, (size_t)n * sizeof *p);
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++)
        p[i] = least + (most - least) * (float)(i * 37 % 101) / 101;
    return p;
}

void bench_kernels(void)
{
    cpu_kernels tables[TIERS];
    const int count = find_tables(tables);
    row r = {new_floats(-1, 1), new_floats(-1, 1),           new_floats(0.5f, 1),
             new_floats(-1, 1), (uint8_t *)new_floats(0, 1), (double *)(void *)new_floats(0, 0)};
    printf("%s for each number, and how many times as fast as the definition\n%-20s", unit, "");
    for (int t = 0; t < count; t++)
        printf(" %9s%7s", tables[t].name, "");
    for (int c = 0; c < (int)(sizeof calls / sizeof *calls); c++) {
        double definition = 0;
        printf("\n%-20s", calls[c].name);
        for (int t = 0; t < count; t++) {
            const double time = best(c, &tables[t], &r);
            if (t == 0)
                definition = time;
            printf(" %9.3f", time);
            if (t > 0)
                printf(" %5.1fx", definition / time);
            else
                printf("%7s", "");
        }
        fflush(stdout);
    }
    printf("\n");
    free(r.x);
    free(r.y);
    free(r.w);
    free(r.out);
    free(r.codes);
    free(r.sums);
}
