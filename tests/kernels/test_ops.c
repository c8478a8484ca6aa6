/* Attention and linear layers on the CPU, on every tier that this processor can run, against plain
 * loops in double, on random shapes; and the same bytes for any number of threads.
 *
 * The seed is printed; give it as SEED in the environment to repeat a failure. */
#include "test_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/mem.h"
#include "nn/cpu/kernels.h"
#include "nn/nn.h"

static int rounds = 16;         /* CT_EMULATED: 2 */
#define MOST_PRODUCTS (8 << 20) /* of a case, for the sake of time */

static uint64_t seed = 1;

static uint32_t random32(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static int64_t random_between(int64_t low, int64_t high)
{
    return low + random32() % (high - low + 1);
}

/* Uniform in -range..range. */
static float random_float(float range)
{
    return ((float)random32() / 1073741824.0f - 1.0f) * range;
}

static void *allocate(int64_t bytes)
{
    void *p = calloc(1, (size_t)bytes);
    assert_non_null(p);
    return p;
}

static float *random_floats(int64_t n, float range)
{
    float *x = allocate(n * 4);
    for (int64_t i = 0; i < n; i++)
        x[i] = random_float(range);
    return x;
}

static float bf16_of(float x)
{
    return bf16_to_float(bf16_from_float(x));
}

static double relative_l2(const float *got, const double *want, int64_t n)
{
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        error += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return sqrt(error / norm);
}

/* ---- Running an operation -------------------------------------------------------------------- */

static const int thread_counts[] = {1, 2, 3, 7};
enum { POOLS = sizeof thread_counts / sizeof *thread_counts };
static pool *pools[POOLS];

/* Calls body in a dry run and then for real, on thread_counts[at] threads. */
static void run_network(const cpu_kernels *kernels, int at, nn_precision precision,
                        void (*body)(nn *c, void *user), void *user)
{
    nn_params params = {.allocator = &mem_default,
                        .threads = pools[at],
                        .kernels = kernels,
                        .precision = precision,
                        .dry = true};
    for (int real = 0; real < 2; real++) {
        nn *c;
        ct_error error;
        params.dry = !real;
        test_ok(nn_create(&c, &params, &error), &error);
        body(c, user);
        test_ok(nn_status(c, &error), &error);
        params.arena_bytes = nn_peak(c);
        nn_free(c);
    }
}

#define SENTINEL 12345.678f

/* A matrix of m x n numbers inside a wider one, whose other numbers are SENTINEL. */
static nn_tensor put_matrix(nn *c, const float *data, int64_t m, int64_t n, int64_t extra)
{
    nn_tensor whole = nn_new2(c, m, n + extra);
    nn_tensor part = nn_columns(&whole, extra / 2, n);
    for (int64_t i = 0; whole.data && i < m; i++) {
        for (int64_t j = 0; j < n + extra; j++)
            whole.data[i * (n + extra) + j] = SENTINEL;
        memcpy(part.data + i * part.stride, data + i * n, (size_t)n * 4);
    }
    return part;
}

static void get_matrix(const nn_tensor *part, float *data, int64_t extra)
{
    const int64_t n = part->n[1];
    for (int64_t i = 0; part->data && i < part->n[0]; i++) {
        const float *row = part->data + i * part->stride;
        memcpy(data + i * n, row, (size_t)n * 4);
        for (int64_t j = -extra / 2; j < n + extra - extra / 2; j++)
            if ((j < 0 || j >= n) && row[j] != SENTINEL)
                fail_msg("wrote beside row %lld", (long long)i);
    }
}

static void each_tier(void (*check)(const cpu_kernels *kernels))
{
    cpu_kernels k;
    for (int i = 0; cpu_kernels_tier(&k, i); i++)
        if (cpu_kernels_usable(&k))
            for (int round = 0; round < rounds; round++)
                check(&k);
}

/* ---- Attention ------------------------------------------------------------------------------- */

typedef struct attention {
    int64_t queries, keys, dim;
    int heads, kv_heads;
    bool causal, in_place;
    int64_t extra; /* how much wider the matrices are that q, k and v are parts of */
    float *q, *k, *v, *out;
} attention;

static void attend(nn *c, void *user)
{
    attention *a = user;
    const int64_t width = a->heads * a->dim, kv_width = a->kv_heads * a->dim;
    nn_tensor q = put_matrix(c, a->q, a->queries, width, a->extra);
    nn_tensor k = put_matrix(c, a->k, a->keys, kv_width, a->extra);
    nn_tensor v = put_matrix(c, a->v, a->keys, kv_width, a->extra);
    nn_tensor out = a->in_place ? q : put_matrix(c, a->q, a->queries, width, a->extra);
    nn_attention(c, &out, &q, &k, &v, a->heads, a->kv_heads, a->causal);
    get_matrix(&out, a->out, a->extra);
}

/* One row of out in double, and the sum of |numerator * value| of each number of it. */
static void attention_row(const attention *a, bool round, int64_t head, int64_t query, double *out,
                          double *magnitude)
{
    const int64_t width = a->heads * a->dim, kv_width = a->kv_heads * a->dim;
    const int64_t visible = a->causal ? query + 1 : a->keys;
    const int64_t shared = head / (a->heads / a->kv_heads);
    double *p = allocate(visible * 8), max = -INFINITY, sum = 0;
    for (int64_t j = 0; j < visible; j++) {
        double dot = 0;
        for (int64_t d = 0; d < a->dim; d++) {
            float x = a->q[query * width + head * a->dim + d];
            float y = a->k[j * kv_width + shared * a->dim + d];
            dot += (double)(round ? bf16_of(x) : x) * (double)(round ? bf16_of(y) : y);
        }
        p[j] = dot / sqrt((double)a->dim);
        max = p[j] > max ? p[j] : max;
    }
    for (int64_t j = 0; j < visible; j++)
        sum += p[j] = exp(p[j] - max);
    for (int64_t d = 0; d < a->dim; d++) {
        out[d] = magnitude[d] = 0;
        for (int64_t j = 0; j < visible; j++) {
            float x = a->v[j * kv_width + shared * a->dim + d];
            double value = (double)(round ? bf16_of(x) : x) * p[j] / sum;
            out[d] += value;
            magnitude[d] += fabs(value);
        }
    }
    free(p);
}

static void compare_attention(const cpu_kernels *kernels, const attention *a, bool round)
{
    const int64_t width = a->heads * a->dim, n = a->queries * width;
    double *want = allocate(n * 8), *magnitude = allocate(n * 8);
    for (int64_t i = 0; i < a->queries; i++)
        for (int64_t h = 0; h < a->heads; h++)
            attention_row(a, round, h, i, want + i * width + h * a->dim,
                          magnitude + i * width + h * a->dim);
    char what[160];
    snprintf(what, sizeof what, "%s %s: %lld queries, %lld keys, %d heads (%d) of %lld%s",
             kernels->name, round ? "bf16" : "f32", (long long)a->queries, (long long)a->keys,
             a->heads, a->kv_heads, (long long)a->dim, a->causal ? ", causal" : "");
    double l2 = relative_l2(a->out, want, n);
    if (!round && !(l2 <= 2e-6))
        fail_msg("%s: relative L2 %.2e", what, l2);
    /* A numerator is rounded to 8 places, by at most 2^-8 of itself, and its sum is not; the rest
     * is rounding in float32. */
    for (int64_t i = 0; i < n; i++) {
        double bound = (round ? 1.0 / 256 + 1e-5 : 1e-5) * magnitude[i];
        if (!(fabs((double)a->out[i] - want[i]) <= bound))
            fail_msg("%s: number %lld is %g, not %g", what, (long long)i, (double)a->out[i],
                     want[i]);
    }
    free(want);
    free(magnitude);
}

static void attention_create(attention *a)
{
    static const int64_t dims[] = {8, 40, 64, 128};
    *a = (attention){.queries = random_between(1, 300),
                     .keys = random_between(1, 300),
                     .dim = dims[random32() % 4],
                     .kv_heads = (int)random_between(1, 2),
                     .causal = random32() % 3 == 0,
                     .in_place = random32() % 3 == 0,
                     .extra = random32() & 1 ? 2 * random_between(1, 20) : 0};
    a->heads = a->kv_heads * (int)random_between(1, 3);
    if (random32() % 4 == 0)
        a->keys = random_between(500, 1100); /* several blocks */
    if (a->causal)
        a->queries = a->keys;
    while (a->queries * a->keys * a->dim * a->heads > MOST_PRODUCTS && a->heads > a->kv_heads)
        a->heads -= a->kv_heads;
    while (a->queries * a->keys * a->dim * a->heads > MOST_PRODUCTS && !a->causal)
        a->queries = (a->queries + 1) / 2;
    a->q = random_floats(a->queries * a->heads * a->dim, 2);
    a->k = random_floats(a->keys * a->kv_heads * a->dim, 2);
    a->v = random_floats(a->keys * a->kv_heads * a->dim, 1);
    a->out = allocate(a->queries * a->heads * a->dim * 4);
    /* Scores that grow along the keys, so that every block has a greater one. */
    if (random32() & 1)
        for (int64_t i = 0; i < a->keys * a->kv_heads * a->dim; i++)
            a->k[i] *= (float)i / (float)(a->keys * a->kv_heads * a->dim);
}

static void attention_free(attention *a)
{
    free(a->q);
    free(a->k);
    free(a->v);
    free(a->out);
}

static void check_attention(const cpu_kernels *kernels)
{
    attention a;
    attention_create(&a);
    for (nn_precision p = NN_F32; p <= NN_INT8; p++) {
        run_network(kernels, 0, p, attend, &a);
        compare_attention(kernels, &a, p != NN_F32);
    }
    attention_free(&a);
}

static void check_attention_threads(const cpu_kernels *kernels)
{
    attention a;
    attention_create(&a);
    const int64_t bytes = a.queries * a.heads * a.dim * 4;
    nn_precision p = random32() & 1 ? NN_F32 : NN_BF16;
    run_network(kernels, 0, p, attend, &a);
    void *first = allocate(bytes);
    memcpy(first, a.out, (size_t)bytes);
    for (int i = 1; i < POOLS; i++) {
        memset(a.out, 0, (size_t)bytes);
        run_network(kernels, i, p, attend, &a);
        assert_memory_equal(a.out, first, (size_t)bytes);
    }
    free(first);
    attention_free(&a);
}

/* A query's row is the same bytes whatever other queries there are. */
static void check_attention_rows(const cpu_kernels *kernels)
{
    attention a;
    do {
        attention_create(&a);
        if (a.causal)
            attention_free(&a);
    } while (a.causal);
    const int64_t width = a.heads * a.dim, all = a.queries, first = random_between(0, all - 1);
    const nn_precision p = random32() & 1 ? NN_F32 : NN_BF16;
    float *q = a.q, *out = a.out;
    run_network(kernels, 0, p, attend, &a);
    a.queries = random_between(1, all - first);
    a.q = q + first * width;
    a.out = allocate(a.queries * width * 4);
    run_network(kernels, (int)random_between(0, POOLS - 1), p, attend, &a);
    assert_memory_equal(a.out, out + first * width, (size_t)(a.queries * width * 4));
    free(a.out);
    a.q = q;
    a.out = out;
    attention_free(&a);
}

/* What is not a number stays visible: in the query's row, and in no other. */
static void check_attention_nan(const cpu_kernels *kernels)
{
    attention a;
    attention_create(&a);
    const int64_t width = a.heads * a.dim, bad = random_between(0, a.queries - 1);
    a.q[bad * width] = NAN;
    run_network(kernels, 0, random32() & 1 ? NN_F32 : NN_BF16, attend, &a);
    for (int64_t i = 0; i < a.queries; i++)
        for (int64_t d = 0; d < a.dim; d++)
            assert_true(!isnan(a.out[i * width + d]) == (i != bad));
    attention_free(&a);
}

/* ---- Linear: weights ------------------------------------------------------------------------- */

/* A weight in a format of files, and the numbers that it stands for. */
typedef struct weight {
    nn_weight w;
    float *values; /* [N, K], exact */
    unsigned char *data, *scales, *biases;
} weight;

static void put_number(unsigned char *at, dtype type, float value)
{
    if (type == DTYPE_F32) {
        memcpy(at, &value, 4);
    } else {
        uint16_t half = type == DTYPE_BF16 ? bf16_from_float(value) : f16_from_float(value);
        memcpy(at, &half, 2);
    }
}

/* Affine groups whose numbers are exact in float32: scales are m / 1024, m < 64, and biases
 * n / 1024, |n| < 256. */
static void affine_create(weight *w, int64_t n, int64_t k)
{
    static const int bits[] = {2, 3, 4, 5, 6, 8};
    static const dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    w->w.bits = bits[random32() % 6];
    w->w.type = types[random32() % 3];
    do
        w->w.group = 32 << random32() % 3;
    while (k % w->w.group);
    const int64_t row = k * w->w.bits / 8, groups = k / w->w.group;
    const int64_t size = (int64_t)dtype_size(w->w.type);
    w->data = allocate(n * row + 3);
    w->scales = allocate(n * groups * size + 3);
    w->biases = allocate(n * groups * size + 3);
    const int64_t shift = random32() & 3; /* files align to nothing */
    w->w.data = w->data + shift;
    w->w.scales = w->scales + shift;
    w->w.biases = w->biases + shift;
    for (int64_t i = 0; i < n; i++)
        for (int64_t g = 0; g < groups; g++) {
            float scale = (float)random_between(1, 63) / 1024;
            float bias = (float)random_between(-255, 255) / 1024;
            put_number(w->scales + shift + (i * groups + g) * size, w->w.type, scale);
            put_number(w->biases + shift + (i * groups + g) * size, w->w.type, bias);
            for (int64_t j = g * w->w.group; j < (g + 1) * w->w.group; j++) {
                int64_t code = random_between(0, (1 << w->w.bits) - 1);
                for (int b = 0; b < w->w.bits; b++) {
                    int64_t bit = j * w->w.bits + b;
                    w->data[shift + i * row + bit / 8] |=
                        (unsigned char)((code >> b & 1) << bit % 8);
                }
                w->values[i * k + j] = scale * (float)code + bias;
            }
        }
}

static void numbers_create(weight *w, int64_t n, int64_t k)
{
    static const dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_F8_E4M3, DTYPE_F8_E5M2};
    w->w.type = types[random32() % 5];
    const int64_t size = (int64_t)dtype_size(w->w.type), count = n * k;
    w->data = allocate(count * size + 3);
    unsigned char *at = w->data + (random32() & 1 ? 0 : random32() & 3);
    w->w.data = at;
    if (size == 1) {
        w->w.factor = random32() & 1 ? 0 : 0.25f;
        for (int64_t i = 0; i < count; i++)
            at[i] = (unsigned char)(random32() & 0xbf); /* finite in either format, up to 2 */
    } else {
        for (int64_t i = 0; i < count; i++)
            put_number(at + i * size, w->w.type, random_float(1));
    }
    dtype_to_float(w->values, at, w->w.type, (size_t)count);
    for (int64_t i = 0; w->w.factor != 0 && i < count; i++)
        w->values[i] *= w->w.factor;
}

