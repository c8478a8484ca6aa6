/* Pictures made smaller or larger, with the bytes that Pillow gives. */
#ifndef IO_RESAMPLE_H
#define IO_RESAMPLE_H

#include "core/error.h"

/* RGB of width x height to new_width x new_height with Lanczos' window of 3, in fixed point as
 * Pillow computes it (Image.resize with LANCZOS). *out is freed with mem_free. */
ct_status resample_lanczos(const ct_allocator *a, const uint8_t *rgb, int width, int height,
                           int new_width, int new_height, uint8_t **out, ct_error *error);
/* The same with cubic pieces (BICUBIC). */
ct_status resample_bicubic(const ct_allocator *a, const uint8_t *rgb, int width, int height,
                           int new_width, int new_height, uint8_t **out, ct_error *error);

#endif
