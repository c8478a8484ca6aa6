/* Qwen3, used as a text encoder: tokens to hidden states, causal, grouped queries. */
#ifndef MODELS_QWEN3_H
#define MODELS_QWEN3_H

#include "core/strbuf.h"
#include "io/weights.h"
#include "models/bind.h"
#include "nn/nn.h"

typedef struct qwen3_layer {
    nn_weight input_norm, q, k, v, q_norm, k_norm, o; /* attention */
    nn_weight post_norm, gate, up, down;              /* feed-forward */
} qwen3_layer;

typedef struct qwen3 {
    const ct_allocator *allocator;
    weights *weights;
    int64_t hidden, intermediate, vocab, head_dim, max_positions;
    int heads, kv_heads, layers;
    double eps, theta;
    int used_layers; /* how many of the layers are bound */
    nn_weight embed;
    qwen3_layer *layer; /* [used_layers] */
} qwen3;

/* Opens a component directory. Only the first layers - unused are bound: diffusers takes
 * hidden_states[-2] for Z-Image, the residual stream before the last layer. */
ct_status qwen3_load(qwen3 **out, const load_options *options, const char *directory, int unused,
                     ct_error *error);
void qwen3_free(qwen3 *m); /* NULL is allowed */
/* The dimensions in one line. */
void qwen3_describe(const qwen3 *m, strbuf *out);

/* The residual stream after used_layers layers, without the final norm: [count, hidden], made in
 * the arena. layer_done (may be NULL) is called after each layer. */
nn_tensor qwen3_forward(nn *c, const qwen3 *m, const int32_t *ids, int64_t count,
                        void (*layer_done)(void *user, int layer), void *user);

#endif
