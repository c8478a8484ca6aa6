/* Linear layers: rows of activations times rows of a weight of any format.
 *
 * The activations are encoded and packed once. A task takes some columns of the result: it packs
 * their weights, straight from the file, multiplies all rows and finishes the sums (scales of 8-bit
 * products, bias, activation, gate) while they are in the cache. Packing a weight costs 1/M of the
 * work. How rows and columns are cut changes no sum. */
#include "nn/cpu/operand.h"

#include <string.h>

/* To pack a row of weights costs about as much as to multiply it with this many rows. */
#define PACKING_ROWS 160

typedef struct linear {
    product p;
    operand a;
    int64_t m, n;
    const nn_weight *w, *up;
    nn_activation activation;
    const float *bias, *gate;
    bool add;
    float *out;
    int64_t out_stride;

    int64_t block_n, block_m, blocks_n;
    char *scratch; /* for each worker */
    size_t scratch_bytes, panels_bytes, sums_bytes;
} linear;

/* ---- The first operand ----------------------------------------------------------------------- */

typedef struct preparation {
    product p;
    operand to;
    const float *x;
    int64_t m, stride;
    char *scratch;
    size_t scratch_bytes;
} preparation;

static void prepare_task(void *user, int64_t index, int worker)
{
    const preparation *r = user;
    const float *rows[GEMM_MAX_MR];
    for (int i = 0; i < r->p.gemm->mr; i++)
        rows[i] = r->x + min64(index * r->p.gemm->mr + i, r->m - 1) * r->stride;
    operand_store_rows(&r->p, &r->to, index, rows, r->scratch + (size_t)worker * r->scratch_bytes);
}

static void prepare(nn *c, const product *p, void *memory, const nn_tensor *x)
{
    size_t mark = nn_mark(c);
    preparation r = {.p = *p,
                     .to = operand_at(p, x->n[0], memory),
                     .x = x->data,
                     .m = x->n[0],
                     .stride = x->stride,
                     .scratch_bytes = operand_scratch(p)};
    r.scratch = nn_scratch(c, r.scratch_bytes, (size_t)pool_threads(c->params.threads));
    cpu_run(c, ceil_div(r.m, p->gemm->mr), prepare_task, &r);
    nn_release(c, mark);
}

size_t cpu_operand_bytes(const nn *c, int64_t m, int64_t k)
{
    product p = product_choose(c, k, NULL);
    return operand_bytes(&p, m);
}

void cpu_prepare(nn *c, const nn_tensor *out, const nn_tensor *x)
{
    product p = product_choose(c, x->n[1], NULL);
    prepare(c, &p, out->data, x);
}

/* ---- The product ----------------------------------------------------------------------------- */

/* A task: some columns and rows of the result. */
typedef struct block {
    int64_t n0, n1;  /* columns */
    int64_t each;    /* panels of w; as many of up follow */
    column_panels b; /* the weights: all of them for CPU_INT8, else a slice */
    float *sums;
    char *scratch;
    int64_t turn; /* 0..255, where to begin with the rows */
} block;

static bool packs_whole_rows(const linear *l)
{
    return l->p.gemm->compute == CPU_INT8;
}

static void pack_panel(const linear *l, const block *k, const nn_weight *w, int64_t panel,
                       int64_t slice)
{
    const int64_t nr = l->p.gemm->nr, n = k->n0 + panel % k->each * nr;
    const int64_t count = min64(nr, k->n1 - n), words = min64(l->p.slice, l->p.words - slice);
    if (packs_whole_rows(l))
        product_pack_int8(&l->p, &k->b, panel, w, n, count, k->scratch);
    else
        product_pack_slice(&l->p, k->b.panels + panel * nr * words * 4, w, n, count, slice,
                           k->scratch);
}

/* The weights of a task, of one slice or whole. */
static void pack_weights(const linear *l, const block *k, int64_t slice)
{
    for (int64_t i = 0; i < k->each; i++) {
        pack_panel(l, k, l->w, i, slice);
        if (l->up)
            pack_panel(l, k, l->up, k->each + i, slice);
    }
}

/* value[i] *= by[i] */
static void multiply(float *value, const float *by, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        value[i] *= by[i];
}

/* From the sums of a row to its part of the result. sums has `width` columns of w, then those of
 * up. */
