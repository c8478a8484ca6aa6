/* AutoencoderKL (https://arxiv.org/abs/2112.10752; diffusers AutoencoderKL).
 *
 * decode: conv_in, mid (resnet, attention, resnet), blocks (resnets, doubling), norm, conv_out
 * encode: conv_in, blocks (resnets, halving), mid, norm, conv_out
 *
 * Tensors are large here, so each stage replaces its input: it is made above it in the arena and
 * then moved down in its place (replace). Where even that is too much, the decoder works in bands
 * of rows (see "Strips"). */
#include "models/vae_kl.h"

#include "core/mem.h"
#include "io/names.h"

#include <stdio.h>

#define EPS 1e-6 /* of every group norm */

/* ---- Loading --------------------------------------------------------------------------------- */

/* What the tensors tell; the rest is that of the only published VAE with 16 latent channels and
 * this structure, FLUX.1's, which Z-Image uses. */
static void infer(const weights *w, json_writer *out)
{
    char name[NAMES_LENGTH];
    const int blocks = names_parts(w, "encoder.down_blocks", "resnets.0.conv1.bias");
    json_write_key(out, "block_out_channels");
    json_write_array(out);
    for (int i = 0; i < blocks && i < VAE_MAX_BLOCKS; i++) {
        snprintf(name, sizeof name, "encoder.down_blocks.%d.resnets.0.conv1.bias", i);
        json_write_integer(out, tensor_size(w, name, 0));
    }
    json_write_array_end(out);
    infer_integer(out, "layers_per_block",
                  names_parts(w, "encoder.down_blocks.0.resnets", "conv1.bias"));
    const int64_t moments = tensor_size(w, "encoder.conv_out.bias", 0);
    infer_integer(out, "latent_channels", moments == 32 ? 16 : 0);
    json_write_key(out, "scaling_factor");
    json_write_number(out, 0.3611);
    json_write_key(out, "shift_factor");
    json_write_number(out, 0.1159);
    json_write_key(out, "mid_block_add_attention");
    json_write_boolean(out, names_find(w, "decoder.mid_block.attentions.0.to_q.weight") != NULL);
    json_write_key(out, "use_quant_conv");
    json_write_boolean(out, names_find(w, "quant_conv.weight") != NULL);
    json_write_key(out, "use_post_quant_conv");
    json_write_boolean(out, names_find(w, "post_quant_conv.weight") != NULL);
}

static ct_status check_types(const config *c, const char *key, const char *type, ct_error *error)
{
    const json_value *types = json_get(c->root, key);
    for (size_t i = 0; i < json_size(types); i++) {
        const char *name = json_get_string(json_at(types, i), NULL);
        if (!name || strcmp(name, type) != 0)
            return error_set(error, CT_EUNSUPPORTED, "%s: %s may hold only \"%s\"", c->path, key,
                             type);
    }
    return CT_OK;
}

