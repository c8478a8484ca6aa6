/* What a matrix product reads: rows of activations and rows of weights, encoded as the chosen way
 * to compute wants them and packed into the panels of its kernel. */
#ifndef NN_CPU_OPERAND_H
#define NN_CPU_OPERAND_H

#include "nn/cpu/cpu.h"

/* A product over k numbers under a precision. */
typedef struct product {
    const cpu_kernels *kernels;
    const cpu_gemm *gemm;
    int64_t k, words; /* of a row, padding included */
    int64_t slice;    /* words of a slice, see below */
    bool round;       /* to bfloat16, since the processor has no such products */
    int64_t rotation; /* order of the Hadamard matrix that blocks of k are rotated by; 0: none */
} product;

/* w: for its marks alone; NULL: none. */
product product_choose(const nn *c, int64_t k, const nn_weight *w);

/* Operands lie in memory in the order in which a product reads them: slice by slice of k, in each
 * slice panel by panel. Where the part of a panel that starts at word w (a multiple of slice) is,
 * for an operand of `total` rows or columns (padded) in panels of `width`. */
static inline size_t product_part(const product *p, int64_t total, int64_t panel, int64_t width,
                                  int64_t w)
{
    return (size_t)(w * total + panel * width * min64(p->slice, p->words - w)) * 4;
}

/* The first operand: panels of gemm->mr rows, then for CPU_INT8 the scale and the sum of each
 * row. */
typedef struct operand {
    char *panels;
    float *scales;
    int32_t *sums;
    int64_t rows; /* padded */
} operand;

/* Numbers in a word. */
int64_t product_per_word(const product *p);

size_t operand_bytes(const product *p, int64_t m);
operand operand_at(const product *p, int64_t m, void *memory);
/* Scratch memory for the two functions below. */
size_t operand_scratch(const product *p);

/* Rows of k floats each into one panel; rows beyond m repeat others. */
void operand_store_rows(const product *p, const operand *o, int64_t panel, const float *const *rows,
                        char *scratch);
/* The second operand. */
typedef struct column_panels {
    char *panels;
    float *scales; /* for CPU_INT8: what sums of a column are multiplied with */
    int64_t count; /* padded */
} column_panels;

/* nr rows of k floats each into a panel of columns; not for CPU_INT8. */
void product_pack_floats(const product *p, const column_panels *o, int64_t panel,
                         const float *const *rows, char *scratch);
/* Rows first .. first+count-1 (count <= gemm->nr) of a weight [N, K] as columns, zeros behind them:
 * for CPU_INT8 whole rows, whose scales must be known first, into a panel of o; */
void product_pack_int8(const product *p, const column_panels *o, int64_t panel, const nn_weight *w,
                       int64_t first, int64_t count, char *scratch);
/* else the slice that starts at a word, into a panel of the words of this slice. */
void product_pack_slice(const product *p, char *panel, const nn_weight *w, int64_t first,
                        int64_t count, int64_t slice, char *scratch);
/* Asks for the numbers of a row that will be packed with the slice that starts at a word. */
void product_fetch_slice(const product *p, const nn_weight *w, int64_t row, int64_t slice);

/* Numbers first .. first+count-1 of a row of a weight, as float32. */
void weight_decode(const cpu_kernels *kernels, const nn_weight *w, int64_t row, int64_t first,
                   int64_t count, float *out);

#endif
