/* Checks the arguments of every operation and hands it to the device. */
#include "nn/nn_internal.h"

#include <string.h>

/* ---- Checks ---------------------------------------------------------------------------------- */

/* In a dry run: tells that bytes of a weight will be read. */
static void reads(nn *c, const void *data, size_t bytes)
{
    const nn_residency *r = c->params.residency;
    if (c->params.dry && data && bytes && r && r->reads)
        r->reads(r->user, data, bytes);
}

/* Elements first .. first+count-1 of a weight, whole groups of it where it has groups. */
static void reads_part(nn *c, const nn_weight *w, size_t first, size_t count)
{
    const size_t size = dtype_size(w->type);
    if (w->bits == 0) {
        reads(c, (const char *)w->data + first * size, count * size);
        return;
    }
    const size_t bits = (size_t)w->bits, group = (size_t)w->group;
    reads(c, (const char *)w->data + first / 8 * bits, count / 8 * bits);
    reads(c, (const char *)w->scales + first / group * size, count / group * size);
    reads(c, (const char *)w->biases + first / group * size, count / group * size);
}

static void reads_weight(nn *c, const nn_weight *w)
{
    if (!c->params.dry || !nn_has(w))
        return;
    size_t count = 1;
    for (int i = 0; i < w->rank; i++)
        count *= (size_t)w->n[i];
    reads_part(c, w, 0, count);
}

static void reads_rows(nn *c, const nn_weight *w, const int32_t *rows, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        reads_part(c, w, (size_t)rows[i] * (size_t)w->n[1], (size_t)w->n[1]);
}

/* False when the operation must not run. condition is what the operation expects; text says it. */
static bool check(nn *c, bool condition, const char *operation, const nn_weight *w,
                  const char *text)
{
    if (nn_stopped(c))
        return false;
    if (!condition)
        nn_fail(c, CT_EINTERNAL, "%s%s%s: expected %s", operation, w && w->name ? " with " : "",
                w && w->name ? w->name : "", text);
    return condition;
}

/* The same for an operation that reads the whole of w, which may be NULL. */
static bool require(nn *c, bool condition, const char *operation, const nn_weight *w,
                    const char *text)
{
    bool run = check(c, condition, operation, w, text);
    if (run)
        reads_weight(c, w);
    return run;
}

/* Numbers without gaps. */
static bool is_whole(const nn_tensor *t)
{
    return !t->operand && t->shift == 0 && (t->rank != 2 || t->n[0] == 1 || t->stride == t->n[1]);
}

static bool is_matrix(const nn_tensor *t, int64_t rows, int64_t columns)
{
    return t->rank == 2 && t->n[0] == rows && t->n[1] == columns;
}

static bool same_shape(const nn_tensor *a, const nn_tensor *b)
{
    return a->rank == b->rank && !memcmp(a->n, b->n, sizeof a->n);
}

static bool is_vector(const nn_weight *w, int64_t n)
{
    return nn_has(w) && w->rank == 1 && w->n[0] == n;
}

static bool is_row(const nn_tensor *t, int64_t n)
{
    return !t || nn_count(t) == n;
}

/* ---- Movement -------------------------------------------------------------------------------- */

static bool is_float(const nn_tensor *t)
{
    return is_whole(t) && t->type == DTYPE_F32;
}

void nn_upload(nn *c, const nn_tensor *t, const float *data, int64_t count)
{
    if (require(c, count == nn_count(t) && is_float(t), "upload", NULL,
                "as many numbers as the tensor has") &&
        !c->params.dry) {
        c->device->upload(c, t, data);
        nn_inspect(c, "upload", NULL, t);
    }
}

void nn_download(nn *c, const nn_tensor *t, float *data, int64_t count)
{
    if (require(c, count == nn_count(t) && is_whole(t), "download", NULL,
                "as many numbers as the tensor has") &&
        !c->params.dry)
        c->device->download(c, t, data);
}

float *nn_begin_write(nn *c, const nn_tensor *t)
{
    if (!require(c, is_float(t), "begin_write", NULL, "a tensor of float32") || c->params.dry)
        return NULL;
    return c->device->begin_write ? c->device->begin_write(c, t) : t->data;
}

void nn_end_write(nn *c, const nn_tensor *t)
{
    if (c->device->end_write && !c->params.dry)
        c->device->end_write(c, t);
}

