/* The pictures that a new one is made from: prepared once for a job, encoded once by the VAE. */
#ifndef PIPELINE_REFERENCE_H
#define PIPELINE_REFERENCE_H

#include "pipeline/internal.h"

#define MAX_REFERENCES 10

struct ct_job;

typedef struct reference {
    uint8_t *pixels;                   /* [height][width] RGB, of the size that the model sees */
    int width, height;                 /* multiples of the model's */
    float *latents;                    /* NULL until the first run has encoded it */
    char hash[FINGERPRINT_DIGITS + 1]; /* of the pixels */
} reference;

/* What the parameters give, cut or padded to sizes that the model can see. */
ct_status references_prepare(struct ct_job *job, const ct_generate_params *params, ct_error *error);
void references_free(struct ct_job *job);
/* On a network that may be dry. Reports a unit for each. */
void references_encode(struct ct_job *job, nn *c, void (*unit_done)(void *user, int unit),
                       void *user);
/* Bytes of latents, which stay (the pixels are there already); and of what encoding takes
 * besides. */
uint64_t references_bytes(const struct ct_job *job);
uint64_t references_encoding_bytes(const struct ct_job *job);

#endif
