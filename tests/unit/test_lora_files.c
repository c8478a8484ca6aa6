/* LoRAs in matrices of every format, and LoRA files that are refused. */
#include "toy_lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/affine.h"
#include "core/mem.h"
#include "io/safetensors.h"

/* ---- Formats of the model -------------------------------------------------------------------- */

/* A matrix [rows, columns] in groups of so many bits, as a file; *back: what they mean. */
static const char *write_codes(const toy_tensor *t, int bits, int64_t group, float *back)
{
    const int64_t rows = t->shape[0], columns = t->shape[1], words = columns * bits / 32;
    const int64_t groups = columns / group;
    const char *path = test_path(&toy_folder, "model.safetensors");
    float *in = toy_numbers(t);
    char *codes = malloc((size_t)(rows * words) * 4), *scales = malloc((size_t)(rows * groups) * 2);
    char *biases = malloc((size_t)(rows * groups) * 2);
    for (int64_t i = 0; i < rows; i++) {
        affine_encode(codes + i * words * 4, scales + i * groups * 2, biases + i * groups * 2,
                      DTYPE_BF16, in + i * columns, columns, bits, group);
        affine_decode(back + i * columns, codes + i * words * 4, bits, group,
                      scales + i * groups * 2, biases + i * groups * 2, DTYPE_BF16, 0, columns);
    }
    safetensors_writer *out = NULL;
    ct_error error;
    test_ok(safetensors_writer_open(&out, &mem_default, path, &error), &error);
    const int64_t shapes[3][2] = {{rows, words}, {rows, groups}, {rows, groups}};
    test_ok(
        safetensors_writer_add(out, TOY_MODULE ".weight", DTYPE_U32, 2, shapes[0], codes, &error),
        &error);
    test_ok(
        safetensors_writer_add(out, TOY_MODULE ".scales", DTYPE_BF16, 2, shapes[1], scales, &error),
        &error);
    test_ok(
        safetensors_writer_add(out, TOY_MODULE ".biases", DTYPE_BF16, 2, shapes[2], biases, &error),
        &error);
    test_ok(safetensors_writer_commit(out, &error), &error);
    free(in);
    free(codes);
    free(scales);
    free(biases);
    return path;
}

/* How much of a change of a hundredth of the weights survives in a matrix of so many bits: the
 * error of the change, relative to it. */
static double change_error(const float *base, const float *change, const float *now, size_t count)
{
    double error = 0, norm = 0;
    for (size_t i = 0; i < count; i++) {
        const double d = (double)now[i] - (double)base[i] - (double)change[i];
        error += d * d;
        norm += (double)change[i] * (double)change[i];
    }
    return sqrt(error / norm);
}

/* docs/lora.md has the numbers that this prints with CT_SHOW set. */
static void test_quantized(void **state)
{
    (void)state;
    enum { ROWS = 64, COLUMNS = 256, GROUP = 64, COUNT = ROWS * COLUMNS };
    static float base[COUNT], change[COUNT], sum[COUNT], again[COUNT];
    const toy_tensors names = toy_matrix(ROWS, COLUMNS);
    toy_tensors file = {.count = 0};
    toy_tensor *a = toy_add_pair(&file, TOY_MODULE, ROWS, COLUMNS, 5);
    a[1].scale = 0.01f;
    float *down = toy_numbers(&a[0]), *up = toy_numbers(&a[1]);
    for (int i = 0; i < COUNT; i++) {
        change[i] = 0;
        for (int r = 0; r < TOY_RANK; r++)
            change[i] += up[i / COLUMNS * TOY_RANK + r] * down[r * COLUMNS + i % COLUMNS];
    }
    static const int kinds[] = {3, 4, 6, 8};
    for (int k = 0; k < 4; k++) {
        const int bits = kinds[k];
        const char *path = write_codes(&names.list[0], bits, GROUP, base);
        const ct_lora lora = {toy_write(&file, "l.safetensors"), 1};
        toy_model m;
        ct_error error;
        test_ok(toy_open(&m, &mem_default, path, &names, &lora, 1, NULL, &error), &error);
        assert_int_equal(m.w[0].bits, 8);
        assert_int_equal(m.w[0].group, GROUP);
        assert_int_equal(m.w[0].type, DTYPE_BF16);
        float *now = toy_decoded(&m.w[0]);
        const double kept = change_error(base, change, now, COUNT);
        free(now);
        toy_close(&m, &mem_default);
        /* In the bits that it had. */
        for (int i = 0; i < COUNT; i++)
            sum[i] = base[i] + change[i];
        for (int i = 0; i < ROWS; i++) {
            unsigned char codes[COLUMNS], scales[2 * COLUMNS / GROUP], biases[2 * COLUMNS / GROUP];
            affine_encode(codes, scales, biases, DTYPE_BF16, sum + i * COLUMNS, COLUMNS, bits,
                          GROUP);
            affine_decode(again + i * COLUMNS, codes, bits, GROUP, scales, biases, DTYPE_BF16, 0,
                          COLUMNS);
        }
        const double rounded = change_error(base, change, again, COUNT);
        if (getenv("CT_SHOW"))
            printf("%d bits: error of the change %.3f, in its own bits %.3f\n", bits, kept,
                   rounded);
        assert_true(kept < 0.6);
        assert_true(bits == 8 || rounded > 1.5 * kept);
        assert_true(bits > 4 || rounded > 0.9); /* little of it is left */
    }
    free(down);
    free(up);
}

