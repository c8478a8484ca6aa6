/* Pictures and latents: what is between their forms, the sampler's arithmetic on them, group norms,
 * and what is before and behind convolutions.
 *
 * planes are [channels, height, width] of float32, pictures [height, width, channels]. "Any grid":
 * a loop over grid.x blocks of any number of threads. */
#include "common.cuh"

DEVICE long long grid_first()
{
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

DEVICE long long grid_step()
{
    return (long long)gridDim.x * blockDim.x;
}

/* ---- Forms ----------------------------------------------------------------------------------- */

/* tokens [height / patch * width / patch, patch * patch * channels], features [py, px, channel] or
 * (channels_first 1) [channel, py, px], of a kind, from planes or (to_tokens 0) to planes. Any grid.
 */
extern "C" __global__ void __launch_bounds__(256)
    patches(void *tokens, int kind, float *planes, int channels, int height, int width, int patch,
            int channels_first, int to_tokens)
{
    const int across = width / patch, features = patch * patch * channels;
    const long long count = (long long)height * width * channels;
    for (long long i = grid_first(); i < count; i += grid_step()) {
        const int token = (int)(i / features), feature = (int)(i % features);
        const int channel = channels_first ? feature / (patch * patch) : feature % channels;
        const int part = channels_first ? feature % (patch * patch) : feature / channels;
        const int y = token / across * patch + part / patch,
                  x = token % across * patch + part % patch;
        float *pixel = planes + ((long long)channel * height + y) * width + x;
        if (to_tokens)
            store1(kind, tokens, i, *pixel);
        else
            *pixel = load1(kind, tokens, i);
    }
}

/* picture = planes * factor + offset. Any grid. */
extern "C" __global__ void __launch_bounds__(256)
    planes(void *picture, int kind, const float *planes, int channels, long long pixels,
           float factor, float offset)
{
    for (long long i = grid_first(); i < pixels; i += grid_step())
        for (int c = 0; c < channels; c++)
            store1(kind, picture, i * channels + c,
                   __fadd_rn(__fmul_rn(planes[c * pixels + i], factor), offset));
}

/* ---- Sampling -------------------------------------------------------------------------------- */

/* x += factor * y, rounded twice. Any grid. */
extern "C" __global__ void __launch_bounds__(256)
    add_scaled(float *x, const float *y, float factor, long long count)
{
    for (long long i = grid_first(); i < count; i += grid_step())
        x[i] = __fadd_rn(x[i], __fmul_rn(factor, y[i]));
}

#define SUM_THREADS 256

/* Of a block of SUM_THREADS, in a fixed order; every thread gets it. */
DEVICE double block_sum_double(double v)
{
    __shared__ double part[SUM_THREADS];
    __syncthreads(); /* the last sum has been read */
    part[threadIdx.x] = v;
    for (int half = SUM_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half)
            part[threadIdx.x] += part[threadIdx.x + half];
    }
    __syncthreads();
    return part[0];
}

/* x = x + g * (x - y), rounded after each operation. sums, if not null: two numbers for each block,
 * of the squares before and after. At most SUM_THREADS blocks of as many threads. */
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    guide_sums(float *x, const float *y, float guidance, long long count, double *sums)
{
    double before = 0.0, after = 0.0;
    for (long long i = grid_first(); i < count; i += grid_step()) {
        const float p = x[i];
        const float v = __fadd_rn(p, __fmul_rn(guidance, __fsub_rn(p, y[i])));
        x[i] = v;
        before += (double)p * (double)p;
        after += (double)v * (double)v;
    }
    if (!sums)
        return;
    before = block_sum_double(before);
    after = block_sum_double(after);
    if (threadIdx.x == 0) {
        sums[2 * blockIdx.x] = before;
        sums[2 * blockIdx.x + 1] = after;
    }
}

