/* AutoencoderKLQwenImage (that of Wan 2.1, https://arxiv.org/abs/2503.20314; diffusers
 * AutoencoderKLQwenImage) on one frame.
 *
 * decode: conv_in, mid (resnet, attention, resnet), levels (resnets, doubling), norm, conv_out
 * encode: conv_in, levels (resnets, halving), mid, norm, conv_out
 *
 * A norm divides each pixel by the length of its channels, so nothing but the attention and the
 * convolutions looks further than a pixel, and every resnet can work in bands of rows without
 * computing anything twice: what it keeps is its input and some rows. Bands begin at multiples of 4
 * rows, where convolutions give the bits of the whole (nn.h).
 *
 * Tensors are large here, so each stage replaces its input: it is made above it in the arena and
 * then moved down in its place. */
#include "models/vae_qwen.h"

#include "core/mem.h"
#include "io/names.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#define ENCODE_ROWS 128 /* of a band of the encoder */

/* ---- Loading --------------------------------------------------------------------------------- */

/* Mean and deviation of latents of the only published VAE of this structure. */
static const double published[2][16] = {
    {-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
     -0.3632, -0.1922, -0.9497, 0.2503, -0.2921},
    {2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
     1.6382, 1.1253, 2.8251, 1.916}};

/* What the tensors tell, with the two resnets at each level of that VAE. */
static void infer(const weights *w, json_writer *out)
{
    char name[NAMES_LENGTH];
    const int64_t base = tensor_size(w, "encoder.conv_in.bias", 0);
    const int64_t latents = tensor_size(w, "post_quant_conv.bias", 0);
    infer_integer(out, "base_dim", base);
    infer_integer(out, "z_dim", latents);
    infer_integer(out, "num_res_blocks", 2);
    json_write_key(out, "dim_mult");
    json_write_array(out);
    for (int i = 0; base > 0 && i < VAE_QWEN_MAX_LEVELS; i++) {
        snprintf(name, sizeof name, "encoder.down_blocks.%d.conv1.bias", 3 * i);
        if (names_find(w, name))
            json_write_integer(out, tensor_size(w, name, 0) / base);
    }
    json_write_array_end(out);
    for (int i = 0; latents == 16 && i < 2; i++) {
        json_write_key(out, i ? "latents_std" : "latents_mean");
        json_write_array(out);
        for (int k = 0; k < 16; k++)
            json_write_number(out, published[i][k]);
        json_write_array_end(out);
    }
}

/* An array of count numbers. */
static ct_status read_numbers(const config *c, const char *key, int64_t count, double min,
                              float *out, ct_error *error)
{
    const json_value *array = json_get(c->root, key);
    bool good = json_size(array) == (size_t)count;
    for (int64_t i = 0; good && i < count; i++) {
        double value = 0;
        good = json_get_number(json_at(array, (size_t)i), &value) && value > min && value < 1e6;
        out[i] = (float)value;
    }
    return good ? CT_OK
                : error_set(error, CT_EFORMAT,
                            "%s: %s must be an array of %" PRId64 " numbers above %g", c->path, key,
                            count, min);
}

static ct_status read_statistics(vae_qwen *m, const config *c, ct_error *error)
{
    const size_t count = (size_t)m->latent_channels;
    m->mean = mem_array(m->allocator, count, sizeof(float));
    m->deviation = mem_array(m->allocator, count, sizeof(float));
    if (!m->mean || !m->deviation)
        return error_memory(error, count * sizeof(float), "the VAE");
    ct_status s = read_numbers(c, "latents_mean", m->latent_channels, -1e6, m->mean, error);
    return s == CT_OK ? read_numbers(c, "latents_std", m->latent_channels, 0, m->deviation, error)
                      : s;
}

