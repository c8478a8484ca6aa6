#include "pipeline/bench_shapes.h"

#define KL_CONVS                                                                                   \
    {                                                                                              \
        {512, 8}, {512, 4}, {256, 2},                                                              \
        {                                                                                          \
            128, 1                                                                                 \
        }                                                                                          \
    }

/* Layers of FLUX.2-klein: W is the width of the stream, H that of the feed-forward. Double blocks
 * keep picture and text apart, single ones do not; the last line is their attention and
 * feed-forward, side by side, into one product. */
#define KLEIN_LAYERS(W, H)                                                                         \
    {"single: q, k, v", BENCH_BOTH, W, W, NN_LINEAR, false},                                       \
        {"single: feed-forward, SwiGLU", BENCH_BOTH, H, W, NN_SILU, false},                        \
        {"single: out and down", BENCH_BOTH, W, W + H, NN_LINEAR, false},                          \
        {"double, image: q, k, v, out", BENCH_IMAGE, W, W, NN_LINEAR, false},                      \
        {"double, image: SwiGLU", BENCH_IMAGE, H, W, NN_SILU, false},                              \
        {"double, image: down", BENCH_IMAGE, W, H, NN_LINEAR, false},                              \
        {"double, text: q, k, v, out", BENCH_TEXT, W, W, NN_LINEAR, false},                        \
        {"double, text: SwiGLU", BENCH_TEXT, H, W, NN_SILU, false},                                \
    {                                                                                              \
        "double, text: down", BENCH_TEXT, W, H, NN_LINEAR, false                                   \
    }

const bench_model bench_models[] = {
    {.name = "z-image",
     .bit = CT_BENCH_Z_IMAGE,
     .width = 3840,
     .heads = 30,
     .text_tokens = 64,
     .layer = {{"attention: q, k, v, out", BENCH_BOTH, 3840, 3840, NN_LINEAR, false},
               {"feed-forward: SwiGLU", BENCH_BOTH, 10240, 3840, NN_SILU, false},
               {"feed-forward: down", BENCH_BOTH, 3840, 10240, NN_LINEAR, false}},
     .conv = KL_CONVS},
    {.name = "klein-4b",
     .bit = CT_BENCH_KLEIN_4B,
     .width = 3072,
     .heads = 24,
     .text_tokens = 512,
     .layer = {KLEIN_LAYERS(3072, 9216)},
     .conv = KL_CONVS},
    {.name = "klein-9b",
     .bit = CT_BENCH_KLEIN_9B,
     .width = 4096,
     .heads = 32,
     .text_tokens = 512,
     .layer = {KLEIN_LAYERS(4096, 12288)},
     .conv = KL_CONVS},
    {.name = "qwen-image",
     .bit = CT_BENCH_QWEN_IMAGE,
     .width = 3072,
     .heads = 24,
     .text_tokens = 64,
     .layer = {{"image: q, k, v, out", BENCH_IMAGE, 3072, 3072, NN_LINEAR, true},
               {"image: up, GELU", BENCH_IMAGE, 12288, 3072, NN_GELU_TANH, true},
               {"image: down", BENCH_IMAGE, 3072, 12288, NN_LINEAR, true},
               {"text: q, k, v, out", BENCH_TEXT, 3072, 3072, NN_LINEAR, true},
               {"text: up, GELU", BENCH_TEXT, 12288, 3072, NN_GELU_TANH, true},
               {"text: down", BENCH_TEXT, 3072, 12288, NN_LINEAR, true}},
     .conv = {{384, 8}, {384, 4}, {192, 2}, {96, 1}}},
    {.name = NULL},
};

int64_t bench_image_tokens(int side)
{
    const int64_t patches = side / 16;
    return patches * patches;
}

int64_t bench_rows(const bench_model *model, bench_tokens tokens, int side)
{
    const int64_t image = tokens == BENCH_TEXT ? 0 : bench_image_tokens(side);
    return image + (tokens == BENCH_IMAGE ? 0 : model->text_tokens);
}

size_t bench_weight_bytes(unsigned models)
{
    size_t most = 0;
    for (const bench_model *m = bench_models; m->name; m++)
        for (const bench_layer *l = m->layer; (m->bit & models) && l->name; l++) {
            const size_t bytes = 2 * (size_t)l->n * (size_t)l->k;
            most = bytes > most ? bytes : most;
        }
    return most;
}
