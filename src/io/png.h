/* PNG files, through libpng (the only file that includes it is png.c). */
#ifndef IO_PNG_H
#define IO_PNG_H

#include "core/threads.h"

typedef struct png_note {
    const char *key;  /* 1..79 Latin-1 characters */
    const char *text; /* UTF-8. Written as tEXt when it is Latin-1, as iTXt otherwise */
} png_note;

/* Writes 8-bit RGB rows without gaps, atomically. threads may be NULL; the file is the same for any
 * number of them. Takes 0.7 MB for one thread, and at most 21 MB for many, while a row has at most
 * 64 KiB (21800 pixels); seven rows for each of up to 32 threads where it has more. */
ct_status png_write(const ct_allocator *a, pool *threads, const char *path, const uint8_t *rgb,
                    int width, int height, const png_note *texts, int text_count, ct_error *error);

/* Reads any PNG as 8-bit RGB, alpha over white. Refuses sides above 32768 and more than 2^28 pixels
 * before anything of that size is allocated. rgb is freed with mem_free. For each of the wanted
 * keys found[i] gets the text (mem_free) or NULL. what names the source in messages. */
ct_status png_read_memory(const ct_allocator *a, const unsigned char *data, size_t size,
                          const char *what, uint8_t **rgb, int *width, int *height,
                          const char *const *keys, int key_count, char **found, ct_error *error);

#endif
