/* Convolutions: a blocked product of rows of the input and columns of packed
 * weights. A convolution is the same product with more "taps": for each output pixel and each
 * position of the kernel a pointer says where the input row is, so neither im2col nor the upsampled
 * picture ever exist in memory. */
#include "nn/cpu/cpu.h"

#include <string.h>

/* A block of weights is packed for at most this many products in a row: NR columns of it stay in
 * the first-level cache while the rows stream by. */
#define BLOCK_K 512
/* Panels (of NR columns) that one task packs; they stay in the second-level cache. */
#define BLOCK_PANELS 4

typedef struct gemm {
    const cpu_kernels *kernels;
    int64_t m, n, k; /* out [m, n]; k products for each tap */
    int taps;
    bool bf16;
    const float *x; /* input rows */
    float *out;
    const float *bias; /* n floats, then zeros up to a whole panel; may be NULL */
    const nn_weight *w;

    /* Convolutions only: where the row of a tap is. */
    const float *zeros;
    int64_t height, width, out_width;
    int kernel, stride, pad, up;

    /* The division into tasks. */
    int64_t block_n, block_m, blocks_n;
    int64_t k_block; /* products of a tap that are packed at once */
    int tap_block;   /* taps that are packed at once; 1 unless k_block is k */
    float *scratch;  /* for each worker */
    int64_t scratch_floats;
} gemm;

/* The input row that output row m multiplies at a tap. */
static const float *input_row(const gemm *g, int64_t m, int tap)
{
    if (g->kernel == 0)
        return g->x + m * g->k;
    int64_t y = m / g->out_width * g->stride + tap / g->kernel - g->pad;
    int64_t x = m % g->out_width * g->stride + tap % g->kernel - g->pad;
    if (y < 0 || x < 0 || y >= g->height << g->up || x >= g->width << g->up)
        return g->zeros;
    return g->x + ((y >> g->up) * g->width + (x >> g->up)) * g->k;
}

/* Packs columns n .. n+count of taps and products into one panel. The weight of a linear layer is
 * [n][k], that of a convolution [n][k][taps]. */
static void pack_panel(const gemm *g, float *panel, int64_t n, int64_t count, int tap, int taps,
                       int64_t k0, int64_t k)
{
    size_t size = dtype_size(g->w->type);
    for (int t = 0; t < taps; t++) {
        int64_t at = (n * g->k + k0) * g->taps + tap + t;
        g->kernels->pack(panel + t * k * g->kernels->nr,
                         (const char *)g->w->data + (size_t)at * size, g->w->type, g->k * g->taps,
                         g->taps, (int)count, k, g->bf16);
    }
}

/* out[m0..m1, n0..n1] over one block of taps and products. */
static void multiply_block(const gemm *g, const float *panels, int64_t m0, int64_t m1, int64_t n0,
                           int64_t n1, int tap, int taps, int64_t k0, int64_t k)
{
    const cpu_kernels *kernels = g->kernels;
    const int mr = kernels->mr, nr = kernels->nr;
    const bool first = tap == 0 && k0 == 0;
    const float *rows[9 * KERNEL_MAX_MR];
    float edge[KERNEL_MAX_MR * KERNEL_MAX_NR];
    for (int64_t m = m0; m < m1; m += mr) {
        /* Rows past the end repeat the last one; their sums are dropped. */
        for (int t = 0; t < taps; t++)
            for (int i = 0; i < mr; i++)
                rows[t * mr + i] = input_row(g, min64(m + i, m1 - 1), tap + t) + k0;
        const float *panel = panels;
        for (int64_t n = n0; n < n1; n += nr, panel += taps * k * nr) {
            float *c = g->out + m * g->n + n;
            const float *bias = g->bias ? g->bias + n : NULL;
            int64_t valid_m = min64(mr, m1 - m), valid_n = min64(nr, n1 - n);
            if (valid_m == mr && valid_n == nr) {
                kernels->tile(taps, k, rows, panel, bias, !first, c, g->n);
                continue;
            }
            if (!first)
                for (int64_t i = 0; i < valid_m; i++)
                    memcpy(edge + i * nr, c + i * g->n, (size_t)valid_n * sizeof(float));
            kernels->tile(taps, k, rows, panel, bias, !first, edge, nr);
            for (int64_t i = 0; i < valid_m; i++)
                memcpy(c + i * g->n, edge + i * nr, (size_t)valid_n * sizeof(float));
        }
    }
}

