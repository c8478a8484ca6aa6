/* Every operation on a GPU beside the CPU in float32, on random shapes; recordings; memory. Prints
 * a line for each case and goes on after a failure, so that one run tells everything. Skipped where
 * there is no GPU that can be used.
 *
 * Numbers are rounded to bfloat16 before either device sees them, so what differs is how products
 * are computed: BOUND says how far, by precision. */
#include "test_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/mem.h"
#include "nn/cpu/kernels.h"
#include "nn/cuda/gpu.h"
#include "nn/nn.h"

static pool *threads;
static cpu_kernels kernels;
static cuda_gpu *gpu;
static uint64_t seed = 1;
static int failures, cases;

static uint32_t random32(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static int64_t between(int64_t low, int64_t high)
{
    return low + random32() % (high - low + 1);
}

static float number(float range)
{
    float f = ((float)random32() / 1073741824.0f - 1.0f) * range;
    return bf16_to_float(bf16_from_float(f));
}

static void *allocate(int64_t bytes)
{
    void *p = calloc(1, (size_t)bytes + 1);
    assert_non_null(p);
    return p;
}

static float *numbers(int64_t n, float range)
{
    float *x = allocate(n * 4);
    for (int64_t i = 0; i < n; i++)
        x[i] = number(range);
    return x;
}

/* A weight of any type, for the life of the process: copies on the GPU are known by address. */
static nn_weight weight(dtype type, int bits, int rank, int64_t n0, int64_t n1)
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

static nn_weight identity(int64_t n)
{
    float *one = allocate(n * n * 4);
    for (int64_t i = 0; i < n; i++)
        one[i * n + i] = 1;
    return (nn_weight){.name = "one", .type = DTYPE_F32, .rank = 2, .n = {n, n, 1, 1}, .data = one};
}

/* ---- Both devices ---------------------------------------------------------------------------- */

typedef struct test {
    const char *name;
    double bound[4]; /* relative L2 by nn_precision, that of NN_BF16 for NN_FP16; 0: not done */
    int64_t outputs; /* numbers that body downloads */
    void (*body)(nn *c, void *user, float *out);
    void *user;
} test;

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

static void run(const test *t)
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

static nn_tensor put_float(nn *c, const float *data, int64_t m, int64_t n)
{
    nn_tensor t = nn_new2(c, m, n);
    nn_upload(c, &t, data, m * n);
    return t;
}

/* In the work type: through a picture, the only way in. */
static nn_tensor put_picture(nn *c, const float *data, int64_t h, int64_t w, int64_t n)
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

static nn_tensor put_work(nn *c, const float *data, int64_t m, int64_t n)
{
    nn_tensor t = put_picture(c, data, m, 1, n);
    return nn_as2(c, &t, m, n);
}

static nn_tensor put(nn *c, bool work, const float *data, int64_t m, int64_t n)
{
    return work ? put_work(c, data, m, n) : put_float(c, data, m, n);
}

/* ---- Linear ---------------------------------------------------------------------------------- */

typedef struct linear_case {
    int64_t m, n, k;
    bool x_work, out_work, operand;
    float *x, *out, *gate;
    nn_weight w, up, bias, down, norm, identity;
    bool use_up, use_bias, use_gate, add;
    bool next, layer; /* a norm follows */
    nn_activation activation;
} linear_case;

static void linear_body(nn *c, void *user, float *out)
{
    const linear_case *l = user;
    nn_tensor x = put(c, l->x_work, l->x, l->m, l->k), gate = put_float(c, l->gate, 1, l->n);
    nn_tensor y = put(c, l->out_work, l->out, l->m, l->n);
    if (l->operand) {
        nn_tensor operand = nn_new_operand(c, l->m, l->k);
        nn_prepare(c, &operand, &x);
        x = operand;
    }
    nn_tensor normed = nn_new_operand(c, l->m, l->n), shift = put_float(c, l->out, 1, l->n);
    const nn_next_norm next = {.out = &normed,
                               .w = l->layer ? NULL : &l->norm,
                               .eps = 1e-5,
                               .scale = &gate,
                               .layer = l->layer,
                               .shift = l->layer ? &shift : NULL};
    nn_linear(c, &y, &x, &l->w,
              &(nn_epilogue){.bias = l->use_bias ? &l->bias : NULL,
                             .activation = l->activation,
                             .up = l->use_up ? &l->up : NULL,
                             .gate = l->use_gate ? &gate : NULL,
                             .add = l->add,
                             .next = l->next ? &next : NULL});
    if (l->next)
        nn_linear(c, &y, &normed, &l->identity, &(nn_epilogue){.add = true});
    nn_download(c, &y, out, l->m * l->n);
}

static void test_linear(void)
{
    static const struct {
        dtype type;
        int bits;
    } formats[] = {{DTYPE_F32, 0},  {DTYPE_F16, 0},  {DTYPE_BF16, 0}, {DTYPE_F8_E4M3, 0},
                   {DTYPE_BF16, 2}, {DTYPE_BF16, 3}, {DTYPE_BF16, 4}, {DTYPE_BF16, 5},
                   {DTYPE_BF16, 6}, {DTYPE_BF16, 8}};
    for (int i = 0; i < 40; i++) {
        linear_case l = {.m = between(1, i % 3 ? 70 : 600),
                         .n = between(1, 40) * 16,
                         .k = between(1, 30) * 32,
                         .x_work = random32() & 1,
                         .out_work = random32() & 1,
                         .operand = random32() & 1,
                         .use_up = i % 4 == 1,
                         .use_gate = i % 4 == 2,
                         .add = random32() & 1,
                         .activation = (nn_activation)(i % 3)};
        const int f = i % 10;
        l.use_bias = !l.use_up && (random32() & 1);
        l.next = i % 4 == 3 || i % 4 == 2;
        l.layer = i & 1;
        l.add = l.add || l.next;
        l.out_work = l.out_work && !l.next;
        l.w = weight(formats[f].type, formats[f].bits, 2, l.n, l.k);
        l.up = weight(formats[f].type, formats[f].bits, 2, l.n, l.k);
        l.bias = weight(i % 3 ? DTYPE_BF16 : DTYPE_F32, 0, 1, l.n, 1);
        l.norm = weight(DTYPE_F32, 0, 1, l.n, 1);
        l.identity = identity(l.n);
        l.x = numbers(l.m * l.k, 1);
        l.out = numbers(l.m * l.n, 1);
        l.gate = numbers(l.n, 1);
        char name[128];
        snprintf(name, sizeof name, "linear %dx%dx%d %s/%d %s%s%s%s%s%s%s act %d", (int)l.m,
                 (int)l.n, (int)l.k, dtype_name(formats[f].type), formats[f].bits,
                 l.x_work ? "xw " : "", l.out_work ? "ow " : "", l.use_up ? "up " : "",
                 l.use_bias ? "bias " : "", l.use_gate ? "gate " : "", l.add ? "add" : "",
                 l.next ? l.layer ? " layer norm" : " norm" : "", (int)l.activation);
        run(&(test){name, {3e-6, 1e-2, 4e-2, 1e-1}, l.m * l.n, linear_body, &l});
        free(l.x);
        free(l.out);
        free(l.gate);
    }
}

typedef struct linears_case {
    int64_t m, k, n[3];
    float *x;
    nn_weight w[3], bias[3];
    int biases;
} linears_case;

static void linears_body(nn *c, void *user, float *out)
{
    linears_case *l = user;
    const int64_t n = l->n[0] + l->n[1] + l->n[2];
    const nn_weight *w[3], *bias[3];
    for (int i = 0; i < 3; i++) {
        w[i] = &l->w[i];
        bias[i] = i < l->biases ? &l->bias[i] : NULL;
    }
    nn_tensor x = put_work(c, l->x, l->m, l->k), y = nn_new_work2(c, l->m, n);
    nn_linears(c, &y, &x, w, bias, 3);
    nn_download(c, &y, out, l->m * n);
}

static void test_linears(void)
{
    for (int i = 0; i < 8; i++) {
        linears_case l = {.m = between(1, 300), .k = 32 * between(1, 20), .biases = i % 4};
        for (int j = 0; j < 3; j++) {
            l.n[j] = 16 * between(1, 20);
            l.w[j] = weight(DTYPE_BF16, i & 2 ? 4 : 0, 2, l.n[j], l.k);
            l.bias[j] = weight(i & 4 ? DTYPE_BF16 : DTYPE_F32, 0, 1, l.n[j], 1);
        }
        l.x = numbers(l.m * l.k, 1);
        run(&(test){i & 2 ? "linears of 4 bits" : "linears",
                    {3e-6, 1e-2, 4e-2, 1e-1},
                    l.m * (l.n[0] + l.n[1] + l.n[2]),
                    linears_body,
                    &l});
        free(l.x);
    }
}

typedef struct pair_case {
    int64_t m, k, n, hidden;
    float *x;
    nn_weight gate, up, down;
} pair_case;

static void pair_body(nn *c, void *user, float *out)
{
    const pair_case *p = user;
    nn_tensor x = put_work(c, p->x, p->m, p->k), y = nn_new2(c, p->m, p->n);
    nn_tensor hidden = nn_new_input(c, p->m, &p->down);
    nn_linear(c, &hidden, &x, &p->gate, &(nn_epilogue){.activation = NN_SILU, .up = &p->up});
    nn_linear(c, &y, &hidden, &p->down, NULL);
    nn_download(c, &y, out, p->m * p->n);
}

static void test_pairs(void)
{
    static const int64_t hidden[] = {64, 1040, 10240, 13312};
    for (int i = 0; i < 4; i++) {
        pair_case p = {.m = 33, .k = 128, .n = 96, .hidden = hidden[i]};
        p.gate = weight(DTYPE_BF16, 0, 2, p.hidden, p.k);
        p.up = weight(DTYPE_BF16, 0, 2, p.hidden, p.k);
        p.down = weight(DTYPE_BF16, 0, 2, p.n, p.hidden);
        p.x = numbers(p.m * p.k, 1);
        run(&(test){"feed forward", {5e-6, 1.5e-2, 8e-2, 1.5e-1}, p.m * p.n, pair_body, &p});
        free(p.x);
    }
}

/* ---- Rows ------------------------------------------------------------------------------------ */

typedef struct rows_case {
    int64_t m, n;
    int which, heads;
    float *x, *y, *scale, *cosine, *sine;
    nn_weight w, w2, identity;
    bool work;
} rows_case;

enum {
    RMS,
    RMS_OPERAND,
    ADD_RMS,
    ADD_RMS_NEXT,
    LAYER,
    ROPE,
    ROPE_HALVES,
    SILU,
    TANH,
    ADD,
    GELU,
    FILL
};
static const char *const row_names[] = {
    "rms_norm",   "rms_norm to operand", "add_rms_norm",           "add_rms_norm and next",
    "layer_norm", "head_norm_rope",      "head_norm_rope, halves", "silu",
    "tanh",       "add_scalar",          "gelu, multiply",         "fill_rows"};

static void rows_body(nn *c, void *user, float *out)
{
    const rows_case *r = user;
    const int64_t count = r->m * r->n, half = r->n / r->heads / 2;
    nn_tensor x = put(c, r->work, r->x, r->m, r->n), y = put_work(c, r->y, r->m, r->n);
    nn_tensor scale = put_float(c, r->scale, 1, r->n), shift = put_float(c, r->y, 1, r->n),
              operand = nn_new_operand(c, r->m, r->n);
    nn_tensor cosine = put_float(c, r->cosine, r->m, half);
    nn_tensor sine = put_float(c, r->sine, r->m, half);
    nn_tensor stream = put_float(c, r->x, r->m, r->n);
    switch (r->which) {
    case RMS: nn_rms_norm(c, &y, &x, &r->w, 1e-5, &scale); break;
    case RMS_OPERAND:
        nn_rms_norm(c, &operand, &x, &r->w, 1e-5, &scale);
        nn_linear(c, &y, &operand, &r->identity, NULL);
        break;
    case ADD_RMS:
        nn_add_rms_norm(c, &stream, &y, &r->w, 1e-6, &scale, NULL);
        y = stream;
        break;
    case ADD_RMS_NEXT:
        nn_add_rms_norm(
            c, &stream, &y, &r->w, 1e-6, NULL,
            &(nn_next_norm){.out = &operand, .w = &r->w2, .eps = 1e-5, .scale = &scale});
        nn_linear(c, &stream, &operand, &r->identity, &(nn_epilogue){.add = true});
        y = stream;
        break;
    case LAYER:
        nn_layer_norm(c, &stream, &stream, 1e-6, &scale, r->heads % 2 ? NULL : &shift);
        y = stream;
        break;
    case ROPE:
    case ROPE_HALVES: {
        nn_tensor wide = nn_new_work2(c, r->m, 3 * r->n), part = nn_columns(&wide, r->n, r->n);
        nn_linear(c, &part, &y, &r->identity, NULL);
        nn_head_norm_rope(c, &part, r->heads, &r->w2, 1e-5, &cosine, &sine,
                          r->which == ROPE ? NN_ROPE_INTERLEAVED : NN_ROPE_HALVES);
        nn_linear(c, &y, &part, &r->identity, NULL);
        break;
    }
    case SILU: nn_silu(c, &y, &y); break;
    case TANH:
        nn_tanh(c, &stream);
        y = stream;
        break;
    case ADD:
        nn_add_scalar(c, &stream, 1);
        y = stream;
        break;
    case GELU:
        nn_gelu(c, &stream);
        nn_multiply(c, &stream, &y);
        y = stream;
        break;
    case FILL:
        nn_fill_rows(c, &stream, &r->w);
        y = stream;
        break;
    }
    nn_download(c, &y, out, count);
}

static void test_rows(void)
{
    static const int64_t sizes[][3] = {{70, 3840, 30},  {5, 2560, 20}, {3, 96, 4},
                                       {1, 16384, 128}, {33, 256, 2},  {9, 80, 5}};
    for (int which = RMS; which <= FILL; which++)
        for (int i = 0; i < 6; i++) {
            rows_case r = {.m = sizes[i][0],
                           .n = sizes[i][1],
                           .heads = (int)sizes[i][2],
                           .which = which,
                           .work = random32() & 1};
            const bool rope = which == ROPE || which == ROPE_HALVES;
            const bool product = which == RMS_OPERAND || which == ADD_RMS_NEXT || rope;
            if (product && r.n > 4096)
                continue;
            r.x = numbers(r.m * r.n, 2);
            r.y = numbers(r.m * r.n, 2);
            r.scale = numbers(r.n, 1);
            r.cosine = numbers(r.m * r.n, 1);
            r.sine = numbers(r.m * r.n, 1);
            r.w = weight(DTYPE_BF16, 0, 1, r.n, 1);
            r.w2 = weight(DTYPE_F32, 0, 1, rope ? r.n / r.heads : r.n, 1);
            r.identity = identity(product ? r.n : 1);
            char name[64];
            snprintf(name, sizeof name, "%s %dx%d", row_names[which], (int)r.m, (int)r.n);
            const double eight = which == RMS_OPERAND || which == ADD_RMS_NEXT ? 4e-2 : 0;
            run(&(test){name, {3e-6, 1e-2, eight, eight}, r.m * r.n, rows_body, &r});
            free(r.x);
            free(r.y);
            free(r.scale);
            free(r.cosine);
            free(r.sine);
        }
}

static void embed_body(nn *c, void *user, float *out)
{
    const nn_weight *w = user;
    const int32_t ids[] = {0, 7, 3, 3, 99};
    nn_tensor y = nn_new2(c, 5, w->n[1]);
    nn_embed(c, &y, w, ids, 5);
    nn_download(c, &y, out, 5 * w->n[1]);
}

static void test_embed(void)
{
    static const dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_BF16};
    for (int i = 0; i < 4; i++) {
        nn_weight w = weight(types[i], i == 3 ? 4 : 0, 2, 100, 96);
        run(&(test){i == 3 ? "embed of 4 bits" : "embed",
                    {i == 3 ? 4e-3 : 1e-7, i == 3 ? 4e-3 : 1e-7},
                    5 * 96,
                    embed_body,
                    &w});
    }
}