static void finish_row(const linear *l, float *sums, int64_t width, const float *scales, int64_t m,
                       int64_t n0, int64_t count)
{
    const cpu_kernels *kernels = l->p.kernels;
    float *up = sums + width, *out = l->out + m * l->out_stride + n0;
    if (l->p.gemm->compute == CPU_INT8) {
        int32_t offset = l->p.gemm->offset_columns ? 128 * l->a.sums[m] : 0;
        kernels->decode_sums(sums, (const int32_t *)(const void *)sums, (l->up ? 2 : 1) * width,
                             offset, l->a.scales[m], scales);
    }
    if (l->bias)
        kernels->add(sums, l->bias + n0, count);
    if (l->up && l->activation == NN_SILU) {
        kernels->swiglu(sums, up, count);
    } else {
        if (l->activation == NN_SILU)
            kernels->silu(sums, sums, count);
        else if (l->activation == NN_GELU_TANH)
            kernels->gelu(sums, count);
        if (l->up)
            multiply(sums, up, count);
    }
    if (l->add && l->gate) {
        kernels->add_product(out, sums, l->gate + n0, count);
    } else if (l->add) {
        kernels->add(out, sums, count);
    } else {
        if (l->gate)
            multiply(sums, l->gate + n0, count);
        memcpy(out, sums, (size_t)count * sizeof(float));
    }
}

/* Asks for a row of weights of a slice, which is packed when the one before has been multiplied. */
static void fetch_weights(const linear *l, int64_t row, int64_t slice)
{
    product_fetch_slice(&l->p, l->w, row, slice);
    if (l->up)
        product_fetch_slice(&l->p, l->up, row, slice);
}

/* All sums of rows m0..m1 with columns of one slice, whose panels are given. Tasks that run at the
 * same time begin with different rows: many processors that ask for the same lines at once wait for
 * one another. */
static void multiply_slice(const linear *l, const block *k, const char *panels, int64_t m0,
                           int64_t m1, int64_t slice)
{
    const cpu_gemm *g = l->p.gemm;
    const int64_t mr = g->mr, nr = g->nr, count = k->b.count;
    const int64_t words = min64(l->p.slice, l->p.words - slice);
    const int64_t row_panels = ceil_div(m1 - m0, mr), start = k->turn * row_panels / 256;
    const int64_t bytes = mr * words * 4, tiles = row_panels * (count / nr);
    const int64_t next = slice + l->p.slice;
    /* Rows of weights are asked for a few at a tile: many requests at once wait for one another. */
    const int64_t rows = packs_whole_rows(l) || next >= l->p.words ? 0 : k->n1 - k->n0;
    int64_t row = k->n0, due = 0;
    for (int64_t i = 0; i < row_panels; i++) {
        const int64_t m = m0 + (start + i) % row_panels * mr;
        const char *a = l->a.panels + product_part(&l->p, l->a.rows, m / mr, mr, slice);
        for (int64_t j = 0; j < count; j += nr) {
            for (due += rows; due >= tiles; due -= tiles)
                fetch_weights(l, row++, next);
            gemm_tile(g, words, a, panels + j * words * 4, k->sums + (m - m0) * count + j, count,
                      slice > 0, a + bytes, bytes, j / nr, count / nr);
        }
    }
}

/* From the sums of rows m0..m1 to the result. Its lines are asked for a few rows earlier: every row
 * is on another page, so the processor does not see them coming. */
static void finish_rows(const linear *l, block *k, int64_t m0, int64_t m1)
{
    enum { AHEAD = 4 };
    const int64_t count = k->n1 - k->n0;
    for (int64_t m = m0; m < m1; m++) {
        const float *ahead = l->out + min64(m + AHEAD, m1 - 1) * l->out_stride + k->n0;
        for (int64_t i = 0; i < count; i += 16)
            __builtin_prefetch(ahead + i, 1, 3);
        finish_row(l, k->sums + (m - m0) * k->b.count, k->each * l->p.gemm->nr, k->b.scales, m,
                   k->n0, count);
    }
}

static void linear_task(void *user, int64_t index, int worker)
{
    const linear *l = user;
    const cpu_gemm *g = l->p.gemm;
    const int64_t first = index / l->blocks_n * l->block_m, last = min64(first + l->block_m, l->m);
    block k = {.n0 = index % l->blocks_n * l->block_n, .turn = index * 67 % 256};
    k.n1 = min64(k.n0 + l->block_n, l->n);
    k.each = ceil_div(k.n1 - k.n0, g->nr);
    k.b.count = (l->up ? 2 : 1) * k.each * g->nr;
    k.b.panels = l->scratch + (size_t)worker * l->scratch_bytes;
    k.sums = (float *)(void *)(k.b.panels + l->panels_bytes);
    k.b.scales = (float *)(void *)((char *)k.sums + l->sums_bytes);
    k.scratch = (char *)(k.b.scales + 2 * l->block_n);

    if (g->begin)
        g->begin();
    if (packs_whole_rows(l))
        pack_weights(l, &k, 0);
    for (int64_t m0 = first; m0 < last; m0 += g->block_rows) {
        int64_t m1 = min64(m0 + g->block_rows, last);
        for (int64_t slice = 0; slice < l->p.words; slice += l->p.slice) {
            const char *panels = k.b.panels;
            if (packs_whole_rows(l))
                panels += product_part(&l->p, k.b.count, 0, g->nr, slice);
            else
                pack_weights(l, &k, slice);
            multiply_slice(l, &k, panels, m0, m1, slice);
        }
        finish_rows(l, &k, m0, m1);
    }
    if (g->end)
        g->end();
}

