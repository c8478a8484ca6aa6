/* Passes over rows: norms, rotation, quantisation, and what follows a product. All are bound by
 * memory, so each reads its row once, into registers, and writes it once.
 *
 * "A block of a row": grid.x = rows, threads = the width / 16 rounded up to a multiple of 32, at
 * most 1024 (row_grid in op_rows.c). "Tiles of rows": grid.x = rows, grid.y blocks share a row
 * (tile_grid there).
 *
 * Widths that are no multiple of 4, and rows that are not aligned, are right but slow.
 *
 * Pointers to float are of float32 on the device and may be null where it says so. Strides are from
 * row to row, in numbers. */
#include "common.cuh"

/* ---- Norms: a block of a row ----------------------------------------------------------------- */

typedef struct row_target {
    void *row;
    float *factor; /* of codes */
    int kind;
} row_target;

typedef struct rms_factors {
    const float *w, *scale; /* may be null */
    float eps;
} rms_factors;

DEVICE row_target target_at(void *data, int kind, long long stride, float *factors)
{
    const row_target to = {number_at(kind, data, blockIdx.x * stride), factors + blockIdx.x, kind};
    return to;
}

DEVICE float rms_factor(float squares, int n, float eps)
{
    return 1.0f / sqrtf(squares / (float)n + eps);
}

DEVICE float factor_at(const float *w, int i)
{
    return w ? w[i] : 1.0f;
}

/* v = v / rms(v) * w * scale */
DEVICE void held_rms_norm(float *v, const rms_factors *by, int n)
{
    held_scale(v, rms_factor(block_sum(held_squares(v)), n, by->eps));
    if (by->w)
        held_multiply(v, by->w, 0, n);
    if (by->scale)
        held_multiply(v, by->scale, 0, n);
}

DEVICE void rms_row(const row_target *to, const void *x, int kind, const rms_factors *by, int n)
{
    float v[HELD];
    held_load(v, kind, x, 0, n);
    held_rms_norm(v, by, n);
    held_store_row(to->kind, to->row, to->factor, n, v);
}

DEVICE void rms_row_any(const row_target *to, const void *x, int kind, const rms_factors *by, int n)
{
    const float squares = any_sum(n, [=](int i) {
        const float v = load1(kind, x, i);
        return v * v;
    });
    const float factor = rms_factor(squares, n, by->eps);
    any_store_row(to->kind, to->row, to->factor, n, [=](int i) {
        return load1(kind, x, i) * factor * factor_at(by->w, i) * factor_at(by->scale, i);
    });
}

/* out = x / sqrt(mean(x^2) + eps) * w * scale; w and scale may be null. out and x may be the same
 * memory, if they are of the same kind. */
extern "C" __global__ void __launch_bounds__(1024)
    rms_norm(void *out, int out_kind, long long out_stride, float *out_factors, const void *x,
             int x_kind, long long x_stride, const float *w, const float *scale, float eps, int n)
{
    const row_target to = target_at(out, out_kind, out_stride, out_factors);
    const rms_factors by = {w, scale, eps};
    const void *row = number_at(x_kind, x, blockIdx.x * x_stride);
    const bool vector = in_groups(x, x_stride, n) && in_groups(out, out_stride, n) &&
                        is_aligned(w, 16) && is_aligned(scale, 16) && n <= held_span();
    if (!vector)
        rms_row_any(&to, row, x_kind, &by, n);
    else if (x_kind == KIND_FLOAT)
        rms_row(&to, row, KIND_FLOAT, &by, n);
    else
        rms_row(&to, row, KIND_WORK, &by, n);
}

DEVICE void add_rms_row(float *x, const void *y, int y_kind, const rms_factors *by,
                        const row_target *next, bool has_next, const rms_factors *next_by, int n)
{
    float v[HELD], sum[HELD];
    held_load(v, y_kind, y, 0, n);
    held_load(sum, KIND_FLOAT, x, 0, n);
    held_rms_norm(v, by, n);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        sum[i] += v[i];
    held_store(KIND_FLOAT, x, 0, n, sum);
    if (has_next) {
        held_rms_norm(sum, next_by, n);
        held_store_row(next->kind, next->row, next->factor, n, sum);
    }
}

DEVICE void add_rms_row_any(float *x, const void *y, int y_kind, const rms_factors *by,
                            const row_target *next, bool has_next, const rms_factors *next_by,
                            int n)
{
    const float squares = any_sum(n, [=](int i) {
        const float v = load1(y_kind, y, i);
        return v * v;
    });
    const float factor = rms_factor(squares, n, by->eps);
    any_store_row(KIND_FLOAT, x, (float *)0, n, [=](int i) {
        return x[i] + load1(y_kind, y, i) * factor * factor_at(by->w, i) * factor_at(by->scale, i);
    });
    if (has_next)
        rms_row_any(next, x, KIND_FLOAT, next_by, n);
}