static ct_status read_config(vae_qwen *m, const config *c, ct_error *error)
{
    int64_t resnets = 0, in = 3;
    ct_status s = config_integer(c, "base_dim", 1, 1 << 14, false, 96, &m->base, error);
    if (s == CT_OK)
        s = config_integer(c, "z_dim", 1, 4096, false, 16, &m->latent_channels, error);
    if (s == CT_OK)
        s = config_integers(c, "dim_mult", 1, 64, VAE_QWEN_MAX_LEVELS, m->channels, &m->levels,
                            error);
    if (s == CT_OK)
        s = config_integer(c, "num_res_blocks", 1, 64, false, 2, &resnets, error);
    if (s == CT_OK)
        s = config_integer(c, "input_channels", 1, 16, false, 3, &in, error);
    if (s != CT_OK)
        return s;
    const json_value *times = json_get(c->root, "temperal_downsample");
    if (in != 3 || json_size(json_get(c->root, "attn_scales")) > 0)
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: input_channels must be 3, and attn_scales empty", c->path);
    if (times && json_size(times) != (size_t)m->levels - 1)
        return error_set(error, CT_EFORMAT,
                         "%s: temperal_downsample must have one entry less than dim_mult", c->path);
    for (int i = 0; i < m->levels; i++) {
        m->channels[i] *= m->base;
        if (i > 0 && m->channels[i] % 2 != 0)
            return error_set(error, CT_EFORMAT, "%s: base_dim * dim_mult must be even", c->path);
    }
    m->resnets = (int)resnets;
    return read_statistics(m, c, error);
}

static void bind_resnet(binder *b, vae_qwen_resnet *r, int64_t in, int64_t out, const char *name)
{
    r->in = in;
    r->out = out;
    r->norm1 = bind_channels(b, in, "%s.norm1.gamma", name);
    r->conv1 = bind_last_slice(b, out, in, 3, "%s.conv1.weight", name);
    r->conv1_bias = bind1(b, out, "%s.conv1.bias", name);
    r->norm2 = bind_channels(b, out, "%s.norm2.gamma", name);
    r->conv2 = bind_last_slice(b, out, out, 3, "%s.conv2.weight", name);
    r->conv2_bias = bind1(b, out, "%s.conv2.bias", name);
    if (in != out) {
        r->shortcut = bind_last_slice(b, out, in, 1, "%s.conv_shortcut.weight", name);
        r->shortcut_bias = bind1(b, out, "%s.conv_shortcut.bias", name);
    }
}

/* A convolution of 1 x 1 as a matrix. */
static nn_weight bind_pixelwise(binder *b, int64_t n0, int64_t n1, const char *stack,
                                const char *name)
{
    nn_weight w = bind_conv(b, n0, n1, 1, "%s.mid_block.attentions.0.%s.weight", stack, name);
    w.rank = 2;
    return w;
}

/* What encoder and decoder have in common. in and out: channels of their first and last layer;
 * first, deepest, last: of the layers beside them and of the mid block. */
static void bind_ends(binder *b, vae_qwen_stack *s, const char *stack, int64_t in, int64_t first,
                      int64_t deepest, int64_t last, int64_t out)
{
    char name[64];
    s->conv_in = bind_last_slice(b, first, in, 3, "%s.conv_in.weight", stack);
    s->conv_in_bias = bind1(b, first, "%s.conv_in.bias", stack);
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%s.mid_block.resnets.%d", stack, i);
        bind_resnet(b, &s->mid[i], deepest, deepest, name);
    }
    s->norm = bind_channels(b, deepest, "%s.mid_block.attentions.0.norm.gamma", stack);
    s->qkv = bind_pixelwise(b, 3 * deepest, deepest, stack, "to_qkv");
    s->qkv_bias = bind1(b, 3 * deepest, "%s.mid_block.attentions.0.to_qkv.bias", stack);
    s->proj = bind_pixelwise(b, deepest, deepest, stack, "proj");
    s->proj_bias = bind1(b, deepest, "%s.mid_block.attentions.0.proj.bias", stack);
    s->norm_out = bind_channels(b, last, "%s.norm_out.gamma", stack);
    s->conv_out = bind_last_slice(b, out, last, 3, "%s.conv_out.weight", stack);
    s->conv_out_bias = bind1(b, out, "%s.conv_out.bias", stack);
}

