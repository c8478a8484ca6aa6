#include "io/names.h"

#include <stdio.h>
#include <string.h>

/* A rule replaces one part of a name. A part that begins with a dot stands anywhere in the name,
 * any other at its beginning. The first rule that fits is taken. */
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
    for (const rule *r = layouts[layout]; r && r->hf; r++) {
        const char *at = fits(r, name);
        if (!at)
            continue;
        snprintf(out, NAMES_LENGTH, "%.*s%s%s", (int)(at - name), name, r->other,
                 at + strlen(r->hf));
        return;
    }
    snprintf(out, NAMES_LENGTH, "%s", name);
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
    static const char *const evidence[] = {"model.embed_tokens.weight", "t_embedder.mlp.0.weight",
                                           "encoder.conv_in.weight",
                                           "time_guidance_embed.timestep_embedder.linear_1.weight",
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
           (out && out->rank == 4 && out->shape[1] == 3 && out->shape[2] == 3 &&
            out->shape[3] != 3);
}
