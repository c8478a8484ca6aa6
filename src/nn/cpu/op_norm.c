/* Normalisation: by row (RMS, layer), by head with rotation, by group of channels. */
#include "nn/cpu/operand.h"

#include <math.h>
#include <string.h>

#define ROWS_PER_TASK 16

typedef struct row_norm {
    const cpu_kernels *kernels;
    float *out;
    const float *x, *w, *scale;
    int64_t rows, n;
    float eps;
    void (*row)(const struct row_norm *r, int64_t at);
} row_norm;

static void row_task(void *user, int64_t index, int worker)
{
    (void)worker;
    const row_norm *r = user;
    int64_t end = min64((index + 1) * ROWS_PER_TASK, r->rows);
    for (int64_t i = index * ROWS_PER_TASK; i < end; i++)
        r->row(r, i * r->n);
}

static void rms_row(const row_norm *r, int64_t at)
{
    r->kernels->rms_norm(r->out + at, r->x + at, r->w, r->scale, r->n, r->eps);
}

static void add_rms_row(const row_norm *r, int64_t at)
{
    r->kernels->add_rms_norm(r->out + at, r->x + at, r->w, r->scale, r->n, r->eps);
}

static void layer_row(const row_norm *r, int64_t at)
{
    r->kernels->layer_norm(r->out + at, r->x + at, r->scale, r->n, r->eps);
}

static void run_rows(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w, float eps,
                     const nn_tensor *scale, void (*row)(const row_norm *, int64_t))
{
    size_t mark = nn_mark(c);
    row_norm r = {c->params.kernels,
                  out->data,
                  x->data,
                  w ? cpu_floats(c, w) : NULL,
                  scale ? scale->data : NULL,
                  x->n[0],
                  x->n[1],
                  eps,
                  row};
    cpu_run(c, ceil_div(r.rows, ROWS_PER_TASK), row_task, &r);
    nn_release(c, mark);
}

/* Rows that are encoded as soon as they are normalised, a panel in a task. */
typedef struct panel_norm {
    product p;
    operand to;
    const float *x, *w, *scale;
    int64_t rows;
    float eps;
    char *scratch;
    size_t scratch_bytes;
} panel_norm;

static void panel_task(void *user, int64_t index, int worker)
{
    const panel_norm *r = user;
    const int mr = r->p.gemm->mr;
    float *normed = (float *)(void *)(r->scratch + (size_t)worker * r->scratch_bytes);
    const float *rows[GEMM_MAX_MR];
    int64_t count = min64(mr, r->rows - index * mr);
    for (int i = 0; i < mr; i++)
        rows[i] = normed + min64(i, count - 1) * r->p.k;
    for (int64_t i = 0; i < count; i++)
        r->p.kernels->rms_norm(normed + i * r->p.k, r->x + (index * mr + i) * r->p.k, r->w,
                               r->scale, r->p.k, r->eps);
    operand_store_rows(&r->p, &r->to, index, rows, (char *)(normed + mr * r->p.k));
}

static void rms_norm_operand(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                             float eps, const nn_tensor *scale)
{
    size_t mark = nn_mark(c);
    panel_norm r = {.p = product_choose(c, x->n[1], false),
                    .x = x->data,
                    .w = cpu_floats(c, w),
                    .scale = scale ? scale->data : NULL,
                    .rows = x->n[0],
                    .eps = eps};
    r.to = operand_at(&r.p, r.rows, out->data);
    r.scratch_bytes = (size_t)(r.p.gemm->mr * r.p.k * 4 + 63) / 64 * 64 + operand_scratch(&r.p);
    r.scratch = nn_scratch(c, r.scratch_bytes, (size_t)pool_threads(c->params.threads));
    cpu_run(c, ceil_div(r.rows, r.p.gemm->mr), panel_task, &r);
    nn_release(c, mark);
}

void cpu_rms_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w, float eps,
                  const nn_tensor *scale)
{
    if (out->operand)
        rms_norm_operand(c, out, x, w, eps, scale);
    else
        run_rows(c, out, x, w, eps, scale, rms_row);
}

void cpu_add_rms_norm(nn *c, const nn_tensor *x, const nn_tensor *y, const nn_weight *w, float eps,
                      const nn_tensor *gate)
{
    run_rows(c, x, y, w, eps, gate, add_rms_row);
}

void cpu_layer_norm(nn *c, const nn_tensor *out, const nn_tensor *x, float eps,
                    const nn_tensor *scale)
{
    run_rows(c, out, x, NULL, eps, scale, layer_row);
}

typedef struct head_norm {
    const cpu_kernels *kernels;
    float *x;
    const float *w, *cosine, *sine;
    int64_t rows, stride, heads, dim;
    float eps;
    nn_rope_pairs pairs;
} head_norm;