static void gemm_task(void *user, int64_t index, int worker)
{
    const gemm *g = user;
    const int64_t nr = g->kernels->nr;
    int64_t n0 = index % g->blocks_n * g->block_n, n1 = min64(n0 + g->block_n, g->n);
    int64_t m0 = index / g->blocks_n * g->block_m, m1 = min64(m0 + g->block_m, g->m);
    float *panels = g->scratch + worker * g->scratch_floats;
    for (int tap = 0; tap < g->taps; tap += g->tap_block) {
        int taps = (int)min64(g->tap_block, g->taps - tap);
        for (int64_t k0 = 0; k0 < g->k; k0 += g->k_block) {
            int64_t k = min64(g->k_block, g->k - k0);
            float *panel = panels;
            for (int64_t n = n0; n < n1; n += nr, panel += taps * k * nr)
                pack_panel(g, panel, n, min64(nr, n1 - n), tap, taps, k0, k);
            multiply_block(g, panels, m0, m1, n0, n1, tap, taps, k0, k);
        }
    }
}

/* The input rounded to bfloat16, in blocks. */
typedef struct rounding {
    const cpu_kernels *kernels;
    const float *x;
    float *out;
    int64_t count;
} rounding;

#define ROUNDING_BLOCK 65536

static void round_task(void *user, int64_t index, int worker)
{
    (void)worker;
    const rounding *r = user;
    int64_t at = index * ROUNDING_BLOCK;
    r->kernels->round_bf16(r->out + at, r->x + at, min64(ROUNDING_BLOCK, r->count - at));
}

static const float *rounded_input(nn *c, const nn_tensor *x)
{
    int64_t count = nn_count(x);
    rounding r = {c->params.kernels, x->data, nn_scratch(c, (size_t)count, sizeof(float)), count};
    cpu_run(c, ceil_div(count, ROUNDING_BLOCK), round_task, &r);
    return r.out;
}

/* Completes the description and runs it. The order of every sum is given by k_block and tap_block,
 * which depend on the shape alone; how rows and columns are cut changes nothing. */
static void run_gemm(nn *c, gemm *g, const nn_tensor *x, const nn_weight *bias)
{
    size_t mark = nn_mark(c);
    const int64_t nr = c->params.kernels->nr, mr = c->params.kernels->mr;
    g->kernels = c->params.kernels;
    g->bf16 = c->params.precision != NN_F32;
    g->x = g->bf16 ? rounded_input(c, x) : x->data;
    g->k_block = min64(g->k, BLOCK_K);
    g->tap_block = g->k < BLOCK_K ? (int)min64(g->taps, BLOCK_K / g->k) : 1;
    g->block_n = nr * BLOCK_PANELS;
    g->blocks_n = ceil_div(g->n, g->block_n);
    /* Packing costs 1/block_m of the work; small products are cut finer to keep threads busy. */
    g->block_m = 1024 / mr * mr;
    while (g->blocks_n * ceil_div(g->m, g->block_m) < 16 && g->block_m > 64)
        g->block_m = ceil_div(g->block_m / 2, mr) * mr;
    g->scratch_floats = BLOCK_PANELS * nr * g->k_block * g->tap_block;
    g->scratch =
        nn_scratch(c, (size_t)(g->scratch_floats * pool_threads(c->params.threads)), sizeof(float));
    if (bias) {
        float *padded = nn_scratch(c, (size_t)(ceil_div(g->n, nr) * nr), sizeof(float));
        if (padded) {
            memset(padded, 0, (size_t)(ceil_div(g->n, nr) * nr) * sizeof(float));
            dtype_to_float(padded, bias->data, bias->type, (size_t)g->n);
        }
        g->bias = padded;
    }
    cpu_run(c, g->blocks_n * ceil_div(g->m, g->block_m), gemm_task, g);
    nn_release(c, mark);
}

void cpu_conv2d(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                const nn_weight *bias, const nn_conv *params)
{
    size_t mark = nn_mark(c);
    float *zeros = nn_scratch(c, (size_t)w->n[1], sizeof(float));
    if (zeros)
        memset(zeros, 0, (size_t)w->n[1] * sizeof(float));
    gemm g = {
        .m = out->n[0] * out->n[1],
        .n = w->n[0],
        .k = w->n[1],
        .taps = (int)(w->n[2] * w->n[3]),
        .out = out->data,
        .w = w,
        .zeros = zeros,
        .height = x->n[0],
        .width = x->n[1],
        .out_width = out->n[1],
        .kernel = (int)w->n[2],
        .stride = params->stride,
        .pad = params->pad_bottom_right ? 0 : (int)(w->n[2] / 2),
        .up = params->upsample ? 1 : 0,
    };
    run_gemm(c, &g, x, bias);
    nn_release(c, mark);
}
