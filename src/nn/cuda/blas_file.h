/* What was learnt about matrix products, kept on disk: which of cuBLASLt's algorithms is the
 * fastest for a product. A file belongs to one GPU and one version of the library. */
#ifndef NN_CUDA_BLAS_FILE_H
#define NN_CUDA_BLAS_FILE_H

#include "core/error.h"
#include "nn/cuda/cublaslt.h"

/* All that an algorithm depends on, in the library's own numbers; without padding, compared as
 * bytes. Names as in blas_product. */
typedef struct blas_key {
    int64_t m, n, k;
    int64_t x_stride, w_stride, out_stride;
    int64_t count, x_next, w_next, out_next;
    uint8_t type, out_type, bias_type; /* cudaDataType_t; bias_type 255: no bias */
    uint8_t w_by_rows, add, gelu, scaled, fast_sums;
    uint8_t out_align, x_align, w_align, bias_align; /* log2 of bytes: 0 to 4, or 8 */
    uint8_t x_scales_align, w_scales_align;
    uint8_t spare[2];
} blas_key;

typedef struct blas_choice {
    blas_key key;
    lt_algo algo;
} blas_choice;

/* The choices of a file, in memory of a; none where there is no such file, or a damaged one. */
void blas_file_read(const ct_allocator *a, const char *path, blas_choice **choices, size_t *count);
/* Adds choices to the file. What is in it already stays, also for the same product: another process
 * may have put it there meanwhile, and later runs shall compute what it computed. */
ct_status blas_file_add(const ct_allocator *a, const char *path, const blas_choice *choices,
                        size_t count, ct_error *error);

#endif
