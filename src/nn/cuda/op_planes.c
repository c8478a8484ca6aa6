/* Latents, pictures and group norms: kernels/planes.cu. */
#include "nn/cuda/cuda.h"

#define THREADS 256
#define GROUP_THREADS 512 /* of group_sums */
#define GUIDE_BLOCKS 128

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* For kernels that loop: a number for each thread, in as many blocks as keep any GPU busy. */
static cuda_grid any_grid(int64_t count)
{
    return (cuda_grid){.x = min64((count + THREADS - 1) / THREADS, 8192), .threads = THREADS};
}

static int kind_of(const nn *c, const nn_tensor *t)
{
    return (int)cuda_kind_of(c, t);
}

/* ---- Latents --------------------------------------------------------------------------------- */

void cuda_patches(nn *c, const nn_tensor *tokens, const nn_tensor *planes, int patch,
                  bool channels_first, bool to_tokens)
{
    cu_address token = cuda_at(tokens), plane = cuda_at(planes);
    int kind = kind_of(c, tokens), direction = to_tokens, order = channels_first;
    int channels = (int)planes->n[0], height = (int)planes->n[1], width = (int)planes->n[2];
    CUDA_LAUNCH(c, patches, cuda_work_type(c), any_grid(nn_count(planes)), &token, &kind, &plane,
                &channels, &height, &width, &patch, &order, &direction);
}

void cuda_upload_planes(nn *c, const nn_tensor *picture, const float *planes, float factor,
                        float offset)
{
    const size_t mark = nn_mark(c);
    nn_tensor t = nn_new3(c, picture->n[2], picture->n[0], picture->n[1]);
    if (!cuda_idle(c))
        cuda_upload(c, &t, planes);
    cu_address at = cuda_at(picture), plane = cuda_at(&t);
    int kind = kind_of(c, picture), channels = (int)picture->n[2];
    int64_t pixels = picture->n[0] * picture->n[1];
    CUDA_LAUNCH(c, planes, cuda_work_type(c), any_grid(pixels), &at, &kind, &plane, &channels,
                &pixels, &factor, &offset);
    nn_release(c, mark);
}

typedef struct separation {
    float *planes;
    const void *picture; /* of numbers of a type */
    dtype type;
    int64_t height, width, channels;
} separation;

static float number_at(const separation *s, int64_t i)
{
    if (s->type == DTYPE_F32)
        return ((const float *)s->picture)[i];
    const uint16_t h = ((const uint16_t *)s->picture)[i];
    return s->type == DTYPE_BF16 ? bf16_to_float(h) : f16_to_float(h);
}

static void separate_row(void *user, int64_t y, int worker)
{
    const separation *s = user;
    (void)worker;
    for (int64_t ch = 0; ch < s->channels; ch++) {
        float *to = s->planes + (ch * s->height + y) * s->width;
        for (int64_t x = 0; x < s->width; x++)
            to[x] = number_at(s, (y * s->width + x) * s->channels + ch);
    }
}

/* Few bytes over the bus into pinned memory; from there the threads, which also meet the pages of a
 * new picture for the first time. */
void cuda_download_planes(nn *c, const nn_tensor *picture, float *planes)
{
    separation s = {.planes = planes,
                    .type = picture->type,
                    .height = picture->n[0],
                    .width = picture->n[1],
                    .channels = picture->n[2]};
    s.picture =
        cuda_fetch(c, cuda_at(picture), (size_t)nn_count(picture) * dtype_size(picture->type));
    if (s.picture)
        pool_run(c->params.threads, s.height, separate_row, &s);
}

void cuda_add_scaled(nn *c, const nn_tensor *x, const nn_tensor *y, float factor)
{
    cu_address to = cuda_at(x), from = cuda_at(y);
    int64_t count = nn_count(x);
    CUDA_LAUNCH(c, add_scaled, cuda_work_type(c), any_grid(count), &to, &from, &factor, &count);
}

void cuda_guide(nn *c, const nn_tensor *positive, const nn_tensor *negative, float guidance,
                bool normalize)
{
    const size_t mark = nn_mark(c);
    cu_address x = cuda_at(positive), y = cuda_at(negative);
    cu_address sums = cuda_scratch(c, 2 * GUIDE_BLOCKS * sizeof(double));
    int64_t count = nn_count(positive);
    int blocks = GUIDE_BLOCKS;
    if (!normalize)
        sums = 0;
    const cuda_grid grid = {.x = GUIDE_BLOCKS, .threads = THREADS};
    CUDA_LAUNCH(c, guide_sums, cuda_work_type(c), grid, &x, &y, &guidance, &count, &sums);
    if (normalize)
        CUDA_LAUNCH(c, guide, cuda_work_type(c), grid, &x, &count, &sums, &blocks);
    nn_release(c, mark);
}

