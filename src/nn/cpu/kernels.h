/* The inner loops of the CPU, as one table of functions for each instruction set.
 *
 * kernels_reference.c is the definition: plain scalar C, sums in double. kernels_vector.c is
 * written once on vectors of any length and compiled for each instruction set. Tests run every
 * table that the processor can run against the definition.
 *
 * Buffers that kernels read may be read up to MEM_PAD bytes past their end. */
#ifndef NN_CPU_KERNELS_H
#define NN_CPU_KERNELS_H

#include "core/dtype.h"
#include "nn/nn.h"

#define KERNEL_MAX_MR 8
#define KERNEL_MAX_NR 32

typedef struct cpu_kernels {
    const char *name;
    int mr, nr; /* rows and columns of a tile */

    /* c [mr][nr] with row stride ldc = start + sum over t < taps, i < k of
     *     rows[t * mr + m][i] * panel[(t * k + i) * nr + n]
     * where start is c itself if accumulate, else bias [nr] if given, else 0. Each sum has one
     * order: t, then i. */
    void (*tile)(int taps, int64_t k, const float *const *rows, const float *panel,
                 const float *bias, bool accumulate, float *c, int64_t ldc);

    /* panel[i * nr + n] = w[n * row_stride + i * k_stride] for n < count, 0 for count <= n < nr;
     * strides in elements of type, k_stride at most 9. Rounded to bfloat16 if asked for. */
    void (*pack)(float *panel, const void *w, dtype type, int64_t row_stride, int64_t k_stride,
                 int count, int64_t k, bool bf16);
    /* panel[i * nr + n] = v[i * row_stride + n] for n < count, 0 beyond. */
    void (*pack_columns)(float *panel, const float *v, int64_t row_stride, int count, int64_t k,
                         bool bf16);
    void (*round_bf16)(float *out, const float *x, int64_t n);

    /* row[i] = exp(scale * (row[i] - max)) for i < valid, 0 for valid <= i < n; returns the sum.
     * valid >= 1. */
    float (*softmax)(float *row, int64_t valid, int64_t n, float scale);
    void (*scale)(float *x, int64_t n, float factor);

    /* scale and gate may be NULL. */
    void (*rms_norm)(float *out, const float *x, const float *w, const float *scale, int64_t n,
                     float eps);
    void (*add_rms_norm)(float *x, const float *y, const float *w, const float *gate, int64_t n,
                         float eps);
    void (*layer_norm)(float *out, const float *x, const float *scale, int64_t n, float eps);
    /* (x[a], x[b]) times cosine + i sine, for the pairs of one head of n features. */
    void (*rope)(float *x, const float *cosine, const float *sine, int64_t n, nn_rope_pairs pairs);

    void (*silu)(float *out, const float *x, int64_t n);
    void (*swiglu)(float *gate, const float *up, int64_t n);
    void (*add)(float *x, const float *y, int64_t n);

    /* sum[c] += x[p][c], squares[c] += x[p][c]^2 over the pixels. */
    void (*channel_sums)(double *sum, double *squares, const float *x, int64_t pixels,
                         int64_t channels);
    /* out[p][c] = x[p][c] * factor[c] + offset[c], then SiLU if asked for. */
    void (*channel_affine)(float *out, const float *x, const float *factor, const float *offset,
                           int64_t pixels, int64_t channels, bool silu);
} cpu_kernels;

/* The tables that this program has, slowest first; the definition is the first. NULL at the end. */
extern const cpu_kernels *const cpu_kernels_all[];

/* Whether this processor can run the table. */
bool cpu_kernels_usable(const cpu_kernels *kernels);
/* By name, or the best one for NULL. */
ct_status cpu_kernels_choose(const cpu_kernels **out, const char *name, ct_error *error);

#endif
