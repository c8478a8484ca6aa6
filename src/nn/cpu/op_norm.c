/* Normalisation: by row (RMS, layer), by head with rotation, by group of channels. */
#include "nn/cpu/operand.h"

#include <math.h>
#include <string.h>

#define ROWS_PER_TASK 16

typedef struct row_norm {
    const cpu_kernels *kernels;
    float *out;
    const float *x, *w, *scale, *shift;
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
    r->kernels->layer_norm(r->out + at, r->x + at, r->scale, r->shift, r->n, r->eps);
}

static void run_rows(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w, float eps,
                     const nn_tensor *scale, const nn_tensor *shift,
                     void (*row)(const row_norm *, int64_t))
{
    size_t mark = nn_mark(c);
    row_norm r = {c->params.kernels,
                  out->data,
                  x->data,
                  w ? cpu_floats(c, w) : NULL,
                  scale ? scale->data : NULL,
                  shift ? shift->data : NULL,
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
    const float *x, *w, *scale, *shift;
    bool layer; /* or RMS */
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
    for (int64_t i = 0; i < count; i++) {
        const float *x = r->x + (index * mr + i) * r->p.k;
        if (r->layer)
            r->p.kernels->layer_norm(normed + i * r->p.k, x, r->scale, r->shift, r->p.k, r->eps);
        else
            r->p.kernels->rms_norm(normed + i * r->p.k, x, r->w, r->scale, r->p.k, r->eps);
    }
    operand_store_rows(&r->p, &r->to, index, rows, (char *)(normed + mr * r->p.k));
}

/* w NULL: a layer norm, otherwise RMS without shift. */
static void norm_operand(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                         float eps, const nn_tensor *scale, const nn_tensor *shift)
{
    size_t mark = nn_mark(c);
    panel_norm r = {.p = product_choose(c, x->n[1], NULL),
                    .x = x->data,
                    .w = w ? cpu_floats(c, w) : NULL,
                    .scale = scale ? scale->data : NULL,
                    .shift = shift ? shift->data : NULL,
                    .layer = !w,
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
        norm_operand(c, out, x, w, eps, scale, NULL);
    else
        run_rows(c, out, x, w, eps, scale, NULL, rms_row);
}

void cpu_add_rms_norm(nn *c, const nn_tensor *x, const nn_tensor *y, const nn_weight *w, float eps,
                      const nn_tensor *gate, const nn_next_norm *next)
{
    run_rows(c, x, y, w, eps, gate, NULL, add_rms_row);
    if (next)
        cpu_rms_norm(c, next->out, x, next->w, (float)next->eps, next->scale);
}

void cpu_layer_norm(nn *c, const nn_tensor *out, const nn_tensor *x, float eps,
                    const nn_tensor *scale, const nn_tensor *shift)
{
    if (out->operand)
        norm_operand(c, out, x, NULL, eps, scale, shift);
    else
        run_rows(c, out, x, NULL, eps, scale, shift, layer_row);
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

/* ---- Group norm. ----------------------------------------------------------------------------- */

typedef struct group_sums {
    const cpu_kernels *kernels;
    const float *x;
    double *sums; /* for each row: the sum of each group, then that of its squares */
    int64_t width, channels, groups;
    double *scratch; /* for each worker: the sums of each channel */
} group_sums;

/* One row: its order of summation is the same wherever a picture is cut. */
static void group_sums_task(void *user, int64_t row, int worker)
{
    const group_sums *g = user;
    const int64_t size = g->channels / g->groups;
    double *sum = g->scratch + worker * 2 * g->channels, *squares = sum + g->channels;
    memset(sum, 0, 2 * (size_t)g->channels * sizeof(double));
    g->kernels->channel_sums(sum, squares, g->x + row * g->width * g->channels, g->width,
                             g->channels);
    double *to = g->sums + row * 2 * g->groups;
    for (int64_t i = 0; i < g->groups; i++) {
        to[i] = to[g->groups + i] = 0;
        for (int64_t ch = i * size; ch < (i + 1) * size; ch++) {
            to[i] += sum[ch];
            to[g->groups + i] += squares[ch];
        }
    }
}

void cpu_group_sums(nn *c, const nn_tensor *sums, int64_t first, const nn_tensor *x)
{
    size_t mark = nn_mark(c);
    group_sums g = {.kernels = c->params.kernels,
                    .x = x->data,
                    .width = x->n[1],
                    .channels = x->n[2],
                    .groups = sums->n[1] / 4};
    g.scratch =
        nn_scratch(c, (size_t)(2 * g.channels * pool_threads(c->params.threads)), sizeof(double));
    if (sums->data)
        g.sums = (double *)(void *)sums->data + first * 2 * g.groups;
    cpu_run(c, x->n[0], group_sums_task, &g);
    nn_release(c, mark);
}

void cpu_group_factors(nn *c, const nn_tensor *norm, const nn_tensor *sums, int64_t width,
                       const nn_weight *w, const nn_weight *b, double eps,
                       const nn_weight *late_bias)
{
    (void)late_bias; /* conv2d has added it */
    size_t mark = nn_mark(c);
    const int64_t groups = sums->n[1] / 4, rows = sums->n[0], channels = norm->n[1];
    const int64_t size = channels / groups;
    const float *weight = cpu_floats(c, w), *bias = cpu_floats(c, b);
    const double *all = (const double *)(const void *)sums->data;
    for (int64_t i = 0; bias && i < groups; i++) {
        double sum = 0, squares = 0;
        for (int64_t row = 0; row < rows; row++) {
            sum += all[row * 2 * groups + i];
            squares += all[row * 2 * groups + groups + i];
        }
        double count = (double)(size * rows * width), mean = sum / count;
        double variance = squares / count - mean * mean;
        double factor = 1 / sqrt((variance > 0 ? variance : 0) + eps);
        for (int64_t ch = i * size; ch < (i + 1) * size; ch++) {
            norm->data[ch] = (float)(factor * (double)weight[ch]);
            norm->data[channels + ch] =
                (float)((double)bias[ch] - mean * factor * (double)weight[ch]);
        }
    }
    nn_release(c, mark);
}

#define PIXELS_PER_TASK 512

typedef struct pixel_norm {
    const cpu_kernels *kernels;
    float *out;
    const float *x, *w;
    int64_t pixels, channels;
    float eps;
} pixel_norm;

static void pixel_norm_task(void *user, int64_t index, int worker)
{
    (void)worker;
    const pixel_norm *n = user;
    const int64_t first = index * PIXELS_PER_TASK, end = min64(first + PIXELS_PER_TASK, n->pixels);
    for (int64_t i = first; i < end; i++) {
        float *out = n->out + i * n->channels;
        n->kernels->rms_norm(out, n->x + i * n->channels, n->w, NULL, n->channels, n->eps);
        n->kernels->silu(out, out, n->channels);
    }
}

nn_tensor cpu_pixel_norm(nn *c, const nn_tensor *x, const nn_pixel_norm *norm)
{
    const nn_tensor out = nn_new3(c, x->n[0], x->n[1], x->n[2]);
    const size_t mark = nn_mark(c);
    pixel_norm n = {c->params.kernels, out.data, x->data,         cpu_floats(c, norm->w),
                    x->n[0] * x->n[1], x->n[2],  (float)norm->eps};
    cpu_run(c, ceil_div(n.pixels, PIXELS_PER_TASK), pixel_norm_task, &n);
    nn_release(c, mark);
    return out;
}

typedef struct norm_application {
    const cpu_kernels *kernels;
    float *out;
    const float *x, *norm;
    int64_t pixels, channels;
} norm_application;

static void apply_norm_task(void *user, int64_t index, int worker)
{
    (void)worker;
    const norm_application *n = user;
    int64_t first = index * PIXELS_PER_TASK, at = first * n->channels;
    n->kernels->channel_affine(n->out + at, n->x + at, n->channels, n->norm, n->norm + n->channels,
                               min64(PIXELS_PER_TASK, n->pixels - first), n->channels, false);
}

void cpu_apply_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_tensor *norm)
{
    norm_application n = {c->params.kernels, out->data,         x->data,
                          norm->data,        x->n[0] * x->n[1], x->n[2]};
    cpu_run(c, ceil_div(n.pixels, PIXELS_PER_TASK), apply_norm_task, &n);
}
