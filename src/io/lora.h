/* LoRA files: small matrices A [rank, columns] and B [rows, rank] for modules of a network, whose
 * product is added to their weights: W + scale * (alpha / rank) * B A
 * (https://arxiv.org/abs/2106.09685).
 *
 *     lora_open      reads the files and checks all that can be checked without a model
 *     lora_match     for each matrix of the model: does a file change it?
 *     lora_check     did the files' modules find their matrices?
 *     lora_product_* adds the changes to rows of numbers
 *
 * The names of several trainers are understood (lora_names.h): prefixes and endings are cut off,
 * dots become underscores, and what is left is looked up. */
#ifndef IO_LORA_H
#define IO_LORA_H

#include "core/threads.h"
#include "io/fingerprint.h"
#include "io/weights.h"

/* What a file has for one module. */
typedef struct lora_pair {
    const char *name;             /* flattened, without a prefix */
    const weights *source;        /* which holds the next two */
    const weight_view *down, *up; /* A and B */
    int64_t rank, rows, columns;
    double factor; /* alpha / rank */
    bool matched;
} lora_pair;

typedef struct lora_file {
    char *path;
    const char *name; /* last part of path */
    double scale;
    char hash[FINGERPRINT_DIGITS + 1]; /* XXH3-128 of the whole file */
    weights *source;
    lora_pair *pairs; /* sorted by name */
    size_t count, matched;
    int64_t least_rank, most_rank;
    size_t ignored;       /* modules of a text encoder */
    const char **unknown; /* names of tensors that say nothing to us, then of modules that the model
                           * does not have */
    size_t unknown_count, stray_count; /* in all; of the first kind */
    char *names;                       /* the pairs' */
} lora_file;

/* Rows first .. first+count-1 of a matrix += factor * rows up_first .. of B A. */
typedef struct lora_piece {
    const lora_pair *pair;
    float factor;
    int64_t first, count, up_first;
} lora_piece;

/* A matrix that files change. */
typedef struct lora_target {
    const weight_view *view; /* of the model */
    int64_t rows, columns;
    lora_piece *pieces; /* in the order of the files */
    int count;
    struct lora_target *next;
} lora_target;

typedef struct lora_set {
    const ct_allocator *allocator;
    lora_file *files;
    int count;
    lora_target *targets;
} lora_set;

/* Opens the files and checks them: every module has A and B of one rank, in F32, F16 or BF16, and
 * all numbers are finite. Other kinds of changes (DoRA, LoHa, LoKr, whole differences,
 * convolutions) are refused. threads may be NULL. */
ct_status lora_open(lora_set **out, const ct_allocator *a, pool *threads, const ct_lora *list,
                    int count, ct_error *error);
void lora_close(lora_set *s); /* NULL is allowed */

/* *out: what the files add to the matrix [rows, columns] that HF calls name, which lives as long as
 * the set; NULL where that is nothing, or all scales are 0. A change of another shape is an error.
 */
ct_status lora_match(lora_set *s, const char *name, const weight_view *view, int64_t rows,
                     int64_t columns, const lora_target **out, ct_error *error);
/* The target of a view; NULL: there is none. */
const lora_target *lora_find(const lora_set *s, const weight_view *view);
/* When all matrices were matched: fails for a file of which less than 90 % were. */
ct_status lora_check(lora_set *s, const char *model, ct_error *error);
/* A and B of a target as float32; the pages of the files that they were read from have left the
 * process. */
typedef struct lora_product {
    const ct_allocator *allocator;
    const lora_target *target;
    float *numbers;       /* of all pieces: A in panels, then those rows of B that are needed */
    const float **a, **b; /* [count] */
} lora_product;

ct_status lora_product_open(lora_product *p, const ct_allocator *a, const lora_target *target,
                            ct_error *error);
void lora_product_close(lora_product *p);
/* numbers [count, columns], rows first .. of the matrix, += the changes. Sums over the rank are in
 * its order, in float32, whatever rows are asked for at once. */
void lora_product_add(const lora_product *p, int64_t first, int64_t count, float *numbers);

/* Whether all numbers are finite and stay so in this type. */
bool lora_in_range(const float *numbers, int64_t count, dtype type);

#endif
