/* Affine groups against what MLX recorded (tools/reference/fixture_mlx.py), and float formats. */
#include "test_support.h"

#include "core/affine.h"
#include "core/mem.h"
#include "io/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const int all_bits[] = {2, 3, 4, 5, 6, 8};
static const int64_t all_groups[] = {32, 64, 128};
static const char *const all_types[] = {"f32", "f16", "bf16"};
static const dtype all_dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};

#define ROWS 4
#define COLUMNS 128

/* A copy at an odd address that ends where its memory ends, so that a sanitizer sees every byte
 * that is read or written outside. */
typedef struct block {
    unsigned char *memory, *data;
} block;

static block block_new(const void *data, size_t size)
{
    block b = {.memory = malloc(size + 1)};
    assert_non_null(b.memory);
    b.data = b.memory + 1;
    if (data)
        memcpy(b.data, data, size);
    else
        memset(b.data, 0xa5, size);
    return b;
}

/* Reads bit by bit: the layout as MLX describes it, with nothing of the code under test. */
static unsigned read_code(const unsigned char *codes, int bits, int64_t index)
{
    unsigned code = 0;
    for (int b = 0; b < bits; b++) {
        int64_t at = index * bits + b;
        code |= (unsigned)(codes[at / 8] >> (at % 8) & 1) << b;
    }
    return code;
}

static float round_to(dtype type, float value)
{
    unsigned char stored[4];
    dtype_from_float(stored, &value, type, 1);
    dtype_to_float(&value, stored, type, 1);
    return value;
}

static void assert_same_bits(float actual, float expected, const char *what, int64_t at)
{
    if (memcmp(&actual, &expected, sizeof actual) != 0)
        fail_msg("%s: number %d is %.9g, expected %.9g", what, (int)at, (double)actual,
                 (double)expected);
}

/* ---- Against MLX ----------------------------------------------------------------------------- */

static weights *fixture;

static int open_fixture(void **state)
{
    (void)state;
    ct_error error;
    ct_status status =
        weights_open_file(&fixture, &mem_default, test_fixture("affine.safetensors"), &error);
    test_ok(status, &error);
    return 0;
}

static int close_fixture(void **state)
{
    (void)state;
    weights_close(fixture);
    return 0;
}

static const weight_view *tensor(const char *type, int bits, const char *part)
{
    char name[64];
    if (bits)
        snprintf(name, sizeof name, "%s.b%d.%s", type, bits, part);
    else
        snprintf(name, sizeof name, "%s.%s", type, part);
    const weight_view *v = weights_find(fixture, name);
    if (!v)
        fail_msg("affine.safetensors has no %s", name);
    return v;
}

/* One type, number of bits and group of the recording. */
typedef struct recorded {
    char name[64];
    dtype type;
    int bits;
    int64_t group, groups; /* groups in a row */
    size_t row_bytes;      /* of codes */
    const unsigned char *codes, *scales, *biases, *decoded;
} recorded;

static void each_recorded(void (*check)(const recorded *r, const weight_view *in))
{
    for (size_t t = 0; t < 3; t++)
        for (size_t b = 0; b < sizeof all_bits / sizeof *all_bits; b++) {
            const char *type = all_types[t];
            recorded r = {.type = all_dtypes[t], .bits = all_bits[b]};
            const size_t size = dtype_size(r.type);
            r.row_bytes = (size_t)(COLUMNS * r.bits / 8);
            r.codes = tensor(type, r.bits, "codes")->data;
            r.scales = tensor(type, r.bits, "scales")->data;
            r.biases = tensor(type, r.bits, "biases")->data;
            r.decoded = tensor(type, r.bits, "decoded")->data;
            for (size_t g = 0; g < 3; g++) {
                r.group = all_groups[g];
                r.groups = COLUMNS / r.group;
                snprintf(r.name, sizeof r.name, "%s, %d bits, groups of %d", type, r.bits,
                         (int)r.group);
                check(&r, tensor(type, 0, "in"));
                r.codes += ROWS * r.row_bytes;
                r.scales += (size_t)(ROWS * r.groups) * size;
                r.biases += (size_t)(ROWS * r.groups) * size;
                r.decoded += COLUMNS * size;
            }
        }
}

