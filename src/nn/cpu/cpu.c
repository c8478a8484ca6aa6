/* The CPU device: its operation table, and the operations on single numbers and rows. */
#include "nn/cpu/cpu.h"

#include <math.h>
#include <string.h>

void cpu_run(nn *c, int64_t count, void (*task)(void *, int64_t, int), void *user)
{
    if (!c->params.dry && c->error.code == CT_OK)
        pool_run(c->params.threads, count, task, user);
}

const float *cpu_floats(nn *c, const nn_weight *w)
{
    if (!nn_has(w))
        return NULL;
    size_t count = 1;
    for (int i = 0; i < w->rank; i++)
        count *= (size_t)w->n[i];
    float *floats = nn_scratch(c, count, sizeof(float));
    if (floats)
        dtype_to_float(floats, w->data, w->type, count);
    return floats;
}

static void cpu_embed(nn *c, const nn_tensor *out, const nn_weight *w, const int32_t *ids)
{
    if (c->params.dry)
        return;
    int64_t d = w->n[1];
    size_t row = (size_t)d * dtype_size(w->type);
    for (int64_t i = 0; i < out->n[0]; i++)
        dtype_to_float(out->data + i * d, (const char *)w->data + (size_t)ids[i] * row, w->type,
                       (size_t)d);
}

static void cpu_fill_rows(nn *c, const nn_tensor *out, const nn_weight *w)
{
    if (c->params.dry)
        return;
    for (int64_t i = 0; i < out->n[0]; i++)
        dtype_to_float(out->data + i * out->n[1], w->data, w->type, (size_t)out->n[1]);
}

#define NUMBERS_PER_TASK 16384

typedef struct pointwise {
    const cpu_kernels *kernels;
    float *out;
    const float *x;
    int64_t count;
    float value;
    void (*part)(const struct pointwise *p, int64_t at, int64_t n);
} pointwise;

static void pointwise_task(void *user, int64_t index, int worker)
{
    (void)worker;
    const pointwise *p = user;
    int64_t at = index * NUMBERS_PER_TASK;
    p->part(p, at, min64(NUMBERS_PER_TASK, p->count - at));
}

static void swiglu_part(const pointwise *p, int64_t at, int64_t n)
{
    p->kernels->swiglu(p->out + at, p->x + at, n);
}

static void silu_part(const pointwise *p, int64_t at, int64_t n)
{
    p->kernels->silu(p->out + at, p->x + at, n);
}

static void add_part(const pointwise *p, int64_t at, int64_t n)
{
    p->kernels->add(p->out + at, p->x + at, n);
}

static void tanh_part(const pointwise *p, int64_t at, int64_t n)
{
    for (int64_t i = at; i < at + n; i++)
        p->out[i] = tanhf(p->x[i]);
}

static void add_scalar_part(const pointwise *p, int64_t at, int64_t n)
{
    for (int64_t i = at; i < at + n; i++)
        p->out[i] = p->x[i] + p->value;
}

static void run_pointwise(nn *c, const nn_tensor *out, const nn_tensor *x, float value,
                          void (*part)(const pointwise *, int64_t, int64_t))
{
    pointwise p = {c->params.kernels, out->data, x->data, nn_count(x), value, part};
    cpu_run(c, ceil_div(p.count, NUMBERS_PER_TASK), pointwise_task, &p);
}

static void cpu_swiglu(nn *c, const nn_tensor *gate, const nn_tensor *up)
{
    run_pointwise(c, gate, up, 0, swiglu_part);
}

static void cpu_silu(nn *c, const nn_tensor *out, const nn_tensor *x)
{
    run_pointwise(c, out, x, 0, silu_part);
}

static void cpu_tanh(nn *c, const nn_tensor *x)
{
    run_pointwise(c, x, x, 0, tanh_part);
}

static void cpu_add_scalar(nn *c, const nn_tensor *x, float value)
{
    run_pointwise(c, x, x, value, add_scalar_part);
}

static void cpu_add(nn *c, const nn_tensor *x, const nn_tensor *y)
{
    run_pointwise(c, x, y, 0, add_part);
}

const nn_device nn_cpu_device = {
    .name = "cpu",
    .embed = cpu_embed,
    .fill_rows = cpu_fill_rows,
    .linear = cpu_linear,
    .rms_norm = cpu_rms_norm,
    .add_rms_norm = cpu_add_rms_norm,
    .layer_norm = cpu_layer_norm,
    .head_norm_rope = cpu_head_norm_rope,
    .attention = cpu_attention,
    .swiglu = cpu_swiglu,
    .silu = cpu_silu,
    .tanh = cpu_tanh,
    .add_scalar = cpu_add_scalar,
    .add = cpu_add,
    .conv2d = cpu_conv2d,
    .group_norm = cpu_group_norm,
};