/* Then: x, if it has become longer (L2), is made as long as it was. blocks: those of guide_sums.
 * Any grid of SUM_THREADS. */
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    guide(float *x, long long count, const double *sums, int blocks)
{
    const bool has = (int)threadIdx.x < blocks;
    const double before = block_sum_double(has ? sums[2 * threadIdx.x] : 0.0);
    const double after = block_sum_double(has ? sums[2 * threadIdx.x + 1] : 0.0);
    if (after <= before)
        return;
    const float factor = (float)sqrt(before / after);
    for (long long i = grid_first(); i < count; i += grid_step())
        x[i] *= factor;
}

/* x = x + g * (x - y) on planes; then each token, patch * patch pixels of all channels, as long
 * (L2) as it was in x. A thread for each token; any grid. */
extern "C" __global__ void __launch_bounds__(256)
    guide_tokens(float *x, const float *y, float guidance, int channels, int height, int width,
                 int patch)
{
    const int across = width / patch, parts = patch * patch;
    const long long tokens = (long long)(height / patch) * across, plane = (long long)height * width;
    for (long long i = grid_first(); i < tokens; i += grid_step()) {
        const long long at = i / across * patch * width + i % across * patch;
        double before = 0.0, after = 0.0;
        for (int k = 0; k < channels * parts; k++) {
            const long long j = k / parts * plane + at + k % parts / patch * width + k % patch;
            const float p = x[j];
            const float v = __fadd_rn(p, __fmul_rn(guidance, __fsub_rn(p, y[j])));
            x[j] = v;
            before += (double)p * (double)p;
            after += (double)v * (double)v;
        }
        const float factor = after > 0.0 ? (float)sqrt(before / after) : 1.0f;
        for (int k = 0; k < channels * parts; k++)
            x[k / parts * plane + at + k % parts / patch * width + k % patch] *= factor;
    }
}

/* *count += how many numbers of x [rows, columns], whose rows are `stride` apart, are not finite.
 * Any grid. */
extern "C" __global__ void __launch_bounds__(256)
    check_finite(const void *x, int kind, long long rows, long long columns, long long stride,
                 int *count)
{
    int bad = 0;
    for (long long i = grid_first(); i < rows * columns; i += grid_step()) {
        const long long row = i / columns;
        bad += magnitude_bits(load1(kind, x, row * stride + i - row * columns)) >= 0x7f800000u;
    }
    if (bad)
        atomicAdd(count, bad);
}

/* ---- Pictures into products ------------------------------------------------------------------ */

/* A picture as a convolution sees it: doubled if `up` is 1, with zeros around. */
typedef struct view {
    const void *x;
    const float *norm; /* [2, channels] or null */
    int kind, height, width, channels, up, stride, kernel, pad_top, pad_left;
    bool silu;
} view;

/* The address of the pixel under item i (an output's column, times the taps of the kernel, plus a
 * tap) in row y of the outputs; null outside of the picture. */
DEVICE const void *view_pixel(const view *v, int y, int i)
{
    const int taps = v->kernel * v->kernel, tap = i % taps;
    const int row = y * v->stride + tap / v->kernel - v->pad_top;
    const int column = i / taps * v->stride + tap % v->kernel - v->pad_left;
    if (row < 0 || column < 0 || row >= v->height << v->up || column >= v->width << v->up)
        return (const void *)0;
    return number_at(v->kind, v->x,
                     ((long long)(row >> v->up) * v->width + (column >> v->up)) * v->channels);
}

#define GATHER_AHEAD 2

#define COPY_AHEAD 4
/* Blocks that are to fit on a multiprocessor: numbers of 32 bits need more registers. */
#if defined(T_F32)
#define COPY_BLOCKS 2
#define GROUP_BLOCKS 1
#else
#define COPY_BLOCKS 4
#define GROUP_BLOCKS 2
#endif

/* Row y of a copy, kernel 1 and stride 1, of T to T: what the VAE spends its time in, next to
 * convolutions. A thread has the same 8 channels of every pixel, and their norm in registers. */
