/* A GPU as the pipeline sees it: opened once for a context, with the weights of models on it. */
#ifndef NN_CUDA_GPU_H
#define NN_CUDA_GPU_H

#include "core/error.h"
#include "core/threads.h"
#include "nn/nn.h"

typedef struct cuda_gpu cuda_gpu;

typedef struct cuda_gpu_params {
    const ct_allocator *allocator;
    pool *threads;      /* for reading weights */
    int ordinal;        /* which GPU */
    dtype half;         /* F16: do without bfloat16, as on older GPUs; 0: what the GPU has */
    const char *folder; /* for compiled kernels and choices of cuBLASLt; NULL: keep none. Copied */
} cuda_gpu_params;

/* Finds the driver, the GPU, cuBLASLt and, where it is there, cuDNN. Kernels are loaded when they
 * are first needed. CT_ENOTFOUND or CT_EDEVICE with what is missing. Thread-safe from then on. */
ct_status cuda_gpu_open(cuda_gpu **out, const cuda_gpu_params *params, ct_error *error);
void cuda_gpu_close(cuda_gpu *g);                  /* NULL is allowed */
const char *cuda_gpu_name(const cuda_gpu *g);      /* "NVIDIA H200" */
const char *cuda_gpu_libraries(const cuda_gpu *g); /* "CUDA 13.0, cuBLASLt 13.1.0, cuDNN 9.19.0" */
/* Whether products can be computed so, in operands of 16 or 8 bits. */
bool cuda_gpu_can(const cuda_gpu *g, nn_precision precision);
/* Whether NN_BF16 is bfloat16; otherwise it is NN_FP16. */
bool cuda_gpu_has_bf16(const cuda_gpu *g);
/* Bytes that are free now, and all. */
ct_status cuda_gpu_memory(cuda_gpu *g, size_t *free_bytes, size_t *total_bytes, ct_error *error);

/* Weights of a model on the GPU, by where they lie in the host's memory. Uploaded when an operation
 * first reads them; shared by the jobs of a model. Thread-safe. */
typedef struct cuda_store cuda_store;

ct_status cuda_store_create(cuda_store **out, cuda_gpu *g, ct_error *error);
void cuda_store_free(cuda_store *s); /* NULL is allowed */
/* Gives back the memory of all weights that lie in these bytes of the host. No job may be using
 * them. */
void cuda_store_drop(cuda_store *s, const void *begin, size_t bytes);
/* How often weights have been dropped: what was recorded before that must not be played back. */
int64_t cuda_store_drops(cuda_store *s);
/* Bytes of the GPU's memory that it holds. */
size_t cuda_store_bytes(cuda_store *s);

#endif
