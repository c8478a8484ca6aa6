/* Operations on rows and number by number, and the form of operands: kernels/rows.cu. */
#include "nn/cuda/cuda.h"

#include <inttypes.h>

/* What a thread holds, and the most threads of a block there: kernels/common.cuh and rows.cu. */
#define HELD 16
#define PACKED 32 /* of 16 bits */
#define ROW_THREADS 1024
#define EPILOGUE_THREADS 768
#define TILE_THREADS 256

/* Operations of the kernel pointwise. */
enum { POINTWISE_SILU, POINTWISE_TANH, POINTWISE_ADD, POINTWISE_GELU, POINTWISE_MULTIPLY };

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Threads that hold n numbers, `held` each, in whole warps. */
static int threads_for(int64_t n, int64_t held, int most)
{
    const int64_t threads = divide_up(divide_up(n, held), 32) * 32;
    return threads < most ? (int)threads : most;
}

/* A block for each row. */
static cuda_grid row_grid(int64_t rows, int64_t n)
{
    return (cuda_grid){.x = rows, .threads = threads_for(n, HELD, ROW_THREADS)};
}

/* Blocks that share rows, of equal parts. */
static cuda_grid tile_grid(int64_t rows, int64_t n)
{
    const int64_t all = divide_up(n, HELD * TILE_THREADS), tiles = all < 65535 ? all : 65535;
    return (cuda_grid){
        .x = rows, .y = tiles, .threads = threads_for(divide_up(n, tiles), HELD, TILE_THREADS)};
}

cuda_grid cuda_row_grid(int64_t rows, int64_t columns)
{
    return (cuda_grid){.x = rows, .threads = threads_for(columns, HELD, EPILOGUE_THREADS)};
}

cuda_grid cuda_epilogue_grid(cuda_kind out_kind, cuda_kind y_kind, int64_t rows, int64_t columns)
{
    if (out_kind == CUDA_FLOAT || out_kind == CUDA_WORK)
        return tile_grid(rows, columns);
    const int64_t held = y_kind == CUDA_WORK ? PACKED : HELD;
    return (cuda_grid){.x = rows, .threads = threads_for(columns, held, EPILOGUE_THREADS)};
}

/* The address of a table, which kernels read as float32; 0 for none. */
static cu_address floats_at(nn *c, const nn_tensor *t, const char *operation)
{
    if (t && (t->operand || t->type != DTYPE_F32))
        nn_fail(c, CT_EINTERNAL, "%s: expected float32 beside the rows", operation);
    return cuda_at(t);
}

/* A tensor as kernels take it. */
typedef struct matrix {
    cu_address at, scales;
    int64_t stride;
    int kind;
} matrix;

static matrix matrix_of(const nn *c, const nn_tensor *t)
{
    return (matrix){.at = cuda_at(t),
                    .scales = cuda_scales_of(c, t),
                    .stride = t->rank == 2 ? t->stride : t->n[1] * t->n[2],
                    .kind = (int)cuda_kind_of(c, t)};
}

/* ---- Operands -------------------------------------------------------------------------------- */

/* Codes of 8 bits, and behind them at the next boundary a factor for each row; else plain numbers
 * of the work type. */
