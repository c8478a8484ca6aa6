/* Linear layers: cuBLASLt, and one pass for what it cannot do behind a product. */
#include "nn/cuda/cuda.h"

#include <math.h>

#define SCRATCH ((int64_t)256 << 20) /* bytes of results that wait for their epilogue */

/* ---- Weights --------------------------------------------------------------------------------- */

/* What products of these weights read: F32, F16, BF16, F8_E4M3 or I8. */
static dtype operand_type(const nn *c, const nn_weight *w, int64_t rows)
{
    const nn_precision precision = c->params.precision;
    const bool long_numbers = w->sensitive || w->n[1] % 16 != 0 || rows % 16 != 0;
    if (precision == NN_FP8 && !long_numbers)
        return DTYPE_F8_E4M3;
    if (precision == NN_INT8 && !long_numbers && !w->outliers)
        return DTYPE_I8;
    return cuda_work_type(c);
}

/* In 8 bits: it saves a pass over the numbers. */
bool cuda_writes_operand(const nn *c, const nn_weight *w)
{
    return dtype_size(operand_type(c, w, w->n[0])) == 1;
}

/* Packed groups stay as they are on the GPU, and are unpacked for each product; in 8 bits they are
 * kept in those. */
static cu_address unpacked(nn *c, const nn_weight *const *w, int count, dtype type)
{
    int64_t rows = 0;
    for (int i = 0; i < count; i++)
        rows += w[i]->n[0];
    const cu_address to = cuda_scratch(c, (size_t)(rows * w[0]->n[1]) * dtype_size(type));
    cu_address at = to;
    for (int i = 0; i < count && c->error.code == CT_OK; i++) {
        const cuda_request request = {&w[i], 1, STORE_PACKED, w[i]->type};
        cuda_weight packed;
        ct_error error;
        if (cuda_store_get(c, &request, &packed, &error) != CT_OK)
            cuda_fail(c, &error);
        else
            cuda_unpack(c, w[i], &packed, type, at);
        at += (uint64_t)(w[i]->n[0] * w[i]->n[1]) * dtype_size(type);
    }
    return to;
}

cu_address cuda_matrices(nn *c, const nn_weight *const *w, int count, dtype *type,
                         cu_address *scales)
{
    bool packed = true;
    int64_t rows = 0;
    for (int i = 0; i < count; i++) {
        packed = packed && w[i]->bits != 0;
        rows += w[i]->n[0];
    }
    *type = operand_type(c, w[0], rows);
    *scales = 0;
    if (packed && dtype_size(*type) > 1)
        return unpacked(c, w, count, *type);
    if (c->error.code != CT_OK)
        return 0;
    const cuda_request request = {w, count, STORE_MATRIX, *type};
    cuda_weight at = {0};
    ct_error error;
    if (cuda_store_get(c, &request, &at, &error) != CT_OK)
        cuda_fail(c, &error);
    *scales = at.scales;
    return at.data;
}

/* ---- The first operand ----------------------------------------------------------------------- */

typedef struct input {
    cu_address data, scales;
    int64_t stride;
} input;

static dtype kind_type(const nn *c, cuda_kind kind)
{
    return kind == CUDA_E4M3   ? DTYPE_F8_E4M3
           : kind == CUDA_INT8 ? DTYPE_I8
           : kind == CUDA_WORK ? cuda_work_type(c)
                               : DTYPE_F32;
}

