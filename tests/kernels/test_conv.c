/* Convolutions of every instruction set against a direct sum in double, on awkward sizes; bands of
 * a picture against the whole, and threads against one another, bit for bit. With --bench N: their
 * speed on N threads at the sizes of a VAE.
 *
 * The bound is on the relative L2 error. A direct sum in float32 of 4608 products departs by 1.2e-6
 * (measured), Winograd's way by 1.6 times that; see docs/architecture.md. */
#include "test_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/mem.h"
#include "core/threads.h"
#include "nn/cpu/kernels.h"
#include "nn/cpu/peak.h"
#include "nn/nn.h"

#define BOUND 3e-6
#define EPS 1e-3 /* of norms of pixels: large enough to be seen */

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

/* About normal, with variance 1. */
static float random_normal(void)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)random32() / 2147483648.0f - 0.5f;
    return sum * 1.7320508f;
}

static float *random_floats(int64_t n, float scale)
{
    float *p = malloc((size_t)n * sizeof(float));
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++)
        p[i] = random_normal() * scale;
    return p;
}

/* One convolution: x [height][width][in]. */
typedef struct shape {
    int64_t height, width, in, out;
    int kernel;
    nn_conv p; /* the norms in it: whether there is one */
    bool norm, pixel_norm;
} shape;

typedef struct problem {
    shape s;
    int64_t out_height, out_width;
    float *x, *w, *bias, *norm, *start;   /* start: what out holds before */
    nn_weight weight, bias_weight, gamma; /* gamma: the first half of norm */
} problem;

static problem problem_new(shape s)
{
    problem p = {.s = s};
    const int64_t scale = s.p.upsample ? 2 : 1, stride = s.p.stride ? s.p.stride : 1;
    const int64_t pad = s.p.pad_bottom_right ? s.kernel / 2 : s.kernel / 2 * 2;
    p.out_height = (s.height * scale + pad - s.kernel) / stride + 1;
    p.out_width = (s.width * scale + pad - s.kernel) / stride + 1;
    const int64_t taps = s.kernel * s.kernel;
    p.x = random_floats(s.height * s.width * s.in, 1);
    p.w = random_floats(s.out * s.in * taps, 1 / sqrtf((float)(s.in * taps)));
    p.bias = random_floats(s.out, 1);
    p.norm = random_floats(2 * s.in, 1);
    p.start = random_floats(p.out_height * p.out_width * s.out, 1);
    p.weight = (nn_weight){.name = "w",
                           .type = DTYPE_F32,
                           .rank = 4,
                           .n = {s.out, s.in, s.kernel, s.kernel},
                           .data = p.w};
    p.bias_weight =
        (nn_weight){.name = "b", .type = DTYPE_F32, .rank = 1, .n = {s.out}, .data = p.bias};
    p.gamma = (nn_weight){.name = "g", .type = DTYPE_F32, .rank = 1, .n = {s.in}, .data = p.norm};
    return p;
}

static void problem_free(problem *p)
{
    free(p->x);
    free(p->w);
    free(p->bias);
    free(p->norm);
    free(p->start);
}

static double input_at(const problem *p, int64_t y, int64_t x, int64_t ch)
{
    const int up = p->s.p.upsample;
    if (y < 0 || x < 0 || y >= p->s.height << up || x >= p->s.width << up)
        return 0;
    const float *pixel = p->x + ((y >> up) * p->s.width + (x >> up)) * p->s.in;
    double v = pixel[ch], squares = 0;
    if (p->s.pixel_norm) {
        for (int64_t i = 0; i < p->s.in; i++)
            squares += (double)pixel[i] * (double)pixel[i];
        v = v / sqrt(squares / (double)p->s.in + EPS) * (double)p->norm[ch];
        return v / (1 + exp(-v));
    }
    if (!p->s.norm)
        return v;
    v = v * (double)p->norm[ch] + (double)p->norm[p->s.in + ch];
    return v / (1 + exp(-v));
}