static void check_encode(const recorded *r, const weight_view *in)
{
    const size_t size = dtype_size(r->type), row_scales = (size_t)r->groups * size;
    float row[COLUMNS];
    for (size_t i = 0; i < ROWS; i++) {
        block codes = block_new(NULL, r->row_bytes), scales = block_new(NULL, row_scales);
        block biases = block_new(NULL, row_scales);
        dtype_to_float(row, in->data + i * COLUMNS * size, r->type, COLUMNS);
        affine_encode(codes.data, scales.data, biases.data, r->type, row, COLUMNS, r->bits,
                      r->group);
        test_bytes_equal(scales.data, r->scales + i * row_scales, row_scales);
        test_bytes_equal(biases.data, r->biases + i * row_scales, row_scales);
        test_bytes_equal(codes.data, r->codes + i * r->row_bytes, r->row_bytes);
        free(codes.memory);
        free(scales.memory);
        free(biases.memory);
    }
}

static void test_encode_equals_mlx(void **state)
{
    (void)state;
    each_recorded(check_encode);
}

/* MLX rounds product and sum to the type of the scales; ours are those of float32 before that. */
static void check_decode(const recorded *r, const weight_view *in)
{
    (void)in;
    const size_t size = dtype_size(r->type), row_scales = (size_t)r->groups * size;
    block codes = block_new(r->codes, r->row_bytes), scales = block_new(r->scales, row_scales);
    block biases = block_new(r->biases, row_scales);
    float decoded[COLUMNS], mlx[COLUMNS], scale[4], bias[4];
    dtype_to_float(mlx, r->decoded, r->type, COLUMNS);
    dtype_to_float(scale, r->scales, r->type, (size_t)r->groups);
    dtype_to_float(bias, r->biases, r->type, (size_t)r->groups);
    affine_decode(decoded, codes.data, r->bits, r->group, scales.data, biases.data, r->type, 0,
                  COLUMNS);
    for (int64_t i = 0; i < COLUMNS; i++) {
        const int64_t g = i / r->group;
        const float product = scale[g] * (float)read_code(r->codes, r->bits, i);
        const float sum = product + bias[g];
        assert_same_bits(decoded[i], sum, r->name, i);
        assert_same_bits(round_to(r->type, round_to(r->type, product) + bias[g]), mlx[i], r->name,
                         i);
        if (r->type == DTYPE_F32)
            assert_same_bits(decoded[i], mlx[i], r->name, i);
    }
    for (int64_t first = 0; first < COLUMNS; first += 5)
        for (int64_t count = 0; first + count <= COLUMNS; count += 13) {
            float part[COLUMNS + 1];
            part[count] = 12345;
            affine_decode(part, codes.data, r->bits, r->group, scales.data, biases.data, r->type,
                          first, count);
            test_bytes_equal(part, decoded + first, (size_t)count * sizeof *part);
            assert_same_bits(part[count], 12345, r->name, count);
        }
    free(codes.memory);
    free(scales.memory);
    free(biases.memory);
}

static void test_decode_equals_mlx(void **state)
{
    (void)state;
    each_recorded(check_decode);
}

/* ---- Everything else ------------------------------------------------------------------------- */

static void test_bits(void **state)
{
    (void)state;
    for (int64_t bits = -1; bits <= 33; bits++)
        assert_int_equal(affine_bits(bits), (bits >= 2 && bits <= 6) || bits == 8);
}

/* Groups that MLX does not write, over which codes cross bytes as they like. */
static void test_odd_groups(void **state)
{
    (void)state;
    for (size_t b = 0; b < sizeof all_bits / sizeof *all_bits; b++)
        for (int64_t group = 1; group <= 96; group += group < 8 ? 1 : 8) {
            const int bits = all_bits[b];
            const int64_t groups = 32, count = group * groups;
            float *in = malloc((size_t)count * sizeof *in),
                  *out = malloc((size_t)count * sizeof *in);
            float scales[32], biases[32];
            unsigned char *codes = malloc((size_t)(count * bits / 8));
            assert_true(in && out && codes);
            for (int64_t i = 0; i < count; i++)
                in[i] = sinf((float)(i * 7 + group)) * (float)(1 + i / group);
            affine_encode(codes, scales, biases, DTYPE_F32, in, count, bits, group);
            affine_decode(out, codes, bits, group, scales, biases, DTYPE_F32, 0, count);
            /* Half a step. Adjusting the scale to the edge moves the far end by up to half a step
             * more, and rounding adds a little. */
            for (int64_t i = 0; i < count; i++)
                if (!(fabsf(out[i] - in[i]) <= 1.001f * fabsf(scales[i / group])))
                    fail_msg("%d bits, groups of %d: number %d is %g, expected %g", bits,
                             (int)group, (int)i, (double)out[i], (double)in[i]);
            free(in);
            free(out);
            free(codes);
        }
}

