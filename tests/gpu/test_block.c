/* A Z-Image layer of the real size on a GPU: its error against float32 beside that of the reference
 * in bf16, which tools/reference/fixture_block_bf16.py has recorded in tests/fixtures/block.json.
 * Weights are those of the script, made from its seeds. Skipped where there is no GPU; with the
 * argument cpu the small case runs there.
 *
 * Bounds: fp16 and bf16 1.2 times the reference's error in bf16. fp8 and int8 1.2 times what
 * rounding the operands of the seven large products alone does, as the script has found in float32;
 * the rest is the bf16 of everything else and the shorter sums of fp8 (nn/cuda/blas.h). */
#include "test_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "models/zimage.h"
#include "nn/cpu/kernels.h"
#include "nn/cuda/gpu.h"
#include "sampling/rng.h"

#define DIM 3840
#define HEAD 128
#define HIDDEN 10240
#define CAPTION 2560
#define EMBED 256
#define PATCHED 64
#define TIME_HIDDEN 1024
#define CHANNELS 16

static pool *threads;
static cpu_kernels kernels;
static cuda_gpu *gpu;
static int failures;

static void *allocate(int64_t bytes)
{
    void *p = malloc((size_t)bytes);
    assert_non_null(p);
    return p;
}

/* ---- The network of the script --------------------------------------------------------------- */

typedef struct made {
    nn_weight *w;
    const char *name;
    int64_t rows, columns; /* columns 0: a vector */
    float mean;
} made;

typedef struct network {
    zimage m;
    zimage_block layer;
} network;

#define LAYER(member, suffix) &n->layer.member, "layers.0." suffix

static float to_bf16(float f)
{
    return bf16_to_float(bf16_from_float(f));
}

/* torch.randn with this seed, rounded to bfloat16. */
static void draw(float *out, uint64_t seed, int64_t count)
{
    torch_generator g;
    torch_seed(&g, seed);
    torch_randn(&g, out, count, NULL);
}

static void make_weight(void *user, int64_t index, int worker)
{
    (void)worker;
    const made *t = &((const made *)user)[index];
    const int64_t count = t->rows * (t->columns ? t->columns : 1);
    const float deviation = t->columns ? (float)pow((double)t->columns, -0.5) : 0.1f;
    float *numbers = allocate(count * 4);
    uint16_t *data = allocate(count * 2);
    draw(numbers, 1000 + (uint64_t)index, count);
    for (int64_t i = 0; i < count; i++)
        data[i] = bf16_from_float(numbers[i] * deviation + t->mean);
    free(numbers);
    t->w->name = t->name;
    t->w->type = DTYPE_BF16;
    t->w->rank = t->columns ? 2 : 1;
    t->w->n[0] = t->rows;
    t->w->n[1] = t->columns ? t->columns : 1;
    t->w->n[2] = t->w->n[3] = 1;
    t->w->data = data;
}

