/* Convolutions. 3x3 of stride 1 go Winograd's way (conv_winograd.c), the rest is computed directly:
 * for each output pixel the pixels under the kernel, side by side, are a row of a matrix, which
 * only exists in the panels of the product. */
#include "nn/cpu/conv.h"

#include <string.h>

/* With fewer input channels Winograd's transforms cost more than they save. */
#define WINOGRAD_MIN_CHANNELS 8
/* Rows of a direct product that one task packs. */
#define DIRECT_ROW_BYTES (1 << 20)
#define DIRECT_MOST_ROWS 256
/* Enough tasks for many threads. */
#define MIN_TASKS 12
#define MIN_PART_COLUMNS 128

/* ---- Shared by both ways --------------------------------------------------------------------- */

/* Pixels that are fetched ahead, since a few channels of each are a stride that processors do not
 * foresee. */
#define AHEAD 8

/* count pixels from x on. */
static void gather_pixels(const conv *v, const float *x, int64_t count, int64_t first, int64_t n,
                          float *out)
{
    x += first;
    if (v->factor)
        v->kernels->channel_affine(out, x, v->channels, v->factor + first, v->offset + first, count,
                                   n, true);
    else
        for (int64_t i = 0; i < count; i++) {
            const float *from = x + i * v->channels;
            for (int64_t ch = 0; ch < n; ch += 16) {
                __builtin_prefetch(from + AHEAD * v->channels + ch);
                if (ch + 16 <= n)
                    memcpy(out + i * n + ch, from + ch, 16 * sizeof(float));
                else
                    memcpy(out + i * n + ch, from + ch, (size_t)(n - ch) * sizeof(float));
            }
        }
}

void conv_gather(const conv *v, const region *r, int64_t first, int64_t n, float *out)
{
    int64_t left = r->x < 0 ? min64(-r->x, r->width) : 0;
    int64_t inside = min64(r->width, v->width - r->x) - left;
    if (inside < 0)
        inside = 0;
    int64_t right = r->width - left - inside;
    for (int64_t y = r->y; y < r->y + r->height; y++, out += r->width * n) {
        if (y < -v->above || y >= v->height + v->below) {
            memset(out, 0, (size_t)(r->width * n) * sizeof(float));
            continue;
        }
        const float *row = v->x + (y + v->above) * v->width * v->channels;
        memset(out, 0, (size_t)(left * n) * sizeof(float));
        gather_pixels(v, row + (r->x + left) * v->channels, inside, first, n, out + left * n);
        memset(out + (left + inside) * n, 0, (size_t)(right * n) * sizeof(float));
    }
}

/* A slice of a panel of columns stays in the first-level cache while all rows pass by; the rows of
 * a task (at one position) stay in the second level. The next slice, which may come from memory, is
 * fetched meanwhile. */
void conv_multiply(const conv *v, const char *a, int64_t row_panels, int position, int64_t n0,
                   int64_t n1, float *sums)
{
    const cpu_gemm *g = v->gemm;
    const int64_t mr = g->mr, nr = g->nr, words = v->words, width = v->block_columns;
    const int64_t panels = ceil_div(n1 - n0, nr), slices = ceil_div(words, g->block_words);
    const char *b = v->columns + (position * v->panels + n0 / nr) * words * nr * 4;
    for (int64_t s = 0; s < slices; s++) {
        int64_t w = s * g->block_words, part = min64(g->block_words, words - w);
        for (int64_t j = 0; j < panels; j++) {
            const char *column = b + (j * words + w) * nr * 4, *next = column + words * nr * 4;
            if (j + 1 == panels) /* past the last position is past the weights: harmless */
                next = s + 1 < slices ? b + (w + part) * nr * 4 : b + v->panels * words * nr * 4;
            for (int64_t m = 0; m < row_panels; m++)
                gemm_tile(g, part, a + (m * words + w) * mr * 4, column,
                          sums + m * mr * width + j * nr, width, w > 0, next, part * nr * 4, m,
                          row_panels);
        }
    }
}

/* What cutting into rectangles of h x w costs: rows of panels, some of them empty, and pixels that
 * are gathered more than once (gather: the cost of one in rows). */
static double cut_cost(const conv *v, int64_t height, int64_t width, int64_t h, int64_t w,
                       double gather)
{
    const int64_t count_y[2] = {height / h, height % h > 0}, size_y[2] = {h, height % h};
    const int64_t count_x[2] = {width / w, width % w > 0}, size_x[2] = {w, width % w};
    const int64_t unit = v->positions > 1 ? 4 : v->stride, halo = v->kernel - 1, mr = v->gemm->mr;
    double cost = 0;
    for (int i = 0; i < 4; i++) {
        int64_t y = size_y[i / 2], x = size_x[i % 2];
        double pixels = (double)((y * unit + halo) * (x * unit + halo));
        cost += (double)(count_y[i / 2] * count_x[i % 2]) *
                ((double)(ceil_div(y * x, mr) * mr) + gather * pixels);
    }
    return cost;
}