/* ---- Latents --------------------------------------------------------------------------------- */

typedef struct latents_case {
    int64_t channels, height, width;
    int patch;
    float *a, *b;
    bool normalize, tokens, packed;
} latents_case;

static void guide_body(nn *c, void *user, float *out)
{
    const latents_case *l = user;
    nn_tensor a = nn_new3(c, l->channels, l->height, l->width), b = a;
    b = nn_new3(c, l->channels, l->height, l->width);
    const int64_t n = nn_count(&a);
    nn_upload(c, &a, l->a, n);
    nn_upload(c, &b, l->b, n);
    if (l->tokens)
        nn_guide_tokens(c, &a, &b, 3.5, l->patch);
    else
        nn_guide(c, &a, &b, 3.5, l->normalize);
    nn_add_scaled(c, &b, &a, -0.125);
    nn_download_begin(c, 0, &a);
    nn_download_begin(c, 1, &b);
    nn_download_end(c, 0, out, n);
    nn_download_end(c, 1, out + n, n);
}

static void patches_body(nn *c, void *user, float *out)
{
    const latents_case *l = user;
    const int64_t p = l->patch, tokens = l->height / p * (l->width / p);
    nn_tensor a = nn_new3(c, l->channels, l->height, l->width);
    nn_tensor t = nn_new2(c, tokens, p * p * l->channels);
    nn_tensor back = nn_new3(c, l->channels, l->height, l->width);
    const int64_t n = nn_count(&a);
    nn_upload(c, &a, l->a, n);
    (l->packed ? nn_pack : nn_patches)(c, &t, &a, l->patch);
    (l->packed ? nn_unpack : nn_from_patches)(c, &back, &t, l->patch);
    nn_download(c, &t, out, n);
    nn_download(c, &back, out + n, n);
}