static void test_types(void **state)
{
    (void)state;
    static const struct {
        dtype from, to;
        double bound;
    } types[] = {
        {DTYPE_F32, DTYPE_F32, 1e-6}, {DTYPE_F16, DTYPE_F16, 1e-3}, {DTYPE_BF16, DTYPE_BF16, 8e-3}};
    for (int i = 0; i < 3; i++) {
        toy_tensors base = toy_matrix(16, 32);
        base.list[0].type = types[i].from;
        toy_tensors file = {.count = 0};
        toy_tensor *a = toy_add_pair(&file, TOY_MODULE, 16, 32, 5);
        toy_model m;
        toy_with_lora(&m, &base, toy_write(&file, "l.safetensors"), 1);
        assert_int_equal(m.w[0].type, types[i].to);
        assert_true(toy_distance(&m.w[0], &base.list[0], &a[0], &a[1], 1) < types[i].bound);
        toy_close(&m, &mem_default);
    }
    /* FP8: zeros here, so that the change alone is left, in BF16. */
    toy_tensors base = toy_matrix(16, 32);
    base.list[0].type = DTYPE_F8_E4M3;
    base.list[0].scale = 0;
    toy_tensors file = {.count = 0};
    toy_tensor *a = toy_add_pair(&file, TOY_MODULE, 16, 32, 5);
    toy_model m;
    toy_with_lora(&m, &base, toy_write(&file, "l.safetensors"), 1);
    assert_int_equal(m.w[0].type, DTYPE_BF16);
    assert_true(toy_distance(&m.w[0], &base.list[0], &a[0], &a[1], 1) < 8e-3);
    toy_close(&m, &mem_default);
    /* What does not fit a type is an error, not infinity. */
    base.list[0].type = DTYPE_F16;
    a[0].scale = a[1].scale = 300;
    toy_refused(&base, &(ct_lora){toy_write(&file, "l.safetensors"), 1}, CT_EFORMAT,
                "beyond the range of F16");
}

/* ---- Hostile files --------------------------------------------------------------------------- */

