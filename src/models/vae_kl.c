/* AutoencoderKL (https://arxiv.org/abs/2112.10752; diffusers AutoencoderKL).
 *
 * decode: conv_in, mid (resnet, attention, resnet), blocks (resnets, doubling), norm, conv_out
 * encode: conv_in, blocks (resnets, halving), mid, norm, conv_out
 *
 * Tensors are large here, so each stage replaces its input: it is made above it in the arena and
 * then moved down in its place (replace). Where even that is too much, the decoder works in bands
 * of rows (see "Strips"). */
#include "models/vae_kl.h"

#define EPS 1e-6 /* of every group norm */

/* ---- Parts ----------------------------------------------------------------------------------- */

/* The factors of a group norm over x from its sums. late_bias: nn_group_factors. */
static nn_tensor norm_from(nn *c, const nn_tensor *x, const nn_tensor *sums, const nn_weight *w,
                           const nn_weight *b, const nn_weight *late_bias)
{
    nn_tensor norm = nn_new2(c, 2, x->n[2]);
    nn_group_factors(c, &norm, sums, x->n[1], w, b, EPS, late_bias);
    return norm;
}

/* The same where there are no sums yet. */
static nn_tensor norm_of(nn *c, const vae_kl *m, const nn_tensor *x, const nn_weight *w,
                         const nn_weight *b)
{
    nn_tensor norm = nn_new2(c, 2, x->n[2]);
    size_t mark = nn_mark(c);
    nn_tensor sums = nn_new_sums(c, x->n[0], m->groups);
    nn_group_sums(c, &sums, 0, x);
    nn_group_factors(c, &norm, &sums, x->n[1], w, b, EPS, NULL);
    nn_release(c, mark);
    return norm;
}

/* x, made at mark, by a convolution; sums, of the rows of the result or more, get its own. The
 * smaller of the two is moved: the result down to mark, or x out of its way. */
static nn_tensor convolved(nn *c, size_t mark, const nn_tensor *x, int64_t height, int64_t width,
                           const nn_weight *w, const nn_weight *bias, const nn_tensor *sums,
                           nn_conv p)
{
    const nn_tensor rows = nn_rows(sums, 0, height);
    p.sums = &rows;
    if (height * width * w->n[0] < nn_count(x)) {
        nn_tensor y = nn_new_work3(c, height, width, w->n[0]);
        nn_conv2d(c, &y, x, w, bias, &p);
        return nn_keep(c, mark, &y);
    }
    nn_release(c, mark);
    nn_tensor y = nn_new_work3(c, height, width, w->n[0]);
    const size_t behind = nn_mark(c);
    nn_tensor from = nn_new_work3(c, x->n[0], x->n[1], x->n[2]);
    nn_copy(c, &from, x);
    nn_conv2d(c, &y, &from, w, bias, &p);
    nn_release(c, behind);
    return y;
}

/* The shortcut of x over x itself, which has as many channels or more: some rows at a time. On a
 * GPU, whose numbers have 16 bits, few rows do not keep it busy; the convolution that follows
 * takes more memory than these. */
static nn_tensor shortcut_in_place(nn *c, const vae_resnet *r, const nn_tensor *x)
{
    const int64_t piece = x->type == DTYPE_F32 ? 16 : 256;
    nn_tensor y = *x;
    y.n[2] = r->out;
    for (int64_t row = 0; row < x->n[0]; row += piece) {
        size_t mark = nn_mark(c);
        int64_t count = x->n[0] - row < piece ? x->n[0] - row : piece;
        nn_tensor from = nn_rows(x, row, count), to = nn_rows(&y, row, count);
        nn_tensor part = nn_new_work3(c, count, x->n[1], r->out);
        nn_conv2d(c, &part, &from, &r->shortcut, &r->shortcut_bias, NULL);
        nn_copy(c, &to, &part);
        nn_release(c, mark);
    }
    return y;
}

