/* The vision tower of Qwen2.5-VL (https://arxiv.org/abs/2502.13923; transformers
 * Qwen2_5_VisionTransformer).
 *
 * patches -> linear -> blocks: attention inside of windows, or over all; gated MLP -> merger
 *
 * Four patches, a square, become one token: a cell. Patches are kept in the order of windows, in a
 * window by cells, in a cell row by row, so that a window is a run of rows. */
#include "models/qwen_vision.h"

#include "core/file.h"
#include "core/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define EPS 1e-6
#define CHANNELS 3
#define FRAMES 2 /* in a patch of a film; a picture is two equal ones */
#define THETA 10000.0f

/* ---- Loading --------------------------------------------------------------------------------- */

static ct_status read_sizes(qwen_vision *m, const config *c, ct_error *error)
{
    int64_t heads = 0, blocks = 0, frames = FRAMES, channels = CHANNELS;
    ct_status s = config_integer(c, "hidden_size", 4, 1 << 16, false, 1280, &m->hidden, error);
    if (s == CT_OK)
        s = config_integer(c, "intermediate_size", 1, 1 << 20, false, 3420, &m->intermediate,
                           error);
    if (s == CT_OK)
        s = config_integer(c, "out_hidden_size", 1, 1 << 20, false, 3584, &m->out, error);
    if (s == CT_OK)
        s = config_integer(c, "num_heads", 1, 4096, false, 16, &heads, error);
    if (s == CT_OK)
        s = config_integer(c, "depth", 1, 1000, false, 32, &blocks, error);
    if (s == CT_OK)
        s = config_integer(c, "patch_size", 1, 256, false, 14, &m->patch, error);
    if (s == CT_OK)
        s = config_integer(c, "spatial_merge_size", 1, 16, false, 2, &m->merge, error);
    if (s == CT_OK)
        s = config_integer(c, "window_size", 1, 4096, false, 112, &m->window, error);
    if (s == CT_OK)
        s = config_integer(c, "temporal_patch_size", FRAMES, FRAMES, false, FRAMES, &frames, error);
    if (s == CT_OK && config_has(c, "in_channels"))
        s = config_integer(c, "in_channels", CHANNELS, CHANNELS, false, CHANNELS, &channels, error);
    if (s != CT_OK)
        return s;
    if (m->hidden % heads != 0 || m->hidden / heads % 4 != 0 || m->window < m->patch * m->merge)
        return error_set(error, CT_EFORMAT,
                         "%s: in vision_config, hidden_size must be a multiple of four times "
                         "num_heads, and window_size at least patch_size * spatial_merge_size",
                         c->path);
    m->heads = (int)heads;
    m->blocks = (int)blocks;
    return CT_OK;
}

static ct_status read_config(qwen_vision *m, const config *whole, ct_error *error)
{
    const char *activation = NULL;
    config vision = *whole;
    if (whole->root && !config_has(whole, "vision_config"))
        return error_set(error, CT_EFORMAT, "%s has no vision_config", whole->path);
    vision.root = (json_value *)json_get(whole->root, "vision_config");
    ct_status s = read_sizes(m, &vision, error);
    if (s == CT_OK)
        s = config_string(&vision, "hidden_act", false, &activation, error);
    if (s == CT_OK && activation && strcmp(activation, "silu") != 0)
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: a hidden_act other than \"silu\" in vision_config is not supported",
                         whole->path);
    m->full_count = 4;
    memcpy(m->full, (const int64_t[]){7, 15, 23, 31}, 4 * sizeof *m->full);
    if (s == CT_OK && config_has(&vision, "fullatt_block_indexes"))
        s = config_integers(&vision, "fullatt_block_indexes", 0, 1000, QWEN_VISION_MAX_FULL,
                            m->full, &m->full_count, error);
    return s;
}