/* x as numbers of `type`: itself where it is that, else in scratch. */
static input input_of(nn *c, const nn_tensor *x, dtype type)
{
    const cuda_kind kind = cuda_kind_of(c, x);
    if (kind_type(c, kind) == type)
        return (input){cuda_at(x), cuda_scales_of(c, x), x->stride};
    if (x->operand) {
        nn_fail(c, CT_EUNSUPPORTED,
                "8-bit products on a GPU need matrices whose sides are multiples of 16, which this "
                "model has not; choose --precision bf16");
        return (input){0};
    }
    if (dtype_size(type) == 1) {
        nn_tensor operand = nn_new_operand(c, x->n[0], x->n[1]);
        if (!cuda_idle(c))
            cuda_prepare(c, &operand, x);
        return (input){cuda_at(&operand), cuda_scales_of(c, &operand), x->n[1]};
    }
    const cu_address at = cuda_scratch(c, (size_t)nn_count(x) * dtype_size(type));
    if (!cuda_idle(c))
        cuda_convert(c, type == DTYPE_F32 ? cuda_half_type(c) : type, at,
                     type == DTYPE_F32 ? CUDA_FLOAT : CUDA_WORK, x->n[1], cuda_at(x), kind,
                     x->stride, x->n[0], x->n[1]);
    return (input){at, 0, x->n[1]};
}

/* ---- Products -------------------------------------------------------------------------------- */

typedef struct product {
    dtype type;
    input x;
    cu_address w, w_scales;
    int64_t n, k; /* n: rows of w, of up too */
    int shift;    /* of x: the product is multiplied with 2^shift */
} product;

/* Where results of a product go; bias: of their type. */
typedef struct results {
    cu_address at;
    dtype type;
    int64_t stride;
    cu_address bias;
    bool gelu, add;
} results;

static blas_product describe(const product *p, int64_t m, const results *out)
{
    return (blas_product){.m = m,
                          .n = p->n,
                          .k = p->k,
                          .x_stride = p->x.stride,
                          .w_stride = p->k,
                          .out_stride = out->stride,
                          .type = p->type,
                          .out_type = out->type,
                          .add = out->add,
                          .bias = out->bias != 0,
                          .bias_type = out->type,
                          .epilogue = out->gelu ? BLAS_GELU_TANH : BLAS_NONE,
                          .scaled = p->type == DTYPE_F8_E4M3,
                          .fast_sums = p->type == DTYPE_F8_E4M3,
                          .factor = ldexpf(1, p->shift)};
}

/* Rows first .. first+m-1 of x into out. */
static void multiply(nn *c, const product *p, int64_t first, int64_t m, const results *out)
{
    if (cuda_idle(c))
        return;
    cuda_state *s = cuda_of(c);
    const blas_product b = describe(p, m, out);
    const blas_operands at = {.out = out->at,
                              .x =
                                  p->x.data + (uint64_t)(first * p->x.stride) * dtype_size(p->type),
                              .w = p->w,
                              .bias = out->bias,
                              .x_scales = p->x.scales ? p->x.scales + (uint64_t)first * 4 : 0,
                              .w_scales = p->w_scales};
    ct_error error;
    if (blas_multiply(s->gpu->blas, s->stream, s->capturing, s->workspace, &b, &at, &error) !=
        CT_OK)
        cuda_fail(c, &error);
}

typedef struct finish {
    cu_address bias, gate;
    nn_activation activation;
    bool up, add;
    const nn_next_norm *next;
} finish;

/* out = finish(y), rows first .. first+rows-1. */
static void run_epilogue(nn *c, const nn_tensor *out, const product *p, const finish *f,
                         int64_t first, int64_t rows, cu_address y, cuda_kind y_kind,
                         int64_t y_stride)
{
    const dtype out_type = kind_type(c, cuda_kind_of(c, out));
    cu_address to = cuda_at(out) + (uint64_t)(first * out->stride) * dtype_size(out_type);
    cu_address out_scales = cuda_scales_of(c, out), x_scales = 0, w_scales = 0, bias = f->bias,
               gate = f->gate;
    const cuda_kind out_kind = cuda_kind_of(c, out);
    int kind = (int)out_kind, in = (int)y_kind, up = f->up;
    int activation = (int)f->activation;
    int add = f->add, m = (int)rows, columns = (int)out->n[1];
    long long out_stride = out->stride, stride = y_stride;
    if (out_scales)
        out_scales += (uint64_t)first * 4;
    float factor = ldexpf(1, -out->shift);
    if (y_kind == CUDA_INT32) {
        x_scales = p->x.scales + (uint64_t)first * 4;
        w_scales = p->w_scales;
    }
    const cuda_grid grid = cuda_epilogue_grid(out_kind, y_kind, rows, columns);
    CUDA_LAUNCH(c, epilogue, cuda_work_type(c), grid, &to, &kind, &out_stride, &out_scales, &y, &in,
                &stride, &up, &bias, &activation, &gate, &add, &m, &columns, &x_scales, &w_scales,
                &factor);
}

