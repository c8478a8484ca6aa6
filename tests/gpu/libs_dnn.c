/* Attention and convolutions of cuDNN against plain loops in double, and their speed. */
#include "gpu_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/mem.h"
#include "libs.h"
#include "nn/cuda/dnn.h"

/* NULL where cuDNN is missing. */
static dnn *open_dnn(const char *folder)
{
    const dnn_params params = {&mem_default, &gpu.d, &gpu.info, gpu.stream, folder};
    dnn *d;
    ct_error error;
    const double start = clock_seconds();
    const ct_status status = dnn_open(&d, &params, &error);
    if (status == CT_ENOTFOUND) {
        printf("%s\n", error.message);
        return NULL;
    }
    test_ok(status, &error);
    char version[DNN_VERSION_BYTES];
    printf("%s, opened in %.2f s\n", dnn_find(version) ? version : "", clock_seconds() - start);
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

void test_attention(void **state)
{
    (void)state;
    need_gpu();
    dnn *d = open_dnn(NULL);
    if (!d)
        skip();
    const bool must = gpu.info.major >= 9;
    for (int composed = 0; composed < 2; composed++)
        for (int i = 0; i < 2; i++) {
            const dtype t = i ? DTYPE_F16 : DTYPE_BF16;
            if (i && composed) /* each takes the library about a second to compile */
                continue;
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
    numbers x, w, out;
} conv_data;

static void check_conv(tally *t, const dnn_conv *p, const conv_data *d, int64_t row, int64_t column,
                       int64_t o, int64_t width)
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
    const double terms = (double)(p->kernel * p->kernel * p->in) + 8;
    compare(t, get(&d->out, at), sum,
            terms * 0x1p-23 * magnitude + rounding(p->type) * 2 * fabs(sum));
}

static void try_conv(dnn *d, dnn_conv p, bool must, bool timed)
{
    char name[128], rest[160] = "";
    snprintf(name, sizeof name, "%s conv %dx%d %d>%d kernel %d stride %d pad %d:%d",
             dtype_name(p.type), (int)p.height, (int)p.width, (int)p.in, (int)p.out, p.kernel,
             p.stride, p.pad_before, p.pad_after);
    const int64_t pad = p.pad_before + p.pad_after - p.kernel;
    const int64_t height = (p.height + pad) / p.stride + 1, width = (p.width + pad) / p.stride + 1;
    conv_data c = {make_numbers(p.type, (size_t)(p.height * p.width * p.in)),
                   make_numbers(p.type, (size_t)(p.out * p.kernel * p.kernel * p.in)),
                   make_numbers(p.type, (size_t)(height * width * p.out))};
    conv_call call = {d, &p, {c.out.at, c.x.at, c.w.at}};
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
            check_conv(&t, &p, &c, at / p.out / width, at / p.out % width, at % p.out, width);
        }
        snprintf(rest, sizeof rest, ", first call %.0f ms", first * 1e3);
        if (timed) {
            const double ms = time_calls(call_conv, &call, 10);
            snprintf(rest, sizeof rest, ", %.3f ms, %.0f TFLOP/s, first call %.0f ms", ms,
                     2e-9 * (double)all * (double)(p.kernel * p.kernel * p.in) / ms, first * 1e3);
        }
        report(name, &t, true, rest);
    }
    numbers *n[] = {&c.x, &c.w, &c.out};
    for (int i = 0; i < 3; i++)
        free_numbers(n[i]);
}