/* The encoder counts resnets and changes of size in one list. */
static void bind_down(binder *b, vae_qwen *m)
{
    char name[64];
    int at = 0;
    for (int i = 0; i < m->levels; i++) {
        vae_qwen_level *k = &m->encoder.level[i];
        const int64_t in = i ? m->channels[i - 1] : m->base, out = m->channels[i];
        for (int j = 0; j < k->resnets; j++) {
            snprintf(name, sizeof name, "encoder.down_blocks.%d", at++);
            bind_resnet(b, &k->resnet[j], j ? out : in, out, name);
        }
        if (i + 1 == m->levels)
            break;
        k->resize = bind_conv(b, out, out, 3, "encoder.down_blocks.%d.resample.1.weight", at);
        k->resize_bias = bind1(b, out, "encoder.down_blocks.%d.resample.1.bias", at++);
    }
}

/* A doubling halves the channels. */
static void bind_up(binder *b, vae_qwen *m)
{
    char name[64];
    for (int i = 0; i < m->levels; i++) {
        vae_qwen_level *k = &m->decoder.level[i];
        const int64_t out = m->channels[m->levels - 1 - i];
        const int64_t in = i ? m->channels[m->levels - i] / 2 : out;
        for (int j = 0; j < k->resnets; j++) {
            snprintf(name, sizeof name, "decoder.up_blocks.%d.resnets.%d", i, j);
            bind_resnet(b, &k->resnet[j], j ? out : in, out, name);
        }
        if (i + 1 == m->levels)
            break;
        k->resize =
            bind_conv(b, out / 2, out, 3, "decoder.up_blocks.%d.upsamplers.0.resample.1.weight", i);
        k->resize_bias = bind1(b, out / 2, "decoder.up_blocks.%d.upsamplers.0.resample.1.bias", i);
    }
}

static ct_status bind_weights(vae_qwen *m, const load_options *options, ct_error *error)
{
    binder b = {.source = m->weights, .options = options, .error = error};
    const int64_t z = m->latent_channels, deepest = m->channels[m->levels - 1];
    for (int i = 0; i < m->levels; i++) {
        vae_qwen_level *down = &m->encoder.level[i], *up = &m->decoder.level[i];
        down->resnets = m->resnets;
        up->resnets = m->resnets + 1;
        down->resnet = mem_zero_array(m->allocator, (size_t)down->resnets, sizeof *down->resnet);
        up->resnet = mem_zero_array(m->allocator, (size_t)up->resnets, sizeof *up->resnet);
        if (!down->resnet || !up->resnet)
            return error_memory(error, sizeof *up->resnet, "the VAE");
    }
    bind_ends(&b, &m->encoder, "encoder", 3, m->base, deepest, deepest, 2 * z);
    bind_ends(&b, &m->decoder, "decoder", z, deepest, deepest, m->channels[0], 3);
    bind_down(&b, m);
    bind_up(&b, m);
    m->quant = bind_last_slice(&b, 2 * z, 2 * z, 1, "quant_conv.weight");
    m->quant_bias = bind1(&b, 2 * z, "quant_conv.bias");
    m->post_quant = bind_last_slice(&b, z, z, 1, "post_quant_conv.weight");
    m->post_quant_bias = bind1(&b, z, "post_quant_conv.bias");
    return b.status;
}

ct_status vae_qwen_load(vae_qwen **out, const load_options *options, const char *directory,
                        ct_error *error)
{
    static const component_format format = {"diffusion_pytorch_model", "AutoencoderKLQwenImage",
                                            infer};
    const ct_allocator *a = options->allocator;
    *out = NULL;
    vae_qwen *m = mem_zero_array(a, 1, sizeof *m);
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
        vae_qwen_free(m);
        return status;
    }
    *out = m;
    return CT_OK;
}

void vae_qwen_free(vae_qwen *m)
{
    if (!m)
        return;
    for (int i = 0; i < VAE_QWEN_MAX_LEVELS; i++) {
        mem_free(m->allocator, m->encoder.level[i].resnet);
        mem_free(m->allocator, m->decoder.level[i].resnet);
    }
    weights_close(m->weights);
    mem_free(m->allocator, m->mean);
    mem_free(m->allocator, m->deviation);
    mem_free(m->allocator, m);
}

void vae_qwen_describe(const vae_qwen *m, strbuf *out)
{
    strbuf_printf(out,
                  "%d levels, channels %" PRId64 " to %" PRId64 ", %" PRId64
                  " latent channels, factor %d",
                  m->levels, m->channels[0], m->channels[m->levels - 1], m->latent_channels,
                  vae_qwen_factor(m));
}