/* x += finish(y), and the norm that follows, rows first .. first+rows-1. */
static void run_epilogue_norm(nn *c, const nn_tensor *x, const product *p, const finish *f,
                              int64_t first, int64_t rows, cu_address y, cuda_kind y_kind,
                              int64_t y_stride)
{
    const nn_next_norm *next = f->next;
    const cuda_kind next_kind = cuda_kind_of(c, next->out);
    const bool integers = y_kind == CUDA_INT32;
    cu_address to = cuda_at(x) + (uint64_t)(first * x->stride) * sizeof(float);
    cu_address then = cuda_at(next->out) +
                      (uint64_t)(first * next->out->stride) * dtype_size(kind_type(c, next_kind));
    cu_address scales = cuda_scales_of(c, next->out), bias = f->bias, gate = f->gate;
    cu_address x_scales = integers ? p->x.scales + (uint64_t)first * 4 : 0;
    cu_address w_scales = integers ? p->w_scales : 0;
    cu_address weight = next->w ? cuda_floats(c, next->w) : 0;
    cu_address scale = cuda_at(next->scale), shift = cuda_at(next->shift);
    int in = (int)y_kind, kind = (int)next_kind, columns = (int)x->n[1], layer = next->layer;
    int activation = (int)f->activation;
    long long x_stride = x->stride, stride = y_stride, next_stride = next->out->stride;
    float eps = (float)next->eps;
    if (scales)
        scales += (uint64_t)first * 4;
    CUDA_LAUNCH(c, epilogue_norm, cuda_work_type(c), cuda_row_grid(rows, columns), &to, &x_stride,
                &y, &in, &stride, &bias, &activation, &gate, &columns, &x_scales, &w_scales, &then,
                &kind, &next_stride, &scales, &weight, &scale, &shift, &eps, &layer);
}

/* What products into scratch memory are made of. */
static dtype scratch_type(const nn *c, const product *p)
{
    return p->type == DTYPE_I8 ? DTYPE_I32 : cuda_wide_type(c);
}

/* The product with the biases and GELU of `with` into scratch memory, some rows at a time, and its
 * epilogue from there. */
static void multiply_and_finish(nn *c, const nn_tensor *out, const product *p, const results *with,
                                const finish *f)
{
    const dtype type = scratch_type(c, p);
    const cuda_kind kind = type == DTYPE_I32           ? CUDA_INT32
                           : type == cuda_work_type(c) ? CUDA_WORK
                                                       : CUDA_FLOAT;
    const int64_t row = p->n * (int64_t)dtype_size(type);
    int64_t step = SCRATCH / row / 128 * 128;
    step = step < 128 ? 128 : step;
    step = step < out->n[0] ? step : out->n[0];
    const cu_address y = cuda_scratch(c, (size_t)(step * row));
    const results to = {
        .at = y, .type = type, .stride = p->n, .bias = with->bias, .gelu = with->gelu};
    for (int64_t first = 0; first < out->n[0] && !cuda_idle(c); first += step) {
        const int64_t rows = out->n[0] - first < step ? out->n[0] - first : step;
        multiply(c, p, first, rows, &to);
        if (f->next)
            run_epilogue_norm(c, out, p, f, first, rows, y, kind, p->n);
        else
            run_epilogue(c, out, p, f, first, rows, y, kind, p->n);
    }
}