DEVICE void copy_row(T *out, const view *v, int y, int columns)
{
    const int lanes = v->channels / 8, slots = (int)blockDim.x / lanes;
    const int slot = (int)threadIdx.x / lanes, channel = (int)threadIdx.x % lanes * 8;
    const int row = y - v->pad_top;
    const bool inside = row >= 0 && row < v->height << v->up;
    const T *from = (const T *)v->x + channel;
    if (slot >= slots)
        return;
    if (inside)
        from += (long long)(row >> v->up) * v->width * v->channels;
    float scale[8], offset[8];
    if (v->norm) {
        load8(scale, KIND_FLOAT, v->norm, channel);
        load8(offset, KIND_FLOAT, v->norm + v->channels, channel);
    }
    const int last = (v->width << v->up) - 1;
#pragma unroll 1
    for (int first = (int)blockIdx.y * COPY_AHEAD * slots + slot; first < columns;
         first += (int)gridDim.y * COPY_AHEAD * slots) {
        eight read[COPY_AHEAD];
#pragma unroll
        for (int k = 0; k < COPY_AHEAD; k++) { /* anything, where it will be zeros */
            const int column = min(max(first + k * slots - v->pad_left, 0), last);
            read[k] = load_eight(from + (long long)(column >> v->up) * v->channels);
        }
#pragma unroll
        for (int k = 0; k < COPY_AHEAD; k++) {
            const int to = first + k * slots, column = to - v->pad_left;
            float n[8];
            if (to >= columns)
                continue;
            unpack8(n, read[k]);
            if (v->norm)
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    n[j] = fmaf(n[j], scale[j], offset[j]);
                    if (v->silu)
                        n[j] = silu(n[j]);
                }
            if (!inside || column < 0 || column > last)
                clear8(n);
            store_work8(out + (long long)to * v->channels + channel, n);
        }
    }
}

/* The same for any kernel, stride and kinds. */
DEVICE void gather_row(void *out, int out_kind, const view *v, int kind, int y, int items)
{
    const int lanes = v->channels / 8, slots = (int)blockDim.x / lanes;
    const int slot = (int)threadIdx.x / lanes, channel = (int)threadIdx.x % lanes * 8;
    float scale[8], offset[8];
    if (slot >= slots)
        return;
    if (v->norm) {
        load8(scale, KIND_FLOAT, v->norm, channel);
        load8(offset, KIND_FLOAT, v->norm + v->channels, channel);
    }
#pragma unroll 1
    for (int first = (int)blockIdx.y * GATHER_AHEAD * slots + slot; first < items;
         first += (int)gridDim.y * GATHER_AHEAD * slots) {
        float n[GATHER_AHEAD][8];
        bool inside[GATHER_AHEAD];
#pragma unroll
        for (int k = 0; k < GATHER_AHEAD; k++) {
            const int item = first + k * slots;
            const void *pixel = item < items ? view_pixel(v, y, item) : (const void *)0;
            inside[k] = pixel != 0;
            clear8(n[k]);
            if (pixel)
                load8(n[k], kind, pixel, channel);
        }
#pragma unroll
        for (int k = 0; k < GATHER_AHEAD; k++) {
            const int item = first + k * slots;
            if (v->norm && inside[k])
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    n[k][j] = fmaf(n[k][j], scale[j], offset[j]);
                    if (v->silu)
                        n[k][j] = silu(n[k][j]);
                }
            if (item < items)
                store8(out_kind, out, (long long)item * v->channels + channel, n[k]);
        }
    }
}

/* Any number of channels, at any alignment. */
DEVICE void gather_row_any(void *out, int out_kind, const view *v, int y, int items)
{
    const long long count = (long long)items * v->channels;
    for (long long i = (long long)blockIdx.y * blockDim.x + threadIdx.x; i < count;
         i += (long long)gridDim.y * blockDim.x) {
        const int channel = (int)(i % v->channels);
        const void *pixel = view_pixel(v, y, (int)(i / v->channels));
        float n = pixel ? load1(v->kind, pixel, channel) : 0.0f;
        if (pixel && v->norm) {
            n = fmaf(n, v->norm[channel], v->norm[v->channels + channel]);
            n = v->silu ? silu(n) : n;
        }
        store1(out_kind, out, i, n);
    }
}

