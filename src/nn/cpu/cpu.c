/* The CPU device: its operation table, and the operations on single numbers and rows. */
#include "nn/cpu/operand.h"

#include "core/mem.h"

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
    float *floats = nn_scratch(c, (size_t)w->n[w->rank - 1], sizeof(float));
    if (floats)
        weight_decode(c->params.kernels, w, 0, 0, w->n[w->rank - 1], floats);
    return floats;
}

static void cpu_embed(nn *c, const nn_tensor *out, const nn_weight *w, const int32_t *ids)
{
    if (c->params.dry)
        return;
    for (int64_t i = 0; i < out->n[0]; i++)
        weight_decode(c->params.kernels, w, ids[i], 0, w->n[1], out->data + i * out->stride);
}

static void cpu_fill_rows(nn *c, const nn_tensor *out, const nn_weight *w)
{
    if (c->params.dry)
        return;
    for (int64_t i = 0; i < out->n[0]; i++)
        weight_decode(c->params.kernels, w, 0, 0, out->n[1], out->data + i * out->stride);
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

static void silu_part(const pointwise *p, int64_t at, int64_t n)
{
    p->kernels->silu(p->out + at, p->x + at, n);
}

static void gelu_part(const pointwise *p, int64_t at, int64_t n)
{
    for (int64_t i = at; i < at + n; i++)
        p->out[i] = p->x[i] * 0.5f * (1.0f + erff(p->x[i] * 0.70710678f));
}

static void multiply_part(const pointwise *p, int64_t at, int64_t n)
{
    for (int64_t i = at; i < at + n; i++)
        p->out[i] *= p->x[i];
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

static void cpu_silu(nn *c, const nn_tensor *out, const nn_tensor *x)
{
    run_pointwise(c, out, x, 0, silu_part);
}

static void cpu_gelu(nn *c, const nn_tensor *x)
{
    run_pointwise(c, x, x, 0, gelu_part);
}

static void cpu_multiply(nn *c, const nn_tensor *x, const nn_tensor *y)
{
    run_pointwise(c, x, y, 0, multiply_part);
}

static void cpu_tanh(nn *c, const nn_tensor *x)
{
    run_pointwise(c, x, x, 0, tanh_part);
}

static void cpu_add_scalar(nn *c, const nn_tensor *x, float value)
{
    run_pointwise(c, x, x, value, add_scalar_part);
}

/* Operands are not looked at: products of theirs are. */
static int64_t cpu_count_broken(nn *c, const nn_tensor *t)
{
    const int64_t rows = t->rank == 2 ? t->n[0] : 1, columns = nn_count(t) / rows;
    int64_t broken = 0;
    (void)c;
    for (int64_t row = 0; row < rows && !t->operand; row++)
        for (int64_t i = 0; i < columns; i++)
            broken += !isfinite(t->data[row * t->stride + i]);
    return broken;
}

const nn_device nn_cpu_device = {
    .name = "cpu",
    .host_memory = true,
    .align = MEM_ALIGN,
    .upload = cpu_upload,
    .download = cpu_download,
    .count_broken = cpu_count_broken,
    .move = cpu_move,
    .move_rows = cpu_move_rows,
    .take = cpu_take,
    .embed = cpu_embed,
    .fill_rows = cpu_fill_rows,
    .operand_bytes = cpu_operand_bytes,
    .prepare = cpu_prepare,
    .linear = cpu_linear,
    .linears = cpu_linears,
    .rms_norm = cpu_rms_norm,
    .add_rms_norm = cpu_add_rms_norm,
    .layer_norm = cpu_layer_norm,
    .head_norm_rope = cpu_head_norm_rope,
    .attention = cpu_attention,
    .silu = cpu_silu,
    .gelu = cpu_gelu,
    .multiply = cpu_multiply,
    .tanh = cpu_tanh,
    .add_scalar = cpu_add_scalar,
    .add_scaled = cpu_add_scaled,
    .guide = cpu_guide,
    .guide_tokens = cpu_guide_tokens,
    .patches = cpu_patches,
    .upload_planes = cpu_upload_planes,
    .download_planes = cpu_download_planes,
    .conv2d = cpu_conv2d,
    .group_sums = cpu_group_sums,
    .group_factors = cpu_group_factors,
    .apply_norm = cpu_apply_norm,
};
