/* WebP files, through libwebp (the only file that includes it is webp.c). */
#ifndef IO_WEBP_H
#define IO_WEBP_H

#include "core/error.h"

/* Reads a WebP as 8-bit RGB, alpha over white, upright as its Exif data say. Refuses animations.
 * rgb is freed with mem_free. what names the source in messages. */
ct_status webp_read_memory(const ct_allocator *a, const unsigned char *data, size_t size,
                           const char *what, uint8_t **rgb, int *width, int *height,
                           ct_error *error);

#endif
