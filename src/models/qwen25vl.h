/* The language model of Qwen2.5-VL, used as a text encoder: tokens to hidden states. Among the
 * words may stand pictures, as the vision tower has seen them. */
#ifndef MODELS_QWEN25VL_H
#define MODELS_QWEN25VL_H

#include "core/strbuf.h"
#include "io/weights.h"
#include "models/bind.h"
#include "nn/nn.h"

typedef struct qwen25vl_layer {
    nn_weight input_norm, q, q_bias, k, k_bias, v, v_bias, o; /* attention */
    nn_weight post_norm, gate, up, down;                      /* feed-forward */
} qwen25vl_layer;

typedef struct qwen25vl {
    const ct_allocator *allocator;
    weights *weights;
    int64_t hidden, intermediate, vocab, head_dim, max_positions;
    int heads, kv_heads, layers;
    double eps, theta;
    int64_t sections[3]; /* of the angles of a head: by picture, row, column */
    int64_t image_token; /* what stands for a cell of a picture */
    nn_weight embed, norm;
    qwen25vl_layer *layer;
} qwen25vl;

/* Opens a component directory. */
ct_status qwen25vl_load(qwen25vl **out, const load_options *options, const char *directory,
                        ct_error *error);
void qwen25vl_free(qwen25vl *m); /* NULL is allowed */
/* The dimensions in one line. */
void qwen25vl_describe(const qwen25vl *m, strbuf *out);

/* A picture among the words: features [rows * columns, hidden], as the vision tower makes them. */
typedef struct qwen25vl_picture {
    const float *features;
    int64_t rows, columns;
} qwen25vl_picture;

/* The features behind the final norm without those of the first `dropped` tokens, [count - dropped,
 * hidden]; made in the arena. Each picture has as many image tokens among the ids as cells, one
 * after the other. layer_done (may be NULL) is called after each layer. */
nn_tensor qwen25vl_forward(nn *c, const qwen25vl *m, const int32_t *ids, int64_t count,
                           int64_t dropped, const qwen25vl_picture *pictures, int picture_count,
                           void (*layer_done)(void *user, int layer), void *user);

#endif
