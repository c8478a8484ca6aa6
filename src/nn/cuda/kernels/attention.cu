/* Attention: out [queries, heads * dim] = softmax(q k^T / sqrt(dim)) v for each head, without the
 * scores ever being in memory. A block takes 128 queries of one head past all keys that they see,
 * tile by tile, and keeps for each query the greatest score so far (top), the sum of the
 * numerators 2^((score - top) * factor), and the sum of the values times them; factor = log2(e) /
 * sqrt(dim). What is summed in which order depends on the shapes alone.
 *
 * Where T has tensor cores, they multiply, with sums in float32 and numerators rounded to T;
 * otherwise everything is float32. out may be the same memory as q: a block reads its queries
 * before it writes its results, and nobody else reads those. */
#include "mma.cuh"

/* Strides are from row to row, in numbers. Head h reads keys and values of head h / group. */
typedef struct attention {
    T *out;
    const T *q, *k, *v;
    long long out_stride, q_stride, k_stride, v_stride;
    int queries, keys, group, dim, causal;
    float factor;
    int first; /* query of this block */
} attention;

#define THREADS 128
#define WARPS (THREADS / 32)
#define QUERIES 128                          /* of a block */
#define LOWEST (-__int_as_float(0x7f800000)) /* -Inf */

extern __shared__ __align__(1024) char shared[];

/* What this block has to do. Those that see the most keys go first. tiles: for each block where its
 * segment begins and ends, and the first query in it; rows see those of their segment alone. Null:
 * all rows are one. */
DEVICE attention part_of(attention a, const int *tiles)
{
    a.first = (int)(a.causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * QUERIES;
    if (tiles) {
        const int begin = tiles[3 * blockIdx.x];
        a.queries = a.keys = tiles[3 * blockIdx.x + 1] - begin;
        a.first = tiles[3 * blockIdx.x + 2];
        a.out += begin * a.out_stride;
        a.q += begin * a.q_stride;
        a.k += begin * a.k_stride;
        a.v += begin * a.v_stride;
    }
    return a;
}

/* The greatest, and the sum, of LANES neighbouring lanes. */
template <int LANES> DEVICE float lanes_max(float x)
{
#pragma unroll
    for (int i = LANES / 2; i > 0; i /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, i));
    return x;
}

template <int LANES> DEVICE float lanes_sum(float x)
{
#pragma unroll
    for (int i = LANES / 2; i > 0; i /= 2)
        x += __shfl_xor_sync(FULL_WARP, x, i);
    return x;
}

#if TENSOR_CORES

/* ---- With tensor cores -----------------------------------------------------------------------
 * Tiles lie in shared memory as rows of DIM numbers, zeros beyond dim. The 16-byte parts of a row
 * change places: part p of row r is at p ^ (r % 8), so that the 8 rows that one load of a matrix
 * reads are in different banks. A warp has 32 queries: two rows of matrices, which share what is
 * loaded of keys and values. */

#define ROW_TILES 2 /* of 16 queries, for each warp */

/* Rows 0 .. ROWS-1, those from `count` on as zeros. */
template <int DIM, int ROWS>
DEVICE void copy_tile(unsigned to, const T *from, long long stride, int count, int dim)
{
    constexpr int PARTS = DIM / 8, STEP = THREADS / PARTS;
    const int part = threadIdx.x % PARTS, row = threadIdx.x / PARTS;
    static_assert(STEP % 8 == 0 && ROWS % STEP == 0, "a thread's rows have the same row % 8");
    const T *at = from + row * stride + part * 8;
    to += (unsigned)(row * DIM * 2 + ((part ^ (row % 8)) << 4));
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP) {
        bool valid = row + i < count && part * 8 < dim;
        copy16(to + (unsigned)(i * DIM * 2), valid ? at : from, valid);
        at += STEP * stride;
    }
}

/* What a lane keeps of its queries: rows lane / 4 and that + 8 of each row of matrices. */
template <int DIM> struct progress {
    float sums[ROW_TILES][DIM / 8][4];
    float top[ROW_TILES][2], total[ROW_TILES][2]; /* total: of this lane's columns */
};