int vae_qwen_factor(const vae_qwen *m)
{
    return 1 << (m->levels - 1);
}

/* ---- Parts ----------------------------------------------------------------------------------- */

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* x * sqrt(C) / max(length of x, 1e-12) * gamma for each pixel: a norm by the mean of squares,
 * whose epsilon only matters where everything is 0. */
static double norm_eps(const nn_weight *gamma)
{
    return 1e-24 / (double)gamma->n[0];
}

/* Rows first .. end-1 of a larger picture; memory has room for more. */
typedef struct window {
    nn_tensor memory;
    int64_t first, end;
} window;

static window window_new(nn *c, int64_t rows, int64_t width, int64_t channels)
{
    return (window){.memory = nn_new_work3(c, rows, width, channels)};
}

/* Drops the rows above first. */
static void window_move(nn *c, window *w, int64_t first)
{
    if (first > w->first && w->end > first) {
        nn_tensor to = nn_rows(&w->memory, 0, w->end - first);
        nn_tensor from = nn_rows(&w->memory, first - w->first, w->end - first);
        nn_copy(c, &to, &from);
    }
    w->first = first;
}

/* Adds rows of conv(silu(norm(x))) up to end to a window of it. */
static void grow(nn *c, window *w, int64_t end, const nn_tensor *x, const nn_weight *gamma,
                 const nn_weight *conv, const nn_weight *bias, bool late_bias)
{
    const int64_t above = max64(w->end - 1, 0), below = min64(end + 1, x->n[0]);
    const nn_pixel_norm norm = {.w = gamma, .eps = norm_eps(gamma)};
    nn_tensor in = nn_rows(x, above, below - above);
    nn_tensor out = nn_rows(&w->memory, w->end - w->first, end - w->end);
    nn_conv2d(c, &out, &in, conv, bias,
              &(nn_conv){.pixel_norm = &norm,
                         .late_bias = late_bias,
                         .above = w->end - above,
                         .below = below - end});
    w->end = end;
}

/* In bands of rows, a multiple of 4. x, which was made at mark, is replaced. */
static nn_tensor resnet(nn *c, const vae_qwen_resnet *r, int64_t rows, size_t mark, nn_tensor x)
{
    const int64_t height = x.n[0], width = x.n[1];
    const nn_pixel_norm norm2 = {&r->norm2, norm_eps(&r->norm2), &r->conv1_bias};
    nn_tensor y = x;
    if (nn_has(&r->shortcut)) {
        y = nn_new_work3(c, height, width, r->out);
        nn_conv2d(c, &y, &x, &r->shortcut, &r->shortcut_bias, NULL);
    }
    size_t temporary = nn_mark(c);
    /* Of what the second convolution sees: a row above the band, and four below it, since the first
     * convolution makes them by fours. It has read all rows of x that a band overwrites. */
    window h = window_new(c, min64(rows + 5, height), width, r->out);
    for (int64_t first = 0; first < height && !nn_stopped(c); first += rows) {
        const int64_t end = min64(first + rows, height), more = min64(end + 4, height);
        const int64_t above = max64(first - 1, 0), below = min64(end + 1, height);
        window_move(c, &h, above);
        if (h.end < more)
            grow(c, &h, more, &x, &r->norm1, &r->conv1, &r->conv1_bias, true);
        nn_tensor in = nn_rows(&h.memory, 0, below - above), out = nn_rows(&y, first, end - first);
        nn_conv2d(
            c, &out, &in, &r->conv2, &r->conv2_bias,
            &(nn_conv){
                .pixel_norm = &norm2, .add = true, .above = first - above, .below = below - end});
    }
    nn_release(c, temporary);
    return nn_keep(c, mark, &y);
}

/* x += proj(attention(norm(x))), one head over all pixels. */
static void attention(nn *c, const vae_qwen_stack *s, const nn_tensor *x)
{
    const int64_t pixels = x->n[0] * x->n[1], n = x->n[2];
    size_t mark = nn_mark(c);
    nn_tensor normed = nn_new_work3(c, x->n[0], x->n[1], n), qkv = nn_new_work2(c, pixels, 3 * n);
    nn_tensor h = nn_as2(c, &normed, pixels, n), sum = nn_as2(c, x, pixels, n);
    nn_tensor q = nn_columns(&qkv, 0, n), k = nn_columns(&qkv, n, n);
    nn_tensor v = nn_columns(&qkv, 2 * n, n);
    nn_rms_norm(c, &h, &sum, &s->norm, norm_eps(&s->norm), NULL);
    nn_linear(c, &qkv, &h, &s->qkv, &(nn_epilogue){.bias = &s->qkv_bias});
    nn_attention(c, &h, &q, &k, &v, 1, 1, false);
    nn_linear(c, &sum, &h, &s->proj, &(nn_epilogue){.bias = &s->proj_bias, .add = true});
    nn_release(c, mark);
}

