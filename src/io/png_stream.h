/* The pixels of a PNG as one zlib stream, filtered and deflated by several threads in bands of rows
 * (the only file that includes zlib.h is png_stream.c). */
#ifndef IO_PNG_STREAM_H
#define IO_PNG_STREAM_H

#include "core/threads.h"

typedef struct png_stream png_stream;

/* For 8-bit RGB rows without gaps, which stay the caller's. threads may be NULL: then the caller's
 * thread does all. The bytes of the stream are the same for any number of threads. NULL when memory
 * is short; all that is needed is taken here, in this thread. */
png_stream *png_stream_create(const ct_allocator *a, pool *threads, const uint8_t *rgb,
                              size_t width, size_t height);
void png_stream_free(png_stream *s); /* NULL is allowed */

/* The next piece of the stream, valid until the next call; size 0 behind the last one. False when
 * zlib fails, which it has no reason to. */
bool png_stream_next(png_stream *s, const uint8_t **data, size_t *size);

#endif
