/* Results that can be made again, kept by the hash of all that they depend on: in memory, and as
 * files of a folder. Both hold what was used last, up to a limit in bytes. Nothing is lost with a
 * result that is gone or damaged but the time to make it again.
 *
 * Payloads pass through in pieces, so that a result may be larger than the memory there is for it
 * on the way. */
#ifndef IO_BLOB_H
#define IO_BLOB_H

#include "core/error.h"
#include "io/fingerprint.h"

#define BLOB_KIND 15                   /* letters of a kind, at most */
#define BLOB_PIECE ((size_t)128 << 10) /* bytes that pass at once, at most */
#define BLOB_HEADER ((size_t)96)       /* bytes of a file in front of its payload */

typedef struct blob_name {
    char kind[BLOB_KIND + 1];          /* a to z */
    char hash[FINGERPRINT_DIGITS + 1]; /* of all that the result depends on */
} blob_name;

/* Bytes at..at+bytes of the payload, in order, without gaps; false ends it. */
typedef struct blob_sink {
    void *user;
    bool (*take)(void *user, size_t at, const void *data, size_t bytes);
} blob_sink;
typedef struct blob_source {
    void *user;
    bool (*give)(void *user, size_t at, void *data, size_t bytes);
} blob_source;

/* ---- In memory. May be used from several threads. -------------------------------------------- */

typedef struct blob_memory blob_memory;

ct_status blob_memory_create(blob_memory **out, const ct_allocator *a, uint64_t limit,
                             ct_error *error);
void blob_memory_free(blob_memory *m); /* NULL is allowed */
bool blob_memory_has(blob_memory *m, const blob_name *name, size_t bytes);
/* False where there is none of this name and size, where the sink ended it, or where it went while
 * it was read: then what the sink has taken is not the whole. */
bool blob_memory_read(blob_memory *m, const blob_name *name, size_t bytes, const blob_sink *sink);
/* Makes room for it first. False where it is larger than the limit, memory is short, or the source
 * ended it. */
bool blob_memory_write(blob_memory *m, const blob_name *name, size_t bytes,
                       const blob_source *source);
uint64_t blob_memory_bytes(blob_memory *m);
uint64_t blob_memory_limit(const blob_memory *m);

/* ---- In a folder. Several processes may use one at the same time. ---------------------------- */

typedef struct blob_folder {
    const ct_allocator *allocator;
    const char *path;
    uint64_t limit; /* bytes of all its results; other files do not count */
} blob_folder;

bool blob_folder_has(const blob_folder *f, const blob_name *name);
/* CT_ENOTFOUND where there is none; CT_EFORMAT where the file is damaged, cut off, or of another
 * size or name than it should be: it is deleted; CT_ECANCELLED where the sink ended it. The sum is
 * known at the end, so only with CT_OK what the sink has taken may be used. */
ct_status blob_folder_read(const blob_folder *f, const blob_name *name, size_t bytes,
                           const blob_sink *sink, ct_error *error);
/* Makes the folder and its parents, and room in it: those go that were not used for longest. The
 * file appears when it is whole, readable for this user alone. CT_ENOMEM where it is larger than
 * the limit, CT_ECANCELLED where the source ended it. */
ct_status blob_folder_write(const blob_folder *f, const blob_name *name, size_t bytes,
                            const blob_source *source, ct_error *error);
/* Whether a file of this name is a result, perhaps under its temporary name, and of which kind. */
bool blob_is_file(const char *file, char kind[BLOB_KIND + 1], bool *temporary);

#endif