/* scores = q k^T of a warp's queries and a tile of keys. */
template <int DIM, int KEYS>
DEVICE void score_tile(float (&scores)[ROW_TILES][KEYS / 8][4], unsigned q, unsigned k)
{
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                scores[m][n][i] = 0;
#pragma unroll
    for (int d = 0; d < DIM; d += 16) {
        unsigned rows[ROW_TILES][4], columns[4];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
            load_matrices(rows[m], (q ^ (unsigned)(d * 2)) + m * 16 * DIM * 2);
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            load_matrices(columns, (k ^ (unsigned)(d * 2)) + n * 16 * DIM * 2);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                multiply_add(scores[m][2 * n], rows[m], columns[0], columns[1]);
                multiply_add(scores[m][2 * n + 1], rows[m], columns[2], columns[3]);
            }
        }
    }
}

/* Scores of keys that a query does not see become -Inf. query and key: of scores[0][0][0]. */
template <int KEYS>
DEVICE void mask_tile(float (&scores)[ROW_TILES][KEYS / 8][4], const attention &a, int query,
                      int key)
{
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = query + m * 16 + half * 8;
            const int end = a.causal && row < a.keys ? row + 1 : a.keys;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (key + n * 8 + i >= end)
                        scores[m][n][half * 2 + i] = LOWEST;
        }
}

/* Scores become numerators. */
template <int DIM, int KEYS>
DEVICE void soften_tile(float (&scores)[ROW_TILES][KEYS / 8][4], progress<DIM> &p, float factor)
{
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
        float top[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            top[half] = p.top[m][half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
                top[half] =
                    fmaxf(top[half], fmaxf(scores[m][n][half * 2], scores[m][n][half * 2 + 1]));
            top[half] = lanes_max<4>(top[half]);
        }
        /* Most tiles have no greater score: the sums stay as they are. */
        if (__any_sync(FULL_WARP, top[0] != p.top[m][0] || top[1] != p.top[m][1])) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                /* Of a query with nothing but -Inf so far, the difference would be NaN. */
                float less = top[half] == p.top[m][half]
                                 ? 1.0f
                                 : fast_exp2((p.top[m][half] - top[half]) * factor);
                p.top[m][half] = top[half];
                p.total[m][half] *= less;
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) {
                    p.sums[m][n][half * 2] *= less;
                    p.sums[m][n][half * 2 + 1] *= less;
                }
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float minus = -top[half] * factor;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    scores[m][n][i] = fast_exp2(fmaf(scores[m][n][i], factor, minus));
                    p.total[m][half] += scores[m][n][i];
                }
        }
    }
}

/* sums += numerators v. The registers in which a product leaves its results are those in which the
 * next one reads them. */
template <int DIM, int KEYS>
DEVICE void add_values(progress<DIM> &p, const float (&scores)[ROW_TILES][KEYS / 8][4], unsigned v)
{
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
        unsigned rows[ROW_TILES][4], columns[4];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *pair = &scores[m][2 * n + i / 2][i % 2 * 2];
                rows[m][i] = WORK_PAIR(pair[0], pair[1]);
            }
#pragma unroll
        for (int d = 0; d < DIM / 16; d++) {
            load_transposed(columns, (v ^ (unsigned)(d * 32)) + n * 16 * DIM * 2);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                multiply_add(p.sums[m][2 * d], rows[m], columns[0], columns[1]);
                multiply_add(p.sums[m][2 * d + 1], rows[m], columns[2], columns[3]);
            }
        }
    }
}

/* A warp's sums, divided, to its own rows of the tile of queries, and from there to memory. */
template <int DIM>
DEVICE void write_rows(const attention &a, const progress<DIM> &p, T *out, char *tile, int count)
{
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float part = 1.0f / lanes_sum<4>(p.total[m][half]);
            char *row = tile + (m * 16 + half * 8 + g) * DIM * 2;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++)
                *(unsigned *)(row + ((n ^ g) << 4) + t * 4) =
                    WORK_PAIR(p.sums[m][n][half * 2] * part, p.sums[m][n][half * 2 + 1] * part);
        }
    __syncwarp();
    constexpr int PARTS = DIM / 8, STEP = 32 / PARTS;
    const int part = lane % PARTS;
#pragma unroll
    for (int i = 0; i < 32; i += STEP) {
        const int row = i + lane / PARTS;
        if (row < count && part * 8 < a.dim)
            *(uint4 *)(out + row * a.out_stride + part * 8) =
                *(const uint4 *)(tile + row * DIM * 2 + ((part ^ (row % 8)) << 4));
    }
}

