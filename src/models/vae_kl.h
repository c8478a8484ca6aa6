/* AutoencoderKL: pictures to latents and back, as FLUX.1 and Z-Image have it; and
 * AutoencoderKLFlux2, where 2 x 2 pixels of the latents are packed into one with four times the
 * channels (index 4 * channel + 2 * row + column), and each packed channel has a mean and a
 * deviation of its own. Latents are those of the outside here: packed where the model packs. */
#ifndef MODELS_VAE_KL_H
#define MODELS_VAE_KL_H

#include "core/strbuf.h"
#include "io/weights.h"
#include "models/bind.h"
#include "models/vae.h"
#include "nn/nn.h"

#define VAE_MAX_BLOCKS 8

typedef struct vae_resnet {
    int64_t in, out;
    nn_weight norm1, norm1_bias, conv1, conv1_bias, norm2, norm2_bias, conv2, conv2_bias;
    nn_weight shortcut, shortcut_bias; /* where in and out differ */
} vae_resnet;

typedef struct vae_attention {
    nn_weight norm, norm_bias, q, q_bias, k, k_bias, v, v_bias, out, out_bias;
} vae_attention;

/* One level of the encoder or decoder: resnets, then a change of size. */
typedef struct vae_block {
    int resnets;
    vae_resnet *resnet;
    nn_weight resize, resize_bias; /* none in the last block */
} vae_block;

typedef struct vae_stack {
    nn_weight conv_in, conv_in_bias, norm_out, norm_out_bias, conv_out, conv_out_bias;
    vae_resnet mid[2];
    vae_attention attention;
    vae_block block[VAE_MAX_BLOCKS];
} vae_stack;

typedef struct vae_kl {
    const ct_allocator *allocator;
    weights *weights;
    int blocks, layers_per_block, groups;
    int64_t channels[VAE_MAX_BLOCKS];         /* of each block, at full size first */
    int64_t decoder_channels[VAE_MAX_BLOCKS]; /* the same, unless the decoder is a small one */
    int64_t latent_channels, sample_size;     /* latent_channels: not packed */
    int patch;                                /* pixels that are packed, on a side */
    double scaling_factor, shift_factor;
    double norm_eps;
    float *mean, *deviation; /* [latent_channels * patch^2], or NULL */
    bool mid_attention;
    vae_stack encoder, decoder;
    nn_weight quant, quant_bias, post_quant, post_quant_bias; /* none in most files */
} vae_kl;

ct_status vae_kl_load(vae_kl **out, const load_options *options, const char *directory,
                      ct_error *error);
void vae_kl_free(vae_kl *m); /* NULL is allowed */
/* The dimensions in one line. */
void vae_kl_describe(const vae_kl *m, strbuf *out);

/* Pixels for each latent pixel, in both directions. */
int vae_kl_factor(const vae_kl *m);
/* Channels of latents. */
int64_t vae_kl_channels(const vae_kl *m);
void vae_kl_decode(nn *c, const vae_kl *m, const vae_decoding *d);
/* Units that decode reports to unit_done. */
int vae_kl_decode_units(const vae_kl *m, const vae_decoding *d);
/* The bytes of activations that decode takes at most (a dry run under params; latents and picture
 * may be NULL). */
ct_status vae_kl_decode_peak(const vae_kl *m, const vae_decoding *d, const nn_params *params,
                             size_t *bytes, ct_error *error);

/* A picture [3, height, width] in -1..1 to moments: mean and logarithm of the variance, [2 *
 * channels, height, width] of latents that are neither scaled nor packed. The sides must be
 * multiples of factor. */
void vae_kl_encode(nn *c, const vae_kl *m, const float *picture, int64_t height, int64_t width,
                   float *moments);
/* The same to the latents that the transformer sees, [channels, height / factor, width / factor]:
 * the mean, scaled and packed. moments: memory for twice as many numbers. */
void vae_kl_encode_mean(nn *c, const vae_kl *m, const float *picture, int64_t height, int64_t width,
                        float *moments, float *latents);

#endif
