/* The vision tower of Qwen2.5-VL: a picture to the features that stand for it among the words of a
 * prompt. */
#ifndef MODELS_QWEN_VISION_H
#define MODELS_QWEN_VISION_H

#include "models/bind.h"
#include "nn/nn.h"

#define QWEN_VISION_MAX_FULL 64

typedef struct qwen_vision_block {
    nn_weight norm1, qkv, qkv_bias, proj, proj_bias;
    nn_weight norm2, gate, gate_bias, up, up_bias, down, down_bias;
} qwen_vision_block;

typedef struct qwen_vision {
    const ct_allocator *allocator;
    int64_t hidden, intermediate, out, patch, merge, window; /* window: pixels on a side */
    int heads, blocks, full_count;
    int64_t full[QWEN_VISION_MAX_FULL]; /* blocks whose attention sees the whole picture */
    nn_weight embed;                    /* [hidden, 3 * 2 * patch * patch] */
    nn_weight norm, merger1, merger1_bias, merger2, merger2_bias;
    qwen_vision_block *block;
} qwen_vision;

/* Binds the tensors of a text encoder that is open; directory is its folder. */
ct_status qwen_vision_load(qwen_vision **out, weights *source, const load_options *options,
                           const char *directory, ct_error *error);
void qwen_vision_free(qwen_vision *m); /* NULL is allowed */

/* Sides of a picture are multiples of this; each square of as many pixels is one token. */
int qwen_vision_multiple(const qwen_vision *m);
/* rgb [height, width, 3]: features [height / multiple * width / multiple, out], row by row, in
 * memory of the host. */
void qwen_vision_forward(nn *c, const qwen_vision *m, const uint8_t *rgb, int64_t height,
                         int64_t width, float *features);

#endif