static void take_body(nn *c, void *user, float *out)
{
    const latents_case *l = user;
    nn_tensor a = nn_new3(c, l->channels, l->height, l->width);
    nn_tensor t = nn_new2(c, l->channels, l->width);
    nn_upload(c, &a, l->a, nn_count(&a));
    nn_take(c, &t, &a, l->height - 1);
    float *table = nn_begin_write(c, &a);
    for (int64_t i = 0; table && i < nn_count(&a); i++)
        table[i] = l->b[i];
    nn_end_write(c, &a);
    nn_download(c, &t, out, nn_count(&t));
    nn_download(c, &a, out + nn_count(&t), nn_count(&a));
}

static void test_latents(void)
{
    for (int i = 0; i < 4; i++) {
        latents_case l = {
            .channels = between(1, 16), .patch = (int)between(1, 4), .normalize = i & 1};
        l.height = l.patch * between(1, 20);
        l.width = l.patch * between(1, 20);
        const int64_t n = l.channels * l.height * l.width;
        l.a = numbers(n, 1);
        l.b = numbers(n, 1);
        run(&(test){"guide, add_scaled", {1e-6, 1e-6}, 2 * n, guide_body, &l});
        run(&(test){"patches", {1e-9, 1e-9}, 2 * n, patches_body, &l});
        l.tokens = l.packed = true;
        run(&(test){"guide_tokens", {1e-6, 1e-6}, 2 * n, guide_body, &l});
        run(&(test){"pack", {1e-9, 1e-9}, 2 * n, patches_body, &l});
        run(&(test){"take, write", {1e-9, 1e-9}, n + l.channels * l.width, take_body, &l});
        free(l.a);
        free(l.b);
    }
}

