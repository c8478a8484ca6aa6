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

/* Rows first .. first+m-1 of x into out. */
static void multiply(nn *c, const product *p, int64_t first, int64_t m, cu_address out,
                     dtype out_type, int64_t out_stride, cu_address bias, bool add)
{
    if (cuda_idle(c))
        return;
    cuda_state *s = cuda_of(c);
    const blas_product b = {.m = m,
                            .n = p->n,
                            .k = p->k,
                            .x_stride = p->x.stride,
                            .w_stride = p->k,
                            .out_stride = out_stride,
                            .type = p->type,
                            .out_type = out_type,
                            .add = add,
                            .bias = bias != 0,
                            .bias_type = DTYPE_F32,
                            .scaled = p->type == DTYPE_F8_E4M3,
                            .fast_sums = p->type == DTYPE_F8_E4M3,
                            .factor = ldexpf(1, p->shift)};
    const blas_operands at = {.out = out,
                              .x =
                                  p->x.data + (uint64_t)(first * p->x.stride) * dtype_size(p->type),
                              .w = p->w,
                              .bias = bias,
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
    int kind = (int)cuda_kind_of(c, out), in = (int)y_kind, up = f->up;
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
    CUDA_LAUNCH(c, epilogue, cuda_work_type(c), cuda_epilogue_grid(kind, rows, columns), &to, &kind,
                &out_stride, &out_scales, &y, &in, &stride, &up, &bias, &activation, &gate, &add,
                &m, &columns, &x_scales, &w_scales, &factor);
}

/* The product into scratch memory, some rows at a time, and its epilogue from there. */
static void multiply_and_finish(nn *c, const nn_tensor *out, const product *p, const finish *f)
{
    const bool integers = p->type == DTYPE_I8;
    const dtype type = integers ? DTYPE_I32 : cuda_wide_type(c);
    const cuda_kind kind = integers                    ? CUDA_INT32
                           : type == cuda_work_type(c) ? CUDA_WORK
                                                       : CUDA_FLOAT;
    const int64_t row = p->n * (int64_t)dtype_size(type);
    int64_t step = SCRATCH / row / 128 * 128;
    step = step < 128 ? 128 : step;
    step = step < out->n[0] ? step : out->n[0];
    const cu_address y = cuda_scratch(c, (size_t)(step * row));
    for (int64_t first = 0; first < out->n[0] && !cuda_idle(c); first += step) {
        const int64_t rows = out->n[0] - first < step ? out->n[0] - first : step;
        multiply(c, p, first, rows, y, type, p->n, 0, false);
        run_epilogue(c, out, p, f, first, rows, y, kind, p->n);
    }
}

static void linear(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *const *w,
                   int count, const nn_epilogue *e)
{
    size_t mark = nn_mark(c);
    product p = {.k = x->n[1], .shift = x->shift};
    for (int i = 0; i < count; i++)
        p.n += w[i]->n[0];
    p.w = cuda_matrices(c, w, count, &p.type, &p.w_scales);
    p.x = input_of(c, x, p.type);
    if (p.shift && dtype_size(p.type) == 1)
        nn_fail(c, CT_EINTERNAL, "linear: an input with a shift in a product of 8 bits");
    const finish f = {.bias = e->bias ? cuda_floats(c, e->bias) : 0,
                      .gate = cuda_at(e->gate),
                      .activation = e->activation,
                      .up = e->up != NULL,
                      .add = e->add};
    const bool plain = !f.up && !e->gate && f.activation == NN_LINEAR && p.type != DTYPE_I8;
    /* cuBLASLt adds a bias of float32 to results of float32 alone, and not in fp8. */
    const bool alone = plain && (!e->bias || (out->type == DTYPE_F32 && p.type != DTYPE_F8_E4M3));
    if (alone) {
        multiply(c, &p, 0, out->n[0], cuda_at(out), out->type, out->stride, f.bias, e->add);
    } else if (!f.up && !e->add && p.type != DTYPE_I8) {
        /* In place: what follows is number by number. */
        multiply(c, &p, 0, out->n[0], cuda_at(out), out->type, out->stride, 0, false);
        if (!cuda_idle(c))
            run_epilogue(c, out, &p, &f, 0, out->n[0], cuda_at(out), cuda_kind_of(c, out),
                         out->stride);
    } else {
        multiply_and_finish(c, out, &p, &f);
    }
    nn_release(c, mark);
}

void cuda_linear(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                 const nn_epilogue *e)
{
    const nn_weight *const list[] = {w, e->up};
    linear(c, out, x, list, e->up ? 2 : 1, e);
}

void cuda_linears(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *const *w,
                  const nn_weight *const *bias, int count)
{
    bool any = false;
    for (int i = 0; i < count; i++)
        any = any || bias[i];
    if (!any) {
        linear(c, out, x, w, count, &(nn_epilogue){0});
        return;
    }
    int64_t first = 0;
    for (int i = 0; i < count; i++) {
        nn_tensor part = nn_columns(out, first, w[i]->n[0]);
        linear(c, &part, x, &w[i], 1, &(nn_epilogue){.bias = bias[i]});
        first += w[i]->n[0];
    }
}
