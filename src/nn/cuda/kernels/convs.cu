/* Convolutions that are ours, and the norm of a pixel that goes before those of others. Pictures
 * are [height, width, channels]. */
#include "mma.cuh"

/* ---- Norms of pixels ------------------------------------------------------------------------- */

/* Vectors of 8 channels that a thread has of a pixel, and pixels that are on their way to it. */
#define PIXEL_VECTORS 3
#define PIXEL_AHEAD 2
#define PIXEL_THREADS 256
#if defined(T_F32)
#define PIXEL_BLOCKS 1
#else
#define PIXEL_BLOCKS 2
#endif

/* silu(rms_norm(x + bias) * w) of the pixels of a picture, where bias may be null. */
typedef struct pixel_view {
    const void *x;
    const float *w, *bias;
    float eps;
    int kind, height, width, channels;
} pixel_view;

DEVICE float pixel_factor(const pixel_view *v, float squares)
{
    return 1.0f / sqrtf(squares / (float)v->channels + v->eps);
}

/* Columns of row `row` of the picture, which has some outside of it. lanes, a power of two, share a
 * pixel: thread i of them has vectors i, i + lanes and so on. */
DEVICE void norm_pixels(T *out, const pixel_view *v, int row, int columns, int pad_left, int lanes)
{
    const int vectors = v->channels / 8, lane = threadIdx.x & (lanes - 1);
    const int slots = PIXEL_THREADS / lanes, slot = threadIdx.x / lanes;
    const bool inside = row >= 0 && row < v->height;
    const T *from = (const T *)v->x + (inside ? (long long)row * v->width * v->channels : 0);
    float scale[PIXEL_VECTORS][8], bias[PIXEL_VECTORS][8];
#pragma unroll
    for (int k = 0; k < PIXEL_VECTORS; k++) {
        const int vector = lane + k * lanes;
        clear8(scale[k]);
        clear8(bias[k]);
        if (vector < vectors) {
            load8(scale[k], KIND_FLOAT, v->w, 8 * vector);
            if (v->bias)
                load8(bias[k], KIND_FLOAT, v->bias, 8 * vector);
        }
    }
    /* All threads of a block go as far as the first: they add up together. */
#pragma unroll 1
    for (int first = (int)blockIdx.y * PIXEL_AHEAD * slots; first < columns;
         first += (int)gridDim.y * PIXEL_AHEAD * slots) {
        eight read[PIXEL_AHEAD][PIXEL_VECTORS];
#pragma unroll
        for (int i = 0; i < PIXEL_AHEAD; i++) { /* anything, where it will be zeros */
            const int column =
                min(max(first + i * slots + slot - pad_left, 0), v->width - 1);
#pragma unroll
            for (int k = 0; k < PIXEL_VECTORS; k++) {
                const int vector = min(lane + k * lanes, vectors - 1);
                read[i][k] = load_eight(from + (long long)column * v->channels + 8 * vector);
            }
        }
#pragma unroll
        for (int i = 0; i < PIXEL_AHEAD; i++) {
            const int to = first + i * slots + slot, column = to - pad_left;
            float n[PIXEL_VECTORS][8], squares = 0.0f;
#pragma unroll
            for (int k = 0; k < PIXEL_VECTORS; k++) {
                const bool has = lane + k * lanes < vectors;
                unpack8(n[k], read[i][k]);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    n[k][j] += bias[k][j];
                    squares = fmaf(has ? n[k][j] : 0.0f, n[k][j], squares);
                }
            }
            for (int distance = lanes / 2; distance > 0; distance /= 2)
                squares += __shfl_xor_sync(FULL_WARP, squares, distance);
            const float factor = pixel_factor(v, squares);
            const bool zero = !inside || column < 0 || column >= v->width;
#pragma unroll
            for (int k = 0; k < PIXEL_VECTORS; k++) {
                const int vector = lane + k * lanes;
#pragma unroll
                for (int j = 0; j < 8; j++)
                    n[k][j] = zero ? 0.0f : silu(n[k][j] * factor * scale[k][j]);
                if (to < columns && vector < vectors)
                    store_work8(out + (long long)to * v->channels + 8 * vector, n[k]);
            }
        }
    }
}