size_t cuda_operand_bytes(const nn *c, int64_t m, int64_t k)
{
    const nn_tensor operand = {.rank = 2, .n = {m, k, 1, 1}, .operand = true};
    const cuda_kind kind = cuda_kind_of(c, &operand);
    const size_t count = (size_t)m * (size_t)k;
    if (kind != CUDA_E4M3 && kind != CUDA_INT8)
        return count * dtype_size(cuda_work_type(c));
    return (count + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN + (size_t)m * sizeof(float);
}

void cuda_quantize(nn *c, cu_address codes, cuda_kind kind, cu_address factors, cu_address x,
                   cuda_kind x_kind, int64_t x_stride, int64_t rows, int64_t n)
{
    int to = (int)kind, from = (int)x_kind, columns = (int)n;
    long long stride = n, from_stride = x_stride;
    const int64_t held = x_kind == CUDA_WORK ? PACKED : HELD;
    const cuda_grid grid = {.x = rows, .threads = threads_for(n, held, ROW_THREADS)};
    if (rows > 0)
        CUDA_LAUNCH(c, quantize_rows, cuda_work_type(c), grid, &codes, &to, &stride, &factors, &x,
                    &from, &from_stride, &columns);
}

void cuda_prepare(nn *c, const nn_tensor *out, const nn_tensor *x)
{
    matrix to = matrix_of(c, out), from = matrix_of(c, x);
    const int64_t m = x->n[0], n = x->n[1];
    if (to.kind == CUDA_FLOAT || to.kind == CUDA_WORK)
        cuda_convert(c, cuda_work_type(c), to.at, (cuda_kind)to.kind, to.stride, from.at,
                     (cuda_kind)from.kind, from.stride, m, n);
    else
        cuda_quantize(c, to.at, (cuda_kind)to.kind, to.scales, from.at, (cuda_kind)from.kind,
                      from.stride, m, n);
}

void cuda_convert(nn *c, dtype type, cu_address out, cuda_kind out_kind, int64_t out_stride,
                  cu_address x, cuda_kind x_kind, int64_t x_stride, int64_t rows, int64_t n)
{
    if (rows < 1 || n < 1)
        return;
    if (out_stride == n && x_stride == n && rows * n <= INT32_MAX / 2) { /* without gaps: one row */
        n *= rows;
        rows = 1;
        out_stride = x_stride = n;
    }
    int to = (int)out_kind, from = (int)x_kind, columns = (int)n;
    CUDA_LAUNCH(c, convert, type, tile_grid(rows, n), &out, &to, &out_stride, &x, &from, &x_stride,
                &columns);
}

/* ---- Rows of weights ------------------------------------------------------------------------- */

void cuda_embed(nn *c, const nn_tensor *out, const nn_weight *w, const int32_t *ids)
{
    const size_t mark = nn_mark(c);
    matrix to = matrix_of(c, out);
    cu_address chosen = cuda_upload_ints(c, ids, out->n[0]);
    dtype stored = DTYPE_BF16;
    cu_address table = cuda_table(c, w, &stored);
    int type = (int)stored, columns = (int)out->n[1];
    const int64_t threads = divide_up(out->n[1], 4 * 32) * 32; /* 4 numbers for each */
    const cuda_grid grid = {.x = out->n[0], .threads = threads < 256 ? (int)threads : 256};
    CUDA_LAUNCH(c, embed, cuda_work_type(c), grid, &to.at, &to.kind, &to.stride, &table, &type,
                &chosen, &columns);
    nn_release(c, mark);
}

void cuda_fill_rows(nn *c, const nn_tensor *out, const nn_weight *w)
{
    const matrix to = matrix_of(c, out);
    cuda_convert(c, cuda_work_type(c), to.at, (cuda_kind)to.kind, to.stride, cuda_floats(c, w),
                 CUDA_FLOAT, 0, out->n[0], out->n[1]);
}

/* ---- Norms ----------------------------------------------------------------------------------- */

void cuda_rms_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w, float eps,
                   const nn_tensor *scale)
{
    matrix to = matrix_of(c, out), from = matrix_of(c, x);
    cu_address weight = cuda_floats(c, w), factors = floats_at(c, scale, "rms_norm");
    int columns = (int)x->n[1];
    CUDA_LAUNCH(c, rms_norm, cuda_work_type(c), row_grid(x->n[0], x->n[1]), &to.at, &to.kind,
                &to.stride, &to.scales, &from.at, &from.kind, &from.stride, &weight, &factors, &eps,
                &columns);
}

