/* Attention, block by block, so that the scores of all queries and keys never exist at once.
 *
 * First the keys and values of all heads are encoded and packed, once. Then a task takes a head and
 * a block of queries and goes over blocks of keys: scores of a panel of queries, their softmax as
 * far as it is known (each row has the greatest exponent so far and the sum of its numerators), and
 * the numerators times the values, added to sums that are scaled down when a greater exponent turns
 * up. So a block's keys and values stay in the second-level cache, and most scores in the first.
 *
 * While exponents are formed, scores are multiplied with log2(e) / sqrt(D): e^x = 2^(x log2 e).
 * How queries are cut changes no sum; keys are cut by their number and the kernel. */
#include "nn/cpu/operand.h"

#include <math.h>
#include <string.h>

#define TASK_QUERIES 128
#define BLOCK_KEYS 544 /* at most: half of 1088, the tokens of 512 x 512 pixels and a caption */
#define VALUE_WORDS 64 /* of keys, whose values are transposed at once */
#define VALUES_AHEAD 4 /* keys whose values are asked for before they are read: they lie apart */
#define ROW_UNIT 16    /* kernels take rows of numerators in multiples of it */
#define APART 16       /* words between rows whose length is a power of two: other cache sets */

typedef struct attention {
    product p; /* over the features of a head */
    const float *q, *k, *v;
    float *out;
    int64_t queries, keys, dim, q_stride, k_stride, v_stride, out_stride;
    int group; /* query heads for each key head */
    bool causal;
    float factor;

    int64_t block_q, blocks_q; /* queries of a task */
    int64_t block_k, blocks_k; /* keys: a multiple of nr and of key_unit */
    int64_t key_unit;          /* keys of a part are padded to a multiple of it */
    int64_t key_words;         /* of all keys as words of the second product, padding included */
    int64_t width;             /* of the sums: features, in whole panels */
    char *key_panels, *value_panels;
    size_t key_bytes, value_bytes; /* of a head */
    char *scratch;                 /* for each worker */
    size_t scratch_bytes;
} attention;

