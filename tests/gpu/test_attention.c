/* Attention on a GPU, in each of its ways, against plain loops in double; how far off it is, and
 * how fast. Without a GPU there is nothing to do. `--bench` adds the sizes of real models. */
#include "test_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "nn/cuda/cuda.h"

#define SKIPPED 77    /* what meson takes for a test that could not be run */
#define CHECKED 24    /* queries of a case that are compared, the first and the last among them */
#define TIMED 20      /* calls */
#define EXTRA 16      /* numbers that packed rows are wider than what is in them */
#define FEW (1 << 26) /* queries * keys * heads for the slow ways */

static cuda_gpu *gpu;
static cuda_store *store;
static pool *threads;
static bool bench;

static uint64_t seed = 1;

static float random_float(float range)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return ((float)(uint32_t)(seed >> 33) / 1073741824.0f - 1.0f) * range;
}

typedef struct attention_case {
    int64_t queries, keys;
    int dim, heads, kv_heads;
    bool causal;
    bool packed; /* q, k and v as columns of wider matrices; otherwise out is the memory of q */
    nn_precision precision;
} attention_case;

/* The numbers of a case, rounded to the type that they get on the GPU. */
typedef struct numbers {
    float *q, *k, *v, *out, *again;
    dtype type;
} numbers;

static float *random_floats(int64_t count, float range, dtype type)
{
    float *x = malloc((size_t)count * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < count; i++) {
        x[i] = random_float(range);
        if (type == DTYPE_BF16)
            x[i] = bf16_to_float(bf16_from_float(x[i]));
        else if (type == DTYPE_F16)
            x[i] = f16_to_float(f16_from_float(x[i]));
    }
    return x;
}

static numbers make_numbers(const attention_case *a)
{
    numbers n = {.type = a->precision == NN_F32 ? DTYPE_F32 : cuda_gpu_half(gpu)};
    const int64_t count = a->queries * a->heads * a->dim, shared = a->keys * a->kv_heads * a->dim;
    n.q = random_floats(count, 3, n.type);
    n.k = random_floats(shared, 2, n.type);
    n.v = random_floats(shared, 1, n.type);
    n.out = malloc((size_t)count * sizeof(float));
    n.again = malloc((size_t)count * sizeof(float));
    assert_true(n.out && n.again);
    return n;
}

static void free_numbers(numbers *n)
{
    free(n->q);
    free(n->k);
    free(n->v);
    free(n->out);
    free(n->again);
}

/* ---- On the GPU ------------------------------------------------------------------------------ */

/* data as columns of a matrix of the work type that is `extra` wider. */
static nn_tensor put(nn *c, const float *data, int64_t rows, int64_t width, int64_t extra)
{
    nn_tensor whole = nn_new_work2(c, rows, width + extra);
    nn_tensor part = nn_columns(&whole, extra / 2, width);
    const size_t mark = nn_mark(c);
    nn_tensor floats = nn_new2(c, rows, width);
    nn_upload(c, &floats, data, rows * width);
    cuda_convert(c, cuda_work_type(c), cuda_at(&part), CUDA_WORK, part.stride, cuda_at(&floats),
                 CUDA_FLOAT, width, rows, width);
    nn_release(c, mark);
    return extra ? part : whole;
}

/* Milliseconds for each of some calls. */
static float time_calls(nn *c, const attention_case *a, const nn_tensor *out, const nn_tensor *q,
                        const nn_tensor *k, const nn_tensor *v)
{
    const cuda_driver *d = cuda_of(c)->driver;
    const cu_stream stream = cuda_of(c)->stream;
    cu_event from, to;
    float milliseconds = 0;
    assert_int_equal(d->event_create(&from, 0), 0);
    assert_int_equal(d->event_create(&to, 0), 0);
    for (int i = -2; i < TIMED; i++) {
        if (i == 0)
            d->event_record(from, stream);
        nn_attention(c, out, q, k, v, a->heads, a->kv_heads, a->causal);
    }
    d->event_record(to, stream);
    assert_int_equal(d->event_wait(to), 0);
    assert_int_equal(d->event_elapsed(&milliseconds, from, to), 0);
    d->event_destroy(from);
    d->event_destroy(to);
    return milliseconds / TIMED;
}