static ct_status read_config(vae_kl *m, const config *c, ct_error *error)
{
    int64_t in = 3, out = 3, layers = 0, groups = 0;
    bool quant = true, post_quant = true;
    const char *activation = NULL;
    ct_status s = config_integers(c, "block_out_channels", 1, 1 << 16, VAE_MAX_BLOCKS, m->channels,
                                  &m->blocks, error);
    if (s == CT_OK)
        s = config_integer(c, "layers_per_block", 1, 64, false, 1, &layers, error);
    if (s == CT_OK)
        s = config_integer(c, "norm_num_groups", 1, 1 << 16, false, 32, &groups, error);
    if (s == CT_OK)
        s = config_integer(c, "latent_channels", 1, 4096, false, 4, &m->latent_channels, error);
    if (s == CT_OK)
        s = config_integer(c, "in_channels", 3, 3, false, 3, &in, error);
    if (s == CT_OK)
        s = config_integer(c, "out_channels", 3, 3, false, 3, &out, error);
    if (s == CT_OK)
        s = config_integer(c, "sample_size", 1, 1 << 16, false, 1024, &m->sample_size, error);
    if (s == CT_OK)
        s = config_number(c, "scaling_factor", 1e-6, 1e6, false, 0.18215, &m->scaling_factor,
                          error);
    if (s == CT_OK)
        s = config_number(c, "shift_factor", -1e6, 1e6, false, 0, &m->shift_factor, error);
    if (s == CT_OK)
        s = config_boolean(c, "mid_block_add_attention", true, &m->mid_attention, error);
    if (s == CT_OK)
        s = config_boolean(c, "use_quant_conv", true, &quant, error);
    if (s == CT_OK)
        s = config_boolean(c, "use_post_quant_conv", true, &post_quant, error);
    if (s == CT_OK)
        s = config_string(c, "act_fn", false, &activation, error);
    if (s == CT_OK)
        s = check_types(c, "down_block_types", "DownEncoderBlock2D", error);
    if (s == CT_OK)
        s = check_types(c, "up_block_types", "UpDecoderBlock2D", error);
    if (s != CT_OK)
        return s;
    if (activation && strcmp(activation, "silu") != 0)
        return error_set(error, CT_EUNSUPPORTED, "%s: act_fn \"%s\" is not supported", c->path,
                         activation);
    for (int i = 0; i < m->blocks; i++)
        if (m->channels[i] % groups != 0)
            return error_set(error, CT_EFORMAT,
                             "%s: block_out_channels must be multiples of norm_num_groups (%d)",
                             c->path, (int)groups);
    m->layers_per_block = (int)layers;
    m->groups = (int)groups;
    if (quant != (weights_find(m->weights, "quant_conv.weight") != NULL) ||
        post_quant != (weights_find(m->weights, "post_quant_conv.weight") != NULL))
        return error_set(error, CT_EFORMAT,
                         "%s: use_quant_conv and use_post_quant_conv contradict the weight files",
                         c->path);
    return CT_OK;
}

static void bind_resnet(binder *b, vae_resnet *r, int64_t in, int64_t out, const char *name)
{
    r->in = in;
    r->out = out;
    r->norm1 = bind1(b, in, "%s.norm1.weight", name);
    r->norm1_bias = bind1(b, in, "%s.norm1.bias", name);
    r->conv1 = bind_conv(b, out, in, 3, "%s.conv1.weight", name);
    r->conv1_bias = bind1(b, out, "%s.conv1.bias", name);
    r->norm2 = bind1(b, out, "%s.norm2.weight", name);
    r->norm2_bias = bind1(b, out, "%s.norm2.bias", name);
    r->conv2 = bind_conv(b, out, out, 3, "%s.conv2.weight", name);
    r->conv2_bias = bind1(b, out, "%s.conv2.bias", name);
    if (in != out) {
        r->shortcut = bind_conv(b, out, in, 1, "%s.conv_shortcut.weight", name);
        r->shortcut_bias = bind1(b, out, "%s.conv_shortcut.bias", name);
    }
}

static void bind_attention(binder *b, vae_attention *a, int64_t channels, const char *name)
{
    const int64_t n = channels;
    a->norm = bind1(b, n, "%s.group_norm.weight", name);
    a->norm_bias = bind1(b, n, "%s.group_norm.bias", name);
    a->q = bind2(b, n, n, "%s.to_q.weight", name);
    a->q_bias = bind1(b, n, "%s.to_q.bias", name);
    a->k = bind2(b, n, n, "%s.to_k.weight", name);
    a->k_bias = bind1(b, n, "%s.to_k.bias", name);
    a->v = bind2(b, n, n, "%s.to_v.weight", name);
    a->v_bias = bind1(b, n, "%s.to_v.bias", name);
    a->out = bind2(b, n, n, "%s.to_out.0.weight", name);
    a->out_bias = bind1(b, n, "%s.to_out.0.bias", name);
}

/* What encoder and decoder have in common. in and out: channels of their first and last layer. */
static void bind_ends(binder *b, const vae_kl *m, vae_stack *s, const char *stack, int64_t in,
                      int64_t first, int64_t last, int64_t out)
{
    char name[64];
    const int64_t deepest = m->channels[m->blocks - 1];
    s->conv_in = bind_conv(b, first, in, 3, "%s.conv_in.weight", stack);
    s->conv_in_bias = bind1(b, first, "%s.conv_in.bias", stack);
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%s.mid_block.resnets.%d", stack, i);
        bind_resnet(b, &s->mid[i], deepest, deepest, name);
    }
    if (m->mid_attention) {
        snprintf(name, sizeof name, "%s.mid_block.attentions.0", stack);
        bind_attention(b, &s->attention, deepest, name);
    }
    s->norm_out = bind1(b, last, "%s.conv_norm_out.weight", stack);
    s->norm_out_bias = bind1(b, last, "%s.conv_norm_out.bias", stack);
    s->conv_out = bind_conv(b, out, last, 3, "%s.conv_out.weight", stack);
    s->conv_out_bias = bind1(b, out, "%s.conv_out.bias", stack);
}