/* ---- Pictures -------------------------------------------------------------------------------- */

typedef struct conv_case {
    int64_t height, width, in, out, h, w;
    int kernel;
    nn_conv p;
    bool normed;
    float *x, *y, *norm;
    nn_weight weight, bias;
} conv_case;

static void conv_body(nn *c, void *user, float *out)
{
    const conv_case *k = user;
    nn_tensor x = put_picture(c, k->x, k->height, k->width, k->in);
    nn_tensor y = put_picture(c, k->y, k->h, k->w, k->out);
    nn_tensor norm = put_float(c, k->norm, 2, k->in);
    nn_conv p = k->p;
    p.norm = k->normed ? &norm : NULL;
    nn_conv2d(c, &y, &x, &k->weight, &k->bias, &p);
    nn_download_planes(c, &y, out);
}

static nn_weight conv_weight(int64_t out, int64_t in, int kernel)
{
    nn_weight w = weight(DTYPE_BF16, 0, 2, out, in * kernel * kernel);
    w.rank = 4;
    w.n[1] = in;
    w.n[2] = w.n[3] = kernel;
    return w;
}

static void test_conv(void)
{
    for (int i = 0; i < 30; i++) {
        conv_case k = {.height = between(2, 40),
                       .width = between(2, 40),
                       .in = i % 5 == 0 ? 3 : 8 * between(1, 20),
                       .out = i % 7 == 0 ? 3 : 8 * between(1, 20),
                       .kernel = i % 4 == 0 ? 1 : 3,
                       .normed = random32() & 1};
        k.p.add = random32() & 1;
        k.p.upsample = k.kernel == 3 && i % 3 == 1;
        if (k.kernel == 3 && i % 6 == 2) {
            k.p.stride = 2;
            k.p.pad_bottom_right = true;
            k.height *= 2;
            k.width *= 2;
        }
        k.h = k.p.upsample ? 2 * k.height : k.p.stride == 2 ? k.height / 2 : k.height;
        k.w = k.p.upsample ? 2 * k.width : k.p.stride == 2 ? k.width / 2 : k.width;
        if (k.kernel == 3 && i % 6 == 5) { /* a band */
            k.height = 4 * between(2, 6) + 2;
            k.p.above = k.p.below = 1;
            k.h = (k.height - 2) * (k.p.upsample ? 2 : 1);
        }
        k.weight = conv_weight(k.out, k.in, k.kernel);
        k.bias = weight(DTYPE_F32, 0, 1, k.out, 1);
        k.x = numbers(k.height * k.width * k.in, 1);
        k.y = numbers(k.h * k.w * k.out, 1);
        k.norm = numbers(2 * k.in, 1);
        char name[96];
        snprintf(name, sizeof name, "conv %d %dx%d %d>%d%s%s%s%s%s", k.kernel, (int)k.height,
                 (int)k.width, (int)k.in, (int)k.out, k.normed ? " norm" : "",
                 k.p.add ? " add" : "", k.p.upsample ? " up" : "", k.p.stride == 2 ? " /2" : "",
                 k.p.above ? " band" : "");
        run(&(test){name, {1e-5, 2e-2}, k.h * k.w * k.out, conv_body, &k});
        free(k.x);
        free(k.y);
        free(k.norm);
    }
}