/* Twice, and then some more for the time. Returns how it was done. */
static cuda_attention_path attend(const attention_case *a, cuda_attention_path path, numbers *n,
                                  float *milliseconds)
{
    const int64_t width = a->heads * a->dim, shared = a->kv_heads * a->dim;
    const int64_t extra = a->packed ? EXTRA : 0;
    nn_params params = {.allocator = &mem_default,
                        .threads = threads,
                        .gpu = gpu,
                        .gpu_weights = store,
                        .precision = a->precision,
                        .dry = true};
    cuda_attention_path taken = ATTENTION_ANY;
    for (int real = 0; real < 2; real++) {
        nn *c;
        ct_error error;
        params.dry = !real;
        test_ok(nn_create(&c, &params, &error), &error);
        cuda_of(c)->attention_path = path;
        nn_tensor k = put(c, n->k, a->keys, shared, extra);
        nn_tensor v = put(c, n->v, a->keys, shared, extra);
        for (int again = 0; again < 2; again++) {
            const size_t mark = nn_mark(c);
            nn_tensor q = put(c, n->q, a->queries, width, extra);
            nn_tensor out = a->packed ? nn_new_work2(c, a->queries, width) : q;
            nn_attention(c, &out, &q, &k, &v, a->heads, a->kv_heads, a->causal);
            nn_download(c, &out, again ? n->again : n->out, a->queries * width);
            nn_release(c, mark);
        }
        const size_t mark = nn_mark(c);
        nn_tensor q = put(c, n->q, a->queries, width, extra);
        nn_tensor out = nn_new_work2(c, a->queries, width);
        nn_attention(c, &out, &q, &k, &v, a->heads, a->kv_heads, a->causal);
        test_ok(nn_status(c, &error), &error);
        if (real) {
            taken = cuda_of(c)->attention_taken;
            *milliseconds = time_calls(c, a, &out, &q, &k, &v);
        }
        nn_release(c, mark);
        test_ok(nn_status(c, &error), &error);
        params.arena_bytes = nn_peak(c);
        nn_free(c);
    }
    return taken;
}

/* ---- What it should be ----------------------------------------------------------------------- */

/* One head of a query, and the sum of |probability * value| of each number of it. */
static void expect_row(const attention_case *a, const numbers *n, int64_t query, int head,
                       double *out, double *magnitude)
{
    const int64_t width = a->heads * a->dim, shared = a->kv_heads * a->dim;
    const int64_t visible = a->causal ? query + 1 : a->keys;
    const int64_t at = head / (a->heads / a->kv_heads) * a->dim;
    double *p = malloc((size_t)visible * sizeof *p), most = -INFINITY, sum = 0;
    assert_non_null(p);
    for (int64_t j = 0; j < visible; j++) {
        double dot = 0;
        for (int d = 0; d < a->dim; d++)
            dot +=
                (double)n->q[query * width + head * a->dim + d] * (double)n->k[j * shared + at + d];
        p[j] = dot / sqrt((double)a->dim);
        most = p[j] > most ? p[j] : most;
    }
    for (int64_t j = 0; j < visible; j++)
        sum += p[j] = exp(p[j] - most);
    for (int d = 0; d < a->dim; d++)
        out[d] = magnitude[d] = 0;
    for (int64_t j = 0; j < visible; j++)
        for (int d = 0; d < a->dim; d++) {
            const double value = (double)n->v[j * shared + at + d] * p[j] / sum;
            out[d] += value;
            magnitude[d] += fabs(value);
        }
    free(p);
}

/* How far a number may be off, as a share of magnitude: two roundings to the type, of the
 * probability and of the result, and sums in float32. */
static double bound_of(dtype type)
{
    return type == DTYPE_F32 ? 2e-5 : type == DTYPE_F16 ? 0x1p-10 + 1e-4 : 0x1p-7 + 1e-4;
}