static void bind_block(binder *b, vae_block *k, const char *prefix, int i, int64_t in, int64_t out,
                       const char *resize)
{
    char name[96];
    for (int j = 0; j < k->resnets; j++) {
        snprintf(name, sizeof name, "%s.%d.resnets.%d", prefix, i, j);
        bind_resnet(b, &k->resnet[j], j ? out : in, out, name);
    }
    if (resize) {
        k->resize = bind_conv(b, out, out, 3, "%s.%d.%s.0.conv.weight", prefix, i, resize);
        k->resize_bias = bind1(b, out, "%s.%d.%s.0.conv.bias", prefix, i, resize);
    }
}

static ct_status bind_weights(vae_kl *m, const load_options *options, ct_error *error)
{
    binder b = {.source = m->weights, .options = options, .error = error};
    const int last = m->blocks - 1;
    const int64_t z = m->latent_channels, deepest = m->channels[last];
    for (int i = 0; i < m->blocks; i++) {
        vae_block *down = &m->encoder.block[i], *up = &m->decoder.block[i];
        down->resnets = m->layers_per_block;
        up->resnets = m->layers_per_block + 1;
        down->resnet = mem_zero_array(m->allocator, (size_t)down->resnets, sizeof *down->resnet);
        up->resnet = mem_zero_array(m->allocator, (size_t)up->resnets, sizeof *up->resnet);
        if (!down->resnet || !up->resnet)
            return error_memory(error, sizeof *up->resnet, "the VAE");
    }
    bind_ends(&b, m, &m->encoder, "encoder", 3, m->channels[0], deepest, 2 * z);
    bind_ends(&b, m, &m->decoder, "decoder", z, deepest, m->channels[0], 3);
    for (int i = 0; i < m->blocks; i++) {
        bind_block(&b, &m->encoder.block[i], "encoder.down_blocks", i, m->channels[i ? i - 1 : 0],
                   m->channels[i], i < last ? "downsamplers" : NULL);
        bind_block(&b, &m->decoder.block[i], "decoder.up_blocks", i,
                   m->channels[i ? last - i + 1 : last], m->channels[last - i],
                   i < last ? "upsamplers" : NULL);
    }
    if (weights_find(m->weights, "quant_conv.weight")) {
        m->quant = bind_conv(&b, 2 * z, 2 * z, 1, "quant_conv.weight");
        m->quant_bias = bind1(&b, 2 * z, "quant_conv.bias");
    }
    if (weights_find(m->weights, "post_quant_conv.weight")) {
        m->post_quant = bind_conv(&b, z, z, 1, "post_quant_conv.weight");
        m->post_quant_bias = bind1(&b, z, "post_quant_conv.bias");
    }
    return b.status;
}

ct_status vae_kl_load(vae_kl **out, const load_options *options, const char *directory,
                      ct_error *error)
{
    static const component_format format = {"diffusion_pytorch_model", "AutoencoderKL", infer};
    const ct_allocator *a = options->allocator;
    *out = NULL;
    vae_kl *m = mem_zero_array(a, 1, sizeof *m);
    if (!m)
        return error_memory(error, sizeof *m, "the VAE");
    m->allocator = a;
    config c;
    ct_status status = component_open(&c, &m->weights, &format, options, directory, error);
    if (status == CT_OK) {
        status = read_config(m, &c, error);
        config_close(&c);
    }
    if (status == CT_OK)
        status = bind_weights(m, options, error);
    if (status != CT_OK) {
        vae_kl_free(m);
        return status;
    }
    *out = m;
    return CT_OK;
}

void vae_kl_free(vae_kl *m)
{
    if (!m)
        return;
    for (int i = 0; i < VAE_MAX_BLOCKS; i++) {
        mem_free(m->allocator, m->encoder.block[i].resnet);
        mem_free(m->allocator, m->decoder.block[i].resnet);
    }
    weights_close(m->weights);
    mem_free(m->allocator, m);
}

