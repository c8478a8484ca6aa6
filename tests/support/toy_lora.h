/* Models of a few matrices, and LoRA files for them, that are made when a test asks for them. */
#ifndef TOY_LORA_H
#define TOY_LORA_H

#include "test_support.h"

#include "io/lora.h"
#include "models/bind.h"

#define TOY_MOST 32
#define TOY_RANK 3
#define TOY_MODULE "transformer_blocks.0.attn.to_out.0"

/* Where the files are; made and removed with a group of tests. */
extern test_folder toy_folder;
int toy_set_up(void **state);
int toy_tear_down(void **state);

/* ---- Files ----------------------------------------------------------------------------------- */

/* A tensor to be written; its numbers follow from the seed. */
typedef struct toy_tensor {
    char name[200];
    dtype type;
    int rank;
    int64_t shape[4];
    uint32_t seed;
    float scale; /* of the numbers, which are in -scale .. scale; or, with rank 0, the number */
} toy_tensor;

typedef struct toy_tensors {
    toy_tensor list[4 * TOY_MOST];
    int count;
} toy_tensors;

int64_t toy_count(const toy_tensor *t);
/* Freed with free. */
float *toy_numbers(const toy_tensor *t);
/* Matrices of rank 2 in F32, whose numbers are in -1 .. 1. */
toy_tensor *toy_add(toy_tensors *f, const char *name, int64_t rows, int64_t columns, uint32_t seed);
/* The two matrices of a module; returns the first. */
toy_tensor *toy_add_pair(toy_tensors *f, const char *module, int64_t rows, int64_t columns,
                         uint32_t seed);
toy_tensor *toy_add_number(toy_tensors *f, const char *name, float number);
/* One matrix, that of TOY_MODULE. */
toy_tensors toy_matrix(int64_t rows, int64_t columns);
/* To a file of this name; returns its path. metadata: of PEFT; NULL: none. */
const char *toy_write_with(const toy_tensors *f, const char *name, const char *metadata);
const char *toy_write(const toy_tensors *f, const char *name);

/* ---- Models ---------------------------------------------------------------------------------- */

/* Matrices that are bound, with LoRAs in them. */
typedef struct toy_model {
    weights *source;
    lora_set *loras;
    bind_memory memory;
    nn_weight w[TOY_MOST];
    int count;
} toy_model;

/* Binds the matrices of a file by these names and shapes, with LoRAs. Is closed after failures,
 * too. */
ct_status toy_open(toy_model *m, const ct_allocator *a, const char *path, const toy_tensors *names,
                   const ct_lora *list, int count, pool *threads, ct_error *error);
void toy_close(toy_model *m, const ct_allocator *a);
/* The model that these tensors are, which must open. */
void toy_with_loras(toy_model *m, const toy_tensors *names, const ct_lora *list, int count);
void toy_with_lora(toy_model *m, const toy_tensors *names, const char *path, double scale);
/* Fails the test unless opening fails like this; part: of the message. */
void toy_refused(const toy_tensors *names, const ct_lora *lora, ct_status expected,
                 const char *part);

/* The numbers of a matrix; freed with free. */
float *toy_decoded(const nn_weight *w);
void toy_assert_same(const toy_model *a, const toy_model *b);
/* The relative L2 distance of a matrix from w + factor * b a, in double. */
double toy_distance(const nn_weight *w, const toy_tensor *base, const toy_tensor *a,
                    const toy_tensor *b, double factor);

#endif
