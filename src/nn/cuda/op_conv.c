/* Convolutions. cuDNN computes them where it can, in bands of rows: a pass before it makes a copy
 * of the band that is normed and has its zeros around it, and one behind it (conv_finish) adds
 * what is to be added and takes the sums of the norm that follows. cuDNN itself is asked for
 * nothing but convolutions: for those it has kernels, while those with an addition it compiles,
 * for seconds.
 *
 * The convolution of a doubled picture is four of 2 by 2 on the picture itself, one for each of
 * the four results that come from a pixel: 2.25 times fewer products. They are one for cuDNN, with
 * four times the outputs, and the pass behind it puts them in their places.
 *
 * Few outputs from many channels are an own kernel. Where cuDNN is missing or cannot, the pixels
 * under the kernel become rows of a matrix product. A kernel of one pixel is a product anyway. */
#include "nn/cuda/cuda.h"

/* Of each kind of memory between the passes: bands are as high as this allows. A little above the
 * power of two, which padded copies of pictures of powers of two do not fit into. */
#define BAND_BYTES ((size_t)136 << 20)
/* Where it is only for the case that cuDNN cannot. */
#define SPARE_BYTES ((size_t)32 << 20)
/* conv_finish, group_sums: kernels/planes.cu; conv_few, pixel_norm: kernels/convs.cu */
#define GROUP_THREADS 512
#define FEW_THREADS 256
#define FEW_OUTPUTS 8
#define FEW_ROWS 8
#define FEW_COLUMNS 32
#define FEW_CHANNELS 32
#define PIXEL_THREADS 256
#define PIXEL_VECTORS 3
#define PIXEL_AHEAD 2
#define PIXEL_ROUNDS 4 /* that a block takes, since it must load the weights */

typedef struct conv {
    const nn_conv *p;
    const nn_weight *w;
    cu_address x, out, bias, bias_work, norm, sums; /* bias 0: a late one */
    cu_address late;                                /* for the sums alone */
    cu_address pixel_weight, pixel_bias;            /* of a norm of pixels */
    int x_kind, groups;
    dtype type, out_type;
    int64_t height, width, in;                /* of x, neighbours included */
    int64_t out_height, out_width, outputs;   /* of out */
    int64_t kernel, pad_top, pad_left, shift; /* shift: of rows in doubled pictures */
    bool plain;                               /* x can be read as it is, as a whole */
    bool folded;                              /* cuDNN computes it on the picture that is doubled */
    bool bias_converted;
    int64_t band;                 /* rows of out at a time, for cuDNN */
    cu_address scratch, results;  /* results: of cuDNN, where they are not out */
    size_t scratch_bytes, copied; /* bytes of all, and before results */
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
    return v->folded ? n / 2 + 2 : (n - 1) * v->p->stride + v->kernel;
}

/* Bytes of a row of the padded copy. */
static size_t copy_row(const conv *v)
{
    return (size_t)(under(v, v->out_width) * v->in) * dtype_size(v->type);
}

/* Bytes of the matrix for a row of outputs. */
static size_t matrix_row(const conv *v)
{
    return (size_t)(v->out_width * v->kernel * v->kernel * v->in) * dtype_size(v->type);
}

/* Bytes of what is kept between cuDNN and conv_finish, for so many rows of out. */
static size_t result_bytes(const conv *v, int64_t rows)
{
    const int64_t numbers = v->folded   ? (rows / 2 + 1) * (v->out_width / 2 + 1) * 4 * v->outputs
                            : v->p->add ? rows * v->out_width * v->outputs
                                        : 0;
    return (size_t)numbers * dtype_size(v->type);
}