void test_convolution(void **state)
{
    (void)state;
    need_gpu();
    dnn *d = open_dnn(NULL);
    if (!d)
        skip();
    const bool must = gpu.info.major >= 8;
    const dtype types[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
    for (int i = 0; i < 3; i++) {
#define TRY(h, w, ci, co, k, st, before, after)                                                    \
    try_conv(d,                                                                                    \
             (dnn_conv){.type = types[i],                                                          \
                        .height = h,                                                               \
                        .width = w,                                                                \
                        .in = ci,                                                                  \
                        .out = co,                                                                 \
                        .kernel = k,                                                               \
                        .stride = st,                                                              \
                        .pad_before = before,                                                      \
                        .pad_after = after},                                                       \
             must, false)
        TRY(20, 24, 32, 48, 3, 1, 1, 1);
        TRY(20, 24, 64, 32, 1, 1, 0, 0);
        TRY(20, 24, 32, 32, 3, 2, 0, 1);
        TRY(21, 23, 32, 32, 3, 2, 0, 1);
        TRY(16, 16, 16, 512, 3, 1, 1, 1);
        TRY(32, 32, 512, 512, 3, 1, 1, 1);
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
                            .pad_after = 1},
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
                            .pad_after = 1},
                 false, false);
    }
    /* What the VAE's decoder asks for at 1024 x 1024: padded copies of bands, then
     * the convolutions of doubled pictures; and the same of Qwen's VAE. */
    static const int64_t bands[][5] = {
        {130, 130, 512, 512, 3},  {258, 258, 512, 512, 3},  {258, 514, 512, 256, 3},
        {514, 514, 256, 256, 3},  {258, 1026, 256, 128, 3}, {514, 1026, 128, 128, 3},
        {130, 130, 512, 2048, 2}, {130, 258, 512, 2048, 2}, {130, 514, 256, 1024, 2},
        {130, 130, 384, 384, 3},  {258, 258, 384, 384, 3},  {514, 514, 192, 192, 3},
        {514, 1026, 96, 96, 3},   {130, 130, 384, 768, 2},  {258, 258, 384, 768, 2},
        {514, 514, 192, 384, 2}};
    for (size_t i = 0; i < sizeof bands / sizeof *bands; i++)
        try_conv(d,
                 (dnn_conv){.type = DTYPE_BF16,
                            .height = bands[i][0],
                            .width = bands[i][1],
                            .in = bands[i][2],
                            .out = bands[i][3],
                            .kernel = (int)bands[i][4],
                            .stride = 1},
                 must, true);
    printf("device memory for plans: %.1f MiB\n", (double)dnn_memory(d) / 1048576.0);
    dnn_close(d);
    assert_int_equal(failures, 0);
}

/* Bytes of an attention and a convolution by a library that is opened for them; seconds. */
static double bits_of(const char *folder, attention_call *attention, conv_call *conv, numbers *out)
{
    dnn *d = open_dnn(folder);
    ct_error error;
    assert_non_null(d);
    attention->d = conv->d = d;
    const double start = clock_seconds();
    test_ok(call_attention(attention, &error), &error);
    test_ok(call_conv(conv, &error), &error);
    for (int i = 0; i < 2; i++)
        download(&out[i]);
    const double seconds = clock_seconds() - start;
    dnn_close(d);
    return seconds;
}

void test_plans_are_kept(void **state)
{
    (void)state;
    need_gpu();
    dnn *there = open_dnn(NULL);
    if (!there || gpu.info.major < 9)
        skip();
    dnn_close(there);
    test_folder folder;
    test_folder_create(&folder);
    const int64_t heads = 8, rows = 320, stride = 3 * heads * 128;
    const dnn_attention a = {.type = DTYPE_BF16,
                             .heads = (int)heads,
                             .kv_heads = (int)heads,
                             .dim = 128,
                             .queries = rows,
                             .keys = rows,
                             .q_stride = stride,
                             .k_stride = stride,
                             .v_stride = stride,
                             .out_stride = heads * 128};
    const dnn_conv c = {.type = DTYPE_BF16,
                        .height = 40,
                        .width = 40,
                        .in = 64,
                        .out = 64,
                        .kernel = 3,
                        .stride = 1,
                        .pad_before = 1,
                        .pad_after = 1};
    numbers qkv = make_numbers(a.type, (size_t)(rows * stride)),
            x = make_numbers(c.type, 40 * 40 * 64);
    numbers w = make_numbers(c.type, 64 * 9 * 64);
    numbers out[] = {make_numbers(a.type, (size_t)(rows * heads * 128)),
                     make_numbers(c.type, 40 * 40 * 64)};
    attention_call attention = {
        NULL, &a, {out[0].at, qkv.at, qkv.at + 2 * 1024, qkv.at + 4 * 1024}};
    conv_call conv = {NULL, &c, {out[1].at, x.at, w.at}};
    const double first = bits_of(folder.path, &attention, &conv, out);
    assert_int_equal(test_folder_count(&folder), 2);
    numbers before[] = {copy_of(&out[0]), copy_of(&out[1])};
    const double second = bits_of(folder.path, &attention, &conv, out);
    printf("plans made in %.0f ms, read in %.0f ms\n", first * 1e3, second * 1e3);
    for (int i = 0; i < 2; i++) {
        assert_memory_equal(before[i].raw, out[i].raw, out[i].count * 2);
        free(before[i].raw);
        free_numbers(&out[i]);
    }
    numbers *all[] = {&qkv, &x, &w};
    for (int i = 0; i < 3; i++)
        free_numbers(all[i]);
    test_folder_remove(&folder);
}
