/* Convolutions. cuDNN computes them where it can, in bands of rows: a pass before it makes a copy
 * of the band that is normed, doubled and has its zeros around it, which mostly is still in the
 * GPU's cache when it is read. Where cuDNN is missing or cannot, the pixels under the kernel become
 * rows of a matrix product. A kernel of one pixel is a product anyway. */
#include "nn/cuda/cuda.h"

/* Of memory between the passes: bands are as high as this allows. */
#define BAND_BYTES ((size_t)128 << 20)
/* Where it is only for the case that cuDNN cannot. */
#define SPARE_BYTES ((size_t)32 << 20)

typedef struct conv {
    const nn_conv *p;
    cu_address x, out, weight, bias, bias_work, norm;
    int x_kind;
    dtype type, out_type;
    int64_t height, width, in;                /* of x, neighbours included */
    int64_t out_height, out_width, outputs;   /* of out */
    int64_t kernel, pad_top, pad_left, shift; /* shift: of rows in doubled pictures */
    bool plain;                               /* x can be read as it is */
    cu_address scratch;
    size_t scratch_bytes;
} conv;

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* Rows and columns of the input under so many of the output. */
static int64_t under(const conv *v, int64_t n)
{
    return (n - 1) * v->p->stride + v->kernel;
}

/* Bytes of a row of the padded copy, and of the matrix for a row of outputs. */
static size_t copy_row(const conv *v)
{
    return (size_t)(under(v, v->out_width) * v->in) * dtype_size(v->type);
}

static size_t matrix_row(const conv *v)
{
    return (size_t)(v->out_width * v->kernel * v->kernel * v->in) * dtype_size(v->type);
}

/* The same whichever way is taken, which a dry run cannot know. */
static size_t scratch_for(const conv *v)
{
    if (v->kernel == 1 && v->plain)
        return 0;
    const size_t limit = v->plain ? SPARE_BYTES : BAND_BYTES;
    const size_t least = max_size((size_t)under(v, 1) * copy_row(v), matrix_row(v));
    const size_t all = max_size((size_t)under(v, v->out_height) * copy_row(v),
                                (size_t)v->out_height * matrix_row(v));
    return max_size(least, all < limit ? all : limit);
}

/* The height of bands when at most so many rows fit: equal ones, if there are, so that cuDNN has
 * one case to plan for. */
static int64_t band_height(const conv *v, int64_t most)
{
    const int64_t least = (v->out_height + most - 1) / most;
    for (int64_t n = least; n <= 2 * least; n++)
        if (v->out_height % n == 0)
            return v->out_height / n;
    return (v->out_height + least - 1) / least;
}

/* ---- By products ----------------------------------------------------------------------------- */

static cuda_gathering gathering(const conv *v, int64_t first, int64_t rows)
{
    return (cuda_gathering){.out = v->scratch,
                            .x = v->x,
                            .norm = v->norm,
                            .out_kind = CUDA_WORK,
                            .x_kind = v->x_kind,
                            .height = (int)v->height,
                            .width = (int)v->width,
                            .channels = (int)v->in,
                            .up = v->p->upsample ? 1 : 0,
                            .with_silu = 1,
                            .first_row = (int)first,
                            .rows = (int)rows,
                            .columns = (int)v->out_width,
                            .kernel = (int)v->kernel,
                            .stride = v->p->stride,
                            .pad_top = (int)(v->pad_top - v->shift),
                            .pad_left = (int)v->pad_left};
}

static cu_address out_row(const conv *v, int64_t row)
{
    return v->out +
           (cu_address)(row * v->out_width * v->outputs) * (cu_address)dtype_size(v->out_type);
}

/* out += bias, where cuBLASLt does not add it. */
static void add_bias(nn *c, const conv *v, cu_address out, int64_t pixels)
{
    cu_address bias = v->bias, none = 0;
    int64_t stride = v->outputs;
    int kind = v->out_type == v->type ? CUDA_WORK : CUDA_FLOAT, zero = 0;
    int rows = (int)pixels, columns = (int)v->outputs;
    CUDA_LAUNCH(c, epilogue, v->type, cuda_epilogue_grid(kind, pixels, v->outputs), &out, &kind,
                &stride, &none, &out, &kind, &stride, &zero, &bias, &zero, &none, &zero, &rows,
                &columns, &none, &none);
}

/* Rows of outputs from the matrix at `a` times the weights. */
static void multiply(nn *c, const conv *v, cu_address a, int64_t first, int64_t rows)
{
    cuda_state *s = cuda_of(c);
    const int64_t k = v->kernel * v->kernel * v->in;
    blas_product p = {.m = rows * v->out_width,
                      .n = v->outputs,
                      .k = k,
                      .x_stride = k,
                      .w_stride = k,
                      .out_stride = v->outputs,
                      .type = v->type,
                      .out_type = v->out_type,
                      .add = v->p->add,
                      .bias = true,
                      .bias_type = v->out_type};
    const blas_operands at = {.out = out_row(v, first),
                              .x = a,
                              .w = v->weight,
                              .bias = v->out_type == DTYPE_F32 ? v->bias : v->bias_work};
    ct_error error;
    if (cuda_idle(c))
        return;
    p.bias = blas_can(s->gpu->blas, &p);
    if (blas_multiply(s->gpu->blas, s->stream, s->capturing, s->workspace, &p, &at, &error) !=
        CT_OK)
        cuda_fail(c, &error);
    if (!p.bias)
        add_bias(c, v, at.out, p.m);
}

