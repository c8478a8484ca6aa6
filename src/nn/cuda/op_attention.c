/* Attention on the GPU. Several ways, each for what the ones before it cannot do: cuDNN, our kernel
 * for Hopper, that for other GPUs (kernels/attention.cu), products with the scores in memory, and a
 * plain kernel. */
#include "core/mem.h"
#include "nn/cuda/cuda.h"

#include <math.h>

#define MAX_DNN_DIM 256
#define MAX_OWN_DIM 128
#define OWN_QUERIES 128 /* of a block */
#define OWN_THREADS 128
#define HOPPER_THREADS 256
#define HOPPER_SHARED (5 * 128 * 128 * 2)
#define TWO_BLOCKS (130 << 10) /* shared memory for two blocks of attention128 */
#define SCORE_BYTES ((size_t)256 << 20)
#define SCORE_ALIGN 16 /* numbers: rows of scores begin at multiples of it */
/* cuDNN compiles for every shape that it meets first, for a second or so, and prompts have many
 * lengths. Up to so many queries, causal, or keys, ours is used first. */
#define SHORT_CAUSAL 2048
#define SHORT_KEYS 512

/* Everything in numbers of `type`; strides from row to row, in numbers. */
typedef struct attention {
    dtype type;
    cu_address out, q, k, v;
    long long out_stride, q_stride, k_stride, v_stride;
    int64_t queries, keys;
    int heads, kv_heads, group, dim;
    bool causal;
    /* Of segments, for our kernels with tiles: where each begins and ends, and the first query of a
     * block in it, three int32 for each of tile_count blocks; 0: one segment. */
    cu_address tiles;
    int64_t tile_count;
} attention;

/* Scores, as many as fit: for `heads` heads at once, `band` queries each. */
typedef struct score_memory {
    int64_t heads, band, stride;
    cu_address scores, probabilities; /* [heads][band][stride], float32 and type; may be the same */
} score_memory;

static int64_t number_bytes(dtype type)
{
    return (int64_t)dtype_size(type);
}

/* ---- cuDNN ----------------------------------------------------------------------------------- */

static bool dnn_fits(const attention *a)
{
    return a->type != DTYPE_F32 && a->dim % 8 == 0 && a->dim <= MAX_DNN_DIM;
}

/* False where it has no engine. spare: memory for as many numbers as out has. */
static bool attend_dnn(nn *c, const attention *a, cu_address spare)
{
    cuda_state *s = cuda_of(c);
    if (!s->dnn)
        return false;
    /* Nothing says that it reads queries before it writes results. */
    const bool aside = a->out == a->q;
    const int64_t width = (int64_t)a->heads * a->dim;
    const dnn_attention p = {
        .type = a->type,
        .heads = a->heads,
        .kv_heads = a->kv_heads,
        .dim = a->dim,
        .queries = a->queries,
        .keys = a->keys,
        .q_stride = a->q_stride,
        .k_stride = a->k_stride,
        .v_stride = a->v_stride,
        .out_stride = aside ? width : a->out_stride,
        .causal = a->causal,
    };
    ct_error error;
    const dnn_attention_operands at = {aside ? spare : a->out, a->q, a->k, a->v};
    ct_status status = dnn_attend(s->dnn, &p, &at, &error);
    if (status == CT_EUNSUPPORTED)
        return false;
    if (status == CT_OK && aside) {
        const size_t number = (size_t)number_bytes(a->type);
        const cu_copy_2d copy = {.from_type = CU_MEMORY_DEVICE,
                                 .from_device = spare,
                                 .from_pitch = (size_t)width * number,
                                 .to_type = CU_MEMORY_DEVICE,
                                 .to_device = a->out,
                                 .to_pitch = (size_t)a->out_stride * number,
                                 .width_bytes = (size_t)width * number,
                                 .height = (size_t)a->queries};
        status = cuda_check(s->driver, s->driver->copy_2d(&copy, s->stream), "copying attention",
                            &error);
    }
    if (status != CT_OK)
        cuda_fail(c, &error);
    return true;
}

/* ---- Our kernels ----------------------------------------------------------------------------- */

