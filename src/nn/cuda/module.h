/* Our kernels: .cu files of the tree, embedded in the program, compiled by NVRTC for the GPU that
 * is found, and kept on disk. */
#ifndef NN_CUDA_MODULE_H
#define NN_CUDA_MODULE_H

#include "core/dtype.h"
#include "nn/cuda/driver.h"

typedef enum cuda_kernel {
#define KERNEL(name, file) KERNEL_##name,
#include "nn/cuda/kernels/kernels.inc"
#undef KERNEL
    KERNEL_COUNT
} cuda_kernel;

#define CUDA_MODULES 5 /* .cu files */

/* The kernels for one storage type of activations. */
typedef struct cuda_kernels {
    cu_module module[CUDA_MODULES];
    cu_function function[KERNEL_COUNT];
} cuda_kernels;

typedef struct cuda_target {
    int major, minor;
    dtype type; /* DTYPE_F32, DTYPE_F16, DTYPE_BF16: of activations */
} cuda_target;

const char *cuda_kernel_name(cuda_kernel kernel);
/* A file as it is embedded; NULL behind the last one. The .cuh headers are not among them. */
const char *cuda_source_name(int file);

/* NVRTC, found at run time like the driver. Thread-safe. */
typedef struct cuda_compiler cuda_compiler;

/* CT_ENOTFOUND where there is none, with what helps. */
ct_status cuda_compiler_open(cuda_compiler **out, const ct_allocator *a, ct_error *error);
void cuda_compiler_close(cuda_compiler *c); /* NULL is allowed */
/* Machine code (cubin) of a file for a target, in memory of a. A failure shows the compiler's first
 * errors. Works without a GPU. */
ct_status cuda_compile(cuda_compiler *c, int file, const cuda_target *target, void **code,
                       size_t *bytes, ct_error *error);

/* Loads all kernels for a target into the current context: from the cache in `folder` (NULL: none)
 * where they are there, undamaged, and made from this source by this compiler; else compiled, all
 * files at once, and stored. The compiler is opened only when it is needed. A cache that cannot be
 * written to is no failure. Two processes may do this at once. */
ct_status cuda_kernels_load(cuda_kernels *out, const cuda_driver *d, const cuda_target *target,
                            const char *folder, const ct_allocator *a, ct_error *error);
/* Whether all of them are in the cache, so that no compiler is needed. */
bool cuda_kernels_cached(const cuda_driver *d, const cuda_target *target, const char *folder,
                         const ct_allocator *a);
void cuda_kernels_unload(cuda_kernels *k, const cuda_driver *d); /* also of a zeroed one */

#endif