static weight weight_create(int64_t n, int64_t k)
{
    weight w = {.w = {.name = "w", .rank = 2, .n = {n, k, 1, 1}}};
    w.values = allocate(n * k * 4);
    if (k % 32 == 0 && random32() % 3)
        affine_create(&w, n, k);
    else
        numbers_create(&w, n, k);
    return w;
}

static void weight_free(weight *w)
{
    free(w->values);
    free(w->data);
    free(w->scales);
    free(w->biases);
}

static const char *weight_format(const weight *w)
{
    static char text[64];
    if (w->w.bits)
        snprintf(text, sizeof text, "%d bits, groups of %d, scales of %d", w->w.bits,
                 (int)w->w.group, (int)w->w.type);
    else
        snprintf(text, sizeof text, "type %d", (int)w->w.type);
    return text;
}

/* ---- Linear: operations ---------------------------------------------------------------------- */

typedef struct linear {
    int64_t m, n, k, extra;
    float *x, *out; /* [m, k]; [m, n], also what an epilogue adds to */
    weight w, up;
    float *bias, *gate;
    nn_weight bias_weight;
    nn_epilogue epilogue; /* gate is put in by multiply */
    bool with_gate, prepared;
    const nn_weight *take; /* what multiply multiplies with: &w.w or &up.w */
} linear;