void nn_download_begin(nn *c, int slot, const nn_tensor *t)
{
    if (!require(c, is_float(t) && slot >= 0 && slot < 2, "download_begin", NULL,
                 "a tensor of float32, slot 0 or 1") ||
        c->params.dry)
        return;
    c->slot[slot] = *t;
    if (c->device->download_begin)
        c->device->download_begin(c, slot, t);
}

double nn_download_end(nn *c, int slot, float *data, int64_t count)
{
    if (!require(c, slot >= 0 && slot < 2 && (c->params.dry || nn_count(&c->slot[slot]) == count),
                 "download_end", NULL, "what download_begin was given") ||
        c->params.dry)
        return 0;
    if (c->device->download_end)
        return c->device->download_end(c, slot, data, count);
    memcpy(data, c->slot[slot].data, (size_t)count * sizeof(float));
    return 0;
}

void nn_copy(nn *c, const nn_tensor *out, const nn_tensor *x)
{
    const bool whole = is_whole(out) && is_whole(x);
    bool fits = out->type == x->type && !out->operand && !x->operand &&
                (whole ? nn_count(out) == nn_count(x) : same_shape(out, x) && x->rank == 2);
    if (!require(c, fits, "copy", NULL, "equal sizes and types") || c->params.dry ||
        out->data == x->data)
        return;
    const size_t element = nn_element(x);
    if (whole)
        c->device->move(c, out->data, x->data, (size_t)nn_count(x) * element);
    else
        c->device->move_rows(c, out->data, (size_t)out->stride * element, x->data,
                             (size_t)x->stride * element, (size_t)x->n[1] * element,
                             (size_t)x->n[0]);
}

void nn_take(nn *c, const nn_tensor *out, const nn_tensor *x, int64_t index)
{
    bool fits = x->rank == 3 && is_matrix(out, x->n[0], x->n[2]) && !out->operand &&
                out->type == DTYPE_F32 && is_float(x) && index >= 0 && index < x->n[1];
    if (require(c, fits, "take", NULL, "out [E, D], x [E, S, D], an index below S") &&
        !c->params.dry)
        c->device->take(c, out, x, index);
}

/* ---- Operations ------------------------------------------------------------------------------ */

void nn_embed(nn *c, const nn_tensor *out, const nn_weight *w, const int32_t *ids, int64_t count)
{
    bool fits = w->rank == 2 && nn_has(w) && is_matrix(out, count, w->n[1]);
    for (int64_t i = 0; fits && i < count; i++)
        fits = ids[i] >= 0 && ids[i] < w->n[0];
    if (!check(c, fits, "embed", w, "out [S, D], w [V, D], ids below V"))
        return;
    if (c->params.dry)
        reads_rows(c, w, ids, count);
    c->device->embed(c, out, w, ids);
    nn_inspect(c, "embed", w, out);
}

void nn_fill_rows(nn *c, const nn_tensor *out, const nn_weight *w)
{
    bool fits = out->rank == 2 && nn_has(w) && w->n[w->rank - 1] == out->n[1] &&
                (w->rank == 1 || (w->rank == 2 && w->n[0] == 1));
    if (require(c, fits, "fill_rows", w, "out [S, D], w [D]")) {
        c->device->fill_rows(c, out, w);
        nn_inspect(c, "fill_rows", w, out);
    }
}

void nn_prepare(nn *c, const nn_tensor *out, const nn_tensor *x)
{
    bool fits = out->operand && !x->operand && x->rank == 2 && is_matrix(out, x->n[0], x->n[1]);
    if (require(c, fits, "prepare", NULL, "out and x [M, K], out an operand")) {
        c->device->prepare(c, out, x);
        nn_inspect(c, "prepare", NULL, out);
    }
}

/* Whether a weight's marks leave it the operand that others read, too. */
static bool takes_operand(const nn *c, const nn_weight *w)
{
    return !w->sensitive &&
           (!w->outliers || (c->device->writes_operand && c->device->writes_operand(c, w)));
}

/* A norm that is to follow on x. */
static bool can_follow(const nn_next_norm *next, const nn_tensor *x)
{
    const int64_t d = x->n[1];
    return same_shape(next->out, x) && is_row(next->scale, d) && is_row(next->shift, d) &&
           (next->layer ? !next->w && next->scale : is_vector(next->w, d) && !next->shift) &&
           (next->out->operand || is_whole(next->out));
}