void conv_cut(conv *v, int64_t height, int64_t width, int64_t most)
{
    const int64_t nr = v->gemm->nr;
    const double gather = (v->positions > 1 ? 1.0 : 4.0) / (double)(v->panels * nr);
    double best = 0;
    for (int64_t w = 1; w <= min64(most, width); w++) {
        int64_t h = min64(most / w, height);
        double cost = cut_cost(v, height, width, h, w, gather);
        if (w == 1 || cost < best) {
            best = cost;
            v->block_height = h;
            v->block_width = w;
        }
    }
    v->blocks_x = ceil_div(width, v->block_width);
    v->blocks = v->blocks_x * ceil_div(height, v->block_height);
    v->parts = 1;
    while (v->blocks * v->parts < MIN_TASKS && v->outputs / v->parts >= 2 * MIN_PART_COLUMNS)
        v->parts *= 2;
    v->part_columns = ceil_div(v->panels, v->parts) * nr;
}

/* ---- The direct way -------------------------------------------------------------------------- */

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The rows of the product: words of k for each position of the kernel. */
static int64_t tap_words(const conv *v)
{
    return ceil_div(v->channels, v->gemm->step) * v->gemm->step;
}

/* A panel of weights from [channel][tap] to [tap][channel]. */
static void direct_weights_task(void *user, int64_t index, int worker)
{
    const conv *v = user;
    const int64_t nr = v->gemm->nr, words = tap_words(v), taps = v->kernel * v->kernel;
    float *rows = (float *)(void *)(v->scratch + (size_t)worker * v->scratch_bytes);
    float *decoded = rows + nr * v->words;
    const void *sources[GEMM_MAX_NR];
    memset(rows, 0, (size_t)(nr * v->words) * sizeof(float));
    for (int64_t i = 0; i < nr; i++) {
        float *row = rows + i * v->words;
        sources[i] = row;
        if (index * nr + i >= v->outputs)
            continue;
        weight_decode(v->kernels, v->w, index * nr + i, 0, v->channels * taps, decoded);
        for (int64_t ch = 0; ch < v->channels; ch++)
            for (int64_t t = 0; t < taps; t++)
                row[t * words + ch] = decoded[ch * taps + t];
    }
    v->gemm->pack_columns(v->columns + index * v->words * nr * 4, sources, v->words);
}

/* The part of the input under a rectangle of the result. */
static region direct_region(const conv *v, int64_t y, int64_t x, int64_t h, int64_t w)
{
    region r = {(y * v->stride - v->pad) >> v->up, (x * v->stride - v->pad) >> v->up, 0, 0};
    r.height = (((y + h - 1) * v->stride + v->kernel - 1 - v->pad) >> v->up) - r.y + 1;
    r.width = (((x + w - 1) * v->stride + v->kernel - 1 - v->pad) >> v->up) - r.x + 1;
    return r;
}

static void direct_pack(const conv *v, const region *r, const float *pixels, int64_t y0, int64_t x0,
                        int64_t h, int64_t w, char *a)
{
    const int64_t mr = v->gemm->mr, words = tap_words(v);
    for (int64_t m = 0; m < h * w; m += mr)
        for (int t = 0; t < v->kernel * v->kernel; t++) {
            const void *rows[GEMM_MAX_MR];
            for (int64_t i = 0; i < mr; i++) {
                int64_t at = min64(m + i, h * w - 1);
                int64_t y = (y0 + at / w) * v->stride - v->pad + t / v->kernel;
                int64_t x = (x0 + at % w) * v->stride - v->pad + t % v->kernel;
                rows[i] = pixels + (((y >> v->up) - r->y) * r->width + (x >> v->up) - r->x) * words;
            }
            v->gemm->pack_rows(a + (m * v->words + t * words * mr) * 4, rows, words);
        }
}

