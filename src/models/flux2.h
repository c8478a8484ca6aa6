/* The FLUX.2 transformer: text and image tokens first in two streams with attention over both, then
 * in one. FLUX.2-klein has no embedding of the guidance.
 *
 * What depends on the schedule alone (modulation of all steps) or on prompt, size and references
 * alone (their embedded tokens, rotation angles) is computed once for a picture. */
#ifndef MODELS_FLUX2_H
#define MODELS_FLUX2_H

#include "io/weights.h"
#include "models/bind.h"
#include "models/rope.h"
#include "models/vae.h"
#include "nn/nn.h"

#define FLUX2_AXES 4 /* position of a token: picture, row, column, word */

/* What a double block has for each of its streams. */
typedef struct flux2_stream {
    nn_weight q, k, v, out, norm_q, norm_k;
    nn_weight gate, up,
        down; /* of the feed-forward network; gate and up are halves of one tensor */
} flux2_stream;

typedef struct flux2_double {
    flux2_stream image, text;
} flux2_double;

typedef struct flux2_single {
    nn_weight q, k, v, gate, up; /* parts of one tensor */
    nn_weight norm_q, norm_k;
    nn_weight out; /* [dim, dim + ffn_dim]: of the attention and of gate times up */
} flux2_single;

typedef struct flux2 {
    const ct_allocator *allocator;
    weights *weights;
    int64_t dim, ffn_dim, head_dim, channels, text_dim, time_channels;
    int heads, doubles, singles;
    double eps, theta;
    /* Made for references that see nothing but one another (klein-9b-kv), which the files do not
     * say: set by who knows. */
    bool references_apart;
    int64_t axes_dims[FLUX2_AXES];

    nn_weight time1, time2;
    nn_weight image_modulation, text_modulation, single_modulation, final_modulation;
    nn_weight x_embedder, context_embedder, final;
    flux2_double *double_block;
    flux2_single *single_block;
} flux2;

ct_status flux2_load(flux2 **out, const load_options *options, const char *directory,
                     ct_error *error);
void flux2_free(flux2 *m); /* NULL is allowed */

/* Modulation at every step, the same for all blocks of a kind. */
typedef struct flux2_schedule {
    int64_t steps;
    nn_tensor values; /* [parts, steps, dim], see flux2.c */
    nn_tensor now;    /* [parts, dim]: of the present step */
} flux2_schedule;

/* Makes its tensors, and computes the values. sigmas [steps]: 1 at pure noise. */
flux2_schedule flux2_begin_schedule(nn *c, const flux2 *m, int64_t steps);
void flux2_fill_schedule(nn *c, const flux2 *m, const flux2_schedule *s, const float *sigmas);

/* What follows is evaluated at this step. */
void flux2_set_step(nn *c, const flux2_schedule *schedule, int64_t step);

/* Embedded text and references, and the positions of all tokens. */
typedef struct flux2_condition {
    nn_tensor text;       /* [tokens of text, dim] */
    nn_tensor references; /* [tokens of all references, dim]; none: rank 0 */
    nn_tensor kept;       /* or, where they stand apart, [blocks, tokens, 2 dim]: keys and values */
    nn_tensor cosine, sine; /* [all tokens, head_dim / 2]: text, image, references */
    int64_t rows, columns;  /* of image tokens */
    bool pictures_first;    /* the order of its tokens is references, image, text: batch.h */
} flux2_condition;

/* features [length, text_dim]; height and width in latent pixels. index: of the condition among
 * those that are evaluated together. tables: of positions, that stay; or NULL. */
flux2_condition flux2_prepare_condition(nn *c, const flux2 *m, const float *features,
                                        int64_t length, int64_t height, int64_t width,
                                        const vae_latents *references, int count, int index,
                                        const rope_memory *tables);

/* One evaluation of latents [channels, height, width] under each of count conditions, at most
 * BATCH_MAX: outputs[i], of the same shape, is the velocity. */
void flux2_forward(nn *c, const flux2 *m, const flux2_schedule *schedule,
                   const flux2_condition *const *conditions, int count, const nn_tensor *latents,
                   const nn_tensor *outputs);

#endif