void nn_linear(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
               const nn_epilogue *epilogue)
{
    const nn_epilogue none = {0}, *e = epilogue ? epilogue : &none;
    bool fits =
        nn_has(w) && w->rank == 2 && x->rank == 2 && x->n[1] == w->n[1] &&
        (!out->operand || (!e->add && !e->gate && c->device->writes_operand)) &&
        is_matrix(out, x->n[0], w->n[0]) && (!e->bias || is_vector(e->bias, w->n[0])) &&
        (!e->gate || is_row(e->gate, w->n[0])) && (!x->operand || takes_operand(c, w)) &&
        (out->shift == 0 || !e->add) &&
        (!e->up || (nn_has(e->up) && e->up->rank == 2 && e->up->n[0] == w->n[0] &&
                    e->up->n[1] == w->n[1] && e->up->sensitive == w->sensitive && !e->bias)) &&
        (!e->next ||
         (e->add && !e->up && is_float(out) && is_whole(out) && can_follow(e->next, out)));
    if (require(c, fits, "linear", w, "out [M, N], x [M, K], w and up [N, K], bias and gate [N]")) {
        reads_weight(c, e->bias);
        reads_weight(c, e->up);
        if (e->next)
            reads_weight(c, e->next->w);
        c->device->linear(c, out, x, w, e);
        nn_inspect(c, "linear", w, out);
        if (e->next)
            nn_inspect(c, "norm behind linear", w, e->next->out);
    }
}

void nn_linears(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *const *w,
                const nn_weight *const *bias, int count)
{
    static const nn_weight *const none[4] = {0};
    int64_t columns = 0;
    bool fits = count >= 1 && count <= 4 && x->rank == 2 && out->rank == 2 && !out->operand &&
                out->n[0] == x->n[0];
    bias = bias ? bias : none;
    for (int i = 0; fits && i < count; i++) {
        fits = nn_has(w[i]) && w[i]->rank == 2 && w[i]->n[1] == x->n[1] &&
               (!bias[i] || is_vector(bias[i], w[i]->n[0])) && w[i]->sensitive == w[0]->sensitive &&
               w[i]->outliers == w[0]->outliers && (!x->operand || takes_operand(c, w[i]));
        columns += fits ? w[i]->n[0] : 0;
    }
    if (!require(c, fits && columns == out->n[1], "linears", count > 0 ? w[0] : NULL,
                 "out [M, N0 + N1 + ...], x [M, K], w[i] [Ni, K]"))
        return;
    for (int i = 0; i < count; i++) {
        reads_weight(c, w[i]);
        if (bias[i])
            reads_weight(c, bias[i]);
    }
    c->device->linears(c, out, x, w, bias, count);
    nn_inspect(c, "linears", w[0], out);
}

void nn_rms_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w, double eps,
                 const nn_tensor *scale)
{
    bool fits = x->rank == 2 && same_shape(out, x) && is_vector(w, x->n[1]) &&
                is_row(scale, x->n[1]) && is_whole(x) && (out->operand || is_whole(out));
    if (require(c, fits, "rms_norm", w, "out and x [M, D], w [D], scale [D]")) {
        c->device->rms_norm(c, out, x, w, (float)eps, scale);
        nn_inspect(c, "rms_norm", w, out);
    }
}

void nn_add_rms_norm(nn *c, const nn_tensor *x, const nn_tensor *y, const nn_weight *w, double eps,
                     const nn_tensor *gate, const nn_next_norm *next)
{
    bool fits = x->rank == 2 && same_shape(x, y) && is_vector(w, x->n[1]) &&
                is_row(gate, x->n[1]) && is_float(x) && is_whole(y);
    fits = fits && (!next || (!next->layer && can_follow(next, x)));
    if (require(c, fits, "add_rms_norm", w, "x and y [M, D], w [D], gate [D]")) {
        if (next)
            reads_weight(c, next->w);
        c->device->add_rms_norm(c, x, y, w, (float)eps, gate, next);
        nn_inspect(c, "add_rms_norm", w, x);
        if (next)
            nn_inspect(c, "add_rms_norm", next->w, next->out);
    }
}