/* Convolutions as the VAE chains them: the sums of a norm come with the result, and the bias of
 * one that is only read through its norm comes late. x [H, W, in] -> conv1 (doubling, or not) ->
 * norm -> conv2 added to y -> norm -> out. */
typedef struct chain_case {
    int64_t height, width, in, out;
    int groups;
    bool doubled, late;
    float *x, *y;
    nn_weight conv[2], bias[2], w[2], b[2];
} chain_case;

static void chain_body(nn *c, void *user, float *out)
{
    const chain_case *k = user;
    const int64_t h = k->height << k->doubled, w = k->width << k->doubled;
    nn_tensor x = put_picture(c, k->x, k->height, k->width, k->in);
    nn_tensor y = put_picture(c, k->y, h, w, k->out), t = nn_new_work3(c, h, w, k->out);
    nn_tensor sums = nn_new_sums(c, h, k->groups), norm = nn_new2(c, 2, k->out);
    nn_conv2d(c, &t, &x, &k->conv[0], &k->bias[0],
              &(nn_conv){.upsample = k->doubled, .sums = &sums, .late_bias = k->late});
    nn_group_factors(c, &norm, &sums, w, &k->w[0], &k->b[0], 1e-6, k->late ? &k->bias[0] : NULL);
    nn_conv2d(c, &y, &t, &k->conv[1], &k->bias[1],
              &(nn_conv){.norm = &norm, .add = true, .sums = &sums});
    nn_group_factors(c, &norm, &sums, w, &k->w[1], &k->b[1], 1e-6, NULL);
    nn_apply_norm(c, &y, &y, &norm);
    nn_download_planes(c, &y, out);
}