static nn_tensor mid_block(nn *c, const vae_qwen_stack *s, int64_t rows, size_t mark, nn_tensor x)
{
    x = resnet(c, &s->mid[0], rows, mark, x);
    attention(c, s, &x);
    return resnet(c, &s->mid[1], rows, mark, x);
}

/* Norm, SiLU, convolution. */
static nn_tensor output(nn *c, const vae_qwen_stack *s, int64_t rows, const nn_tensor *x)
{
    const int64_t height = x->n[0];
    window y = window_new(c, height, x->n[1], s->conv_out.n[0]);
    while (y.end < height && !nn_stopped(c))
        grow(c, &y, min64(y.end + rows, height), x, &s->norm_out, &s->conv_out, &s->conv_out_bias,
             false);
    return y.memory;
}

static nn_tensor conv(nn *c, size_t mark, const nn_tensor *x, const nn_weight *w,
                      const nn_weight *bias)
{
    nn_tensor y = nn_new_work3(c, x->n[0], x->n[1], w->n[0]);
    nn_conv2d(c, &y, x, w, bias, NULL);
    return nn_keep(c, mark, &y);
}

/* ---- Decoding -------------------------------------------------------------------------------- */

/* Rows of a band at a level of the decoder. */
static int64_t band_rows(const vae_decoding *d, int level)
{
    const int64_t rows = d->strip_rows > 0 ? (int64_t)d->strip_rows << level : d->height << level;
    return rows + 3 - (rows + 3) % 4;
}

int vae_qwen_decode_units(const vae_qwen *m)
{
    return 2 + m->levels * (m->resnets + 1); /* the mid block and the output */
}

static void unit_done(nn *c, const vae_decoding *d, int *unit)
{
    if (d->unit_done && !nn_stopped(c))
        d->unit_done(d->user, (*unit)++);
}

/* The latents as the VAE knows them. The reference divides by the reciprocal of the deviation. */
static nn_tensor upload_latents(nn *c, const vae_qwen *m, const vae_decoding *d)
{
    nn_tensor z = nn_new_work3(c, d->height, d->width, m->latent_channels);
    const int64_t plane = d->height * d->width;
    for (int64_t i = 0; i < m->latent_channels && !nn_is_dry(c) && !nn_stopped(c); i++) {
        const float factor = 1.0f / m->deviation[i];
        for (int64_t k = i * plane; k < (i + 1) * plane; k++)
            d->scratch[k] = d->latents[k] / factor + m->mean[i];
    }
    nn_upload_planes(c, &z, d->scratch, 1, 0);
    return z;
}

/* The picture of the latents x, which were made at mark and are replaced. */
static nn_tensor decode(nn *c, const vae_qwen *m, const vae_decoding *d, int *unit, size_t mark,
                        nn_tensor x)
{
    const vae_qwen_stack *s = &m->decoder;
    x = conv(c, mark, &x, &m->post_quant, &m->post_quant_bias);
    nn_trace_tensor(c, &x, "vae.post_quant_conv");
    x = conv(c, mark, &x, &s->conv_in, &s->conv_in_bias);
    nn_trace_tensor(c, &x, "vae.decoder.conv_in");
    x = mid_block(c, s, band_rows(d, 0), mark, x);
    nn_trace_tensor(c, &x, "vae.decoder.mid_block");
    unit_done(c, d, unit);
    for (int i = 0; i < m->levels && !nn_stopped(c); i++) {
        const vae_qwen_level *k = &s->level[i];
        for (int j = 0; j < k->resnets; j++) {
            x = resnet(c, &k->resnet[j], band_rows(d, i), mark, x);
            unit_done(c, d, unit);
        }
        if (nn_has(&k->resize)) {
            nn_tensor y = nn_new_work3(c, 2 * x.n[0], 2 * x.n[1], k->resize.n[0]);
            nn_conv2d(c, &y, &x, &k->resize, &k->resize_bias, &(nn_conv){.upsample = true});
            x = nn_keep(c, mark, &y);
        }
        nn_trace_tensor(c, &x, "vae.decoder.up_blocks.%d", i);
    }
    nn_tensor y = output(c, s, band_rows(d, m->levels - 1), &x);
    nn_trace_tensor(c, &y, "vae.decoder.conv_out");
    return nn_keep(c, mark, &y);
}

