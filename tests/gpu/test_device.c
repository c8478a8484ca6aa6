/* Every operation on a GPU beside the CPU in float32, on random shapes; recordings; memory. Prints
 * a line for each case and goes on after a failure, so that one run tells everything. Skipped where
 * there is no GPU that can be used.
 *
 * Numbers are rounded to bfloat16 before either device sees them, so what differs is how products
 * are computed: BOUND says how far, by precision. */
#include "device_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
        if (f < 3 && i >= 30) { /* rows that begin at 8 bytes, as in Qwen's vision tower */
            l.n = 4 * between(16, 100);
            l.k = 16 * between(0, 24) + 4 * between(1, 3);
        }
        l.use_bias = !l.use_up && (random32() & 1);
        l.next = l.n % 16 == 0 && i % 4 >= 2;
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

/* ---- Attention ------------------------------------------------------------------------------- */

typedef struct attention_case {
    int64_t queries, keys, dim;
    int heads, kv_heads;
    bool causal;
    float *q, *k, *v;
    int32_t ends[8]; /* of segments */
    int segments;
} attention_case;

static void attention_body(nn *c, void *user, float *out)
{
    const attention_case *a = user;
    nn_tensor q = put_work(c, a->q, a->queries, a->heads * a->dim);
    nn_tensor k = put_work(c, a->k, a->keys, a->kv_heads * a->dim);
    nn_tensor v = put_work(c, a->v, a->keys, a->kv_heads * a->dim);
    nn_tensor y = nn_new_work2(c, a->queries, a->heads * a->dim);
    if (a->segments)
        nn_attention_segments(c, &y, &q, &k, &v, a->heads, a->ends, a->segments);
    else
        nn_attention(c, &y, &q, &k, &v, a->heads, a->kv_heads, a->causal);
    nn_download(c, &y, out, nn_count(&y));
}

static void test_attention(void)
{
    static const int64_t list[][6] = {
        /* queries, keys, dim, heads, kv_heads, causal */
        {33, 33, 128, 4, 4, 0},   {200, 200, 128, 8, 2, 1},   {64, 100, 64, 3, 3, 0},
        {17, 17, 16, 4, 2, 1},    {300, 300, 512, 1, 1, 0},   {5, 5, 24, 2, 2, 0},
        {1, 1, 128, 2, 2, 1},     {1120, 1120, 128, 3, 3, 0}, {784, 784, 80, 3, 3, 0},
        {300, 300, 128, 2, 2, 0}, {96, 96, 40, 2, 2, 0},      {70, 70, 12, 2, 2, 0},
        {40, 40, 160, 1, 1, 0}};
    for (int i = 0; i < 13; i++) {
        attention_case a = {.queries = list[i][0],
                            .keys = list[i][1],
                            .dim = list[i][2],
                            .heads = (int)list[i][3],
                            .kv_heads = (int)list[i][4],
                            .causal = list[i][5] != 0};
        for (int32_t end = 0; i >= 8 && end < a.queries; a.ends[a.segments++] = end)
            end = a.segments == 7 ? (int32_t)a.queries
                                  : (int32_t)between(end + 1, end + (a.queries - end + 1) / 2);
        a.q = numbers(a.queries * a.heads * a.dim, 2);
        a.k = numbers(a.keys * a.kv_heads * a.dim, 2);
        a.v = numbers(a.keys * a.kv_heads * a.dim, 2);
        char name[96];
        snprintf(name, sizeof name, "attention %dx%d, %d heads of %d%s", (int)a.queries,
                 (int)a.keys, a.heads, (int)a.dim,
                 a.segments ? ", segments"
                 : a.causal ? ", causal"
                            : "");
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
    const int status = device_open(argc, argv);
    if (status)
        return status;
    test_latents();
    test_embed();
    test_rows();
    test_linear();
    test_linears();
    test_pairs();
    test_attention();
    test_pictures();
    test_large();
    test_repeat();
    return device_close();
}
