/* Attention and convolutions by cuDNN, found at run time, through its graph interface. Everything
 * here is optional: where cuDNN is missing, or has no engine for a case, our own kernels do it. */
#ifndef NN_CUDA_DNN_H
#define NN_CUDA_DNN_H

#include "core/dtype.h"
#include "nn/cuda/driver.h"

/* For one stream; used by one thread at a time. Keeps the plans of shapes that it has met, and the
 * workspace that they need. */
typedef struct dnn dnn;

typedef struct dnn_params {
    const ct_allocator *allocator;
    const cuda_driver *driver;
    const cuda_device_info *device;
    cu_stream stream;
    const char *folder; /* where plans are kept for the next run; NULL: nowhere */
} dnn_params;

#define DNN_VERSION_BYTES 48

/* Whether there is a cuDNN, and its name, "cuDNN 9.19.0". Opens no handle, which takes time and
 * memory of the GPU. */
bool dnn_find(char version[DNN_VERSION_BYTES]);
ct_status dnn_open(dnn **out, const dnn_params *params, ct_error *error);
void dnn_close(dnn *d); /* NULL is allowed */

/* out [queries, heads * dim] = softmax(q k^T / sqrt(dim)) v, as nn_attention has it. Strides are
 * from row to row, in numbers: q, k and v may be columns of one packed buffer. Addresses and rows
 * are aligned to 16 bytes. causal: query i sees keys 0 to i. */
typedef struct dnn_attention {
    dtype type; /* F16 or BF16 */
    int heads, kv_heads, dim;
    int64_t queries, keys;
    int64_t q_stride, k_stride, v_stride, out_stride;
    bool causal;
    /* Attention as a graph of twelve operations, which cuDNN fuses, also where it has one operation
     * for it (from 9.13.1, not causal); to compare them. */
    bool composed;
} dnn_attention;

typedef struct dnn_attention_operands {
    cu_address out, q, k, v;
} dnn_attention_operands;

/* CT_EUNSUPPORTED where there is no engine: known from then on without asking again. A shape must
 * be met once before it is captured into a graph: its plan takes memory, and time. cuDNN compiles
 * kernels for attention: a second or more for each shape that is met for the first time, a
 * millisecond when it is in the folder. For a convolution with a bias or an addition it would do so
 * too; convolutions alone are there at once. */
ct_status dnn_attend(dnn *d, const dnn_attention *p, const dnn_attention_operands *at,
                     ct_error *error);

/* out [height', width', out] = conv(x [height, width, in], w [out, kernel, kernel, in]); pictures
 * and weights with channels last, addresses aligned to 16 bytes. */
typedef struct dnn_conv {
    dtype type; /* F16, BF16 or F32 (true float32): of x, w and out */
    int64_t height, width, in, out;
    int kernel, stride;
    int pad_before, pad_after; /* zeros above and to the left; below and to the right */
} dnn_conv;

typedef struct dnn_conv_operands {
    cu_address out, x, w;
} dnn_conv_operands;

/* As dnn_attend. The first time, the candidates are timed on these operands and the fastest is
 * kept. */
ct_status dnn_convolve(dnn *d, const dnn_conv *p, const dnn_conv_operands *at, ct_error *error);

/* Bytes of device memory held for plans. */
size_t dnn_memory(const dnn *d);

#endif
