/* What module.c and the tests know of nvrtc.c besides the compiler of module.h. */
#ifndef NN_CUDA_NVRTC_H
#define NN_CUDA_NVRTC_H

#include "core/hash.h"
#include "nn/cuda/embedded.h"
#include "nn/cuda/module.h"

/* A compiler whose code a driver of this version (13000 for CUDA 13.0; 0: any) loads, and which
 * still knows the target (NULL: any): NVRTC 13, or 12 for older drivers and for GPUs before 7.5. */
ct_status nvrtc_open(cuda_compiler **out, int driver_version, const cuda_target *target,
                     const ct_allocator *a, ct_error *error);
/* 1000 * major + 10 * minor. */
int nvrtc_version(const cuda_compiler *c);

/* Compiles a text that may include the embedded .cuh files. *code is a cubin, or, where the target
 * is newer than the compiler, PTX for the newest GPU that it knows, which the driver finishes; both
 * are what cuModuleLoadData takes. One zero byte stands behind it. */
ct_status nvrtc_compile(cuda_compiler *c, const char *name, const char *text,
                        const cuda_target *target, void **code, size_t *bytes, ct_error *error);

/* Whether it is such a target: F16, BF16 or F32, and a compute capability of two digits. */
bool nvrtc_target_valid(const cuda_target *target);
/* Adds all that the options depend on. */
void nvrtc_hash_options(hash128 *h, const cuda_target *target);

#endif
