/* The safetensors file format: 8 bytes of header length (little-endian), a JSON header, the data.
 * https://github.com/huggingface/safetensors#format */
#ifndef IO_SAFETENSORS_H
#define IO_SAFETENSORS_H

#include "core/file.h"
#include "io/json.h"
#include "io/weights.h"

/* Parses and checks a file image that stays in memory while the views are used: header length
 * within the file, every dtype known, every shape's product equal to its byte range without
 * overflow, every range inside the data, no overlaps, no holes, no rest. Calls visit for each
 * tensor; names live until the root is freed. *root (json_free) is handed out on success. path is
 * for messages. */
ct_status safetensors_parse(const unsigned char *data, size_t size, const char *path,
                            const ct_allocator *a, json_value **root,
                            ct_status (*visit)(void *user, const weight_view *view,
                                               ct_error *error),
                            void *user, ct_error *error);

/* Writes a file of tensors that come one by one: each is copied to a temporary file at once, and
 * the header is written when all are known. */
typedef struct safetensors_writer safetensors_writer;

ct_status safetensors_writer_open(safetensors_writer **out, const ct_allocator *a, const char *path,
                                  ct_error *error);
/* Data is in native (little-endian) order. A name may be written once. */
ct_status safetensors_writer_add(safetensors_writer *w, const char *name, dtype type, int rank,
                                 const int64_t *shape, const void *data, ct_error *error);
ct_status safetensors_writer_metadata(safetensors_writer *w, const char *key, const char *value,
                                      ct_error *error);

/* The same for tensors whose sizes are known beforehand. They are written in pieces and in any
 * order, to where they stay, so that neither memory nor a second file holds them:
 *     open, declare and metadata for each, begin, put for each piece, commit */
ct_status safetensors_writer_declare(safetensors_writer *w, const char *name, dtype type, int rank,
                                     const int64_t *shape, ct_error *error);
ct_status safetensors_writer_begin(safetensors_writer *w, ct_error *error);
/* bytes of the tensor from byte at on. All bytes must be put, each once. */
ct_status safetensors_writer_put(safetensors_writer *w, const char *name, size_t at,
                                 const void *data, size_t bytes, ct_error *error);
/* Replaces the value of a key by one of the same length, at any time before the commit. */
ct_status safetensors_writer_replace(safetensors_writer *w, const char *key, const char *value,
                                     ct_error *error);

/* Completes and renames the file; the writer is freed in any case. */
ct_status safetensors_writer_commit(safetensors_writer *w, ct_error *error);
/* Drops everything. NULL is allowed. */
void safetensors_writer_abort(safetensors_writer *w);

#endif