void cuda_add_rms_norm(nn *c, const nn_tensor *x, const nn_tensor *y, const nn_weight *w, float eps,
                       const nn_tensor *gate, const nn_next_norm *next)
{
    matrix sum = matrix_of(c, x), from = matrix_of(c, y), then = {0};
    cu_address weight = cuda_floats(c, w), gates = floats_at(c, gate, "add_rms_norm");
    cu_address next_weight = 0, next_scale = 0;
    float next_eps = 0;
    int columns = (int)x->n[1];
    if (next) {
        then = matrix_of(c, next->out);
        next_weight = cuda_floats(c, next->w);
        next_scale = floats_at(c, next->scale, "add_rms_norm");
        next_eps = (float)next->eps;
    }
    CUDA_LAUNCH(c, add_rms_norm, cuda_work_type(c), row_grid(x->n[0], x->n[1]), &sum.at,
                &sum.stride, &from.at, &from.kind, &from.stride, &weight, &gates, &eps, &columns,
                &then.at, &then.kind, &then.stride, &then.scales, &next_weight, &next_scale,
                &next_eps);
}

void cuda_layer_norm(nn *c, const nn_tensor *out, const nn_tensor *x, float eps,
                     const nn_tensor *scale, const nn_tensor *shift)
{
    matrix to = matrix_of(c, out), from = matrix_of(c, x);
    cu_address factors = floats_at(c, scale, "layer_norm");
    cu_address summands = floats_at(c, shift, "layer_norm");
    int columns = (int)x->n[1];
    CUDA_LAUNCH(c, layer_norm, cuda_work_type(c), row_grid(x->n[0], x->n[1]), &to.at, &to.kind,
                &to.stride, &to.scales, &from.at, &from.kind, &from.stride, &factors, &summands,
                &eps, &columns);
}

void cuda_head_norm_rope(nn *c, const nn_tensor *x, int heads, const nn_weight *w, float eps,
                         const nn_tensor *cosine, const nn_tensor *sine, nn_rope_pairs pairs)
{
    matrix at = matrix_of(c, x);
    cu_address weight = w ? cuda_floats(c, w) : 0;
    cu_address re = floats_at(c, cosine, "head_norm_rope"),
               im = floats_at(c, sine, "head_norm_rope");
    int64_t table = cosine->stride;
    int dim = (int)(x->n[1] / heads), halves = pairs == NN_ROPE_HALVES;
    if (sine->stride != table)
        nn_fail(c, CT_EINTERNAL, "head_norm_rope: expected cosine and sine that lie alike");
    /* A thread has 8 numbers of two heads. */
    const int64_t threads = divide_up(divide_up(heads, 2) * dim / 8, 32) * 32;
    const cuda_grid grid = {.x = x->n[0],
                            .threads = threads < 32 ? 32 : (threads < 256 ? (int)threads : 256)};
    CUDA_LAUNCH(c, head_norm_rope, cuda_work_type(c), grid, &at.at, &at.kind, &at.stride, &heads,
                &dim, &weight, &eps, &re, &im, &table, &halves);
}

/* ---- Number by number ------------------------------------------------------------------------ */

static void pointwise(nn *c, const nn_tensor *out, const nn_tensor *x, int operation, float value)
{
    matrix to = matrix_of(c, out), from = matrix_of(c, x);
    const int64_t count = nn_count(x), last = x->n[x->rank - 1];
    int columns = (int)(count <= INT32_MAX / 2 ? count : last); /* without gaps: one row */
    to.stride = from.stride = columns;
    CUDA_LAUNCH(c, pointwise, cuda_work_type(c), tile_grid(count / columns, columns), &to.at,
                &to.kind, &to.stride, &from.at, &from.kind, &from.stride, &columns, &operation,
                &value);
}

void cuda_silu(nn *c, const nn_tensor *out, const nn_tensor *x)
{
    pointwise(c, out, x, POINTWISE_SILU, 0);
}

void cuda_gelu(nn *c, const nn_tensor *x)
{
    pointwise(c, x, x, POINTWISE_GELU, 0);
}

void cuda_multiply(nn *c, const nn_tensor *x, const nn_tensor *y)
{
    pointwise(c, x, y, POINTWISE_MULTIPLY, 0);
}

void cuda_tanh(nn *c, const nn_tensor *x)
{
    pointwise(c, x, x, POINTWISE_TANH, 0);
}

void cuda_add_scalar(nn *c, const nn_tensor *x, float value)
{
    pointwise(c, x, x, POINTWISE_ADD, value);
}
