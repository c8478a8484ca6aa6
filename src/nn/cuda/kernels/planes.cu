/* Pictures and latents: what is between their forms, the sampler's arithmetic on them, group norms,
 * and the rows of convolutions as products.
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

/* picture = planes * factor + offset, or (to_picture 0) planes = picture * factor + offset. Any
 * grid. */
extern "C" __global__ void __launch_bounds__(256)
    planes(void *picture, int kind, float *planes, int channels, long long pixels, float factor,
           float offset, int to_picture)
{
    for (long long i = grid_first(); i < pixels; i += grid_step())
        for (int c = 0; c < channels; c++) {
            float *pixel = planes + c * pixels + i;
            const float from = to_picture ? *pixel : load1(kind, picture, i * channels + c);
            const float value = __fadd_rn(__fmul_rn(from, factor), offset);
            if (to_picture)
                store1(kind, picture, i * channels + c, value);
            else
                *pixel = value;
        }
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

/* Where x has a number that is not finite, *first becomes `tag` if that is smaller. So *first, set
 * to the largest int before, is the first of the tags where something went wrong. Any grid. */
extern "C" __global__ void __launch_bounds__(256)
    check_finite(const void *x, int kind, long long count, int *first, int tag)
{
    bool bad = false;
    for (long long i = grid_first(); i < count; i += grid_step())
        bad |= magnitude_bits(load1(kind, x, i)) >= 0x7f800000u;
    if (bad)
        atomicMin(first, tag);
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

#define GATHER_AHEAD 4

/* A thread has the same 8 channels of every pixel that it meets, and their norm in registers. */
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
            set4(n[k], 0.0f, 0.0f, 0.0f, 0.0f);
            set4(n[k] + 4, 0.0f, 0.0f, 0.0f, 0.0f);
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
extern "C" __global__ void __launch_bounds__(256)
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
    else
        gather_row(row, out_kind, &v, KIND_WORK, y, items);
}

/* ---- Group norm ------------------------------------------------------------------------------ */

#define GROUP_THREADS 512
#define GROUP_AHEAD 4

/* The sums of each channel over a row of pixels, and those of the squares behind them, to part
 * [2 * channels]; it is [slots][2 * channels] large. */
DEVICE void channel_sums(float *part, const void *x, int kind, int width, int channels)
{
    const int lanes = channels / 8, slots = (int)blockDim.x / lanes;
    const int slot = (int)threadIdx.x / lanes, channel = (int)threadIdx.x % lanes * 8;
    float sum[8] = {0.0f}, squares[8] = {0.0f};
#pragma unroll 1
    for (int first = slot; first < width && slot < slots; first += GROUP_AHEAD * slots) {
        float n[GROUP_AHEAD][8];
#pragma unroll
        for (int k = 0; k < GROUP_AHEAD; k++) {
            const int pixel = first + k * slots;
            set4(n[k], 0.0f, 0.0f, 0.0f, 0.0f);
            set4(n[k] + 4, 0.0f, 0.0f, 0.0f, 0.0f);
            if (pixel < width)
                load8(n[k], kind, x, (long long)pixel * channels + channel);
        }
#pragma unroll
        for (int k = 0; k < GROUP_AHEAD; k++)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                sum[j] += n[k][j];
                squares[j] = fmaf(n[k][j], n[k][j], squares[j]);
            }
    }
    if (slot < slots)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            part[slot * 2 * channels + channel + j] = sum[j];
            part[slot * 2 * channels + channels + channel + j] = squares[j];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * channels; i += blockDim.x) {
        float all = part[i];
        for (int s = 1; s < slots; s++)
            all += part[s * 2 * channels + i];
        part[i] = all;
    }
    __syncthreads();
}

/* Any number of channels: a warp for a group. */
DEVICE void group_sums_any(double *sums, const void *x, int kind, int width, int channels,
                           int groups)
{
    const int size = channels / groups, lane = threadIdx.x & 31;
    for (int g = (int)threadIdx.x >> 5; g < groups; g += (int)blockDim.x >> 5) {
        float sum = 0.0f, squares = 0.0f;
        for (long long i = lane; i < (long long)width * size; i += 32) {
            const float v = load1(kind, x, i / size * channels + g * size + i % size);
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

/* For each row of x [rows, width, channels] the sum of each group of channels, then that of the
 * squares, to sums [rows, 2 * groups]. grid.x = rows, GROUP_THREADS threads. */
extern "C" __global__ void __launch_bounds__(GROUP_THREADS)
    group_sums(double *sums, const void *x, int kind, int width, int channels, int groups)
{
    __shared__ float part[16 * GROUP_THREADS];
    const void *row = number_at(kind, x, (long long)blockIdx.x * width * channels);
    double *to = sums + (long long)blockIdx.x * 2 * groups;
    if (channels % 8 != 0 || channels / 8 > (int)blockDim.x || !is_aligned(x, 16)) {
        group_sums_any(to, row, kind, width, channels, groups);
        return;
    }
    if (kind == KIND_FLOAT)
        channel_sums(part, row, KIND_FLOAT, width, channels);
    else
        channel_sums(part, row, KIND_WORK, width, channels);
    const int size = channels / groups;
    for (int i = threadIdx.x; i < 2 * groups; i += blockDim.x) {
        float all = 0.0f;
        for (int c = 0; c < size; c++)
            all += part[i * size + c];
        to[i] = (double)all;
    }
}

/* norm [2, channels] = what each channel is multiplied with, and what is added, from the sums of
 * all rows; count: numbers in a group of the picture. grid.x = groups, SUM_THREADS threads. */
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    group_factors(float *norm, const double *sums, int rows, int channels, int groups, double count,
                  const float *w, const float *b, double eps)
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
        norm[channels + channel] = (float)((double)b[channel] - mean * factor * (double)w[channel]);
    }
}
