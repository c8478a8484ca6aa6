/* Weights as files have them to the forms that products read. All are loops over a grid of any size
 * with 256 threads in a block. Types are those of core/dtype.h. */
#include "common.cuh"

#define THREADS 256

DEVICE long long grid_first()
{
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

DEVICE long long grid_step()
{
    return (long long)gridDim.x * blockDim.x;
}

/* Number i of an array of F32, F16, BF16, F8_E4M3 or F8_E5M2. */
DEVICE float number_of_type(const void *in, int type, long long i)
{
    switch (type) {
    case TYPE_F32: return ((const float *)in)[i];
    case TYPE_F16: return f16_to_float(((const unsigned short *)in)[i]);
    case TYPE_BF16: return bf16_to_float(((const unsigned short *)in)[i]);
    case TYPE_F8_E4M3: return e4m3_to_float(((const unsigned char *)in)[i]);
    default: return e5m2_to_float(((const unsigned char *)in)[i]);
    }
}

DEVICE void store8_or_less(int kind, void *out, long long i, const float *v, int count)
{
    if (count == 8 && is_aligned(out, 16)) {
        store8(kind, out, i, v);
        return;
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
        if (j < count)
            store1(kind, out, i + j, v[j]);
}

/* out (KIND_FLOAT or KIND_WORK) = in * factor, 0 counting as 1. in is aligned to its numbers. */
extern "C" __global__ void __launch_bounds__(THREADS)
    weight_convert(void *out, int out_kind, const void *in, int in_type, float factor,
                   long long count)
{
    if (factor == 0.0f)
        factor = 1.0f;
    for (long long i = 8 * grid_first(); i < count; i += 8 * grid_step()) {
        const int n = count - i < 8 ? (int)(count - i) : 8;
        float v[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            v[j] = j < n ? number_of_type(in, in_type, i + j) * factor : 0.0f;
        store8_or_less(out_kind, out, i, v, n);
    }
}

/* ---- Affine groups (core/affine.h) ----------------------------------------------------------- */

/* 8 codes are `bits` bytes of the stream, lowest bits first. */
DEVICE unsigned long long affine_bits8(const unsigned char *codes, int bits)
{
    if (bits == 4 && is_aligned(codes, 4))
        return *(const unsigned *)codes;
    if (bits == 8 && is_aligned(codes, 8))
        return *(const unsigned long long *)codes;
    unsigned long long all = 0;
    for (int i = 0; i < bits; i++)
        all |= (unsigned long long)codes[i] << 8 * i;
    return all;
}

DEVICE float affine_number(unsigned code, float scale, float bias)
{
    return __fadd_rn(__fmul_rn(scale, (float)code), bias); /* rounded twice */
}

DEVICE void affine_unpack(void *out, int out_kind, const unsigned char *codes, const void *scales,
                          const void *biases, int type, int bits, int group, long long count)
{
    const unsigned mask = (1u << bits) - 1u;
    for (long long i = 8 * grid_first(); i < count; i += 8 * grid_step()) {
        const int n = count - i < 8 ? (int)(count - i) : 8;
        unsigned long long all = 0;
        if (n == 8)
            all = affine_bits8(codes + i / 8 * bits, bits);
        else /* the end of the stream is that of a byte */
            for (int b = 0; 8 * b < n * bits; b++)
                all |= (unsigned long long)codes[i / 8 * bits + b] << 8 * b;
        float v[8], scale = 0.0f, bias = 0.0f;
        long long loaded = -1;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            v[j] = 0.0f;
            if (j >= n)
                continue;
            if (j == 0 || group % 8 != 0) {
                const long long index = (i + j) / group;
                if (index != loaded) {
                    scale = number_of_type(scales, type, index);
                    bias = number_of_type(biases, type, index);
                    loaded = index;
                }
            }
            v[j] = affine_number((unsigned)(all >> j * bits) & mask, scale, bias);
        }
        store8_or_less(out_kind, out, i, v, n);
    }
}

/* out [rows, k] = scale * code + bias: codes are rows of k * bits / 8 bytes without gaps between
 * them; scales and biases [rows, k / group] of TYPE_F32, TYPE_F16 or TYPE_BF16. bits: 2, 3, 4, 5, 6
 * or 8. */
extern "C" __global__ void __launch_bounds__(THREADS)
    weight_affine(void *out, int out_kind, const unsigned char *codes, const void *scales,
                  const void *biases, int type, int bits, int group, long long rows, long long k)
{
    if (bits == 4)
        affine_unpack(out, out_kind, codes, scales, biases, type, 4, group, rows * k);
    else if (bits == 8)
        affine_unpack(out, out_kind, codes, scales, biases, type, 8, group, rows * k);
    else
        affine_unpack(out, out_kind, codes, scales, biases, type, bits, group, rows * k);
}

/* ---- Codes of 8 bits ------------------------------------------------------------------------- */

DEVICE unsigned weight_most(const T *row, long long k)
{
    unsigned most = 0;
    for (long long i = threadIdx.x; i < k; i += blockDim.x)
        most = max(most, magnitude_bits(from_work(row[i])));
    return most;
}

/* codes [rows, k] of KIND_E4M3 or KIND_INT8 and a factor for each row: number = factor * code. */
extern "C" __global__ void __launch_bounds__(THREADS)
    weight_rows8(void *codes, float *scales, int kind, const T *in, long long rows, long long k)
{
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const T *row = in + r * k;
        unsigned char *out = (unsigned char *)codes + r * k;
        const bool vector = k % 4 == 0 && is_aligned(in, 16) && is_aligned(codes, 4);
        unsigned most = 0;
        if (vector)
            for (long long i = 4 * threadIdx.x; i < k; i += 4 * blockDim.x) {
                float v[4];
                load4(v, KIND_WORK, row, i);
#pragma unroll
                for (int j = 0; j < 4; j++)
                    most = max(most, magnitude_bits(v[j]));
            }
        else
            most = weight_most(row, k);
        const row_codes by = row_codes_for(kind, block_max(most));
        for (long long i = 4 * threadIdx.x; i < k; i += 4 * blockDim.x) {
            float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (vector) {
                load4(v, KIND_WORK, row, i);
                *(unsigned *)(out + i) = codes4(kind, v, by.inverse);
                continue;
            }
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (i + j < k)
                    v[j] = from_work(row[i + j]);
            const unsigned four = codes4(kind, v, by.inverse);
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (i + j < k)
                    out[i + j] = (unsigned char)(four >> 8 * j);
        }
        if (threadIdx.x == 0)
            scales[r] = by.factor;
    }
}

/* ---- Convolutions ---------------------------------------------------------------------------- */

/* out [O, k, k, I] = in [O, I, k, k]. */
extern "C" __global__ void __launch_bounds__(THREADS)
    weight_conv(T *out, const void *in, int in_type, long long o, long long i, int k)
{
    const long long taps = (long long)k * k, count = o * i * taps;
    for (long long at = grid_first(); at < count; at += grid_step()) {
        const long long channel = at % i, tap = at / i % taps, output = at / i / taps;
        out[at] = to_work(number_of_type(in, in_type, (output * i + channel) * taps + tap));
    }
}

/* The pixels of a doubled picture that lie over tap t (0 or 1) of the picture itself, for results
 * whose coordinate is 2n + phase: taps first .. last of the 3. Results 2n see pixels n-1, n, n, and
 * results 2n+1 see n, n, n+1. */
DEVICE int folded_first(int phase, int t)
{
    return t ? 1 + phase : 0;
}

DEVICE int folded_last(int phase, int t)
{
    return t ? 2 : phase;
}

/* out [2, 2, O, 2, 2, I] from rows row .. row+rows-1 of [O, I, 3, 3]; in has those alone. */
extern "C" __global__ void __launch_bounds__(THREADS)
    weight_conv_folded(T *out, const void *in, int in_type, long long o, long long i, long long row,
                       long long rows)
{
    const long long count = rows * 16 * i;
    for (long long at = grid_first(); at < count; at += grid_step()) {
        const long long channel = at % i, output = at / i / 16;
        const int tap = (int)(at / i % 4), phase = (int)(at / i / 4 % 4);
        float sum = 0.0f;
        for (int y = folded_first(phase >> 1, tap >> 1); y <= folded_last(phase >> 1, tap >> 1);
             y++)
            for (int x = folded_first(phase & 1, tap & 1); x <= folded_last(phase & 1, tap & 1);
                 x++)
                sum += number_of_type(in, in_type, (output * i + channel) * 9 + y * 3 + x);
        out[((phase * o + row + output) * 4 + tap) * i + channel] = to_work(sum);
    }
}