int vae_kl_factor(const vae_kl *m)
{
    return 1 << (m->blocks - 1);
}

/* ---- Parts ----------------------------------------------------------------------------------- */

/* The factors of a group norm over the whole of x. */
static nn_tensor norm_of(nn *c, const vae_kl *m, const nn_tensor *x, const nn_weight *w,
                         const nn_weight *b)
{
    nn_tensor norm = nn_new2(c, 2, x->n[2]);
    size_t mark = nn_mark(c);
    nn_tensor sums = nn_new_sums(c, x->n[0], m->groups);
    nn_group_sums(c, &sums, 0, x);
    nn_group_factors(c, &norm, &sums, x->n[1], w, b, EPS);
    nn_release(c, mark);
    return norm;
}

/* The shortcut of x over x itself, which has as many channels or more: some rows at a time. */
static nn_tensor shortcut_in_place(nn *c, const vae_resnet *r, const nn_tensor *x)
{
    enum { ROWS = 16 };
    nn_tensor y = *x;
    y.n[2] = r->out;
    for (int64_t row = 0; row < x->n[0]; row += ROWS) {
        size_t mark = nn_mark(c);
        int64_t count = x->n[0] - row < ROWS ? x->n[0] - row : ROWS;
        nn_tensor from = nn_rows(x, row, count), to = nn_rows(&y, row, count);
        nn_tensor part = nn_new_work3(c, count, x->n[1], r->out);
        nn_conv2d(c, &part, &from, &r->shortcut, &r->shortcut_bias, NULL);
        nn_copy(c, &to, &part);
        nn_release(c, mark);
    }
    return y;
}

/* x, which was made at mark, is replaced. */
static nn_tensor resnet(nn *c, const vae_kl *m, const vae_resnet *r, size_t mark, nn_tensor x)
{
    const bool grows = r->out > r->in;
    nn_tensor y = x;
    if (grows)
        y = nn_new_work3(c, x.n[0], x.n[1], r->out);
    size_t temporary = nn_mark(c);
    nn_tensor h = nn_new_work3(c, x.n[0], x.n[1], r->out);
    nn_tensor norm = norm_of(c, m, &x, &r->norm1, &r->norm1_bias);
    nn_conv2d(c, &h, &x, &r->conv1, &r->conv1_bias, &(nn_conv){.norm = &norm});
    norm = norm_of(c, m, &h, &r->norm2, &r->norm2_bias);
    if (grows)
        nn_conv2d(c, &y, &x, &r->shortcut, &r->shortcut_bias, NULL);
    else if (nn_has(&r->shortcut))
        y = shortcut_in_place(c, r, &x);
    nn_conv2d(c, &y, &h, &r->conv2, &r->conv2_bias, &(nn_conv){.norm = &norm, .add = true});
    nn_release(c, temporary);
    return nn_keep(c, mark, &y);
}

/* One head over all pixels. */
static void attention(nn *c, const vae_kl *m, const vae_attention *a, const nn_tensor *x)
{
    const int64_t pixels = x->n[0] * x->n[1], channels = x->n[2];
    size_t mark = nn_mark(c);
    nn_tensor normed = nn_new_work3(c, x->n[0], x->n[1], channels);
    nn_tensor norm = norm_of(c, m, x, &a->norm, &a->norm_bias);
    nn_apply_norm(c, &normed, x, &norm);
    nn_tensor h = nn_as2(c, &normed, pixels, channels), sum = nn_as2(c, x, pixels, channels);
    nn_tensor q = nn_new_work2(c, pixels, channels), k = nn_new_work2(c, pixels, channels);
    nn_tensor v = nn_new_work2(c, pixels, channels);
    nn_linear(c, &q, &h, &a->q, &(nn_epilogue){.bias = &a->q_bias});
    nn_linear(c, &k, &h, &a->k, &(nn_epilogue){.bias = &a->k_bias});
    nn_linear(c, &v, &h, &a->v, &(nn_epilogue){.bias = &a->v_bias});
    nn_attention(c, &h, &q, &k, &v, 1, 1, false);
    nn_linear(c, &sum, &h, &a->out, &(nn_epilogue){.bias = &a->out_bias, .add = true});
    nn_release(c, mark);
}

