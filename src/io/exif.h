/* What Exif data say about the way a picture is held. */
#ifndef IO_EXIF_H
#define IO_EXIF_H

#include "core/error.h"

/* The Orientation of Exif data (a TIFF header and its directory, with or without "Exif\0\0" in
 * front): 1 to 8; 1, upright, where there is none or the data make no sense. */
int exif_orientation(const unsigned char *data, size_t size);

/* Turns RGB rows upright, in new memory; *rgb, *width and *height change. */
ct_status exif_turn(const ct_allocator *a, int orientation, uint8_t **rgb, int *width, int *height,
                    ct_error *error);

#endif
