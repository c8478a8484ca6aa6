#include "gpu_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct gpu gpu;
int failures;
static uint64_t seed = 1;

uint32_t random32(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static float random_number(void)
{
    return (float)(int32_t)random32() * 0x1p-31f;
}

void check_driver(cu_result r, const char *what)
{
    ct_error error;
    if (cuda_check(&gpu.d, r, what, &error) != CT_OK)
        fail_msg("%s", error.message);
}

void need_gpu(void)
{
    failures = 0;
    if (!gpu.there) {
        printf("no GPU: %s\n", gpu.why.message);
        skip();
    }
}

/* ---- Numbers here and there ----------------------------------------------------------------- */

static uint8_t f8_nearest(float f)
{
    /* By search: e4m3 grows with its magnitude bits. */
    uint8_t low = 0, high = 0x7e;
    const float a = fabsf(f);
    while (high - low > 1) {
        const uint8_t middle = (uint8_t)((low + high) / 2);
        if (f8_e4m3_to_float(middle) <= a)
            low = middle;
        else
            high = middle;
    }
    const bool up = f8_e4m3_to_float(high) - a < a - f8_e4m3_to_float(low);
    return (uint8_t)((up ? high : low) | (f < 0 ? 0x80 : 0));
}

static void put(numbers *n, size_t i, float f)
{
    const int8_t code = (int8_t)lrintf(f * 127.0f);
    const int32_t integer = (int32_t)lrintf(f * 1000.0f);
    const uint8_t f8 = n->type == DTYPE_F8_E4M3 ? f8_nearest(f * 8) : 0;
    if (n->type == DTYPE_I8)
        memcpy(n->raw + i, &code, 1);
    else if (n->type == DTYPE_I32)
        memcpy(n->raw + 4 * i, &integer, 4);
    else if (n->type == DTYPE_F8_E4M3)
        n->raw[i] = f8;
    else
        dtype_from_float(n->raw + i * dtype_size(n->type), &f, n->type, 1);
}

double get(const numbers *n, size_t i)
{
    float f;
    int32_t integer;
    if (n->type == DTYPE_I8)
        return (int8_t)n->raw[i];
    if (n->type == DTYPE_I32) {
        memcpy(&integer, n->raw + 4 * i, 4);
        return integer;
    }
    dtype_to_float(&f, n->raw + i * dtype_size(n->type), n->type, 1);
    return f;
}

static void upload(numbers *n)
{
    check_driver(gpu.d.copy_to_device(n->at, n->raw, n->count * dtype_size(n->type), gpu.stream),
                 "copying");
    check_driver(gpu.d.stream_wait(gpu.stream), "copying");
}

void download(numbers *n)
{
    check_driver(gpu.d.copy_to_host(n->raw, n->at, n->count * dtype_size(n->type), gpu.stream),
                 "copying back");
    check_driver(gpu.d.stream_wait(gpu.stream), "waiting for the results");
}

/* Random numbers in -1 to 1; large arrays repeat after a prime number of them. */
numbers make_numbers(dtype type, size_t count)
{
    const size_t period = 1000003, size = dtype_size(type);
    numbers n = {.type = type, .count = count, .raw = malloc(count * size)};
    assert_non_null(n.raw);
    for (size_t i = 0; i < count && i < period; i++)
        put(&n, i, random_number());
    for (size_t i = period; i < count; i += period)
        memcpy(n.raw + i * size, n.raw, (count - i < period ? count - i : period) * size);
    check_driver(gpu.d.mem_alloc(&n.at, count * size), "memory");
    upload(&n);
    return n;
}

void free_numbers(numbers *n)
{
    free(n->raw);
    if (n->at)
        gpu.d.mem_free(n->at);
    *n = (numbers){0};
}

numbers copy_of(const numbers *n)
{
    numbers c = {.type = n->type, .count = n->count};
    c.raw = malloc(n->count * dtype_size(n->type));
    assert_non_null(c.raw);
    memcpy(c.raw, n->raw, n->count * dtype_size(n->type));
    return c;
}

double rounding(dtype type)
{
    const double half_unit = type == DTYPE_BF16 ? 0x1p-8 : type == DTYPE_F16 ? 0x1p-11 : 0x1p-24;
    return type == DTYPE_I32 ? 0 : half_unit;
}

void compare(tally *t, double actual, double expected, double bound)
{
    const double error = fabs(actual - expected);
    /* A NaN is never within. */
    const double share = error <= bound ? (bound > 0 ? error / bound : 0) : 2 + error;
    if (share > t->worst)
        t->worst = share;
    t->errors += error * error;
    t->results += expected * expected;
    t->checked++;
}

void report(const char *name, const tally *t, bool untouched, const char *rest)
{
    const bool good = t->worst <= 1 && untouched && t->checked > 0;
    printf("%-6s %-58s worst/bound %.3f, relative rms %.1e, %ld checked%s%s\n",
           good ? "ok" : "FAILED", name, t->worst, sqrt(t->errors / (t->results + 1e-300)),
           t->checked, untouched ? "" : ", WROTE OUTSIDE", rest);
    fflush(stdout);
    failures += !good;
}

void report_error(const char *name, const ct_error *error)
{
    printf("FAILED %-58s %s\n", name, error->message);
    fflush(stdout);
    failures++;
}

/* Milliseconds of one of `count` calls. */
double time_calls(ct_status (*call)(void *user, ct_error *error), void *user, int count)
{
    cu_event from, to;
    ct_error error;
    float ms = 0;
    check_driver(gpu.d.event_create(&from, 0), "event");
    check_driver(gpu.d.event_create(&to, 0), "event");
    for (int i = 0; i < 3; i++)
        test_ok(call(user, &error), &error);
    check_driver(gpu.d.event_record(from, gpu.stream), "event");
    for (int i = 0; i < count; i++)
        test_ok(call(user, &error), &error);
    check_driver(gpu.d.event_record(to, gpu.stream), "event");
    check_driver(gpu.d.event_wait(to), "measuring");
    check_driver(gpu.d.event_elapsed(&ms, from, to), "measuring");
    gpu.d.event_destroy(from);
    gpu.d.event_destroy(to);
    return (double)ms / count;
}

int open_gpu(void **state)
{
    (void)state;
    if (cuda_driver_open(&gpu.d, &gpu.why) != CT_OK)
        return 0;
    if (cuda_device_query(&gpu.d, 0, &gpu.info, &gpu.why) != CT_OK)
        return 0;
    cu_device device;
    cu_result r = gpu.d.device_get(&device, 0);
    if (r == 0)
        r = gpu.d.context_retain(&gpu.context, device);
    if (r == 0)
        r = gpu.d.context_set(gpu.context);
    if (r == 0)
        r = gpu.d.stream_create(&gpu.stream, CU_STREAM_NON_BLOCKING);
    if (r == 0)
        r = gpu.d.mem_alloc(&gpu.workspace, WORKSPACE);
    gpu.there = cuda_check(&gpu.d, r, "opening the GPU", &gpu.why) == CT_OK;
    return gpu.there ? 0 : -1;
}

int close_gpu(void **state)
{
    (void)state;
    if (gpu.there) {
        gpu.d.mem_free(gpu.workspace);
        gpu.d.stream_destroy(gpu.stream);
        gpu.d.context_release(0);
    }
    cuda_driver_close(&gpu.d);
    return 0;
}