static void test_chains(void)
{
    for (int i = 0; i < 10; i++) {
        chain_case k = {.height = between(1, 30),
                        .width = between(1, 30),
                        .in = i == 9 ? 12 : 16 * between(1, 8), /* 12 fit no vector */
                        .groups = 4,
                        .doubled = i % 2 == 0,
                        .late = i % 3 != 0};
        k.out = i == 8 ? 12 : 16 * between(1, 8);
        const int64_t count = (k.height * k.width * k.out) << 2 * k.doubled;
        k.x = numbers(k.height * k.width * k.in, 1);
        k.y = numbers(count, 1);
        for (int j = 0; j < 2; j++) {
            k.conv[j] = conv_weight(k.out, j ? k.out : k.in, 3);
            k.bias[j] = weight(DTYPE_F32, 0, 1, k.out, 1);
            k.w[j] = weight(DTYPE_F32, 0, 1, k.out, 1);
            k.b[j] = weight(DTYPE_BF16, 0, 1, k.out, 1);
        }
        char name[96];
        snprintf(name, sizeof name, "convs and norms %dx%d %d>%d%s%s", (int)k.height, (int)k.width,
                 (int)k.in, (int)k.out, k.doubled ? " up" : "", k.late ? " late bias" : "");
        run(&(test){name, {2e-5, 3e-2}, count, chain_body, &k});
        free(k.x);
        free(k.y);
    }
}

/* To a few channels, by the kernel that norms while it reads: tiles that end within the picture and
 * at its edge, bands. */
static void test_few(void)
{
    for (int i = 0; i < 8; i++) {
        conv_case k = {.height = between(1, 40),
                       .width = i % 2 ? 32 * between(1, 3) : between(1, 70),
                       .in = 32 * between(1, 4),
                       .out = i % 3 == 0 ? 3 : between(1, 8),
                       .kernel = 3,
                       .normed = i % 4 != 3};
        k.h = k.height;
        k.w = k.width;
        if (i >= 6) {
            k.height = 4 * between(2, 6) + 2;
            k.p.above = k.p.below = 1;
            k.h = k.height - 2;
        }
        k.weight = conv_weight(k.out, k.in, 3);
        k.bias = weight(DTYPE_F32, 0, 1, k.out, 1);
        k.x = numbers(k.height * k.width * k.in, 1);
        k.y = numbers(k.h * k.w * k.out, 1);
        k.norm = numbers(2 * k.in, 1);
        char name[96];
        snprintf(name, sizeof name, "conv to few, %dx%d %d>%d%s%s", (int)k.height, (int)k.width,
                 (int)k.in, (int)k.out, k.normed ? " norm" : "", k.p.above ? " band" : "");
        run(&(test){name, {1e-5, 2e-2}, k.h * k.w * k.out, conv_body, &k});
        free(k.x);
        free(k.y);
        free(k.norm);
    }
}

/* Convolutions as Qwen's VAE has them, of pixels that are normed: x -> conv1, whose bias may come
 * late -> norm, conv2, added to y -> norm, conv3. Bands, and few outputs at the end. */
typedef struct pixel_case {
    int64_t height, width, in, middle, out;
    bool late, floats;
    float *x, *y;
    nn_weight conv[3], bias[3], gamma[3];
} pixel_case;

/* Rows first .. end-1 of y by conv i of x. */
static void pixel_conv(nn *c, const pixel_case *k, int i, const nn_tensor *y, const nn_tensor *x,
                       int64_t first, int64_t end)
{
    const int64_t above = first > 0, below = end < k->height;
    const nn_pixel_norm norm = {&k->gamma[i], 1e-5, i == 1 && k->late ? &k->bias[0] : NULL};
    nn_tensor to = nn_rows(y, first, end - first);
    nn_tensor from = nn_rows(x, first - above, end - first + above + below);
    nn_conv2d(c, &to, &from, &k->conv[i], &k->bias[i],
              &(nn_conv){.pixel_norm = &norm,
                         .late_bias = i == 0 && k->late,
                         .add = i == 1,
                         .above = above,
                         .below = below});
}

static void pixel_body(nn *c, void *user, float *out)
{
    const pixel_case *k = user;
    const int64_t h = k->height, w = k->width, half = h > 8 ? 8 : h;
    nn_tensor x = put_picture(c, k->x, h, w, k->in), y = put_picture(c, k->y, h, w, k->middle);
    nn_tensor t = nn_new_work3(c, h, w, k->middle), z = nn_new_work3(c, h, w, k->out);
    if (k->floats) { /* of another type than the convolution's, on a GPU */
        nn_tensor wide = nn_new3(c, h, w, k->in);
        nn_upload(c, &wide, k->x, h * w * k->in);
        x = wide;
    }
    pixel_conv(c, k, 0, &t, &x, 0, h);
    pixel_conv(c, k, 1, &y, &t, 0, half);
    if (half < h)
        pixel_conv(c, k, 1, &y, &t, half, h);
    pixel_conv(c, k, 2, &z, &y, 0, half);
    if (half < h)
        pixel_conv(c, k, 2, &z, &y, half, h);
    nn_download_planes(c, &z, out);
}