/* The same with a warp for a pixel, of any kind and number of channels. */
DEVICE void norm_pixels_any(T *out, const pixel_view *v, int row, int columns, int pad_left)
{
    const int lane = threadIdx.x & 31, warps = PIXEL_THREADS / 32;
    for (int to = (int)blockIdx.y * warps + (int)(threadIdx.x >> 5); to < columns;
         to += (int)gridDim.y * warps) {
        const int column = to - pad_left;
        const bool zero = row < 0 || row >= v->height || column < 0 || column >= v->width;
        const long long at =
            zero ? 0 : ((long long)row * v->width + column) * (long long)v->channels;
        float squares = 0.0f;
        for (int i = lane; i < v->channels; i += 32) {
            const float n = load1(v->kind, v->x, at + i) + (v->bias ? v->bias[i] : 0.0f);
            squares = fmaf(n, n, squares);
        }
        const float factor = pixel_factor(v, warp_sum(squares));
        for (int i = lane; i < v->channels; i += 32) {
            const float n = load1(v->kind, v->x, at + i) + (v->bias ? v->bias[i] : 0.0f);
            out[(long long)to * v->channels + i] =
                to_work(zero ? 0.0f : silu(n * factor * v->w[i]));
        }
    }
}

/* out [rows, columns, channels] = silu((x + bias) / sqrt(mean((x + bias)^2) + eps) * w), the mean
 * that of a pixel's channels, from row first_row and column -pad_left of x on; outside of x zeros.
 * bias may be null. lanes: a power of two up to 32 that share a pixel, at most PIXEL_VECTORS * 8
 * channels each, channels a multiple of 8, x of T aligned to 16 bytes; or 0: anything. grid.x =
 * rows; grid.y blocks of PIXEL_THREADS share a row. */
extern "C" __global__ void __launch_bounds__(PIXEL_THREADS, PIXEL_BLOCKS)
    pixel_norm(T *out, const void *x, int x_kind, int height, int width, int channels, int lanes,
               int first_row, int columns, int pad_left, const float *w, const float *bias,
               float eps)
{
    const pixel_view v = {x, w, bias, eps, x_kind, height, width, channels};
    const int row = first_row + (int)blockIdx.x;
    out += (long long)blockIdx.x * columns * channels;
    if (lanes)
        norm_pixels(out, &v, row, columns, pad_left, lanes);
    else
        norm_pixels_any(out, &v, row, columns, pad_left);
}

/* ---- To few channels ------------------------------------------------------------------------- */

/* A tile of results of conv_few: each warp has a row of it. Of the picture it needs a pixel more on
 * each side, some channels at a time. */
#define FEW_ROWS 8
#define FEW_COLUMNS 32
#define FEW_CHANNELS 32
#define FEW_WIDTH (FEW_COLUMNS + 2)
#define FEW_PIXELS ((FEW_ROWS + 2) * FEW_WIDTH)
/* From pixel to pixel: no two rows of a matrix share a bank. */
#define FEW_STRIDE (FEW_CHANNELS + 8)
#define FEW_THREADS (32 * FEW_ROWS)

#if TENSOR_CORES
/* Pixels of the tile whose first one is (top, left), normed, and zeros outside of the picture. */
DEVICE void few_pixels(T *tile, const T *x, const float *norm, int top, int left, int height,
                       int width, int channels, int first)
{
    const int channel = (int)threadIdx.x % (FEW_CHANNELS / 8) * 8;
    float scale[8], offset[8];
    if (norm) {
        load8(scale, KIND_FLOAT, norm, first + channel);
        load8(offset, KIND_FLOAT, norm + channels, first + channel);
    }
#pragma unroll 3
    for (int i = (int)threadIdx.x / (FEW_CHANNELS / 8); i < FEW_PIXELS;
         i += FEW_THREADS / (FEW_CHANNELS / 8)) {
        const int row = top + i / FEW_WIDTH, column = left + i % FEW_WIDTH;
        eight read = {0, 0, 0, 0};
        if (row >= 0 && column >= 0 && row < height && column < width) {
            read = load_eight(x + ((long long)row * width + column) * channels + first + channel);
            if (norm) {
                float n[8];
                unpack8(n, read);
#pragma unroll
                for (int j = 0; j < 8; j++)
                    n[j] = silu(fmaf(n[j], scale[j], offset[j]));
                read = make_uint4(WORK_PAIR(n[0], n[1]), WORK_PAIR(n[2], n[3]),
                                   WORK_PAIR(n[4], n[5]), WORK_PAIR(n[6], n[7]));
            }
        }
        *(eight *)(tile + i * FEW_STRIDE + channel) = read;
    }
}

