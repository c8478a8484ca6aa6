/* Attention for heads of up to 128 numbers on Hopper: as attend in attention.cu, but a warpgroup
 * multiplies 64 queries with 128 keys at once, out of shared memory and in the background. While
 * the tensor cores sum the values of one tile the scores of the next one become numerators. */

#define HOPPER_THREADS 256
#define HOPPER_KEYS 128
#define HOPPER_HALF (128 * 64 * 2)      /* bytes of 128 rows of 64 numbers */
#define HOPPER_TILE (2 * HOPPER_HALF)   /* of 128 rows of 128 numbers */
#define HOPPER_SHARED (5 * HOPPER_TILE) /* queries, two tiles of keys, two of values */

#if WARPGROUP_CORES

/* 128 rows of 128 numbers: two halves of 64 columns. Zeros from row `count` and from column dim
 * on. */
DEVICE void copy_halves(unsigned to, const T *from, long long stride, int count, int dim)
{
    const int part = threadIdx.x % 16, row = threadIdx.x / 16;
    const T *at = from + row * stride + part * 8;
    to += (unsigned)(part / 8 * HOPPER_HALF + row * 128 + ((part % 8 ^ row % 8) << 4));
#pragma unroll
    for (int i = 0; i < 128; i += HOPPER_THREADS / 16) {
        bool valid = row + i < count && part * 8 < dim;
        copy16(to + (unsigned)(i * 128), valid ? at : from, valid);
        at += HOPPER_THREADS / 16 * stride;
    }
}

/* Of rows lane / 4 and that + 8 of a warp. */
struct hopper_rows {
    float top[2], total[2], less[2];
    bool changed; /* less is not 1 for some row of this warp */
};

/* Scores become numerators; what the sums are to be multiplied with goes to less. first: the key of
 * scores[0][0]; end: the keys that the two rows see. */
DEVICE void soften_rows(float (&scores)[16][4], hopper_rows &r, float factor, bool masked,
                        int first, const int (&end)[2])
{
    if (masked) {
#pragma unroll
        for (int n = 0; n < 16; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (first + n * 8 + i % 2 >= end[i / 2])
                    scores[n][i] = LOWEST;
    }
    bool changed = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = r.top[half];
#pragma unroll
        for (int n = 0; n < 16; n++)
            top = fmaxf(top, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
        top = lanes_max<4>(top);
        r.less[half] = top == r.top[half] ? 1.0f : fast_exp2((r.top[half] - top) * factor);
        changed = changed || top != r.top[half];
        r.top[half] = top;
        r.total[half] *= r.less[half];
        const float minus = -top * factor;
#pragma unroll
        for (int n = 0; n < 16; n++)
#pragma unroll
            for (int i = half * 2; i < half * 2 + 2; i++) {
                scores[n][i] = fast_exp2(fmaf(scores[n][i], factor, minus));
                r.total[half] += scores[n][i];
            }
    }
    r.changed = __any_sync(FULL_WARP, changed);
}

DEVICE void pack_numerators(unsigned (&numerators)[8][4], const float (&scores)[16][4])
{
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            numerators[n][i] =
                WORK_PAIR(scores[2 * n + i / 2][i % 2 * 2], scores[2 * n + i / 2][i % 2 * 2 + 1]);
}

/* scores = q k^T, in the background. */
DEVICE void begin_scores(float (&scores)[16][4], unsigned q, unsigned k)
{
#pragma unroll
    for (int d = 0; d < 8; d++) {
        const unsigned at = (unsigned)(d / 4 * HOPPER_HALF + d % 4 * 32);
        multiply_tiles(scores, along_rows(q + at), along_rows(k + at), d > 0);
    }
    products_commit();
}

/* sums += numerators v, in the background. */
DEVICE void begin_values(float (&sums)[16][4], const unsigned (&numerators)[8][4], unsigned v)
{
#pragma unroll
    for (int n = 0; n < 8; n++)
        multiply_add_tile(sums, numerators[n],
                          along_columns(v + (unsigned)(n * 2048), HOPPER_HALF));
    products_commit();
}

/* A warp's 16 rows of sums, divided, by way of its queries' place in shared memory. */
DEVICE void write_hopper(const attention &a, const hopper_rows &r, const float (&sums)[16][4],
                         T *out, char *tile, int count)
{
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float part = 1.0f / lanes_sum<4>(r.total[half]);
        char *row = tile + (half * 8 + g) * 128;
#pragma unroll
        for (int n = 0; n < 16; n++)
            *(unsigned *)(row + n / 8 * HOPPER_HALF + ((n % 8 ^ g) << 4) + t * 4) =
                WORK_PAIR(sums[n][half * 2] * part, sums[n][half * 2 + 1] * part);
    }
    __syncwarp();
    const int part = lane % 16;
#pragma unroll
    for (int i = 0; i < 16; i += 2) {
        const int row = i + lane / 16;
        if (row < count && part * 8 < a.dim)
            *(uint4 *)(out + row * a.out_stride + part * 8) =
                *(const uint4 *)(tile + part / 8 * HOPPER_HALF + row * 128 +
                                 ((part % 8 ^ row % 8) << 4));
    }
}

