/* Every kernel on vectors of KERNEL_VL floats, in C with the vector extension of gcc and clang. The
 * build compiles this file once for each instruction set, with its flags and
 *   KERNEL_TABLE  the name of the table        KERNEL_VL  floats in a vector
 *   KERNEL_NAME   its name as a string
 * kernels_reference.c defines what each function does. */
#include "nn/cpu/kernels.h"
#include "nn/cpu/vector.h"
#include "nn/cpu/winograd.h"

#include <math.h>

/* As dtype_to_float, compiled for this instruction set. */
static void convert(float *out, const unsigned char *in, dtype type, int64_t n)
{
    if (type == DTYPE_F32) {
        memcpy(out, in, (size_t)n * 4);
    } else if (type == DTYPE_BF16) {
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, in + 2 * i, 2);
            out[i] = bf16_to_float(h);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, in + 2 * i, 2);
            out[i] = f16_to_float(h);
        }
    }
}

typedef float v4 __attribute__((vector_size(16)));
typedef float v4_memory __attribute__((vector_size(16), aligned(4), may_alias));

/* Four rows of four floats become four columns: out[i * out_stride + n] = in[n * stride + i]. */
static inline void transpose4(float *out, int64_t out_stride, const float *in, int64_t stride)
{
    v4 a = *(const v4_memory *)in, b = *(const v4_memory *)(in + stride);
    v4 c = *(const v4_memory *)(in + 2 * stride), d = *(const v4_memory *)(in + 3 * stride);
    v4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5),
       ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    v4 cd = __builtin_shufflevector(c, d, 0, 4, 1, 5),
       cd2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(v4_memory *)out = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    *(v4_memory *)(out + out_stride) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    *(v4_memory *)(out + 2 * out_stride) = __builtin_shufflevector(ab2, cd2, 0, 1, 4, 5);
    *(v4_memory *)(out + 3 * out_stride) = __builtin_shufflevector(ab2, cd2, 2, 3, 6, 7);
}

static void round_bf16(float *out, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        store(out + i, round_v(load(x + i)));
    if (i < n)
        store_tail(out + i, round_v(load_tail(x + i, n - i)), n - i);
}

/* ---- Numbers of weights to float32 and back. ------------------------------------------------- */

static void decode(float *out, const void *in, dtype type, int64_t n, float factor)
{
    if (type == DTYPE_F32 || type == DTYPE_BF16 || type == DTYPE_F16)
        convert(out, in, type, n);
    else
        dtype_to_float(out, in, type, (size_t)n);
    if (factor != 1)
        for (int64_t i = 0; i < n; i++)
            out[i] *= factor;
}

static void decode_codes(float *out, const uint8_t *codes, int64_t n, float scale, float bias)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = scale * (float)codes[i] + bias;
}

static void unpack4(uint8_t *codes, const uint8_t *packed, int64_t n)
{
    for (int64_t i = 0; i < n / 2; i++) {
        codes[2 * i] = packed[i] & 15;
        codes[2 * i + 1] = packed[i] >> 4;
    }
}

static inline uint32_t bf16_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    uint32_t quiet = bits >> 16 | 0x40u;
    return (bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
}

static void encode_bf16(uint16_t *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (uint16_t)bf16_bits(x[i]);
}

static void encode_bf16_pairs(uint32_t *out, const float *low, const float *high, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = bf16_bits(low[i]) | bf16_bits(high[i]) << 16;
}

/* Four by four, reading a cache line of a row at once: rows a power of two apart share few places
 * in the cache. */
static void transpose(uint32_t *out, int64_t out_stride, const uint32_t *in, int64_t in_stride,
                      int64_t rows, int64_t columns)
{
    for (int64_t j0 = 0; j0 < columns; j0 += 16) {
        int64_t j1 = columns - j0 < 16 ? columns : j0 + 16;
        int64_t i = 0;
        for (; i + 4 <= rows; i += 4) {
            int64_t j = j0;
            for (; j + 4 <= j1; j += 4)
                transpose4((float *)(out + j * out_stride + i), out_stride,
                           (const float *)(in + i * in_stride + j), in_stride);
            for (; j < j1; j++)
                for (int64_t l = i; l < i + 4; l++)
                    out[j * out_stride + l] = in[l * in_stride + j];
        }
        for (; i < rows; i++)
            for (int64_t j = j0; j < j1; j++)
                out[j * out_stride + i] = in[i * in_stride + j];
    }
}