/* The time of all tasks, in rows times columns, when they are dealt to the threads. */
static int64_t cost(const linear *l, int64_t block_m, int64_t block_n, int64_t threads)
{
    int64_t tasks = ceil_div(l->m, block_m) * ceil_div(l->n, block_n);
    return ceil_div(tasks, threads) * (block_m + PACKING_ROWS) * block_n;
}

/* Columns and rows of a task, and the scratch memory that it takes. No result depends on them. */
static void cut(nn *c, linear *l)
{
    const cpu_gemm *g = l->p.gemm;
    const int64_t both = l->up ? 2 : 1, mr = g->mr, threads = pool_threads(c->params.threads);
    const int64_t widest = g->block_columns / both > g->nr ? g->block_columns / both : g->nr;
    int64_t best = INT64_MAX;
    for (int64_t block_n = widest / g->nr * g->nr; block_n >= g->nr; block_n -= g->nr)
        for (int64_t parts = 1; parts <= 8; parts++) {
            int64_t block_m = ceil_div(ceil_div(l->m, parts), mr) * mr;
            int64_t time = cost(l, block_m, block_n, threads);
            /* Narrower blocks read the rows more often: they must be worth it. */
            if (time + time * (widest - block_n) / widest / 4 < best) {
                best = time + time * (widest - block_n) / widest / 4;
                l->block_m = block_m;
                l->block_n = block_n;
            }
        }
    l->blocks_n = ceil_div(l->n, l->block_n);
    int64_t rows = ceil_div(min64(g->block_rows, l->block_m), mr) * mr;
    const int64_t packed = packs_whole_rows(l) ? l->p.words : l->p.slice;
    l->panels_bytes = (size_t)(both * l->block_n * packed * 4 + 63) / 64 * 64;
    l->sums_bytes = (size_t)(rows * both * l->block_n * 4 + 63) / 64 * 64;
    l->scratch_bytes = l->panels_bytes + l->sums_bytes +
                       (size_t)(2 * l->block_n * 4 + 63) / 64 * 64 + operand_scratch(&l->p);
    l->scratch = nn_scratch(c, l->scratch_bytes, (size_t)threads);
}

void cpu_linear(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                const nn_epilogue *e)
{
    size_t mark = nn_mark(c);
    linear l = {
        .p = product_choose(c, w->n[1], w),
        .m = x->n[0],
        .n = w->n[0],
        .w = w,
        .up = e->up,
        .activation = e->activation,
        .bias = cpu_floats(c, e->bias),
        .gate = e->gate ? e->gate->data : NULL,
        .add = e->add,
        .out = out->data,
        .out_stride = out->stride,
    };
    void *memory = x->data;
    if (!x->operand) {
        memory = nn_scratch(c, operand_bytes(&l.p, l.m), 1);
        prepare(c, &l.p, memory, x);
    }
    l.a = operand_at(&l.p, l.m, memory);
    cut(c, &l);
    cpu_run(c, l.blocks_n * ceil_div(l.m, l.block_m), linear_task, &l);
    nn_release(c, mark);
    const nn_next_norm *next = e->next;
    if (next && next->layer)
        cpu_layer_norm(c, next->out, out, (float)next->eps, next->scale, next->shift);
    else if (next)
        cpu_rms_norm(c, next->out, out, next->w, (float)next->eps, next->scale);
}

void cpu_linears(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *const *w,
                 const nn_weight *const *bias, int count)
{
    size_t mark = nn_mark(c);
    nn_tensor input = *x;
    if (!x->operand && count > 1 && !w[0]->sensitive && !w[0]->outliers) {
        input = nn_new_operand(c, x->n[0], x->n[1]);
        cpu_prepare(c, &input, x);
    }
    int64_t first = 0;
    for (int i = 0; i < count; i++) {
        nn_tensor part = nn_columns(out, first, w[i]->n[0]);
        cpu_linear(c, &part, &input, w[i], &(nn_epilogue){.bias = bias[i]});
        first += w[i]->n[0];
    }
    nn_release(c, mark);
}