/* x += gate * rms_norm(y, w, eps); then next = rms_norm(x, next_w, next_eps) * next_scale. w, gate,
 * next (and then the rest of it), next_w and next_scale may be null. */
extern "C" __global__ void __launch_bounds__(1024)
    add_rms_norm(float *x, long long x_stride, const void *y, int y_kind, long long y_stride,
                 const float *w, const float *gate, float eps, int n, void *next, int next_kind,
                 long long next_stride, float *next_factors, const float *next_w,
                 const float *next_scale, float next_eps)
{
    const rms_factors by = {w, gate, eps}, next_by = {next_w, next_scale, next_eps};
    const row_target to = target_at(next, next_kind, next_stride, next_factors);
    const bool has_next = next != 0;
    float *sum = x + blockIdx.x * x_stride;
    const void *row = number_at(y_kind, y, blockIdx.x * y_stride);
    const bool vector = in_groups(x, x_stride, n) && in_groups(y, y_stride, n) &&
                        (!has_next || in_groups(next, next_stride, n)) && is_aligned(w, 16) &&
                        is_aligned(gate, 16) && is_aligned(next_w, 16) &&
                        is_aligned(next_scale, 16) && n <= held_span();
    if (!vector)
        add_rms_row_any(sum, row, y_kind, &by, &to, has_next, &next_by, n);
    else if (y_kind == KIND_FLOAT)
        add_rms_row(sum, row, KIND_FLOAT, &by, &to, has_next, &next_by, n);
    else
        add_rms_row(sum, row, KIND_WORK, &by, &to, has_next, &next_by, n);
}

/* v = (v - mean) / deviation * scale + shift; shift may be null */
DEVICE void held_layer_norm(float *v, const float *scale, const float *shift, float eps, int n)
{
    const float mean = block_sum(held_sum(v)) / (float)n;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        v[i] = held_at(0, i / 4) < n ? v[i] - mean : 0.0f;
    const rms_factors by = {scale, (const float *)0, eps};
    held_rms_norm(v, &by, n);
    if (shift)
        held_add(v, KIND_FLOAT, shift, 0, n);
}

DEVICE void layer_row(const row_target *to, const void *x, int kind, const float *scale,
                      const float *shift, float eps, int n)
{
    float v[HELD];
    held_load(v, kind, x, 0, n);
    held_layer_norm(v, scale, shift, eps, n);
    held_store_row(to->kind, to->row, to->factor, n, v);
}

DEVICE void layer_row_any(const row_target *to, const void *x, int kind, const float *scale,
                          const float *shift, float eps, int n)
{
    const float mean = any_sum(n, [=](int i) { return load1(kind, x, i); }) / (float)n;
    const float squares = any_sum(n, [=](int i) {
        const float v = load1(kind, x, i) - mean;
        return v * v;
    });
    const float factor = rms_factor(squares, n, eps);
    any_store_row(to->kind, to->row, to->factor, n, [=](int i) {
        return (load1(kind, x, i) - mean) * factor * factor_at(scale, i) +
               (shift ? shift[i] : 0.0f);
    });
}

/* out = (x - mean) / sqrt(mean((x - mean)^2) + eps) * scale + shift; scale and shift may be null. out
 * and x may be the same memory, if they are of the same kind. */
extern "C" __global__ void __launch_bounds__(1024)
    layer_norm(void *out, int out_kind, long long out_stride, float *out_factors, const void *x,
               int x_kind, long long x_stride, const float *scale, const float *shift, float eps,
               int n)
{
    const row_target to = target_at(out, out_kind, out_stride, out_factors);
    const void *row = number_at(x_kind, x, blockIdx.x * x_stride);
    const bool vector = in_groups(x, x_stride, n) && in_groups(out, out_stride, n) &&
                        is_aligned(scale, 16) && is_aligned(shift, 16) && n <= held_span();
    if (!vector)
        layer_row_any(&to, row, x_kind, scale, shift, eps, n);
    else if (x_kind == KIND_FLOAT)
        layer_row(&to, row, KIND_FLOAT, scale, shift, eps, n);
    else
        layer_row(&to, row, KIND_WORK, scale, shift, eps, n);
}

/* ---- Heads --------------------------------------------------------------------------------------
 * A group of dim / 8 lanes has a head; a lane has 8 numbers of it that are 4 pairs: side by side,
 * or 4 of each half. */

typedef struct head_place {
    int lane;      /* of the group */
    int low, high; /* first of the lane's first four and second four numbers in a head */
} head_place;