static void direct_task(void *user, int64_t index, int worker)
{
    const conv *v = user;
    const int64_t words = tap_words(v), mr = v->gemm->mr;
    const int64_t block = index / v->parts, part = index % v->parts;
    int64_t y0 = block / v->blocks_x * v->block_height, x0 = block % v->blocks_x * v->block_width;
    int64_t h = min64(v->block_height, v->out_height - y0);
    int64_t w = min64(v->block_width, v->out_width - x0);
    int64_t all = v->block_height * v->block_width, rows = ceil_div(all, mr) * mr;
    char *a = v->scratch + (size_t)worker * v->scratch_bytes;
    float *sums = (float *)(void *)(a + rows * v->words * 4);
    float *pixels = sums + rows * v->block_columns;

    region r = direct_region(v, y0, x0, h, w);
    conv_gather(v, &r, 0, v->channels, pixels);
    /* Zeros behind the channels, from the last pixel on. */
    if (words > v->channels)
        for (int64_t i = r.height * r.width - 1; i >= 0; i--) {
            memmove(pixels + i * words, pixels + i * v->channels,
                    (size_t)v->channels * sizeof(float));
            memset(pixels + i * words + v->channels, 0,
                   (size_t)(words - v->channels) * sizeof(float));
        }
    if (v->gemm->begin)
        v->gemm->begin();
    direct_pack(v, &r, pixels, y0, x0, h, w, a);
    int64_t end = min64((part + 1) * v->part_columns, v->outputs);
    for (int64_t n0 = part * v->part_columns; n0 < end; n0 += v->block_columns) {
        int64_t n = min64(v->block_columns, end - n0);
        conv_multiply(v, a, ceil_div(h * w, mr), 0, n0, n0 + n, sums);
        for (int64_t i = 0; i < h * w; i++) {
            float *row = sums + i * v->block_columns;
            float *out = v->out + ((y0 + i / w) * v->out_width + x0 + i % w) * v->outputs + n0;
            v->kernels->add(row, v->bias + n0, n);
            if (v->add)
                v->kernels->add(out, row, n);
            else
                memcpy(out, row, (size_t)n * sizeof(float));
        }
    }
    if (v->gemm->end)
        v->gemm->end();
}

void conv_direct(nn *c, conv *v)
{
    const int64_t mr = v->gemm->mr, nr = v->gemm->nr, taps = v->kernel * v->kernel;
    v->positions = 1;
    v->words = taps * tap_words(v);
    v->panels = ceil_div(v->outputs, nr);
    int64_t rows = min64(DIRECT_MOST_ROWS, DIRECT_ROW_BYTES / (v->words * 4)) / mr * mr;
    conv_cut(v, v->out_height, v->out_width, most(rows, mr));
    v->block_columns = min64(v->part_columns, v->gemm->block_columns);
    rows = ceil_div(v->block_height * v->block_width, mr) * mr;
    region r = direct_region(v, 1, 1, v->block_height, v->block_width);
    int64_t compute =
        rows * (v->words + v->block_columns) + (r.height + 1) * (r.width + 1) * tap_words(v);
    int64_t pack = nr * v->words + v->channels * taps;
    v->scratch_bytes = ((size_t)most(compute, pack) * 4 + 63) / 64 * 64;
    v->scratch = nn_scratch(c, v->scratch_bytes, (size_t)pool_threads(c->params.threads));
    v->columns = nn_scratch(c, (size_t)(v->panels * v->words * nr), 4);
    cpu_run(c, v->panels, direct_weights_task, v);
    cpu_run(c, v->blocks * v->parts, direct_task, v);
}

/* ---- The operation --------------------------------------------------------------------------- */

void cpu_conv2d(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                const nn_weight *bias, const nn_conv *params)
{
    size_t mark = nn_mark(c);
    const nn_tensor in = params->pixel_norm ? cpu_pixel_norm(c, x, params->pixel_norm) : *x;
    conv v = {
        .kernels = c->params.kernels,
        .gemm = c->params.kernels->gemm[CPU_F32],
        .w = w,
        .bias = cpu_floats(c, bias),
        .x = in.data,
        .height = x->n[0] - params->above - params->below,
        .width = x->n[1],
        .channels = x->n[2],
        .above = params->above,
        .below = params->below,
        .out = out->data,
        .out_height = out->n[0],
        .out_width = out->n[1],
        .outputs = out->n[2],
        .kernel = (int)w->n[2],
        .stride = params->stride,
        .pad = params->pad_bottom_right ? 0 : (int)(w->n[2] / 2),
        .up = params->upsample ? 1 : 0,
        .add = params->add,
    };
    if (params->norm && params->norm->data) {
        v.factor = params->norm->data;
        v.offset = v.factor + v.channels;
    }
    if (v.kernel == 3 && v.stride == 1 && v.pad == 1 && v.channels >= WINOGRAD_MIN_CHANNELS)
        conv_winograd(c, &v);
    else
        conv_direct(c, &v);
    nn_release(c, mark);
}
