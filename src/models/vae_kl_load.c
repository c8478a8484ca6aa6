/* AutoencoderKL: its configuration, and the names and shapes of its weights. */
#include "models/vae_kl.h"

#include "core/mem.h"
#include "io/names.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- Loading --------------------------------------------------------------------------------- */

/* What the tensors tell; the rest is that of the only published VAEs of this structure with 16 and
 * 32 latent channels: FLUX.1's, which Z-Image uses, and FLUX.2's, which has statistics. */
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
    const bool statistics = names_find(w, "bn.running_mean") != NULL;
    infer_integer(out, "latent_channels", moments == (statistics ? 64 : 32) ? moments / 2 : 0);
    if (statistics) {
        json_write_key(out, "_class_name");
        json_write_string(out, "AutoencoderKLFlux2");
    }
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

/* AutoencoderKLFlux2: statistics instead of one factor, which are tensors. */
static ct_status read_packing(vae_kl *m, const config *c, ct_error *error)
{
    int64_t patch[2] = {2, 2};
    int count = 2;
    m->scaling_factor = 1;
    m->shift_factor = 0;
    ct_status s = config_number(c, "batch_norm_eps", 0, 1, false, 1e-4, &m->norm_eps, error);
    if (s == CT_OK && config_has(c, "patch_size"))
        s = config_integers(c, "patch_size", 1, 16, 2, patch, &count, error);
    if (s == CT_OK && (count != 2 || patch[0] != patch[1]))
        return error_set(error, CT_EUNSUPPORTED, "%s: patch_size must be two equal numbers",
                         c->path);
    m->patch = (int)patch[0];
    return s;
}

static ct_status read_decoder(vae_kl *m, const config *c, ct_error *error)
{
    int blocks = m->blocks;
    memcpy(m->decoder_channels, m->channels, sizeof m->channels);
    if (!config_has(c, "decoder_block_out_channels"))
        return CT_OK;
    ct_status s = config_integers(c, "decoder_block_out_channels", 1, 1 << 16, VAE_MAX_BLOCKS,
                                  m->decoder_channels, &blocks, error);
    if (s == CT_OK && blocks != m->blocks)
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: decoder_block_out_channels must have as many entries as "
                         "block_out_channels",
                         c->path);
    return s;
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
    const char *name = json_get_string(json_get(c->root, "_class_name"), NULL);
    m->patch = 1;
    if (s == CT_OK && name && !strcmp(name, "AutoencoderKLFlux2"))
        s = read_packing(m, c, error);
    if (s == CT_OK)
        s = read_decoder(m, c, error);
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
        if (m->channels[i] % groups != 0 || m->decoder_channels[i] % groups != 0)
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

/* What encoder and decoder have in common. in and out: channels of their first and last layer;
 * deepest: of the mid block. */
static void bind_ends(binder *b, const vae_kl *m, vae_stack *s, const char *stack, int64_t in,
                      int64_t first, int64_t deepest, int64_t last, int64_t out)
{
    char name[64];
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

static ct_status bind_statistics(vae_kl *m, binder *b, ct_error *error)
{
    const int64_t count = vae_kl_channels(m);
    const nn_weight mean = bind1(b, count, "bn.running_mean");
    const nn_weight variance = bind1(b, count, "bn.running_var");
    if (b->status != CT_OK)
        return b->status;
    m->mean = mem_array(m->allocator, (size_t)count, sizeof(float));
    m->deviation = mem_array(m->allocator, (size_t)count, sizeof(float));
    if (!m->mean || !m->deviation)
        return error_memory(error, (size_t)count * sizeof(float), "the VAE");
    dtype_to_float(m->mean, mean.data, mean.type, (size_t)count);
    dtype_to_float(m->deviation, variance.data, variance.type, (size_t)count);
    for (int64_t i = 0; i < count; i++) {
        const float sum = m->deviation[i] + (float)m->norm_eps;
        if (!(sum > 0) || !isfinite(sum) || !isfinite(m->mean[i]))
            return error_set(error, CT_EFORMAT,
                             "%s: bn.running_var holds %g at %d, which is no variance",
                             weights_source(m->weights), (double)m->deviation[i], (int)i);
        m->deviation[i] = sqrtf(sum);
    }
    return CT_OK;
}

static ct_status bind_weights(vae_kl *m, const load_options *options, ct_error *error)
{
    binder b = {.source = m->weights, .options = options, .error = error};
    const int last = m->blocks - 1;
    const int64_t z = m->latent_channels, *up_channels = m->decoder_channels;
    for (int i = 0; i < m->blocks; i++) {
        vae_block *down = &m->encoder.block[i], *up = &m->decoder.block[i];
        down->resnets = m->layers_per_block;
        up->resnets = m->layers_per_block + 1;
        down->resnet = mem_zero_array(m->allocator, (size_t)down->resnets, sizeof *down->resnet);
        up->resnet = mem_zero_array(m->allocator, (size_t)up->resnets, sizeof *up->resnet);
        if (!down->resnet || !up->resnet)
            return error_memory(error, sizeof *up->resnet, "the VAE");
    }
    bind_ends(&b, m, &m->encoder, "encoder", 3, m->channels[0], m->channels[last],
              m->channels[last], 2 * z);
    bind_ends(&b, m, &m->decoder, "decoder", z, up_channels[last], up_channels[last],
              up_channels[0], 3);
    for (int i = 0; i < m->blocks; i++) {
        bind_block(&b, &m->encoder.block[i], "encoder.down_blocks", i, m->channels[i ? i - 1 : 0],
                   m->channels[i], i < last ? "downsamplers" : NULL);
        bind_block(&b, &m->decoder.block[i], "decoder.up_blocks", i,
                   up_channels[i ? last - i + 1 : last], up_channels[last - i],
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
    return b.status == CT_OK && m->patch > 1 ? bind_statistics(m, &b, error) : b.status;
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
    mem_free(m->allocator, m->mean);
    mem_free(m->allocator, m->deviation);
    mem_free(m->allocator, m);
}

void vae_kl_describe(const vae_kl *m, strbuf *out)
{
    strbuf_printf(out,
                  "%d levels, channels %" PRId64 " to %" PRId64 ", %" PRId64
                  " latent channels, factor %d",
                  m->blocks, m->channels[0], m->channels[m->blocks - 1], vae_kl_channels(m),
                  vae_kl_factor(m));
}

int vae_kl_factor(const vae_kl *m)
{
    return m->patch << (m->blocks - 1);
}

int64_t vae_kl_channels(const vae_kl *m)
{
    return m->latent_channels * m->patch * m->patch;
}