static void multiply(nn *c, void *user)
{
    linear *l = user;
    nn_tensor x = put_matrix(c, l->x, l->m, l->k, l->extra);
    nn_tensor out = put_matrix(c, l->out, l->m, l->n, l->extra);
    nn_tensor gate = put_matrix(c, l->gate, 1, l->n, 0);
    nn_epilogue e = l->epilogue;
    if (l->with_gate)
        e.gate = &gate;
    if (l->prepared) {
        nn_tensor operand = nn_new_operand(c, l->m, l->k);
        nn_prepare(c, &operand, &x);
        nn_linear(c, &out, &operand, l->take, &e);
    } else {
        nn_linear(c, &out, &x, l->take, &e);
    }
    get_matrix(&out, l->out, l->extra);
}

static void linear_create(linear *l)
{
    *l = (linear){.m = random_between(1, 200),
                  .n = random_between(1, 150),
                  .k = random_between(1, 300),
                  .extra = random32() & 1 ? 2 * random_between(1, 9) : 0};
    if (random32() % 3)
        l->k = 32 * random_between(1, 24); /* groups fit, and rotations */
    if (random32() % 8 == 0)
        l->k = 128 * random_between(8, 20); /* several blocks of words */
    if (random32() % 8 == 0)
        l->n = random_between(300, 600);
    while (l->m * l->n * l->k > MOST_PRODUCTS)
        l->m = (l->m + 1) / 2;
    l->x = random_floats(l->m * l->k, 2);
    l->out = random_floats(l->m * l->n, 1);
    l->w = weight_create(l->n, l->k);
    l->up = weight_create(l->n, l->k);
    l->take = &l->w.w;
    l->bias = random_floats(l->n, 1);
    l->gate = random_floats(l->n, 1);
    l->bias_weight = (nn_weight){
        .name = "bias", .type = DTYPE_F32, .rank = 1, .n = {l->n, 1, 1, 1}, .data = l->bias};
}