/* The same order as TENSORS of the script. */
static void make_network(network *n)
{
    zimage *m = &n->m;
    const made list[] = {
        {&m->t_mlp0, "t_embedder.mlp.0.weight", TIME_HIDDEN, 256, 0},
        {&m->t_mlp0_bias, "t_embedder.mlp.0.bias", TIME_HIDDEN, 0, 0},
        {&m->t_mlp2, "t_embedder.mlp.2.weight", EMBED, TIME_HIDDEN, 0},
        {&m->t_mlp2_bias, "t_embedder.mlp.2.bias", EMBED, 0, 0},
        {&m->x_embedder, "all_x_embedder.2-1.weight", DIM, PATCHED, 0},
        {&m->x_embedder_bias, "all_x_embedder.2-1.bias", DIM, 0, 0},
        {&m->x_pad_token, "x_pad_token", 1, DIM, 0},
        {&m->caption_norm, "cap_embedder.0.weight", CAPTION, 0, 1},
        {&m->caption_embedder, "cap_embedder.1.weight", DIM, CAPTION, 0},
        {&m->caption_embedder_bias, "cap_embedder.1.bias", DIM, 0, 0},
        {&m->caption_pad_token, "cap_pad_token", 1, DIM, 0},
        {LAYER(q, "attention.to_q.weight"), DIM, DIM, 0},
        {LAYER(k, "attention.to_k.weight"), DIM, DIM, 0},
        {LAYER(v, "attention.to_v.weight"), DIM, DIM, 0},
        {LAYER(out, "attention.to_out.0.weight"), DIM, DIM, 0},
        {LAYER(norm_q, "attention.norm_q.weight"), HEAD, 0, 1},
        {LAYER(norm_k, "attention.norm_k.weight"), HEAD, 0, 1},
        {LAYER(attention_norm1, "attention_norm1.weight"), DIM, 0, 1},
        {LAYER(attention_norm2, "attention_norm2.weight"), DIM, 0, 1},
        {LAYER(w1, "feed_forward.w1.weight"), HIDDEN, DIM, 0},
        {LAYER(w2, "feed_forward.w2.weight"), DIM, HIDDEN, 0},
        {LAYER(w3, "feed_forward.w3.weight"), HIDDEN, DIM, 0},
        {LAYER(ffn_norm1, "ffn_norm1.weight"), DIM, 0, 1},
        {LAYER(ffn_norm2, "ffn_norm2.weight"), DIM, 0, 1},
        {LAYER(modulation, "adaLN_modulation.0.weight"), 4 * DIM, EMBED, 0},
        {LAYER(modulation_bias, "adaLN_modulation.0.bias"), 4 * DIM, 0, 0},
        {&m->final_modulation, "all_final_layer.2-1.adaLN_modulation.1.weight", DIM, EMBED, 0},
        {&m->final_modulation_bias, "all_final_layer.2-1.adaLN_modulation.1.bias", DIM, 0, 0},
        {&m->final, "all_final_layer.2-1.linear.weight", PATCHED, DIM, 0},
        {&m->final_bias, "all_final_layer.2-1.linear.bias", PATCHED, 0, 0},
    };
    *n = (network){.m = {.dim = DIM,
                         .ffn_dim = HIDDEN,
                         .head_dim = HEAD,
                         .channels = CHANNELS,
                         .caption_dim = CAPTION,
                         .embed_dim = EMBED,
                         .heads = DIM / HEAD,
                         .layers = 1,
                         .eps = 1e-5,
                         .theta = 256,
                         .t_scale = 1000,
                         .qk_norm = true,
                         .axes_dims = {32, 48, 48},
                         .axes_lens = {1536, 512, 512}}};
    m->layer = &n->layer;
    pool_run(threads, sizeof list / sizeof *list, make_weight, (void *)(uintptr_t)list);
    /* As zimage.c marks them. */
    nn_weight *const sensitive[] = {&m->t_mlp0,           &m->t_mlp2,           &m->x_embedder,
                                    &m->caption_embedder, &m->final_modulation, &m->final,
                                    &n->layer.modulation};
    for (size_t i = 0; i < sizeof sensitive / sizeof *sensitive; i++)
        sensitive[i]->sensitive = true;
    n->layer.w2.outliers = true;
}

/* ---- A run ----------------------------------------------------------------------------------- */

typedef struct results {
    float *layer, *output; /* [tokens, dim], [channels, side, side] */
    int64_t layer_count, output_count;
} results;

static bool always(void *user)
{
    (void)user;
    return true;
}

static void keep_layer(void *user, const char *name, const nn_tensor *value)
{
    results *r = user;
    if (!strcmp(name, "transformer.layers.0"))
        memcpy(r->layer, value->data, (size_t)r->layer_count * sizeof(float));
}

static void forward(nn *c, const network *n, int64_t side, int64_t caption, results *r)
{
    const float time = 0.5f;
    const int64_t features = caption * CAPTION;
    float *latents = allocate(r->output_count * 4), *words = allocate(features * 4);
    draw(latents, 1, r->output_count);
    draw(words, 2, features);
    for (int64_t i = 0; i < r->output_count; i++)
        latents[i] = to_bf16(latents[i]);
    for (int64_t i = 0; i < features; i++)
        words[i] = to_bf16(words[i]);
    zimage_schedule schedule = zimage_begin_schedule(c, &n->m, 1);
    zimage_fill_schedule(c, &n->m, &schedule, &time);
    zimage_set_step(c, &schedule, 0);
    zimage_caption text = zimage_prepare_caption(c, &n->m, words, caption, side, side, NULL);
    nn_tensor x = nn_new3(c, CHANNELS, side, side), y = nn_new3(c, CHANNELS, side, side);
    nn_upload(c, &x, latents, r->output_count);
    const zimage_caption *captions[] = {&text};
    zimage_forward(c, &n->m, &schedule, captions, 1, &x, &y);
    nn_download(c, &y, r->output, r->output_count);
    free(latents);
    free(words);
}

/* False, with a line printed, after a failure. */
static bool run(const network *n, int64_t side, int64_t caption, nn_precision precision, results *r)
{
    cuda_store *store = NULL;
    ct_error error = {0};
    r->layer_count = (side * side / 4 + caption) * DIM;
    r->output_count = CHANNELS * side * side;
    r->layer = allocate(r->layer_count * 4);
    r->output = allocate(r->output_count * 4);
    memset(r->layer, 0, (size_t)r->layer_count * 4);
    const nn_trace trace = {r, always, keep_layer};
    nn_params params = {.allocator = &mem_default,
                        .threads = threads,
                        .kernels = &kernels,
                        .gpu = gpu,
                        .precision = precision,
                        .trace = &trace};
    if (gpu)
        test_ok(cuda_store_create(&store, gpu, &error), &error);
    params.gpu_weights = store;
    for (int real = 0; real < 2 && error.code == CT_OK; real++) {
        nn *c;
        params.dry = !real;
        if (nn_create(&c, &params, &error) != CT_OK)
            break;
        nn_reset(c);
        forward(c, n, side, caption, r);
        nn_status(c, &error);
        params.arena_bytes = nn_peak(c);
        nn_free(c);
    }
    cuda_store_free(store);
    if (error.code != CT_OK)
        printf("FAILED: %s\n", error.message);
    failures += error.code != CT_OK;
    return error.code == CT_OK;
}

