/* 3x3 convolutions of stride 1, Winograd's way (winograd.h): the result is cut into tiles of 4x4
 * pixels, tiles and weights are transformed to 36 positions, and at each of them a matrix product
 * over the channels does what is left, a quarter of the direct work.
 *
 * A task takes a rectangle of tiles. Their transform V stays in its scratch memory (the third-level
 * cache) while the products M of some output channels at all positions, in the second level, are
 * turned into pixels. Only the weights are read from memory, once for each task.
 *
 * No sum depends on how tiles are grouped, so a band gives the same bits as the whole picture. */
#include "nn/cpu/conv.h"
#include "nn/cpu/winograd.h"

#include <string.h>

enum { POSITIONS = WINOGRAD_POSITIONS, OUT = WINOGRAD_OUT, IN = WINOGRAD_IN };

/* Channels that are gathered and transformed at a time: those of all pixels of a task fit into the
 * second-level cache. A multiple of every kernel's step. */
#define CHUNK 32
/* V and M of a task. */
#define INPUT_BYTES (7 << 19)
#define MOST_TILES 48
#define PRODUCT_FLOATS (1 << 16)

/* ---- Weights --------------------------------------------------------------------------------- */

/* One panel of output channels, at all positions. */
static void weights_task(void *user, int64_t index, int worker)
{
    const conv *v = user;
    const int64_t nr = v->gemm->nr, count = min64(nr, v->outputs - index * nr);
    float *rows = (float *)(void *)(v->scratch + (size_t)worker * v->scratch_bytes);
    float *decoded = rows + POSITIONS * nr * CHUNK;
    memset(rows, 0, (size_t)(POSITIONS * nr * CHUNK) * sizeof(float));
    for (int64_t first = 0; first < v->words; first += CHUNK) {
        int64_t n = min64(CHUNK, v->channels - first), words = min64(CHUNK, v->words - first);
        for (int64_t i = 0; i < count; i++) {
            weight_decode(v->kernels, v->w, index * nr + i, first * 9, n * 9, decoded);
            v->kernels->winograd_weights(rows + i * CHUNK, nr * CHUNK, decoded, n);
            if (n < words)
                for (int p = 0; p < POSITIONS; p++)
                    memset(rows + (p * nr + i) * CHUNK + n, 0, (size_t)(words - n) * 4);
        }
        for (int p = 0; p < POSITIONS; p++) {
            const void *sources[GEMM_MAX_NR];
            for (int64_t i = 0; i < nr; i++)
                sources[i] = rows + (p * nr + i) * CHUNK;
            v->gemm->pack_columns(
                v->columns + ((p * v->panels + index) * v->words + first) * nr * 4, sources, words);
        }
    }
}

/* ---- A rectangle of tiles -------------------------------------------------------------------- */

typedef struct block {
    int64_t y, x, height, width; /* in tiles */
    int64_t row_panels;
    char *v;       /* [position][row panel] panels of words */
    float *m;      /* [position][tile][block_columns] */
    float *pixels; /* the input of CHUNK channels; later a tile of the result */
    float *rows;   /* [position][mr][CHUNK] */
} block;

static int64_t block_rows(const conv *v)
{
    return ceil_div(v->block_height * v->block_width, v->gemm->mr) * v->gemm->mr;
}

/* Floats from a position of M to the next. The same pixel of all positions is read at once, so
 * their distance must not be a multiple of a page: they would share a few places in the cache. */
static int64_t product_stride(const conv *v, int64_t rows)
{
    return rows * v->block_columns + 16;
}

/* Input rows (columns) of a number of tiles. Doubled ones stand in memory once: row i of the
 * doubled picture, counted from the first of the block, is row (i + 1) / 2. */
static int64_t input_length(const conv *v, int64_t tiles)
{
    return v->up ? tiles * OUT / 2 + 2 : tiles * OUT + 2;
}

static int64_t input_at(const conv *v, int64_t i)
{
    return v->up ? (i + 1) / 2 : i;
}

static block block_of_task(const conv *v, int64_t index, int worker)
{
    int64_t rows = block_rows(v), tiles_y = ceil_div(v->out_height, OUT);
    int64_t tiles_x = ceil_div(v->out_width, OUT);
    block b = {.y = index / v->blocks_x * v->block_height,
               .x = index % v->blocks_x * v->block_width};
    b.height = min64(v->block_height, tiles_y - b.y);
    b.width = min64(v->block_width, tiles_x - b.x);
    b.row_panels = ceil_div(b.height * b.width, v->gemm->mr);
    b.v = v->scratch + (size_t)worker * v->scratch_bytes;
    b.m = (float *)(void *)(b.v + POSITIONS * rows * v->words * 4);
    b.rows = b.m + POSITIONS * product_stride(v, rows);
    b.pixels = b.rows + POSITIONS * v->gemm->mr * CHUNK;
    return b;
}

