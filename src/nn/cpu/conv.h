/* What the two ways to compute a convolution share: op_conv.c sets it up and has the direct way,
 * conv_winograd.c the other.
 *
 * Either way a task takes a rectangle of the result. It gathers the input that the rectangle needs,
 * normalised and with zeros around the picture, encodes it as the first operand of matrix products
 * (gemm.h), and multiplies by weights that all tasks share. */
#ifndef NN_CPU_CONV_H
#define NN_CPU_CONV_H

#include "nn/cpu/operand.h"

typedef struct conv {
    const cpu_kernels *kernels;
    const cpu_gemm *gemm;
    const nn_weight *w; /* [outputs][channels][kernel][kernel] */
    const float *bias;

    const float *x; /* [above + height + below][width][channels] */
    int64_t height, width, channels, above, below;
    float *out; /* [out_height][out_width][outputs] */
    int64_t out_height, out_width, outputs;
    int kernel, stride, pad;
    int up;                       /* 1 where the input is doubled, else 0 */
    const float *factor, *offset; /* of each channel of the input, with SiLU behind; or NULL */
    bool add;                     /* to out */

    /* Weights: for each of `positions` matrices [outputs][words] its panels. */
    int positions;
    int64_t words, panels; /* panels of one matrix */
    char *columns;

    /* The division into tasks: rectangles of block_height x block_width units (tiles or pixels),
     * times parts of part_columns outputs, of which block_columns are computed at a time. */
    int64_t block_height, block_width, blocks_x, blocks;
    int64_t parts, part_columns, block_columns;
    char *scratch; /* for each worker */
    size_t scratch_bytes;
} conv;

/* A rectangle of the input; what lies outside of the picture is zero. */
typedef struct region {
    int64_t y, x, height, width;
} region;

/* Channels first .. first+n-1 of a region to out [height][width][n]. */
void conv_gather(const conv *v, const region *r, int64_t first, int64_t n, float *out);
/* sums [row_panels * mr][block_columns] = rows a times columns n0 .. n1 of the weights at a
 * position. */
void conv_multiply(const conv *v, const char *a, int64_t row_panels, int position, int64_t n0,
                   int64_t n1, float *sums);
/* Fills in the division for a result of height x width units, at most `most` of them in a task. */
void conv_cut(conv *v, int64_t height, int64_t width, int64_t most);

/* Takes memory (in a dry run too) and computes. */
void conv_direct(nn *c, conv *v);
void conv_winograd(nn *c, conv *v);

#endif
