/* What the files of the CUDA device share. */
#ifndef NN_CUDA_CUDA_H
#define NN_CUDA_CUDA_H

#include "nn/cuda/blas.h"
#include "nn/cuda/dnn.h"
#include "nn/cuda/gpu.h"
#include "nn/cuda/module.h"
#include "nn/nn_internal.h"

#define CUDA_ALIGN 256 /* of every tensor, and of the parts of an operand */

#define CUDA_WORKSPACE ((size_t)64 << 20) /* of cuBLASLt */

/* How numbers lie in memory, as kernels are told: KIND_ in kernels/common.cuh has the
 * same values. */
typedef enum cuda_kind {
    CUDA_FLOAT,
    CUDA_WORK, /* the storage type T that the kernel was compiled for */
    CUDA_E4M3, /* rows of fp8 with a float32 factor each */
    CUDA_INT8, /* rows of int8 with a float32 factor each */
    CUDA_INT32
} cuda_kind;

struct cuda_gpu {
    const ct_allocator *allocator;
    pool *threads;
    cuda_driver driver;
    cuda_device_info info;
    cu_context context;
    blas *blas;
    bool has_dnn;
    char *folder, libraries[160];
    dtype half;                     /* F16 or BF16 */
    struct cuda_gpu_shared *shared; /* kernels by type, and the lock over them: gpu.c */
};

/* The storage type of activations where precision is not NN_F32: BF16, or F16 on GPUs without
 * it. */
dtype cuda_gpu_half(const cuda_gpu *g);
/* The kernels for a storage type; NULL with an error. Thread-safe. */
const cuda_kernels *cuda_gpu_kernels(cuda_gpu *g, dtype type, ct_error *error);
/* Memory of the GPU; an error has the numbers. */
ct_status cuda_gpu_alloc(cuda_gpu *g, cu_address *out, size_t bytes, const char *what,
                         ct_error *error);

/* To pinned memory or from there, by all threads: one of them alone takes as long as the GPU's bus
 * does several times. */
void cuda_copy_bytes(const cuda_gpu *g, void *to, const void *from, size_t bytes);

/* How attention is computed, and for tests: how alone, as far as that can do a case. */
typedef enum cuda_attention_path {
    ATTENTION_ANY,
    ATTENTION_DNN,
    ATTENTION_HOPPER, /* kernels/attention.cu */
    ATTENTION_OWN,    /* the same, on other GPUs */
    ATTENTION_PRODUCTS,
    ATTENTION_PLAIN
} cuda_attention_path;

typedef struct cuda_ring cuda_ring; /* stream.c */

/* Of one nn. */
typedef struct cuda_state {
    cuda_gpu *gpu;
    const cuda_driver *driver;
    cuda_store *store;
    cu_stream stream;
    dnn *dnn;                       /* NULL: no cuDNN */
    const cuda_kernels *kernels[3]; /* for DTYPE_F32, DTYPE_F16, DTYPE_BF16; NULL until needed */
    cu_address workspace;           /* of cuBLASLt */
    bool capturing;
    int64_t uploads; /* of the store that the stream waits for: store.c */
    cuda_ring *ring; /* NULL until a section begins */
    cuda_attention_path attention_path, attention_taken; /* wanted; taken last */
    struct cuda_private *private;                        /* cuda.c */
} cuda_state;

static inline cuda_state *cuda_of(nn *c)
{
    return c->device_state;
}

/* The address of a tensor's numbers. */
static inline cu_address cuda_at(const nn_tensor *t)
{
    return t ? (cu_address)(uintptr_t)t->data : 0;
}

/* Nothing is to be put into the stream: a dry run, or something failed. */
bool cuda_idle(nn *c);
/* The storage type of the present precision: F32, F16 or BF16. */
dtype cuda_work_type(const nn *c);
/* The same, but under NN_F32 the type of 16 bits that would be the GPU's. */
dtype cuda_half_type(const nn *c);
/* Where sums must have room: F32 instead of F16. */
dtype cuda_wide_type(const nn *c);
/* How a tensor or operand lies in memory. */
cuda_kind cuda_kind_of(const nn *c, const nn_tensor *t);
/* The factors of the rows of an operand of CUDA_E4M3 or CUDA_INT8; otherwise 0. */
cu_address cuda_scales_of(const nn *c, const nn_tensor *operand);

typedef struct cuda_grid {
    int64_t x, y, z; /* blocks; 0 counts as 1 */
    int threads;     /* of a block */
    int shared_bytes;
} cuda_grid;

/* Puts a kernel into the stream, in its version for activations of `type`. parameters: pointers to
 * its arguments in order. A failure sticks to c. Does nothing where cuda_idle. */
