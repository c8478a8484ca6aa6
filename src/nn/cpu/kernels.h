/* The inner loops of the CPU on rows of numbers, as one table of functions for each instruction
 * set, beside the products of matrices (gemm.h).
 *
 * kernels_reference.c is the definition: plain scalar C, sums in double. kernels_vector.c is
 * written once on vectors of any length and compiled for each instruction set. Tests run every
 * table that the processor can run against the definition. */
#ifndef NN_CPU_KERNELS_H
#define NN_CPU_KERNELS_H

#include "core/dtype.h"
#include "nn/cpu/gemm.h"
#include "nn/nn.h"

typedef struct cpu_kernels {
    const char *name;  /* of the tier: "avx512bf16" */
    uint32_t features; /* that it needs */
    /* The products of this tier. CPU_BF16 NULL: the processor has none; operands are rounded to
     * bfloat16 and multiplied in float32. */
    const cpu_gemm *gemm[CPU_COMPUTES];

    /* ---- Numbers of weights to float32 and back. ------------------------------------------- */

    /* n numbers of type F32, F16, BF16, F8_E4M3 or F8_E5M2 times factor. */
    void (*decode)(float *out, const void *in, dtype type, int64_t n, float factor);
    /* out[i] = scale * code + bias for the n codes of one group or of a part of it: codes [n],
     * a number each. */
    void (*decode_codes)(float *out, const uint8_t *codes, int64_t n, float scale, float bias);
    /* The codes of 4 bits of n / 2 bytes, lowest bits first; n even. */
    void (*unpack4)(uint8_t *codes, const uint8_t *packed, int64_t n);
    void (*round_bf16)(float *out, const float *x, int64_t n); /* in place */
    void (*encode_bf16)(uint16_t *out, const float *x, int64_t n);
    /* out[i] = low[i] and above it high[i], as bfloat16. */
    void (*encode_bf16_pairs)(uint32_t *out, const float *low, const float *high, int64_t n);
    /* out[j * out_stride + i] = in[i * in_stride + j] for i < rows, j < columns. */
    void (*transpose)(uint32_t *out, int64_t out_stride, const uint32_t *in, int64_t in_stride,
                      int64_t rows, int64_t columns);
    float (*max_abs)(const float *x, int64_t n);
    /* out[i] = round(x[i] * inverse), ties to even, which must be within -127..127; returns the
     * sum of the results. The second form stores them as value + 128. */
    int32_t (*encode_int8)(int8_t *out, const float *x, int64_t n, float inverse);
    int32_t (*encode_uint8)(uint8_t *out, const float *x, int64_t n, float inverse);
    int32_t (*encode_int16)(int16_t *out, const float *x, int64_t n, float inverse);
    /* Each block of `block` numbers (a power of two that divides n) times the Hadamard matrix of
     * that order (natural order, +-1) / sqrt(block). In place. */
    void (*hadamard)(float *x, int64_t n, int64_t block);
    /* out[i] = (float)(c[i] - offset) * row_scale * column_scale[i]. out and c may be the same
     * memory. */
    void (*decode_sums)(float *out, const int32_t *c, int64_t n, int32_t offset, float row_scale,
                        const float *column_scale);

    /* ---- Rows of activations. --------------------------------------------------------------- */

    /* The largest of n >= 1 numbers. */
    float (*row_max)(const float *x, int64_t n);
    /* The numerators of a softmax: out[i] = 2^(factor * x[i] - offset) for i < valid, 0 for valid
     * <= i < n; returns their sum. n is a multiple of 16. Exponents are at most about 0; below -126
     * counts as that. out and x may be the same memory. */
    float (*exp2_row)(float *out, const float *x, int64_t valid, int64_t n, float factor,
                      float offset);
    /* The same rounded to bfloat16, ties in any direction; the sum is that of the unrounded. */
    float (*exp2_row_bf16)(uint16_t *out, const float *x, int64_t valid, int64_t n, float factor,
                           float offset);
    void (*scale)(float *x, int64_t n, float factor);

    /* scale and gate may be NULL. */
    void (*rms_norm)(float *out, const float *x, const float *w, const float *scale, int64_t n,
                     float eps);
    void (*add_rms_norm)(float *x, const float *y, const float *w, const float *gate, int64_t n,
                         float eps);
    /* shift may be NULL. */
    void (*layer_norm)(float *out, const float *x, const float *scale, const float *shift,
                       int64_t n, float eps);
    /* (x[a], x[b]) times cosine + i sine, for the pairs of one head of n features. */
    void (*rope)(float *x, const float *cosine, const float *sine, int64_t n, nn_rope_pairs pairs);

    void (*silu)(float *out, const float *x, int64_t n);
    void (*gelu)(float *x, int64_t n); /* with tanh, in place */
    void (*swiglu)(float *gate, const float *up, int64_t n);
    void (*add)(float *x, const float *y, int64_t n);
    void (*add_product)(float *x, const float *y, const float *factor, int64_t n); /* += y factor */

    /* sum[c] += x[p][c], squares[c] += x[p][c]^2 over the pixels. */
    void (*channel_sums)(double *sum, double *squares, const float *x, int64_t pixels,
                         int64_t channels);
    /* out[p * channels + c] = x[p * stride + c] * factor[c] + offset[c], then SiLU if asked for. */
    void (*channel_affine)(float *out, const float *x, int64_t stride, const float *factor,
                           const float *offset, int64_t pixels, int64_t channels, bool silu);

    /* ---- Winograd's convolution F(4x4, 3x3) (winograd.h). Each of n channels for itself: all
     * arguments are [position][channel], with strides between the positions. ------------------ */

    /* u[p * stride + c] = G w G^T, p < 36, w [n][9]. */
    void (*winograd_weights)(float *u, int64_t stride, const float *w, int64_t n);
    /* v[p * stride + c] = B^T d B, p < 36; d[i][j] = rows[i][columns[j] + c]. */
    void (*winograd_input)(float *v, int64_t stride, const float *const *rows,
                           const int64_t *columns, int64_t n);
    /* out[i * row + j * column + c] = (A^T m A)[i][j] + bias[c], i, j < 4; added to what is there
     * if accumulate. m[p * stride + c], p < 36. */
    void (*winograd_output)(float *out, int64_t row, int64_t column, const float *m, int64_t stride,
                            const float *bias, int64_t n, bool accumulate);
} cpu_kernels;

/* The tiers that this program has, slowest first; the definition is the first. False behind the
 * last. */
bool cpu_kernels_tier(cpu_kernels *out, int index);
/* Whether this processor can run the tier. */
bool cpu_kernels_usable(const cpu_kernels *kernels);
/* By name, or the best one for NULL. */
ct_status cpu_kernels_choose(cpu_kernels *out, const char *name, ct_error *error);

#endif
