/* JPEG files, through libjpeg-turbo (the only file that includes it is jpeg.c). */
#ifndef IO_JPEG_H
#define IO_JPEG_H

#include "core/error.h"

/* Reads a JPEG as 8-bit RGB, upright as its Exif data say. Refuses damaged and truncated files. rgb
 * is freed with mem_free. what names the source in messages. */
ct_status jpeg_read_memory(const ct_allocator *a, const unsigned char *data, size_t size,
                           const char *what, uint8_t **rgb, int *width, int *height,
                           ct_error *error);

#endif
