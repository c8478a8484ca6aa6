#include "io/names.h"

#include <stdio.h>
#include <string.h>

/* A rule replaces one part of a name. A part that begins with a dot stands anywhere in the name,
 * any other at its beginning. Of each kind the first rule that fits is taken, those of the
 * beginning first. */
typedef struct rule {
    const char *hf, *other;
} rule;

/* mflux (https://github.com/filipstrand/mflux): saved models. */
static const rule mflux[] = {
    {"t_embedder.mlp.0.", "t_embedder.linear1."},
    {"t_embedder.mlp.2.", "t_embedder.linear2."},
    {"all_final_layer.2-1.adaLN_modulation.1.", "all_final_layer.2-1.adaLN_modulation.0."},
    {"model.", ""}, /* the text encoder */
    {"encoder.conv_in.", "encoder.conv_in.conv2d."},
    {"encoder.conv_norm_out.", "encoder.conv_norm_out.norm."},
    {"encoder.conv_out.", "encoder.conv_out.conv2d."},
    {"decoder.conv_in.", "decoder.conv_in.conv."},
    {"decoder.conv_norm_out.", "decoder.conv_norm_out.norm."},
    {"decoder.conv_out.", "decoder.conv_out.conv."},
    {NULL, NULL},
};

static const rule mflux_flux2[] = {
    {"time_guidance_embed.timestep_embedder.", "time_guidance_embed."},
    {".attn.to_out.0.", ".attn.to_out."},
    {".attentions.0.to_out.0.", ".attentions.0.to_out."},
    {"model.", ""}, /* the text encoder */
    {NULL, NULL},
};

/* Where diffusers counts the resnets and halvings of the VAE's encoder in one list, mflux has
 * levels of two resnets. */
static const rule mflux_qwen[] = {
    {"model.", "encoder."}, /* the text encoder */
    {"visual.", "encoder.visual."},
    {".merger.mlp.0.", ".merger.mlp_0."},
    {".merger.mlp.2.", ".merger.mlp_1."},
    {".attn.to_out.0.", ".attn.attn_to_out.0."},
    {".img_mod.1.", ".img_mod_linear."},
    {".txt_mod.1.", ".txt_mod_linear."},
    {".img_mlp.net.0.proj.", ".img_ff.mlp_in."},
    {".img_mlp.net.2.", ".img_ff.mlp_out."},
    {".txt_mlp.net.0.proj.", ".txt_ff.mlp_in."},
    {".txt_mlp.net.2.", ".txt_ff.mlp_out."},
    {"encoder.down_blocks.0.", "encoder.down_blocks.0.resnets.0."},
    {"encoder.down_blocks.1.", "encoder.down_blocks.0.resnets.1."},
    {"encoder.down_blocks.2.", "encoder.down_blocks.0.downsamplers.0."},
    {"encoder.down_blocks.3.", "encoder.down_blocks.1.resnets.0."},
    {"encoder.down_blocks.4.", "encoder.down_blocks.1.resnets.1."},
    {"encoder.down_blocks.5.", "encoder.down_blocks.1.downsamplers.0."},
    {"encoder.down_blocks.6.", "encoder.down_blocks.2.resnets.0."},
    {"encoder.down_blocks.7.", "encoder.down_blocks.2.resnets.1."},
    {"encoder.down_blocks.8.", "encoder.down_blocks.2.downsamplers.0."},
    {"encoder.down_blocks.9.", "encoder.down_blocks.3.resnets.0."},
    {"encoder.down_blocks.10.", "encoder.down_blocks.3.resnets.1."},
    {"decoder.up_blocks.", "decoder.up_block"},
    {"quant_conv.", "quant_conv.conv3d."},
    {"post_quant_conv.", "post_quant_conv.conv3d."},
    {".conv_in.", ".conv_in.conv3d."},
    {".conv_out.", ".conv_out.conv3d."},
    {".conv1.", ".conv1.conv3d."},
    {".conv2.", ".conv2.conv3d."},
    {".conv_shortcut.", ".skip_conv.conv3d."},
    {".time_conv.", ".time_conv.conv3d."},
    {".resample.1.", ".resample_conv."},
    {".gamma", ".weight"},
    {NULL, NULL},
};