/* Whether the biases are of the type in which cuBLASLt adds them: that of the results. */
static bool has_type(const nn_weight *const *bias, int count, dtype type)
{
    bool has = true;
    for (int i = 0; i < count && has && type != DTYPE_F32; i++)
        has = bias[i]->bits == 0 && bias[i]->type == type && bias[i]->factor == 0;
    return has;
}

/* Whether cuBLASLt adds the biases and makes the GELU of results of `type`, which costs nothing. */
static bool blas_finishes(nn *c, const product *p, int64_t m, dtype type, int64_t stride,
                          const nn_weight *const *bias, int count, bool gelu)
{
    if (!bias && !gelu)
        return true;
    if (p->type == DTYPE_I8 || (gelu && type == DTYPE_F32) ||
        (bias && !has_type(bias, count, type)))
        return false;
    const results r = {.type = type, .stride = stride, .bias = bias != NULL, .gelu = gelu};
    const blas_product b = describe(p, m, &r);
    return blas_can(cuda_of(c)->gpu->blas, &b);
}

/* bias: as many as w, or NULL. */
static void linear(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *const *w,
                   const nn_weight *const *bias, int count, const nn_epilogue *e)
{
    size_t mark = nn_mark(c);
    product p = {.k = x->n[1], .shift = x->shift};
    for (int i = 0; i < count; i++)
        p.n += w[i]->n[0];
    p.w = cuda_matrices(c, w, count, &p.type, &p.w_scales);
    p.x = input_of(c, x, p.type);
    if (p.shift && dtype_size(p.type) == 1)
        nn_fail(c, CT_EINTERNAL, "linear: an input with a shift in a product of 8 bits");
    finish f = {.gate = cuda_at(e->gate),
                .activation = e->activation,
                .up = e->up != NULL,
                .add = e->add,
                .next = e->next};
    const bool gelu = f.activation == NN_GELU_TANH && !f.up;
    const bool more = e->gate || out->shift != 0 || (f.activation != NN_LINEAR && !gelu);
    const bool apart = p.type == DTYPE_I8 || f.up || f.next || out->operand ||
                       (f.add && (more || gelu)); /* the sums are not in out */
    const dtype type = apart ? scratch_type(c, &p) : out->type;
    const int64_t stride = apart ? p.n : out->stride;
    const bool inside = !f.up && blas_finishes(c, &p, out->n[0], type, stride, bias, count, gelu);
    results to = {cuda_at(out), out->type, out->stride, .gelu = inside && gelu, .add = f.add};
    if (bias && inside)
        to.bias = cuda_vectors(c, bias, count, type);
    else if (bias)
        f.bias = cuda_vectors(c, bias, count, DTYPE_F32);
    if (to.gelu)
        f.activation = NN_LINEAR;
    if (apart || (f.add && !inside)) {
        multiply_and_finish(c, out, &p, &to, &f);
    } else {
        multiply(c, &p, 0, out->n[0], &to);
        if ((more || !inside) && !cuda_idle(c)) /* in place: it is number by number */
            run_epilogue(c, out, &p, &f, 0, out->n[0], cuda_at(out), cuda_kind_of(c, out),
                         out->stride);
    }
    nn_release(c, mark);
}

void cuda_linear(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                 const nn_epilogue *e)
{
    const nn_weight *const list[] = {w, e->up};
    linear(c, out, x, list, e->bias ? &e->bias : NULL, e->up ? 2 : 1, e);
}

void cuda_linears(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *const *w,
                  const nn_weight *const *bias, int count)
{
    int given = 0;
    for (int i = 0; i < count; i++)
        given += bias[i] != NULL;
    if (given == 0 || given == count) {
        linear(c, out, x, w, given ? bias : NULL, count, &(nn_epilogue){0});
        return;
    }
    int64_t first = 0;
    for (int i = 0; i < count; i++) {
        nn_tensor part = nn_columns(out, first, w[i]->n[0]);
        linear(c, &part, x, &w[i], bias[i] ? &bias[i] : NULL, 1, &(nn_epilogue){0});
        first += w[i]->n[0];
    }
}