static void head_task(void *user, int64_t index, int worker)
{
    (void)worker;
    const head_norm *h = user;
    int64_t end = min64((index + 1) * ROWS_PER_TASK, h->rows);
    for (int64_t i = index * ROWS_PER_TASK; i < end; i++)
        for (int64_t j = 0; j < h->heads; j++) {
            float *x = h->x + i * h->stride + j * h->dim;
            if (h->w)
                h->kernels->rms_norm(x, x, h->w, NULL, h->dim, h->eps);
            h->kernels->rope(x, h->cosine + i * h->dim / 2, h->sine + i * h->dim / 2, h->dim,
                             h->pairs);
        }
}

void cpu_head_norm_rope(nn *c, const nn_tensor *x, int heads, const nn_weight *w, float eps,
                        const nn_tensor *cosine, const nn_tensor *sine, nn_rope_pairs pairs)
{
    size_t mark = nn_mark(c);
    head_norm h = {c->params.kernels,
                   x->data,
                   w ? cpu_floats(c, w) : NULL,
                   cosine->data,
                   sine->data,
                   x->n[0],
                   x->stride,
                   heads,
                   x->n[1] / heads,
                   eps,
                   pairs};
    cpu_run(c, ceil_div(h.rows, ROWS_PER_TASK), head_task, &h);
    nn_release(c, mark);
}

#define PIXELS_PER_TASK 512

typedef struct group_norm {
    const cpu_kernels *kernels;
    float *out;
    const float *x;
    int64_t pixels, channels;
    double *sums; /* for each task: channels sums, channels squares */
    float *factor, *offset;
    bool silu;
} group_norm;

static void group_sum_task(void *user, int64_t index, int worker)
{
    (void)worker;
    const group_norm *g = user;
    int64_t first = index * PIXELS_PER_TASK;
    double *sums = g->sums + 2 * index * g->channels;
    memset(sums, 0, 2 * (size_t)g->channels * sizeof(double));
    g->kernels->channel_sums(sums, sums + g->channels, g->x + first * g->channels,
                             min64(PIXELS_PER_TASK, g->pixels - first), g->channels);
}

static void group_apply_task(void *user, int64_t index, int worker)
{
    (void)worker;
    const group_norm *g = user;
    int64_t first = index * PIXELS_PER_TASK;
    g->kernels->channel_affine(g->out + first * g->channels, g->x + first * g->channels, g->factor,
                               g->offset, min64(PIXELS_PER_TASK, g->pixels - first), g->channels,
                               g->silu);
}

/* x * factor + offset for each channel, from the sums of all tasks in their order. */
static void group_factors(const group_norm *g, int64_t tasks, const float *w, const float *b,
                          int groups, float eps)
{
    int64_t size = g->channels / groups;
    for (int64_t group = 0; group < groups; group++) {
        double sum = 0, squares = 0;
        for (int64_t t = 0; t < tasks; t++)
            for (int64_t i = group * size; i < (group + 1) * size; i++) {
                sum += g->sums[2 * t * g->channels + i];
                squares += g->sums[(2 * t + 1) * g->channels + i];
            }
        double count = (double)(size * g->pixels), mean = sum / count;
        double variance = squares / count - mean * mean;
        double factor = 1 / sqrt((variance > 0 ? variance : 0) + (double)eps);
        for (int64_t i = group * size; i < (group + 1) * size; i++) {
            g->factor[i] = (float)(factor * (double)w[i]);
            g->offset[i] = (float)((double)b[i] - mean * factor * (double)w[i]);
        }
    }
}

void cpu_group_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                    const nn_weight *b, int groups, float eps, bool silu)
{
    size_t mark = nn_mark(c);
    group_norm g = {.kernels = c->params.kernels,
                    .out = out->data,
                    .x = x->data,
                    .pixels = x->n[0] * x->n[1],
                    .channels = x->n[2],
                    .silu = silu};
    int64_t tasks = ceil_div(g.pixels, PIXELS_PER_TASK);
    const float *weight = cpu_floats(c, w), *bias = cpu_floats(c, b);
    g.sums = nn_scratch(c, (size_t)(2 * tasks * g.channels), sizeof(double));
    g.factor = nn_scratch(c, (size_t)g.channels, sizeof(float));
    g.offset = nn_scratch(c, (size_t)g.channels, sizeof(float));
    cpu_run(c, tasks, group_sum_task, &g);
    if (g.offset)
        group_factors(&g, tasks, weight, bias, groups, eps);
    cpu_run(c, tasks, group_apply_task, &g);
    nn_release(c, mark);
}