DEVICE void head_load(float *v, int kind, const void *head, const head_place *at, bool halves)
{
    if (halves) {
        load4(v, kind, head, at->low);
        load4(v + 4, kind, head, at->high);
    } else {
        load8(v, kind, head, at->low);
    }
}

DEVICE void head_store(int kind, void *head, const float *v, const head_place *at, bool halves)
{
    if (halves) {
        store4(kind, head, at->low, v);
        store4(kind, head, at->high, v + 4);
    } else {
        store8(kind, head, at->low, v);
    }
}

/* v: normed by the factor and w, then turned. */
DEVICE void head_turn(float *v, float factor, const float *w, const float *cosine,
                      const float *sine, bool halves)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = v[i] * factor * w[i];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int a = halves ? i : 2 * i, b = halves ? i + 4 : 2 * i + 1;
        const float re = v[a], im = v[b];
        v[a] = re * cosine[i] - im * sine[i];
        v[b] = re * sine[i] + im * cosine[i];
    }
}

DEVICE float group_squares(const float *v, int lanes)
{
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++)
        sum = fmaf(v[i], v[i], sum);
    for (int distance = lanes / 2; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(FULL_WARP, sum, distance);
    return sum;
}

/* Two heads at a time, so that loads of both are in flight. */
DEVICE void heads_row(void *x, int kind, int heads, int dim, const float *w, float eps,
                      const float *cosine, const float *sine, bool halves)
{
    const int lanes = dim / 8, groups = (int)blockDim.x / lanes, group = threadIdx.x / lanes;
    const int lane = threadIdx.x % lanes;
    const head_place at = {lane, halves ? 4 * lane : 8 * lane, dim / 2 + 4 * lane};
    float by[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f}, c[4], s[4];
    if (w)
        head_load(by, KIND_FLOAT, w, &at, halves);
    load_floats4(c, cosine + 4 * lane);
    load_floats4(s, sine + 4 * lane);
    for (int first = 0; first < heads; first += 2 * groups) {
        float v[2][8];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int head = first + group + i * groups;
            set4(v[i], 0.0f, 0.0f, 0.0f, 0.0f);
            set4(v[i] + 4, 0.0f, 0.0f, 0.0f, 0.0f);
            if (head < heads)
                head_load(v[i], kind, number_at(kind, (const void *)x, (long long)head * dim), &at,
                          halves);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int head = first + group + i * groups;
            float factor = 1.0f;
            if (w)
                factor = 1.0f / sqrtf(group_squares(v[i], lanes) / (float)dim + eps);
            head_turn(v[i], factor, by, c, s, halves);
            if (head < heads)
                head_store(kind, number_at(kind, x, (long long)head * dim), v[i], &at, halves);
        }
    }
}

/* For any even dim: a warp for a head, a pair after the other. */
DEVICE void heads_row_any(void *x, int kind, int heads, int dim, const float *w, float eps,
                          const float *cosine, const float *sine, bool halves)
{
    const int lane = threadIdx.x & 31, half = dim / 2;
    for (int h = threadIdx.x >> 5; h < heads; h += (int)blockDim.x >> 5) {
        void *head = number_at(kind, x, (long long)h * dim);
        float factor = 1.0f;
        if (w) {
            float sum = 0.0f;
            for (int i = lane; i < dim; i += 32) {
                const float v = load1(kind, head, i);
                sum = fmaf(v, v, sum);
            }
            factor = 1.0f / sqrtf(warp_sum(sum) / (float)dim + eps);
            __syncwarp();
        }
        for (int i = lane; i < half; i += 32) {
            const int a = halves ? i : 2 * i, b = halves ? i + half : 2 * i + 1;
            const float re = load1(kind, head, a) * factor * (w ? w[a] : 1.0f);
            const float im = load1(kind, head, b) * factor * (w ? w[b] : 1.0f);
            store1(kind, head, a, re * cosine[i] - im * sine[i]);
            store1(kind, head, b, re * sine[i] + im * cosine[i]);
        }
    }
}

/* In place on x [rows, heads * dim]: RMS norm of each head (not where w is null), then rotation by
 * cosine and sine [rows, dim / 2] whose rows lie table_stride apart. halves: pairs are (k, k +
 * dim/2) instead of (2k, 2k + 1). grid.x = rows; threads: a multiple of 32, best for half of the
 * heads at 8 numbers each, at most 256. */
