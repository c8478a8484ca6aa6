/* Machine code of kernels that was kept on disk. A damaged or foreign file is as good as none. */
#ifndef NN_CUDA_CACHE_H
#define NN_CUDA_CACHE_H

#include "core/error.h"
#include "core/hash.h"

/* Where the code of a source file with a key is kept: "FOLDER/rows-KEY.cubin" for "rows.cu". To be
 * freed with mem_free; NULL when memory is short. */
char *cuda_cache_path(const ct_allocator *a, const char *folder, const char *name,
                      const hash128 *key);

/* Whether a file of the folder is one of these, or holds what was measured on a GPU. */
bool cuda_cache_is_file(const char *name);

/* The code, with a zero byte behind; to be freed with mem_free. CT_ENOTFOUND where there is no such
 * file, CT_EFORMAT where it is damaged or has another key. */
ct_status cuda_cache_read(const ct_allocator *a, const char *path, const hash128 *key, void **code,
                          size_t *bytes, ct_error *error);
/* compiler: the version that made it, for those who look into the file. Makes the folder and its
 * parents. The file appears when it is whole, so others may read and write it at the same time. */
ct_status cuda_cache_write(const char *path, const hash128 *key, int compiler, const void *code,
                           size_t bytes, ct_error *error);

#endif