static size_t aligned(size_t bytes)
{
    return (bytes + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
}

static size_t copy_bytes(const conv *v, int64_t rows)
{
    return v->plain ? 0 : (size_t)under(v, rows) * copy_row(v);
}

/* Bytes of what is in front of the matrix for so many rows of out: pixels are normed before. */
static size_t before_matrix(const conv *v, int64_t rows)
{
    return v->p->pixel_norm ? aligned(copy_bytes(v, rows)) : 0;
}

/* Rows of out whose matrix has room in so many bytes; 1 at the least. */
static int64_t matrix_rows(const conv *v, size_t bytes)
{
    int64_t rows = max64(1, (int64_t)(bytes / matrix_row(v)));
    while (rows > 1 && before_matrix(v, rows) + (size_t)rows * matrix_row(v) > bytes)
        rows--;
    return rows;
}

/* Rows of out at a time: as many as memory allows, in equal bands if there are such, so that cuDNN
 * has one case to plan for. */
static int64_t band_rows(const conv *v)
{
    const int64_t unit = v->folded ? 2 : 1, units = v->out_height / unit;
    int64_t least = 1;
    while (least < units) {
        const int64_t rows = (units + least - 1) / least * unit;
        if (copy_bytes(v, rows) <= BAND_BYTES && result_bytes(v, rows) <= BAND_BYTES)
            break;
        least++;
    }
    for (int64_t n = least; n <= 2 * least; n++)
        if (units % n == 0)
            return units / n * unit;
    return (units + least - 1) / least * unit;
}

/* The same whichever way is taken, which a dry run cannot know. */
static void plan_memory(conv *v)
{
    if (v->kernel == 1 && v->plain)
        return;
    const size_t limit = v->plain ? SPARE_BYTES : BAND_BYTES;
    const size_t all = (size_t)v->out_height * matrix_row(v) + before_matrix(v, v->out_height);
    const size_t matrix = max_size(matrix_row(v) + before_matrix(v, 1), all < limit ? all : limit);
    v->band = band_rows(v);
    v->copied = aligned(copy_bytes(v, v->band));
    v->scratch_bytes = max_size(matrix, v->copied + result_bytes(v, v->band));
}

/* ---- Copies ---------------------------------------------------------------------------------- */

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
                            .up = v->p->upsample,
                            .with_silu = 1,
                            .first_row = (int)first,
                            .rows = (int)rows,
                            .columns = (int)v->out_width,
                            .kernel = (int)v->kernel,
                            .stride = v->p->stride,
                            .pad_top = (int)(v->pad_top - v->shift),
                            .pad_left = (int)v->pad_left};
}

/* Lanes that share a pixel in the kernel pixel_norm; 0: the way for any number of channels. */
static int pixel_lanes(const conv *v)
{
    int lanes = 1;
    if (v->in % 8 != 0 || v->x_kind != CUDA_WORK || v->in > 32 * PIXEL_VECTORS * 8)
        return 0;
    while (lanes * PIXEL_VECTORS * 8 < v->in)
        lanes *= 2;
    return lanes;
}

/* The normed pixels of x from row `first` and column -pad_left on, zeros outside, to scratch. */
static void norm_pixels(nn *c, const conv *v, int64_t first, int64_t rows, int64_t columns,
                        int64_t pad_left)
{
    cu_address out = v->scratch, x = v->x, weight = v->pixel_weight, bias = v->pixel_bias;
    int kind = v->x_kind, height = (int)v->height, width = (int)v->width, in = (int)v->in;
    int lanes = pixel_lanes(v), row = (int)first, count = (int)columns, left = (int)pad_left;
    float eps = (float)v->p->pixel_norm->eps;
    const int64_t slots = lanes ? PIXEL_AHEAD * (PIXEL_THREADS / lanes) : PIXEL_THREADS / 32;
    const int64_t part = slots * PIXEL_ROUNDS;
    const cuda_grid grid = {
        .x = rows, .y = min64((columns + part - 1) / part, 65535), .threads = PIXEL_THREADS};
    CUDA_LAUNCH(c, pixel_norm, v->type, grid, &out, &x, &kind, &height, &width, &in, &lanes, &row,
                &count, &left, &weight, &bias, &eps);
}

/* The padded copy for rows of out. */
static void copy_band(nn *c, const conv *v, int64_t first, int64_t rows)
{
    if (v->p->pixel_norm) {
        norm_pixels(c, v, first + v->shift - v->pad_top, under(v, rows), under(v, v->out_width),
                    v->pad_left);
        return;
    }
    cuda_gathering g = gathering(v, 0, under(v, rows));
    g.columns = (int)under(v, v->out_width);
    g.kernel = g.stride = 1;
    if (v->folded) {
        g.up = 0;
        g.pad_top = 1 - (int)v->p->above - (int)(first / 2);
    } else {
        g.pad_top -= (int)first * v->p->stride;
    }
    cuda_gather(c, &g);
}