/* Relative L2 over the queries that are looked at; -1 with a message where a number is wrong. */
static double compare(const attention_case *a, const numbers *n)
{
    const int64_t width = a->heads * a->dim;
    /* fp16 has nothing below 2^-24 for probabilities. */
    const double floor = n->type == DTYPE_F16 ? (double)a->keys * 0x1p-25 + 1e-7 : 1e-30;
    double *want = malloc((size_t)a->dim * 2 * sizeof *want), error = 0, norm = 0;
    assert_non_null(want);
    double *magnitude = want + a->dim;
    for (int64_t i = 0; i < CHECKED && i < a->queries; i++) {
        int64_t query = a->queries <= CHECKED ? i : i * (a->queries - 1) / (CHECKED - 1);
        for (int head = 0; head < a->heads; head++) {
            expect_row(a, n, query, head, want, magnitude);
            for (int d = 0; d < a->dim; d++) {
                const double got = (double)n->out[query * width + head * a->dim + d];
                if (!(fabs(got - want[d]) <= bound_of(n->type) * magnitude[d] + floor)) {
                    printf("query %lld, head %d, feature %d: %g, not %g\n", (long long)query, head,
                           d, got, want[d]);
                    free(want);
                    return -1;
                }
                error += (got - want[d]) * (got - want[d]);
                norm += want[d] * want[d];
            }
        }
    }
    free(want);
    return sqrt(error / norm);
}

/* ---- Cases ----------------------------------------------------------------------------------- */

static const char *const path_names[] = {"any", "cuDNN", "Hopper", "own", "products", "plain"};

static void print_case(const attention_case *a, const numbers *n, cuda_attention_path path,
                       cuda_attention_path taken, double error, float milliseconds)
{
    const double products = 4.0 * (double)a->queries * (double)a->keys * a->heads * a->dim;
    printf("%-4s %5lld x %5lld, %2d heads (%d) of %3d%s%s  %-8s -> %-8s error %.2e  %8.4f ms "
           "%7.2f TFLOP/s\n",
           dtype_name(n->type), (long long)a->queries, (long long)a->keys, a->heads, a->kv_heads,
           a->dim, a->causal ? " causal" : "       ", a->packed ? " packed  " : " in place",
           path_names[path], path_names[taken], error, (double)milliseconds,
           products * (a->causal ? 0.5 : 1) / (double)milliseconds * 1e-9);
    fflush(stdout);
}

/* Whether the way that is to be tried first must be the one that was taken. */
static bool must_take(const attention_case *a, cuda_attention_path path)
{
    const bool hopper = gpu->info.major == 9 && gpu->info.minor == 0;
    const bool half = a->precision != NN_F32, own = a->dim <= 128 && a->dim % 8 == 0;
    return (path == ATTENTION_HOPPER && hopper && half && own && a->dim > 64) ||
           (path == ATTENTION_OWN && own) || (path == ATTENTION_PRODUCTS && a->dim % 8 == 0) ||
           path == ATTENTION_PLAIN;
}

static bool check_case(const attention_case *a, cuda_attention_path path, numbers *n)
{
    float milliseconds = 0;
    const int64_t count = a->queries * a->heads * a->dim;
    const cuda_attention_path taken = attend(a, path, n, &milliseconds);
    const double error = compare(a, n);
    const bool same = !memcmp(n->out, n->again, (size_t)count * sizeof(float));
    print_case(a, n, path, taken, error, milliseconds);
    if (!same)
        printf("differs from one call to the next\n");
    if (must_take(a, path) && taken != path)
        printf("was to be done otherwise\n");
    return error >= 0 && same && (!must_take(a, path) || taken == path);
}

static bool check_paths(const attention_case *a)
{
    numbers n = make_numbers(a);
    bool good = true;
    for (cuda_attention_path p = ATTENTION_ANY; p <= ATTENTION_PLAIN; p++)
        if (p < ATTENTION_PRODUCTS || a->queries * a->keys * a->heads <= FEW)
            good = check_case(a, p, &n) && good;
    free_numbers(&n);
    return good;
}