void vae_qwen_decode(nn *c, const vae_qwen *m, const vae_decoding *d)
{
    const int64_t factor = vae_qwen_factor(m);
    int unit = 0;
    size_t mark = nn_mark(c);
    const nn_tensor z = upload_latents(c, m, d);
    const int64_t key[] = {NN_PLACE_DECODE, d->height, d->width, d->strip_rows};
    if (nn_repeat_begin(c, key, 4)) {
        decode(c, m, d, &unit, mark, z);
        nn_repeat_end(c);
    }
    /* In the place of the latents, whether it was computed now or played back. */
    nn_release(c, mark);
    const nn_tensor y =
        nn_new_work3(c, factor * d->height, factor * d->width, m->decoder.conv_out.n[0]);
    nn_download_planes(c, &y, d->picture);
    unit_done(c, d, &unit);
    nn_release(c, mark);
}

ct_status vae_qwen_decode_peak(const vae_qwen *m, const vae_decoding *d, const nn_params *params,
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
    vae_qwen_decode(c, m, &silent);
    status = nn_status(c, error);
    *bytes = nn_peak(c);
    nn_free(c);
    return status;
}

/* ---- Encoding -------------------------------------------------------------------------------- */

void vae_qwen_encode(nn *c, const vae_qwen *m, const float *picture, int64_t height, int64_t width,
                     float *moments)
{
    const vae_qwen_stack *s = &m->encoder;
    int at = 0;
    size_t mark = nn_mark(c);
    nn_tensor x = nn_new_work3(c, height, width, 3);
    nn_upload_planes(c, &x, picture, 1, 0);
    x = conv(c, mark, &x, &s->conv_in, &s->conv_in_bias);
    nn_trace_tensor(c, &x, "vae.encoder.conv_in");
    for (int i = 0; i < m->levels && !nn_stopped(c); i++) {
        const vae_qwen_level *k = &s->level[i];
        for (int j = 0; j < k->resnets; j++) {
            x = resnet(c, &k->resnet[j], ENCODE_ROWS, mark, x);
            nn_trace_tensor(c, &x, "vae.encoder.down_blocks.%d", at++);
        }
        if (!nn_has(&k->resize))
            continue;
        nn_tensor y = nn_new_work3(c, x.n[0] / 2, x.n[1] / 2, x.n[2]);
        nn_conv2d(c, &y, &x, &k->resize, &k->resize_bias,
                  &(nn_conv){.stride = 2, .pad_bottom_right = true});
        x = nn_keep(c, mark, &y);
        nn_trace_tensor(c, &x, "vae.encoder.down_blocks.%d", at++);
    }
    x = mid_block(c, s, ENCODE_ROWS, mark, x);
    nn_trace_tensor(c, &x, "vae.encoder.mid_block");
    nn_tensor y = output(c, s, ENCODE_ROWS, &x);
    y = conv(c, mark, &y, &m->quant, &m->quant_bias);
    nn_download_planes(c, &y, moments);
    nn_release(c, mark);
}

void vae_qwen_encode_mean(nn *c, const vae_qwen *m, const float *picture, int64_t height,
                          int64_t width, float *moments, float *latents)
{
    const int64_t factor = vae_qwen_factor(m), plane = height / factor * (width / factor);
    vae_qwen_encode(c, m, picture, height, width, moments);
    for (int64_t i = 0; i < m->latent_channels && !nn_is_dry(c) && !nn_stopped(c); i++)
        for (int64_t k = i * plane; k < (i + 1) * plane; k++)
            latents[k] = (moments[k] - m->mean[i]) / m->deviation[i];
}