static void linear_free(linear *l)
{
    weight_free(&l->w);
    weight_free(&l->up);
    free(l->x);
    free(l->out);
    free(l->bias);
    free(l->gate);
}

static void describe(char *text, size_t size, const cpu_kernels *kernels, const linear *l,
                     const char *precision)
{
    snprintf(text, size, "%s %s: %lld x %lld x %lld, %s", kernels->name, precision, (long long)l->m,
             (long long)l->n, (long long)l->k, weight_format(&l->w));
}

/* Products of numbers that are known exactly: what is left is the rounding of sums in float32. */
static void compare_float(const cpu_kernels *kernels, const linear *l, bool round)
{
    double *want = allocate(l->m * l->n * 8);
    for (int64_t i = 0; i < l->m; i++)
        for (int64_t j = 0; j < l->n; j++)
            for (int64_t d = 0; d < l->k; d++) {
                float x = l->x[i * l->k + d], y = l->w.values[j * l->k + d];
                want[i * l->n + j] +=
                    (double)(round ? bf16_of(x) : x) * (double)(round ? bf16_of(y) : y);
            }
    char what[200];
    describe(what, sizeof what, kernels, l, round ? "bf16" : "f32");
    double l2 = relative_l2(l->out, want, l->m * l->n);
    if (!(l2 <= 2e-6))
        fail_msg("%s: relative L2 %.2e", what, l2);
    free(want);
}

