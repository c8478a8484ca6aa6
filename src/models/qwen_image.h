/* The Qwen-Image transformer: text and image tokens in two streams, with attention over both.
 *
 * A third of its weights is modulation, which depends on the noise level alone: the vectors of all
 * steps are computed once for a schedule, and those weights are not read again. What depends on
 * prompt, size and references alone (their embedded tokens, rotation angles) is computed once for a
 * picture. */
#ifndef MODELS_QWEN_IMAGE_H
#define MODELS_QWEN_IMAGE_H

#include "core/strbuf.h"
#include "io/weights.h"
#include "models/bind.h"
#include "models/rope.h"
#include "models/vae.h"
#include "nn/nn.h"

#define QWEN_IMAGE_AXES 3 /* position of a token: picture, row, column */

/* What a block has for each of its streams. */
typedef struct qwen_image_stream {
    nn_weight modulation, modulation_bias;
    nn_weight q, q_bias, k, k_bias, v, v_bias, out, out_bias, norm_q, norm_k;
    nn_weight up, up_bias, down, down_bias;
} qwen_image_stream;

typedef struct qwen_image_block {
    qwen_image_stream image, text;
} qwen_image_block;

typedef struct qwen_image {
    const ct_allocator *allocator;
    weights *weights;
    int64_t dim, ffn_dim, head_dim, text_dim;
    int64_t channels; /* of latents */
    int heads, blocks;
    bool zero_cond_t; /* references are modulated as at noise level 0 */
    int64_t axes_dims[QWEN_IMAGE_AXES];

    nn_weight time1, time1_bias, time2, time2_bias;
    nn_weight img_in, img_in_bias, txt_norm, txt_in, txt_in_bias;
    nn_weight final_modulation, final_modulation_bias, final, final_bias;
    qwen_image_block *block;
} qwen_image;

ct_status qwen_image_load(qwen_image **out, const load_options *options, const char *directory,
                          ct_error *error);
void qwen_image_free(qwen_image *m); /* NULL is allowed */
/* The dimensions in one line. */
void qwen_image_describe(const qwen_image *m, strbuf *out);

/* Modulation at every step. */
typedef struct qwen_image_schedule {
    int64_t steps;
    nn_tensor values; /* [parts, steps, dim], see qwen_image.c; with zero_cond_t a row more */
    nn_tensor now;    /* [parts, dim]: of the present step */
    nn_tensor zero;   /* [parts, dim]: of noise level 0, with zero_cond_t; else rank 0 */
} qwen_image_schedule;

/* Makes its tensors, and computes the values. sigmas [steps]: 1 at pure noise. */
qwen_image_schedule qwen_image_begin_schedule(nn *c, const qwen_image *m, int64_t steps);
void qwen_image_fill_schedule(nn *c, const qwen_image *m, const qwen_image_schedule *s,
                              const float *sigmas);

/* What follows is evaluated at this step. */
void qwen_image_set_step(nn *c, const qwen_image_schedule *schedule, int64_t step);

/* Embedded text and references, and the positions of all tokens. */
typedef struct qwen_image_condition {
    nn_tensor text;         /* [tokens of text, dim] */
    nn_tensor references;   /* [tokens of all references, dim]; none: rank 0 */
    nn_tensor cosine, sine; /* [all tokens, head_dim / 2]: text, image, references */
    int64_t rows, columns;  /* of image tokens */
    bool pictures_first;    /* the order of its tokens is references, image, text: batch.h */
} qwen_image_condition;

/* features [length, text_dim]; height and width in latent pixels. index: of the condition among
 * those that are evaluated together. tables: of positions, that stay; or NULL. */
qwen_image_condition qwen_image_prepare_condition(nn *c, const qwen_image *m, const float *features,
                                                  int64_t length, int64_t height, int64_t width,
                                                  const vae_latents *references, int count,
                                                  int index, const rope_memory *tables);

/* One evaluation of latents [channels, height, width] under each of count conditions, at most
 * BATCH_MAX: outputs[i], of the same shape, is the velocity. */
void qwen_image_forward(nn *c, const qwen_image *m, const qwen_image_schedule *schedule,
                        const qwen_image_condition *const *conditions, int count,
                        const nn_tensor *latents, const nn_tensor *outputs);

#endif