/* out [rows, columns, kernel, kernel, channels]: what lies under the kernel at each output, rows
 * first_row .. of the outputs. Output (y, x) has the pixels (y * stride - pad_top + 0 .. kernel-1,
 * x * stride - pad_left + ..) of x [height, width, channels], which is doubled first (nearest
 * neighbour) if up is 1; with norm [2, channels] they are x * norm[0] + norm[1], with_silu that
 * through SiLU; outside of the picture 0. kernel 1 makes a padded, doubled or normed copy. grid.x =
 * rows; grid.y blocks of at most 256 threads share a row. For channels that are a multiple of 8,
 * threads should be as many as channels / 8, or a multiple of that. */
extern "C" __global__ void __launch_bounds__(256, COPY_BLOCKS)
    gather(void *out, int out_kind, const void *x, int x_kind, int height, int width, int channels,
           int up, const float *norm, int with_silu, int first_row, int columns, int kernel,
           int stride, int pad_top, int pad_left)
{
    const view v = {x,  norm,   x_kind, height,  width,    channels,
                    up, stride, kernel, pad_top, pad_left, with_silu != 0};
    const int y = first_row + (int)blockIdx.x, items = columns * kernel * kernel;
    void *row = number_at(out_kind, out, (long long)blockIdx.x * items * channels);
    const bool vector = channels % 8 == 0 && channels / 8 <= (int)blockDim.x && is_aligned(x, 16) &&
                        is_aligned(out, 16) && is_aligned(norm, 16);
    if (!vector)
        gather_row_any(row, out_kind, &v, y, items);
    else if (x_kind == KIND_FLOAT)
        gather_row(row, out_kind, &v, KIND_FLOAT, y, items);
    else if (kernel > 1 || stride > 1 || out_kind == KIND_FLOAT)
        gather_row(row, out_kind, &v, KIND_WORK, y, items);
    else
        copy_row((T *)row, &v, y, items);
}

/* ---- Group norm ------------------------------------------------------------------------------ */

#define GROUP_THREADS 512
#define GROUP_AHEAD 4

/* Which 8 channels of a picture a thread has, and of which of `slots` pixels at a time. */
typedef struct share {
    int slots, slot, channel;
} share;

DEVICE share share_of(int channels)
{
    const int lanes = channels / 8;
    const share s = {(int)blockDim.x / lanes, (int)threadIdx.x / lanes,
                     (int)threadIdx.x % lanes * 8};
    return s;
}

/* The biases of those channels; 0 without bias. */
DEVICE void load_bias(float *b, const float *bias, int channel)
{
    clear8(b);
    if (bias)
        load8(b, KIND_FLOAT, bias, channel);
}

/* n + b into the sums of channels. */
DEVICE void count_in(float *sum, float *squares, const float *n, const float *b)
{
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float v = n[j] + b[j];
        sum[j] += v;
        squares[j] = fmaf(v, v, squares[j]);
    }
}

/* From what threads have, [8] each, the sums of each group of channels, and of the squares behind
 * them. part: [slots][2 * channels]. */
DEVICE void put_group_sums(double *sums, float *part, const share *s, const float *sum,
                           const float *squares, int channels, int groups)
{
    if (s->slot < s->slots)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            part[s->slot * 2 * channels + s->channel + j] = sum[j];
            part[s->slot * 2 * channels + channels + s->channel + j] = squares[j];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * channels; i += blockDim.x) {
        float all = part[i];
        for (int k = 1; k < s->slots; k++)
            all += part[k * 2 * channels + i];
        part[i] = all;
    }
    __syncthreads();
    const int size = channels / groups;
    for (int i = threadIdx.x; i < 2 * groups; i += blockDim.x) {
        float all = 0.0f;
        for (int c = 0; c < size; c++)
            all += part[i * size + c];
        sums[i] = (double)all;
    }
}

