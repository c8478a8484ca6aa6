/* A thread that has ranges of mapped files read into the system's cache, so that whoever computes
 * does not wait for the disk. */
#ifndef CORE_READAHEAD_H
#define CORE_READAHEAD_H

#include "core/file.h"

typedef struct readahead readahead;

typedef struct file_range {
    const file_map *map;
    size_t at, bytes;
} file_range;

ct_status readahead_create(readahead **out, const ct_allocator *a, ct_error *error);
/* Waits until the thread has finished what it is doing; NULL is allowed. */
void readahead_free(readahead *r);
/* Asks for these ranges, in place of what was asked for before and is not read yet. They must stay
 * until the next call or readahead_free. NULL for r: nothing happens. */
void readahead_ask(readahead *r, const file_range *ranges, size_t count);

#endif