/* Weights of these channels as [9, 8, FEW_STRIDE], zeros behind the last output. */
DEVICE void few_weights(T *to, const T *w, int outputs, int channels, int first)
{
    for (int i = threadIdx.x; i < 9 * 8 * (FEW_CHANNELS / 8); i += FEW_THREADS) {
        const int channel = i % (FEW_CHANNELS / 8) * 8, output = i / (FEW_CHANNELS / 8) % 8;
        const int tap = i / FEW_CHANNELS;
        eight read = {0, 0, 0, 0};
        if (output < outputs)
            read = load_eight(w + ((long long)output * 9 + tap) * channels + first + channel);
        *(eight *)(to + (tap * 8 + output) * FEW_STRIDE + channel) = read;
    }
}
#endif

/* out [rows, width, outputs] = convolution of silu(x * norm[0] + norm[1]), or of x where norm is
 * null, with w [outputs, 3, 3, channels], plus bias; x [height, width, channels], outside of it
 * zeros; row y of out has rows y - above .. y - above + 2 of x. 1 to 8 outputs; channels are a
 * multiple of 32, addresses of x, w and norm aligned to 16 bytes. T of 16 bits, with tensor cores.
 * grid.x = columns of tiles, grid.y = rows of tiles, FEW_THREADS threads. */
extern "C" __global__ void __launch_bounds__(FEW_THREADS, 3)
    conv_few(T *out, const T *x, const float *norm, const T *w, const float *bias, int rows,
             int height, int width, int channels, int outputs, int above)
{
#if TENSOR_CORES
    __shared__ __align__(16) T tile[FEW_PIXELS * FEW_STRIDE];
    __shared__ __align__(16) T weights[9 * 8 * FEW_STRIDE];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int left = (int)blockIdx.x * FEW_COLUMNS, top = (int)blockIdx.y * FEW_ROWS;
    float c[2][4] = {{0.0f}};
    for (int first = 0; first < channels; first += FEW_CHANNELS) {
        few_pixels(tile, x, norm, top - above, left - 1, height, width, channels, first);
        few_weights(weights, w, outputs, channels, first);
        __syncthreads();
#pragma unroll
        for (int tap = 0; tap < 9; tap++) {
            /* Lane i gives row i % 16 of 16 pixels, and which half of 16 channels. */
            const int pixel = (warp + tap / 3) * FEW_WIDTH + tap % 3 + (lane & 15);
            const T *from = tile + pixel * FEW_STRIDE + (lane >> 4) * 8;
            const T *by = weights + (tap * 8 + g) * FEW_STRIDE + 2 * t;
#pragma unroll
            for (int k = 0; k < FEW_CHANNELS; k += 16) {
                const unsigned b0 = *(const unsigned *)(by + k);
                const unsigned b1 = *(const unsigned *)(by + k + 8);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    unsigned a[4];
                    load_matrices(a, shared_address(from + half * 16 * FEW_STRIDE + k));
                    multiply_add(c[half], a, b0, b1);
                }
            }
        }
        __syncthreads();
    }
    const int y = top + warp;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int column = left + i / 4 * 16 + i / 2 % 2 * 8 + g, output = 2 * t + i % 2;
        if (y < rows && column < width && output < outputs)
            out[((long long)y * width + column) * outputs + output] =
                to_work(c[i / 4][i % 4] + bias[output]);
    }
#endif
}