/* Numbers that no weight should be: every code stays in range and no memory outside is touched. */
static void test_hostile_numbers(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 1e-45f, -1e-45f, -0.0f};
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++)
        for (size_t b = 0; b < sizeof all_bits / sizeof *all_bits; b++)
            for (size_t t = 0; t < 3; t++) {
                const int bits = all_bits[b];
                const size_t size = dtype_size(all_dtypes[t]);
                float in[64], out[64];
                for (int i = 0; i < 64; i++)
                    in[i] = i % 5 == 0 ? bad[k] : i % 7 == 1 ? bad[(k + 3) % 8] : (float)i;
                block codes = block_new(NULL, (size_t)(64 * bits / 8));
                block scales = block_new(NULL, 2 * size), biases = block_new(NULL, 2 * size);
                affine_encode(codes.data, scales.data, biases.data, all_dtypes[t], in, 64, bits,
                              32);
                affine_decode(out, codes.data, bits, 32, scales.data, biases.data, all_dtypes[t], 0,
                              64);
                free(codes.memory);
                free(scales.memory);
                free(biases.memory);
            }
}

/* All bytes of both 8-bit formats by their definition. */
static void test_float8(void **state)
{
    (void)state;
    for (int h = 0; h < 256; h++) {
        const unsigned char byte = (unsigned char)h;
        const float sign = h & 0x80 ? -1.0f : 1.0f;
        float e4m3, e5m2;
        dtype_to_float(&e4m3, &byte, DTYPE_F8_E4M3, 1);
        dtype_to_float(&e5m2, &byte, DTYPE_F8_E5M2, 1);
        int e = h >> 3 & 15, m = h & 7;
        if (e == 15 && m == 7)
            assert_true(isnan(e4m3));
        else
            assert_same_bits(e4m3,
                             sign * (e ? ldexpf(1 + (float)m / 8, e - 7) : ldexpf((float)m, -9)),
                             "E4M3", h);
        e = h >> 2 & 31;
        m = h & 3;
        if (e == 31 && m)
            assert_true(isnan(e5m2));
        else
            assert_same_bits(e5m2,
                             sign * (e == 31 ? INFINITY
                                     : e     ? ldexpf(1 + (float)m / 4, e - 15)
                                             : ldexpf((float)m, -16)),
                             "E5M2", h);
    }
}

/* Every F16 comes back from float32; between two neighbours the nearer one is taken, in the middle
 * the even one. */
static void test_to_float16(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 0x10000; h++) {
        float f = f16_to_float((uint16_t)h);
        if (isnan(f)) {
            assert_true(isnan(f16_to_float(f16_from_float(f))));
            continue;
        }
        assert_int_equal(f16_from_float(f), h);
        if ((h & 0x7fff) >= 0x7bff)
            continue;
        float next = f16_to_float((uint16_t)(h + 1)), middle = f + (next - f) / 2;
        assert_int_equal(f16_from_float(middle), h & 1 ? h + 1 : h);
        assert_int_equal(f16_from_float(nextafterf(middle, f)), h);
        assert_int_equal(f16_from_float(nextafterf(middle, next)), h + 1);
    }
    assert_int_equal(f16_from_float(65519.996f), 0x7bff);
    assert_int_equal(f16_from_float(65520.0f), 0x7c00);
    assert_int_equal(f16_from_float(-INFINITY), 0xfc00);
    assert_int_equal(f16_from_float(1e-10f), 0);
    assert_int_equal(f16_from_float(-1e-45f), 0x8000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode_equals_mlx),
        cmocka_unit_test(test_decode_equals_mlx),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_odd_groups),
        cmocka_unit_test(test_hostile_numbers),
        cmocka_unit_test(test_float8),
        cmocka_unit_test(test_to_float16),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