/* Keys and values arrive in turns: while scores are computed the values are on their way, while
 * values are summed the next keys are. Rows, addresses of rows and dim are multiples of 16 bytes.
 * Shared memory: (QUERIES + 2 * KEYS) * DIM * 2 bytes. */
template <int DIM, int KEYS> DEVICE void attend(const attention &a)
{
    const int first = a.first, head = blockIdx.y, warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32, end = first + QUERIES;
    const int visible = a.causal && end < a.keys ? end : a.keys;
    const int tiles = (visible + KEYS - 1) / KEYS;
    const T *q = a.q + first * a.q_stride + head * a.dim;
    const T *k = a.k + head / a.group * a.dim, *v = a.v + head / a.group * a.dim;

    const unsigned at_q = shared_address(shared), at_k = at_q + QUERIES * DIM * 2;
    const unsigned at_v = at_k + KEYS * DIM * 2;
    /* Where this lane's rows of matrices begin. */
    unsigned lane_q =
        at_q + (unsigned)((warp * 32 + lane % 16) * DIM * 2 + ((lane / 16 ^ lane % 8) << 4));
    unsigned lane_k =
        at_k + (unsigned)((lane % 8 + lane / 16 * 8) * DIM * 2 + ((lane / 8 % 2 ^ lane % 8) << 4));
    unsigned lane_v = at_v + (unsigned)(lane % 16 * DIM * 2 + ((lane / 16 ^ lane % 8) << 4));

    progress<DIM> p;
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            p.top[m][half] = LOWEST;
            p.total[m][half] = 0;
        }
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                p.sums[m][n][i] = 0;
    }

    copy_tile<DIM, QUERIES>(at_q, q, a.q_stride, a.queries - first, a.dim);
    copy_tile<DIM, KEYS>(at_k, k, a.k_stride, a.keys, a.dim);
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        const int key = tile * KEYS, query = first + warp * 32;
        float scores[ROW_TILES][KEYS / 8][4];
        forget(lane_q);
        forget(lane_k);
        copies_wait();
        __syncthreads(); /* the keys are there, and nobody reads values any more */
        copy_tile<DIM, KEYS>(at_v, v, a.v_stride, a.keys - key, a.dim);
        score_tile<DIM, KEYS>(scores, lane_q, lane_k);
        copies_wait();
        __syncthreads(); /* the values are there, and nobody reads keys any more */
        if (tile + 1 < tiles)
            copy_tile<DIM, KEYS>(at_k, k += KEYS * a.k_stride, a.k_stride, a.keys - key - KEYS,
                                 a.dim);
        if (key + KEYS > a.keys || (a.causal && key + KEYS > query + 1))
            mask_tile<KEYS>(scores, a, query + lane / 4, key + lane % 4 * 2);
        soften_tile<DIM, KEYS>(scores, p, a.factor);
        add_values<DIM, KEYS>(p, scores, lane_v);
        v += KEYS * a.v_stride;
    }
    const int row = first + warp * 32;
    write_rows<DIM>(a, p, a.out + row * a.out_stride + head * a.dim, shared + warp * 32 * DIM * 2,
                    a.queries - row);
}

#else

/* ---- In float32 -------------------------------------------------------------------------------
 * 64 queries at a time and 32 keys: thread [y = 0..7][x = 0..15] has queries 8y .. 8y+7, of the
 * scores keys x and x + 16, of the sums features 4x .. 4x+3 and, for DIM 128, 64 more. Values take
 * the place of the keys. Shared memory: (96 * (DIM + 4) + 64 * 36) * 4 bytes. */

#define FLOAT_QUERIES 64
#define FLOAT_KEYS 32
#define SCORE_STRIDE (FLOAT_KEYS + 4)

/* Rows of DIM + 4 floats, which are in different banks; zeros beyond dim and from row `count` on. */
template <int DIM, int ROWS>
DEVICE void read_tile(float *to, const T *from, long long stride, int count, int dim)
{
    const int column = threadIdx.x % DIM;
    for (int row = threadIdx.x / DIM; row < ROWS; row += THREADS / DIM)
        to[row * (DIM + 4) + column] =
            row < count && column < dim ? from_work(from[row * stride + column]) : 0.0f;
}

DEVICE float dot4(const float4 &x, const float4 &y, float sum)
{
    return fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
}

template <int DIM> DEVICE void score_floats(float (&scores)[8][2], const float *q, const float *k)
{
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < 8; i++)
        scores[i][0] = scores[i][1] = 0;