/* Of a row of pixels of T. */
DEVICE void group_sums_row(double *sums, float *part, const T *x, const float *bias, int width,
                           int channels, int groups)
{
    const share s = share_of(channels);
    float sum[8] = {0.0f}, squares[8] = {0.0f}, b[8];
    load_bias(b, bias, s.channel);
#pragma unroll 1
    for (int first = s.slot; first < width && s.slot < s.slots; first += GROUP_AHEAD * s.slots) {
        eight read[GROUP_AHEAD];
#pragma unroll
        for (int k = 0; k < GROUP_AHEAD; k++) {
            const int pixel = min(first + k * s.slots, width - 1);
            read[k] = load_eight(x + (long long)pixel * channels + s.channel);
        }
#pragma unroll
        for (int k = 0; k < GROUP_AHEAD; k++)
            if (first + k * s.slots < width) {
                float n[8];
                unpack8(n, read[k]);
                count_in(sum, squares, n, b);
            }
    }
    put_group_sums(sums, part, &s, sum, squares, channels, groups);
}

/* Of float32 beside a T of 16 bits. */
DEVICE void group_sums_floats(double *sums, float *part, const float *x, const float *bias,
                              int width, int channels, int groups)
{
    const share s = share_of(channels);
    float sum[8] = {0.0f}, squares[8] = {0.0f}, b[8];
    load_bias(b, bias, s.channel);
    for (int pixel = s.slot; pixel < width && s.slot < s.slots; pixel += s.slots) {
        float n[8];
        load8(n, KIND_FLOAT, x, (long long)pixel * channels + s.channel);
        count_in(sum, squares, n, b);
    }
    put_group_sums(sums, part, &s, sum, squares, channels, groups);
}

/* Any number of channels: a warp for a group. */
DEVICE void group_sums_any(double *sums, const void *x, int kind, const float *bias, int width,
                           int channels, int groups)
{
    const int size = channels / groups, lane = threadIdx.x & 31;
    for (int g = (int)threadIdx.x >> 5; g < groups; g += (int)blockDim.x >> 5) {
        float sum = 0.0f, squares = 0.0f;
        for (long long i = lane; i < (long long)width * size; i += 32) {
            const int channel = g * size + (int)(i % size);
            const float v =
                load1(kind, x, i / size * channels + channel) + (bias ? bias[channel] : 0.0f);
            sum += v;
            squares = fmaf(v, v, squares);
        }
        sum = warp_sum(sum);
        squares = warp_sum(squares);
        if (lane == 0) {
            sums[g] = (double)sum;
            sums[groups + g] = (double)squares;
        }
    }
}

/* For each row of x [rows, width, channels] plus bias [channels] (unless null) the sum of each
 * group of channels, then that of the squares, to sums [rows, 2 * groups]. grid.x = rows,
 * GROUP_THREADS threads. */
extern "C" __global__ void __launch_bounds__(GROUP_THREADS, GROUP_BLOCKS)
    group_sums(double *sums, const void *x, int kind, const float *bias, int width, int channels,
               int groups)
{
    __shared__ float part[16 * GROUP_THREADS];
    const void *row = number_at(kind, x, (long long)blockIdx.x * width * channels);
    double *to = sums + (long long)blockIdx.x * 2 * groups;
    if (channels % 8 != 0 || channels / 8 > (int)blockDim.x || !is_aligned(x, 16) ||
        !is_aligned(bias, 16))
        group_sums_any(to, row, kind, bias, width, channels, groups);
    else if (kind == KIND_FLOAT)
        group_sums_floats(to, part, (const float *)row, bias, width, channels, groups);
    else
        group_sums_row(to, part, (const T *)row, bias, width, channels, groups);
}