void nn_layer_norm(nn *c, const nn_tensor *out, const nn_tensor *x, double eps,
                   const nn_tensor *scale, const nn_tensor *shift)
{
    bool fits = x->rank == 2 && same_shape(out, x) && scale && is_row(scale, x->n[1]) &&
                is_row(shift, x->n[1]) && is_whole(x) && (out->operand || is_whole(out));
    if (require(c, fits, "layer_norm", NULL, "out and x [M, D], scale and shift [D]")) {
        c->device->layer_norm(c, out, x, (float)eps, scale, shift);
        nn_inspect(c, "layer_norm", NULL, out);
    }
}

void nn_head_norm_rope(nn *c, const nn_tensor *x, int heads, const nn_weight *w, double eps,
                       const nn_tensor *cosine, const nn_tensor *sine, nn_rope_pairs pairs)
{
    bool fits = x->rank == 2 && heads > 0 && x->n[1] % heads == 0 && !x->operand;
    int64_t dim = fits ? x->n[1] / heads : 0;
    fits = fits && dim % 2 == 0 && (!w || is_vector(w, dim)) &&
           is_matrix(cosine, x->n[0], dim / 2) && same_shape(cosine, sine);
    if (require(c, fits, "head_norm_rope", w, "x [S, H*D], w [D], cosine and sine [S, D/2]")) {
        c->device->head_norm_rope(c, x, heads, w, (float)eps, cosine, sine, pairs);
        nn_inspect(c, "head_norm_rope", w, x);
    }
}

void nn_attention(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                  const nn_tensor *v, int heads, int kv_heads, bool causal)
{
    bool fits = heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && q->rank == 2 &&
                q->n[1] % heads == 0 && same_shape(out, q) && same_shape(k, v) && k->rank == 2 &&
                k->n[1] == q->n[1] / heads * kv_heads && (!causal || q->n[0] == k->n[0]) &&
                !out->operand && !q->operand && !k->operand && !v->operand;
    if (require(c, fits, "attention", NULL, "q and out [Sq, H*D], k and v [Sk, G*D]")) {
        c->device->attention(c, out, q, k, v, heads, kv_heads, causal);
        nn_inspect(c, "attention", NULL, out);
    }
}

void nn_attention_segments(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                           const nn_tensor *v, int heads, const int32_t *ends, int count)
{
    bool fits = heads > 0 && q->rank == 2 && q->n[1] % heads == 0 && same_shape(out, q) &&
                same_shape(k, q) && same_shape(v, q) && !out->operand && !q->operand &&
                !k->operand && !v->operand && count > 0 && ends[count - 1] == q->n[0];
    for (int i = 0; fits && i < count; i++)
        fits = ends[i] > (i ? ends[i - 1] : 0);
    if (!require(c, fits, "attention_segments", NULL, "q, k, v and out [S, H*D], ends up to S"))
        return;
    if (c->device->attention_segments)
        c->device->attention_segments(c, out, q, k, v, heads, ends, count);
    for (int i = 0; !c->device->attention_segments && i < count; i++) {
        const int64_t begin = i ? ends[i - 1] : 0, rows = ends[i] - begin;
        const nn_tensor part[4] = {nn_rows(out, begin, rows), nn_rows(q, begin, rows),
                                   nn_rows(k, begin, rows), nn_rows(v, begin, rows)};
        c->device->attention(c, &part[0], &part[1], &part[2], &part[3], heads, heads, false);
    }
    nn_inspect(c, "attention_segments", NULL, out);
}

void nn_silu(nn *c, const nn_tensor *out, const nn_tensor *x)
{
    if (require(c, same_shape(out, x) && is_whole(out) && is_whole(x), "silu", NULL,
                "equal shapes")) {
        c->device->silu(c, out, x);
        nn_inspect(c, "silu", NULL, out);
    }
}

void nn_gelu(nn *c, const nn_tensor *x)
{
    if (require(c, is_whole(x), "gelu", NULL, "no gaps")) {
        c->device->gelu(c, x);
        nn_inspect(c, "gelu", NULL, x);
    }
}

void nn_multiply(nn *c, const nn_tensor *x, const nn_tensor *y)
{
    if (require(c, same_shape(x, y) && is_whole(x) && is_whole(y), "multiply", NULL,
                "equal shapes without gaps")) {
        c->device->multiply(c, x, y);
        nn_inspect(c, "multiply", NULL, x);
    }
}