static double direct_at(const problem *p, int64_t y, int64_t x, int64_t o)
{
    const shape *s = &p->s;
    const int64_t stride = s->p.stride ? s->p.stride : 1, k = s->kernel;
    const int64_t pad = s->p.pad_bottom_right ? 0 : k / 2;
    double sum = p->bias[o];
    for (int64_t t = 0; t < k * k; t++)
        for (int64_t i = 0; i < s->in; i++)
            sum += (double)p->w[(o * s->in + i) * k * k + t] *
                   input_at(p, y * stride + t / k - pad, x * stride + t % k - pad, i);
    return s->p.add ? sum + (double)p->start[(y * p->out_width + x) * s->out + o] : sum;
}

/* out rows first .. end-1, from a tensor that holds these rows of x and their neighbours alone. */
static void compute_on(nn *c, const problem *p, float *out, int64_t first, int64_t end)
{
    const int64_t scale = p->s.p.upsample ? 2 : 1, row = p->s.width * p->s.in;
    nn_conv params = p->s.p;
    int64_t from = 0, to = p->s.height;
    if (end - first < p->out_height) {
        params.above = first > 0;
        params.below = end < p->out_height;
        from = first / scale - params.above;
        to = end / scale + params.below;
    }
    nn_tensor x = nn_new3(c, to - from, p->s.width, p->s.in);
    nn_tensor y = nn_new3(c, end - first, p->out_width, p->s.out), norm = nn_new2(c, 2, p->s.in);
    nn_upload(c, &x, p->x + from * row, (to - from) * row);
    nn_upload(c, &norm, p->norm, 2 * p->s.in);
    const int64_t at = first * p->out_width * p->s.out, count = nn_count(&y);
    nn_upload(c, &y, p->start + at, count);
    params.norm = p->s.norm ? &norm : NULL;
    params.pixel_norm = p->s.pixel_norm ? &(nn_pixel_norm){.w = &p->gamma, .eps = EPS} : NULL;
    nn_conv2d(c, &y, &x, &p->weight, &p->bias_weight, &params);
    nn_download(c, &y, out + at, count);
}

static void compute_band(const problem *p, const cpu_kernels *kernels, pool *threads,
                         nn_precision precision, float *out, int64_t first, int64_t end)
{
    nn_params params = {.allocator = &mem_default,
                        .threads = threads,
                        .kernels = kernels,
                        .dry = true,
                        .precision = precision};
    ct_error error;
    nn *c;
    test_ok(nn_create(&c, &params, &error), &error);
    compute_on(c, p, NULL, first, end);
    test_ok(nn_status(c, &error), &error);
    params.arena_bytes = nn_peak(c);
    params.dry = false;
    nn_free(c);
    test_ok(nn_create(&c, &params, &error), &error);
    compute_on(c, p, out, first, end);
    test_ok(nn_status(c, &error), &error);
    assert_int_equal(nn_peak(c), params.arena_bytes);
    nn_free(c);
}

static float *compute(const problem *p, const cpu_kernels *kernels, int threads)
{
    pool *workers;
    ct_error error;
    test_ok(pool_create(&workers, &mem_default, threads, &error), &error);
    float *out = malloc((size_t)(p->out_height * p->out_width * p->s.out) * sizeof(float));
    assert_non_null(out);
    compute_band(p, kernels, workers, NN_F32, out, 0, p->out_height);
    pool_free(workers);
    return out;
}

/* All results, or some thousands of them. */
static void check_values(const problem *p, const cpu_kernels *k, const float *out)
{
    const int64_t all = p->out_height * p->out_width * p->s.out;
    const bool some = all * p->s.in > 1 << 20;
    double error = 0, norm = 0;
    for (int64_t i = 0; i < (some ? 2000 : all); i++) {
        int64_t at = some ? (int64_t)random32() % all : i;
        double want =
            direct_at(p, at / p->s.out / p->out_width, at / p->s.out % p->out_width, at % p->s.out);
        error += (want - (double)out[at]) * (want - (double)out[at]);
        norm += want * want;
    }
    if (!(error <= BOUND * BOUND * norm))
        fail_msg("%s: %lld x %lld x %lld to %lld, kernel %d: relative L2 %.2e", k->name,
                 (long long)p->s.height, (long long)p->s.width, (long long)p->s.in,
                 (long long)p->s.out, p->s.kernel, sqrt(error / norm));
}