static float max_abs(const float *x, int64_t n)
{
    vf top = splat(0);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf v = load(x + i);
        top = max_v(top, max_v(v, -v));
    }
    float max = 0;
    for (int l = 0; l < VL; l++)
        max = top[l] > max ? top[l] : max;
    for (; i < n; i++)
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    return max;
}

/* Round to nearest even by adding 1.5 * 2^23: the result stands in the lowest bits. */
static inline int32_t to_integer(float x, float inverse)
{
    float shifted = x * inverse + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    return bits - 0x4b400000;
}

static int32_t encode_int8(int8_t *out, const float *x, int64_t n, float inverse)
{
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t value = to_integer(x[i], inverse);
        out[i] = (int8_t)value;
        sum += value;
    }
    return sum;
}

static int32_t encode_uint8(uint8_t *out, const float *x, int64_t n, float inverse)
{
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t value = to_integer(x[i], inverse);
        out[i] = (uint8_t)(value + 128);
        sum += value;
    }
    return sum;
}

static int32_t encode_int16(int16_t *out, const float *x, int64_t n, float inverse)
{
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t value = to_integer(x[i], inverse);
        out[i] = (int16_t)value;
        sum += value;
    }
    return sum;
}

/* Lanes l and l ^ d change places. */
#if KERNEL_VL == 4
#define SWAP_1(x) __builtin_shufflevector(x, x, 1, 0, 3, 2)
#define SWAP_2(x) __builtin_shufflevector(x, x, 2, 3, 0, 1)
#elif KERNEL_VL == 8
#define SWAP_1(x) __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6)
#define SWAP_2(x) __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5)
#define SWAP_4(x) __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3)
#else
#define SWAP_1(x)                                                                                  \
    __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#define SWAP_2(x)                                                                                  \
    __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define SWAP_4(x)                                                                                  \
    __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define SWAP_8(x)                                                                                  \
    __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#endif

/* -x in the lanes that have the bit d, where the butterfly subtracts. */
static inline vf negate_upper(vf x, int d)
{
    vu sign;
    for (int i = 0; i < VL; i++)
        sign[i] = i & d ? 0x80000000u : 0;
    return (vf)((vu)x ^ sign);
}

/* The Hadamard matrix of order VL times the lanes. */
static inline vf butterflies(vf x)
{
    x = SWAP_1(x) + negate_upper(x, 1);
    x = SWAP_2(x) + negate_upper(x, 2);
#ifdef SWAP_4
    x = SWAP_4(x) + negate_upper(x, 4);
#endif
#ifdef SWAP_8
    x = SWAP_8(x) + negate_upper(x, 8);
#endif
    return x;
}

/* Blocks shorter than a vector. */
static void hadamard_short(float *x, int64_t n, int64_t block, float factor)
{
    for (int64_t d = 1; d < block; d *= 2)
        for (int64_t i = 0; i < n; i++)
            if (!(i & d)) {
                float a = x[i], b = x[i + d];
                x[i] = a + b;
                x[i + d] = a - b;
            }
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}

/* Distances within a vector, then between vectors, two at a time. */
static void hadamard(float *x, int64_t n, int64_t block)
{
    const float factor = (float)(1 / sqrt((double)block));
    if (block < VL) {
        hadamard_short(x, n, block, factor);
        return;
    }
    for (float *b = x; b < x + n; b += block) {
        for (int64_t i = 0; i < block; i += VL)
            store(b + i, butterflies(load(b + i)) * factor);
        int64_t d = VL;
        for (; 2 * d < block; d *= 4)
            for (int64_t start = 0; start < block; start += 4 * d)
                for (int64_t i = start; i < start + d; i += VL) {
                    vf v0 = load(b + i), v1 = load(b + i + d);
                    vf v2 = load(b + i + 2 * d), v3 = load(b + i + 3 * d);
                    vf s0 = v0 + v1, d0 = v0 - v1, s1 = v2 + v3, d1 = v2 - v3;
                    store(b + i, s0 + s1);
                    store(b + i + d, d0 + d1);
                    store(b + i + 2 * d, s0 - s1);
                    store(b + i + 3 * d, d0 - d1);
                }
        if (d < block)
            for (int64_t i = 0; i < d; i += VL) {
                vf low = load(b + i), high = load(b + i + d);
                store(b + i, low + high);
                store(b + i + d, low - high);
            }
    }
}