/* MLX_z-image (https://github.com/uqer1244/MLX_z-image). Text encoder and VAE are as usual. */
static const rule mlx_z_image[] = {
    {"t_embedder.mlp.0.", "t_embedder.linear1."},
    {"t_embedder.mlp.2.", "t_embedder.linear2."},
    {"all_x_embedder.2-1.", "x_embedder."},
    {"all_final_layer.2-1.linear.", "final_layer.linear."},
    {"all_final_layer.2-1.adaLN_modulation.1.", "final_layer.adaLN_modulation.layers.1."},
    {"cap_embedder.0.", "cap_embedder.layers.0."},
    {"cap_embedder.1.", "cap_embedder.layers.1."},
    {".attention.to_out.0.", ".attention.to_out."},
    {".adaLN_modulation.0.", ".adaLN_modulation."},
    {NULL, NULL},
};

static const rule *const layouts[NAMES_COUNT] = {
    [NAMES_MFLUX] = mflux,
    [NAMES_MFLUX_FLUX2] = mflux_flux2,
    [NAMES_MFLUX_QWEN] = mflux_qwen,
    [NAMES_MLX_Z_IMAGE] = mlx_z_image,
};

/* Where the rule fits, or NULL. */
static const char *fits(const rule *r, const char *name)
{
    if (r->hf[0] == '.')
        return strstr(name, r->hf);
    return strncmp(name, r->hf, strlen(r->hf)) == 0 ? name : NULL;
}

void names_spell(char out[NAMES_LENGTH], name_layout layout, const char *name)
{
    char before[NAMES_LENGTH];
    snprintf(out, NAMES_LENGTH, "%s", name);
    for (int anywhere = 0; anywhere < 2; anywhere++)
        for (const rule *r = layouts[layout]; r && r->hf; r++) {
            const char *at = (r->hf[0] == '.') == anywhere ? fits(r, out) : NULL;
            if (!at)
                continue;
            memcpy(before, out, sizeof before);
            snprintf(out, NAMES_LENGTH, "%.*s%s%s", (int)(at - out), before, r->other,
                     before + (at - out) + strlen(r->hf));
            break;
        }
}

const weight_view *names_find(const weights *w, const char *name)
{
    char spelled[NAMES_LENGTH];
    const weight_view *found = weights_find(w, name);
    for (int layout = NAMES_HF + 1; !found && layout < NAMES_COUNT; layout++) {
        names_spell(spelled, (name_layout)layout, name);
        found = weights_find(w, spelled);
    }
    return found;
}

bool names_are_hf(const weights *w)
{
    /* One of each component, with other names in other layouts. */
    static const char *const evidence[] = {"model.embed_tokens.weight",
                                           "t_embedder.mlp.0.weight",
                                           "encoder.conv_in.weight",
                                           "time_guidance_embed.timestep_embedder.linear_1.weight",
                                           "transformer_blocks.0.img_mod.1.weight",
                                           "encoder.mid_block.attentions.0.to_out.0.weight"};
    for (size_t i = 0; i < sizeof evidence / sizeof *evidence; i++) {
        const weight_view *v = names_find(w, evidence[i]);
        if (v && strcmp(v->name, evidence[i]) != 0)
            return false;
    }
    return true;
}

int names_parts(const weights *w, const char *stem, const char *name)
{
    char full[NAMES_LENGTH];
    for (int i = 0; i < 10000; i++) {
        snprintf(full, sizeof full, "%s.%d.%s", stem, i, name);
        if (!names_find(w, full))
            return i;
    }
    return 10000;
}

bool names_channels_last(const weights *w)
{
    const weight_view *out = weights_find(w, "encoder.conv_out.weight");
    return weights_find(w, "encoder.conv_in.conv2d.weight") ||
           weights_find(w, "decoder.conv_in.conv.weight") ||
           weights_find(w, "decoder.conv_in.conv3d.weight") ||
           weights_find(w, "encoder.visual.patch_embed.proj.weight") ||
           (out && out->rank == 4 && out->shape[1] == 3 && out->shape[2] == 3 &&
            out->shape[3] != 3);
}
