/* Number formats of tensors in files, and conversion of the 16-bit floats. */
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

/* count numbers of type F32, F16 or BF16, at any alignment, to float32. */
void dtype_to_float(float *out, const void *in, dtype type, size_t count);
/* Whether dtype_to_float knows it. */
bool dtype_is_float(dtype type);

#endif