static void decode_sums(float *out, const int32_t *c, int64_t n, int32_t offset, float row_scale,
                        const float *column_scale)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(c[i] - offset) * row_scale * column_scale[i];
}

/* ---- Rows of activations. -------------------------------------------------------------------- */

static float row_max(const float *x, int64_t n)
{
    vf top[4];
    for (int v = 0; v < 4; v++)
        top[v] = splat(x[0]);
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        UNROLL
    for (int v = 0; v < 4; v++)
        top[v] = max_v(load(x + i + v * VL), top[v]);
    for (; i + VL <= n; i += VL)
        top[0] = max_v(load(x + i), top[0]);
    vf all = max_v(max_v(top[0], top[1]), max_v(top[2], top[3]));
    float max = x[0];
    for (int l = 0; l < VL; l++)
        max = all[l] > max ? all[l] : max;
    for (; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

static inline vf exp2_at(const float *x, float factor, float offset)
{
    return exp2_v(max_v(splat(-126), load(x) * factor - offset));
}

/* The first n lanes; zeros behind them. */
static inline vf first_lanes(vf x, int64_t n)
{
    vi mask;
    for (int i = 0; i < VL; i++)
        mask[i] = i < n ? -1 : 0;
    return (vf)(mask & (vi)x);
}

static float exp2_row(float *out, const float *x, int64_t valid, int64_t n, float factor,
                      float offset)
{
    vf sum = splat(0);
    int64_t i = 0;
    for (; i + VL <= valid; i += VL) {
        vf e = exp2_at(x + i, factor, offset);
        store(out + i, e);
        sum += e;
    }
    if (i < valid) {
        vf e = first_lanes(exp2_at(x + i, factor, offset), valid - i);
        store(out + i, e);
        sum += e;
        i += VL;
    }
    for (; i < n; i += VL)
        store(out + i, splat(0));
    return sum_lanes(sum);
}

/* To bfloat16; of two that are equally near the larger one. */
static inline void store_bf16(uint16_t *out, vf x)
{
    *(vh_memory *)out = __builtin_convertvector(((vu)x + 0x8000u) >> 16, vh);
}

/* Two vectors. */
static inline void store_2_bf16(uint16_t *out, vf x, vf y)
{
#if KERNEL_VL == 16 && defined(__AVX512BW__)
    /* The odd words of both, in one instruction. */
    static const uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                     23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                     45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const __m512i both = _mm512_permutex2var_epi16(
        (__m512i)((vu)x + 0x8000u), _mm512_loadu_si512(odd), (__m512i)((vu)y + 0x8000u));
    _mm512_storeu_si512(out, both);
#else
    store_bf16(out, x);
    store_bf16(out + VL, y);
#endif
}

static float exp2_row_bf16(uint16_t *out, const float *x, int64_t valid, int64_t n, float factor,
                           float offset)
{
    vf sum = splat(0), sum2 = splat(0);
    int64_t i = 0;
    for (; i + 2 * VL <= valid; i += 2 * VL) {
        vf e = exp2_at(x + i, factor, offset), e2 = exp2_at(x + i + VL, factor, offset);
        store_2_bf16(out + i, e, e2);
        sum += e;
        sum2 += e2;
    }
    sum += sum2;
    for (; i + VL <= valid; i += VL) {
        vf e = exp2_at(x + i, factor, offset);
        store_bf16(out + i, e);
        sum += e;
    }
    if (i < valid) {
        vf e = first_lanes(exp2_at(x + i, factor, offset), valid - i);
        store_bf16(out + i, e);
        sum += e;
        i += VL;
    }
    memset(out + i, 0, (size_t)(n - i) * sizeof *out);
    return sum_lanes(sum);
}

static void scale_row(float *x, int64_t n, float factor)
{
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}

static double sum_of_squares(const float *x, int64_t n, float mean)
{
    vf a = splat(0), b = splat(0);
    int64_t i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL) {
        vf u = load(x + i) - mean, v = load(x + i + VL) - mean;
        a += u * u;
        b += v * v;
    }
    double sum = lanes(a) + lanes(b);
    for (; i < n; i++)
        sum += ((double)x[i] - (double)mean) * ((double)x[i] - (double)mean);
    return sum;
}

static float rms_factor(const float *x, int64_t n, float eps)
{
    return (float)(1 / sqrt(sum_of_squares(x, n, 0) / (double)n + (double)eps));
}

static void rms_norm(float *out, const float *x, const float *w, const float *scale, int64_t n,
                     float eps)
{
    float factor = rms_factor(x, n, eps);
    if (scale)
        for (int64_t i = 0; i < n; i++)
            out[i] = x[i] * factor * w[i] * scale[i];
    else
        for (int64_t i = 0; i < n; i++)
            out[i] = x[i] * factor * w[i];
}

static void add_rms_norm(float *x, const float *y, const float *w, const float *gate, int64_t n,
                         float eps)
{
    float factor = rms_factor(y, n, eps);
    if (gate)
        for (int64_t i = 0; i < n; i++)
            x[i] += y[i] * factor * w[i] * gate[i];
    else
        for (int64_t i = 0; i < n; i++)
            x[i] += y[i] * factor * w[i];
}

static void layer_norm(float *out, const float *x, const float *scale, const float *shift,
                       int64_t n, float eps)
{
    vf sum = splat(0);
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        sum += load(x + i);
    double total = lanes(sum);
    for (; i < n; i++)
        total += (double)x[i];
    float mean = (float)(total / (double)n);
    float factor = (float)(1 / sqrt(sum_of_squares(x, n, mean) / (double)n + (double)eps));
    if (shift)
        for (i = 0; i < n; i++)
            out[i] = (x[i] - mean) * factor * scale[i] + shift[i];
    else
        for (i = 0; i < n; i++)
            out[i] = (x[i] - mean) * factor * scale[i];
}

static void rope(float *x, const float *cosine, const float *sine, int64_t n, nn_rope_pairs pairs)
{
    if (pairs == NN_ROPE_INTERLEAVED) {
        for (int64_t i = 0; i < n / 2; i++) {
            float re = x[2 * i], im = x[2 * i + 1];
            x[2 * i] = re * cosine[i] - im * sine[i];
            x[2 * i + 1] = re * sine[i] + im * cosine[i];
        }
        return;
    }
    float *low = x, *high = x + n / 2;
    for (int64_t i = 0; i < n / 2; i++) {
        float re = low[i], im = high[i];
        low[i] = re * cosine[i] - im * sine[i];
        high[i] = re * sine[i] + im * cosine[i];
    }
}

static void silu(float *out, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        store(out + i, silu_v(load(x + i)));
    if (i < n)
        store_tail(out + i, silu_v(load_tail(x + i, n - i)), n - i);
}

static void swiglu(float *gate, const float *up, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        store(gate + i, silu_v(load(gate + i)) * load(up + i));
    if (i < n)
        store_tail(gate + i, silu_v(load_tail(gate + i, n - i)) * load_tail(up + i, n - i), n - i);
}

/* 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3). */
static inline vf gelu_v(vf x)
{
    vf u = (x * x * x * 0.044715f + x) * 1.5957691216f;
    u = select(u < splat(-88), splat(-88), u);
    return x / (exp_v(-u) + 1.0f);
}

static void gelu(float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        store(x + i, gelu_v(load(x + i)));
    if (i < n)
        store_tail(x + i, gelu_v(load_tail(x + i, n - i)), n - i);
}

static void add_product(float *x, const float *y, const float *factor, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] += y[i] * factor[i];
}