static ct_status bind_weights(qwen_vision *m, weights *source, const load_options *options,
                              ct_error *error)
{
    binder b = {.source = source, .options = options, .error = error};
    const int64_t d = m->hidden, f = m->intermediate, cell = m->merge * m->merge * d;
    const char *p =
        weights_find(source, "model.visual.merger.ln_q.weight") ? "model.visual." : "visual.";
    m->embed = bind_kernel_rows(&b, d, CHANNELS, FRAMES, m->patch, "%spatch_embed.proj.weight", p);
    for (int i = 0; i < m->blocks; i++) {
        qwen_vision_block *k = &m->block[i];
        k->norm1 = bind1(&b, d, "%sblocks.%d.norm1.weight", p, i);
        k->qkv = bind2(&b, 3 * d, d, "%sblocks.%d.attn.qkv.weight", p, i);
        k->qkv_bias = bind1(&b, 3 * d, "%sblocks.%d.attn.qkv.bias", p, i);
        k->proj = bind2(&b, d, d, "%sblocks.%d.attn.proj.weight", p, i);
        k->proj_bias = bind1(&b, d, "%sblocks.%d.attn.proj.bias", p, i);
        k->norm2 = bind1(&b, d, "%sblocks.%d.norm2.weight", p, i);
        k->gate = bind2(&b, f, d, "%sblocks.%d.mlp.gate_proj.weight", p, i);
        k->gate_bias = bind1(&b, f, "%sblocks.%d.mlp.gate_proj.bias", p, i);
        k->up = bind2(&b, f, d, "%sblocks.%d.mlp.up_proj.weight", p, i);
        k->up_bias = bind1(&b, f, "%sblocks.%d.mlp.up_proj.bias", p, i);
        k->down = bind2(&b, d, f, "%sblocks.%d.mlp.down_proj.weight", p, i);
        k->down_bias = bind1(&b, d, "%sblocks.%d.mlp.down_proj.bias", p, i);
    }
    m->norm = bind1(&b, d, "%smerger.ln_q.weight", p);
    m->merger1 = bind2(&b, cell, cell, "%smerger.mlp.0.weight", p);
    m->merger1_bias = bind1(&b, cell, "%smerger.mlp.0.bias", p);
    m->merger2 = bind2(&b, m->out, cell, "%smerger.mlp.2.weight", p);
    m->merger2_bias = bind1(&b, m->out, "%smerger.mlp.2.bias", p);
    return b.status;
}

ct_status qwen_vision_load(qwen_vision **out, weights *source, const load_options *options,
                           const char *directory, ct_error *error)
{
    const ct_allocator *a = options->allocator;
    *out = NULL;
    qwen_vision *m = mem_zero_array(a, 1, sizeof *m);
    char *path = path_join(a, directory, "config.json");
    if (!m || !path) {
        mem_free(a, m);
        mem_free(a, path);
        return error_memory(error, sizeof *m, "the vision tower");
    }
    m->allocator = a;
    /* Where there is no configuration the values are those of the only published tower. */
    config c = {0};
    ct_status status = CT_OK;
    if (options->infer && !file_exists(path))
        snprintf(c.path, sizeof c.path, "%s (it has no config.json)", directory);
    else
        status = config_open(&c, a, path, error);
    mem_free(a, path);
    if (status == CT_OK) {
        status = read_config(m, &c, error);
        config_close(&c);
    }
    if (status == CT_OK) {
        m->block = mem_zero_array(a, (size_t)m->blocks, sizeof *m->block);
        status = m->block ? bind_weights(m, source, options, error)
                          : error_memory(error, sizeof *m->block, "the vision tower");
    }
    if (status != CT_OK) {
        qwen_vision_free(m);
        return status;
    }
    *out = m;
    return CT_OK;
}

void qwen_vision_free(qwen_vision *m)
{
    if (!m)
        return;
    mem_free(m->allocator, m->block);
    mem_free(m->allocator, m);
}

int qwen_vision_multiple(const qwen_vision *m)
{
    return (int)(m->patch * m->merge);
}

/* ---- Order ----------------------------------------------------------------------------------- */

/* Goes through the cells of a picture in the order of windows. */
typedef struct walk {
    int64_t rows, columns, side; /* of cells; cells on a side of a window */
    int64_t top, left;           /* of the window */
    int64_t row, column;         /* of the cell */
    bool begins;                 /* it is the first of its window */
} walk;