static void test_pixels(void)
{
    static const int64_t channels[][3] = {/* in, middle, out */
                                          {96, 96, 3},   {192, 384, 3}, {16, 24, 8}, {384, 192, 96},
                                          {12, 40, 5},   {8, 768, 16},  {776, 8, 3}, {96, 192, 3},
                                          {128, 512, 3}, {32, 96, 8}};
    for (int i = 0; i < 10; i++) {
        pixel_case k = {.height = between(1, 30),
                        .width = i % 2 ? between(1, 70) : 8 * between(1, 8),
                        .in = channels[i][0],
                        .middle = channels[i][1],
                        .out = channels[i][2],
                        .late = i % 3 != 1,
                        .floats = i == 3};
        const int64_t sides[4] = {k.in, k.middle, k.middle, k.out};
        k.x = numbers(k.height * k.width * k.in, 1);
        k.y = numbers(k.height * k.width * k.middle, 1);
        for (int j = 0; j < 3; j++) {
            k.conv[j] = conv_weight(sides[j + 1], sides[j], 3);
            k.bias[j] = weight(DTYPE_F32, 0, 1, sides[j + 1], 1);
            k.gamma[j] = weight(DTYPE_BF16, 0, 1, sides[j], 1);
        }
        char name[96];
        snprintf(name, sizeof name, "convs and norms of pixels %dx%d %d>%d>%d%s", (int)k.height,
                 (int)k.width, (int)k.in, (int)k.middle, (int)k.out, k.late ? " late bias" : "");
        run(&(test){name, {2e-5, 3e-2}, k.height * k.width * k.out, pixel_body, &k});
        free(k.x);
        free(k.y);
    }
}

typedef struct group_case {
    int64_t height, width, channels;
    int groups;
    float *x;
    nn_weight w, b;
} group_case;

static void group_body(nn *c, void *user, float *out)
{
    const group_case *g = user;
    nn_tensor x = put_picture(c, g->x, g->height, g->width, g->channels);
    nn_tensor norm = nn_new2(c, 2, g->channels), sums = nn_new_sums(c, g->height, g->groups);
    nn_tensor y = nn_new_work3(c, g->height, g->width, g->channels);
    const int64_t first = g->height / 2;
    nn_tensor top = nn_rows(&x, 0, first), rest = nn_rows(&x, first, g->height - first);
    if (first)
        nn_group_sums(c, &sums, 0, &top);
    nn_group_sums(c, &sums, first, &rest);
    nn_group_factors(c, &norm, &sums, g->width, &g->w, &g->b, 1e-6, NULL);
    nn_apply_norm(c, &y, &x, &norm);
    nn_download_planes(c, &y, out);
}

static void test_groups(void)
{
    for (int i = 0; i < 8; i++) {
        group_case g = {
            .height = between(1, 50), .width = between(1, 50), .groups = i & 1 ? 32 : 4};
        g.channels = g.groups * between(1, 16);
        g.x = numbers(g.height * g.width * g.channels, 3);
        g.w = weight(DTYPE_F32, 0, 1, g.channels, 1);
        g.b = weight(DTYPE_BF16, 0, 1, g.channels, 1);
        run(&(test){"group norm", {1e-5, 1e-2}, g.height * g.width * g.channels, group_body, &g});
        free(g.x);
    }
}

/* ---- Attention ------------------------------------------------------------------------------- */

typedef struct attention_case {
    int64_t queries, keys, dim;
    int heads, kv_heads;
    bool causal;
    float *q, *k, *v;
} attention_case;

static void attention_body(nn *c, void *user, float *out)
{
    const attention_case *a = user;
    nn_tensor q = put_work(c, a->q, a->queries, a->heads * a->dim);
    nn_tensor k = put_work(c, a->k, a->keys, a->kv_heads * a->dim);
    nn_tensor v = put_work(c, a->v, a->keys, a->kv_heads * a->dim);
    nn_tensor y = nn_new_work2(c, a->queries, a->heads * a->dim);
    nn_attention(c, &y, &q, &k, &v, a->heads, a->kv_heads, a->causal);
    nn_download(c, &y, out, nn_count(&y));
}