static void free_results(results *r)
{
    free(r->layer);
    free(r->output);
}

static double distance(const float *x, const float *truth, int64_t n)
{
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)x[i] - (double)truth[i];
        error += d * d;
        norm += (double)truth[i] * (double)truth[i];
    }
    return sqrt(error / norm);
}

/* ---- What the script recorded ---------------------------------------------------------------- */

/* The number behind "group": ... "key": */
static double recorded(const char *json, const char *group, const char *key)
{
    char text[64];
    snprintf(text, sizeof text, "\"%s\":", group);
    const char *at = strstr(json, text);
    assert_non_null(at);
    snprintf(text, sizeof text, "\"%s\":", key);
    at = strstr(at, text);
    assert_non_null(at);
    return strtod(at + strlen(text), NULL);
}

/* Both sides have the same network: the corner of the layer's results that was recorded. Weights
 * may differ in the last bit of bfloat16, because torch has logarithms of its own. */
static void check_corner(const char *json, const results *r)
{
    const char *at = strstr(json, "\"values\":");
    assert_non_null(at);
    at = strchr(at, '[') + 1;
    float theirs[16], ours[16];
    for (int i = 0; i < 16; i++) {
        char *end;
        theirs[i] = strtof(at, &end);
        ours[i] = r->layer[i / 4 * DIM + i % 4];
        at = end + strspn(end, ", \n");
    }
    const double d = distance(ours, theirs, 16);
    printf("%s the corner of the layer, in float32: %.1e\n", d < 1e-3 ? "ok    " : "FAILED", d);
    failures += !(d < 1e-3);
}

static void check(const char *json, const network *n, int64_t side, int64_t caption,
                  const results *truth)
{
    static const struct {
        nn_precision precision;
        const char *name, *group;
    } kinds[] = {{NN_BF16, "bf16", "bf16"},
                 {NN_FP16, "fp16", "bf16"},
                 {NN_INT8, "int8", "int8"},
                 {NN_FP8, "fp8", "fp8"}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        results ours;
        if (gpu ? !cuda_gpu_can(gpu, kinds[i].precision) : kinds[i].precision >= NN_FP8)
            continue;
        if (run(n, side, caption, kinds[i].precision, &ours)) {
            const double layer = distance(ours.layer, truth->layer, truth->layer_count);
            const double output = distance(ours.output, truth->output, truth->output_count);
            const double most_layer = 1.2 * recorded(json, kinds[i].group, "layer");
            const double most_output = 1.2 * recorded(json, kinds[i].group, "output");
            const bool good = layer <= most_layer && output <= most_output;
            printf("%s %d tokens, %s: layer %.2e of %.2e, output %.2e of %.2e\n",
                   good ? "ok    " : "FAILED", (int)(truth->layer_count / DIM), kinds[i].name,
                   layer, most_layer, output, most_output);
            failures += !good;
        }
        free_results(&ours);
        fflush(stdout);
    }
}

static void test_block(void **state)
{
    (void)state;
    static network n;
    size_t size;
    char *json = (char *)test_read_file(test_fixture("block.json"), &size);
    make_network(&n);
    const struct {
        int64_t side, caption;
    } cases[] = {{32, 32}, {128, 128}};
    for (int i = 0; i < (gpu ? 2 : 1); i++) {
        results truth;
        if (run(&n, cases[i].side, cases[i].caption, NN_F32, &truth)) {
            if (i == 0)
                check_corner(json, &truth);
            check(json, &n, cases[i].side, cases[i].caption, &truth);
        }
        free_results(&truth);
    }
    free(json);
    assert_int_equal(failures, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_block)};
    ct_error error;
    if (pool_create(&threads, &mem_default, 0, &error) != CT_OK ||
        cpu_kernels_choose(&kernels, NULL, &error) != CT_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    const cuda_gpu_params params = {
        .allocator = &mem_default, .threads = threads, .folder = getenv("CALOTYPE_CACHE")};
    const bool here = argc > 1 && !strcmp(argv[1], "cpu");
    if (!here && cuda_gpu_open(&gpu, &params, &error) != CT_OK) {
        printf("skipped: %s\n", error.message);
        return 77;
    }
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cuda_gpu_close(gpu);
    pool_free(threads);
    return failed;
}