/* x, which was made at mark, is replaced, and so are its sums. */
static nn_tensor resnet(nn *c, const vae_resnet *r, size_t mark, nn_tensor x,
                        const nn_tensor *all_sums)
{
    const bool grows = r->out > r->in;
    const nn_tensor sums = nn_rows(all_sums, 0, x.n[0]);
    nn_tensor y = x;
    if (grows)
        y = nn_new_work3(c, x.n[0], x.n[1], r->out);
    size_t temporary = nn_mark(c);
    nn_tensor h = nn_new_work3(c, x.n[0], x.n[1], r->out);
    nn_tensor norm = norm_from(c, &x, &sums, &r->norm1, &r->norm1_bias, NULL);
    nn_conv2d(c, &h, &x, &r->conv1, &r->conv1_bias,
              &(nn_conv){.norm = &norm, .sums = &sums, .late_bias = true});
    norm = norm_from(c, &h, &sums, &r->norm2, &r->norm2_bias, &r->conv1_bias);
    if (grows)
        nn_conv2d(c, &y, &x, &r->shortcut, &r->shortcut_bias, NULL);
    else if (nn_has(&r->shortcut))
        y = shortcut_in_place(c, r, &x);
    nn_conv2d(c, &y, &h, &r->conv2, &r->conv2_bias,
              &(nn_conv){.norm = &norm, .add = true, .sums = &sums});
    nn_release(c, temporary);
    return nn_keep(c, mark, &y);
}

/* One head over all pixels. x changes, and its sums with it. */
static void attention(nn *c, const vae_attention *a, const nn_tensor *x, const nn_tensor *all_sums)
{
    const nn_tensor sums = nn_rows(all_sums, 0, x->n[0]);
    const int64_t pixels = x->n[0] * x->n[1], channels = x->n[2];
    size_t mark = nn_mark(c);
    nn_tensor normed = nn_new_work3(c, x->n[0], x->n[1], channels);
    nn_tensor norm = norm_from(c, x, &sums, &a->norm, &a->norm_bias, NULL);
    nn_apply_norm(c, &normed, x, &norm);
    nn_tensor h = nn_as2(c, &normed, pixels, channels), total = nn_as2(c, x, pixels, channels);
    nn_tensor q = nn_new_work2(c, pixels, channels), k = nn_new_work2(c, pixels, channels);
    nn_tensor v = nn_new_work2(c, pixels, channels);
    nn_linear(c, &q, &h, &a->q, &(nn_epilogue){.bias = &a->q_bias});
    nn_linear(c, &k, &h, &a->k, &(nn_epilogue){.bias = &a->k_bias});
    nn_linear(c, &v, &h, &a->v, &(nn_epilogue){.bias = &a->v_bias});
    nn_attention(c, &h, &q, &k, &v, 1, 1, false);
    nn_linear(c, &total, &h, &a->out, &(nn_epilogue){.bias = &a->out_bias, .add = true});
    nn_group_sums(c, &sums, 0, x);
    nn_release(c, mark);
}

static nn_tensor mid_block(nn *c, const vae_kl *m, const vae_stack *s, size_t mark, nn_tensor x,
                           const nn_tensor *sums)
{
    x = resnet(c, &s->mid[0], mark, x, sums);
    if (m->mid_attention)
        attention(c, &s->attention, &x, sums);
    return resnet(c, &s->mid[1], mark, x, sums);
}

/* ---- Strips ---------------------------------------------------------------------------------- */

/* At the largest sizes the decoder can work in bands of rows. A group norm needs the whole picture
 * before its first result, so a resnet takes several passes over the bands, and what one pass does
 * not store the next computes again:
 *
 *     first of a block    its input (the doubled picture, twice the channels) is never stored:
 *                         1. input: sums of the first norm
 *                         2. input, conv1, stored where the result will be: sums of the second norm
 *                         3. input, shortcut, conv2: the result
 *     the others          1. conv1: sums of the second norm
 *                         2. conv1, conv2, added to the input in place
 *
 * Bands begin at multiples of 4 rows, where convolutions give the bits of the whole (nn.h), and
 * sums of norms are by rows, so nothing depends on their height. */