static bool has_tensor_cores(const cuda_device_info *gpu, dtype type)
{
    const int version = gpu->major * 10 + gpu->minor;
    return (type == DTYPE_F16 && version >= 75) || (type == DTYPE_BF16 && version >= 80);
}

static bool own_fits(const attention *a, const cuda_device_info *gpu)
{
    if (a->dim > MAX_OWN_DIM)
        return false;
    if (!has_tensor_cores(gpu, a->type))
        return true;
    return a->dim % 8 == 0 && (a->out | a->q | a->k | a->v) % 16 == 0 &&
           (a->out_stride | a->q_stride | a->k_stride | a->v_stride) % 8 == 0;
}

/* Heads of 64 are left to the smaller tiles of the others. */
static bool hopper_fits(const attention *a, const cuda_device_info *gpu)
{
    return gpu->major == 9 && gpu->minor == 0 && gpu->shared_bytes >= HOPPER_SHARED &&
           a->type != DTYPE_F32 && a->dim > 64 && own_fits(a, gpu);
}

/* Tensor cores do it, and it is not worth the time that cuDNN takes to prepare. */
static bool is_short(const attention *a, const cuda_device_info *gpu)
{
    return (a->causal ? a->queries <= SHORT_CAUSAL : a->keys <= SHORT_KEYS) &&
           has_tensor_cores(gpu, a->type) && own_fits(a, gpu);
}

static void launch(nn *c, cuda_kernel kernel, const attention *a, cuda_grid grid)
{
    cu_address out = a->out, q = a->q, k = a->k, v = a->v, tiles = a->tiles;
    long long out_stride = a->out_stride, q_stride = a->q_stride;
    long long k_stride = a->k_stride, v_stride = a->v_stride;
    int queries = (int)a->queries, keys = (int)a->keys, group = a->group, dim = a->dim;
    int causal = a->causal;
    float factor = (float)(1.4426950408889634 / sqrt((double)dim)); /* 2^x instead of e^x */
    cuda_launch(c, kernel, a->type, grid,
                (void *[]){&out, &q, &k, &v, &out_stride, &q_stride, &k_stride, &v_stride, &queries,
                           &keys, &group, &dim, &causal, &factor, &tiles});
}

/* Blocks for all queries of a head. */
static int64_t query_tiles(const attention *a)
{
    return a->tiles ? a->tile_count : (a->queries + OWN_QUERIES - 1) / OWN_QUERIES;
}

static void attend_hopper(nn *c, const attention *a)
{
    const cuda_grid grid = {
        .x = query_tiles(a),
        .y = a->heads,
        .threads = HOPPER_THREADS,
        .shared_bytes = HOPPER_SHARED,
    };
    launch(c, KERNEL_attention128_hopper, a, grid);
}

static void attend_own(nn *c, const attention *a)
{
    const cuda_device_info *gpu = &cuda_of(c)->gpu->info;
    const bool wide = a->dim > 64, tensor_cores = has_tensor_cores(gpu, a->type);
    const bool small = wide && tensor_cores && gpu->shared_bytes < TWO_BLOCKS;
    const int width = wide ? 128 : 64, keys = small ? 32 : 64;
    const int floats = 96 * (width + 4) + 64 * 36;
    const cuda_grid grid = {
        .x = query_tiles(a),
        .y = a->heads,
        .threads = OWN_THREADS,
        .shared_bytes = tensor_cores ? (OWN_QUERIES + 2 * keys) * width * 2 : floats * 4,
    };
    launch(c,
           small  ? KERNEL_attention128_small
           : wide ? KERNEL_attention128
                  : KERNEL_attention64,
           a, grid);
}

static void attend_plain(nn *c, const attention *a)
{
    const cuda_grid grid = {.x = a->queries,
                            .y = a->heads,
                            .threads = OWN_THREADS,
                            .shared_bytes = (2 * a->dim + OWN_THREADS + 4) * 4};
    launch(c, KERNEL_attention_plain, a, grid);
}

/* ---- Products --------------------------------------------------------------------------------
 * Scores of a band of queries, their softmax, and the product with the values. A band's queries are
 * not read after its results are written, so out may be the memory of q. */

