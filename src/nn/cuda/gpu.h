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
/* Bytes of the GPU's memory that it holds, as the driver hands it out. */
size_t cuda_store_bytes(cuda_store *s);
/* A run begins and ends: while another one is under way nothing goes. */
void cuda_store_enter(cuda_store *s);
void cuda_store_leave(cuda_store *s);

/* What the device takes besides weights and activations: cuBLASLt's workspace, memory that weights
 * pass through, and what cuDNN may ask for, which nobody knows before (docs/memory.md). */
uint64_t cuda_gpu_fixed_bytes(const cuda_gpu *g);
/* What the driver takes for an allocation of so many bytes. */
size_t cuda_gpu_cost(size_t bytes);

/* ---- A plan for the weights of one job. A dry network that is made with it (nn_params) records
 * what each section (nn_section) and each of its blocks needs; a real one follows the choices. */
#define CUDA_SECTIONS 8

typedef struct cuda_schedule cuda_schedule;

ct_status cuda_schedule_create(cuda_schedule **out, const ct_allocator *a, ct_error *error);
void cuda_schedule_free(cuda_schedule *p); /* NULL is allowed */
/* Before a dry run, and behind it: then everything stays. */
void cuda_schedule_clear(cuda_schedule *p);
ct_status cuda_schedule_finish(cuda_schedule *p, ct_error *error);

/* So many blocks of a section come and go through two buffers, spread evenly among those that
 * stay. */
void cuda_schedule_stream(cuda_schedule *p, int section, int streamed);
/* When the section begins, what blocks of these sections (bits) do not keep on the GPU goes. */
void cuda_schedule_keep(cuda_schedule *p, int section, unsigned sections);
/* trims: the arena has the size of each section (nn_section). image_section: its streamed blocks
 * are kept in pinned memory of the host in the form that the GPU reads, as far as that can be had;
 * -1: none are. */
void cuda_schedule_set(cuda_schedule *p, bool trims, int image_section);

/* Bytes of the GPU's memory: of the weights that stay in any of these sections, each once; of the
 * buffers of streamed blocks; of the most that an upload takes besides; of the largest block. */
uint64_t cuda_schedule_bytes(const cuda_schedule *p, unsigned sections);
uint64_t cuda_schedule_buffers(const cuda_schedule *p, int section);
uint64_t cuda_schedule_temporary(const cuda_schedule *p);
uint64_t cuda_schedule_largest(const cuda_schedule *p, int section);
int cuda_schedule_blocks(const cuda_schedule *p, int section);
/* Bytes of the blocks that are streamed: of the host's memory, with images. */
uint64_t cuda_schedule_streamed(const cuda_schedule *p, int section);
/* Before memory for a job is taken: what its first section does not keep goes, unless a run is
 * under way. */
void cuda_store_prepare(cuda_store *s, const cuda_schedule *p, int section);

#endif