/* Blocks of a row times a Hadamard matrix, in place; returns the greatest magnitude. */
static double rotate(double *x, int64_t k, int64_t block)
{
    for (int64_t at = 0; at < k; at += block)
        for (int64_t d = 1; d < block; d *= 2)
            for (int64_t i = at; i < at + block; i++)
                if (!((i - at) & d)) {
                    double a = x[i], b = x[i + d];
                    x[i] = (a + b) / sqrt(2);
                    x[i + d] = (a - b) / sqrt(2);
                }
    double max = 0;
    for (int64_t i = 0; i < k; i++)
        max = fabs(x[i]) > max ? fabs(x[i]) : max;
    return max;
}

/* Rows rotated as nn_linear does it, with what each number is off by at most (half a step of 127
 * below the row's greatest) and the norms of the rows. */
typedef struct rotated {
    double *x, *half_step, *magnitude, *squares;
} rotated;

static rotated rotated_create(const float *x, int64_t rows, int64_t k, int64_t block)
{
    rotated r = {allocate(rows * k * 8), allocate(rows * 8), allocate(rows * 8),
                 allocate(rows * 8)};
    for (int64_t i = 0; i < rows; i++) {
        double *row = r.x + i * k;
        for (int64_t d = 0; d < k; d++)
            row[d] = (double)x[i * k + d];
        r.half_step[i] = rotate(row, k, block) / 127 / 2;
        for (int64_t d = 0; d < k; d++) {
            r.magnitude[i] += fabs(row[d]);
            r.squares[i] += row[d] * row[d];
        }
    }
    return r;
}

static void rotated_free(rotated *r)
{
    free(r->x);
    free(r->half_step);
    free(r->magnitude);
    free(r->squares);
}

/* 8-bit numbers are a and b with errors up to half a step s: a sum is off by no more than
 * s_a sum |b| + s_b sum |a| + k s_a s_b; and since errors are spread evenly over the step, their
 * mean square is s^2 / 3 for each number, which the whole result must show. */
static void compare_int8(const cpu_kernels *kernels, const linear *l)
{
    int64_t block = 256;
    while (l->k % block)
        block /= 2;
    if (block < 16 || !l->take->outliers)
        block = 1;
    rotated a = rotated_create(l->x, l->m, l->k, block);
    rotated b = rotated_create(l->w.values, l->n, l->k, block);
    double squares = 0, expected = 0;
    char what[200];
    describe(what, sizeof what, kernels, l, "int8");
    for (int64_t i = 0; i < l->m; i++)
        for (int64_t j = 0; j < l->n; j++) {
            double want = 0, sa = a.half_step[i], sb = b.half_step[j];
            for (int64_t d = 0; d < l->k; d++)
                want += a.x[i * l->k + d] * b.x[j * l->k + d];
            double bound = sa * b.magnitude[j] + sb * a.magnitude[i] + (double)l->k * sa * sb;
            double error = (double)l->out[i * l->n + j] - want;
            if (!(fabs(error) <= 1.0001 * bound + 1e-6 * fabs(want)))
                fail_msg("%s: number (%lld, %lld) is %g, not %g, which is off by more than %g",
                         what, (long long)i, (long long)j, (double)l->out[i * l->n + j], want,
                         bound);
            squares += error * error;
            expected += (sa * sa * b.squares[j] + sb * sb * a.squares[i]) / 3;
        }
    /* Few errors tell little about their mean. */
    if (l->m > 20 && l->n > 20 && l->k >= 32 && !(squares <= 1.5 * expected))
        fail_msg("%s: the mean square error is %.2f of what rounding explains", what,
                 squares / expected);
    rotated_free(&a);
    rotated_free(&b);
}