static void expect(const toy_tensors *file, ct_status status, const char *part)
{
    const toy_tensors base = toy_matrix(8, 16);
    toy_refused(&base, &(ct_lora){toy_write(file, "l.safetensors"), 1}, status, part);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        ct_status status;
        const char *part;
    } further[] = {
        {TOY_MODULE ".dora_scale", CT_EUNSUPPORTED, "DoRA"},
        {TOY_MODULE ".lora_magnitude_vector", CT_EUNSUPPORTED, "DoRA"},
        {TOY_MODULE ".lokr_w1", CT_EUNSUPPORTED, "LoKr"},
        {TOY_MODULE ".hada_w1_a", CT_EUNSUPPORTED, "LoHa"},
        {TOY_MODULE ".diff", CT_EUNSUPPORTED, "whole difference"},
        {TOY_MODULE ".diff_b", CT_EUNSUPPORTED, "whole difference"},
        {TOY_MODULE ".lora_B.bias", CT_EUNSUPPORTED, "biases"},
        {TOY_MODULE ".lora_mid.weight", CT_EUNSUPPORTED, "Tucker"},
        {TOY_MODULE ".lora_down.weight", CT_EFORMAT, "for the same module"},
        {"transformer." TOY_MODULE ".lora_A.weight", CT_EFORMAT, "for the same module"},
        {"other.lora_A.weight", CT_EFORMAT, "no counterpart"},
        {"other.lora_B.weight", CT_EFORMAT, "no counterpart"},
        {"something.else", CT_EFORMAT, "for only 1 of its 2 modules; not for something.else"},
        {TOY_MODULE ".lora_A.a.b.weight", CT_EFORMAT, "for only 1 of its 2 modules"},
        {"lonely.alpha", CT_EFORMAT, "for only 1 of its 2 modules; not for lonely.alpha"},
    };
    for (size_t i = 0; i < sizeof further / sizeof *further; i++) {
        toy_tensors file = {.count = 0};
        toy_add_pair(&file, TOY_MODULE, 8, 16, 5);
        toy_add(&file, further[i].name, 8, 16, 3);
        expect(&file, further[i].status, further[i].part);
    }
    toy_tensors file = {.count = 0};
    toy_add_pair(&file, "another.module", 8, 16, 5);
    expect(&file, CT_EFORMAT, "has matrices for only 0 of its 1 modules");
    file.count = 0;
    toy_add(&file, "a", 1, 1, 1);
    expect(&file, CT_EFORMAT, "is no LoRA");
    file.count = 0;
    expect(&file, CT_EFORMAT, "is no LoRA");
}

static void test_bad_shapes(void **state)
{
    (void)state;
    static const struct {
        int rank[2];
        int64_t a[4], b[4];
        const char *part;
    } shapes[] = {
        {{2, 2},
         {3, 16},
         {9, 3},
         "make a change of [9, 16], which does not fit the model's " TOY_MODULE
         ".weight of [8, 16]"},
        {{2, 2}, {3, 15}, {8, 3}, "[8, 15]"},
        {{2, 2}, {3, 8}, {16, 3}, "[16, 8]"},
        {{2, 2}, {3, 16}, {8, 4}, "their ranks differ"},
        {{2, 2}, {0, 16}, {8, 0}, "is empty"},
        {{2, 2}, {3, 0}, {8, 3}, "is empty"},
        {{1, 2}, {16}, {8, 1}, "1 dimensions"},
        {{4, 4}, {3, 16, 3, 3}, {8, 3, 1, 1}, "no convolutions"},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        toy_tensors file = {.count = 0};
        toy_tensor *t = toy_add_pair(&file, TOY_MODULE, 8, 16, 5);
        for (int k = 0; k < 2; k++) {
            t[k].rank = shapes[i].rank[k];
            memcpy(t[k].shape, k ? shapes[i].b : shapes[i].a, sizeof t[k].shape);
        }
        expect(&file,
               shapes[i].rank[0] == 1 || shapes[i].rank[0] == 4 ? CT_EUNSUPPORTED : CT_EFORMAT,
               shapes[i].part);
    }
    /* A convolution of one pixel is a matrix. */
    const toy_tensors base = toy_matrix(8, 16);
    toy_tensors file = {.count = 0};
    toy_tensor *t = toy_add_pair(&file, TOY_MODULE, 8, 16, 5);
    for (int k = 0; k < 2; k++) {
        t[k].rank = 4;
        t[k].shape[2] = t[k].shape[3] = 1;
    }
    toy_model m;
    toy_with_lora(&m, &base, toy_write(&file, "l.safetensors"), 1);
    assert_true(toy_distance(&m.w[0], &base.list[0], &t[0], &t[1], 1) < 1e-6);
    toy_close(&m, &mem_default);
}