static void add(float *x, const float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] += y[i];
}

static void channel_sums(double *sum, double *squares, const float *x, int64_t pixels,
                         int64_t channels)
{
    for (int64_t p = 0; p < pixels; p++, x += channels)
        for (int64_t c = 0; c < channels; c++) {
            double v = (double)x[c];
            sum[c] += v;
            squares[c] += v * v;
        }
}

static inline vf affine_v(vf x, vf factor, vf offset, bool with_silu)
{
    vf v = x * factor + offset;
    return with_silu ? silu_v(v) : v;
}

static void channel_affine(float *out, const float *x, int64_t stride, const float *factor,
                           const float *offset, int64_t pixels, int64_t channels, bool with_silu)
{
    for (int64_t p = 0; p < pixels; p++, x += stride, out += channels) {
        int64_t c = 0, left;
        for (; c + VL <= channels; c += VL) {
            /* A few channels of each pixel are a stride that processors do not foresee. */
            __builtin_prefetch(x + 8 * stride + c);
            store(out + c, affine_v(load(x + c), load(factor + c), load(offset + c), with_silu));
        }
        if ((left = channels - c) > 0)
            store_tail(out + c,
                       affine_v(load_tail(x + c, left), load_tail(factor + c, left),
                                load_tail(offset + c, left), with_silu),
                       left);
    }
}

