/* Neighbours have the same position on most axes: what is known is copied, since cosines and sines
 * take far longer. */
#include "models/rope.h"

#include <math.h>
#include <string.h>

static int64_t half_head(const rope_table *t)
{
    int64_t dims = 0;
    for (int axis = 0; axis < t->axes; axis++)
        dims += t->dims[axis];
    return dims / 2;
}

/* The next token's functions on an axis, which begin at `at`. */
static void compute(const rope_table *t, int axis, int64_t at, int64_t position)
{
    for (int64_t k = 0; k < t->dims[axis]; k += 2, at++) {
        if (t->rounding == ROPE_FLOAT) {
            const float exponent = (float)k / (float)t->dims[axis];
            const float angle = (float)position * (1.0f / powf((float)t->theta, exponent));
            t->cosine[at] = cosf(angle);
            t->sine[at] = sinf(angle);
            continue;
        }
        const double frequency = 1 / pow(t->theta, (double)k / (double)t->dims[axis]);
        const double angle = (double)position * frequency;
        const bool late = t->rounding == ROPE_RESULTS;
        t->cosine[at] = late ? (float)cos(angle) : cosf((float)angle);
        t->sine[at] = late ? (float)sin(angle) : sinf((float)angle);
    }
}

/* The same from the token that is `back` places before. */
static void copy(const rope_table *t, int64_t back, int64_t half, int64_t at, int64_t count)
{
    memcpy(t->cosine + at, t->cosine + at - back * half, (size_t)count * sizeof(float));
    memcpy(t->sine + at, t->sine + at - back * half, (size_t)count * sizeof(float));
}

static void advance(rope_table *t, const int64_t *position, int64_t half)
{
    memcpy(t->last, position, (size_t)t->axes * sizeof *position);
    t->cosine += half;
    t->sine += half;
    t->count++;
}

void rope_add(rope_table *t, const int64_t *position)
{
    const int64_t half = half_head(t);
    int64_t at = 0;
    for (int axis = 0; axis < t->axes; at += t->dims[axis++] / 2)
        if (t->count > 0 && t->last[axis] == position[axis])
            copy(t, 1, half, at, t->dims[axis] / 2);
        else
            compute(t, axis, at, position[axis]);
    advance(t, position, half);
}

void rope_add_grid(rope_table *t, const int64_t *position, int down, int64_t rows, int64_t columns)
{
    const int64_t half = half_head(t);
    int64_t at[ROPE_MAX_AXES], down_at = 0;
    memcpy(at, position, (size_t)t->axes * sizeof *at);
    for (int axis = 0; axis < down; axis++)
        down_at += t->dims[axis] / 2;
    for (int64_t y = 0; y < rows; y++)
        for (int64_t x = 0; x < columns; x++) {
            at[down] = position[down] + y;
            at[down + 1] = position[down + 1] + x;
            if (y == 0 || x == 0) {
                rope_add(t, at);
                continue;
            }
            copy(t, columns, half, 0, half); /* all but the row is that of the token above */
            copy(t, 1, half, down_at, t->dims[down] / 2);
            advance(t, at, half);
        }
}
