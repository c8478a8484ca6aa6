/* Number formats of tensors in files, and conversion of the 16-bit and 8-bit floats. */
#ifndef CORE_DTYPE_H
#define CORE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum dtype {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_F64,
    DTYPE_I64,
    DTYPE_I32,
    DTYPE_I16,
    DTYPE_I8,
    DTYPE_U64,
    DTYPE_U32,
    DTYPE_U16,
    DTYPE_U8,
    DTYPE_BOOL,
    DTYPE_F8_E4M3,
    DTYPE_F8_E5M2,
    DTYPE_COUNT
} dtype;

/* The name in safetensors files: "F32". */
const char *dtype_name(dtype type);
/* False when the name is none of ours. */
bool dtype_parse(const char *name, dtype *out);
size_t dtype_size(dtype type);

static inline float bf16_to_float(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* Round to nearest, ties to even; NaN stays NaN. */
static inline uint16_t bf16_from_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* Exact. The exponent is moved with one multiplication, which also handles subnormals; Inf and NaN
 * are put back by hand. Written without branches so that compilers vectorise loops over it. */
static inline float f16_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t magnitude = (uint32_t)(h & 0x7fffu) << 13;
    const uint32_t magic_bits = 0x77800000u; /* 2^112 */
    float value, magic;
    memcpy(&value, &magnitude, 4);
    memcpy(&magic, &magic_bits, 4);
    value *= magic;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits |= magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
    bits |= sign;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* Round to nearest, ties to even; 65520 and above becomes infinity, NaN stays NaN. */
static inline uint16_t f16_from_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    const uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (bits >> 13 & 0x3ffu));
    if (bits >= 0x477ff000u)
        return (uint16_t)(sign | 0x7c00u);
    if (bits < 0x38800000u) {
        /* Below 2^-14 the result counts units of 2^-24, which are the last bits of 0.5 + f. */
        memcpy(&f, &bits, 4);
        f += 0.5f;
        memcpy(&bits, &f, 4);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    bits += 0xfffu + (bits >> 13 & 1u);
    return (uint16_t)(sign | (bits - 0x38000000u) >> 13);
}

/* 1 sign, 4 exponent (bias 7) and 3 mantissa bits, "E4M3FN": no infinities, 0x7f and 0xff are NaN.
 * Exact, by the multiplication of f16_to_float. */
static inline float f8_e4m3_to_float(uint8_t h)
{
    uint32_t magnitude = (uint32_t)(h & 0x7fu) << 20;
    const uint32_t magic_bits = 0x7b800000u; /* 2^120 */
    float value, magic;
    memcpy(&value, &magnitude, 4);
    memcpy(&magic, &magic_bits, 4);
    value *= magic;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits |= (h & 0x7fu) == 0x7fu ? 0x7fc00000u : 0u;
    bits |= (uint32_t)(h & 0x80u) << 24;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* 1 sign, 5 exponent and 2 mantissa bits: the upper byte of an F16. */
static inline float f8_e5m2_to_float(uint8_t h)
{
    return f16_to_float((uint16_t)(h << 8));
}

/* count numbers of type F32, F16, BF16, F8_E4M3 or F8_E5M2, at any alignment, to float32. */
void dtype_to_float(float *out, const void *in, dtype type, size_t count);
/* Whether dtype_to_float knows it. */
bool dtype_is_float(dtype type);
/* count float32 numbers to type F32, F16 or BF16, at any alignment, rounded to nearest even. */
void dtype_from_float(void *out, const float *in, dtype type, size_t count);

#endif
