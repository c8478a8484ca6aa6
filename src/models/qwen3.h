/* Qwen3, used as a text encoder: tokens to hidden states, causal, grouped queries. */
#ifndef MODELS_QWEN3_H
#define MODELS_QWEN3_H

#include "core/strbuf.h"
#include "io/weights.h"
#include "models/bind.h"
#include "nn/nn.h"

/* Which layers a model's features are taken behind: the residual streams after so many layers, side
 * by side. Counted from the end if negative, so that -1 is the stream before the last layer, the
 * reference's hidden_states[-2]. In ascending order. */
#define QWEN3_MAX_TAPS 4
typedef struct qwen3_taps {
    int count, layer[QWEN3_MAX_TAPS];
} qwen3_taps;

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
    qwen3_taps taps; /* counted from the beginning */
    nn_weight embed;
    qwen3_layer *layer; /* [used_layers] */
} qwen3;

/* Opens a component directory. Only those layers are bound that the features need. */
ct_status qwen3_load(qwen3 **out, const load_options *options, const char *directory,
                     const qwen3_taps *taps, ct_error *error);
void qwen3_free(qwen3 *m); /* NULL is allowed */
/* The dimensions in one line. */
void qwen3_describe(const qwen3 *m, strbuf *out);

/* Numbers in the features of a token. */
int64_t qwen3_width(const qwen3 *m);
/* The features, [count, qwen3_width], without the final norm; made in the arena. Behind the first
 * `words` tokens there is padding: it sees them and not itself. layer_done (may be NULL) is called
 * after each layer. */
nn_tensor qwen3_forward(nn *c, const qwen3 *m, const int32_t *ids, int64_t count, int64_t words,
                        void (*layer_done)(void *user, int layer), void *user);

#endif