/* By shape and type alone, as the dry run needs it. */
static score_memory plan_scores(const attention *a)
{
    score_memory s = {.heads = a->group == 1 ? a->heads : 1};
    s.stride = (a->keys + SCORE_ALIGN - 1) / SCORE_ALIGN * SCORE_ALIGN;
    const int64_t row = s.stride * (4 + (a->type == DTYPE_F32 ? 0 : number_bytes(a->type)));
    const int64_t rows = (int64_t)SCORE_BYTES / row;
    if (rows / s.heads < OWN_QUERIES && rows / s.heads < a->queries)
        s.heads = 1;
    s.band = rows / s.heads;
    if (s.band >= a->queries)
        s.band = a->queries;
    else if (s.band > OWN_QUERIES)
        s.band -= s.band % OWN_QUERIES;
    else if (s.band < 1)
        s.band = 1;
    return s;
}

static void take_scores(nn *c, const attention *a, score_memory *s)
{
    const size_t count = (size_t)(s->heads * s->band * s->stride);
    s->scores = cuda_scratch(c, count * 4);
    s->probabilities = s->scores;
    if (a->type != DTYPE_F32)
        s->probabilities = cuda_scratch(c, count * dtype_size(a->type));
}

static blas_product score_product(const attention *a, const score_memory *s, int64_t rows,
                                  int64_t keys)
{
    return (blas_product){
        .m = rows,
        .n = keys,
        .k = a->dim,
        .x_stride = a->q_stride,
        .w_stride = a->k_stride,
        .out_stride = s->stride,
        .type = a->type,
        .out_type = DTYPE_F32,
        .count = s->heads,
        .x_next = a->dim,
        .w_next = a->dim,
        .out_next = rows * s->stride,
    };
}

static blas_product value_product(const attention *a, const score_memory *s, int64_t rows,
                                  int64_t keys)
{
    return (blas_product){
        .m = rows,
        .n = a->dim,
        .k = keys,
        .x_stride = s->stride,
        .w_stride = a->v_stride,
        .out_stride = a->out_stride,
        .w_by_rows = true,
        .type = a->type,
        .out_type = a->type,
        .count = s->heads,
        .x_next = rows * s->stride,
        .w_next = a->dim,
        .out_next = a->dim,
    };
}

/* Rows of the heads one after the other. */
static void softmax(nn *c, const attention *a, const score_memory *s, int64_t rows, int64_t visible)
{
    cu_address out = s->probabilities, x = s->scores;
    int out_kind = a->type == DTYPE_F32 ? CUDA_FLOAT : CUDA_WORK, x_kind = CUDA_FLOAT;
    long long stride = s->stride;
    int keys = (int)visible, queries = (int)rows, causal = a->causal;
    float scale = (float)(1 / sqrt((double)a->dim));
    int64_t threads = (visible + 511) / 512 * 32;
    threads = threads < 32 ? 32 : threads > 1024 ? 1024 : threads;
    CUDA_LAUNCH(c, softmax, a->type, ((cuda_grid){.x = s->heads * rows, .threads = (int)threads}),
                &out, &out_kind, &stride, &x, &x_kind, &stride, &keys, &queries, &scale, &causal);
}

/* Queries first .. first+rows-1 of heads head .. head+s->heads-1. */
static ct_status attend_band(nn *c, const attention *a, const score_memory *s, int64_t head,
                             int64_t first, int64_t rows, ct_error *error)
{
    cuda_state *state = cuda_of(c);
    blas *b = state->gpu->blas;
    const int64_t visible = a->causal ? first + rows : a->keys, size = number_bytes(a->type);
    const uint64_t own = (uint64_t)(head * a->dim * size);
    const uint64_t shared = (uint64_t)(head / a->group * a->dim * size);
    const blas_product scores = score_product(a, s, rows, visible);
    const blas_operands score_at = {.out = s->scores,
                                    .x = a->q + (uint64_t)(first * a->q_stride * size) + own,
                                    .w = a->k + shared};
    ct_status status = blas_multiply(b, state->stream, state->capturing, state->workspace, &scores,
                                     &score_at, error);
    if (status != CT_OK)
        return status;
    softmax(c, a, s, rows, visible);
    const blas_product values = value_product(a, s, rows, visible);
    const blas_operands value_at = {.out = a->out + (uint64_t)(first * a->out_stride * size) + own,
                                    .x = s->probabilities,
                                    .w = a->v + shared};
    return blas_multiply(b, state->stream, state->capturing, state->workspace, &values, &value_at,
                         error);
}