#pragma unroll 4
    for (int d = 0; d < DIM; d += 4) {
        const float4 k0 = *(const float4 *)(k + x * (DIM + 4) + d);
        const float4 k1 = *(const float4 *)(k + (x + 16) * (DIM + 4) + d);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float4 row = *(const float4 *)(q + (y * 8 + i) * (DIM + 4) + d);
            scores[i][0] = dot4(row, k0, scores[i][0]);
            scores[i][1] = dot4(row, k1, scores[i][1]);
        }
    }
}

/* sums += numerators v */
template <int DIM>
DEVICE void add_floats(float (&sums)[8][DIM / 64][4], const float *numerators, const float *v)
{
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll 2
    for (int key = 0; key < FLOAT_KEYS; key += 4) {
        float4 values[4][DIM / 64];
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int n = 0; n < DIM / 64; n++)
                values[j][n] = *(const float4 *)(v + (key + j) * (DIM + 4) + n * 64 + x * 4);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float4 part = *(const float4 *)(numerators + (y * 8 + i) * SCORE_STRIDE + key);
            const float weight[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int n = 0; n < DIM / 64; n++) {
                    sums[i][n][0] = fmaf(weight[j], values[j][n].x, sums[i][n][0]);
                    sums[i][n][1] = fmaf(weight[j], values[j][n].y, sums[i][n][1]);
                    sums[i][n][2] = fmaf(weight[j], values[j][n].z, sums[i][n][2]);
                    sums[i][n][3] = fmaf(weight[j], values[j][n].w, sums[i][n][3]);
                }
        }
    }
}

template <int DIM> DEVICE void attend_floats(const attention &a, int first)
{
    float *q = (float *)shared, *k = q + FLOAT_QUERIES * (DIM + 4);
    float *numerators = k + FLOAT_KEYS * (DIM + 4);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16, head = blockIdx.y;
    const int visible = a.causal && first + FLOAT_QUERIES < a.keys ? first + FLOAT_QUERIES : a.keys;
    const T *keys = a.k + head / a.group * a.dim, *values = a.v + head / a.group * a.dim;
    float sums[8][DIM / 64][4], top[8], total[8], scores[8][2];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        top[i] = LOWEST;
        total[i] = 0;
#pragma unroll
        for (int n = 0; n < DIM / 64; n++)
            sums[i][n][0] = sums[i][n][1] = sums[i][n][2] = sums[i][n][3] = 0;
    }
    read_tile<DIM, FLOAT_QUERIES>(q, a.q + first * a.q_stride + head * a.dim, a.q_stride,
                                  a.queries - first, a.dim);
    for (int key = 0; key < visible; key += FLOAT_KEYS) {
        __syncthreads();
        read_tile<DIM, FLOAT_KEYS>(k, keys + key * a.k_stride, a.k_stride, a.keys - key, a.dim);
        __syncthreads();
        score_floats<DIM>(scores, q, k);
        __syncthreads();
        read_tile<DIM, FLOAT_KEYS>(k, values + key * a.v_stride, a.v_stride, a.keys - key, a.dim);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int row = first + y * 8 + i;
            const int end = a.causal && row < a.keys ? row + 1 : a.keys;
            const float s0 = key + x < end ? scores[i][0] : LOWEST;
            const float s1 = key + x + 16 < end ? scores[i][1] : LOWEST;
            const float now = fmaxf(top[i], lanes_max<16>(fmaxf(s0, s1)));
            const float less = now == top[i] ? 1.0f : fast_exp2((top[i] - now) * a.factor);
            const float minus = -now * a.factor;
            const float p0 = fast_exp2(fmaf(s0, a.factor, minus));
            const float p1 = fast_exp2(fmaf(s1, a.factor, minus));
            top[i] = now;
            total[i] = total[i] * less + (p0 + p1);
            numerators[(y * 8 + i) * SCORE_STRIDE + x] = p0;
            numerators[(y * 8 + i) * SCORE_STRIDE + x + 16] = p1;
#pragma unroll
            for (int n = 0; n < DIM / 64; n++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    sums[i][n][j] *= less;
        }
        __syncthreads();
        add_floats<DIM>(sums, numerators, k);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int row = first + y * 8 + i;
        const float part = 1.0f / lanes_sum<16>(total[i]);
        T *out = a.out + row * a.out_stride + head * a.dim;
#pragma unroll
        for (int n = 0; n < DIM / 64; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (row < a.queries && n * 64 + x * 4 + j < a.dim)
                    out[n * 64 + x * 4 + j] = to_work(sums[i][n][j] * part);
    }
}