extern "C" __global__ void __launch_bounds__(256)
    head_norm_rope(void *x, int kind, long long stride, int heads, int dim, const float *w,
                   float eps, const float *cosine, const float *sine, long long table_stride,
                   int halves)
{
    void *row = number_at(kind, x, blockIdx.x * stride);
    const float *c = cosine + blockIdx.x * table_stride, *s = sine + blockIdx.x * table_stride;
    const int lanes = dim / 8;
    const bool vector = dim % 8 == 0 && lanes <= 32 && (lanes & (lanes - 1)) == 0 &&
                        stride % 8 == 0 && table_stride % 4 == 0 && is_aligned(x, 16) &&
                        is_aligned(w, 16) && is_aligned(cosine, 16) && is_aligned(sine, 16);
    if (!vector)
        heads_row_any(row, kind, heads, dim, w, eps, c, s, halves != 0);
    else if (kind == KIND_FLOAT && halves)
        heads_row(row, KIND_FLOAT, heads, dim, w, eps, c, s, true);
    else if (kind == KIND_FLOAT)
        heads_row(row, KIND_FLOAT, heads, dim, w, eps, c, s, false);
    else if (halves)
        heads_row(row, KIND_WORK, heads, dim, w, eps, c, s, true);
    else
        heads_row(row, KIND_WORK, heads, dim, w, eps, c, s, false);
}

/* ---- To other forms -------------------------------------------------------------------------- */

DEVICE void quantize_row(void *codes, int kind, float *factor, const void *x, int x_kind, int n)
{
    const int span = held_span();
    float v[HELD];
    unsigned most = 0;
#pragma unroll 1
    for (int first = 0; first < n; first += span) {
        held_load(v, x_kind, x, first, n);
        most = max(most, held_most(v));
    }
    const row_codes r = row_codes_for(kind, block_max(most));
#pragma unroll 1
    for (int first = 0; first < n; first += span) {
        if (n > span) /* else it is still there */
            held_load(v, x_kind, x, first, n);
        held_store_codes(kind, codes, first, n, v, r.inverse);
    }
    if (threadIdx.x == 0)
        *factor = r.factor;
}

#if !defined(T_F32)
DEVICE void quantize_packed(const row_target *to, const T *x, int n)
{
    eight e[PACKED];
#pragma unroll
    for (int i = 0; i < PACKED; i++) {
        e[i] = make_uint4(0, 0, 0, 0);
        if (packed_at(i) < n)
            e[i] = load_eight(x + packed_at(i));
    }
    packed_store_codes(to->kind, to->row, to->factor, n, e);
}
#endif

/* Codes of KIND_E4M3 or KIND_INT8 and a factor for each row. A block of a row, of n / 32 threads for
 * KIND_WORK; longer rows are read twice. */
extern "C" __global__ void __launch_bounds__(1024)
    quantize_rows(void *codes, int kind, long long codes_stride, float *factors, const void *x,
                  int x_kind, long long x_stride, int n)
{
    const row_target to = target_at(codes, kind, codes_stride, factors);
    const void *row = number_at(x_kind, x, blockIdx.x * x_stride);
    const bool vector = in_groups(x, x_stride, n) && in_groups(codes, codes_stride, n);
#if !defined(T_F32)
    if (x_kind == KIND_WORK && in_eights(x, x_stride, n) && in_eights(codes, codes_stride, n) &&
        n <= 8 * PACKED * (int)blockDim.x) {
        quantize_packed(&to, (const T *)row, n);
        return;
    }
#endif
    if (!vector)
        any_store_row(kind, to.row, to.factor, n, [=](int i) { return load1(x_kind, row, i); });
    else if (x_kind == KIND_FLOAT)
        quantize_row(to.row, kind, to.factor, row, KIND_FLOAT, n);
    else
        quantize_row(to.row, kind, to.factor, row, KIND_WORK, n);
}

/* The part of a row that a block has, where blocks of grid.y share it: value(i) is number i of it.
 * */
template <class F> DEVICE void any_store_part(int kind, void *row, int n, F value)
{
#pragma unroll 1
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < n; i += gridDim.y * blockDim.x)
        store1(kind, row, i, value(i));
}

DEVICE void convert_part(void *out, int out_kind, const void *x, int x_kind, int n)
{
#pragma unroll 1
    for (int first = blockIdx.y * held_span(); first < n; first += gridDim.y * held_span()) {
        float v[HELD];
        held_load(v, x_kind, x, first, n);
        held_store(out_kind, out, first, n, v);
    }
}

/* out (KIND_FLOAT or KIND_WORK) = x of any kind; codes as the whole numbers or e4m3 that they are.
 * Tiles of rows. x_stride may be 0: every row is the same. */
