/* The definition of every kernel: plain scalar C, written for reading. */
#include "nn/cpu/kernels.h"
#include "nn/cpu/winograd.h"

#include <math.h>

static float round_to_bf16(float x)
{
    return bf16_to_float(bf16_from_float(x));
}

static void round_bf16(float *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = round_to_bf16(x[i]);
}

/* ---- Numbers of weights to float32 and back. ------------------------------------------------- */

static void decode(float *out, const void *in, dtype type, int64_t n, float factor)
{
    dtype_to_float(out, in, type, (size_t)n);
    for (int64_t i = 0; i < n; i++)
        out[i] *= factor;
}

static void decode_codes(float *out, const uint8_t *codes, int64_t n, float scale, float bias)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)((double)scale * codes[i] + (double)bias);
}

static void unpack4(uint8_t *codes, const uint8_t *packed, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        codes[i] = packed[i / 2] >> i % 2 * 4 & 15;
}

static void encode_bf16(uint16_t *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = bf16_from_float(x[i]);
}

static void encode_bf16_pairs(uint32_t *out, const float *low, const float *high, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = bf16_from_float(low[i]) | (uint32_t)bf16_from_float(high[i]) << 16;
}

static void transpose(uint32_t *out, int64_t out_stride, const uint32_t *in, int64_t in_stride,
                      int64_t rows, int64_t columns)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            out[j * out_stride + i] = in[i * in_stride + j];
}

static float max_abs(const float *x, int64_t n)
{
    float max = 0;
    for (int64_t i = 0; i < n; i++)
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    return max;
}

static int32_t encode_int8(int8_t *out, const float *x, int64_t n, float inverse)
{
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += out[i] = (int8_t)rintf(x[i] * inverse);
    return sum;
}

static int32_t encode_uint8(uint8_t *out, const float *x, int64_t n, float inverse)
{
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t value = (int32_t)rintf(x[i] * inverse);
        out[i] = (uint8_t)(value + 128);
        sum += value;
    }
    return sum;
}

static int32_t encode_int16(int16_t *out, const float *x, int64_t n, float inverse)
{
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += out[i] = (int16_t)rintf(x[i] * inverse);
    return sum;
}

/* H[i][j] = (-1)^(number of bits that i and j share). */
static void hadamard(float *x, int64_t n, int64_t block)
{
    for (int64_t at = 0; at < n; at += block) {
        double out[1024];
        for (int64_t i = 0; i < block; i++) {
            out[i] = 0;
            for (int64_t j = 0; j < block; j++)
                out[i] +=
                    (__builtin_popcountll((uint64_t)(i & j)) & 1 ? -1 : 1) * (double)x[at + j];
        }
        for (int64_t i = 0; i < block; i++)
            x[at + i] = (float)(out[i] / sqrt((double)block));
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
    float max = x[0];
    for (int64_t i = 1; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

static double exp2_of(float x, float factor, float offset)
{
    double exponent = (double)factor * (double)x - (double)offset;
    return exp2(exponent < -126 ? -126 : exponent);
}

static float exp2_row(float *out, const float *x, int64_t valid, int64_t n, float factor,
                      float offset)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double value = i < valid ? exp2_of(x[i], factor, offset) : 0;
        out[i] = (float)value;
        sum += value;
    }
    return (float)sum;
}

static float exp2_row_bf16(uint16_t *out, const float *x, int64_t valid, int64_t n, float factor,
                           float offset)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double value = i < valid ? exp2_of(x[i], factor, offset) : 0;
        out[i] = bf16_from_float((float)value);
        sum += value;
    }
    return (float)sum;
}

static void scale_row(float *x, int64_t n, float factor)
{
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}

static double rms_factor(const float *x, int64_t n, float eps)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return 1 / sqrt(sum / (double)n + (double)eps);
}

static void rms_norm(float *out, const float *x, const float *w, const float *scale, int64_t n,
                     float eps)
{
    double factor = rms_factor(x, n, eps);
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)((double)x[i] * factor * (double)w[i] * (scale ? (double)scale[i] : 1));
}

static void add_rms_norm(float *x, const float *y, const float *w, const float *gate, int64_t n,
                         float eps)
{
    double factor = rms_factor(y, n, eps);
    for (int64_t i = 0; i < n; i++)
        x[i] += (float)((double)y[i] * factor * (double)w[i] * (gate ? (double)gate[i] : 1));
}

static void layer_norm(float *out, const float *x, const float *scale, const float *shift,
                       int64_t n, float eps)
{
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < n; i++)
        mean += (double)x[i];
    mean /= (double)n;
    for (int64_t i = 0; i < n; i++)
        variance += ((double)x[i] - mean) * ((double)x[i] - mean);
    double factor = 1 / sqrt(variance / (double)n + (double)eps);
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(((double)x[i] - mean) * factor * (double)scale[i] +
                         (shift ? (double)shift[i] : 0));
}

static void rope(float *x, const float *cosine, const float *sine, int64_t n, nn_rope_pairs pairs)
{
    for (int64_t i = 0; i < n / 2; i++) {
        int64_t a = pairs == NN_ROPE_INTERLEAVED ? 2 * i : i;
        int64_t b = pairs == NN_ROPE_INTERLEAVED ? 2 * i + 1 : i + n / 2;
        double re = x[a], im = x[b];
        x[a] = (float)(re * (double)cosine[i] - im * (double)sine[i]);
        x[b] = (float)(re * (double)sine[i] + im * (double)cosine[i]);
    }
}