static int64_t common_multiple(int64_t a, int64_t b)
{
    int64_t x = a, y = b;
    while (y) {
        int64_t rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

/* ---- Keys and values ------------------------------------------------------------------------- */

static void pack_keys(const attention *a, int64_t head, int64_t first, int64_t last, char *scratch)
{
    const int64_t nr = a->p.gemm->nr;
    const float *columns[GEMM_MAX_NR];
    const column_panels keys = {.panels = a->key_panels + (size_t)head * a->key_bytes};
    for (int64_t j = first; j < last; j += nr) {
        for (int64_t i = 0; i < nr; i++)
            columns[i] = a->k + min64(j + i, a->keys - 1) * a->k_stride + head * a->dim;
        product_pack_floats(&a->p, &keys, j / nr, columns, scratch);
    }
}

/* The words of one row of values, or of two whose numbers share a word; high NULL: zeros. */
static void encode_values(const attention *a, char *out, const float *low, const float *high,
                          const float *zeros)
{
    const cpu_kernels *kernels = a->p.kernels;
    if (a->p.gemm->element == GEMM_BFLOAT16)
        kernels->encode_bf16_pairs((uint32_t *)(void *)out, low, high ? high : zeros, a->dim);
    else if (a->p.round)
        kernels->round_bf16((float *)(void *)out, low, a->dim);
    else
        memcpy(out, low, (size_t)a->dim * sizeof(float));
}

/* Columns are features here and words run along the keys, so values are transposed. */
static void pack_values(const attention *a, int64_t head, int64_t first, int64_t last,
                        char *scratch)
{
    const cpu_gemm *g = a->p.gemm;
    const int64_t nr = g->nr, per_word = product_per_word(&a->p);
    const int64_t most = round_up(VALUE_WORDS, a->key_unit), stride = most + APART;
    uint32_t *rows = (uint32_t *)(void *)scratch; /* [most][dim] */
    uint32_t *features = rows + most * a->dim;    /* [width][stride] */
    float *zeros = (float *)(void *)(features + a->width * stride);
    const void *columns[GEMM_MAX_NR];
    memset(features + a->dim * stride, 0, (size_t)((a->width - a->dim) * stride * 4));
    memset(zeros, 0, (size_t)a->dim * sizeof(float));
    int64_t end = round_up(last, a->key_unit) / per_word;
    for (int64_t w0 = first / per_word; w0 < end; w0 += most) {
        int64_t words = min64(most, end - w0);
        for (int64_t w = 0; w < words; w++) {
            int64_t key = (w0 + w) * per_word;
            const float *low = a->v + key * a->v_stride + head * a->dim;
            char *row = (char *)(rows + w * a->dim);
            for (int64_t i = 0; i < per_word; i++)
                cpu_fetch(a->v + min64(key + VALUES_AHEAD + i, a->keys - 1) * a->v_stride +
                              head * a->dim,
                          a->dim);
            if (key < a->keys)
                encode_values(a, row, low, key + 1 < a->keys ? low + a->v_stride : NULL, zeros);
            else
                memset(row, 0, (size_t)a->dim * 4);
        }
        a->p.kernels->transpose(features, stride, rows, a->dim, words, a->dim);
        for (int64_t d = 0; d < a->width; d += nr) {
            for (int64_t i = 0; i < nr; i++)
                columns[i] = features + (d + i) * stride;
            char *panel = a->value_panels + (size_t)head * a->value_bytes + d * a->key_words * 4;
            g->pack_columns(panel + w0 * nr * 4, columns, words);
        }
    }
}

static size_t pack_scratch(const attention *a)
{
    int64_t most = round_up(VALUE_WORDS, a->key_unit);
    size_t values = (size_t)(most * a->dim + a->width * (most + APART) + a->dim) * 4;
    size_t keys = operand_scratch(&a->p);
    return (values > keys ? values : keys) / 64 * 64 + 64;
}

static void pack_task(void *user, int64_t index, int worker)
{
    const attention *a = user;
    int64_t head = index / a->blocks_k, first = index % a->blocks_k * a->block_k;
    int64_t last = min64(first + a->block_k, a->keys);
    char *scratch = a->scratch + (size_t)worker * a->scratch_bytes;
    pack_keys(a, head, first, last, scratch);
    pack_values(a, head, first, last, scratch);
}

/* ---- Queries --------------------------------------------------------------------------------- */

/* What a task keeps of its block of queries, and of the panel of queries that it is at. */
typedef struct state {
    operand queries;
    float *sums;         /* [block_q][width]: numerators times values */
    float *top;          /* [block_q]: the greatest exponent so far */
    float *total;        /* [block_q]: of the numerators */
    float *scores;       /* [mr][score_stride] */
    char *probabilities; /* [mr][probability_stride]: numerators as words; for float32 the scores */
    char *packed;        /* the same as a panel */
    char *scratch;
    int64_t score_stride, probability_stride; /* in floats; in bytes */
} state;

static char *take(char *memory, size_t *used, size_t bytes)
{
    char *at = memory ? memory + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

/* Cuts a worker's memory; returns its size. memory may be NULL. */
static size_t cut(const attention *a, char *memory, state *s)
{
    const int64_t mr = a->p.gemm->mr, words = a->block_k / product_per_word(&a->p);
    size_t used = 0;
    char *queries = take(memory, &used, operand_bytes(&a->p, a->block_q));
    s->queries = operand_at(&a->p, a->block_q, queries);
    s->sums = (float *)(void *)take(memory, &used, (size_t)(a->block_q * a->width * 4));
    s->top = (float *)(void *)take(memory, &used, (size_t)(a->block_q * 4));
    s->total = (float *)(void *)take(memory, &used, (size_t)(a->block_q * 4));
    s->score_stride = a->block_k + APART;
    char *scores = take(memory, &used, (size_t)(mr * s->score_stride * 4));
    s->scores = (float *)(void *)scores;
    s->probability_stride = (words + APART) * 4;
    s->probabilities = scores;
    if (a->p.gemm->element == GEMM_BFLOAT16)
        s->probabilities = take(memory, &used, (size_t)(mr * s->probability_stride));
    s->packed = take(memory, &used, (size_t)(mr * words * 4));
    s->scratch = take(memory, &used, operand_scratch(&a->p));
    return used;
}

/* From scores of keys k0 .. k0+count-1 to numerators. row counts within the task, i within the
 * panel; the query sees valid of the keys. */
static void softmax_row(const attention *a, const state *s, int64_t row, int64_t i, int64_t k0,
                        int64_t valid, int64_t count)
{
    const cpu_kernels *kernels = a->p.kernels;
    float *scores = s->scores + i * s->score_stride;
    void *out = s->probabilities + i * s->probability_stride;
    if (valid > 0) {
        float top = a->factor * kernels->row_max(scores, valid);
        if (k0 == 0) {
            s->top[row] = top;
            s->total[row] = 0;
        } else if (top > s->top[row]) {
            float smaller = exp2f(s->top[row] - top);
            kernels->scale(s->sums + row * a->width, a->width, smaller);
            s->total[row] *= smaller;
            s->top[row] = top;
        }
    }
    if (a->p.gemm->element == GEMM_BFLOAT16) {
        s->total[row] += kernels->exp2_row_bf16(out, scores, valid, count, a->factor, s->top[row]);
        return;
    }
    s->total[row] += kernels->exp2_row(out, scores, valid, count, a->factor, s->top[row]);
    if (a->p.round)
        kernels->round_bf16(out, out, count);
}

/* A panel of queries and a block of keys. row is the panel's first within the task, query its
 * first of all. */
static void attend(const attention *a, const state *s, int64_t head, int64_t row, int64_t query,
                   int64_t rows, int64_t k0, int64_t k1)
{
    const cpu_gemm *g = a->p.gemm;
    const int64_t mr = g->mr, nr = g->nr, kv = head / a->group;
    const char *q = s->queries.panels + row * a->p.words * 4;
    const char *k = a->key_panels + (size_t)kv * a->key_bytes;
    const char *v = a->value_panels + (size_t)kv * a->value_bytes;
    for (int64_t j = k0; j < k1; j += nr)
        g->tile(a->p.words, q, k + j * a->p.words * 4, s->scores + (j - k0), s->score_stride,
                false);

    const int64_t count = round_up(k1 - k0, a->key_unit), per_word = product_per_word(&a->p);
    const void *source[GEMM_MAX_MR];
    for (int64_t i = 0; i < mr; i++) {
        /* Rows beyond the last query repeat it. */
        source[i] = s->probabilities + min64(i, rows - 1) * s->probability_stride;
        if (i >= rows)
            continue;
        int64_t valid = a->causal ? min64(k1, query + i + 1) - k0 : k1 - k0;
        softmax_row(a, s, row + i, i, k0, valid > 0 ? valid : 0, count);
    }
    g->pack_rows(s->packed, source, count / per_word);
    for (int64_t d = 0; d < a->width; d += nr)
        g->tile(count / per_word, s->packed, v + (d * a->key_words + k0 / per_word * nr) * 4,
                s->sums + row * a->width + d, a->width, k0 > 0);
}

static void attention_task(void *user, int64_t index, int worker)
{
    const attention *a = user;
    const cpu_gemm *g = a->p.gemm;
    const int64_t mr = g->mr;
    int64_t head = index / a->blocks_q, first = index % a->blocks_q * a->block_q;
    int64_t last = min64(first + a->block_q, a->queries);
    state s;
    cut(a, a->scratch + (size_t)worker * a->scratch_bytes, &s);

    for (int64_t m = first; m < last; m += mr) {
        const float *rows[GEMM_MAX_MR];
        for (int64_t i = 0; i < mr; i++)
            rows[i] = a->q + min64(m + i, last - 1) * a->q_stride + head * a->dim;
        operand_store_rows(&a->p, &s.queries, (m - first) / mr, rows, s.scratch);
    }
    if (g->begin)
        g->begin();
    for (int64_t k0 = 0; k0 < a->keys; k0 += a->block_k)
        for (int64_t m = first; m < last; m += mr) {
            int64_t rows = min64(mr, last - m);
            int64_t visible = a->causal ? min64(m + rows, a->keys) : a->keys;
            if (k0 < visible)
                attend(a, &s, head, m - first, m, rows, k0, min64(k0 + a->block_k, visible));
        }
    if (g->end)
        g->end();
    for (int64_t m = first; m < last; m++) {
        float *sums = s.sums + (m - first) * a->width;
        a->p.kernels->scale(sums, a->dim, 1 / s.total[m - first]);
        memcpy(a->out + m * a->out_stride + head * a->dim, sums, (size_t)a->dim * sizeof(float));
    }
}

/* How queries and keys are cut: by their number and the kernel, not by the number of threads. */
static void cut_blocks(attention *a)
{
    const cpu_gemm *g = a->p.gemm;
    const int64_t per_word = product_per_word(&a->p);
    a->blocks_q = ceil_div(a->queries, TASK_QUERIES);
    a->block_q = round_up(ceil_div(a->queries, a->blocks_q), g->mr);
    a->blocks_q = ceil_div(a->queries, a->block_q);

    a->key_unit = common_multiple(ROW_UNIT, g->step * per_word);
    const int64_t unit = common_multiple(a->key_unit, g->nr);
    a->blocks_k = ceil_div(a->keys, BLOCK_KEYS);
    a->block_k = round_up(ceil_div(a->keys, a->blocks_k), unit);
    a->blocks_k = ceil_div(a->keys, a->block_k);

    a->width = round_up(a->dim, g->nr);
    a->key_words = round_up(a->keys, a->key_unit) / per_word;
    a->key_bytes = (size_t)(round_up(a->keys, g->nr) * a->p.words * 4);
    a->value_bytes = (size_t)(a->width * a->key_words * 4);
}

void cpu_attention(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                   const nn_tensor *v, int heads, int kv_heads, bool causal)
{
    size_t mark = nn_mark(c);
    const size_t threads = (size_t)pool_threads(c->params.threads);
    int64_t dim = q->n[1] / heads;
    attention a = {
        .p = product_choose(c, dim, &(nn_weight){.sensitive = true}), /* not in 8 bits */
        .q = q->data,
        .k = k->data,
        .v = v->data,
        .out = out->data,
        .queries = q->n[0],
        .keys = k->n[0],
        .dim = dim,
        .q_stride = q->stride,
        .k_stride = k->stride,
        .v_stride = v->stride,
        .out_stride = out->stride,
        .group = heads / kv_heads,
        .causal = causal,
        .factor = (float)(1.4426950408889634 / sqrt((double)dim)),
    };
    a.p.slice = a.p.words; /* a product over a head's features is done at once */
    cut_blocks(&a);
    a.key_panels = nn_scratch(c, a.key_bytes, (size_t)kv_heads);
    a.value_panels = nn_scratch(c, a.value_bytes, (size_t)kv_heads);

    size_t packing = nn_mark(c);
    a.scratch_bytes = pack_scratch(&a);
    a.scratch = nn_scratch(c, a.scratch_bytes, threads);
    cpu_run(c, a.blocks_k * kv_heads, pack_task, &a);
    nn_release(c, packing);

    state s;
    a.scratch_bytes = cut(&a, NULL, &s);
    a.scratch = nn_scratch(c, a.scratch_bytes, threads);
    cpu_run(c, a.blocks_q * heads, attention_task, &a);
    nn_release(c, mark);
}