void nn_tanh(nn *c, const nn_tensor *x)
{
    if (require(c, is_whole(x), "tanh", NULL, "no gaps")) {
        c->device->tanh(c, x);
        nn_inspect(c, "tanh", NULL, x);
    }
}

void nn_add_scalar(nn *c, const nn_tensor *x, double value)
{
    if (require(c, is_whole(x), "add_scalar", NULL, "no gaps")) {
        c->device->add_scalar(c, x, (float)value);
        nn_inspect(c, "add_scalar", NULL, x);
    }
}

void nn_add_scaled(nn *c, const nn_tensor *x, const nn_tensor *y, double factor)
{
    if (require(c, same_shape(x, y) && is_float(x) && is_float(y), "add_scaled", NULL,
                "equal shapes of float32")) {
        c->device->add_scaled(c, x, y, (float)factor);
        nn_inspect(c, "add_scaled", NULL, x);
    }
}

void nn_guide(nn *c, const nn_tensor *positive, const nn_tensor *negative, double guidance,
              bool normalize)
{
    if (require(c, same_shape(positive, negative) && is_float(positive) && is_float(negative),
                "guide", NULL, "equal shapes of float32")) {
        c->device->guide(c, positive, negative, (float)guidance, normalize);
        nn_inspect(c, "guide", NULL, positive);
    }
}

void nn_guide_tokens(nn *c, const nn_tensor *positive, const nn_tensor *negative, double guidance,
                     int patch)
{
    if (require(c,
                same_shape(positive, negative) && is_float(positive) && is_float(negative) &&
                    positive->rank == 3 && patch > 0 && positive->n[1] % patch == 0 &&
                    positive->n[2] % patch == 0,
                "guide_tokens", NULL,
                "equal planes of float32, sides that are multiples of patch")) {
        c->device->guide_tokens(c, positive, negative, (float)guidance, patch);
        nn_inspect(c, "guide_tokens", NULL, positive);
    }
}

static bool are_patches(const nn_tensor *tokens, const nn_tensor *planes, int patch)
{
    return planes->rank == 3 && is_float(planes) && is_whole(tokens) && patch > 0 &&
           planes->n[1] % patch == 0 && planes->n[2] % patch == 0 &&
           is_matrix(tokens, planes->n[1] / patch * (planes->n[2] / patch),
                     planes->n[0] * patch * patch);
}

void nn_patches(nn *c, const nn_tensor *tokens, const nn_tensor *planes, int patch)
{
    if (require(c, are_patches(tokens, planes, patch), "patches", NULL,
                "planes [C, H, W], tokens [H/p * W/p, p * p * C]")) {
        c->device->patches(c, tokens, planes, patch, false, true);
        nn_inspect(c, "patches", NULL, tokens);
    }
}

void nn_from_patches(nn *c, const nn_tensor *planes, const nn_tensor *tokens, int patch)
{
    if (require(c, are_patches(tokens, planes, patch), "from_patches", NULL,
                "planes [C, H, W], tokens [H/p * W/p, p * p * C]")) {
        c->device->patches(c, tokens, planes, patch, false, false);
        nn_inspect(c, "from_patches", NULL, planes);
    }
}

void nn_pack(nn *c, const nn_tensor *tokens, const nn_tensor *planes, int patch)
{
    if (require(c, are_patches(tokens, planes, patch), "pack", NULL,
                "planes [C, H, W], tokens [H/p * W/p, C * p * p]")) {
        c->device->patches(c, tokens, planes, patch, true, true);
        nn_inspect(c, "pack", NULL, tokens);
    }
}

void nn_unpack(nn *c, const nn_tensor *planes, const nn_tensor *tokens, int patch)
{
    if (require(c, are_patches(tokens, planes, patch), "unpack", NULL,
                "planes [C, H, W], tokens [H/p * W/p, C * p * p]")) {
        c->device->patches(c, tokens, planes, patch, true, false);
        nn_inspect(c, "unpack", NULL, planes);
    }
}

void nn_upload_planes(nn *c, const nn_tensor *picture, const float *planes, double factor,
                      double offset)
{
    if (require(c, picture->rank == 3, "upload_planes", NULL, "picture [H, W, C]")) {
        c->device->upload_planes(c, picture, planes, (float)factor, (float)offset);
        nn_inspect(c, "upload_planes", NULL, picture);
    }
}