DEVICE void attend_hopper(const attention &a)
{
    const int first = a.first, head = blockIdx.y, end = first + QUERIES;
    const int group = threadIdx.x / 128, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = first + warp * 16 + lane / 4, column = lane % 4 * 2;
    const int visible = a.causal && end < a.keys ? end : a.keys;
    const int tiles = (visible + HOPPER_KEYS - 1) / HOPPER_KEYS;
    const T *q = a.q + first * a.q_stride + head * a.dim;
    const T *k = a.k + head / a.group * a.dim, *v = a.v + head / a.group * a.dim;
    /* What rows see, and from which key on some see less than all of a tile. */
    const int sees[2] = {a.causal && row < a.keys ? row + 1 : a.keys,
                         a.causal && row + 8 < a.keys ? row + 9 : a.keys};
    const int all_see = a.causal && first + group * 64 < a.keys ? first + group * 64 + 1 : a.keys;

    const unsigned at_q = shared_address(shared), at_k = at_q + HOPPER_TILE;
    const unsigned at_v = at_k + 2 * HOPPER_TILE, group_q = at_q + (unsigned)(group * 64 * 128);
    float scores[16][4], sums[16][4];
    unsigned numerators[8][4];
    hopper_rows r = {{LOWEST, LOWEST}, {0, 0}, {1, 1}, false};
#pragma unroll
    for (int n = 0; n < 16; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[n][i] = scores[n][i] = 0;

    copy_halves(at_q, q, a.q_stride, a.queries - first, a.dim);
    copy_halves(at_k, k, a.k_stride, a.keys, a.dim);
    copies_wait();
    publish_shared();
    __syncthreads();
    pin(scores);
    products_begin();
    begin_scores(scores, group_q, at_k);
    copy_halves(at_v, v, a.v_stride, a.keys, a.dim);
    if (tiles > 1)
        copy_halves(at_k + HOPPER_TILE, k + HOPPER_KEYS * a.k_stride, a.k_stride,
                    a.keys - HOPPER_KEYS, a.dim);
    products_wait<0>();
    pin(scores);
    soften_rows(scores, r, a.factor, HOPPER_KEYS > all_see, column, sees);
    pack_numerators(numerators, scores);

#pragma unroll 1
    for (int tile = 0; tile + 1 < tiles; tile++) {
        const int next = (tile + 1) * HOPPER_KEYS;
        const unsigned here = (unsigned)(tile % 2 * HOPPER_TILE), there = HOPPER_TILE - here;
        copies_wait();
        publish_shared();
        /* The tile's values and the next one's keys are there; nobody reads this tile's keys and
         * the last one's values any more. */
        __syncthreads();
        pin(scores);
        pin(sums);
        products_begin();
        begin_scores(scores, group_q, at_k + there);
        begin_values(sums, numerators, at_v + here);
        copy_halves(at_v + there, v + next * a.v_stride, a.v_stride, a.keys - next, a.dim);
        if (tile + 2 < tiles)
            copy_halves(at_k + here, k + (next + HOPPER_KEYS) * a.k_stride, a.k_stride,
                        a.keys - next - HOPPER_KEYS, a.dim);
        products_wait<1>();
        pin(scores);
        soften_rows(scores, r, a.factor, next + HOPPER_KEYS > all_see, next + column, sees);
        products_wait<0>();
        pin(sums);
        if (r.changed) {
#pragma unroll
            for (int n = 0; n < 16; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sums[n][i] *= r.less[i / 2];
        }
        pack_numerators(numerators, scores);
    }
    copies_wait();
    publish_shared();
    __syncthreads();
    pin(sums);
    products_begin();
    begin_values(sums, numerators, at_v + (unsigned)((tiles - 1) % 2 * HOPPER_TILE));
    products_wait<0>();
    pin(sums);
    write_hopper(a, r, sums, a.out + (first + warp * 16) * a.out_stride + head * a.dim,
                 shared + warp * 16 * 128, a.queries - first - warp * 16);
}

#endif
