/* Cosines and sines of rotary positions on several axes, token after token: once for a prompt and
 * size. The axes follow one another in the features of a head. */
#ifndef MODELS_ROPE_H
#define MODELS_ROPE_H

#include <stdbool.h>
#include <stdint.h>

#define ROPE_MAX_AXES 4

/* Where the reference of a model rounds to float32. */
typedef enum rope_rounding {
    ROPE_FLOAT,  /* frequencies, angles and their functions */
    ROPE_ANGLES, /* angles, made in double, and their functions */
    ROPE_RESULTS /* cosines and sines */
} rope_rounding;

typedef struct rope_table {
    int axes;
    const int64_t *dims; /* features of a head on each axis; even */
    double theta;
    rope_rounding rounding;
    float *cosine, *sine;               /* those of the next token, half a head each */
    int64_t last[ROPE_MAX_AXES], count; /* position of the token before it; tokens so far */
} rope_table;

/* A token at position[axes]. */
void rope_add(rope_table *t, const int64_t *position);
/* rows * columns tokens, a row after the other. The first is at position; `down` is the axis on
 * which rows are counted, the next one that of columns. */
void rope_add_grid(rope_table *t, const int64_t *position, int down, int64_t rows, int64_t columns);

#endif