template <int DIM, int KEYS> DEVICE void attend(const attention &a)
{
    for (int part = 0; part < QUERIES; part += FLOAT_QUERIES) {
        const int first = a.first + part;
        if (first < a.queries)
            attend_floats<DIM>(a, first);
        __syncthreads();
    }
}

#endif

#include "attention_hopper.cuh"

/* ---- Kernels ---------------------------------------------------------------------------------
 * Launched as [ceil(queries / 128), heads] blocks of 128 threads, or as many as tiles has, which
 * may be null: part_of. Shared memory: above. */

#define PARAMETERS                                                                                 \
    T *out, const T *q, const T *k, const T *v, long long out_stride, long long q_stride,          \
        long long k_stride, long long v_stride, int queries, int keys, int group, int dim,         \
        int causal, float factor, const int *tiles
#define ATTENTION                                                                                  \
    part_of({out, q, k, v, out_stride, q_stride, k_stride, v_stride, queries, keys, group, dim,    \
             causal, factor, 0},                                                                   \
            tiles)

/* dim up to 64 */
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention64(PARAMETERS)
{
    const attention a = ATTENTION;
    attend<64, 64>(a);
}

/* dim up to 128 */
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention128(PARAMETERS)
{
    const attention a = ATTENTION;
    attend<128, 64>(a);
}

/* The same with tiles of 32 keys: where shared memory would hold but one block of the other. */
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention128_small(PARAMETERS)
{
    const attention a = ATTENTION;
    attend<128, 32>(a);
}

/* dim up to 128, on Hopper alone: 256 threads, HOPPER_SHARED bytes. */
extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, 1) attention128_hopper(PARAMETERS)
{
#if WARPGROUP_CORES
    const attention a = ATTENTION;
    attend_hopper(a);
#else
    asm volatile("trap;"); /* made for another GPU: never launched */
#endif
}

/* Any dim, any alignment: simple, for cases in which there is little to do. [queries, heads]
 * blocks of 128 threads; shared memory: (2 * dim + 128 + 4) floats. tiles: null. */
extern "C" __global__ void __launch_bounds__(THREADS) attention_plain(PARAMETERS)
{
    float *query = (float *)shared, *sums = query + dim, *numerators = sums + dim;
    float *partial = numerators + THREADS;
    const int row = blockIdx.x, head = blockIdx.y, thread = threadIdx.x;
    const int visible = causal && row < keys ? row + 1 : keys;
    const T *k_head = k + head / group * dim, *v_head = v + head / group * dim;
    for (int d = thread; d < dim; d += THREADS) {
        query[d] = from_work(q[row * q_stride + head * dim + d]);
        sums[d] = 0;
    }
    float top = LOWEST, total = 0;
    for (int first = 0; first < visible; first += THREADS) {
        const int count = visible - first < THREADS ? visible - first : THREADS;
        __syncthreads();
        float score = LOWEST;
        if (thread < count) {
            const T *at = k_head + (first + thread) * k_stride;
            score = 0;
            for (int d = 0; d < dim; d++)
                score = fmaf(query[d], from_work(at[d]), score);
        }
        const float most = lanes_max<32>(score);
        if (thread % 32 == 0)
            partial[thread / 32] = most;
        __syncthreads();
        float now = top;
        for (int i = 0; i < WARPS; i++)
            now = fmaxf(now, partial[i]);
        const float less = now == top ? 1.0f : fast_exp2((top - now) * factor);
        numerators[thread] = fast_exp2(fmaf(score, factor, -now * factor));
        top = now;
        __syncthreads();
        /* Every thread sums all numerators, in the same order. */
        float sum = 0;
        for (int i = 0; i < count; i++)
            sum += numerators[i];
        total = total * less + sum;
        for (int d = thread; d < dim; d += THREADS) {
            float value = sums[d] * less;
            for (int i = 0; i < count; i++)
                value = fmaf(numerators[i], from_work(v_head[(first + i) * v_stride + d]), value);
            sums[d] = value;
        }
    }
    for (int d = thread; d < dim; d += THREADS)
        out[row * out_stride + head * dim + d] = to_work(sums[d] / total);
}
