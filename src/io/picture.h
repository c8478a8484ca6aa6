/* Pictures in files: PNG, JPEG or WebP, told by their first bytes. */
#ifndef IO_PICTURE_H
#define IO_PICTURE_H

#include "io/png.h"

#define PICTURE_MAX_SIDE 32768
#define PICTURE_MAX_PIXELS ((uint64_t)1 << 28)

/* Reads a picture as 8-bit RGB, upright, alpha over white. Refuses what moves, sides above
 * PICTURE_MAX_SIDE and more than PICTURE_MAX_PIXELS pixels. The rest as png_read_memory; other
 * formats have no texts. */
ct_status picture_read_memory(const ct_allocator *a, const unsigned char *data, size_t size,
                              const char *what, uint8_t **rgb, int *width, int *height,
                              const char *const *keys, int key_count, char **found,
                              ct_error *error);

/* Fails where the sides of a picture are not possible. */
ct_status picture_check_sides(const char *what, uint64_t width, uint64_t height, ct_error *error);

#endif