static void test_bad_numbers(void **state)
{
    (void)state;
    for (int type = 0; type < 3; type++)
        for (int which = 0; which < 2; which++) {
            toy_tensors file = {.count = 0};
            toy_tensor *t = toy_add_pair(&file, TOY_MODULE, 8, 16, 5);
            t[which].type = type == 1 ? DTYPE_F16 : DTYPE_F32;
            t[which].scale = type == 0 ? NAN : type == 1 ? 1e30f : INFINITY;
            expect(&file, CT_EFORMAT, "holds NaN or infinity");
        }
    static const float alphas[] = {NAN, INFINITY};
    for (int i = 0; i < 2; i++) {
        toy_tensors file = {.count = 0};
        toy_add_pair(&file, TOY_MODULE, 8, 16, 5);
        toy_add_number(&file, TOY_MODULE ".alpha", alphas[i]);
        expect(&file, CT_EFORMAT, "must be a single finite number");
    }
    toy_tensors file = {.count = 0};
    toy_add_pair(&file, TOY_MODULE, 8, 16, 5);
    toy_add(&file, TOY_MODULE ".alpha", 1, 2, 1);
    expect(&file, CT_EFORMAT, "must be a single finite number");
    file.list[2].shape[1] = 1;
    file.list[2].type = DTYPE_U8;
    expect(&file, CT_EFORMAT, "must be a single finite number");
    file.count = 2;
    file.list[0].type = DTYPE_I32;
    expect(&file, CT_EUNSUPPORTED, "is I32");
    file.list[0].type = DTYPE_F32;
    const toy_tensors base = toy_matrix(8, 16);
    static const double scales[] = {101, -101, NAN, INFINITY};
    for (int i = 0; i < 4; i++)
        toy_refused(&base, &(ct_lora){toy_write(&file, "l.safetensors"), scales[i]}, CT_EINVAL,
                    "scale is");
    toy_refused(&base, &(ct_lora){"/nowhere.safetensors", 1}, CT_ENOTFOUND, "/nowhere.safetensors");
    toy_refused(&base, &(ct_lora){NULL, 1}, CT_EINVAL, "no path");
}

/* Cut off at every length: an error each time, never more. */
static void test_truncated(void **state)
{
    (void)state;
    const toy_tensors base = toy_matrix(8, 16);
    toy_tensors file = {.count = 0};
    toy_add_pair(&file, TOY_MODULE, 8, 16, 5);
    toy_add_number(&file, TOY_MODULE ".alpha", 1);
    size_t size;
    unsigned char *bytes = test_read_file(toy_write(&file, "l.safetensors"), &size);
    const char *path = toy_write(&base, "model.safetensors"), *cut = test_path(&toy_folder, "cut");
    for (size_t n = 0; n < size; n += n < 400 ? 7 : 41) {
        toy_model m;
        ct_error error = {0};
        test_write_file(cut, bytes, n);
        const ct_lora lora = {cut, 1};
        assert_int_equal(toy_open(&m, &mem_default, path, &base, &lora, 1, NULL, &error),
                         CT_EFORMAT);
        toy_close(&m, &mem_default);
    }
    free(bytes);
}

typedef struct attempt {
    const char *path;
    const toy_tensors *names;
    ct_lora lora;
} attempt;

static ct_status attempt_open(const ct_allocator *a, void *user, ct_error *error)
{
    const attempt *t = user;
    toy_model m;
    ct_status status = toy_open(&m, a, t->path, t->names, &t->lora, 1, NULL, error);
    toy_close(&m, a);
    return status;
}

static void test_memory(void **state)
{
    (void)state;
    const toy_tensors base = toy_matrix(8, 16);
    toy_tensors file = {.count = 0};
    toy_add_pair(&file, TOY_MODULE, 8, 16, 5);
    attempt t = {
        toy_write(&base, "model.safetensors"), &base, {toy_write(&file, "l.safetensors"), 1}};
    test_each_allocation(attempt_open, &t);
    /* More than the machine has. */
    const load_options options = {.allocator = &mem_default};
    bind_memory memory = {.lora = (lora_set *)&memory, .bytes = (uint64_t)1 << 60};
    ct_error error = {0};
    test_error(bind_memory_fill(&memory, &options, &error), CT_ENOMEM, &error,
               "calotype quantize --lora");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantized),   cmocka_unit_test(test_types),
        cmocka_unit_test(test_refused),     cmocka_unit_test(test_bad_shapes),
        cmocka_unit_test(test_bad_numbers), cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, toy_set_up, toy_tear_down);
}