static walk walk_begin(const qwen_vision *m, int64_t rows, int64_t columns)
{
    return (walk){.rows = rows,
                  .columns = columns,
                  .side = m->window / (m->merge * m->patch),
                  .begins = true};
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* False behind the last cell. */
static bool walk_next(walk *w)
{
    w->begins = false;
    if (++w->column < min64(w->left + w->side, w->columns))
        return true;
    w->column = w->left;
    if (++w->row < min64(w->top + w->side, w->rows))
        return true;
    w->begins = true;
    w->left += w->side;
    if (w->left >= w->columns) {
        w->left = 0;
        w->top += w->side;
    }
    w->row = w->top;
    w->column = w->left;
    return w->top < w->rows;
}

/* Numbers of a patch in the order of its kernel: channel, frame, row, column. */
static void fill_patch(const qwen_vision *m, float *out, const uint8_t *rgb, int64_t width,
                       int64_t top, int64_t left)
{
    /* Of CLIP. */
    static const float mean[CHANNELS] = {0.48145466f, 0.4578275f, 0.40821073f};
    static const float deviation[CHANNELS] = {0.26862954f, 0.26130258f, 0.27577711f};
    const int64_t p = m->patch;
    for (int ch = 0; ch < CHANNELS; ch++)
        for (int frame = 0; frame < FRAMES; frame++)
            for (int64_t y = 0; y < p; y++)
                for (int64_t x = 0; x < p; x++) {
                    const uint8_t byte = rgb[((top + y) * width + left + x) * CHANNELS + ch];
                    *out++ = ((float)(byte * (1.0 / 255)) - mean[ch]) / deviation[ch];
                }
}

/* patches [rows, numbers] and the angles' cosines and sines [rows, half]. */
static void fill(const qwen_vision *m, const uint8_t *rgb, int64_t height, int64_t width,
                 float *patches, float *cosine, float *sine)
{
    const int64_t cell = qwen_vision_multiple(m), p = m->patch;
    const int64_t numbers = CHANNELS * FRAMES * p * p, quarter = m->hidden / m->heads / 4;
    walk w = walk_begin(m, height / cell, width / cell);
    do {
        for (int64_t i = 0; i < m->merge * m->merge; i++) {
            const int64_t y = w.row * m->merge + i / m->merge;
            const int64_t x = w.column * m->merge + i % m->merge;
            fill_patch(m, patches, rgb, width, y * p, x * p);
            patches += numbers;
            for (int64_t k = 0; k < 2 * quarter; k++) {
                const float position = (float)(k < quarter ? y : x);
                const float exponent = (float)(2 * (k % quarter)) / (float)(2 * quarter);
                const float angle = position * (1.0f / powf(THETA, exponent));
                *cosine++ = cosf(angle);
                *sine++ = sinf(angle);
            }
        }
    } while (walk_next(&w));
}

/* ---- Forward --------------------------------------------------------------------------------- */

typedef struct view {
    const qwen_vision *m;
    int64_t rows, columns;  /* of cells */
    nn_tensor cosine, sine; /* [patches, head dim / 2] */
    int32_t *ends;          /* of each window, in patches */
    int windows;
} view;

static bool is_full(const qwen_vision *m, int block)
{
    for (int i = 0; i < m->full_count; i++)
        if (m->full[i] == block)
            return true;
    return false;
}

static bool find_windows(nn *c, view *v)
{
    const int64_t cells = v->rows * v->columns, patches = v->m->merge * v->m->merge;
    walk at = walk_begin(v->m, v->rows, v->columns);
    int32_t end = 0;
    v->ends = mem_array(v->m->allocator, (size_t)cells, sizeof *v->ends);
    if (!v->ends) {
        nn_fail(c, CT_ENOMEM, "out of memory: the windows of a picture");
        return false;
    }
    do {
        if (at.begins)
            v->windows++;
        end += (int32_t)patches;
        v->ends[v->windows - 1] = end;
    } while (walk_next(&at));
    return true;
}

static void attention(nn *c, const view *v, int block, const nn_tensor *x)
{
    const qwen_vision *m = v->m;
    const qwen_vision_block *w = &m->block[block];
    const int64_t d = m->hidden, s = x->n[0];
    size_t mark = nn_mark(c);
    nn_tensor qkv = nn_new_work2(c, s, 3 * d), o = nn_new_work2(c, s, d);
    nn_tensor h = nn_new_operand(c, s, d);
    nn_tensor q = nn_columns(&qkv, 0, d), k = nn_columns(&qkv, d, d);
    nn_tensor values = nn_columns(&qkv, 2 * d, d);
    nn_rms_norm(c, &h, x, &w->norm1, EPS, NULL);
    nn_linear(c, &qkv, &h, &w->qkv, &(nn_epilogue){.bias = &w->qkv_bias});
    nn_head_norm_rope(c, &q, m->heads, NULL, EPS, &v->cosine, &v->sine, NN_ROPE_HALVES);
    nn_head_norm_rope(c, &k, m->heads, NULL, EPS, &v->cosine, &v->sine, NN_ROPE_HALVES);
    if (is_full(m, block))
        nn_attention(c, &o, &q, &k, &values, m->heads, m->heads, false);
    else
        nn_attention_segments(c, &o, &q, &k, &values, m->heads, v->ends, v->windows);
    nn_linear(c, x, &o, &w->proj, &(nn_epilogue){.bias = &w->proj_bias, .add = true});
    nn_release(c, mark);
}

static void feed_forward(nn *c, const view *v, int block, const nn_tensor *x)
{
    const qwen_vision *m = v->m;
    const qwen_vision_block *w = &m->block[block];
    size_t mark = nn_mark(c);
    nn_tensor gate = nn_new_work2(c, x->n[0], m->intermediate);
    nn_tensor up = nn_new_work2(c, x->n[0], m->intermediate);
    nn_tensor h = nn_new_operand(c, x->n[0], m->hidden);
    nn_rms_norm(c, &h, x, &w->norm2, EPS, NULL);
    nn_linear(c, &gate, &h, &w->gate, &(nn_epilogue){.bias = &w->gate_bias, .activation = NN_SILU});
    nn_linear(c, &up, &h, &w->up, &(nn_epilogue){.bias = &w->up_bias});
    nn_multiply(c, &gate, &up);
    nn_linear(c, x, &gate, &w->down, &(nn_epilogue){.bias = &w->down_bias, .add = true});
    nn_release(c, mark);
}

/* Rows in the order of windows to features row by row. */
static void take_features(nn *c, const view *v, const nn_tensor *cells, float *features)
{
    const int64_t n = v->m->out, count = cells->n[0];
    if (nn_is_dry(c) || nn_stopped(c))
        return;
    float *ordered = mem_array(v->m->allocator, (size_t)(count * n), sizeof *ordered);
    if (!ordered) {
        nn_fail(c, CT_ENOMEM, "out of memory: the features of a picture");
        return;
    }
    nn_download(c, cells, ordered, count * n);
    walk w = walk_begin(v->m, v->rows, v->columns);
    const float *from = ordered;
    do {
        memcpy(features + (w.row * v->columns + w.column) * n, from, (size_t)n * sizeof *from);
        from += n;
    } while (walk_next(&w));
    mem_free(v->m->allocator, ordered);
}

void qwen_vision_forward(nn *c, const qwen_vision *m, const uint8_t *rgb, int64_t height,
                         int64_t width, float *features)
{
    const int64_t multiple = qwen_vision_multiple(m), cell = m->merge * m->merge;
    view v = {.m = m, .rows = height / multiple, .columns = width / multiple};
    const int64_t cells = v.rows * v.columns, s = cells * cell, d = m->hidden;
    if (!find_windows(c, &v))
        return;
    size_t mark = nn_mark(c);
    nn_tensor x = nn_new2(c, s, d);
    v.cosine = nn_new2(c, s, d / m->heads / 2);
    v.sine = nn_new2(c, s, d / m->heads / 2);
    size_t inner = nn_mark(c);
    nn_tensor patches = nn_new2(c, s, CHANNELS * FRAMES * m->patch * m->patch);
    float *to[3] = {nn_begin_write(c, &patches), nn_begin_write(c, &v.cosine),
                    nn_begin_write(c, &v.sine)};
    if (to[0] && to[1] && to[2])
        fill(m, rgb, height, width, to[0], to[1], to[2]);
    nn_end_write(c, &patches);
    nn_end_write(c, &v.cosine);
    nn_end_write(c, &v.sine);
    nn_linear(c, &x, &patches, &m->embed, NULL);
    nn_release(c, inner);
    for (int i = 0; i < m->blocks && !nn_stopped(c); i++) {
        nn_block(c);
        attention(c, &v, i, &x);
        feed_forward(c, &v, i, &x);
        nn_trace_tensor(c, &x, "text_encoder.visual.blocks.%d", i);
    }
    nn_block(c);
    nn_rms_norm(c, &x, &x, &m->norm, EPS, NULL);
    nn_tensor merged = nn_as2(c, &x, cells, cell * d);
    nn_tensor hidden = nn_new2(c, cells, cell * d), out = nn_new2(c, cells, m->out);
    nn_linear(c, &hidden, &merged, &m->merger1, &(nn_epilogue){.bias = &m->merger1_bias});
    nn_gelu(c, &hidden);
    nn_linear(c, &out, &hidden, &m->merger2, &(nn_epilogue){.bias = &m->merger2_bias});
    take_features(c, &v, &out, features);
    nn_release(c, mark);
    mem_free(m->allocator, v.ends);
}
