/* What every VAE of this program is asked to do, and what it makes of a picture. */
#ifndef MODELS_VAE_H
#define MODELS_VAE_H

#include <stdint.h>

/* A picture that another one is made from, as latents [channels, height, width]. */
typedef struct vae_latents {
    const float *latents;
    int64_t height, width;
} vae_latents;

/* Latents to a picture. */
typedef struct vae_decoding {
    const float *latents; /* [channels, height, width], scaled as the transformer has them */
    int64_t height, width;
    float *scratch; /* as much memory as the latents take, which decode may use */
    float *picture; /* [3, factor * height, factor * width] in -1..1, not clamped */
    /* Rows of latents whose part of the picture is decoded at a time where that takes less memory,
     * which is at the largest sizes; 0: all. The result is the same, bit for bit. */
    int strip_rows;
    void (*unit_done)(void *user, int unit); /* may be NULL */
    void *user;
} vae_decoding;

#endif