static void check_linear(const cpu_kernels *kernels)
{
    linear l;
    linear_create(&l);
    const int64_t bytes = l.m * l.n * 4;
    float *plain = allocate(bytes);
    for (nn_precision p = NN_F32; p <= NN_INT8; p++) {
        l.prepared = false;
        run_network(kernels, 0, p, multiply, &l);
        if (p == NN_INT8)
            compare_int8(kernels, &l);
        else
            compare_float(kernels, &l, p == NN_BF16);
        memcpy(plain, l.out, (size_t)bytes);
        l.prepared = true;
        memset(l.out, 0, (size_t)bytes);
        run_network(kernels, 1, p, multiply, &l);
        assert_memory_equal(l.out, plain, (size_t)bytes);
    }
    /* What has outliers is rotated. */
    l.prepared = false;
    nn_weight marked = l.w.w;
    marked.outliers = true;
    l.take = &marked;
    run_network(kernels, 0, NN_INT8, multiply, &l);
    compare_int8(kernels, &l);
    l.take = &l.w.w;
    /* What is sensitive is computed as under bf16. */
    run_network(kernels, 0, NN_BF16, multiply, &l);
    memcpy(plain, l.out, (size_t)bytes);
    l.w.w.sensitive = true;
    memset(l.out, 0, (size_t)bytes);
    run_network(kernels, 0, NN_INT8, multiply, &l);
    assert_memory_equal(l.out, plain, (size_t)bytes);
    free(plain);
    linear_free(&l);
}

static double activate(nn_activation activation, double x)
{
    switch (activation) {
    case NN_SILU: return x / (1 + exp(-x));
    case NN_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    default: return x;
    }
}

/* The epilogue on the products that the operation itself gives without one. */
static void check_epilogue(const cpu_kernels *kernels)
{
    linear l;
    linear_create(&l);
    const nn_precision p = (nn_precision)(random32() % 3);
    const int64_t count = l.m * l.n;
    float *before = allocate(count * 4), *value = allocate(count * 4), *up = allocate(count * 4);
    double *want = allocate(count * 8);
    memcpy(before, l.out, (size_t)count * 4);
    run_network(kernels, 0, p, multiply, &l);
    memcpy(value, l.out, (size_t)count * 4);
    l.take = &l.up.w;
    run_network(kernels, 0, p, multiply, &l);
    memcpy(up, l.out, (size_t)count * 4);
    l.take = &l.w.w;

    const bool with_up = random32() % 3 == 0;
    l.epilogue.up = with_up ? &l.up.w : NULL;
    l.epilogue.bias = !with_up && random32() & 1 ? &l.bias_weight : NULL;
    l.epilogue.activation = (nn_activation)(random32() % 3);
    l.epilogue.add = random32() & 1;
    l.with_gate = random32() & 1;
    l.prepared = random32() & 1;
    memcpy(l.out, before, (size_t)count * 4);
    run_network(kernels, (int)random_between(0, POOLS - 1), p, multiply, &l);
    for (int64_t i = 0; i < count; i++) {
        double y = (double)value[i] + (l.epilogue.bias ? (double)l.bias[i % l.n] : 0);
        y = activate(l.epilogue.activation, y);
        y *= with_up ? (double)up[i] : 1;
        y *= l.with_gate ? (double)l.gate[i % l.n] : 1;
        want[i] = y + (l.epilogue.add ? (double)before[i] : 0);
    }
    double l2 = relative_l2(l.out, want, count);
    if (!(l2 <= 1e-6))
        fail_msg("%s: epilogue with activation %d%s%s%s%s: relative L2 %.2e", kernels->name,
                 (int)l.epilogue.activation, with_up ? ", up" : "", l.epilogue.bias ? ", bias" : "",
                 l.with_gate ? ", gate" : "", l.epilogue.add ? ", add" : "", l2);
    free(before);
    free(value);
    free(up);
    free(want);
    linear_free(&l);
}

static void check_linear_threads(const cpu_kernels *kernels)
{
    linear l;
    linear_create(&l);
    const nn_precision p = (nn_precision)(random32() % 3);
    const int64_t bytes = l.m * l.n * 4;
    if (random32() & 1) {
        l.epilogue.up = &l.up.w;
        l.epilogue.activation = NN_SILU;
    }
    run_network(kernels, 0, p, multiply, &l);
    float *first = allocate(bytes);
    memcpy(first, l.out, (size_t)bytes);
    for (int i = 1; i < POOLS; i++) {
        memset(l.out, 0, (size_t)bytes);
        run_network(kernels, i, p, multiply, &l);
        assert_memory_equal(l.out, first, (size_t)bytes);
    }
    free(first);
    linear_free(&l);
}