static const attention_case cases[] = {
    /* Ragged ends of tiles, one key, one query. */
    {1, 1, 64, 1, 1, false, true, NN_BF16},
    {1, 1, 128, 2, 1, true, false, NN_BF16},
    {1, 333, 128, 4, 2, false, true, NN_BF16},
    {300, 1, 64, 2, 2, false, false, NN_BF16},
    {128, 64, 128, 2, 2, false, true, NN_BF16},
    {129, 65, 128, 2, 2, false, true, NN_BF16},
    {127, 63, 64, 2, 2, false, false, NN_BF16},
    {1000, 1111, 128, 3, 1, false, true, NN_BF16},
    /* Causal and grouped, as text encoders have it. */
    {128, 128, 128, 32, 8, true, true, NN_BF16},
    {517, 517, 128, 8, 2, true, true, NN_BF16},
    {517, 517, 64, 4, 4, true, false, NN_BF16},
    {200, 200, 80, 4, 4, true, true, NN_BF16},
    /* Sizes of heads. */
    {200, 300, 8, 2, 2, false, true, NN_BF16},
    {200, 300, 16, 2, 2, false, true, NN_BF16},
    {200, 300, 40, 2, 2, false, false, NN_BF16},
    {200, 300, 72, 2, 2, false, true, NN_BF16},
    {200, 300, 96, 2, 2, false, true, NN_BF16},
    {200, 300, 120, 2, 2, false, false, NN_BF16},
    {200, 300, 160, 2, 2, false, true, NN_BF16},
    {200, 300, 3, 2, 2, false, false, NN_BF16},
    {200, 300, 20, 2, 1, false, true, NN_BF16},
    {300, 300, 256, 2, 1, true, true, NN_BF16},
    /* The VAE's. */
    {1024, 1024, 512, 1, 1, false, false, NN_BF16},
    /* float32 */
    {200, 333, 64, 2, 2, false, true, NN_F32},
    {333, 333, 128, 4, 2, true, true, NN_F32},
    {100, 130, 20, 2, 1, false, false, NN_F32},
    {1024, 1024, 512, 1, 1, false, true, NN_F32},
    /* Z-Image at 512 and 1024 pixels, with 128 tokens of text. */
    {1152, 1152, 128, 30, 30, false, true, NN_BF16},
    {4224, 4224, 128, 30, 30, false, true, NN_BF16},
};

static const attention_case bench_cases[] = {
    {4300, 4300, 64, 24, 24, false, true, NN_BF16},
    {4096, 4096, 128, 32, 8, true, true, NN_BF16},
    {16512, 16512, 128, 30, 30, false, true, NN_BF16},
    {16384, 16384, 512, 1, 1, false, false, NN_BF16},
    {4224, 4224, 128, 30, 30, false, true, NN_F32},
};

static void each_way(void **state)
{
    (void)state;
    bool good = true;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        good = check_paths(&cases[i]) && good;
    for (size_t i = 0; bench && i < sizeof bench_cases / sizeof *bench_cases; i++)
        good = check_paths(&bench_cases[i]) && good;
    assert_true(good);
}

/* What is not a number stays visible: in the query's row, and in no other. */
static void not_a_number(void **state)
{
    (void)state;
    const attention_case a = {150, 190, 128, 2, 2, false, true, NN_BF16};
    const int64_t width = a.heads * a.dim, bad = 77;
    for (cuda_attention_path p = ATTENTION_HOPPER; p <= ATTENTION_PLAIN; p++) {
        numbers n = make_numbers(&a);
        float milliseconds;
        n.q[bad * width] = NAN;
        attend(&a, p, &n, &milliseconds);
        for (int64_t i = 0; i < a.queries; i++)
            for (int64_t d = 0; d < a.dim; d++)
                assert_true(!isnan(n.out[i * width + d]) == (i != bad));
        free_numbers(&n);
    }
}

int main(int count, char **arguments)
{
    bench = count > 1 && !strcmp(arguments[1], "--bench");
    ct_error error;
    if (pool_create(&threads, &mem_default, 0, &error) != CT_OK)
        return 1;
    const cuda_gpu_params params = {.allocator = &mem_default, .threads = threads};
    if (cuda_gpu_open(&gpu, &params, &error) != CT_OK) {
        printf("no GPU: %s\n", error.message);
        pool_free(threads);
        return SKIPPED;
    }
    printf("%s, %s\n", cuda_gpu_name(gpu), cuda_gpu_libraries(gpu));
    if (cuda_store_create(&store, gpu, &error) != CT_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_way),
        cmocka_unit_test(not_a_number),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cuda_store_free(store);
    cuda_gpu_close(gpu);
    pool_free(threads);
    return failed;
}