static double silu_of(double x)
{
    return x / (1 + exp(-x));
}

static void silu(float *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)silu_of(x[i]);
}

static void swiglu(float *gate, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        gate[i] = (float)(silu_of(gate[i]) * (double)up[i]);
}

static void gelu(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double v = (double)x[i];
        x[i] = (float)(0.5 * v * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v))));
    }
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
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++) {
            double v = x[p * channels + c];
            sum[c] += v;
            squares[c] += v * v;
        }
}

static void channel_affine(float *out, const float *x, int64_t stride, const float *factor,
                           const float *offset, int64_t pixels, int64_t channels, bool with_silu)
{
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++) {
            double v = (double)x[p * stride + c] * (double)factor[c] + (double)offset[c];
            out[p * channels + c] = (float)(with_silu ? silu_of(v) : v);
        }
}

/* ---- Winograd's convolution. ----------------------------------------------------------------- */

#define A ((double)WINOGRAD_A)
#define B ((double)WINOGRAD_B)
#define NA (1 / (2 * A * A * (A * A - B * B)))
#define NB (1 / (2 * B * B * (B * B - A * A)))

/* A kernel's polynomial at each point, over the product of that point's distances from the others;
 * its last coefficient at infinity. */
static const double winograd_g[6 * 3] = {1 / (A * A * B * B),
                                         0,
                                         0, /* 0 */
                                         NA,
                                         A *NA,
                                         A *A *NA, /* a */
                                         NA,
                                         -A *NA,
                                         A *A *NA, /* -a */
                                         NB,
                                         B *NB,
                                         B *B *NB, /* b */
                                         NB,
                                         -B *NB,
                                         B *B *NB, /* -b */
                                         0,
                                         0,
                                         1};
/* The coefficients of the product of (x - point) over the other points; at infinity over all. */
static const double winograd_bt[6 * 6] = {A * A * B * B,
                                          0,
                                          -A *A - B *B,
                                          0,
                                          1,
                                          0, /* 0 */
                                          0,
                                          -A *B *B,
                                          -B *B,
                                          A,
                                          1,
                                          0, /* a */
                                          0,
                                          A *B *B,
                                          -B *B,
                                          -A,
                                          1,
                                          0, /* -a */
                                          0,
                                          -A *A *B,
                                          -A *A,
                                          B,
                                          1,
                                          0, /* b */
                                          0,
                                          A *A *B,
                                          -A *A,
                                          -B,
                                          1,
                                          0, /* -b */
                                          0,
                                          A *A *B *B,
                                          0,
                                          -A *A - B *B,
                                          0,
                                          1};
/* The powers 0..3 of each point. */
static const double winograd_at[4 * 6] = {1, 1,       1,        1,       1,        0, /* */
                                          0, A,       -A,       B,       -B,       0, /* */
                                          0, A *A,    A *A,     B *B,    B *B,     0, /* */
                                          0, A *A *A, -A *A *A, B *B *B, -B *B *B, 1};

/* out [m][m] = matrix [m][k] in [k][k] matrix^T */
static void transform(double *out, const double *matrix, const double *in, int m, int k)
{
    for (int i = 0; i < m; i++)
        for (int j = 0; j < m; j++) {
            double sum = 0;
            for (int a = 0; a < k; a++)
                for (int b = 0; b < k; b++)
                    sum += matrix[i * k + a] * in[a * k + b] * matrix[j * k + b];
            out[i * m + j] = sum;
        }
}

static void winograd_weights(float *u, int64_t stride, const float *w, int64_t n)
{
    for (int64_t c = 0; c < n; c++) {
        double in[9], out[36];
        for (int i = 0; i < 9; i++)
            in[i] = w[9 * c + i];
        transform(out, winograd_g, in, 6, 3);
        for (int p = 0; p < 36; p++)
            u[p * stride + c] = (float)out[p];
    }
}

static void winograd_input(float *v, int64_t stride, const float *const *rows,
                           const int64_t *columns, int64_t n)
{
    for (int64_t c = 0; c < n; c++) {
        double in[36], out[36];
        for (int p = 0; p < 36; p++)
            in[p] = rows[p / 6][columns[p % 6] + c];
        transform(out, winograd_bt, in, 6, 6);
        for (int p = 0; p < 36; p++)
            v[p * stride + c] = (float)out[p];
    }
}

static void winograd_output(float *out, int64_t row, int64_t column, const float *m, int64_t stride,
                            const float *bias, int64_t n, bool accumulate)
{
    for (int64_t c = 0; c < n; c++) {
        double in[36], result[16];
        for (int p = 0; p < 36; p++)
            in[p] = m[p * stride + c];
        transform(result, winograd_at, in, 4, 6);
        for (int p = 0; p < 16; p++) {
            float *to = out + p / 4 * row + p % 4 * column + c;
            *to = (float)(result[p] + (double)bias[c] + (accumulate ? (double)*to : 0));
        }
    }
}

extern const cpu_kernels cpu_kernels_reference;
const cpu_kernels cpu_kernels_reference = {
    .name = "reference",
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