typedef struct band {
    int64_t first, end, height; /* rows first .. end-1 of height */
} band;

/* The next of rows rows; the first one if b->end is 0. */
static bool next_band(band *b, int64_t rows)
{
    b->first = b->end;
    b->end = b->end + rows < b->height ? b->end + rows : b->height;
    return b->first < b->height;
}

/* Rows first .. first+count-1 of a picture; memory has room for more. */
typedef struct window {
    nn_tensor memory;
    int64_t first, count;
} window;

static window window_new(nn *c, int64_t rows, int64_t width, int64_t channels)
{
    return (window){.memory = nn_new_work3(c, rows, width, channels)};
}

static window window_of(const nn_tensor *t)
{
    return (window){.memory = *t, .count = t->n[0]};
}

static nn_tensor window_rows(const window *w, int64_t first, int64_t end)
{
    return nn_rows(&w->memory, first - w->first, end - first);
}

/* Drops the rows above first. */
static void window_move(nn *c, window *w, int64_t first)
{
    int64_t count = w->first + w->count - first;
    if (first > w->first && count > 0) {
        nn_tensor to = nn_rows(&w->memory, 0, count);
        nn_tensor from = window_rows(w, first, first + count);
        nn_copy(c, &to, &from);
    }
    w->first = first;
    w->count = count;
}

/* Where the rows up to end come from that are not there yet; they are there afterwards. */
static nn_tensor window_grow(window *w, int64_t end)
{
    nn_tensor rows = window_rows(w, w->first + w->count, end);
    w->count = end - w->first;
    return rows;
}

/* The rows of a band of a convolution; x has its neighbours too. */
static void conv_band(nn *c, const nn_tensor *out, const window *x, band b, const nn_weight *w,
                      const nn_weight *bias, nn_conv p)
{
    const int64_t scale = p.upsample ? 2 : 1;
    p.above = b.first > 0;
    p.below = b.end < b.height;
    nn_tensor rows = window_rows(x, b.first / scale - p.above, b.end / scale + p.below);
    nn_conv2d(c, out, &rows, w, bias, &p);
}

/* The input of a block: x, or x after the change of size of the block before. */
typedef struct source {
    const nn_tensor *x;
    const nn_weight *resize, *resize_bias; /* resize may be NULL */
} source;

static void source_band(nn *c, const source *s, const nn_tensor *out, band b)
{
    window x = window_of(s->x);
    if (s->resize) {
        conv_band(c, out, &x, b, s->resize, s->resize_bias, (nn_conv){.upsample = true});
    } else {
        nn_tensor rows = window_rows(&x, b.first, b.end);
        nn_copy(c, out, &rows);
    }
}

typedef struct strips {
    const vae_kl *m;
    int64_t height, width, rows; /* of a band: rows, a multiple of 4 */
    nn_tensor sums;              /* of the picture between the blocks that are computed as a whole;
                                  * they hold where summed */
    bool summed;
    void (*unit_done)(void *user, int unit);
    void *user;
    int *unit;
} strips;