static shape random_shape(void)
{
    shape s = {.height = random_between(1, 21),
               .width = random_between(1, 21),
               .in = random_between(1, 70),
               .out = random_between(1, 70),
               .kernel = random32() % 4 ? 3 : 1};
    s.norm = random32() & 1;
    s.p.add = random32() & 1;
    s.p.upsample = random32() % 4 == 0;
    if (random32() % 4 == 0) {
        s.p.stride = 2;
        s.p.pad_bottom_right = random32() & 1;
        s.height += 2;
        s.width += 2;
    }
    s.pixel_norm = !s.norm && !s.p.upsample && !s.p.stride && (random32() & 1);
    return s;
}

static int rounds = 10; /* CT_EMULATED: 1 */

static void each_tier(void (*check)(const cpu_kernels *k))
{
    cpu_kernels k;
    for (int i = 0; cpu_kernels_tier(&k, i); i++)
        if (cpu_kernels_usable(&k))
            check(&k);
}

static void check_shapes(const cpu_kernels *k)
{
    for (int round = 0; round < 4 * rounds; round++) {
        problem p = problem_new(random_shape());
        float *out = compute(&p, k, 2);
        check_values(&p, k, out);
        free(out);
        problem_free(&p);
    }
}

static void test_shapes(void **state)
{
    (void)state;
    each_tier(check_shapes);
}

/* The widest of a VAE, where errors are the largest. */
static void test_512_channels(void **state)
{
    (void)state;
    cpu_kernels best;
    ct_error error;
    test_ok(cpu_kernels_choose(&best, NULL, &error), &error);
    problem p = problem_new((shape){.height = 13, .width = 18, .in = 512, .out = 512, .kernel = 3});
    float *out = compute(&p, &best, 2);
    check_values(&p, &best, out);
    free(out);
    problem_free(&p);
}

/* Bands of every height that is allowed, and several numbers of threads. */
static void check_bands(const cpu_kernels *k)
{
    ct_error error;
    pool *threads[2];
    test_ok(pool_create(&threads[0], &mem_default, 1, &error), &error);
    test_ok(pool_create(&threads[1], &mem_default, 3, &error), &error);
    for (int round = 0; round < rounds; round++) {
        shape s = random_shape();
        s.p.stride = s.p.pad_bottom_right = 0;
        problem p = problem_new(s);
        const int64_t count = p.out_height * p.out_width * s.out;
        float *whole = compute(&p, k, 2), *parts = malloc((size_t)count * sizeof(float));
        assert_non_null(parts);
        for (int64_t rows = 4; rows < p.out_height + 4; rows += 4) {
            memset(parts, 0, (size_t)count * sizeof(float));
            for (int64_t y = 0; y < p.out_height; y += rows) {
                int64_t end = y + rows < p.out_height ? y + rows : p.out_height;
                compute_band(&p, k, threads[rows / 4 % 2], NN_BF16, parts, y, end);
            }
            assert_memory_equal(whole, parts, (size_t)count * sizeof(float));
        }
        free(whole);
        free(parts);
        problem_free(&p);
    }
    pool_free(threads[0]);
    pool_free(threads[1]);
}

static void test_bands(void **state)
{
    (void)state;
    each_tier(check_bands);
}

/* ---- Speed ----------------------------------------------------------------------------------- */