/* ---- Winograd's convolution. ----------------------------------------------------------------- */

#define A WINOGRAD_A
#define B WINOGRAD_B

/* Six (three, four) numbers of one dimension, each for VL channels. */
static inline void input_line(vf *to, int step, const vf *d)
{
    vf u = d[4] - d[2] * (B * B), v = d[3] * A - d[1] * (A * B * B);
    vf s = d[4] - d[2] * (A * A), t = d[3] * B - d[1] * (A * A * B);
    to[0] = d[0] * (A * A * B * B) - d[2] * (A * A + B * B) + d[4];
    to[step] = u + v;
    to[2 * step] = u - v;
    to[3 * step] = s + t;
    to[4 * step] = s - t;
    to[5 * step] = d[1] * (A * A * B * B) - d[3] * (A * A + B * B) + d[5];
}

static inline void weight_line(vf *to, int step, vf w0, vf w1, vf w2)
{
    const float na = 1 / (2 * A * A * (A * A - B * B)), nb = 1 / (2 * B * B * (B * B - A * A));
    vf even = w0 * na + w2 * (A * A * na), odd = w1 * (A * na);
    vf even2 = w0 * nb + w2 * (B * B * nb), odd2 = w1 * (B * nb);
    to[0] = w0 * (1 / (A * A * B * B));
    to[step] = even + odd;
    to[2 * step] = even - odd;
    to[3 * step] = even2 + odd2;
    to[4 * step] = even2 - odd2;
    to[5 * step] = w2;
}

static inline void output_line(vf *to, int step, const vf *m)
{
    vf s = m[1] + m[2], d = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
    to[0] = m[0] + s + s2;
    to[step] = d * A + d2 * B;
    to[2 * step] = s * (A * A) + s2 * (B * B);
    to[3 * step] = d * (A * A * A) + d2 * (B * B * B) + m[5];
}

/* As input_channels. */
static inline void weight_channels(float *u, int64_t stride, const float *w, int64_t count)
{
    float taps[9][VL] = {{0}};
    vf half[18], all[6];
    for (int64_t i = 0; i < count; i++)
        for (int t = 0; t < 9; t++)
            taps[t][i] = w[9 * i + t];
    UNROLL
    for (int j = 0; j < 3; j++)
        weight_line(half + j, 3, load(taps[j]), load(taps[3 + j]), load(taps[6 + j]));
    UNROLL
    for (int i = 0; i < 6; i++) {
        weight_line(all, 1, half[3 * i], half[3 * i + 1], half[3 * i + 2]);
        UNROLL
        for (int j = 0; j < 6; j++)
            if (count == VL)
                store(u + (6 * i + j) * stride, all[j]);
            else
                store_tail(u + (6 * i + j) * stride, all[j], count);
    }
}