extern "C" __global__ void __launch_bounds__(256)
    convert(void *out, int out_kind, long long out_stride, const void *x, int x_kind,
            long long x_stride, int n)
{
    void *to = number_at(out_kind, out, blockIdx.x * out_stride);
    const void *from = number_at(x_kind, x, blockIdx.x * x_stride);
    const bool vector = in_groups(out, out_stride, n) && in_groups(x, x_stride, n);
    if (vector && x_kind == KIND_FLOAT)
        convert_part(to, out_kind, from, KIND_FLOAT, n);
    else if (vector && x_kind == KIND_WORK)
        convert_part(to, out_kind, from, KIND_WORK, n);
    else
        any_store_part(out_kind, to, n, [=](int i) { return load1(x_kind, from, i); });
}

/* Number i of a table of TYPE_F32, TYPE_F16 or TYPE_BF16. */
DEVICE float table_number(const void *table, int type, long long i)
{
    if (type == TYPE_F32)
        return ((const float *)table)[i];
    const unsigned short h = ((const unsigned short *)table)[i];
    return type == TYPE_F16 ? f16_to_float(h) : bf16_to_float(h);
}

/* out [rows, n] = rows ids[0 .. rows-1] of the table [.., n]. grid.x = rows, any threads. */
extern "C" __global__ void __launch_bounds__(1024)
    embed(void *out, int out_kind, long long out_stride, const void *table, int table_type,
          const int *ids, int n)
{
    void *to = number_at(out_kind, out, blockIdx.x * out_stride);
    const long long from = (long long)ids[blockIdx.x] * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        store1(out_kind, to, i, table_number(table, table_type, from + i));
}

/* ---- Number by number ------------------------------------------------------------------------ */

enum { POINTWISE_SILU, POINTWISE_TANH, POINTWISE_ADD, POINTWISE_GELU, POINTWISE_MULTIPLY };

/* out = silu(x), tanh(x), x + value, gelu(x) or out * x (0 to 4); may be the same memory. Tiles of rows. These are
 * for vectors of modulation, which are short. */
extern "C" __global__ void __launch_bounds__(256)
    pointwise(void *out, int out_kind, long long out_stride, const void *x, int x_kind,
              long long x_stride, int n, int operation, float value)
{
    void *to = number_at(out_kind, out, blockIdx.x * out_stride);
    const void *from = number_at(x_kind, x, blockIdx.x * x_stride);
    any_store_part(out_kind, to, n, [=](int i) {
        const float v = load1(x_kind, from, i);
        if (operation == POINTWISE_ADD)
            return v + value;
        if (operation == POINTWISE_GELU)
            return v * 0.5f * (1.0f + erff(v * 0.70710678f));
        if (operation == POINTWISE_MULTIPLY)
            return v * load1(out_kind, to, i);
        return operation == POINTWISE_TANH ? tanhf(v) : silu(v);
    });
}

/* ---- After a product ------------------------------------------------------------------------- */

/* At most: 16 numbers of the two halves take more registers than there are for 1024 threads. */
#define EPILOGUE_THREADS 768

typedef struct finish {
    const void *y; /* the row of sums */
    const float *bias, *gate, *w_scales;
    float x_scale, factor;
    int activation, n;
    bool has_up;
} finish;

DEVICE float activated(int activation, float v)
{
    if (activation == ACTIVATION_SILU)
        return silu(v);
    return activation == ACTIVATION_GELU_TANH ? gelu_tanh(v) : v;
}

/* v *= by[at ..] */
template <int N> DEVICE void multiply_by(float *v, const float *by, int at)
{
    float factor[N];
#pragma unroll
    for (int i = 0; i < N; i += 4)
        load_floats4(factor + i, by + at + i);
#pragma unroll
    for (int i = 0; i < N; i++)
        v[i] *= factor[i];
}

template <int N> DEVICE void load_some(float *v, int kind, const void *p, long long i)
{
    if (N == 8)
        load8(v, kind, p, i);
    else
        load4(v, kind, p, i);
}

/* Numbers at .. at+N-1 of the row as they are to be stored, before `add`. y_kind: that of y, for N =
 * 8 KIND_WORK. Few at a time, so that there are registers for several blocks on a multiprocessor:
 * the loads of one hide behind the others. */
template <int N> DEVICE void finished(float *v, const finish *f, int y_kind, int at)
{
    float up[N];
    load_some<N>(v, y_kind, f->y, at);
    if (f->has_up)
        load_some<N>(up, y_kind, f->y, f->n + at);
    if (y_kind == KIND_INT32) {
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] *= f->x_scale;
        multiply_by<N>(v, f->w_scales, at);
        if (f->has_up) {
#pragma unroll
            for (int i = 0; i < N; i++)
                up[i] *= f->x_scale;
            multiply_by<N>(up, f->w_scales, f->n + at);
        }
    }
    if (f->bias) {
        float bias[N];
#pragma unroll
        for (int i = 0; i < N; i += 4)
            load_floats4(bias + i, f->bias + at + i);
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] += bias[i];
    }
    if (f->activation == ACTIVATION_SILU) {
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] = silu(v[i]);
    } else if (f->activation == ACTIVATION_GELU_TANH) {
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] = gelu_tanh(v[i]);
    }
    if (f->has_up) {
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] *= up[i];
    }
    if (f->gate)
        multiply_by<N>(v, f->gate, at);
    if (f->factor != 1.0f) {
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] *= f->factor;
    }
}

