/* Plans of cuDNN on disk. Making one takes up to seconds, as the library compiles kernels for it;
 * reading it back takes milliseconds. One file for each problem, GPU and version. */
#ifndef NN_CUDA_DNN_FILE_H
#define NN_CUDA_DNN_FILE_H

#include "core/error.h"

typedef struct dnn_text {
    size_t scratch; /* as in the plan */
    char *text;     /* as cuDNN writes its plans; in memory of the allocator */
    size_t bytes;
} dnn_text;

/* "folder/dnn-HASH.bin", the hash made from both; NULL without memory. */
char *dnn_file_path(const ct_allocator *a, const char *folder, const char *machine, const void *key,
                    size_t key_bytes);
/* False where there is no such file, or a damaged one, or one of another problem. */
bool dnn_file_read(const ct_allocator *a, const char *path, const void *key, size_t key_bytes,
                   dnn_text *out);
/* A folder that cannot be written to is no failure of the caller's. */
ct_status dnn_file_write(const char *path, const void *key, size_t key_bytes, const dnn_text *text,
                         ct_error *error);

#endif