/* ---- By products ----------------------------------------------------------------------------- */

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
    const cuda_kind out_kind = v->out_type == v->type ? CUDA_WORK : CUDA_FLOAT;
    const cuda_grid grid = cuda_epilogue_grid(out_kind, out_kind, pixels, v->outputs);
    int kind = (int)out_kind, zero = 0;
    int rows = (int)pixels, columns = (int)v->outputs;
    float one = 1;
    CUDA_LAUNCH(c, epilogue, v->type, grid, &out, &kind, &stride, &none, &out, &kind, &stride,
                &zero, &bias, &zero, &none, &zero, &rows, &columns, &none, &none, &one);
}

/* Rows of outputs from the matrix at `a` times the weights. */
static void multiply(nn *c, const conv *v, cu_address a, int64_t first, int64_t rows)
{
    cuda_state *s = cuda_of(c);
    const int64_t k = v->kernel * v->kernel * v->in;
    const bool bias = v->bias != 0;
    blas_product p = {.m = rows * v->out_width,
                      .n = v->outputs,
                      .k = k,
                      .x_stride = k,
                      .w_stride = k,
                      .out_stride = v->outputs,
                      .type = v->type,
                      .out_type = v->out_type,
                      .add = v->p->add,
                      .bias = bias,
                      .bias_type = v->out_type};
    const blas_operands at = {.out = out_row(v, first),
                              .x = a,
                              .w = cuda_conv_weight(c, v->w),
                              .bias = v->out_type == DTYPE_F32 ? v->bias : v->bias_work};
    ct_error error;
    if (cuda_idle(c))
        return;
    p.bias = bias && blas_can(s->gpu->blas, &p);
    if (blas_multiply(s->gpu->blas, s->stream, s->capturing, s->workspace, &p, &at, &error) !=
        CT_OK)
        cuda_fail(c, &error);
    if (bias && !p.bias)
        add_bias(c, v, at.out, p.m);
}

static void by_products(nn *c, conv *v, int64_t first, int64_t end)
{
    if (v->out_type != DTYPE_F32 && !v->bias_converted && v->bias)
        cuda_convert(c, v->type, v->bias_work, CUDA_WORK, v->outputs, v->bias, CUDA_FLOAT,
                     v->outputs, 1, v->outputs);
    v->bias_converted = true;
    if (v->kernel == 1 && v->plain) {
        multiply(c, v, v->x, first, end - first);
        return;
    }
    const int64_t most = matrix_rows(v, v->scratch_bytes);
    for (int64_t row = first; row < end && !cuda_idle(c); row += most) {
        const int64_t rows = min64(most, end - row);
        cuda_gathering g = gathering(v, row, rows);
        if (v->p->pixel_norm) { /* the copy is the picture then */
            copy_band(c, v, row, rows);
            g.out += before_matrix(v, rows);
            g.x = v->scratch;
            g.x_kind = CUDA_WORK;
            g.height = (int)under(v, rows);
            g.width = (int)under(v, v->out_width);
            g.first_row = g.pad_top = g.pad_left = 0;
        }
        cuda_gather(c, &g);
        multiply(c, v, g.out, row, rows);
    }
}

/* ---- By cuDNN -------------------------------------------------------------------------------- */

/* The sums of rows of out, as they are, with a bias that comes later. */
static void take_sums(nn *c, const conv *v, int64_t first, int64_t rows)
{
    cu_address to = v->sums + (cu_address)(first * 2 * v->groups) * sizeof(double);
    cu_address from = out_row(v, first), late = v->late;
    int kind = v->out_type == v->type ? CUDA_WORK : CUDA_FLOAT, groups = v->groups;
    int width = (int)v->out_width, channels = (int)v->outputs;
    const cuda_grid grid = {.x = rows, .threads = GROUP_THREADS};
    if (v->groups)
        CUDA_LAUNCH(c, group_sums, v->type, grid, &to, &from, &kind, &late, &width, &channels,
                    &groups);
}

