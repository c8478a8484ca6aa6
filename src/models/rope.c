/* Neighbours have the same position on most axes: what is known is copied, since cosines and sines
 * take far longer. */
#include "models/rope.h"

#include <math.h>
#include <string.h>

void rope_add(rope_layout *l, const rope_run *run)
{
    if (run->rows <= 0 || run->columns <= 0)
        return;
    if (l->runs < ROPE_MAX_RUNS)
        l->run[l->runs] = *run;
    l->runs++;
}

int64_t rope_tokens(const rope_layout *l)
{
    int64_t tokens = 0;
    for (int i = 0; i < l->runs && i < ROPE_MAX_RUNS; i++)
        tokens += l->run[i].rows * l->run[i].columns;
    return tokens;
}

static int64_t half_head(const rope_layout *l)
{
    int64_t dims = 0;
    for (int axis = 0; axis < l->axes; axis++)
        dims += l->dims[axis];
    return dims / 2;
}

/* ---- Names ----------------------------------------------------------------------------------- */

static void add_numbers(fingerprint *f, const int64_t *numbers, int count)
{
    fingerprint_add(f, numbers, (size_t)count * sizeof *numbers);
}

blob_name rope_name(const rope_layout *l)
{
    fingerprint f;
    blob_name name = {.kind = "rope"};
    fingerprint_begin(&f);
    add_numbers(&f, (const int64_t[]){l->axes, l->rounding, l->runs}, 3);
    add_numbers(&f, l->dims, l->axes);
    fingerprint_add(&f, &l->theta, sizeof l->theta);
    for (int i = 0; i < l->runs && i < ROPE_MAX_RUNS; i++) {
        const rope_run *r = &l->run[i];
        add_numbers(&f, (const int64_t[]){r->rows, r->columns}, 2);
        add_numbers(&f, r->first, l->axes);
        add_numbers(&f, r->down, l->axes);
        add_numbers(&f, r->right, l->axes);
    }
    fingerprint_hex(&f, name.hash);
    return name;
}

/* ---- Numbers --------------------------------------------------------------------------------- */

typedef struct writer {
    const rope_layout *of;
    int64_t half;
    float *cosine, *sine; /* those of the next token */
    int64_t last[ROPE_MAX_AXES];
    bool begun; /* there is a token before, at last */
} writer;

/* The next token's functions on an axis, which begin at `at`. */
static void compute(const writer *w, int axis, int64_t at, int64_t position)
{
    const rope_layout *l = w->of;
    for (int64_t k = 0; k < l->dims[axis]; k += 2, at++) {
        if (l->rounding == ROPE_FLOAT) {
            const float exponent = (float)k / (float)l->dims[axis];
            const float angle = (float)position * (1.0f / powf((float)l->theta, exponent));
            w->cosine[at] = cosf(angle);
            w->sine[at] = sinf(angle);
            continue;
        }
        const double frequency = 1 / pow(l->theta, (double)k / (double)l->dims[axis]);
        const double angle = (double)position * frequency;
        const bool late = l->rounding == ROPE_RESULTS;
        w->cosine[at] = late ? (float)cos(angle) : cosf((float)angle);
        w->sine[at] = late ? (float)sin(angle) : sinf((float)angle);
    }
}

/* The same from the token that is `back` places before. */
static void copy(const writer *w, int64_t back, int64_t at, int64_t count)
{
    memcpy(w->cosine + at, w->cosine + at - back * w->half, (size_t)count * sizeof(float));
    memcpy(w->sine + at, w->sine + at - back * w->half, (size_t)count * sizeof(float));
}

static void add_token(writer *w, const rope_run *r, int64_t y, int64_t x)
{
    const rope_layout *l = w->of;
    int64_t at = 0;
    for (int axis = 0; axis < l->axes; at += l->dims[axis++] / 2) {
        const int64_t position = r->first[axis] + y * r->down[axis] + x * r->right[axis];
        if (w->begun && w->last[axis] == position)
            copy(w, 1, at, l->dims[axis] / 2);
        else if (y > 0 && r->down[axis] == 0)
            copy(w, r->columns, at, l->dims[axis] / 2); /* that of the token above */
        else
            compute(w, axis, at, position);
        w->last[axis] = position;
    }
    w->cosine += w->half;
    w->sine += w->half;
    w->begun = true;
}

void rope_fill(const rope_layout *l, float *cosine, float *sine)
{
    writer w = {.of = l, .half = half_head(l), .cosine = cosine, .sine = sine};
    for (int i = 0; i < l->runs && i < ROPE_MAX_RUNS; i++)
        for (int64_t y = 0; y < l->run[i].rows; y++)
            for (int64_t x = 0; x < l->run[i].columns; x++)
                add_token(&w, &l->run[i], y, x);
}

/* ---- Tensors --------------------------------------------------------------------------------- */

void rope_make(nn *c, const rope_layout *l, const rope_memory *memory, nn_tensor *cosine,
               nn_tensor *sine)
{
    const int64_t tokens = rope_tokens(l), half = half_head(l);
    if (l->runs > ROPE_MAX_RUNS)
        nn_fail(c, CT_EINTERNAL, "%d runs of positions, room for %d", l->runs, ROPE_MAX_RUNS);
    nn_tensor both = nn_new2(c, 2 * tokens, half);
    *cosine = nn_rows(&both, 0, tokens);
    *sine = nn_rows(&both, tokens, tokens);
    const blob_name name = rope_name(l);
    const size_t count = (size_t)nn_count(&both);
    if (memory && nn_is_dry(c))
        memory->plan(memory->user, &name, count);
    float *table = nn_begin_write(c, &both);
    if (table && !(memory && memory->recall(memory->user, &name, table, count))) {
        rope_fill(l, table, table + tokens * half);
        if (memory)
            memory->keep(memory->user, &name, table, count);
    }
    nn_end_write(c, &both);
}
