/* Classifier-free guidance. */
#ifndef SAMPLING_GUIDANCE_H
#define SAMPLING_GUIDANCE_H

#include <stdbool.h>
#include <stdint.h>

/* positive = positive + g * (positive - negative), in the convention of Z-Image's card (the usual
 * scale minus one). normalize: the result is scaled down to the norm of positive where it is longer
 * (cfg_normalization of the reference). */
void guidance_combine(float *positive, const float *negative, int64_t n, double g, bool normalize);

#endif