static void by_products(nn *c, const conv *v, int64_t first, int64_t end)
{
    if (v->out_type != DTYPE_F32)
        cuda_convert(c, v->type, v->bias_work, CUDA_WORK, v->outputs, v->bias, CUDA_FLOAT,
                     v->outputs, 1, v->outputs);
    if (v->kernel == 1 && v->plain) {
        multiply(c, v, v->x, first, end - first);
        return;
    }
    const int64_t most = max64(1, (int64_t)(v->scratch_bytes / matrix_row(v)));
    for (int64_t row = first; row < end && !cuda_idle(c); row += most) {
        const int64_t rows = min64(most, end - row);
        const cuda_gathering g = gathering(v, row, rows);
        cuda_gather(c, &g);
        multiply(c, v, v->scratch, row, rows);
    }
}

/* ---- By cuDNN -------------------------------------------------------------------------------- */

/* False where cuDNN cannot; then nothing was written. */
static bool convolve(nn *c, const conv *v, int64_t first, int64_t rows)
{
    dnn_conv p = {.type = v->type,
                  .height = v->height,
                  .width = v->width,
                  .in = v->in,
                  .out = v->outputs,
                  .kernel = (int)v->kernel,
                  .stride = v->p->stride,
                  .pad_before = (int)v->pad_left,
                  .pad_after = (int)(v->kernel / 2),
                  .add = v->p->add,
                  .bias = true};
    dnn_conv_operands at = {out_row(v, first), v->x, v->weight, v->bias};
    if (!v->plain) {
        cuda_gathering g = gathering(v, 0, under(v, rows));
        g.columns = (int)under(v, v->out_width);
        g.kernel = g.stride = 1;
        g.pad_top -= (int)first * v->p->stride;
        cuda_gather(c, &g);
        p.height = g.rows;
        p.width = g.columns;
        p.pad_before = p.pad_after = 0;
        at.x = v->scratch;
    }
    if (cuda_idle(c))
        return true;
    ct_error error;
    const ct_status status = dnn_convolve(cuda_of(c)->dnn, &p, &at, &error);
    if (status != CT_OK && status != CT_EUNSUPPORTED)
        cuda_fail(c, &error);
    return status != CT_EUNSUPPORTED;
}

static void in_bands(nn *c, const conv *v)
{
    int64_t height = v->out_height;
    if (!v->plain) {
        const int64_t copied = (int64_t)(v->scratch_bytes / copy_row(v));
        height = band_height(v, (copied - v->kernel) / v->p->stride + 1);
    }
    for (int64_t row = 0; row < v->out_height && !cuda_idle(c); row += height) {
        const int64_t rows = min64(height, v->out_height - row);
        if (!convolve(c, v, row, rows))
            by_products(c, v, row, row + rows);
    }
}

/* ---- The operation --------------------------------------------------------------------------- */

void cuda_conv2d(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                 const nn_weight *bias, const nn_conv *params)
{
    const size_t mark = nn_mark(c);
    conv v = {.p = params,
              .x = cuda_at(x),
              .out = cuda_at(out),
              .weight = cuda_conv_weight(c, w),
              .bias = cuda_floats(c, bias),
              .norm = cuda_at(params->norm),
              .x_kind = (int)cuda_kind_of(c, x),
              .type = cuda_work_type(c),
              .out_type = out->type,
              .height = x->n[0],
              .width = x->n[1],
              .in = x->n[2],
              .out_height = out->n[0],
              .out_width = out->n[1],
              .outputs = out->n[2],
              .kernel = w->n[2],
              .pad_top = params->pad_bottom_right ? 0 : w->n[2] / 2,
              .shift = params->upsample ? 2 * params->above : params->above};
    v.pad_left = v.pad_top;
    v.plain = !params->norm && !params->upsample && params->above == 0 && params->below == 0 &&
              x->type == v.type && (v.kernel > 1 || params->stride == 1);
    v.bias_work = cuda_scratch(c, (size_t)v.outputs * dtype_size(v.type));
    v.scratch_bytes = scratch_for(&v);
    if (v.scratch_bytes)
        v.scratch = cuda_scratch(c, v.scratch_bytes);
    if (cuda_of(c) && cuda_of(c)->dnn && v.kernel > 1 && v.out_type == v.type)
        in_bands(c, &v);
    else
        by_products(c, &v, 0, v.out_height);
    nn_release(c, mark);
}