static void test_attention(void)
{
    static const int64_t list[][6] = {/* queries, keys, dim, heads, kv_heads, causal */
                                      {33, 33, 128, 4, 4, 0},   {200, 200, 128, 8, 2, 1},
                                      {64, 100, 64, 3, 3, 0},   {17, 17, 16, 4, 2, 1},
                                      {300, 300, 512, 1, 1, 0}, {5, 5, 24, 2, 2, 0},
                                      {1, 1, 128, 2, 2, 1},     {1120, 1120, 128, 3, 3, 0}};
    for (int i = 0; i < 8; i++) {
        attention_case a = {
            list[i][0], list[i][1], list[i][2], (int)list[i][3], (int)list[i][4], list[i][5] != 0,
            NULL,       NULL,       NULL};
        a.q = numbers(a.queries * a.heads * a.dim, 2);
        a.k = numbers(a.keys * a.kv_heads * a.dim, 2);
        a.v = numbers(a.keys * a.kv_heads * a.dim, 2);
        char name[96];
        snprintf(name, sizeof name, "attention %dx%d, %d heads of %d%s", (int)a.queries,
                 (int)a.keys, a.heads, (int)a.dim, a.causal ? ", causal" : "");
        run(&(test){name, {1e-5, 2e-2}, a.queries * a.heads * a.dim, attention_body, &a});
        free(a.q);
        free(a.k);
        free(a.v);
    }
}

/* ---- Recordings ------------------------------------------------------------------------------ */

/* The same calls on other data: run, recorded, played back. */
static void repeat_body(nn *c, void *user, float *out)
{
    const linear_case *l = user;
    nn_tensor x = nn_new2(c, l->m, l->k), h = nn_new_work2(c, l->m, l->n);
    nn_tensor y = nn_new2(c, l->m, l->n);
    for (int i = 0; i < 4; i++) {
        nn_upload(c, &x, l->x + i, l->m * l->k);
        if (nn_repeat_begin(c, (const int64_t[]){7}, 1)) {
            size_t mark = nn_mark(c);
            nn_tensor operand = nn_new_operand(c, l->m, l->k);
            nn_prepare(c, &operand, &x);
            nn_linear(c, &h, &operand, &l->w, &(nn_epilogue){.activation = NN_SILU, .up = &l->up});
            nn_copy(c, &y, &y);
            nn_silu(c, &h, &h);
            nn_release(c, mark);
            nn_repeat_end(c);
        }
        nn_download(c, &h, out + i * l->m * l->n, l->m * l->n);
        if (nn_is_dry(c))
            break;
    }
}

/* A gated feed-forward whose hidden numbers leave fp16: up to some 1e5, sums of 1e6, and a norm. */
static void large_body(nn *c, void *user, float *out)
{
    const linear_case *l = user;
    nn_tensor x = put_float(c, l->x, l->m, l->k), sum = put_float(c, l->x, l->m, l->k);
    nn_tensor operand = nn_new_operand(c, l->m, l->k), hidden = nn_new_input(c, l->m, &l->down);
    nn_tensor y = nn_new_wide2(c, l->m, l->k);
    nn_prepare(c, &operand, &x);
    nn_linear(c, &hidden, &operand, &l->w, &(nn_epilogue){.activation = NN_SILU, .up = &l->up});
    nn_linear(c, &y, &hidden, &l->down, NULL);
    nn_add_rms_norm(c, &sum, &y, &l->norm, 1e-5, NULL, NULL);
    nn_download(c, &sum, out, l->m * l->k);
}

static void test_large(void)
{
    linear_case l = {.m = 50, .n = 96, .k = 64};
    l.w = weight(DTYPE_BF16, 0, 2, l.n, l.k);
    l.up = weight(DTYPE_BF16, 0, 2, l.n, l.k);
    l.down = weight(DTYPE_BF16, 0, 2, l.k, l.n);
    l.down.outliers = true;
    l.norm = weight(DTYPE_F32, 0, 1, l.k, 1);
    l.x = numbers(l.m * l.k + 4, 100);
    run(&(test){"feed-forward beyond fp16", {1e-5, 2e-2, 6e-2, 1e-1}, l.m * l.k, large_body, &l});
    free(l.x);
}

static void test_repeat(void)
{
    linear_case l = {.m = 40, .n = 64, .k = 96};
    l.w = weight(DTYPE_BF16, 0, 2, l.n, l.k);
    l.up = weight(DTYPE_BF16, 4, 2, l.n, l.k);
    l.x = numbers(l.m * l.k + 4, 1);
    run(&(test){"recording", {3e-6, 1e-2, 4e-2, 1e-1}, 4 * l.m * l.n, repeat_body, &l});
    l.up = l.w;
    l.up.data = weight(DTYPE_BF16, 0, 2, l.n, l.k).data;
    run(&(test){"recording", {3e-6, 1e-2, 4e-2, 1e-1}, 4 * l.m * l.n, repeat_body, &l});
    free(l.x);
}

int main(int argc, char **argv)
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
        return 77;
    }
    seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) : (uint64_t)(clock_seconds() * 1e6);
    printf("# %s, %s, SEED=%llu\n", cuda_gpu_name(gpu), cuda_gpu_libraries(gpu),
           (unsigned long long)seed);
    test_latents();
    test_embed();
    test_rows();
    test_linear();
    test_linears();
    test_pairs();
    test_attention();
    test_groups();
    test_conv();
    test_chains();
    test_few();
    test_pixels();
    test_large();
    test_repeat();
    printf("%d cases, %d failed\n", cases, failures);
    cuda_gpu_close(gpu);
    pool_free(threads);
    return failures != 0;
}
