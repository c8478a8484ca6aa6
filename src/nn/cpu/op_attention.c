/* Attention, head by head. A task takes one head and a block of queries: it packs the keys and
 * values of that head once, then forms the scores of a few queries at a time, takes their softmax
 * over whole rows and multiplies the values. */
#include "nn/cpu/cpu.h"

#include <math.h>
#include <string.h>

#define TASK_QUERIES 256 /* queries of a task */
#define STEP_QUERIES 48  /* queries whose scores exist at once; a multiple of every mr */
#define BLOCK_KEYS 512   /* keys whose products are added in one pass */

typedef struct attention {
    const cpu_kernels *kernels;
    const float *q, *k, *v;
    float *out;
    int64_t queries, keys, dim, q_stride, k_stride, v_stride, out_stride, blocks;
    int group; /* query heads for each key head */
    bool causal, bf16;
    float scale;
    float *scratch;
    int64_t scratch_floats, key_floats, value_floats, score_stride;
} attention;

/* c [m, n] (+)= rows [m, k] times panels of nr columns. Both are padded: m to whole tiles by the
 * caller's rows, n to whole panels by the width of c. */
static void multiply(const cpu_kernels *kernels, const float *rows, int64_t row_stride, int64_t m,
                     const float *panels, int64_t panel_stride, int64_t n, int64_t k,
                     bool accumulate, float *c, int64_t ldc)
{
    const float *row[KERNEL_MAX_MR];
    for (int64_t i = 0; i < m; i += kernels->mr) {
        for (int r = 0; r < kernels->mr; r++)
            row[r] = rows + min64(i + r, m - 1) * row_stride;
        for (int64_t j = 0; j < n; j += kernels->nr)
            kernels->tile(1, k, row, panels + j / kernels->nr * panel_stride, NULL, accumulate,
                          c + i * ldc + j, ldc);
    }
}

static void attention_task(void *user, int64_t index, int worker)
{
    const attention *a = user;
    const cpu_kernels *kernels = a->kernels;
    const int64_t nr = kernels->nr, dim = a->dim;
    int64_t head = index / a->blocks, first = index % a->blocks * TASK_QUERIES;
    int64_t last = min64(first + TASK_QUERIES, a->queries);
    int64_t keys = a->causal ? last : a->keys; /* no query of this task looks further */

    float *key_panels = a->scratch + worker * a->scratch_floats;
    float *value_panels = key_panels + a->key_floats;
    float *scores = value_panels + a->value_floats;
    float *sums = scores + STEP_QUERIES * a->score_stride; /* [STEP_QUERIES][dim, padded] */
    float *queries = sums + STEP_QUERIES * ceil_div(dim, nr) * nr;
    const float *k = a->k + head / a->group * dim, *v = a->v + head / a->group * dim;
    for (int64_t j = 0; j < keys; j += nr)
        kernels->pack(key_panels + j * dim, k + j * a->k_stride, DTYPE_F32, a->k_stride, 1,
                      (int)min64(nr, keys - j), dim, a->bf16);
    for (int64_t d = 0; d < dim; d += nr)
        kernels->pack_columns(value_panels + d * keys, v + d, a->v_stride, (int)min64(nr, dim - d),
                              keys, a->bf16);

    for (int64_t start = first; start < last; start += STEP_QUERIES) {
        int64_t count = min64(STEP_QUERIES, last - start);
        int64_t visible = a->causal ? start + count : keys;
        for (int64_t i = 0; i < count; i++) {
            const float *q = a->q + (start + i) * a->q_stride + head * dim;
            if (a->bf16)
                kernels->round_bf16(queries + i * dim, q, dim);
            else
                memcpy(queries + i * dim, q, (size_t)dim * sizeof(float));
        }
        multiply(kernels, queries, dim, count, key_panels, dim * nr, visible, dim, false, scores,
                 a->score_stride);
        float total[STEP_QUERIES];
        for (int64_t i = 0; i < count; i++) {
            float *row = scores + i * a->score_stride;
            total[i] =
                kernels->softmax(row, a->causal ? start + i + 1 : visible, visible, a->scale);
            if (a->bf16)
                kernels->round_bf16(row, row, visible);
        }
        int64_t width = ceil_div(dim, nr) * nr;
        for (int64_t j = 0; j < visible; j += BLOCK_KEYS)
            multiply(kernels, scores + j, a->score_stride, count, value_panels + j * nr, keys * nr,
                     dim, min64(BLOCK_KEYS, visible - j), j > 0, sums, width);
        for (int64_t i = 0; i < count; i++) {
            float *out = a->out + (start + i) * a->out_stride + head * dim;
            memcpy(out, sums + i * width, (size_t)dim * sizeof(float));
            kernels->scale(out, dim, 1.0f / total[i]);
        }
    }
}

void cpu_attention(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                   const nn_tensor *v, int heads, int kv_heads, bool causal)
{
    size_t mark = nn_mark(c);
    const int64_t nr = c->params.kernels->nr;
    int64_t dim = q->n[1] / heads, keys = k->n[0];
    attention a = {
        .kernels = c->params.kernels,
        .q = q->data,
        .k = k->data,
        .v = v->data,
        .out = out->data,
        .queries = q->n[0],
        .keys = keys,
        .dim = dim,
        .q_stride = q->stride,
        .k_stride = k->stride,
        .v_stride = v->stride,
        .out_stride = out->stride,
        .blocks = ceil_div(q->n[0], TASK_QUERIES),
        .group = heads / kv_heads,
        .causal = causal,
        .bf16 = c->params.precision != NN_F32,
        .scale = (float)(1 / sqrt((double)dim)),
        .key_floats = ceil_div(keys, nr) * nr * dim,
        .value_floats = ceil_div(dim, nr) * nr * keys,
        .score_stride = ceil_div(keys, nr) * nr,
    };
    a.scratch_floats = a.key_floats + a.value_floats + STEP_QUERIES * a.score_stride +
                       STEP_QUERIES * ceil_div(dim, nr) * nr + STEP_QUERIES * dim;
    a.scratch_floats = ceil_div(a.scratch_floats, 16) * 16;
    a.scratch =
        nn_scratch(c, (size_t)(a.scratch_floats * pool_threads(c->params.threads)), sizeof(float));
    cpu_run(c, a.blocks * heads, attention_task, &a);
    nn_release(c, mark);
}