/* norm [2, channels] = what each channel is multiplied with, and what is added, from the sums of
 * all rows; count: numbers in a group of the picture. late [channels], unless null: added to the
 * picture before. grid.x = groups, SUM_THREADS threads. */
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    group_factors(float *norm, const double *sums, int rows, int channels, int groups, double count,
                  const float *w, const float *b, double eps, const float *late)
{
    double sum = 0.0, squares = 0.0;
    for (int row = threadIdx.x; row < rows; row += blockDim.x) {
        sum += sums[(long long)row * 2 * groups + blockIdx.x];
        squares += sums[(long long)row * 2 * groups + groups + blockIdx.x];
    }
    const double mean = block_sum_double(sum) / count;
    const double variance = block_sum_double(squares) / count - mean * mean;
    const double factor = 1.0 / sqrt((variance > 0.0 ? variance : 0.0) + eps);
    const int size = channels / groups;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const int channel = (int)blockIdx.x * size + i;
        norm[channel] = (float)(factor * (double)w[channel]);
        const double center = mean - (late ? (double)late[channel] : 0.0);
        norm[channels + channel] =
            (float)((double)b[channel] - center * factor * (double)w[channel]);
    }
}

/* ---- Behind convolutions --------------------------------------------------------------------- */

#define FINISH_AHEAD 2

/* Where pixel (y, x) of a result is in what a convolution has written, in pixels: there, or (folded)
 * among the four of a pixel, [height / 2 + 1, width / 2 + 1, 2, 2]. */
DEVICE long long result_pixel(int folded, int y, int x, int width)
{
    if (!folded)
        return (long long)y * width + x;
    const int row = (y >> 1) + (y & 1), column = (x >> 1) + (x & 1);
    return ((long long)row * (width / 2 + 1) + column) * 4 + (y & 1) * 2 + (x & 1);
}

/* out [rows, width, channels] = x + bias, or out += that (add); the same memory, or x is as
 * result_pixel says. sums, unless null: those of the rows of out, as group_sums makes them. channels
 * are a multiple of 8 and at most 8 * GROUP_THREADS, addresses are aligned to 16 bytes. grid.x =
 * rows, GROUP_THREADS threads. */
extern "C" __global__ void __launch_bounds__(GROUP_THREADS, GROUP_BLOCKS)
    conv_finish(T *out, const T *x, const float *bias, double *sums, int width, int channels,
                int groups, int add, int folded)
{
    __shared__ float part[16 * GROUP_THREADS];
    const share s = share_of(channels);
    const int y = blockIdx.x;
    T *row = out + (long long)y * width * channels + s.channel;
    float sum[8] = {0.0f}, squares[8] = {0.0f}, b[8], none[8];
    load_bias(b, bias, s.channel);
    clear8(none);
#pragma unroll 1
    for (int first = s.slot; first < width && s.slot < s.slots; first += FINISH_AHEAD * s.slots) {
        eight read[FINISH_AHEAD], old[FINISH_AHEAD];
#pragma unroll
        for (int k = 0; k < FINISH_AHEAD; k++) {
            const int column = min(first + k * s.slots, width - 1);
            read[k] =
                load_eight(x + result_pixel(folded, y, column, width) * channels + s.channel);
            if (add)
                old[k] = load_eight(row + column * channels);
        }
#pragma unroll
        for (int k = 0; k < FINISH_AHEAD; k++) {
            const int column = first + k * s.slots;
            float n[8], m[8];
            if (column >= width)
                continue;
            unpack8(n, read[k]);
#pragma unroll
            for (int j = 0; j < 8; j++)
                n[j] += b[j];
            if (add) {
                unpack8(m, old[k]);
#pragma unroll
                for (int j = 0; j < 8; j++)
                    n[j] += m[j];
            }
#pragma unroll
            for (int j = 0; j < 8; j++) /* sums are of what is stored */
                n[j] = from_work(to_work(n[j]));
            count_in(sum, squares, n, none);
            store_work8(row + column * channels, n);
        }
    }
    if (sums)
        put_group_sums(sums + (long long)y * 2 * groups, part, &s, sum, squares, channels, groups);
}