static void unit_done(nn *c, const strips *s)
{
    if (s->unit_done && !nn_stopped(c))
        s->unit_done(s->user, (*s->unit)++);
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* y, the result, is also where conv1's is stored in between. */
static void first_resnet_strips(nn *c, const strips *s, const vae_resnet *r, const source *in,
                                const nn_tensor *y)
{
    const window whole = window_of(y);
    size_t mark = nn_mark(c);
    nn_tensor norm1 = nn_new2(c, 2, r->in), norm2 = nn_new2(c, 2, r->out);
    nn_tensor sums = nn_new_sums(c, s->height, s->m->groups);
    const size_t bands = nn_mark(c);

    window u = window_new(c, min64(s->rows, s->height), s->width, r->in);
    for (band b = {.height = s->height}; next_band(&b, s->rows);) {
        nn_tensor rows = window_rows(&u, 0, b.end - b.first);
        source_band(c, in, &rows, b);
        nn_group_sums(c, &sums, b.first, &rows);
        unit_done(c, s);
    }
    nn_group_factors(c, &norm1, &sums, s->width, &r->norm1, &r->norm1_bias, EPS, NULL);
    nn_release(c, bands);

    /* A row of the input above the band, and four below, since it comes by fours. */
    u = window_new(c, min64(s->rows + 5, s->height), s->width, r->in);
    for (band b = {.height = s->height}; next_band(&b, s->rows);) {
        window_move(c, &u, max64(b.first - 1, 0));
        band more = {u.first + u.count, min64(b.end + 4, s->height), s->height};
        if (more.first < more.end) {
            nn_tensor rows = window_grow(&u, more.end);
            source_band(c, in, &rows, more);
        }
        nn_tensor h = window_rows(&whole, b.first, b.end);
        conv_band(c, &h, &u, b, &r->conv1, &r->conv1_bias, (nn_conv){.norm = &norm1});
        nn_group_sums(c, &sums, b.first, &h);
        unit_done(c, s);
    }
    nn_group_factors(c, &norm2, &sums, s->width, &r->norm2, &r->norm2_bias, EPS, NULL);
    nn_release(c, bands);

    /* The rows of conv1 are saved before the result takes their place. */
    u = window_new(c, min64(s->rows, s->height), s->width, r->in);
    window h = window_new(c, min64(s->rows + 2, s->height), s->width, r->out);
    for (band b = {.height = s->height}; next_band(&b, s->rows);) {
        window_move(c, &h, max64(b.first - 1, 0));
        int64_t have = h.first + h.count, end = min64(b.end + 1, s->height);
        if (have < end) {
            nn_tensor from = window_rows(&whole, have, end), to = window_grow(&h, end);
            nn_copy(c, &to, &from);
        }
        nn_tensor input = window_rows(&u, 0, b.end - b.first);
        nn_tensor out = window_rows(&whole, b.first, b.end);
        source_band(c, in, &input, b);
        if (nn_has(&r->shortcut))
            nn_conv2d(c, &out, &input, &r->shortcut, &r->shortcut_bias, NULL);
        else
            nn_copy(c, &out, &input);
        conv_band(c, &out, &h, b, &r->conv2, &r->conv2_bias,
                  (nn_conv){.norm = &norm2, .add = true});
        unit_done(c, s);
    }
    nn_release(c, mark);
}

/* In place. */
static void resnet_strips(nn *c, const strips *s, const vae_resnet *r, const nn_tensor *x)
{
    const window whole = window_of(x);
    size_t mark = nn_mark(c);
    nn_tensor norm1 = norm_of(c, s->m, x, &r->norm1, &r->norm1_bias), norm2 = nn_new2(c, 2, r->out);
    nn_tensor sums = nn_new_sums(c, s->height, s->m->groups);
    /* Conv1 is four rows ahead of the result, so it always reads what is not yet replaced. */
    window h = window_new(c, min64(s->rows + 5, s->height), s->width, r->out);
    for (band b = {.height = s->height}; next_band(&b, s->rows);) {
        nn_tensor rows = window_rows(&h, 0, b.end - b.first);
        conv_band(c, &rows, &whole, b, &r->conv1, &r->conv1_bias, (nn_conv){.norm = &norm1});
        nn_group_sums(c, &sums, b.first, &rows);
        unit_done(c, s);
    }
    nn_group_factors(c, &norm2, &sums, s->width, &r->norm2, &r->norm2_bias, EPS, NULL);
    for (band b = {.height = s->height}; next_band(&b, s->rows);) {
        window_move(c, &h, max64(b.first - 1, 0));
        band more = {h.first + h.count, min64(b.end + 4, s->height), s->height};
        if (more.first < more.end) {
            nn_tensor rows = window_grow(&h, more.end);
            conv_band(c, &rows, &whole, more, &r->conv1, &r->conv1_bias, (nn_conv){.norm = &norm1});
        }
        nn_tensor out = window_rows(&whole, b.first, b.end);
        conv_band(c, &out, &h, b, &r->conv2, &r->conv2_bias,
                  (nn_conv){.norm = &norm2, .add = true});
        unit_done(c, s);
    }
    nn_release(c, mark);
}

/* ---- The two ways ---------------------------------------------------------------------------- */

/* Rows of a band at the size of the picture that a block of the decoder makes, or 0 where the block
 * is computed as a whole. */
static int64_t band_rows(const vae_kl *m, const vae_decoding *d, int block)
{
    const int last = m->blocks - 1;
    if (d->strip_rows < 1)
        return 0;
    /* What the last block takes in any case: its input and its result. Others are cut into bands
     * only where they would take more. */
    const vae_resnet *r = &m->decoder.block[block].resnet[0],
                     *end = &m->decoder.block[last].resnet[0];
    const int64_t pixels = d->height * d->width;
    int64_t least =
        ((pixels << 2 * last) * end->out) + (last ? (pixels << 2 * (last - 1)) : pixels) * end->in;
    int64_t whole = (pixels << 2 * block) * (r->in + r->out + (r->out > r->in ? r->out : 0));
    int64_t rows = ((int64_t)d->strip_rows << block) + 3;
    if (block < last && whole <= least)
        return 0;
    return rows - rows % 4;
}

/* The same in pixels of latents that are not packed. */
static vae_decoding unpacked(const vae_kl *m, const vae_decoding *d)
{
    vae_decoding u = *d;
    u.height *= m->patch;
    u.width *= m->patch;
    u.strip_rows *= m->patch;
    return u;
}

int vae_kl_decode_units(const vae_kl *m, const vae_decoding *outside)
{
    const vae_decoding u = unpacked(m, outside), *d = &u;
    int64_t units = 1; /* the mid block */
    for (int i = 0; i < m->blocks; i++) {
        int64_t rows = band_rows(m, d, i), height = d->height << i;
        int64_t passes = 3 + 2 * (m->decoder.block[i].resnets - 1);
        units += rows ? passes * ((height + rows - 1) / rows) : 1;
    }
    return (int)(units + 1); /* the output */
}

/* A block of the decoder; x, which was made at mark, is replaced. */
static nn_tensor up_block(nn *c, strips *s, int i, size_t mark, nn_tensor x)
{
    const vae_stack *stack = &s->m->decoder;
    const vae_block *k = &stack->block[i], *before = i ? k - 1 : NULL;
    if (s->rows) {
        nn_tensor y = nn_new_work3(c, s->height, s->width, k->resnet[0].out);
        source in = {&x, before ? &before->resize : NULL, before ? &before->resize_bias : NULL};
        first_resnet_strips(c, s, &k->resnet[0], &in, &y);
        y = nn_keep(c, mark, &y);
        for (int j = 1; j < k->resnets; j++)
            resnet_strips(c, s, &k->resnet[j], &y);
        s->summed = false;
        return y;
    }
    if (before) {
        x = convolved(c, mark, &x, s->height, s->width, &before->resize, &before->resize_bias,
                      &s->sums, (nn_conv){.upsample = true});
        s->summed = true;
        nn_trace_tensor(c, &x, "vae.decoder.up_blocks.%d", i - 1);
    }
    for (int j = 0; j < k->resnets; j++)
        x = resnet(c, &k->resnet[j], mark, x, &s->sums);
    unit_done(c, s);
    return x;
}

/* Norm, SiLU, convolution. sums: those of x, or NULL. */
static nn_tensor output(nn *c, const vae_kl *m, const vae_stack *s, const nn_tensor *x,
                        const nn_tensor *sums)
{
    nn_tensor y = nn_new_work3(c, x->n[0], x->n[1], s->conv_out.n[0]);
    nn_tensor norm = sums ? norm_from(c, x, sums, &s->norm_out, &s->norm_out_bias, NULL)
                          : norm_of(c, m, x, &s->norm_out, &s->norm_out_bias);
    nn_conv2d(c, &y, x, &s->conv_out, &s->conv_out_bias, &(nn_conv){.norm = &norm});
    return y;
}

/* ---- Packing --------------------------------------------------------------------------------- */

/* Planes [channels, height, width] from packed ones [channels * patch^2, height / patch, width /
 * patch], times deviation plus mean; or the other way round. */
static void unpack(const vae_kl *m, float *planes, const float *packed, int64_t height,
                   int64_t width)
{
    const int64_t p = m->patch, rows = height / p, columns = width / p;
    for (int64_t i = 0; i < vae_kl_channels(m); i++) {
        float *plane = planes + i / (p * p) * height * width + i / p % p * width + i % p;
        const float *from = packed + i * rows * columns;
        for (int64_t y = 0; y < rows; y++)
            for (int64_t x = 0; x < columns; x++)
                plane[y * p * width + x * p] = from[y * columns + x] * m->deviation[i] + m->mean[i];
    }
}

static void pack(const vae_kl *m, float *packed, const float *planes, int64_t height, int64_t width)
{
    const int64_t p = m->patch, rows = height / p, columns = width / p;
    for (int64_t i = 0; i < vae_kl_channels(m); i++) {
        const float *plane = planes + i / (p * p) * height * width + i / p % p * width + i % p;
        float *to = packed + i * rows * columns;
        for (int64_t y = 0; y < rows; y++)
            for (int64_t x = 0; x < columns; x++)
                to[y * columns + x] = (plane[y * p * width + x * p] - m->mean[i]) / m->deviation[i];
    }
}

static nn_tensor upload_latents(nn *c, const vae_kl *m, const vae_decoding *d)
{
    nn_tensor z = nn_new_work3(c, d->height, d->width, m->latent_channels);
    const float *planes = d->latents;
    if (m->patch > 1) {
        if (!nn_is_dry(c) && !nn_stopped(c))
            unpack(m, d->scratch, d->latents, d->height, d->width);
        planes = d->scratch;
    }
    nn_upload_planes(c, &z, planes, 1 / m->scaling_factor, m->shift_factor);
    if (m->patch > 1)
        nn_trace_tensor(c, &z, "vae.latents");
    return z;
}

/* The picture of the latents z, which were made at mark and are replaced. */
static nn_tensor decode(nn *c, const vae_kl *m, const vae_decoding *d, strips *part, size_t mark,
                        nn_tensor z)
{
    const vae_stack *s = &m->decoder;
    if (nn_has(&m->post_quant)) {
        nn_tensor y = nn_new_work3(c, d->height, d->width, m->latent_channels);
        nn_conv2d(c, &y, &z, &m->post_quant, &m->post_quant_bias, NULL);
        z = nn_keep(c, mark, &y);
        nn_trace_tensor(c, &z, "vae.post_quant_conv");
    }
    nn_tensor x = convolved(c, mark, &z, d->height, d->width, &s->conv_in, &s->conv_in_bias,
                            &part->sums, (nn_conv){0});
    nn_trace_tensor(c, &x, "vae.decoder.conv_in");
    x = mid_block(c, m, s, mark, x, &part->sums);
    part->summed = true;
    nn_trace_tensor(c, &x, "vae.decoder.mid_block");
    unit_done(c, part);
    for (int i = 0; i < m->blocks && !nn_stopped(c); i++) {
        part->height = d->height << i;
        part->width = d->width << i;
        part->rows = band_rows(m, d, i);
        x = up_block(c, part, i, mark, x);
    }
    nn_trace_tensor(c, &x, "vae.decoder.up_blocks.%d", m->blocks - 1);
    nn_tensor y = output(c, m, s, &x, part->summed ? &part->sums : NULL);
    nn_trace_tensor(c, &y, "vae.decoder.conv_out");
    return nn_keep(c, mark, &y);
}

void vae_kl_decode(nn *c, const vae_kl *m, const vae_decoding *outside)
{
    const vae_decoding u = unpacked(m, outside), *d = &u;
    const int last = m->blocks - 1;
    int unit = 0;
    strips part = {.m = m, .unit_done = d->unit_done, .user = d->user, .unit = &unit};
    const size_t all = nn_mark(c);
    part.sums = nn_new_sums(c, d->height << last, m->groups);
    const size_t mark = nn_mark(c);
    const nn_tensor z = upload_latents(c, m, d);
    const int64_t key[] = {NN_PLACE_DECODE, d->height, d->width, d->strip_rows};
    if (nn_repeat_begin(c, key, 4)) {
        decode(c, m, d, &part, mark, z);
        nn_repeat_end(c);
    }
    /* In the place of the latents, whether it was computed now or played back. */
    nn_release(c, mark);
    const nn_tensor y =
        nn_new_work3(c, d->height << last, d->width << last, m->decoder.conv_out.n[0]);
    nn_download_planes(c, &y, d->picture);
    unit_done(c, &part);
    nn_release(c, all);
}

ct_status vae_kl_decode_peak(const vae_kl *m, const vae_decoding *d, const nn_params *params,
                             size_t *bytes, ct_error *error)
{
    nn_params dry = *params;
    vae_decoding silent = *d;
    nn *c;
    dry.dry = true;
    silent.unit_done = NULL;
    *bytes = 0;
    ct_status status = nn_create(&c, &dry, error);
    if (status != CT_OK)
        return status;
    vae_kl_decode(c, m, &silent);
    status = nn_status(c, error);
    *bytes = nn_peak(c);
    nn_free(c);
    return status;
}

void vae_kl_encode(nn *c, const vae_kl *m, const float *picture, int64_t height, int64_t width,
                   float *moments)
{
    const vae_stack *s = &m->encoder;
    const size_t all = nn_mark(c);
    const nn_tensor sums = nn_new_sums(c, height, m->groups);
    const size_t mark = nn_mark(c);
    nn_tensor in = nn_new_work3(c, height, width, 3);
    nn_upload_planes(c, &in, picture, 1, 0);
    nn_tensor x =
        convolved(c, mark, &in, height, width, &s->conv_in, &s->conv_in_bias, &sums, (nn_conv){0});
    nn_trace_tensor(c, &x, "vae.encoder.conv_in");
    for (int i = 0; i < m->blocks && !nn_stopped(c); i++) {
        const vae_block *k = &s->block[i];
        for (int j = 0; j < k->resnets; j++)
            x = resnet(c, &k->resnet[j], mark, x, &sums);
        if (nn_has(&k->resize))
            x = convolved(c, mark, &x, x.n[0] / 2, x.n[1] / 2, &k->resize, &k->resize_bias, &sums,
                          (nn_conv){.stride = 2, .pad_bottom_right = true});
        nn_trace_tensor(c, &x, "vae.encoder.down_blocks.%d", i);
    }
    x = mid_block(c, m, s, mark, x, &sums);
    nn_trace_tensor(c, &x, "vae.encoder.mid_block");
    const nn_tensor rows = nn_rows(&sums, 0, x.n[0]);
    nn_tensor y = output(c, m, s, &x, &rows);
    if (nn_has(&m->quant)) {
        nn_tensor q = nn_new_work3(c, y.n[0], y.n[1], y.n[2]);
        nn_conv2d(c, &q, &y, &m->quant, &m->quant_bias, NULL);
        y = q;
    }
    nn_download_planes(c, &y, moments);
    nn_release(c, all);
}

void vae_kl_encode_mean(nn *c, const vae_kl *m, const float *picture, int64_t height, int64_t width,
                        float *moments, float *latents)
{
    const int64_t factor = vae_kl_factor(m) / m->patch, h = height / factor, w = width / factor;
    vae_kl_encode(c, m, picture, height, width, moments);
    if (nn_is_dry(c) || nn_stopped(c))
        return;
    if (m->patch > 1)
        pack(m, latents, moments, h, w);
    for (int64_t i = 0; m->patch == 1 && i < m->latent_channels * h * w; i++)
        latents[i] = (moments[i] - (float)m->shift_factor) * (float)m->scaling_factor;
}