void cuda_launch(nn *c, cuda_kernel kernel, dtype type, cuda_grid grid, void **parameters);
/* CUDA_LAUNCH(c, rms_norm, type, grid, &a, &b, ...) */
#define CUDA_LAUNCH(c, name, type, grid, ...)                                                      \
    cuda_launch(c, KERNEL_##name, type, grid, (void *[]){__VA_ARGS__})
/* Makes a failure of a library stick. */
void cuda_fail(nn *c, const ct_error *error);

/* Numbers of the host in memory of the device that stays valid until the stream has read it; 0 in a
 * dry run. Takes the same scratch in a dry run. */
cu_address cuda_upload_ints(nn *c, const int32_t *values, int64_t count);
/* Memory of the arena, in a dry run too (then 0): nn_scratch for the device. */
cu_address cuda_scratch(nn *c, size_t bytes);

/* ---- Weights: the store's copy on the GPU, uploaded by the first who asks. 0 in a dry run, after
 * a failure, and for no weight. */

/* As float32, a vector or a matrix row. */
cu_address cuda_floats(nn *c, const nn_weight *w);
/* Vectors one behind the other, as F32, F16 or BF16. */
cu_address cuda_vectors(nn *c, const nn_weight *const *w, int count, dtype type);
/* A table whose rows are looked up, as the file has it where it is F32, F16 or BF16 (*type says);
 * otherwise as BF16. */
cu_address cuda_table(nn *c, const nn_weight *w, dtype *type);
/* A convolution's [O, I, k, k] as [O, k, k, I] in the work type. */
cu_address cuda_conv_weight(nn *c, const nn_weight *w);
/* A convolution [O, I, 3, 3] of a doubled picture as four of the picture itself, one for each of
 * the four results that come from a pixel: [2, 2, O, 2, 2, I], first where the result is (y, x).
 * The numbers are sums of up to four, made in float32 (kernel weight_conv_folded). */
cu_address cuda_folded_weight(nn *c, const nn_weight *w);

typedef enum cuda_form {
    STORE_FLOATS,
    STORE_TABLE,
    STORE_CONV,
    STORE_CONV_FOLDED,
    STORE_MATRIX,
    STORE_PACKED
} cuda_form;

/* A weight on the GPU and how to get it there. */
typedef struct cuda_request {
    const nn_weight *const *w; /* below each other: the same K */
    int count;
    cuda_form form;
    dtype type; /* of the copy: F32, F16, BF16, F8_E4M3, I8 */
} cuda_request;

typedef struct cuda_weight {
    cu_address data, scales, biases;
} cuda_weight;

#define CUDA_PARTS 3 /* of a cuda_weight */

/* Bytes of the parts of a copy; returns what its upload takes besides. */
size_t cuda_request_parts(const cuda_request *request, size_t part[CUDA_PARTS]);
static inline size_t cuda_aligned(size_t bytes)
{
    return (bytes + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
}

/* store.c: the copy, made in the stream of c if it is not there yet. In a dry run it is noted in
 * the schedule, and *out is 0. */
ct_status cuda_store_get(nn *c, const cuda_request *request, cuda_weight *out, ct_error *error);
/* Another copy, in the stream of c, to memory that has room for its aligned parts one behind the
 * other. */
ct_status cuda_store_put(nn *c, const cuda_request *request, cu_address to, ct_error *error);
/* What blocks of these sections of a schedule do not keep goes, unless other runs are under way:
 * more than `runs`. */
void cuda_store_retain(cuda_store *s, const cuda_schedule *p, unsigned sections, int runs);
/* How often something went: addresses that were learnt before may be stale. */
int64_t cuda_store_generation(cuda_store *s);

/* stream.c: blocks that come and go. */
void cuda_section(nn *c, int section, size_t arena_bytes);
void cuda_block(nn *c);
/* Whether the block that runs is streamed and has this copy. */
bool cuda_ring_find(const nn *c, const cuda_request *request, cuda_weight *out);
/* How many blocks have come. Calls between which some came cannot be recorded. */
int64_t cuda_ring_loads(const nn *c);
void cuda_ring_free(nn *c);

/* Low-bit groups of a matrix as numbers of `type` at `to`. */
void cuda_unpack(nn *c, const nn_weight *w, const cuda_weight *packed, dtype type, cu_address to);

/* Matrices [N, K] of the same K below each other as one, in the form that products of this
 * precision read: work type, or e4m3 or int8 with *scales [N]. Low-bit groups that stay packed on
 * the GPU are unpacked into the arena. */
cu_address cuda_matrices(nn *c, const nn_weight *const *w, int count, dtype *type,
                         cu_address *scales);

/* ---- Movement: cuda.c */
/* An arena of another size; nothing may be in use. A failure sticks to c. */
void cuda_resize_arena(nn *c, size_t bytes);
void cuda_upload(nn *c, const nn_tensor *t, const float *data);
void cuda_download(nn *c, const nn_tensor *t, float *data); /* any type of tensor */
/* Bytes of the device in pinned memory of the host, valid until the next call; NULL in a dry run
 * and after a failure. */
const void *cuda_fetch(nn *c, cu_address from, size_t bytes);

/* ---- Operations, by file --------------------------------------------------------------------- */

/* op_rows.c */
size_t cuda_operand_bytes(const nn *c, int64_t m, int64_t k);
void cuda_prepare(nn *c, const nn_tensor *out, const nn_tensor *x);
/* Rows of n numbers, x_stride apart, as codes of CUDA_E4M3 or CUDA_INT8 without gaps. */
void cuda_quantize(nn *c, cu_address codes, cuda_kind kind, cu_address factors, cu_address x,
                   cuda_kind x_kind, int64_t x_stride, int64_t rows, int64_t n);
void cuda_embed(nn *c, const nn_tensor *out, const nn_weight *w, const int32_t *ids);
void cuda_fill_rows(nn *c, const nn_tensor *out, const nn_weight *w);
void cuda_rms_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w, float eps,
                   const nn_tensor *scale);
void cuda_add_rms_norm(nn *c, const nn_tensor *x, const nn_tensor *y, const nn_weight *w, float eps,
                       const nn_tensor *gate, const nn_next_norm *next);
void cuda_layer_norm(nn *c, const nn_tensor *out, const nn_tensor *x, float eps,
                     const nn_tensor *scale, const nn_tensor *shift);
void cuda_head_norm_rope(nn *c, const nn_tensor *x, int heads, const nn_weight *w, float eps,
                         const nn_tensor *cosine, const nn_tensor *sine, nn_rope_pairs pairs);
void cuda_silu(nn *c, const nn_tensor *out, const nn_tensor *x);
void cuda_gelu(nn *c, const nn_tensor *x);
void cuda_multiply(nn *c, const nn_tensor *x, const nn_tensor *y);
void cuda_tanh(nn *c, const nn_tensor *x);
void cuda_add_scalar(nn *c, const nn_tensor *x, float value);
/* How the epilogue kernel is launched; and epilogue_norm. */
cuda_grid cuda_epilogue_grid(cuda_kind out_kind, cuda_kind y_kind, int64_t rows, int64_t columns);
cuda_grid cuda_row_grid(int64_t rows, int64_t columns);
/* Any kind to F32 or work; rows of n numbers that lie strides apart. */
void cuda_convert(nn *c, dtype type, cu_address out, cuda_kind out_kind, int64_t out_stride,
                  cu_address x, cuda_kind x_kind, int64_t x_stride, int64_t rows, int64_t n);

/* op_planes.c */
void cuda_patches(nn *c, const nn_tensor *tokens, const nn_tensor *planes, int patch,
                  bool channels_first, bool to_tokens);
void cuda_upload_planes(nn *c, const nn_tensor *picture, const float *planes, float factor,
                        float offset); /* by cuda_upload and the planes kernel */
void cuda_download_planes(nn *c, const nn_tensor *picture, float *planes);
void cuda_add_scaled(nn *c, const nn_tensor *x, const nn_tensor *y, float factor);
void cuda_guide(nn *c, const nn_tensor *positive, const nn_tensor *negative, float guidance,
                bool normalize);
void cuda_guide_tokens(nn *c, const nn_tensor *positive, const nn_tensor *negative, float guidance,
                       int patch);
void cuda_group_sums(nn *c, const nn_tensor *sums, int64_t first, const nn_tensor *x);
void cuda_group_factors(nn *c, const nn_tensor *norm, const nn_tensor *sums, int64_t width,
                        const nn_weight *w, const nn_weight *b, double eps,
                        const nn_weight *late_bias);
void cuda_apply_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_tensor *norm);

/* The pixels under a convolution's kernel as rows of a matrix, or a padded, doubled or normed copy
 * of a picture: kernel `gather` (kernels/planes.cu), which says what the parameters are. */
typedef struct cuda_gathering {
    cu_address out, x, norm; /* norm 0: none */
    int out_kind, x_kind;    /* CUDA_FLOAT or CUDA_WORK */
    int height, width, channels;
    int up, with_silu;
    int first_row, rows, columns; /* of the outputs */
    int kernel, stride, pad_top, pad_left;
} cuda_gathering;

void cuda_gather(nn *c, const cuda_gathering *g);

/* op_conv.c */
void cuda_conv2d(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                 const nn_weight *bias, const nn_conv *params);

/* op_attention.c */
void cuda_attention(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                    const nn_tensor *v, int heads, int kv_heads, bool causal);

void cuda_attention_segments(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                             const nn_tensor *v, int heads, const int32_t *ends, int count);

/* check.c */
int64_t cuda_count_broken(nn *c, const nn_tensor *t);

/* op_linear.c */
bool cuda_writes_operand(const nn *c, const nn_weight *w);
void cuda_linear(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                 const nn_epilogue *epilogue);
void cuda_linears(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *const *w,
                  const nn_weight *const *bias, int count);

#endif