static double measure(const problem *p, const cpu_kernels *k, int threads, int64_t *peak_bytes)
{
    pool *workers;
    nn *c;
    ct_error error;
    test_ok(pool_create(&workers, &mem_default, threads, &error), &error);
    nn_params params = {.allocator = &mem_default,
                        .threads = workers,
                        .kernels = k,
                        .arena_bytes = (size_t)3 << 30};
    test_ok(nn_create(&c, &params, &error), &error);
    nn_tensor x = nn_new3(c, p->s.height, p->s.width, p->s.in), norm = nn_new2(c, 2, p->s.in);
    nn_tensor y = nn_new3(c, p->out_height, p->out_width, p->s.out);
    nn_upload(c, &x, p->x, nn_count(&x));
    nn_upload(c, &norm, p->norm, nn_count(&norm));
    nn_upload(c, &y, p->start, nn_count(&y));
    nn_conv conv = p->s.p;
    conv.norm = p->s.norm ? &norm : NULL;
    const size_t before = nn_mark(c);
    double best = 1e9;
    for (double begin = clock_seconds(); clock_seconds() - begin < 2;) {
        double start = clock_seconds();
        nn_conv2d(c, &y, &x, &p->weight, &p->bias_weight, &conv);
        double seconds = clock_seconds() - start;
        best = seconds < best ? seconds : best;
    }
    *peak_bytes = (int64_t)(nn_peak(c) - before);
    nn_free(c);
    pool_free(workers);
    return best;
}

static void bench(int threads)
{
    static const shape shapes[] = {
        {64, 64, 512, 512, 3, {0}, false, false},
        {64, 64, 512, 512, 3, {0}, true, false},
        {128, 128, 512, 512, 3, {0}, true, false},
        {256, 256, 256, 256, 3, {0}, true, false},
        {512, 512, 128, 128, 3, {0}, false, false},
        {512, 512, 128, 128, 3, {0}, true, false},
        {512, 512, 256, 128, 3, {0}, true, false},
        {512, 512, 128, 3, 3, {0}, true, false},
        {128, 128, 512, 512, 3, {.upsample = true}, false, false},
        {256, 256, 256, 256, 3, {.upsample = true}, false, false},
        {512, 512, 256, 128, 1, {0}, false, false},
        {64, 64, 16, 512, 3, {0}, false, false},
        {512, 512, 3, 128, 3, {0}, false, false},
        {512, 512, 128, 128, 3, {.stride = 2}, false, false},
    };
    cpu_kernels k;
    ct_error error;
    test_ok(cpu_kernels_choose(&k, NULL, &error), &error);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        double peak = cpu_peak_gflops(CPU_F32, k.gemm[CPU_F32]->features, 0.2) * threads;
        problem p = problem_new(shapes[i]);
        const shape *s = &p.s;
        int64_t scratch;
        double seconds = measure(&p, &k, threads, &scratch);
        double gflops = 2e-9 * (double)(p.out_height * p.out_width * s->out * s->in) *
                        (double)(s->kernel * s->kernel) / seconds;
        printf(
            "%s %4lld x %-4lld %3lld -> %3lld  %dx%d%s%s%s  %8.2f ms  %7.1f GFLOP/s  %4.2f of the "
            "peak %5.1f  scratch %5.1f MB\n",
            k.name, (long long)p.out_height, (long long)p.out_width, (long long)s->in,
            (long long)s->out, s->kernel, s->kernel, s->norm ? " norm" : "     ",
            s->p.upsample ? " doubled" : "        ", s->p.stride == 2 ? " half" : "     ",
            seconds * 1e3, gflops, peak > 0 ? gflops / peak : 0, peak, (double)scratch * 1e-6);
        problem_free(&p);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        bench(argc > 2 ? atoi(argv[2]) : 1);
        return 0;
    }
    if (getenv("CT_EMULATED"))
        rounds = 1;
    if (getenv("SEED"))
        seed = strtoull(getenv("SEED"), NULL, 10);
    else
        seed = (uint64_t)(clock_seconds() * 1e6);
    fprintf(stderr, "# SEED=%llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_512_channels),
        cmocka_unit_test(test_bands),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
