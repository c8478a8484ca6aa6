/* Cosines and sines of rotary positions on several axes, which follow one another in the features
 * of a head. What a table looks like is said first, as a list of runs of tokens: that tells tables
 * apart, so that one that was made for another picture can be used again. */
#ifndef MODELS_ROPE_H
#define MODELS_ROPE_H

#include "io/blob.h"
#include "nn/nn.h"

#define ROPE_MAX_AXES 4
#define ROPE_MAX_RUNS 16

/* Where the reference of a model rounds to float32. */
typedef enum rope_rounding {
    ROPE_FLOAT,  /* frequencies, angles and their functions */
    ROPE_ANGLES, /* angles, made in double, and their functions */
    ROPE_RESULTS /* cosines and sines */
} rope_rounding;

/* rows * columns tokens, a row after the other: that of row y and column x stands at
 * first + y * down + x * right, on each axis. */
typedef struct rope_run {
    int64_t first[ROPE_MAX_AXES], down[ROPE_MAX_AXES], right[ROPE_MAX_AXES];
    int64_t rows, columns;
} rope_run;

typedef struct rope_layout {
    int axes;
    const int64_t *dims; /* features of a head on each axis; even */
    double theta;
    rope_rounding rounding;
    int runs; /* may be more than there is room for: rope_make fails then */
    rope_run run[ROPE_MAX_RUNS];
} rope_layout;

/* Where tables stay from picture to picture. */
typedef struct rope_memory {
    void *user;
    /* In a dry run: so many numbers will be kept under this name. */
    void (*plan)(void *user, const blob_name *name, size_t count);
    /* False where there is no such table; it may have any numbers then. */
    bool (*recall)(void *user, const blob_name *name, float *table, size_t count);
    void (*keep)(void *user, const blob_name *name, const float *table, size_t count);
} rope_memory;

/* Behind the runs before; one without tokens is left out. */
void rope_add(rope_layout *l, const rope_run *run);
int64_t rope_tokens(const rope_layout *l);
/* Of all that the numbers of a table depend on. */
blob_name rope_name(const rope_layout *l);
/* The functions of all tokens, [tokens, half a head] each. */
void rope_fill(const rope_layout *l, float *cosine, float *sine);
/* The same as tensors in the network's memory, sines right behind cosines. memory: NULL makes them
 * anew. */
void rope_make(nn *c, const rope_layout *l, const rope_memory *memory, nn_tensor *cosine,
               nn_tensor *sine);

#endif
