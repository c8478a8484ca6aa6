/* The shapes that ct_bench measures: those of published models. */
#ifndef PIPELINE_BENCH_SHAPES_H
#define PIPELINE_BENCH_SHAPES_H

#include "nn/nn.h"

/* Which tokens a linear layer sees: those of the picture, of the text, or both. */
typedef enum bench_tokens { BENCH_IMAGE, BENCH_TEXT, BENCH_BOTH } bench_tokens;

typedef struct bench_layer {
    const char *name;
    bench_tokens tokens;
    int64_t n, k;
    nn_activation activation; /* NN_SILU: with a second weight, as in SwiGLU */
    bool bias;
} bench_layer;

/* A 3x3 convolution of the VAE's decoder: so many channels at the picture's size over a divisor. */
typedef struct bench_conv {
    int channels, divisor;
} bench_conv;

#define BENCH_CONVS 4

typedef struct bench_model {
    const char *name;
    unsigned bit; /* CT_BENCH_... */
    int width, heads, text_tokens;
    bench_layer layer[12]; /* each with at least 1 % of a forward's work; name NULL at the end */
    bench_conv conv[BENCH_CONVS];
} bench_model;

extern const bench_model bench_models[]; /* name NULL at the end */

/* Patches of a square picture: 8x8 pixels are a latent, 2x2 latents a token. */
int64_t bench_image_tokens(int side);
int64_t bench_rows(const bench_model *model, bench_tokens tokens, int side);
/* The most bytes of bfloat16 that a weight of these models (CT_BENCH_..., added) has. */
size_t bench_weight_bytes(unsigned models);

#endif