/* False where cuBLASLt has no such products. */
static bool attend_products(nn *c, const attention *a, const score_memory *s)
{
    blas *b = cuda_of(c)->gpu->blas;
    for (int64_t first = 0; first < a->queries; first += s->band) {
        const int64_t rows = first + s->band > a->queries ? a->queries - first : s->band;
        const int64_t visible = a->causal ? first + rows : a->keys;
        const blas_product scores = score_product(a, s, rows, visible);
        const blas_product values = value_product(a, s, rows, visible);
        if (!blas_can(b, &scores) || !blas_can(b, &values))
            return false;
    }
    for (int64_t first = 0; first < a->queries; first += s->band)
        for (int64_t head = 0; head < a->heads; head += s->heads) {
            const int64_t rows = first + s->band > a->queries ? a->queries - first : s->band;
            ct_error error;
            ct_status status = attend_band(c, a, s, head, first, rows, &error);
            /* Addresses of heads may be less aligned than blas_can was told. */
            if (status == CT_EUNSUPPORTED && first == 0 && head == 0)
                return false;
            if (status != CT_OK) {
                cuda_fail(c, &error);
                return true;
            }
        }
    return true;
}

/* ---- The operation --------------------------------------------------------------------------- */

/* Numbers of x in the type that is computed with: where they are, or converted into the arena. */
static cu_address in_type(nn *c, const nn_tensor *x, dtype type, long long *stride)
{
    *stride = x->stride;
    if (x->type == type)
        return cuda_at(x);
    *stride = x->n[1];
    cu_address copy = cuda_scratch(c, (size_t)(x->n[0] * x->n[1]) * dtype_size(type));
    const bool floats = x->type == DTYPE_F32;
    cuda_convert(c, floats ? type : x->type, copy, floats ? CUDA_WORK : CUDA_FLOAT, x->n[1],
                 cuda_at(x), floats ? CUDA_FLOAT : CUDA_WORK, x->stride, x->n[0], x->n[1]);
    return copy;
}

static void choose(nn *c, const attention *a, bool products, const score_memory *s,
                   cu_address spare)
{
    cuda_state *state = cuda_of(c);
    const cuda_attention_path from = state->attention_path;
    state->attention_taken = ATTENTION_DNN;
    const bool own_first = from == ATTENTION_ANY && is_short(a, &state->gpu->info);
    if (from <= ATTENTION_DNN && !own_first && dnn_fits(a) && attend_dnn(c, a, spare))
        return;
    state->attention_taken = ATTENTION_HOPPER;
    if (from <= ATTENTION_HOPPER && hopper_fits(a, &state->gpu->info)) {
        attend_hopper(c, a);
        return;
    }
    state->attention_taken = ATTENTION_OWN;
    if (from <= ATTENTION_OWN && own_fits(a, &state->gpu->info)) {
        attend_own(c, a);
        return;
    }
    state->attention_taken = ATTENTION_PRODUCTS;
    if (products && attend_products(c, a, s))
        return;
    state->attention_taken = ATTENTION_PLAIN;
    attend_plain(c, a);
}