void nn_download_planes(nn *c, const nn_tensor *picture, float *planes)
{
    if (require(c, picture->rank == 3, "download_planes", NULL, "picture [H, W, C]"))
        c->device->download_planes(c, picture, planes);
}

/* Of a picture of so many rows. */
static bool are_sums(const nn_tensor *sums, int64_t rows, int64_t channels)
{
    return sums->rank == 2 && sums->n[0] == rows && channels % (sums->n[1] / 4) == 0;
}

void nn_conv2d(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
               const nn_weight *bias, const nn_conv *params)
{
    nn_conv p = params ? *params : (nn_conv){0};
    if (p.stride == 0)
        p.stride = 1;
    bool fits = nn_has(w) && w->rank == 4 && w->n[2] == w->n[3] && (w->n[2] == 1 || w->n[2] == 3) &&
                x->rank == 3 && out->rank == 3 && x->n[2] == w->n[1] && out->n[2] == w->n[0] &&
                is_vector(bias, w->n[0]) && (p.stride == 1 || p.stride == 2) &&
                (!p.norm || is_matrix(p.norm, 2, w->n[1])) && p.above >= 0 && p.below >= 0 &&
                ((p.above == 0 && p.below == 0) || p.stride == 1);
    for (int i = 0; fits && i < 2; i++) {
        int64_t band = x->n[i] - (i == 0 ? p.above + p.below : 0);
        int64_t in = band * (p.upsample ? 2 : 1), kernel = w->n[2];
        int64_t pad = p.pad_bottom_right ? kernel / 2 : 2 * (kernel / 2);
        fits = band > 0 && in + pad >= kernel && out->n[i] == (in + pad - kernel) / p.stride + 1;
    }
    fits = fits && (p.below == 0 || out->n[0] % 4 == 0) &&
           (!p.sums || are_sums(p.sums, out->n[0], out->n[2]));
    if (fits && p.pixel_norm) {
        const nn_weight *late = p.pixel_norm->late_bias;
        fits = is_vector(p.pixel_norm->w, w->n[1]) && (!late || is_vector(late, w->n[1])) &&
               !p.norm && !p.upsample && p.stride == 1 && !p.pad_bottom_right;
    }
    if (require(c, fits, "conv2d", w, "x [H, W, I], w [O, I, k, k], bias [O], out to match")) {
        reads_weight(c, bias);
        if (p.pixel_norm) {
            reads_weight(c, p.pixel_norm->w);
            reads_weight(c, p.pixel_norm->late_bias);
        }
        c->device->conv2d(c, out, x, w, bias, &p);
        if (p.sums && !c->device->conv_sums)
            c->device->group_sums(c, p.sums, 0, out);
        nn_inspect(c, "conv2d", w, out);
    }
}

void nn_group_sums(nn *c, const nn_tensor *sums, int64_t first, const nn_tensor *x)
{
    bool fits = x->rank == 3 && sums->rank == 2 && first >= 0 && first + x->n[0] <= sums->n[0] &&
                x->n[2] % (sums->n[1] / 4) == 0;
    if (require(c, fits, "group_sums", NULL, "x [H, W, groups * n], sums of at least H rows"))
        c->device->group_sums(c, sums, first, x);
}

void nn_group_factors(nn *c, const nn_tensor *norm, const nn_tensor *sums, int64_t width,
                      const nn_weight *w, const nn_weight *b, double eps,
                      const nn_weight *late_bias)
{
    bool fits = norm->rank == 2 && norm->n[0] == 2 && is_vector(w, norm->n[1]) &&
                is_vector(b, norm->n[1]) && are_sums(sums, sums->n[0], norm->n[1]) &&
                (!late_bias || is_vector(late_bias, norm->n[1]));
    if (require(c, fits, "group_factors", w, "norm [2, C], w and b [C], C = groups * n")) {
        reads_weight(c, b);
        reads_weight(c, late_bias);
        c->device->group_factors(c, norm, sums, width, w, b, eps, late_bias);
        nn_inspect(c, "group_factors", w, norm);
    }
}

void nn_apply_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_tensor *norm)
{
    bool fits = x->rank == 3 && same_shape(out, x) && is_matrix(norm, 2, x->n[2]);
    if (require(c, fits, "apply_norm", NULL, "out and x [H, W, C], norm [2, C]")) {
        c->device->apply_norm(c, out, x, norm);
        nn_inspect(c, "apply_norm", NULL, out);
    }
}
