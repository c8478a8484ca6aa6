/* Matrix products by cuBLASLt, found at run time. */
#ifndef NN_CUDA_BLAS_H
#define NN_CUDA_BLAS_H

#include "core/dtype.h"
#include "nn/cuda/driver.h"

typedef struct blas blas;

typedef enum blas_epilogue { BLAS_NONE, BLAS_GELU_TANH } blas_epilogue;

/* out [m, n] = x [m, k] w^T, w [n, k], all row-major; numbers without meaning here are 0. */
typedef struct blas_product {
    int64_t m, n, k;
    int64_t x_stride, w_stride, out_stride; /* from row to row, in numbers */
    bool w_by_rows;                         /* w is [k, n] instead */
    /* x and w: both DTYPE_F32 (true float32, not TF32), DTYPE_F16, DTYPE_BF16, DTYPE_F8_E4M3 or
     * DTYPE_I8. out: F32, F16 or BF16; of I8: DTYPE_I32. Sums in float32, of I8 in int32. */
    dtype type, out_type;
    bool add;  /* out += */
    bool bias; /* + bias[n], of type bias_type: out_type, or F32 where cuBLASLt takes that */
    dtype bias_type;
    blas_epilogue epilogue;
    /* DTYPE_F8_E4M3: a factor for each row of x, and one for each row of w, both float32. */
    bool scaled;
    /* DTYPE_F8_E4M3: sums stay in the tensor cores, which keep about 14 bits of them on Hopper;
     * else they go to float32 every so many terms. Up to 1.3 times faster; each term may then be
     * rounded to 2^-14 of the sum so far. */
    bool fast_sums;
    /* Several products of the same shape: numbers from one to the next. count 0 counts as 1. */
    int64_t count, x_next, w_next, out_next;
    float factor; /* out = factor * x w^T; 0 counts as 1. Not with scaled */
} blas_product;

typedef struct blas_operands {
    cu_address out, x, w, bias, x_scales, w_scales;
} blas_operands;

typedef struct blas_params {
    const ct_allocator *allocator;
    const cuda_driver *driver;
    const cuda_device_info *device;
    const char *folder; /* where the choices are kept for the next run; NULL: nowhere */
    size_t workspace;   /* bytes that every call brings */
} blas_params;

ct_status blas_open(blas **out, const blas_params *params, ct_error *error);
void blas_close(blas *b); /* NULL is allowed; writes what was learnt */
/* "cuBLASLt 13.1.0" */
const char *blas_version(const blas *b);

/* Whether this GPU and cuBLASLt can do it; asks without touching memory. */
bool blas_can(blas *b, const blas_product *p);
/* Puts the product into the stream. The first time that a shape is met its candidates are timed on
 * these very operands, with a result of their own, and the fastest is kept: in
 * memory, and in a file, so that every later run computes the same bits. While the stream is being
 * captured (capturing) an unknown shape takes the first candidate, and is not remembered.
 * Thread-safe. */
ct_status blas_multiply(blas *b, cu_stream stream, bool capturing, cu_address workspace,
                        const blas_product *p, const blas_operands *at, ct_error *error);

#endif