/* A row of a product is the same bytes whatever other rows there are. */
static void check_linear_rows(const cpu_kernels *kernels)
{
    linear l;
    linear_create(&l);
    const nn_precision p = (nn_precision)(random32() % 3);
    const int64_t all = l.m, first = random_between(0, all - 1);
    const int64_t count = random_between(1, all - first);
    float *out = l.out, *x = l.x, *alone = allocate(all * l.n * 4);
    if (random32() & 1) {
        l.epilogue.up = &l.up.w;
        l.epilogue.activation = NN_SILU;
    } else {
        l.epilogue.bias = &l.bias_weight;
        l.epilogue.activation = NN_GELU_TANH;
        l.epilogue.add = l.with_gate = true;
    }
    l.prepared = random32() & 1;
    memcpy(alone, out, (size_t)(all * l.n * 4));
    run_network(kernels, 0, p, multiply, &l);
    l.m = count;
    l.x = x + first * l.k;
    l.out = alone + first * l.n;
    run_network(kernels, (int)random_between(0, POOLS - 1), p, multiply, &l);
    assert_memory_equal(l.out, out + first * l.n, (size_t)(count * l.n * 4));
    l.x = x;
    l.out = out;
    free(alone);
    linear_free(&l);
}

/* ---- Norms ----------------------------------------------------------------------------------- */

/* A layer norm and a linear layer behind it, through numbers or through an operand. */
typedef struct normed {
    int64_t m, n, k;
    float *x, *scale, *shift, *w, *norm, *out;
    bool operand, layer;
} normed;

static void norm_and_multiply(nn *c, void *user)
{
    normed *a = user;
    nn_tensor x = nn_new2(c, a->m, a->k), scale = nn_new2(c, 1, a->k), shift = nn_new2(c, 1, a->k);
    nn_tensor h = a->operand ? nn_new_operand(c, a->m, a->k) : nn_new2(c, a->m, a->k);
    nn_tensor out = nn_new2(c, a->m, a->n);
    const nn_weight w = {.rank = 2, .n = {a->n, a->k}, .type = DTYPE_F32, .data = a->w};
    nn_upload(c, &x, a->x, a->m * a->k);
    nn_upload(c, &scale, a->scale, a->k);
    nn_upload(c, &shift, a->shift, a->k);
    nn_layer_norm(c, &h, &x, 1e-3, &scale, &shift);
    nn_linear(c, &out, &h, &w, NULL);
    if (!a->operand)
        nn_download(c, &h, a->norm, a->m * a->k);
    nn_download(c, &out, a->out, a->m * a->n);
}

static void check_layer_norm(const cpu_kernels *kernels)
{
    normed a = {
        .m = random_between(1, 70), .n = random_between(1, 40), .k = random_between(2, 300)};
    const int64_t bytes = a.m * a.n * 4;
    a.x = random_floats(a.m * a.k, 3);
    a.scale = random_floats(a.k, 2);
    a.shift = random_floats(a.k, 2);
    a.w = random_floats(a.n * a.k, 1);
    a.norm = allocate(a.m * a.k * 4);
    a.out = allocate(bytes);
    float *plain = allocate(bytes);
    double *want = allocate(a.m * a.k * 8);
    for (int64_t i = 0; i < a.m; i++) {
        double mean = 0, variance = 0;
        for (int64_t j = 0; j < a.k; j++)
            mean += (double)a.x[i * a.k + j] / (double)a.k;
        for (int64_t j = 0; j < a.k; j++)
            variance += pow((double)a.x[i * a.k + j] - mean, 2) / (double)a.k;
        for (int64_t j = 0; j < a.k; j++)
            want[i * a.k + j] =
                ((double)a.x[i * a.k + j] - mean) / sqrt(variance + 1e-3) * (double)a.scale[j] +
                (double)a.shift[j];
    }
    for (nn_precision p = NN_F32; p <= NN_INT8; p++) {
        a.operand = false;
        run_network(kernels, 0, p, norm_and_multiply, &a);
        if (!(relative_l2(a.norm, want, a.m * a.k) <= 1e-6))
            fail_msg("%s: layer norm: relative L2 %.2e", kernels->name,
                     relative_l2(a.norm, want, a.m * a.k));
        memcpy(plain, a.out, (size_t)bytes);
        a.operand = true;
        run_network(kernels, 2, p, norm_and_multiply, &a);
        assert_memory_equal(a.out, plain, (size_t)bytes);
    }
    free(a.x);
    free(a.scale);
    free(a.shift);
    free(a.w);
    free(a.norm);
    free(a.out);
    free(plain);
    free(want);
}