static nn_tensor mid_block(nn *c, const vae_kl *m, const vae_stack *s, size_t mark, nn_tensor x)
{
    x = resnet(c, m, &s->mid[0], mark, x);
    if (m->mid_attention)
        attention(c, m, &s->attention, &x);
    return resnet(c, m, &s->mid[1], mark, x);
}

/* ---- Strips ---------------------------------------------------------------------------------- */

/* At the largest sizes the decoder can work in bands of rows. A group norm needs the whole picture
 * before its first result, so a resnet takes several passes over the bands, and what one pass does
 * not store the next computes again:
 *
 *     first of a block    its input (the doubled picture, twice the channels) is never stored:
 *                         1. input: sums of the first norm
 *                         2. input, conv1, stored where the result will be: sums of the second norm
 *                         3. input, shortcut, conv2: the result
 *     the others          1. conv1: sums of the second norm
 *                         2. conv1, conv2, added to the input in place
 *
 * Bands begin at multiples of 4 rows, where convolutions give the bits of the whole (nn.h), and
 * sums of norms are by rows, so nothing depends on their height. */

typedef struct band {
    int64_t first, end, height; /* rows first .. end-1 of height */
} band;

/* The next of rows rows; the first one if b->end is 0. */
static bool next_band(band *b, int64_t rows)
{
    b->first = b->end;
    b->end = b->end + rows < b->height ? b->end + rows : b->height;
    return b->first < b->height;
}

/* Rows first .. first+count-1 of a picture; memory has room for more. */
typedef struct window {
    nn_tensor memory;
    int64_t first, count;
} window;

static window window_new(nn *c, int64_t rows, int64_t width, int64_t channels)
{
    return (window){.memory = nn_new_work3(c, rows, width, channels)};
}

static window window_of(const nn_tensor *t)
{
    return (window){.memory = *t, .count = t->n[0]};
}

static nn_tensor window_rows(const window *w, int64_t first, int64_t end)
{
    return nn_rows(&w->memory, first - w->first, end - first);
}

/* Drops the rows above first. */
static void window_move(nn *c, window *w, int64_t first)
{
    int64_t count = w->first + w->count - first;
    if (first > w->first && count > 0) {
        nn_tensor to = nn_rows(&w->memory, 0, count);
        nn_tensor from = window_rows(w, first, first + count);
        nn_copy(c, &to, &from);
    }
    w->first = first;
    w->count = count;
}

/* Where the rows up to end come from that are not there yet; they are there afterwards. */
static nn_tensor window_grow(window *w, int64_t end)
{
    nn_tensor rows = window_rows(w, w->first + w->count, end);
    w->count = end - w->first;
    return rows;
}

/* The rows of a band of a convolution; x has its neighbours too. */
static void conv_band(nn *c, const nn_tensor *out, const window *x, band b, const nn_weight *w,
                      const nn_weight *bias, nn_conv p)
{
    const int64_t scale = p.upsample ? 2 : 1;
    p.above = b.first > 0;
    p.below = b.end < b.height;
    nn_tensor rows = window_rows(x, b.first / scale - p.above, b.end / scale + p.below);
    nn_conv2d(c, out, &rows, w, bias, &p);
}

/* The input of a block: x, or x after the change of size of the block before. */
typedef struct source {
    const nn_tensor *x;
    const nn_weight *resize, *resize_bias; /* resize may be NULL */
} source;

static void source_band(nn *c, const source *s, const nn_tensor *out, band b)
{
    window x = window_of(s->x);
    if (s->resize) {
        conv_band(c, out, &x, b, s->resize, s->resize_bias, (nn_conv){.upsample = true});
    } else {
        nn_tensor rows = window_rows(&x, b.first, b.end);
        nn_copy(c, out, &rows);
    }
}

typedef struct strips {
    const vae_kl *m;
    int64_t height, width, rows; /* of a band: rows, a multiple of 4 */
    void (*unit_done)(void *user, int unit);
    void *user;
    int *unit;
} strips;