void cuda_guide_tokens(nn *c, const nn_tensor *positive, const nn_tensor *negative, float guidance,
                       int patch)
{
    cu_address x = cuda_at(positive), y = cuda_at(negative);
    int channels = (int)positive->n[0], height = (int)positive->n[1], width = (int)positive->n[2];
    CUDA_LAUNCH(c, guide_tokens, cuda_work_type(c),
                any_grid((int64_t)height / patch * (width / patch)), &x, &y, &guidance, &channels,
                &height, &width, &patch);
}

/* ---- Group norm ------------------------------------------------------------------------------ */

void cuda_group_sums(nn *c, const nn_tensor *sums, int64_t first, const nn_tensor *x)
{
    nn_tensor rows = nn_rows(sums, first, x->n[0]);
    cu_address to = cuda_at(&rows), at = cuda_at(x);
    int kind = kind_of(c, x), width = (int)x->n[1], channels = (int)x->n[2];
    int groups = (int)(sums->n[1] / 4);
    cu_address bias = 0;
    const cuda_grid grid = {.x = x->n[0], .threads = GROUP_THREADS};
    CUDA_LAUNCH(c, group_sums, cuda_work_type(c), grid, &to, &at, &kind, &bias, &width, &channels,
                &groups);
}

void cuda_group_factors(nn *c, const nn_tensor *norm, const nn_tensor *sums, int64_t width,
                        const nn_weight *w, const nn_weight *b, double eps,
                        const nn_weight *late_bias)
{
    cu_address to = cuda_at(norm), from = cuda_at(sums);
    cu_address weight = cuda_floats(c, w), bias = cuda_floats(c, b);
    cu_address late = late_bias ? cuda_floats(c, late_bias) : 0;
    int rows = (int)sums->n[0], channels = (int)norm->n[1], groups = (int)(sums->n[1] / 4);
    double count = (double)(channels / groups) * (double)rows * (double)width;
    const cuda_grid grid = {.x = groups, .threads = THREADS};
    CUDA_LAUNCH(c, group_factors, cuda_work_type(c), grid, &to, &from, &rows, &channels, &groups,
                &count, &weight, &bias, &eps, &late);
}

/* Each block takes some rounds of 4 pixels for each of its threads, since it must load the norm. */
void cuda_gather(nn *c, const cuda_gathering *g)
{
    enum { AHEAD = 4, ROUNDS = 4 };
    cuda_gathering p = *g;
    const int64_t items = (int64_t)p.columns * p.kernel * p.kernel, lanes = p.channels / 8;
    cuda_grid grid = {.x = p.rows, .threads = THREADS};
    int64_t parts = items * p.channels / (THREADS * AHEAD * ROUNDS);
    if (p.channels % 8 == 0 && lanes <= THREADS) {
        const int64_t slots = THREADS / lanes;
        grid.threads = (int)(slots * lanes);
        parts = items / (slots * AHEAD * ROUNDS);
    }
    grid.y = parts < 1 ? 1 : min64(parts, 65535);
    CUDA_LAUNCH(c, gather, cuda_work_type(c), grid, &p.out, &p.out_kind, &p.x, &p.x_kind, &p.height,
                &p.width, &p.channels, &p.up, &p.norm, &p.with_silu, &p.first_row, &p.columns,
                &p.kernel, &p.stride, &p.pad_top, &p.pad_left);
}

void cuda_apply_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_tensor *norm)
{
    const cuda_gathering g = {.out = cuda_at(out),
                              .x = cuda_at(x),
                              .norm = cuda_at(norm),
                              .out_kind = kind_of(c, out),
                              .x_kind = kind_of(c, x),
                              .height = (int)x->n[0],
                              .width = (int)x->n[1],
                              .channels = (int)x->n[2],
                              .rows = (int)x->n[0],
                              .columns = (int)x->n[1],
                              .kernel = 1,
                              .stride = 1};
    cuda_gather(c, &g);
}