/* CHUNK channels of mr tiles, from their pixels to the panels of V. */
static void transform_panel(const conv *v, const block *b, int64_t panel, int64_t first, int64_t n)
{
    const int64_t mr = v->gemm->mr, tiles = b->height * b->width, width = input_length(v, b->width);
    const int64_t words = min64(CHUNK, v->words - first);
    int64_t count = min64(mr, tiles - panel * mr);
    for (int64_t i = 0; i < count; i++) {
        int64_t y = (panel * mr + i) / b->width * OUT, x = (panel * mr + i) % b->width * OUT;
        const float *rows[IN];
        int64_t columns[IN];
        for (int64_t j = 0; j < IN; j++) {
            rows[j] = b->pixels + input_at(v, y + j) * width * n;
            columns[j] = input_at(v, x + j) * n;
        }
        v->kernels->winograd_input(b->rows + i * CHUNK, mr * CHUNK, rows, columns, n);
        if (n < words)
            for (int p = 0; p < POSITIONS; p++)
                memset(b->rows + (p * mr + i) * CHUNK + n, 0, (size_t)(words - n) * 4);
    }
    for (int p = 0; p < POSITIONS; p++) {
        const void *sources[GEMM_MAX_MR];
        for (int64_t i = 0; i < mr; i++)
            sources[i] = b->rows + (p * mr + min64(i, count - 1)) * CHUNK;
        v->gemm->pack_rows(b->v + ((p * b->row_panels + panel) * v->words + first) * mr * 4,
                           sources, words);
    }
}

static void transform_input(const conv *v, const block *b)
{
    region r = {((b->y * OUT) >> v->up) - 1, ((b->x * OUT) >> v->up) - 1,
                input_length(v, b->height), input_length(v, b->width)};
    for (int64_t first = 0; first < v->words; first += CHUNK) {
        int64_t n = min64(CHUNK, v->channels - first);
        conv_gather(v, &r, first, n, b->pixels);
        for (int64_t panel = 0; panel < b->row_panels; panel++)
            transform_panel(v, b, panel, first, n);
    }
}

/* n outputs from n0 on, of all tiles, from M to pixels. */
static void transform_output(const conv *v, const block *b, int64_t n0, int64_t n)
{
    const int64_t column = v->outputs, row = v->out_width * column;
    const int64_t stride = product_stride(v, b->row_panels * v->gemm->mr);
    for (int64_t i = 0; i < b->height * b->width; i++) {
        int64_t y = (b->y + i / b->width) * OUT, x = (b->x + i % b->width) * OUT;
        int64_t height = min64(OUT, v->out_height - y), width = min64(OUT, v->out_width - x);
        const float *m = b->m + i * v->block_columns;
        float *out = v->out + y * row + x * column + n0;
        if (height == OUT && width == OUT) {
            v->kernels->winograd_output(out, row, column, m, stride, v->bias + n0, n, v->add);
            continue;
        }
        float *tile = b->pixels;
        v->kernels->winograd_output(tile, OUT * n, n, m, stride, v->bias + n0, n, false);
        for (int64_t p = 0; p < height * width; p++) {
            float *to = out + p / width * row + p % width * column;
            const float *from = tile + (p / width * OUT + p % width) * n;
            if (v->add)
                v->kernels->add(to, from, n);
            else
                memcpy(to, from, (size_t)n * sizeof(float));
        }
    }
}

static void winograd_task(void *user, int64_t index, int worker)
{
    const conv *v = user;
    const int64_t part = index % v->parts, words = v->words, mr = v->gemm->mr;
    block b = block_of_task(v, index / v->parts, worker);
    if (v->gemm->begin)
        v->gemm->begin();
    transform_input(v, &b);
    int64_t end = min64((part + 1) * v->part_columns, v->outputs);
    for (int64_t n0 = part * v->part_columns; n0 < end; n0 += v->block_columns) {
        int64_t n = min64(v->block_columns, end - n0);
        for (int p = 0; p < POSITIONS; p++)
            conv_multiply(v, b.v + p * b.row_panels * mr * words * 4, b.row_panels, p, n0, n0 + n,
                          b.m + p * product_stride(v, b.row_panels * mr));
        transform_output(v, &b, n0, n);
    }
    if (v->gemm->end)
        v->gemm->end();
}

void conv_winograd(nn *c, conv *v)
{
    const int64_t mr = v->gemm->mr, nr = v->gemm->nr, step = v->gemm->step;
    v->positions = POSITIONS;
    v->words = ceil_div(v->channels, step) * step;
    v->panels = ceil_div(v->outputs, nr);
    int64_t tiles = min64(MOST_TILES, INPUT_BYTES / (POSITIONS * v->words * 4)) / mr * mr;
    conv_cut(v, ceil_div(v->out_height, OUT), ceil_div(v->out_width, OUT), tiles > mr ? tiles : mr);
    int64_t rows = block_rows(v), columns = PRODUCT_FLOATS / (POSITIONS * rows) / nr * nr;
    v->block_columns = min64(v->part_columns, columns > nr ? columns : nr);

    int64_t pixels = input_length(v, v->block_height) * input_length(v, v->block_width) * CHUNK;
    if (pixels < OUT * OUT * v->block_columns)
        pixels = OUT * OUT * v->block_columns;
    int64_t compute = POSITIONS * (rows * v->words + product_stride(v, rows) + mr * CHUNK) + pixels;
    int64_t pack = POSITIONS * nr * CHUNK + 9 * CHUNK;
    v->scratch_bytes = ((size_t)(compute > pack ? compute : pack) * 4 + 63) / 64 * 64;
    v->scratch = nn_scratch(c, v->scratch_bytes, (size_t)pool_threads(c->params.threads));
    v->columns = nn_scratch(c, (size_t)(POSITIONS * v->panels * v->words * nr), 4);
    cpu_run(c, v->panels, weights_task, v);
    cpu_run(c, v->blocks * v->parts, winograd_task, v);
}