/* What follows a convolution that has written `from`. */
static void finish(nn *c, const conv *v, cu_address from, int64_t first, int64_t rows)
{
    if (from == out_row(v, first) && !v->bias) {
        take_sums(c, v, first, rows);
        return;
    }
    cu_address out = out_row(v, first), bias = v->bias;
    cu_address sums =
        v->groups && !v->late ? v->sums + (cu_address)(first * 2 * v->groups) * sizeof(double) : 0;
    int width = (int)v->out_width, channels = (int)v->outputs, groups = v->groups;
    int add = v->p->add, folded = v->folded;
    const cuda_grid grid = {.x = rows, .threads = GROUP_THREADS};
    CUDA_LAUNCH(c, conv_finish, v->type, grid, &out, &from, &bias, &sums, &width, &channels,
                &groups, &add, &folded);
    if (v->late) /* a sum, or four results: the sums of a bias that is not in them */
        take_sums(c, v, first, rows);
}

/* False where cuDNN cannot; then nothing was written. */
static bool convolve(nn *c, const conv *v, int64_t first, int64_t rows)
{
    const bool apart = v->results != 0;
    dnn_conv p = {.type = v->type,
                  .height = v->height,
                  .width = v->width,
                  .in = v->in,
                  .out = v->folded ? 4 * v->outputs : v->outputs,
                  .kernel = v->folded ? 2 : (int)v->kernel,
                  .stride = v->p->stride,
                  .pad_before = (int)v->pad_left,
                  .pad_after = (int)(v->kernel / 2)};
    dnn_conv_operands at = {.out = apart ? v->results : out_row(v, first),
                            .x = v->x,
                            .w = v->folded ? cuda_folded_weight(c, v->w)
                                           : cuda_conv_weight(c, v->w)};
    if (!v->plain) {
        copy_band(c, v, first, rows);
        p.height = under(v, rows);
        p.width = under(v, v->out_width);
        p.pad_before = p.pad_after = 0;
        at.x = v->scratch;
    }
    if (cuda_idle(c))
        return true;
    ct_error error;
    const ct_status status = dnn_convolve(cuda_of(c)->dnn, &p, &at, &error);
    if (status != CT_OK && status != CT_EUNSUPPORTED)
        cuda_fail(c, &error);
    if (status == CT_OK)
        finish(c, v, at.out, first, rows);
    return status != CT_EUNSUPPORTED;
}

static void in_bands(nn *c, conv *v)
{
    for (int64_t row = 0; row < v->out_height && !cuda_idle(c); row += v->band) {
        const int64_t rows = min64(v->band, v->out_height - row);
        if (!convolve(c, v, row, rows)) {
            by_products(c, v, row, row + rows);
            take_sums(c, v, row, rows);
        }
    }
}

/* ---- By a kernel of ours --------------------------------------------------------------------- */

/* The VAE's last convolution, from 128 channels to 3. cuDNN computes at least 8, if it does it at
 * all, and would read a copy; this one makes the norm while it reads. */
static bool few_fits(const nn *c, const conv *v)
{
    const cuda_state *s = c->device_state;
    const int version = s->gpu->info.major * 10 + s->gpu->info.minor;
    const bool cores =
        (v->type == DTYPE_F16 && version >= 75) || (v->type == DTYPE_BF16 && version >= 80);
    return cores && v->kernel == 3 && v->outputs <= FEW_OUTPUTS && v->in % FEW_CHANNELS == 0 &&
           v->x_kind == CUDA_WORK && v->out_type == v->type && v->p->stride == 1 &&
           !v->p->upsample && !v->p->add && !v->p->sums && !v->p->late_bias &&
           !v->p->pad_bottom_right;
}