/* Number i of the same. */
DEVICE float finished_any(const finish *f, int y_kind, int i)
{
    float v = load1(y_kind, f->y, i), up = f->has_up ? load1(y_kind, f->y, f->n + i) : 1.0f;
    if (y_kind == KIND_INT32) {
        v = v * f->x_scale * f->w_scales[i];
        if (f->has_up)
            up = up * f->x_scale * f->w_scales[f->n + i];
    }
    if (f->bias)
        v += f->bias[i];
    v = activated(f->activation, v) * up;
    return v * factor_at(f->gate, i) * f->factor;
}

/* The part of a row that a block has, where blocks of grid.y share it. */
DEVICE void epilogue_part(const row_target *to, const finish *f, int y_kind, bool add)
{
#pragma unroll 1
    for (int first = blockIdx.y * held_span(); first < f->n; first += gridDim.y * held_span()) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = held_at(first, i);
            float v[4], sum[4];
            if (at >= f->n)
                continue;
            finished<4>(v, f, y_kind, at);
            if (add) {
                load4(sum, to->kind, to->row, at);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    v[k] += sum[k];
            }
            store4(to->kind, to->row, at, v);
        }
    }
}

/* Numbers first .. of the row, as a block holds them. */
DEVICE void held_finished(float *v, const finish *f, int y_kind, int first)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = held_at(first, i);
        set4(v + 4 * i, 0.0f, 0.0f, 0.0f, 0.0f);
        if (at < f->n)
            finished<4>(v + 4 * i, f, y_kind, at);
    }
}

#if defined(T_BF16)
/* y and out of T. */
DEVICE void epilogue_part_of_eights(const row_target *to, const finish *f)
{
    const int step = (int)blockDim.x;
#pragma unroll 1
    for (int first = blockIdx.y * 2 * step; 8 * first < f->n; first += gridDim.y * 2 * step) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int at = 8 * (first + i * step + (int)threadIdx.x);
            float v[8];
            if (at >= f->n)
                continue;
            finished<8>(v, f, KIND_WORK, at);
            store_work8((T *)to->row + at, v);
        }
    }
}

/* y of T, out of codes: numbers are rounded to T before. */
DEVICE void epilogue_packed(const row_target *to, const finish *f)
{
    eight e[PACKED];
#pragma unroll
    for (int i = 0; i < PACKED; i++) {
        float v[8];
        e[i] = make_uint4(0, 0, 0, 0);
        if (packed_at(i) >= f->n)
            continue;
        finished<8>(v, f, KIND_WORK, packed_at(i));
        e[i] = pack8(v);
    }
    packed_store_codes(to->kind, to->row, to->factor, f->n, e);
}
#endif

DEVICE void epilogue_row(const row_target *to, const finish *f, int y_kind, bool add)
{
    const int span = held_span(), n = f->n;
    float v[HELD];
    unsigned most = 0;
    if (to->kind == KIND_FLOAT || to->kind == KIND_WORK) {
        epilogue_part(to, f, y_kind, add);
        return;
    }
#pragma unroll 1
    for (int first = 0; first < n; first += span) {
        held_finished(v, f, y_kind, first);
        most = max(most, held_most(v));
    }
    const row_codes r = row_codes_for(to->kind, block_max(most));
#pragma unroll 1
    for (int first = 0; first < n; first += span) {
        if (n > span) /* else it is still there */
            held_finished(v, f, y_kind, first);
        held_store_codes(to->kind, to->row, first, n, v, r.inverse);
    }
    if (threadIdx.x == 0)
        *to->factor = r.factor;
}

DEVICE void epilogue_row_any(const row_target *to, const finish *f, int y_kind, bool add)
{
    if (to->kind == KIND_FLOAT || to->kind == KIND_WORK)
        any_store_part(to->kind, to->row, f->n, [=](int i) {
            const float v = finished_any(f, y_kind, i);
            return add ? load1(to->kind, to->row, i) + v : v;
        });
    else
        any_store_row(to->kind, to->row, to->factor, f->n,
                      [=](int i) { return finished_any(f, y_kind, i); });
}

