/* Matrix products of cuBLASLt against sums in double, and their speed. */
#include "gpu_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/mem.h"
#include "libs.h"
#include "nn/cuda/blas.h"

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

void test_products(void **state)
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

void test_product_speed(void **state)
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

void test_choices_are_kept(void **state)
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