/* A norm that follows a product is that norm. */

static void product_and_norm(nn *c, void *user)
{
    normed *a = user;
    nn_tensor x = nn_new2(c, a->m, a->n), scale = nn_new2(c, 1, a->k), shift = nn_new2(c, 1, a->k);
    nn_tensor sum = nn_new2(c, a->m, a->k), h = nn_new2(c, a->m, a->k);
    const nn_weight w = {.rank = 2, .n = {a->k, a->n}, .type = DTYPE_F32, .data = a->w};
    const nn_weight norm = {.rank = 1, .n = {a->k}, .type = DTYPE_F32, .data = a->shift};
    const nn_next_norm next = {.out = &h,
                               .w = a->layer ? NULL : &norm,
                               .eps = 1e-3,
                               .scale = &scale,
                               .layer = a->layer,
                               .shift = a->layer ? &shift : NULL};
    nn_upload(c, &x, a->out, a->m * a->n);
    nn_upload(c, &sum, a->x, a->m * a->k);
    nn_upload(c, &scale, a->scale, a->k);
    nn_upload(c, &shift, a->shift, a->k);
    nn_linear(c, &sum, &x, &w, &(nn_epilogue){.add = true, .next = a->operand ? NULL : &next});
    if (a->operand && a->layer)
        nn_layer_norm(c, &h, &sum, 1e-3, &scale, &shift);
    else if (a->operand)
        nn_rms_norm(c, &h, &sum, &norm, 1e-3, &scale);
    nn_download(c, &h, a->norm, a->m * a->k);
}

static void check_norm_behind_linear(const cpu_kernels *kernels)
{
    normed a = {
        .m = random_between(1, 70), .n = random_between(1, 40), .k = random_between(2, 300)};
    const int64_t bytes = a.m * a.k * 4;
    a.x = random_floats(a.m * a.k, 3);
    a.out = random_floats(a.m * a.n, 1);
    a.scale = random_floats(a.k, 2);
    a.shift = random_floats(a.k, 2);
    a.w = random_floats(a.n * a.k, 1);
    float *fused = allocate(bytes), *apart = allocate(bytes);
    for (int layer = 0; layer < 2; layer++) {
        a.layer = layer;
        for (int twice = 0; twice < 2; twice++) {
            a.operand = twice;
            a.norm = twice ? apart : fused;
            run_network(kernels, 1, NN_F32, product_and_norm, &a);
        }
        assert_memory_equal(fused, apart, (size_t)bytes);
    }
    free(a.x);
    free(a.out);
    free(a.scale);
    free(a.shift);
    free(a.w);
    free(fused);
    free(apart);
}

/* ---- Main ------------------------------------------------------------------------------------ */

static void test_each_tier(void **state)
{
    void (*check)(const cpu_kernels *) = *state;
    each_tier(check);
}

int main(void)
{
    if (getenv("CT_EMULATED"))
        rounds = 2;
    if (getenv("SEED"))
        seed = strtoull(getenv("SEED"), NULL, 10);
    else
        seed = (uint64_t)(clock_seconds() * 1e6);
    fprintf(stderr, "# SEED=%llu\n", (unsigned long long)seed);
    for (int i = 0; i < POOLS; i++)
        if (pool_create(&pools[i], &mem_default, thread_counts[i], NULL) != CT_OK)
            return 1;
    const struct CMUnitTest tests[] = {
        {"attention", test_each_tier, NULL, NULL, (void *)check_attention},
        {"attention: threads", test_each_tier, NULL, NULL, (void *)check_attention_threads},
        {"attention: rows", test_each_tier, NULL, NULL, (void *)check_attention_rows},
        {"attention: not a number", test_each_tier, NULL, NULL, (void *)check_attention_nan},
        {"linear", test_each_tier, NULL, NULL, (void *)check_linear},
        {"linear: epilogues", test_each_tier, NULL, NULL, (void *)check_epilogue},
        {"layer norm", test_each_tier, NULL, NULL, (void *)check_layer_norm},
        {"norm behind a linear layer", test_each_tier, NULL, NULL,
         (void *)check_norm_behind_linear},
        {"linear: rows", test_each_tier, NULL, NULL, (void *)check_linear_rows},
        {"linear: threads", test_each_tier, NULL, NULL, (void *)check_linear_threads},
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (int i = 0; i < POOLS; i++)
        pool_free(pools[i]);
    return failed;
}