/* What follows a product y, in this order: for KIND_INT32 times x_scales[row] * w_scales[column];
 * + bias; activation; with has_up, where y has 2 * columns columns, times those of the second half
 * (w_scales has as many, too); * gate[column]; * factor, a power of two; then out = or, with `add`,
 * out +=. bias, gate and, but for KIND_INT32, the scales may be null. For out of codes, which know
 * no `add`, a block of a row writes its factor to out_scales[row]; otherwise tiles of rows;
 * cuda_epilogue_grid knows both. out and y may be the same memory where they have the same kind and
 * stride, without has_up. */
extern "C" __global__ void __launch_bounds__(EPILOGUE_THREADS, 2)
    epilogue(void *out, int out_kind, long long out_stride, float *out_scales, const void *y,
             int y_kind, long long y_stride, int has_up, const float *bias, int activation,
             const float *gate, int add, int rows, int columns, const float *x_scales,
             const float *w_scales, float factor)
{
    if ((int)blockIdx.x >= rows)
        return;
    const finish f = {
        number_at(y_kind, y, blockIdx.x * y_stride),        bias,       gate,    w_scales,
        y_kind == KIND_INT32 ? x_scales[blockIdx.x] : 1.0f, factor,     activation, columns,
        has_up != 0};
    const row_target to = target_at(out, out_kind, out_stride, out_scales);
    const bool vector = in_groups(y, y_stride, columns) && in_groups(out, out_stride, columns) &&
                        is_aligned(bias, 16) && is_aligned(gate, 16) && is_aligned(w_scales, 16);
#if defined(T_BF16)
    const bool eights = y_kind == KIND_WORK && in_eights(y, y_stride, columns) &&
                        in_eights(out, out_stride, columns) && vector;
    if (eights && out_kind == KIND_WORK && !add) {
        epilogue_part_of_eights(&to, &f);
        return;
    }
    if (eights && out_kind != KIND_FLOAT && out_kind != KIND_WORK &&
        columns <= 8 * PACKED * (int)blockDim.x) {
        epilogue_packed(&to, &f);
        return;
    }
#endif
    if (!vector)
        epilogue_row_any(&to, &f, y_kind, add != 0);
    else if (y_kind == KIND_WORK)
        epilogue_row(&to, &f, KIND_WORK, add != 0);
    else if (y_kind == KIND_FLOAT)
        epilogue_row(&to, &f, KIND_FLOAT, add != 0);
    else
        epilogue_row(&to, &f, KIND_INT32, add != 0);
}

/* The norm that follows: a layer norm, or an RMS norm without shift. */
typedef struct next_norm {
    const float *w, *scale, *shift; /* may be null */
    float eps;
    bool layer;
} next_norm;

DEVICE void epilogue_norm_row(float *x, const finish *f, int y_kind, const row_target *next,
                              const next_norm *by)
{
    const int n = f->n;
    float v[HELD];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = held_at(0, i);
        float sum[4];
        set4(v + 4 * i, 0.0f, 0.0f, 0.0f, 0.0f);
        if (at >= n)
            continue;
        load_floats4(sum, x + at);
        finished<4>(v + 4 * i, f, y_kind, at);
#pragma unroll
        for (int k = 0; k < 4; k++)
            v[4 * i + k] += sum[k];
        store4(KIND_FLOAT, x, at, v + 4 * i);
    }
    if (by->layer) {
        held_layer_norm(v, by->scale, by->shift, by->eps, n);
    } else {
        const rms_factors factors = {by->w, by->scale, by->eps};
        held_rms_norm(v, &factors, n);
    }
    held_store_row(next->kind, next->row, next->factor, n, v);
}

DEVICE void epilogue_norm_row_any(float *x, const finish *f, int y_kind, const row_target *next,
                                  const next_norm *by)
{
    any_store_row(KIND_FLOAT, x, (float *)0, f->n,
                  [=](int i) { return x[i] + finished_any(f, y_kind, i); });
    if (by->layer) {
        layer_row_any(next, x, KIND_FLOAT, by->scale, by->shift, by->eps, f->n);
    } else {
        const rms_factors factors = {by->w, by->scale, by->eps};
        rms_row_any(next, x, KIND_FLOAT, &factors, f->n);
    }
}

/* x += what the kernel epilogue makes of a product y (without up and factor); then next = the norm
 * of x. A block of a row, of at most EPILOGUE_THREADS. */