void cuda_attention(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                    const nn_tensor *v, int heads, int kv_heads, bool causal)
{
    const size_t mark = nn_mark(c);
    const dtype type = cuda_work_type(c);
    const cuda_attention_path from = cuda_of(c)->attention_path;
    const size_t out_bytes = (size_t)(out->n[0] * out->n[1]) * dtype_size(type);
    attention a = {
        .type = type,
        .queries = q->n[0],
        .keys = k->n[0],
        .heads = heads,
        .kv_heads = kv_heads,
        .group = heads / kv_heads,
        .dim = (int)(q->n[1] / heads),
        .causal = causal,
        .out_stride = out->type == type ? out->stride : out->n[1],
    };
    a.q = in_type(c, q, type, &a.q_stride);
    a.k = in_type(c, k, type, &a.k_stride);
    a.v = in_type(c, v, type, &a.v_stride);
    a.out = out->type == type ? cuda_at(out) : cuda_scratch(c, out_bytes);

    /* What the ways may need, by shape and type alone: addresses are not known in a dry run. Only
     * what lies alike can be the same memory. */
    const bool may_share = q->type == type && out->type == type && a.q_stride == a.out_stride;
    const cu_address spare = may_share && dnn_fits(&a) ? cuda_scratch(c, out_bytes) : 0;
    const bool products =
        from == ATTENTION_PRODUCTS ||
        (from < ATTENTION_PRODUCTS &&
         (a.dim > MAX_OWN_DIM || (a.dim % 8 && has_tensor_cores(&cuda_of(c)->gpu->info, type))));
    score_memory s = {0};
    if (products) {
        s = plan_scores(&a);
        take_scores(c, &a, &s);
    }
    if (!cuda_idle(c))
        choose(c, &a, products, &s, spare);
    if (out->type != type) {
        const bool floats = out->type == DTYPE_F32;
        cuda_convert(c, floats ? type : out->type, cuda_at(out), floats ? CUDA_FLOAT : CUDA_WORK,
                     out->stride, a.out, floats ? CUDA_WORK : CUDA_FLOAT, a.out_stride, out->n[0],
                     out->n[1]);
    }
    nn_release(c, mark);
}

/* ---- Segments -------------------------------------------------------------------------------- */

/* One block for each 128 queries, or the rest, of each segment. False without memory. */
static bool list_tiles(nn *c, attention *a, const int32_t *ends, int count)
{
    const ct_allocator *allocator = c->params.allocator;
    const int64_t most = a->queries / OWN_QUERIES + count;
    int32_t *tiles = mem_array(allocator, (size_t)(3 * most), sizeof *tiles);
    if (!tiles) {
        nn_fail(c, CT_ENOMEM, "out of memory: a list of %d segments", count);
        return false;
    }
    int32_t begin = 0, *at = tiles;
    for (int i = 0; i < count; begin = ends[i++])
        for (int32_t first = 0; first < ends[i] - begin; first += OWN_QUERIES) {
            *at++ = begin;
            *at++ = ends[i];
            *at++ = first;
        }
    a->tile_count = (at - tiles) / 3;
    a->tiles = cuda_upload_ints(c, tiles, at - tiles);
    mem_free(allocator, tiles);
    return true;
}

void cuda_attention_segments(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                             const nn_tensor *v, int heads, const int32_t *ends, int count)
{
    const size_t mark = nn_mark(c);
    const dtype type = cuda_work_type(c);
    const cuda_state *state = cuda_of(c);
    attention a = {.type = type,
                   .out = cuda_at(out),
                   .q = cuda_at(q),
                   .k = cuda_at(k),
                   .v = cuda_at(v),
                   .out_stride = out->stride,
                   .q_stride = q->stride,
                   .k_stride = k->stride,
                   .v_stride = v->stride,
                   .queries = q->n[0],
                   .keys = q->n[0],
                   .heads = heads,
                   .kv_heads = heads,
                   .group = 1,
                   .dim = (int)(q->n[1] / heads)};
    const bool one = q->type == type && k->type == type && v->type == type && out->type == type &&
                     state->attention_path <= ATTENTION_OWN && own_fits(&a, &state->gpu->info);
    if (one && list_tiles(c, &a, ends, count) && !cuda_idle(c)) {
        if (hopper_fits(&a, &state->gpu->info) && state->attention_path != ATTENTION_OWN)
            attend_hopper(c, &a);
        else
            attend_own(c, &a);
    }
    nn_release(c, mark);
    /* In a dry run both: where it goes depends on addresses, too. */
    for (int i = 0; (!one || c->params.dry) && i < count; i++) {
        const int32_t begin = i ? ends[i - 1] : 0, rows = ends[i] - begin;
        const nn_tensor part[4] = {nn_rows(out, begin, rows), nn_rows(q, begin, rows),
                                   nn_rows(k, begin, rows), nn_rows(v, begin, rows)};
        cuda_attention(c, &part[0], &part[1], &part[2], &part[3], heads, heads, false);
    }
}
