#include "device_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/mem.h"
#include "nn/cpu/kernels.h"
#include "nn/cuda/gpu.h"

static pool *threads;
static cpu_kernels kernels;
static cuda_gpu *gpu;
static uint64_t seed = 1;
static int failures, cases;

uint32_t random32(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

int64_t between(int64_t low, int64_t high)
{
    return low + random32() % (high - low + 1);
}

static float number(float range)
{
    float f = ((float)random32() / 1073741824.0f - 1.0f) * range;
    return bf16_to_float(bf16_from_float(f));
}

void *allocate(int64_t bytes)
{
    void *p = calloc(1, (size_t)bytes + 1);
    assert_non_null(p);
    return p;
}

float *numbers(int64_t n, float range)
{
    float *x = allocate(n * 4);
    for (int64_t i = 0; i < n; i++)
        x[i] = number(range);
    return x;
}

/* A weight of any type, for the life of the process: copies on the GPU are known by address. */
nn_weight weight(dtype type, int bits, int rank, int64_t n0, int64_t n1)
{
    nn_weight w = {.name = "test", .type = type, .rank = rank, .n = {n0, rank > 1 ? n1 : 1, 1, 1}};
    int64_t count = n0 * (rank > 1 ? n1 : 1), groups = 0;
    if (bits) {
        w.bits = bits;
        w.group = 32;
        groups = count / 32;
        uint8_t *codes = allocate(count * bits / 8);
        uint16_t *scales = allocate(groups * 2), *biases = allocate(groups * 2);
        for (int64_t i = 0; i < count * bits / 8; i++)
            codes[i] = (uint8_t)random32();
        for (int64_t i = 0; i < groups; i++) {
            scales[i] = bf16_from_float(2.0f / (float)(1 << bits) * (0.5f + fabsf(number(0.5f))));
            biases[i] = bf16_from_float(-1 + number(0.1f));
        }
        w.type = DTYPE_BF16;
        w.data = codes;
        w.scales = scales;
        w.biases = biases;
        return w;
    }
    char *data = allocate(count * (int64_t)dtype_size(type));
    for (int64_t i = 0; i < count; i++) {
        float f = number(1);
        uint16_t h = type == DTYPE_F16 ? f16_from_float(f) : bf16_from_float(f);
        uint8_t e = (uint8_t)(random32() & 0xbf); /* e4m3 without its largest and NaN */
        if (type == DTYPE_F32)
            memcpy(data + i * 4, &f, 4);
        else if (dtype_size(type) == 2)
            memcpy(data + i * 2, &h, 2);
        else
            data[i] = (char)e;
    }
    w.data = data;
    w.factor = dtype_size(type) == 1 ? 0.25f : 0;
    return w;
}

nn_weight identity(int64_t n)
{
    float *one = allocate(n * n * 4);
    for (int64_t i = 0; i < n; i++)
        one[i * n + i] = 1;
    return (nn_weight){.name = "one", .type = DTYPE_F32, .rank = 2, .n = {n, n, 1, 1}, .data = one};
}

/* ---- Both devices ---------------------------------------------------------------------------- */

static bool run_on(const test *t, bool on_gpu, nn_precision precision, float *out)
{
    cuda_store *store = NULL;
    ct_error error = {0};
    nn_params params = {.allocator = &mem_default,
                        .threads = threads,
                        .kernels = &kernels,
                        .precision = on_gpu ? precision : NN_F32};
    if (on_gpu) {
        test_ok(cuda_store_create(&store, gpu, &error), &error);
        params.gpu = gpu;
        params.gpu_weights = store;
    }
    for (int real = 0; real < 2 && error.code == CT_OK; real++) {
        nn *c;
        params.dry = !real;
        if (nn_create(&c, &params, &error) != CT_OK)
            break;
        nn_reset(c);
        t->body(c, t->user, out);
        nn_status(c, &error);
        params.arena_bytes = nn_peak(c);
        nn_free(c);
    }
    cuda_store_free(store);
    if (error.code != CT_OK)
        printf("FAILED %s: %s\n", t->name, error.message);
    return error.code == CT_OK;
}

static double distance(const float *got, const float *want, int64_t n)
{
    double error = 0, norm = 1e-30;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        error += d * d;
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(error / norm);
}

void run(const test *t)
{
    static const char *const names[] = {"fp32", "bf16", "int8", "fp8", "fp16"};
    float *want = allocate(t->outputs * 4), *got = allocate(t->outputs * 4);
    if (!run_on(t, false, NN_F32, want)) {
        failures++;
        return;
    }
    for (int p = NN_F32; p <= NN_FP16; p++) {
        const double bound = t->bound[p == NN_FP16 ? NN_BF16 : p]; /* fp16 is closer */
        if (bound == 0 || !cuda_gpu_can(gpu, (nn_precision)p))
            continue;
        cases++;
        memset(got, 0xff, (size_t)t->outputs * 4);
        bool ran = run_on(t, true, (nn_precision)p, got);
        double d = ran ? distance(got, want, t->outputs) : NAN;
        bool good = d <= bound;
        printf("%s %-44s %-5s %.2e of %.0e\n", good ? "ok    " : "FAILED", t->name, names[p], d,
               bound);
        failures += !good;
    }
    fflush(stdout);
    free(want);
    free(got);
}

/* ---- Tensors --------------------------------------------------------------------------------- */

nn_tensor put_float(nn *c, const float *data, int64_t m, int64_t n)
{
    nn_tensor t = nn_new2(c, m, n);
    nn_upload(c, &t, data, m * n);
    return t;
}

/* In the work type: through a picture, the only way in. */
nn_tensor put_picture(nn *c, const float *data, int64_t h, int64_t w, int64_t n)
{
    nn_tensor t = nn_new_work3(c, h, w, n);
    float *planes = allocate(h * w * n * 4);
    for (int64_t i = 0; i < h * w; i++)
        for (int64_t j = 0; j < n; j++)
            planes[j * h * w + i] = data[i * n + j];
    nn_upload_planes(c, &t, planes, 1, 0);
    free(planes);
    return t;
}

nn_tensor put_work(nn *c, const float *data, int64_t m, int64_t n)
{
    nn_tensor t = put_picture(c, data, m, 1, n);
    return nn_as2(c, &t, m, n);
}

nn_tensor put(nn *c, bool work, const float *data, int64_t m, int64_t n)
{
    return work ? put_work(c, data, m, n) : put_float(c, data, m, n);
}

/* ---- The devices ----------------------------------------------------------------------------- */

int device_open(int argc, char **argv)
{
    ct_error error;
    if (pool_create(&threads, &mem_default, 0, &error) != CT_OK ||
        cpu_kernels_choose(&kernels, NULL, &error) != CT_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    const cuda_gpu_params params = {.allocator = &mem_default,
                                    .threads = threads,
                                    .half = argc > 1 && !strcmp(argv[1], "fp16") ? DTYPE_F16
                                                                                 : DTYPE_F32,
                                    .folder = getenv("CALOTYPE_CACHE")};
    if (cuda_gpu_open(&gpu, &params, &error) != CT_OK) {
        printf("skipped: %s\n", error.message);
        pool_free(threads);
        return 77;
    }
    seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) : (uint64_t)(clock_seconds() * 1e6);
    printf("# %s, %s, SEED=%llu\n", cuda_gpu_name(gpu), cuda_gpu_libraries(gpu),
           (unsigned long long)seed);
    return 0;
}

int device_close(void)
{
    printf("%d cases, %d failed\n", cases, failures);
    cuda_gpu_close(gpu);
    pool_free(threads);
    return failures != 0;
}
