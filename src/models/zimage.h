/* The Z-Image transformer (S3-DiT): image and caption tokens in one stream.
 *
 * What depends on the schedule alone (modulation of all steps) or on the prompt and size alone
 * (refined caption, rotation angles) is computed once for a picture. */
#ifndef MODELS_ZIMAGE_H
#define MODELS_ZIMAGE_H

#include "io/weights.h"
#include "models/bind.h"
#include "models/rope.h"
#include "nn/nn.h"

#define ZIMAGE_AXES 3 /* position of a token: time, row, column */

typedef struct zimage_block {
    nn_weight q, k, v, out, norm_q, norm_k, attention_norm1, attention_norm2;
    nn_weight w1, w2, w3, ffn_norm1, ffn_norm2;
    nn_weight modulation, modulation_bias; /* none in the context refiner */
} zimage_block;

typedef struct zimage {
    const ct_allocator *allocator;
    weights *weights;
    int64_t dim, ffn_dim, head_dim, channels, caption_dim, embed_dim;
    int heads, layers, refiners;
    double eps, theta, t_scale;
    bool qk_norm;
    int64_t axes_dims[ZIMAGE_AXES], axes_lens[ZIMAGE_AXES];

    nn_weight t_mlp0, t_mlp0_bias, t_mlp2, t_mlp2_bias;
    nn_weight x_embedder, x_embedder_bias, x_pad_token;
    nn_weight caption_norm, caption_embedder, caption_embedder_bias, caption_pad_token;
    nn_weight final_modulation, final_modulation_bias, final, final_bias;
    zimage_block *noise_refiner, *context_refiner, *layer;
} zimage;

ct_status zimage_load(zimage **out, const load_options *options, const char *directory,
                      ct_error *error);
void zimage_free(zimage *m); /* NULL is allowed */

/* The largest picture, in latent pixels, that the table of positions allows. */
int64_t zimage_max_side(const zimage *m, int axis);
/* The most caption tokens, before padding. */
int64_t zimage_max_caption(const zimage *m);

/* Modulation of every block at every step. */
typedef struct zimage_schedule {
    int64_t steps;
    nn_tensor values; /* [4 * modulated blocks + 1, steps, dim], see zimage.c */
    nn_tensor now;    /* [4 * modulated blocks + 1, dim]: of the present step */
} zimage_schedule;

/* Makes its tensors, and computes the values. times [steps]: 1 - sigma, 0 at pure noise. */
zimage_schedule zimage_begin_schedule(nn *c, const zimage *m, int64_t steps);
void zimage_fill_schedule(nn *c, const zimage *m, const zimage_schedule *s, const float *times);

/* What follows is evaluated at this step. */
void zimage_set_step(nn *c, const zimage_schedule *schedule, int64_t step);

/* A caption, refined, and the positions of image and caption tokens. */
typedef struct zimage_caption {
    nn_tensor tokens;       /* [Lc', dim]: Lc rounded up to whole groups of 32 */
    nn_tensor cosine, sine; /* [Li' + Lc', head_dim / 2], image tokens first */
    int64_t rows, columns;  /* of image tokens */
    int64_t image_length;   /* Li' */
} zimage_caption;

/* features [length, caption_dim]; height and width in latent pixels. tables: of positions, that
 * stay; or NULL. */
zimage_caption zimage_prepare_caption(nn *c, const zimage *m, const float *features, int64_t length,
                                      int64_t height, int64_t width, const rope_memory *tables);

/* One evaluation of latents [channels, height, width] under each of count captions, at most
 * BATCH_MAX: outputs[i], of the same shape, is an estimate of clean picture minus noise (the
 * negative of the velocity). */
void zimage_forward(nn *c, const zimage *m, const zimage_schedule *schedule,
                    const zimage_caption *const *captions, int count, const nn_tensor *latents,
                    const nn_tensor *outputs);

#endif