extern "C" __global__ void __launch_bounds__(EPILOGUE_THREADS, 2)
    epilogue_norm(float *x, long long x_stride, const void *y, int y_kind, long long y_stride,
                  const float *bias, int activation, const float *gate, int columns,
                  const float *x_scales, const float *w_scales, void *next, int next_kind,
                  long long next_stride, float *next_factors, const float *next_w,
                  const float *next_scale, const float *next_shift, float next_eps, int next_layer)
{
    const finish f = {
        number_at(y_kind, y, blockIdx.x * y_stride),        bias, gate,       w_scales,
        y_kind == KIND_INT32 ? x_scales[blockIdx.x] : 1.0f, 1.0f, activation, columns,
        false};
    const next_norm by = {next_w, next_scale, next_shift, next_eps, next_layer != 0};
    const row_target to = target_at(next, next_kind, next_stride, next_factors);
    float *row = x + blockIdx.x * x_stride;
    const bool vector = in_groups(y, y_stride, columns) && in_groups(x, x_stride, columns) &&
                        in_groups(next, next_stride, columns) && is_aligned(bias, 16) &&
                        is_aligned(gate, 16) && is_aligned(w_scales, 16) &&
                        is_aligned(next_w, 16) && is_aligned(next_scale, 16) &&
                        is_aligned(next_shift, 16) && columns <= held_span();
    if (!vector)
        epilogue_norm_row_any(row, &f, y_kind, &to, &by);
    else if (y_kind == KIND_WORK)
        epilogue_norm_row(row, &f, KIND_WORK, &to, &by);
    else if (y_kind == KIND_FLOAT)
        epilogue_norm_row(row, &f, KIND_FLOAT, &to, &by);
    else
        epilogue_norm_row(row, &f, KIND_INT32, &to, &by);
}

/* ---- Softmax --------------------------------------------------------------------------------- */

/* v = exp(scale * v - most) for the numbers before `visible`, 0 for the rest. */
DEVICE void numerators(float *v, float scale, float most, int first, int visible)
{
#pragma unroll
    for (int i = 0; i < HELD; i++)
        v[i] = held_at(first, i / 4) + i % 4 < visible ? exponential(v[i] * scale - most) : 0.0f;
}

DEVICE void softmax_row(void *out, int out_kind, const void *x, int x_kind, int n, int visible,
                        float scale)
{
    const int span = held_span();
    float v[HELD], most = __uint_as_float(0xff800000u), sum = 0.0f;
#pragma unroll 1
    for (int first = 0; first < n; first += span) {
        held_load(v, x_kind, x, first, n);
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (held_at(first, i / 4) + i % 4 < visible)
                most = fmaxf(most, v[i] * scale);
    }
    most = block_max(most);
#pragma unroll 1
    for (int first = 0; first < n; first += span) {
        if (n > span) /* else it is still there */
            held_load(v, x_kind, x, first, n);
        numerators(v, scale, most, first, visible);
        sum += held_sum(v);
    }
    const float factor = 1.0f / block_sum(sum);
#pragma unroll 1
    for (int first = 0; first < n; first += span) {
        if (n > span) {
            held_load(v, x_kind, x, first, n);
            numerators(v, scale, most, first, visible);
        }
        held_scale(v, factor);
        held_store(out_kind, out, first, n, v);
    }
}

DEVICE void softmax_row_any(void *out, int out_kind, const void *x, int x_kind, int n, int visible,
                            float scale)
{
    float most = __uint_as_float(0xff800000u);
    for (int i = threadIdx.x; i < visible; i += blockDim.x)
        most = fmaxf(most, load1(x_kind, x, i) * scale);
    most = block_max(most);
    const float factor = 1.0f / any_sum(visible, [=](int i) {
                             return exponential(load1(x_kind, x, i) * scale - most);
                         });
    any_store_row(out_kind, out, (float *)0, n, [=](int i) {
        return i < visible ? exponential(load1(x_kind, x, i) * scale - most) * factor : 0.0f;
    });
}

/* out [rows, keys] = softmax(scale * x). causal: rows are those of a head after the other,
 * `queries` each, the last of which sees all keys, the one before it one key less; what is not seen
 * becomes 0. out and x may be the same memory where they have the same kind and stride. A block of
 * a row; rows of more than 16384 are read several times. */
extern "C" __global__ void __launch_bounds__(1024)
    softmax(void *out, int out_kind, long long out_stride, const void *x, int x_kind,
            long long x_stride, int keys, int queries, float scale, int causal)
{
    void *to = number_at(out_kind, out, blockIdx.x * out_stride);
    const void *from = number_at(x_kind, x, blockIdx.x * x_stride);
    int visible = keys;
    if (causal)
        visible = keys - queries + 1 + (int)(blockIdx.x % (unsigned)queries);
    const bool vector = in_groups(out, out_stride, keys) && in_groups(x, x_stride, keys);
    if (!vector)
        softmax_row_any(to, out_kind, from, x_kind, keys, visible, scale);
    else if (x_kind == KIND_FLOAT)
        softmax_row(to, out_kind, from, KIND_FLOAT, keys, visible, scale);
    else
        softmax_row(to, out_kind, from, KIND_WORK, keys, visible, scale);
}
