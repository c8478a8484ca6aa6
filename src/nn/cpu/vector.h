/* Vectors of KERNEL_VL floats, in C with the vector extension of gcc and clang, and functions of
 * one number on them. */
#ifndef NN_CPU_VECTOR_H
#define NN_CPU_VECTOR_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

enum { VL = KERNEL_VL };

typedef float vf __attribute__((vector_size(KERNEL_VL * 4)));
typedef int32_t vi __attribute__((vector_size(KERNEL_VL * 4)));
typedef uint32_t vu __attribute__((vector_size(KERNEL_VL * 4)));
typedef uint16_t vh __attribute__((vector_size(KERNEL_VL * 2)));
/* The same at any alignment. */
typedef float vf_memory __attribute__((vector_size(KERNEL_VL * 4), aligned(4), may_alias));
typedef uint16_t vh_memory __attribute__((vector_size(KERNEL_VL * 2), aligned(2), may_alias));

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

static inline vf load(const float *p)
{
    return *(const vf_memory *)p;
}

static inline void store(float *p, vf v)
{
    *(vf_memory *)p = v;
}

static inline vf splat(float x)
{
    vf v;
    for (int i = 0; i < VL; i++)
        v[i] = x;
    return v;
}

/* The last n < VL elements of a row; zeros behind them. */
static inline vf load_tail(const float *p, int64_t n)
{
    vf v = {0};
    memcpy(&v, p, (size_t)n * 4);
    return v;
}

static inline void store_tail(float *p, vf v, int64_t n)
{
    memcpy(p, &v, (size_t)n * 4);
}

static inline vf select(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* b where one of them is NaN. Compilers do not find the instruction in every place. */
static inline vf max_v(vf a, vf b)
{
#if KERNEL_VL == 16 && defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif KERNEL_VL == 8 && defined(__AVX__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return select(a > b, a, b);
#endif
}

/* The lanes are added in one fixed order. */
static inline double lanes(vf v)
{
    double sum = 0;
    for (int i = 0; i < VL; i++)
        sum += (double)v[i];
    return sum;
}

/* In pairs: fewer steps. */
static inline float sum_lanes(vf v)
{
    float part[VL];
    store(part, v);
    for (int width = VL / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            part[i] += part[i + width];
    return part[0];
}

/* e^x to about 1 ulp, for x in the range where neither end overflows; outside, the value at the
 * end. x = n ln 2 + r, then a polynomial in r (Cephes, expf). */
static inline vf exp_v(vf x)
{
    const vf low = splat(-87.3f), high = splat(88.3f), shift = splat(12582912.0f);
    x = select(x < low, low, x);
    x = select(x > high, high, x);
    vf n = (x * 1.44269504f + shift) - shift;
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    vi power = (__builtin_convertvector(n, vi) + 127) << 23;
    return p * (vf)power;
}

/* 2^x for -126 <= x < 127, to 1.5e-7: x = n + f, where n is taken from the lowest bits after adding
 * 1.5 * 2^23 and goes into the exponent of a polynomial in f (minimax of the relative error). NaN
 * stays NaN. */
static inline vf exp2_v(vf x)
{
    const vf shift = splat(12582912.0f);
    vf shifted = x + shift;
    vf f = x - (shifted - shift);
    vf p = splat(1.3276467799e-3f);
    p = p * f + 9.6755412483e-3f;
    p = p * f + 5.5507132866e-2f;
    p = p * f + 2.4022119727e-1f;
    p = p * f + 6.9314696706e-1f;
    p = p * f + 1.0f;
    return (vf)((vi)p + ((vi)shifted << 23));
}

/* Below -88 exp(-x) ends, and with it the fall of silu towards 0. */
static inline vf silu_v(vf x)
{
    x = select(x < splat(-88), splat(-88), x);
    return x / (exp_v(-x) + 1.0f);
}

/* Round to nearest even at bit 16; NaN stays NaN. */
static inline vf round_v(vf x)
{
    vu bits = (vu)x;
    vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    vi nan = x != x;
    return select(nan, x, (vf)rounded);
}

#endif
