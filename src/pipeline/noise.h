/* Noise that a file holds instead of a generator: the tensor "noise" of a safetensors file. */
#ifndef PIPELINE_NOISE_H
#define PIPELINE_NOISE_H

#include "pipeline/job.h"

/* The file's numbers for a job whose size is known, [channels, height, width] of its latents; the
 * tensor may have a leading batch of one. Fails where the file cannot be read, has no such tensor
 * or one of another type or shape (CT_ENOTFOUND, CT_EFORMAT), or numbers that are not finite. */
ct_status noise_read(const ct_job *job, float *numbers, ct_error *error);

/* The same without keeping them, so that a job is refused before it begins. */
ct_status noise_check(const ct_job *job, ct_error *error);

/* Whether every one of these numbers is finite. */
bool numbers_finite(const float *x, int64_t count);

#endif
