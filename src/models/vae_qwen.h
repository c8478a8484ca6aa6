/* AutoencoderKLQwenImage: a causal VAE of films, here for single pictures, on which it is a network
 * of two dimensions: convolutions look back in time onto zeros, so that only the last slice of each
 * kernel sees data. */
#ifndef MODELS_VAE_QWEN_H
#define MODELS_VAE_QWEN_H

#include "core/strbuf.h"
#include "io/weights.h"
#include "models/bind.h"
#include "models/vae.h"
#include "nn/nn.h"

#define VAE_QWEN_MAX_LEVELS 8

typedef struct vae_qwen_resnet {
    int64_t in, out;
    nn_weight norm1, conv1, conv1_bias, norm2, conv2, conv2_bias;
    nn_weight shortcut, shortcut_bias; /* where in and out differ */
} vae_qwen_resnet;

/* One level of the encoder or decoder: resnets, then a change of size. */
typedef struct vae_qwen_level {
    int resnets;
    vae_qwen_resnet *resnet;
    nn_weight resize, resize_bias; /* none in the last level */
} vae_qwen_level;

typedef struct vae_qwen_stack {
    nn_weight conv_in, conv_in_bias, norm_out, conv_out, conv_out_bias;
    vae_qwen_resnet mid[2];
    nn_weight norm, qkv, qkv_bias, proj, proj_bias; /* the attention between them */
    vae_qwen_level level[VAE_QWEN_MAX_LEVELS];
} vae_qwen_stack;

typedef struct vae_qwen {
    const ct_allocator *allocator;
    weights *weights;
    int levels, resnets; /* of a level of the encoder; the decoder has one more */
    int64_t base, channels[VAE_QWEN_MAX_LEVELS]; /* of each level, at full size first */
    int64_t latent_channels;
    float *mean, *deviation; /* [latent_channels] */
    vae_qwen_stack encoder, decoder;
    nn_weight quant, quant_bias, post_quant, post_quant_bias;
} vae_qwen;

ct_status vae_qwen_load(vae_qwen **out, const load_options *options, const char *directory,
                        ct_error *error);
void vae_qwen_free(vae_qwen *m); /* NULL is allowed */
/* The dimensions in one line. */
void vae_qwen_describe(const vae_qwen *m, strbuf *out);

/* Pixels for each latent pixel, in both directions. */
int vae_qwen_factor(const vae_qwen *m);
void vae_qwen_decode(nn *c, const vae_qwen *m, const vae_decoding *d);
/* Units that decode reports to unit_done. */
int vae_qwen_decode_units(const vae_qwen *m);
/* The bytes of activations that decode takes at most (a dry run under params; latents and picture
 * may be NULL). */
ct_status vae_qwen_decode_peak(const vae_qwen *m, const vae_decoding *d, const nn_params *params,
                               size_t *bytes, ct_error *error);

/* A picture [3, height, width] in -1..1 to moments: mean and logarithm of the variance, [2 *
 * latent_channels, height / factor, width / factor], not scaled. The sides must be multiples of
 * factor. */
void vae_qwen_encode(nn *c, const vae_qwen *m, const float *picture, int64_t height, int64_t width,
                     float *moments);
/* The same to the latents that the transformer sees: the mean, scaled. moments: memory for twice as
 * many numbers. */
void vae_qwen_encode_mean(nn *c, const vae_qwen *m, const float *picture, int64_t height,
                          int64_t width, float *moments, float *latents);

#endif