static void winograd_weights(float *u, int64_t stride, const float *w, int64_t n)
{
    int64_t c = 0;
    for (; c + VL <= n; c += VL)
        weight_channels(u + c, stride, w + 9 * c, VL);
    if (c < n)
        weight_channels(u + c, stride, w + 9 * c, n - c);
}

/* The channels c .. c+count-1; count is VL or, for the last ones, less. */
static inline void input_channels(float *v, int64_t stride, const float *const *rows,
                                  const int64_t *columns, int64_t c, int64_t count)
{
    vf half[36];
    UNROLL
    for (int j = 0; j < 6; j++) {
        vf d[6];
        UNROLL
        for (int i = 0; i < 6; i++)
            d[i] = count == VL ? load(rows[i] + columns[j] + c)
                               : load_tail(rows[i] + columns[j] + c, count);
        input_line(half + j, 6, d);
    }
    UNROLL
    for (int i = 0; i < 6; i++) {
        vf d[6];
        input_line(d, 1, half + 6 * i);
        UNROLL
        for (int j = 0; j < 6; j++)
            if (count == VL)
                store(v + (6 * i + j) * stride + c, d[j]);
            else
                store_tail(v + (6 * i + j) * stride + c, d[j], count);
    }
}

static void winograd_input(float *v, int64_t stride, const float *const *rows,
                           const int64_t *columns, int64_t n)
{
    int64_t c = 0;
    for (; c + VL <= n; c += VL)
        input_channels(v, stride, rows, columns, c, VL);
    if (c < n)
        input_channels(v, stride, rows, columns, c, n - c);
}

static inline void output_channels(float *out, int64_t row, int64_t column, const float *m,
                                   int64_t stride, vf bias, int64_t count, bool accumulate)
{
    vf half[24];
    UNROLL
    for (int j = 0; j < 6; j++) {
        vf in[6];
        UNROLL
        for (int i = 0; i < 6; i++)
            in[i] = count == VL ? load(m + (6 * i + j) * stride)
                                : load_tail(m + (6 * i + j) * stride, count);
        output_line(half + j, 6, in);
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        vf y[4];
        output_line(y, 1, half + 6 * i);
        UNROLL
        for (int j = 0; j < 4; j++) {
            float *to = out + i * row + j * column;
            vf value = y[j] + bias;
            if (accumulate)
                value += count == VL ? load(to) : load_tail(to, count);
            if (count == VL)
                store(to, value);
            else
                store_tail(to, value, count);
        }
    }
}

static void winograd_output(float *out, int64_t row, int64_t column, const float *m, int64_t stride,
                            const float *bias, int64_t n, bool accumulate)
{
    int64_t c = 0;
    for (; c + VL <= n; c += VL)
        output_channels(out + c, row, column, m + c, stride, load(bias + c), VL, accumulate);
    if (c < n)
        output_channels(out + c, row, column, m + c, stride, load_tail(bias + c, n - c), n - c,
                        accumulate);
}

extern const cpu_kernels KERNEL_TABLE;
const cpu_kernels KERNEL_TABLE = {
    .name = KERNEL_NAME,
    .decode = decode,
    .decode_codes = decode_codes,
    .unpack4 = unpack4,
    .round_bf16 = round_bf16,
    .encode_bf16 = encode_bf16,
    .encode_bf16_pairs = encode_bf16_pairs,
    .transpose = transpose,
    .max_abs = max_abs,
    .encode_int8 = encode_int8,
    .encode_uint8 = encode_uint8,
    .encode_int16 = encode_int16,
    .hadamard = hadamard,
    .decode_sums = decode_sums,
    .row_max = row_max,
    .exp2_row = exp2_row,
    .exp2_row_bf16 = exp2_row_bf16,
    .scale = scale_row,
    .rms_norm = rms_norm,
    .add_rms_norm = add_rms_norm,
    .layer_norm = layer_norm,
    .rope = rope,
    .silu = silu,
    .gelu = gelu,
    .swiglu = swiglu,
    .add = add,
    .add_product = add_product,
    .channel_sums = channel_sums,
    .channel_affine = channel_affine,
    .winograd_weights = winograd_weights,
    .winograd_input = winograd_input,
    .winograd_output = winograd_output,
};