static void unit_done(nn *c, const strips *s)
{
    if (s->unit_done && !nn_stopped(c))
        s->unit_done(s->user, (*s->unit)++);
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* y, the result, is also where conv1's is stored in between. */
static void first_resnet_strips(nn *c, const strips *s, const vae_resnet *r, const source *in,
                                const nn_tensor *y)
{
    const window whole = window_of(y);
    size_t mark = nn_mark(c);
    nn_tensor norm1 = nn_new2(c, 2, r->in), norm2 = nn_new2(c, 2, r->out);
    nn_tensor sums = nn_new_sums(c, s->height, s->m->groups);
    const size_t bands = nn_mark(c);

    window u = window_new(c, min64(s->rows, s->height), s->width, r->in);
    for (band b = {.height = s->height}; next_band(&b, s->rows);) {
        nn_tensor rows = window_rows(&u, 0, b.end - b.first);
        source_band(c, in, &rows, b);
        nn_group_sums(c, &sums, b.first, &rows);
        unit_done(c, s);
    }
    nn_group_factors(c, &norm1, &sums, s->width, &r->norm1, &r->norm1_bias, EPS);
    nn_release(c, bands);

    /* A row of the input above the band, and four below, since it comes by fours. */
    u = window_new(c, min64(s->rows + 5, s->height), s->width, r->in);
    for (band b = {.height = s->height}; next_band(&b, s->rows);) {
        window_move(c, &u, max64(b.first - 1, 0));
        band more = {u.first + u.count, min64(b.end + 4, s->height), s->height};
        if (more.first < more.end) {
            nn_tensor rows = window_grow(&u, more.end);
            source_band(c, in, &rows, more);
        }
        nn_tensor h = window_rows(&whole, b.first, b.end);
        conv_band(c, &h, &u, b, &r->conv1, &r->conv1_bias, (nn_conv){.norm = &norm1});
        nn_group_sums(c, &sums, b.first, &h);
        unit_done(c, s);
    }
    nn_group_factors(c, &norm2, &sums, s->width, &r->norm2, &r->norm2_bias, EPS);
    nn_release(c, bands);

    /* The rows of conv1 are saved before the result takes their place. */
    u = window_new(c, min64(s->rows, s->height), s->width, r->in);
    window h = window_new(c, min64(s->rows + 2, s->height), s->width, r->out);
    for (band b = {.height = s->height}; next_band(&b, s->rows);) {
        window_move(c, &h, max64(b.first - 1, 0));
        int64_t have = h.first + h.count, end = min64(b.end + 1, s->height);
        if (have < end) {
            nn_tensor from = window_rows(&whole, have, end), to = window_grow(&h, end);
            nn_copy(c, &to, &from);
        }
        nn_tensor input = window_rows(&u, 0, b.end - b.first);
        nn_tensor out = window_rows(&whole, b.first, b.end);
        source_band(c, in, &input, b);
        if (nn_has(&r->shortcut))
            nn_conv2d(c, &out, &input, &r->shortcut, &r->shortcut_bias, NULL);
        else
            nn_copy(c, &out, &input);
        conv_band(c, &out, &h, b, &r->conv2, &r->conv2_bias,
                  (nn_conv){.norm = &norm2, .add = true});
        unit_done(c, s);
    }
    nn_release(c, mark);
}

/* In place. */
static void resnet_strips(nn *c, const strips *s, const vae_resnet *r, const nn_tensor *x)
{
    const window whole = window_of(x);
    size_t mark = nn_mark(c);
    nn_tensor norm1 = norm_of(c, s->m, x, &r->norm1, &r->norm1_bias), norm2 = nn_new2(c, 2, r->out);
    nn_tensor sums = nn_new_sums(c, s->height, s->m->groups);
    /* Conv1 is four rows ahead of the result, so it always reads what is not yet replaced. */
    window h = window_new(c, min64(s->rows + 5, s->height), s->width, r->out);
    for (band b = {.height = s->height}; next_band(&b, s->rows);) {
        nn_tensor rows = window_rows(&h, 0, b.end - b.first);
        conv_band(c, &rows, &whole, b, &r->conv1, &r->conv1_bias, (nn_conv){.norm = &norm1});
        nn_group_sums(c, &sums, b.first, &rows);
        unit_done(c, s);
    }
    nn_group_factors(c, &norm2, &sums, s->width, &r->norm2, &r->norm2_bias, EPS);
    for (band b = {.height = s->height}; next_band(&b, s->rows);) {
        window_move(c, &h, max64(b.first - 1, 0));
        band more = {h.first + h.count, min64(b.end + 4, s->height), s->height};
        if (more.first < more.end) {
            nn_tensor rows = window_grow(&h, more.end);
            conv_band(c, &rows, &whole, more, &r->conv1, &r->conv1_bias, (nn_conv){.norm = &norm1});
        }
        nn_tensor out = window_rows(&whole, b.first, b.end);
        conv_band(c, &out, &h, b, &r->conv2, &r->conv2_bias,
                  (nn_conv){.norm = &norm2, .add = true});
        unit_done(c, s);
    }
    nn_release(c, mark);
}

/* ---- The two ways ---------------------------------------------------------------------------- */

/* Rows of a band at the size of the picture that a block of the decoder makes, or 0 where the block
 * is computed as a whole. */
static int64_t band_rows(const vae_kl *m, const vae_decoding *d, int block)
{
    const int last = m->blocks - 1;
    if (d->strip_rows < 1)
        return 0;
    /* What the last block takes in any case: its input and its result. Others are cut into bands
     * only where they would take more. */
    const vae_resnet *r = &m->decoder.block[block].resnet[0],
                     *end = &m->decoder.block[last].resnet[0];
    const int64_t pixels = d->height * d->width;
    int64_t least =
        ((pixels << 2 * last) * end->out) + (last ? (pixels << 2 * (last - 1)) : pixels) * end->in;
    int64_t whole = (pixels << 2 * block) * (r->in + r->out + (r->out > r->in ? r->out : 0));
    int64_t rows = ((int64_t)d->strip_rows << block) + 3;
    if (block < last && whole <= least)
        return 0;
    return rows - rows % 4;
}

int vae_kl_decode_units(const vae_kl *m, const vae_decoding *d)
{
    int64_t units = 1; /* the mid block */
    for (int i = 0; i < m->blocks; i++) {
        int64_t rows = band_rows(m, d, i), height = d->height << i;
        int64_t passes = 3 + 2 * (m->decoder.block[i].resnets - 1);
        units += rows ? passes * ((height + rows - 1) / rows) : 1;
    }
    return (int)(units + 1); /* the output */
}

/* A block of the decoder; x, which was made at mark, is replaced. */
static nn_tensor up_block(nn *c, const strips *s, int i, size_t mark, nn_tensor x)
{
    const vae_stack *stack = &s->m->decoder;
    const vae_block *k = &stack->block[i], *before = i ? k - 1 : NULL;
    if (s->rows) {
        nn_tensor y = nn_new_work3(c, s->height, s->width, k->resnet[0].out);
        source in = {&x, before ? &before->resize : NULL, before ? &before->resize_bias : NULL};
        first_resnet_strips(c, s, &k->resnet[0], &in, &y);
        y = nn_keep(c, mark, &y);
        for (int j = 1; j < k->resnets; j++)
            resnet_strips(c, s, &k->resnet[j], &y);
        return y;
    }
    if (before) {
        nn_tensor y = nn_new_work3(c, s->height, s->width, x.n[2]);
        nn_conv2d(c, &y, &x, &before->resize, &before->resize_bias, &(nn_conv){.upsample = true});
        x = nn_keep(c, mark, &y);
        nn_trace_tensor(c, &x, "vae.decoder.up_blocks.%d", i - 1);
    }
    for (int j = 0; j < k->resnets; j++)
        x = resnet(c, s->m, &k->resnet[j], mark, x);
    unit_done(c, s);
    return x;
}

/* Norm, SiLU, convolution. */
static nn_tensor output(nn *c, const vae_kl *m, const vae_stack *s, const nn_tensor *x)
{
    nn_tensor y = nn_new_work3(c, x->n[0], x->n[1], s->conv_out.n[0]);
    nn_tensor norm = norm_of(c, m, x, &s->norm_out, &s->norm_out_bias);
    nn_conv2d(c, &y, x, &s->conv_out, &s->conv_out_bias, &(nn_conv){.norm = &norm});
    return y;
}

void vae_kl_decode(nn *c, const vae_kl *m, const vae_decoding *d)
{
    const vae_stack *s = &m->decoder;
    int unit = 0;
    strips part = {.m = m, .unit_done = d->unit_done, .user = d->user, .unit = &unit};
    size_t mark = nn_mark(c);
    nn_tensor z = nn_new_work3(c, d->height, d->width, m->latent_channels);
    nn_upload_planes(c, &z, d->latents, 1 / m->scaling_factor, m->shift_factor);
    if (nn_has(&m->post_quant)) {
        nn_tensor y = nn_new_work3(c, d->height, d->width, m->latent_channels);
        nn_conv2d(c, &y, &z, &m->post_quant, &m->post_quant_bias, NULL);
        z = nn_keep(c, mark, &y);
        nn_trace_tensor(c, &z, "vae.post_quant_conv");
    }
    nn_tensor x = nn_new_work3(c, d->height, d->width, s->conv_in.n[0]);
    nn_conv2d(c, &x, &z, &s->conv_in, &s->conv_in_bias, NULL);
    x = nn_keep(c, mark, &x);
    nn_trace_tensor(c, &x, "vae.decoder.conv_in");
    x = mid_block(c, m, s, mark, x);
    nn_trace_tensor(c, &x, "vae.decoder.mid_block");
    unit_done(c, &part);
    for (int i = 0; i < m->blocks && !nn_stopped(c); i++) {
        part.height = d->height << i;
        part.width = d->width << i;
        part.rows = band_rows(m, d, i);
        x = up_block(c, &part, i, mark, x);
    }
    nn_trace_tensor(c, &x, "vae.decoder.up_blocks.%d", m->blocks - 1);
    nn_tensor y = output(c, m, s, &x);
    nn_trace_tensor(c, &y, "vae.decoder.conv_out");
    nn_download_planes(c, &y, d->picture);
    unit_done(c, &part);
    nn_release(c, mark);
}

ct_status vae_kl_decode_peak(const vae_kl *m, const vae_decoding *d, const nn_params *params,
                             size_t *bytes, ct_error *error)
{
    nn_params dry = *params;
    vae_decoding silent = *d;
    nn *c;
    dry.dry = true;
    silent.unit_done = NULL;
    *bytes = 0;
    ct_status status = nn_create(&c, &dry, error);
    if (status != CT_OK)
        return status;
    vae_kl_decode(c, m, &silent);
    status = nn_status(c, error);
    *bytes = nn_peak(c);
    nn_free(c);
    return status;
}

void vae_kl_encode(nn *c, const vae_kl *m, const float *picture, int64_t height, int64_t width,
                   float *moments)
{
    const vae_stack *s = &m->encoder;
    size_t mark = nn_mark(c);
    nn_tensor in = nn_new_work3(c, height, width, 3);
    nn_upload_planes(c, &in, picture, 1, 0);
    nn_tensor x = nn_new_work3(c, height, width, s->conv_in.n[0]);
    nn_conv2d(c, &x, &in, &s->conv_in, &s->conv_in_bias, NULL);
    x = nn_keep(c, mark, &x);
    nn_trace_tensor(c, &x, "vae.encoder.conv_in");
    for (int i = 0; i < m->blocks && !nn_stopped(c); i++) {
        const vae_block *k = &s->block[i];
        for (int j = 0; j < k->resnets; j++)
            x = resnet(c, m, &k->resnet[j], mark, x);
        if (nn_has(&k->resize)) {
            nn_conv half = {.stride = 2, .pad_bottom_right = true};
            nn_tensor y = nn_new_work3(c, x.n[0] / 2, x.n[1] / 2, x.n[2]);
            nn_conv2d(c, &y, &x, &k->resize, &k->resize_bias, &half);
            x = nn_keep(c, mark, &y);
        }
        nn_trace_tensor(c, &x, "vae.encoder.down_blocks.%d", i);
    }
    x = mid_block(c, m, s, mark, x);
    nn_trace_tensor(c, &x, "vae.encoder.mid_block");
    nn_tensor y = output(c, m, s, &x);
    if (nn_has(&m->quant)) {
        nn_tensor q = nn_new_work3(c, y.n[0], y.n[1], y.n[2]);
        nn_conv2d(c, &q, &y, &m->quant, &m->quant_bias, NULL);
        y = q;
    }
    nn_download_planes(c, &y, moments);
    nn_release(c, mark);
}
