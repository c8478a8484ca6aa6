#include "core/dtype.h"

static const struct {
    const char *name;
    size_t size;
} table[DTYPE_COUNT] = {
    [DTYPE_F32] = {"F32", 4},   [DTYPE_F16] = {"F16", 2},         [DTYPE_BF16] = {"BF16", 2},
    [DTYPE_F64] = {"F64", 8},   [DTYPE_I64] = {"I64", 8},         [DTYPE_I32] = {"I32", 4},
    [DTYPE_I16] = {"I16", 2},   [DTYPE_I8] = {"I8", 1},           [DTYPE_U64] = {"U64", 8},
    [DTYPE_U32] = {"U32", 4},   [DTYPE_U16] = {"U16", 2},         [DTYPE_U8] = {"U8", 1},
    [DTYPE_BOOL] = {"BOOL", 1}, [DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [DTYPE_F8_E5M2] = {"F8_E5M2", 1},
};

const char *dtype_name(dtype type)
{
    return table[type].name;
}

size_t dtype_size(dtype type)
{
    return table[type].size;
}

bool dtype_parse(const char *name, dtype *out)
{
    for (int i = 0; i < DTYPE_COUNT; i++)
        if (!strcmp(name, table[i].name)) {
            *out = (dtype)i;
            return true;
        }
    return false;
}

bool dtype_is_float(dtype type)
{
    return type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16 || type == DTYPE_F8_E4M3 ||
           type == DTYPE_F8_E5M2;
}

void dtype_to_float(float *out, const void *in, dtype type, size_t count)
{
    const unsigned char *p = in;
    if (type == DTYPE_F32) {
        memcpy(out, p, count * 4);
        return;
    }
    if (type == DTYPE_F8_E4M3 || type == DTYPE_F8_E5M2) {
        for (size_t i = 0; i < count; i++)
            out[i] = type == DTYPE_F8_E4M3 ? f8_e4m3_to_float(p[i]) : f8_e5m2_to_float(p[i]);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = type == DTYPE_BF16 ? bf16_to_float(h) : f16_to_float(h);
    }
}

void dtype_from_float(void *out, const float *in, dtype type, size_t count)
{
    unsigned char *p = out;
    if (type == DTYPE_F32) {
        memcpy(p, in, count * 4);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t h = type == DTYPE_BF16 ? bf16_from_float(in[i]) : f16_from_float(in[i]);
        memcpy(p + 2 * i, &h, 2);
    }
}
