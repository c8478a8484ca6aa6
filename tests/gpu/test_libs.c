/* Matrix products, attention and convolutions of NVIDIA's libraries against plain loops in double,
 * and their speed. Needs a GPU but for the file of choices; without one the rest is skipped. A list
 * goes on after a failure, so one run tells everything. */
#include "test_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/mem.h"
#include "nn/cuda/blas.h"
#include "nn/cuda/blas_file.h"
#include "nn/cuda/dnn.h"

#define WORKSPACE ((size_t)64 << 20)
#define SAMPLES 400 /* results of a large case that are checked */

static struct {
    bool there;
    cuda_driver d;
    cuda_device_info info;
    cu_context context;
    cu_stream stream;
    cu_address workspace;
    ct_error why;
} gpu;

static int failures;
static uint64_t seed = 1;

static uint32_t random32(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static float random_number(void)
{
    return (float)(int32_t)random32() * 0x1p-31f;
}

static void check_driver(cu_result r, const char *what)
{
    ct_error error;
    if (cuda_check(&gpu.d, r, what, &error) != CT_OK)
        fail_msg("%s", error.message);
}

static void need_gpu(void)
{
    failures = 0;
    if (!gpu.there) {
        printf("no GPU: %s\n", gpu.why.message);
        skip();
    }
}

/* ---- Numbers here and there ----------------------------------------------------------------- */

/* Numbers as the GPU has them, what they stand for, and where they are there. */
typedef struct numbers {
    dtype type;
    size_t count;
    unsigned char *raw;
    cu_address at;
} numbers;

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

static double get(const numbers *n, size_t i)
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

static void download(numbers *n)
{
    check_driver(gpu.d.copy_to_host(n->raw, n->at, n->count * dtype_size(n->type), gpu.stream),
                 "copying back");
    check_driver(gpu.d.stream_wait(gpu.stream), "waiting for the results");
}

/* Random numbers in -1 to 1; large arrays repeat after a prime number of them. */
static numbers make_numbers(dtype type, size_t count)
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

static void free_numbers(numbers *n)
{
    free(n->raw);
    if (n->at)
        gpu.d.mem_free(n->at);
    *n = (numbers){0};
}

static numbers copy_of(const numbers *n)
{
    numbers c = {.type = n->type, .count = n->count};
    c.raw = malloc(n->count * dtype_size(n->type));
    assert_non_null(c.raw);
    memcpy(c.raw, n->raw, n->count * dtype_size(n->type));
    return c;
}

/* Half a unit in the last place of a result near 1, twice. */
static double rounding(dtype type)
{
    return type == DTYPE_BF16  ? 0x1p-8
           : type == DTYPE_F16 ? 0x1p-10
           : type == DTYPE_I32 ? 0
                               : 0x1p-23;
}

/* The largest error of a case in units of its bound, and the errors' size beside the results'. */
typedef struct tally {
    double worst, errors, results;
    long checked;
} tally;

static void compare(tally *t, double actual, double expected, double bound)
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

static void report(const char *name, const tally *t, bool untouched, const char *rest)
{
    const bool good = t->worst <= 1 && untouched && t->checked > 0;
    printf("%-6s %-58s worst/bound %.3f, relative rms %.1e, %ld checked%s%s\n",
           good ? "ok" : "FAILED", name, t->worst, sqrt(t->errors / (t->results + 1e-300)),
           t->checked, untouched ? "" : ", WROTE OUTSIDE", rest);
    fflush(stdout);
    failures += !good;
}

static void report_error(const char *name, const ct_error *error)
{
    printf("FAILED %-58s %s\n", name, error->message);
    fflush(stdout);
    failures++;
}

/* Milliseconds of one of `count` calls. */
static double time_calls(ct_status (*call)(void *user, ct_error *error), void *user, int count)
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

/* ---- Products ------------------------------------------------------------------------------- */

static blas *open_blas(const char *folder)
{
    const blas_params params = {&mem_default, &gpu.d, &gpu.info, folder, WORKSPACE};
    blas *b;
    ct_error error;
    test_ok(blas_open(&b, &params, &error), &error);
    return b;
}

typedef struct product_data {
    numbers x, w, out, bias, x_scales, w_scales;
} product_data;

static blas_operands operands_of(const product_data *d)
{
    return (blas_operands){d->out.at, d->x.at, d->w.at, d->bias.at, d->x_scales.at, d->w_scales.at};
}

static product_data make_product(blas_product *p)
{
    const int64_t count = p->count ? p->count : 1, w_rows = p->w_by_rows ? p->k : p->n;
    p->x_stride = p->x_stride ? p->x_stride : p->k;
    p->w_stride = p->w_stride ? p->w_stride : p->w_by_rows ? p->n : p->k;
    p->out_stride = p->out_stride ? p->out_stride : p->n;
    if (count > 1) {
        p->x_next = p->m * p->x_stride;
        p->w_next = w_rows * p->w_stride;
        p->out_next = p->m * p->out_stride;
    }
    product_data d = {0};
    d.x = make_numbers(p->type, (size_t)(count * p->m * p->x_stride));
    d.w = make_numbers(p->type, (size_t)(count * w_rows * p->w_stride));
    d.out = make_numbers(p->out_type, (size_t)(count * p->m * p->out_stride));
    if (p->bias)
        d.bias = make_numbers(p->bias_type, (size_t)p->n);
    if (p->scaled) {
        d.x_scales = make_numbers(DTYPE_F32, (size_t)p->m);
        d.w_scales = make_numbers(DTYPE_F32, (size_t)p->n);
    }
    return d;
}

static void free_product(product_data *d)
{
    numbers *all[] = {&d->x, &d->w, &d->out, &d->bias, &d->x_scales, &d->w_scales};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free_numbers(all[i]);
}

static double gelu(double v)
{
    return 0.5 * v * (1 + tanh(0.79788456080286535588 * (v + 0.044715 * v * v * v)));
}

/* One result against the sum in double, with a bound: sums in float32 may lose a unit in the last
 * place of the sum of magnitudes with each term. The tensor cores of Hopper add e4m3 products, 32
 * at a time, in 14 bits; those sums go to float32 after 128 terms, or never (fast_sums). */
static void check_product(tally *t, const blas_product *p, const product_data *d,
                          const numbers *before, int64_t c, int64_t i, int64_t j)
{
    double sum = 0, magnitude = 0;
    for (int64_t k = 0; k < p->k; k++) {
        const int64_t at = p->w_by_rows ? k * p->w_stride + j : j * p->w_stride + k;
        const double term = get(&d->x, (size_t)(c * p->x_next + i * p->x_stride + k)) *
                            get(&d->w, (size_t)(c * p->w_next + at));
        sum += term;
        magnitude += fabs(term);
    }
    double loss = p->type == DTYPE_I8 ? 0 : ((double)p->k + 8) * 0x1p-23;
    if (p->type == DTYPE_F8_E4M3)
        loss += (p->fast_sums ? (double)p->k / 32 + 1 : 8.0) * 0x1p-13;
    const double factor = p->scaled ? get(&d->x_scales, (size_t)i) * get(&d->w_scales, (size_t)j)
                          : p->factor != 0 ? (double)p->factor
                                           : 1;
    double value = sum * factor, bound = loss * magnitude * fabs(factor);
    const size_t at = (size_t)(c * p->out_next + i * p->out_stride + j);
    double largest = fabs(value);
    if (p->add) {
        value += get(before, at);
        largest += fabs(get(before, at));
    }
    if (p->bias) {
        value += get(&d->bias, (size_t)j);
        largest += fabs(get(&d->bias, (size_t)j));
    }
    if (p->type != DTYPE_I8)
        bound += largest * 0x1p-22;
    if (p->epilogue == BLAS_GELU_TANH) { /* no steeper than 1.13; tanh by an instruction: 2^-10 */
        bound = 1.13 * bound + 0x1p-10 * fabs(value);
        value = gelu(value);
    }
    compare(t, get(&d->out, at), value, bound + rounding(p->out_type) * fabs(value));
}

/* Numbers between the rows of the result must be what they were. */
static bool gaps_untouched(const blas_product *p, const product_data *d, const numbers *before)
{
    const size_t size = dtype_size(p->out_type);
    const int64_t rows = (p->count ? p->count : 1) * p->m;
    for (int64_t i = 0; i < rows && p->out_stride > p->n; i++) {
        const size_t at = (size_t)(i * p->out_stride + p->n) * size;
        if (memcmp(d->out.raw + at, before->raw + at, (size_t)(p->out_stride - p->n) * size) != 0)
            return false;
    }
    return true;
}

static void check_all(tally *t, const blas_product *p, const product_data *d, const numbers *before)
{
    const int64_t count = p->count ? p->count : 1, all = count * p->m * p->n;
    const bool every = all * p->k <= 30000000;
    for (int64_t s = 0; s < (every ? all : SAMPLES); s++) {
        const int64_t at = every ? s : (int64_t)(random32() % (uint64_t)all);
        check_product(t, p, d, before, at / (p->m * p->n), at / p->n % p->m, at % p->n);
    }
}

typedef struct product_call {
    blas *b;
    const blas_product *p;
    blas_operands at;
} product_call;

static ct_status call_product(void *user, ct_error *error)
{
    const product_call *c = user;
    return blas_multiply(c->b, gpu.stream, false, gpu.workspace, c->p, &c->at, error);
}

/* must: a GPU of today that cannot do it is a failure. */
static void try_product(blas *b, blas_product p, bool must, bool timed)
{
    char name[128], rest[160] = "";
    snprintf(name, sizeof name, "%s>%s %dx%dx%d%s%s%s%s%s%s%s%s", dtype_name(p.type),
             dtype_name(p.out_type), (int)p.m, (int)p.n, (int)p.k, p.add ? " add" : "",
             p.bias ? " bias " : "", p.bias ? dtype_name(p.bias_type) : "",
             p.epilogue ? " gelu" : "", p.count > 1 ? " batch" : "", p.w_by_rows ? " rows" : "",
             p.scaled ? " scaled" : "", p.fast_sums ? " fast" : "");
    product_data d = make_product(&p);
    numbers before = copy_of(&d.out);
    ct_error error;
    if (!blas_can(b, &p)) {
        printf("%-6s %-58s the library has nothing for it\n", must ? "FAILED" : "none", name);
        failures += must;
    } else {
        const double start = clock_seconds();
        product_call call = {b, &p, operands_of(&d)};
        const ct_status status = call_product(&call, &error);
        if (status != CT_OK) {
            report_error(name, &error);
        } else {
            download(&d.out);
            const double first = clock_seconds() - start;
            tally t = {0};
            check_all(&t, &p, &d, &before);
            if (timed) {
                const double ms = time_calls(call_product, &call, 20);
                snprintf(rest, sizeof rest, ", %.3f ms, %.0f TFLOP/s, first call %.0f ms", ms,
                         2e-9 * (double)p.m * (double)p.n * (double)p.k / ms, first * 1e3);
            }
            report(name, &t, gaps_untouched(&p, &d, &before), rest);
        }
    }
    free(before.raw);
    free_product(&d);
}

static void test_products(void **state)
{
    (void)state;
    need_gpu();
    blas *b = open_blas(NULL);
    printf("%s on %s\n", blas_version(b), gpu.info.name);
    const bool ampere = gpu.info.major >= 8;
    const dtype types[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
    for (int i = 0; i < 3; i++) {
        const dtype t = types[i];
        const bool must = t != DTYPE_BF16 || ampere;
#define TRY(...) try_product(b, (blas_product){__VA_ARGS__, .type = t}, must, false)
        TRY(.out_type = t, .m = 200, .n = 136, .k = 512);
        TRY(.out_type = DTYPE_F32, .m = 200, .n = 136, .k = 512);
        TRY(.out_type = t, .m = 1, .n = 7, .k = 5);
        TRY(.out_type = DTYPE_F32, .m = 3, .n = 1, .k = 1);
        TRY(.out_type = t, .m = 1, .n = 3840, .k = 256, .bias = true, .bias_type = t);
        TRY(.out_type = t, .m = 33, .n = 64, .k = 96, .add = true);
        TRY(.out_type = DTYPE_F32, .m = 33, .n = 64, .k = 96, .add = true);
        TRY(.out_type = t, .m = 33, .n = 64, .k = 96, .epilogue = BLAS_GELU_TANH);
        TRY(.out_type = t, .m = 33, .n = 64, .k = 96, .bias = true, .bias_type = t,
            .epilogue = BLAS_GELU_TANH);
        TRY(.out_type = t, .m = 33, .n = 64, .k = 96, .bias = true, .bias_type = t, .add = true);
        TRY(.out_type = t, .m = 100, .n = 72, .k = 64, .w_by_rows = true);
        TRY(.out_type = t, .m = 100, .n = 72, .k = 64, .x_stride = 80, .w_stride = 96,
            .out_stride = 88);
        TRY(.out_type = t, .m = 40, .n = 48, .k = 64, .count = 6);
        TRY(.out_type = t, .m = 40, .n = 48, .k = 64, .count = 6, .w_by_rows = true);
        TRY(.out_type = t, .m = 40, .n = 48, .k = 64, .factor = 0.125f);
#undef TRY
        /* Not promised: a bias in float32 under a result of 16 bits. */
        try_product(b,
                    (blas_product){.type = t,
                                   .out_type = t,
                                   .m = 33,
                                   .n = 64,
                                   .k = 96,
                                   .bias = true,
                                   .bias_type = DTYPE_F32},
                    false, false);
    }
    /* All pairs of e4m3 numbers go with scales for each row on Hopper, from cuBLASLt 12.9. */
    const bool hopper = gpu.info.major == 9;
    const dtype e4m3 = DTYPE_F8_E4M3;
#define TRY8(must, ...) try_product(b, (blas_product){__VA_ARGS__, .type = e4m3}, must, false)
    for (int i = 0; i < 3; i++) {
        TRY8(hopper && i == 0, .out_type = types[i], .m = 208, .n = 144, .k = 512, .scaled = true);
        TRY8(false, .out_type = types[i], .m = 33, .n = 64, .k = 96, .scaled = true);
        TRY8(false, .out_type = types[i], .m = 208, .n = 144, .k = 512);
    }
    TRY8(false, .out_type = DTYPE_BF16, .m = 208, .n = 144, .k = 512, .scaled = true,
         .fast_sums = true);
    TRY8(false, .out_type = DTYPE_BF16, .m = 208, .n = 144, .k = 512, .scaled = true, .add = true);
    TRY8(false, .out_type = DTYPE_F32, .m = 208, .n = 144, .k = 512, .scaled = true, .add = true);
    TRY8(false, .out_type = DTYPE_BF16, .m = 208, .n = 144, .k = 512, .scaled = true, .bias = true,
         .bias_type = DTYPE_BF16);
    TRY8(false, .out_type = DTYPE_BF16, .m = 208, .n = 144, .k = 512, .scaled = true, .bias = true,
         .bias_type = DTYPE_BF16, .epilogue = BLAS_GELU_TANH);
    TRY8(false, .out_type = DTYPE_BF16, .m = 1, .n = 3840, .k = 256, .scaled = true);
    TRY8(false, .out_type = DTYPE_BF16, .m = 16, .n = 7, .k = 5, .scaled = true);
#undef TRY8
    const blas_product integers = {
        .type = DTYPE_I8, .out_type = DTYPE_I32, .m = 200, .n = 136, .k = 512};
    blas_product p = integers;
    try_product(b, p, true, false);
    p.add = true;
    try_product(b, p, false, false);
    p = integers;
    p.m = 1, p.n = 7, p.k = 5;
    try_product(b, p, false, false);
    p = integers;
    p.m = 33, p.x_stride = 576, p.w_stride = 544, p.out_stride = 144;
    try_product(b, p, false, false);
    blas_close(b);
    assert_int_equal(failures, 0);
}

static void test_product_speed(void **state)
{
    (void)state;
    need_gpu();
    if (gpu.info.major < 8)
        skip();
    blas *b = open_blas(NULL);
    const int shapes[][3] = {{4224, 11520, 3840}, {4224, 3840, 3840},  {4224, 20480, 3840},
                             {4224, 3840, 10240}, {1152, 11520, 3840}, {128, 9728, 2560}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const blas_product p = {.m = shapes[i][0],
                                .n = shapes[i][1],
                                .k = shapes[i][2],
                                .type = DTYPE_BF16,
                                .out_type = DTYPE_BF16};
        blas_product q = p;
        try_product(b, p, true, true);
        q.out_type = DTYPE_F32;
        q.add = true;
        try_product(b, q, true, true);
        q = p;
        q.type = DTYPE_F8_E4M3;
        q.scaled = true;
        try_product(b, q, false, true);
        q.fast_sums = true;
        try_product(b, q, false, true);
        q.scaled = false;
        q.fast_sums = false;
        try_product(b, q, false, true);
        q = p;
        q.type = DTYPE_I8;
        q.out_type = DTYPE_I32;
        try_product(b, q, false, true);
    }
    blas_close(b);
    assert_int_equal(failures, 0);
}

/* A result's bytes, from a library that is opened for it. Returns the seconds of the call. */
static double bits_of(const char *folder, const blas_product *p, const product_data *d,
                      numbers *result)
{
    blas *b = open_blas(folder);
    product_call call = {b, p, operands_of(d)};
    ct_error error;
    assert_true(blas_can(b, p));
    const double start = clock_seconds();
    test_ok(call_product(&call, &error), &error);
    download(result);
    const double seconds = clock_seconds() - start;
    blas_close(b);
    return seconds;
}

static void test_choices_are_kept(void **state)
{
    (void)state;
    need_gpu();
    test_folder folder;
    test_folder_create(&folder);
    blas_product p = {.m = 1100, .n = 1280, .k = 2560, .type = DTYPE_F16, .out_type = DTYPE_F16};
    product_data d = make_product(&p);
    const double first = bits_of(folder.path, &p, &d, &d.out);
    assert_int_equal(test_folder_count(&folder), 1);
    numbers before = copy_of(&d.out);
    const double second = bits_of(folder.path, &p, &d, &d.out);
    assert_memory_equal(before.raw, d.out.raw, d.out.count * 2);
    printf("first call %.1f ms; with the choice from the file %.1f ms\n", first * 1e3,
           second * 1e3);
    free(before.raw);
    free_product(&d);
    test_folder_remove(&folder);
}

/* ---- The file of choices -------------------------------------------------------------------- */

static blas_choice choice(int64_t m, uint64_t algorithm)
{
    return (blas_choice){.key = {.m = m, .n = 2, .k = 3}, .algo = {{algorithm}}};
}

static void test_choice_file(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "choices.bin");
    blas_choice *read;
    size_t count, size;
    ct_error error;
    blas_file_read(&mem_default, path, &read, &count);
    assert_int_equal(count, 0);
    const blas_choice first[] = {choice(1, 10), choice(2, 20)};
    test_ok(blas_file_add(&mem_default, path, first, 2, &error), &error);
    /* What another process wrote stays, and wins. */
    const blas_choice second[] = {choice(2, 21), choice(3, 30)};
    test_ok(blas_file_add(&mem_default, path, second, 2, &error), &error);
    blas_file_read(&mem_default, path, &read, &count);
    assert_int_equal(count, 3);
    for (uint64_t i = 0; i < 3; i++) {
        assert_int_equal(read[i].key.m, i + 1);
        assert_int_equal(read[i].algo.data[0], (i + 1) * 10);
    }
    mem_free(&mem_default, read);
    /* Any byte that differs, and any length, makes it no file. */
    unsigned char *bytes = test_read_file(path, &size);
    for (size_t at = 0; at < size; at += 7) {
        bytes[at] ^= 4;
        test_write_file(path, bytes, size);
        blas_file_read(&mem_default, path, &read, &count);
        assert_int_equal(count, 0);
        assert_null(read);
        bytes[at] ^= 4;
    }
    for (size_t shorter = 0; shorter < size; shorter += 13) {
        test_write_file(path, bytes, shorter);
        blas_file_read(&mem_default, path, &read, &count);
        assert_int_equal(count, 0);
    }
    free(bytes);
    test_ok(blas_file_add(&mem_default, path, first, 1, &error), &error);
    blas_file_read(&mem_default, path, &read, &count);
    assert_int_equal(count, 1);
    mem_free(&mem_default, read);
    assert_int_equal(test_folder_count(&folder), 1);
    test_folder_remove(&folder);
}

/* ---- cuDNN ---------------------------------------------------------------------------------- */

/* NULL where cuDNN is missing. */
static dnn *open_dnn(void)
{
    const dnn_params params = {&mem_default, &gpu.d, &gpu.info, gpu.stream};
    dnn *d;
    ct_error error;
    const double start = clock_seconds();
    const ct_status status = dnn_open(&d, &params, &error);
    if (status == CT_ENOTFOUND) {
        printf("%s\n", error.message);
        return NULL;
    }
    test_ok(status, &error);
    printf("%s, opened in %.2f s\n", dnn_version(d), clock_seconds() - start);
    return d;
}

typedef struct attention_call {
    dnn *d;
    const dnn_attention *p;
    dnn_attention_operands at;
} attention_call;

static ct_status call_attention(void *user, ct_error *error)
{
    const attention_call *c = user;
    return dnn_attend(c->d, c->p, &c->at, error);
}

/* Weights of the sum are rounded to the type (the bound for that: one unit), and off by what their
 * scores are off by: sums of float32 over dim, times the scale. */
static void check_attention(tally *t, const dnn_attention *p, const numbers *q, size_t q_at,
                            const numbers *k, size_t k_at, const numbers *v, size_t v_at,
                            const numbers *out, int64_t i, int h, double *weights)
{
    const int g = h / (p->heads / p->kv_heads);
    const int64_t keys = p->causal ? i + 1 : p->keys;
    double most = -INFINITY, sum = 0, loss = 0;
    for (int64_t j = 0; j < keys; j++) {
        double s = 0, magnitude = 0;
        for (int c = 0; c < p->dim; c++) {
            const double term = get(q, q_at + (size_t)(i * p->q_stride + h * p->dim + c)) *
                                get(k, k_at + (size_t)(j * p->k_stride + g * p->dim + c));
            s += term;
            magnitude += fabs(term);
        }
        weights[j] = s / sqrt(p->dim);
        most = fmax(most, weights[j]);
        loss = fmax(loss, (p->dim + 8) * 0x1p-23 * magnitude / sqrt(p->dim));
    }
    for (int64_t j = 0; j < keys; j++)
        sum += weights[j] = exp(weights[j] - most);
    for (int c = 0; c < p->dim; c++) {
        double value = 0, magnitude = 0;
        for (int64_t j = 0; j < keys; j++) {
            const double x = get(v, v_at + (size_t)(j * p->v_stride + g * p->dim + c));
            value += weights[j] / sum * x;
            magnitude += weights[j] / sum * fabs(x);
        }
        const double rel = rounding(p->type) + 2 * loss + ((double)keys + 8) * 0x1p-23 + 0x1p-20;
        compare(t, get(out, (size_t)(i * p->out_stride + h * p->dim + c)), value,
                rel * magnitude + rounding(p->type) * fabs(value));
    }
}

/* packed: q, k and v beside each other in one buffer; onto_q: the result over q. */
static void try_attention(dnn *d, dnn_attention p, bool packed, bool onto_q, bool must, bool timed)
{
    char name[128], rest[160] = "";
    snprintf(name, sizeof name, "%s %d:%d heads of %d, %dx%d%s%s%s%s", dtype_name(p.type), p.heads,
             p.kv_heads, p.dim, (int)p.queries, (int)p.keys, p.causal ? " causal" : "",
             packed ? " packed" : "", onto_q ? " onto q" : "", p.composed ? " composed" : "");
    const int64_t wide = (int64_t)p.heads * p.dim, narrow = (int64_t)p.kv_heads * p.dim;
    numbers q, k = {0}, v = {0}, out = {0};
    size_t k_at = 0, v_at = 0;
    const size_t size = dtype_size(p.type);
    if (packed) {
        p.q_stride = p.k_stride = p.v_stride = wide + 2 * narrow;
        const int64_t rows = p.queries > p.keys ? p.queries : p.keys;
        q = make_numbers(p.type, (size_t)(rows * p.q_stride));
        k_at = (size_t)wide;
        v_at = (size_t)(wide + narrow);
    } else {
        p.q_stride = wide;
        p.k_stride = p.v_stride = narrow;
        q = make_numbers(p.type, (size_t)(p.queries * wide));
        k = make_numbers(p.type, (size_t)(p.keys * narrow));
        v = make_numbers(p.type, (size_t)(p.keys * narrow));
    }
    p.out_stride = onto_q ? p.q_stride : wide;
    if (!onto_q)
        out = make_numbers(p.type, (size_t)(p.queries * wide));
    numbers result = onto_q ? copy_of(&q) : out;
    result.at = onto_q ? q.at : out.at;
    attention_call call = {d,
                           &p,
                           {result.at, q.at, (packed ? q.at : k.at) + k_at * size,
                            (packed ? q.at : v.at) + v_at * size}};
    ct_error error;
    const double start = clock_seconds();
    const ct_status status = call_attention(&call, &error);
    if (status == CT_EUNSUPPORTED && !must) {
        printf("none   %-58s %s\n", name, error.message);
    } else if (status != CT_OK) {
        report_error(name, &error);
    } else {
        download(&result);
        const double first = clock_seconds() - start;
        tally t = {0};
        double *weights = malloc((size_t)p.keys * sizeof *weights);
        assert_non_null(weights);
        const int64_t rows = p.queries < 400 ? p.queries : 12;
        for (int64_t r = 0; r < rows; r++) {
            const int64_t i = rows == p.queries ? r : (int64_t)(random32() % (uint64_t)p.queries);
            check_attention(&t, &p, &q, 0, packed ? &q : &k, k_at, packed ? &q : &v, v_at, &result,
                            i, (int)(random32() % (unsigned)p.heads), weights);
        }
        free(weights);
        if (timed) {
            const double ms = time_calls(call_attention, &call, 10);
            const double work = 4e-9 * (double)p.queries * (double)p.keys * (double)wide;
            snprintf(rest, sizeof rest, ", %.3f ms, %.0f TFLOP/s, first call %.0f ms", ms,
                     (p.causal ? 0.5 : 1) * work / ms, first * 1e3);
        }
        report(name, &t, true, rest);
    }
    if (onto_q)
        free(result.raw);
    numbers *all[] = {&q, &k, &v, &out};
    for (int i = 0; i < 4; i++)
        free_numbers(all[i]);
}

static void test_attention(void **state)
{
    (void)state;
    need_gpu();
    dnn *d = open_dnn();
    if (!d)
        skip();
    const bool must = gpu.info.major >= 9;
    for (int composed = 0; composed < 2; composed++)
        for (int i = 0; i < 2; i++) {
            const dtype t = i ? DTYPE_F16 : DTYPE_BF16;
#define TRY(h, g, dm, sq, sk, mask, packed, onto)                                                  \
    try_attention(d,                                                                               \
                  (dnn_attention){.type = t,                                                       \
                                  .heads = h,                                                      \
                                  .kv_heads = g,                                                   \
                                  .dim = dm,                                                       \
                                  .queries = sq,                                                   \
                                  .keys = sk,                                                      \
                                  .causal = mask,                                                  \
                                  .composed = composed != 0},                                      \
                  packed, onto, must, false)
            TRY(30, 30, 128, 256, 256, false, true, false);
            TRY(30, 30, 128, 33, 33, false, true, false);
            TRY(4, 4, 64, 200, 200, false, false, false);
            TRY(4, 4, 128, 33, 333, false, false, false);
            TRY(32, 8, 128, 130, 130, false, true, false);
            TRY(32, 8, 128, 130, 130, true, true, false);
            TRY(32, 8, 128, 128, 128, true, true, false);
            TRY(4, 4, 128, 1, 1, true, true, false);
            TRY(24, 24, 128, 300, 300, false, true, true);
#undef TRY
        }
    /* The decoder's attention over a picture: one head as wide as its channels. */
    try_attention(d,
                  (dnn_attention){.type = DTYPE_BF16,
                                  .heads = 1,
                                  .kv_heads = 1,
                                  .dim = 512,
                                  .queries = 1024,
                                  .keys = 1024},
                  false, false, false, false);
    for (int composed = 0; composed < 2; composed++) {
        dnn_attention p = {.type = DTYPE_BF16,
                           .heads = 30,
                           .kv_heads = 30,
                           .dim = 128,
                           .queries = 4224,
                           .keys = 4224,
                           .composed = composed != 0};
        try_attention(d, p, true, false, must, true);
        p.queries = p.keys = 1152;
        try_attention(d, p, true, false, must, true);
    }
    try_attention(d,
                  (dnn_attention){.type = DTYPE_BF16,
                                  .heads = 32,
                                  .kv_heads = 8,
                                  .dim = 128,
                                  .queries = 512,
                                  .keys = 512,
                                  .causal = true},
                  true, false, must, true);
    printf("device memory for plans: %.1f MiB\n", (double)dnn_memory(d) / 1048576.0);
    dnn_close(d);
    assert_int_equal(failures, 0);
}

typedef struct conv_call {
    dnn *d;
    const dnn_conv *p;
    dnn_conv_operands at;
} conv_call;

static ct_status call_conv(void *user, ct_error *error)
{
    const conv_call *c = user;
    return dnn_convolve(c->d, c->p, &c->at, error);
}

typedef struct conv_data {
    numbers x, w, out, bias;
} conv_data;

static void check_conv(tally *t, const dnn_conv *p, const conv_data *d, const numbers *before,
                       int64_t row, int64_t column, int64_t o, int64_t width)
{
    double sum = 0, magnitude = 0;
    for (int r = 0; r < p->kernel; r++)
        for (int s = 0; s < p->kernel; s++) {
            const int64_t y = row * p->stride + r - p->pad_before;
            const int64_t x = column * p->stride + s - p->pad_before;
            if (y < 0 || y >= p->height || x < 0 || x >= p->width)
                continue;
            for (int64_t c = 0; c < p->in; c++) {
                const double term =
                    get(&d->x, (size_t)((y * p->width + x) * p->in + c)) *
                    get(&d->w, (size_t)(((o * p->kernel + r) * p->kernel + s) * p->in + c));
                sum += term;
                magnitude += fabs(term);
            }
        }
    const size_t at = (size_t)((row * width + column) * p->out + o);
    const double added = p->add ? get(before, at) : 0,
                 bias = p->bias ? get(&d->bias, (size_t)o) : 0;
    const double value = sum + added + bias, terms = (double)(p->kernel * p->kernel * p->in) + 8;
    /* A sum that is stored in between is rounded once more. */
    compare(t, get(&d->out, at), value,
            terms * 0x1p-23 * magnitude +
                rounding(p->type) * (fabs(value) + fabs(sum) + fabs(added)));
}

static void try_conv(dnn *d, dnn_conv p, bool must, bool timed)
{
    char name[128], rest[160] = "";
    snprintf(name, sizeof name, "%s conv %dx%d %d>%d kernel %d stride %d pad %d:%d%s%s",
             dtype_name(p.type), (int)p.height, (int)p.width, (int)p.in, (int)p.out, p.kernel,
             p.stride, p.pad_before, p.pad_after, p.bias ? " bias" : "", p.add ? " add" : "");
    const int64_t pad = p.pad_before + p.pad_after - p.kernel;
    const int64_t height = (p.height + pad) / p.stride + 1, width = (p.width + pad) / p.stride + 1;
    conv_data c = {make_numbers(p.type, (size_t)(p.height * p.width * p.in)),
                   make_numbers(p.type, (size_t)(p.out * p.kernel * p.kernel * p.in)),
                   make_numbers(p.type, (size_t)(height * width * p.out)),
                   make_numbers(DTYPE_F32, (size_t)p.out)};
    numbers before = copy_of(&c.out);
    conv_call call = {d, &p, {c.out.at, c.x.at, c.w.at, c.bias.at}};
    ct_error error;
    const double start = clock_seconds();
    const ct_status status = call_conv(&call, &error);
    if (status == CT_EUNSUPPORTED && !must) {
        printf("none   %-58s %s\n", name, error.message);
    } else if (status != CT_OK) {
        report_error(name, &error);
    } else {
        download(&c.out);
        const double first = clock_seconds() - start;
        tally t = {0};
        const int64_t all = height * width * p.out;
        const bool every = all * p.kernel * p.kernel * p.in <= 30000000;
        for (int64_t s = 0; s < (every ? all : SAMPLES); s++) {
            const int64_t at = every ? s : (int64_t)(random32() % (uint64_t)all);
            check_conv(&t, &p, &c, &before, at / p.out / width, at / p.out % width, at % p.out,
                       width);
        }
        snprintf(rest, sizeof rest, ", first call %.0f ms", first * 1e3);
        if (timed) {
            const double ms = time_calls(call_conv, &call, 10);
            snprintf(rest, sizeof rest, ", %.3f ms, %.0f TFLOP/s, first call %.0f ms", ms,
                     2e-9 * (double)all * (double)(p.kernel * p.kernel * p.in) / ms, first * 1e3);
        }
        report(name, &t, true, rest);
    }
    free(before.raw);
    numbers *n[] = {&c.x, &c.w, &c.out, &c.bias};
    for (int i = 0; i < 4; i++)
        free_numbers(n[i]);
}

static void test_convolution(void **state)
{
    (void)state;
    need_gpu();
    dnn *d = open_dnn();
    if (!d)
        skip();
    const bool must = gpu.info.major >= 8;
    const dtype types[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
    for (int i = 0; i < 3; i++) {
#define TRY(h, w, ci, co, k, st, before, after, b, a)                                              \
    try_conv(d,                                                                                    \
             (dnn_conv){.type = types[i],                                                          \
                        .height = h,                                                               \
                        .width = w,                                                                \
                        .in = ci,                                                                  \
                        .out = co,                                                                 \
                        .kernel = k,                                                               \
                        .stride = st,                                                              \
                        .pad_before = before,                                                      \
                        .pad_after = after,                                                        \
                        .bias = b,                                                                 \
                        .add = a},                                                                 \
             must, false)
        TRY(20, 24, 32, 48, 3, 1, 1, 1, false, false);
        TRY(20, 24, 32, 48, 3, 1, 1, 1, true, false);
        TRY(20, 24, 32, 48, 3, 1, 1, 1, false, true);
        TRY(20, 24, 32, 48, 3, 1, 1, 1, true, true);
        TRY(20, 24, 64, 32, 1, 1, 0, 0, true, false);
        TRY(20, 24, 32, 32, 3, 2, 0, 1, true, false);
        TRY(21, 23, 32, 32, 3, 2, 0, 1, true, false);
        TRY(16, 16, 16, 512, 3, 1, 1, 1, true, false);
        TRY(32, 32, 512, 512, 3, 1, 1, 1, true, true);
#undef TRY
        /* The picture's three channels fit no vector: our own kernels may have to do it. */
        try_conv(d,
                 (dnn_conv){.type = types[i],
                            .height = 32,
                            .width = 32,
                            .in = 128,
                            .out = 3,
                            .kernel = 3,
                            .stride = 1,
                            .pad_before = 1,
                            .pad_after = 1,
                            .bias = true},
                 false, false);
        try_conv(d,
                 (dnn_conv){.type = types[i],
                            .height = 32,
                            .width = 32,
                            .in = 3,
                            .out = 128,
                            .kernel = 3,
                            .stride = 1,
                            .pad_before = 1,
                            .pad_after = 1,
                            .bias = true},
                 false, false);
    }
    const int shapes[][2] = {{128, 512}, {512, 256}, {1024, 128}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int add = 0; add < 2; add++)
            try_conv(d,
                     (dnn_conv){.type = DTYPE_BF16,
                                .height = shapes[i][0],
                                .width = shapes[i][0],
                                .in = shapes[i][1],
                                .out = shapes[i][1],
                                .kernel = 3,
                                .stride = 1,
                                .pad_before = 1,
                                .pad_after = 1,
                                .bias = true,
                                .add = add != 0},
                     must, true);
    printf("device memory for plans: %.1f MiB\n", (double)dnn_memory(d) / 1048576.0);
    dnn_close(d);
    assert_int_equal(failures, 0);
}

/* ---- A GPU, if there is one ----------------------------------------------------------------- */

static int open_gpu(void **state)
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

static int close_gpu(void **state)
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice_file),      cmocka_unit_test(test_products),
        cmocka_unit_test(test_choices_are_kept), cmocka_unit_test(test_attention),
        cmocka_unit_test(test_convolution),      cmocka_unit_test(test_product_speed),
    };
    return cmocka_run_group_tests(tests, open_gpu, close_gpu);
}
