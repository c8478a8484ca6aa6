/* The pictures that a new one is made from: prepared once for a job, encoded once by the VAE. */
#ifndef PIPELINE_REFERENCE_H
#define PIPELINE_REFERENCE_H

#include "pipeline/internal.h"

#define MAX_REFERENCES 10

struct ct_job;

typedef struct reference {
    uint8_t *pixels;   /* [height][width] RGB, of the size that the model sees */
    int width, height; /* multiples of the model's */
    float *latents;    /* NULL until the first run has encoded it */
    uint8_t *seen;     /* as the text encoder is given it; NULL: it sees nothing */
    int seen_width, seen_height;
    float *sight;                      /* [tokens, feature_width]; NULL until the first run */
    char hash[FINGERPRINT_DIGITS + 1]; /* of the pixels */
    char *name;                        /* of the file, without its folder; NULL: none */
} reference;

/* What the parameters give, cut or padded to sizes that the model can see. */
ct_status references_prepare(struct ct_job *job, const ct_generate_params *params, ct_error *error);
void references_free(struct ct_job *job);
/* On a network that may be dry. Reports a unit for each. */
void references_encode(struct ct_job *job, nn *c, void (*unit_done)(void *user, int unit),
                       void *user);
/* Tokens that a reference takes among the words of a prompt. */
int64_t reference_tokens(const struct ct_job *job, const reference *r);
/* Shows the references to the text encoder, where it sees; on a network that may be dry. Reports a
 * unit for each. */
void references_see(struct ct_job *job, nn *c, void (*unit_done)(void *user, int unit), void *user);
/* What it has seen, for each reference. */
void references_sights(const struct ct_job *job, family_sight sights[MAX_REFERENCES]);
/* Bytes of latents and of what was seen, which stay (the pixels are there already); and of what
 * encoding takes besides. */
uint64_t references_bytes(const struct ct_job *job);
/* The same of what has at most so many bytes in one. */
uint64_t references_kept_bytes(const struct ct_job *job, uint64_t most);
uint64_t references_encoding_bytes(const struct ct_job *job);

#endif
