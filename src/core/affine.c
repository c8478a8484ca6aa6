#include "core/affine.h"

#include <math.h>

bool affine_bits(int64_t bits)
{
    return (bits >= 2 && bits <= 6) || bits == 8;
}

/* ---- Decoding ------------------------------------------------------------------------------ */

static float number_at(const void *numbers, dtype type, int64_t i)
{
    float f;
    dtype_to_float(&f, (const char *)numbers + (size_t)i * dtype_size(type), type, 1);
    return f;
}

/* A code may lie in two bytes; the second one is only touched where it does. */
static inline unsigned code_at(const unsigned char *codes, int bits, int64_t i)
{
    const int64_t at = i * bits;
    const unsigned char *p = codes + at / 8;
    const int shift = (int)(at % 8);
    unsigned code = (unsigned)p[0] >> shift;
    if (shift + bits > 8)
        code |= (unsigned)p[1] << (8 - shift);
    return code & ((1u << bits) - 1u);
}

/* A statement for each operation: no compiler may join them to one that rounds once. */
static inline void decode_codes(float *out, const unsigned char *codes, int bits, int64_t first,
                                int64_t count, float scale, float bias)
{
    for (int64_t i = 0; i < count; i++) {
        const float product = scale * (float)code_at(codes, bits, first + i);
        out[i] = product + bias;
    }
}

void affine_decode(float *out, const void *codes, int bits, int64_t group, const void *scales,
                   const void *biases, dtype type, int64_t first, int64_t count)
{
    while (count > 0) {
        const int64_t index = first / group;
        int64_t part = (index + 1) * group - first;
        if (part > count)
            part = count;
        const float scale = number_at(scales, type, index), bias = number_at(biases, type, index);
        switch (bits) { /* known widths make loops without shifts */
        case 4: decode_codes(out, codes, 4, first, part, scale, bias); break;
        case 8: decode_codes(out, codes, 8, first, part, scale, bias); break;
        default: decode_codes(out, codes, bits, first, part, scale, bias); break;
        }
        out += part;
        first += part;
        count -= part;
    }
}

/* ---- Encoding ------------------------------------------------------------------------------ */

typedef struct scaling {
    float scale, bias;
} scaling;

/* The end of the range that is farther from zero becomes an exact multiple of the scale, which is
 * adjusted for it, so that zero has a code, too. */
static scaling choose_scaling(const float *in, int64_t group, float last_code)
{
    float low = INFINITY, high = -INFINITY;
    for (int64_t i = 0; i < group; i++) {
        high = in[i] > high ? in[i] : high;
        low = in[i] < low ? in[i] : low;
    }
    const bool below = fabsf(low) > fabsf(high);
    float scale = (high - low) / last_code;
    if (!(scale > 1e-7f))
        scale = 1e-7f;
    if (!below)
        scale = -scale;
    const float edge = below ? low : high;
    const float steps = rintf(edge / scale);
    if (steps == 0)
        return (scaling){scale, 0};
    return (scaling){edge / steps, edge};
}

/* To the nearest whole number, ties to even, for 0 <= x <= 255: the sum has no bits for fractions.
 * Unlike rintf it needs no call. */
static inline unsigned nearest(float x)
{
    const float sum = x + 0x1.8p23f;
    return (unsigned)(sum - 0x1.8p23f);
}

void affine_encode(void *codes, void *scales, void *biases, dtype type, const float *in,
                   int64_t count, int bits, int64_t group)
{
    const float last_code = (float)((1 << bits) - 1);
    const size_t size = dtype_size(type);
    unsigned char *out = codes;
    uint64_t stream = 0;
    int waiting = 0; /* bits in stream */
    for (int64_t index = 0; index < count / group; index++, in += group) {
        const scaling s = choose_scaling(in, group, last_code);
        for (int64_t i = 0; i < group; i++) {
            float x = (in[i] - s.bias) / s.scale;
            x = x > 0 ? x : 0;
            x = x < last_code ? x : last_code;
            stream |= (uint64_t)nearest(x) << waiting;
            waiting += bits;
            for (; waiting >= 8; waiting -= 8, stream >>= 8)
                *out++ = (unsigned char)stream;
        }
        dtype_from_float((char *)scales + (size_t)index * size, &s.scale, type, 1);
        dtype_from_float((char *)biases + (size_t)index * size, &s.bias, type, 1);
    }
}