/* Rows of out from `first` on, the first of which has rows -above to 2 - above of x. */
static void few_rows(nn *c, const conv *v, cu_address w, cu_address x, int64_t x_rows,
                     int64_t first, int64_t count, int64_t rows_above)
{
    cu_address out = out_row(v, first), norm = v->norm, bias = v->bias;
    int rows = (int)count, height = (int)x_rows, width = (int)v->width;
    int channels = (int)v->in, outputs = (int)v->outputs, above = (int)rows_above;
    const cuda_grid grid = {.x = (v->out_width + FEW_COLUMNS - 1) / FEW_COLUMNS,
                            .y = (count + FEW_ROWS - 1) / FEW_ROWS,
                            .threads = FEW_THREADS};
    CUDA_LAUNCH(c, conv_few, v->type, grid, &out, &x, &norm, &w, &bias, &rows, &height, &width,
                &channels, &outputs, &above);
}

/* Pixels are normed before, in bands, since it sees some of their channels at a time. */
static void by_few(nn *c, conv *v)
{
    const cu_address w = cuda_conv_weight(c, v->w);
    if (!v->p->pixel_norm) {
        few_rows(c, v, w, v->x, v->height, 0, v->out_height, v->pad_top - v->shift);
        return;
    }
    v->band = band_rows(v);
    v->scratch = cuda_scratch(c, copy_bytes(v, v->band));
    for (int64_t row = 0; row < v->out_height && !cuda_idle(c); row += v->band) {
        const int64_t rows = min64(v->band, v->out_height - row);
        norm_pixels(c, v, row + v->shift - v->pad_top, rows + 2, v->width, 0);
        few_rows(c, v, w, v->scratch, rows + 2, row, rows, 0);
    }
}

/* ---- The operation --------------------------------------------------------------------------- */

static conv describe(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                     const nn_weight *bias, const nn_conv *p)
{
    const cu_address at = cuda_floats(c, bias);
    conv v = {.p = p,
              .w = w,
              .x = cuda_at(x),
              .out = cuda_at(out),
              .bias = p->late_bias ? 0 : at,
              .late = p->late_bias ? at : 0,
              .norm = cuda_at(p->norm),
              .sums = cuda_at(p->sums),
              .groups = p->sums ? (int)(p->sums->n[1] / 4) : 0,
              .pixel_weight = p->pixel_norm ? cuda_floats(c, p->pixel_norm->w) : 0,
              .pixel_bias = p->pixel_norm ? cuda_floats(c, p->pixel_norm->late_bias) : 0,
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
              .pad_top = p->pad_bottom_right ? 0 : w->n[2] / 2,
              .shift = p->upsample ? 2 * p->above : p->above};
    v.pad_left = v.pad_top;
    v.plain = !p->norm && !p->pixel_norm && !p->upsample && p->above == 0 && p->below == 0 &&
              x->type == v.type && (v.kernel > 1 ? !p->add : p->stride == 1);
    return v;
}

/* Whether conv_finish can follow: its rows are vectors. */
static bool dnn_fits(const nn *c, const conv *v)
{
    const cuda_state *s = c->device_state;
    /* A dry run does not open it. */
    return (c->params.dry ? s->gpu->has_dnn : s->dnn != NULL) && v->kernel > 1 &&
           v->out_type == v->type && v->outputs % 8 == 0 && v->outputs <= 8 * GROUP_THREADS;
}

void cuda_conv2d(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                 const nn_weight *bias, const nn_conv *params)
{
    const size_t mark = nn_mark(c);
    conv v = describe(c, out, x, w, bias, params);
    if (few_fits(c, &v)) {
        by_few(c, &v);
        nn_release(c, mark);
        return;
    }
    v.folded = params->upsample && v.kernel == 3 && params->stride == 1 && !params->norm &&
               v.out_height % 2 == 0 && v.out_type == v.type;
    plan_memory(&v);
    v.bias_work = cuda_scratch(c, (size_t)v.outputs * dtype_size(v.type));
    if (v.scratch_bytes)
        v.scratch = cuda_scratch(c, v.scratch_bytes);
    if (v.folded || params->add)
        v.results = v.scratch + v.copied;
    if (c->params.dry) { /* which weights will be there: cuda_store_get */
        if (v.folded && dnn_fits(c, &v))
            cuda_folded_weight(c, w);
        else
            cuda_conv_weight(c, w);
    } else if (dnn_fits(c, &v)) {
        in_bands(c, &v);
    } else {
        by_products(c, &v, 0, v.out_height);
        take_sums(c, &v, 0, v.out_height);
    }
    nn_release(c, mark);
}
