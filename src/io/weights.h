/* Weights: named tensors in mapped files, behind one table, whatever the number of files.
 * A component folder holds either one .safetensors file or shards with an index. */
#ifndef IO_WEIGHTS_H
#define IO_WEIGHTS_H

#include "core/dtype.h"
#include "core/error.h"
#include "core/file.h"

#define WEIGHT_MAX_RANK 8

/* A tensor in a mapped file: row-major, little-endian, at any alignment. */
typedef struct weight_view {
    const char *name;
    dtype type;
    int rank;
    int64_t shape[WEIGHT_MAX_RANK];
    const unsigned char *data;
    size_t bytes;
    int file; /* index into weights_path */
    /* U32 only: the matrix behind the codes of MLX affine groups, once it was bound. */
    int bits;
    int64_t group;
} weight_view;

typedef struct weights weights;

/* Opens all weight files of a component directory: <stem>.safetensors.index.json and the shards it
 * names; or else <stem>.safetensors; or else the same for the stem "model", which programs around
 * MLX use everywhere; or else the only .safetensors file that is there. stem is
 * "diffusion_pytorch_model" or "model". Checks every header and offset; reads no tensor data. */
ct_status weights_open_directory(weights **out, const ct_allocator *a, const char *directory,
                                 const char *stem, ct_error *error);
/* Opens one file. */
ct_status weights_open_file(weights **out, const ct_allocator *a, const char *path,
                            ct_error *error);
void weights_close(weights *w); /* NULL is allowed */

/* NULL when there is none. */
const weight_view *weights_find(const weights *w, const char *name);
/* All tensors, sorted by name. */
size_t weights_count(const weights *w);
const weight_view *weights_at(const weights *w, size_t index);
int weights_files(const weights *w);
const char *weights_path(const weights *w, int file);
/* The raw JSON header of a file, for hashing. */
const char *weights_header(const weights *w, int file, size_t *length);
/* The __metadata__ string under key in the first file that has it, or NULL. */
const char *weights_metadata(const weights *w, const char *key);
/* Says how many bits the codes of a view have, and how many of them share a scale. */
void weights_set_codes(weights *w, const weight_view *view, int bits, int64_t group);
/* Bytes of a view that are done with: their pages leave this process, and come back when they are
 * touched. */
void weights_drop(const weights *w, const void *data, size_t bytes);
/* Memory that is freed with the weights, for what cannot be used as the file has it; NULL when it
 * cannot be had. Aligned and padded for kernels. */
void *weights_allocate(weights *w, size_t bytes);
/* How much of it there is. */
uint64_t weights_allocated(const weights *w);
/* The mapped file that holds these bytes, and where; NULL when none of w's files does. */
const file_map *weights_locate(const weights *w, const void *data, size_t *at);
/* Lets all pages of the files leave this process; they come back when they are touched. */
void weights_let_go(const weights *w);
/* The directory or file that was opened, for messages. */
const char *weights_source(const weights *w);

#endif
