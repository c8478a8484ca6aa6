/* Every kernel of every instruction set against the definition (kernels_reference.c), on random
 * numbers and awkward sizes, with guards around what is written. With --bench: their speed
 * (bench_kernels.c).
 *
 * The seed is printed; give it as SEED in the environment to repeat a failure. */
#include "test_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/mem.h"
#include "bench_kernels.h"
#include "nn/cpu/kernels.h"

#define GUARD 64
#define ALIGNMENTS 16 /* floats of the widest vector */
#define GUARD_VALUE 12345.678f

static uint64_t seed = 1;

static uint32_t random32(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static int64_t random_between(int64_t low, int64_t high)
{
    return low + random32() % (high - low + 1);
}

/* Uniform in -range..range. */
static float random_float(float range)
{
    return ((float)random32() / 1073741824.0f - 1.0f) * range;
}

/* n floats between guards, aligned as floats are and to nothing more; freed by guarded_free, which
 * checks the guards. In front of them stands how many floats were skipped. */
static float *guarded(int64_t n, float range)
{
    const int32_t skipped = (int32_t)random_between(1, ALIGNMENTS);
    float *block = malloc((size_t)(ALIGNMENTS + n + 2 * GUARD) * sizeof(float));
    assert_non_null(block);
    float *p = block + skipped + GUARD;
    memcpy(block + skipped - 1, &skipped, sizeof skipped);
    for (int64_t i = -GUARD; i < n + GUARD; i++)
        p[i] = i < 0 || i >= n ? GUARD_VALUE : random_float(range);
    return p;
}

static void guarded_free(float *p, int64_t n)
{
    for (int i = 0; i < GUARD; i++)
        if (p[-1 - i] != GUARD_VALUE || p[n + i] != GUARD_VALUE)
            fail_msg("a kernel wrote outside its output");
    int32_t skipped;
    memcpy(&skipped, p - GUARD - 1, sizeof skipped);
    free(p - GUARD - skipped);
}

static float *guarded_copy(const float *from, int64_t n)
{
    float *p = guarded(n, 0);
    memcpy(p, from, (size_t)n * sizeof(float));
    return p;
}

static void compare(const char *kernel, const cpu_kernels *k, const float *got, const float *want,
                    int64_t n, double bound)
{
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        error += d * d;
        norm += (double)want[i] * (double)want[i];
    }
    if (!(error <= bound * bound * norm))
        fail_msg("%s of %s: relative L2 %.2e for %lld numbers, bound %.0e", kernel, k->name,
                 sqrt(error / norm), (long long)n, bound);
}

static const cpu_kernels *definition(void)
{
    static cpu_kernels reference;
    cpu_kernels_tier(&reference, 0);
    return &reference;
}

/* Calls check for every table that can run here, the definition itself included. */
static void each_table(void (*check)(const cpu_kernels *k))
{
    cpu_kernels k;
    for (int i = 0; cpu_kernels_tier(&k, i); i++)
        if (cpu_kernels_usable(&k))
            for (int round = 0; round < 20; round++)
                check(&k);
}

static float bf16_of(float x)
{
    return bf16_to_float(bf16_from_float(x));
}

static void check_round_bf16(const cpu_kernels *k)
{
    static const uint32_t special[] = {0x7fc00000u, 0x7f800000u, 0xff800000u, 0x3f808000u,
                                       0x3f818000u, 0x3f807fffu, 0x80000000u, 0x00000001u};
    float x[8 + 37], out[8 + 37];
    memcpy(x, special, sizeof special);
    for (int i = 8; i < 8 + 37; i++)
        x[i] = random_float(1e10f);
    k->round_bf16(out, x, 8 + 37);
    for (int i = 0; i < 8 + 37; i++)
        assert_true(out[i] == bf16_of(x[i]) || (isnan(out[i]) && isnan(x[i])));
}

/* ---- Softmax --------------------------------------------------------------------------------- */

static void check_row_max(const cpu_kernels *k)
{
    const int64_t n = random_between(1, 300);
    float *x = guarded(n, 30);
    assert_true(k->row_max(x, n) == definition()->row_max(x, n));
    x[random_between(0, n - 1)] = 31;
    assert_true(k->row_max(x, n) == 31);
    guarded_free(x, n);
}

/* Exponents are those of a row whose greatest is 0, or of a later block, where all are below. */
static void check_exp2_row(const cpu_kernels *k)
{
    const int64_t n = 16 * random_between(1, 20), valid = random_between(0, n);
    float *x = guarded(n, random32() & 1 ? 3 : 200), *got = guarded(n, 1), *want = guarded(n, 1);
    const float factor = 0.01f + (float)(random32() % 100) / 100;
    const float offset = factor * definition()->row_max(x, n) + (random32() & 1 ? 0 : 2);
    float sum = k->exp2_row(got, x, valid, n, factor, offset);
    float want_sum = definition()->exp2_row(want, x, valid, n, factor, offset);
    /* The exponent is rounded: 200 * 2^-24 * ln 2 */
    compare("exp2_row", k, got, want, n, 1e-5);
    compare("exp2_row sum", k, &sum, &want_sum, 1, 1e-5);
    for (int64_t i = valid; i < n; i++)
        assert_true(got[i] == 0);
    k->exp2_row(x, x, valid, n, factor, offset); /* in place */
    assert_memory_equal(x, got, (size_t)n * sizeof(float));

    float nan = NAN, row[16] = {0};
    row[3] = nan;
    assert_true(isnan(k->exp2_row(row, row, 16, 16, 1, 0)) && isnan(row[3]) && row[4] == 1);
    guarded_free(x, n);
    guarded_free(got, n);
    guarded_free(want, n);
}

static void check_exp2_row_bf16(const cpu_kernels *k)
{
    const int64_t n = 16 * random_between(1, 20), valid = random_between(0, n);
    float *x = guarded(n, 20), *exact = guarded(n, 1), *words = guarded(n / 2, 1);
    uint16_t *got = (uint16_t *)(void *)words;
    const float factor = 0.5f, offset = factor * definition()->row_max(x, n);
    float sum = k->exp2_row_bf16(got, x, valid, n, factor, offset);
    float want_sum = definition()->exp2_row(exact, x, valid, n, factor, offset);
    compare("exp2_row_bf16 sum", k, &sum, &want_sum, 1, 1e-5);
    for (int64_t i = 0; i < n; i++)
        /* Half a unit in the last of 8 places, and what the exponential is off by. */
        assert_true(fabsf(bf16_to_float(got[i]) - exact[i]) <= exact[i] * (1 / 256.0f + 2e-5f));
    guarded_free(x, n);
    guarded_free(exact, n);
    guarded_free(words, n / 2);
}

/* ---- Words ----------------------------------------------------------------------------------- */

static void check_encode_bf16(const cpu_kernels *k)
{
    const int64_t n = random_between(1, 200);
    float *low = guarded(n, 1e10f), *high = guarded(n, 1), *got = guarded(n, 1);
    low[random_between(0, n - 1)] = NAN;
    high[random_between(0, n - 1)] = INFINITY;
    k->encode_bf16_pairs((uint32_t *)(void *)got, low, high, n);
    uint16_t *one = malloc((size_t)n * sizeof *one);
    assert_non_null(one);
    k->encode_bf16(one, low, n);
    for (int64_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, got + i, 4);
        assert_int_equal(word & 0xffff, bf16_from_float(low[i]));
        assert_int_equal(word >> 16, bf16_from_float(high[i]));
        assert_int_equal(one[i], bf16_from_float(low[i]));
    }
    free(one);
    guarded_free(low, n);
    guarded_free(high, n);
    guarded_free(got, n);
}

static void check_transpose(const cpu_kernels *k)
{
    const int64_t rows = random_between(1, 40), columns = random_between(1, 40);
    const int64_t in_stride = columns + random_between(0, 5);
    const int64_t out_stride = rows + random_between(0, 5);
    float *in = guarded(rows * in_stride, 1), *out = guarded(columns * out_stride, 1);
    float *before = guarded_copy(out, columns * out_stride);
    k->transpose((uint32_t *)(void *)out, out_stride, (uint32_t *)(void *)in, in_stride, rows,
                 columns);
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = 0; i < out_stride; i++)
            assert_true(out[j * out_stride + i] ==
                        (i < rows ? in[i * in_stride + j] : before[j * out_stride + i]));
    guarded_free(in, rows * in_stride);
    guarded_free(out, columns * out_stride);
    guarded_free(before, columns * out_stride);
}

/* ---- Weights and 8-bit products -------------------------------------------------------------- */

static void check_decode(const cpu_kernels *k)
{
    static const dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_F8_E4M3, DTYPE_F8_E5M2};
    const dtype type = types[random32() % 5];
    const int64_t n = random_between(1, 200);
    const float factor = random32() & 1 ? 1 : 0.37f;
    unsigned char bytes[4 * 200 + 1], *in = bytes + 1; /* unaligned, as files may be */
    for (int64_t i = 0; i < n; i++) {
        float x = random_float(2);
        uint16_t h = (uint16_t)(random32() & 0xbfff); /* finite in either format */
        if (type == DTYPE_F32)
            memcpy(in + 4 * i, &x, 4);
        else if (dtype_size(type) == 2)
            memcpy(in + 2 * i, &h, 2);
        else
            in[i] = (uint8_t)(random32() & 0xbf);
    }
    float *got = guarded(n, 1), *want = guarded(n, 1);
    k->decode(got, in, type, n, factor);
    dtype_to_float(want, in, type, (size_t)n);
    for (int64_t i = 0; i < n; i++)
        assert_true(got[i] == want[i] * factor);
    guarded_free(got, n);
    guarded_free(want, n);
}

static void check_codes(const cpu_kernels *k)
{
    const int64_t n = 2 * random_between(1, 100);
    uint8_t packed[100], codes[201];
    codes[n] = 77;
    for (int64_t i = 0; i < n / 2; i++)
        packed[i] = (uint8_t)random32();
    k->unpack4(codes, packed, n);
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(codes[i], i % 2 ? packed[i / 2] >> 4 : packed[i / 2] & 15);
    assert_int_equal(codes[n], 77);
    const float scale = random_float(2), bias = random_float(2);
    float *got = guarded(n, 1), *want = guarded(n, 1);
    k->decode_codes(got, codes, n, scale, bias);
    definition()->decode_codes(want, codes, n, scale, bias);
    compare("decode_codes", k, got, want, n, 1e-6);
    guarded_free(got, n);
    guarded_free(want, n);
}

/* x is rounded to the nearest integer. Where a product is added in one step it is not rounded
 * before: then a code may be the other neighbour of what lies in the middle, to the last bit of a
 * float32. */
static void assert_rounded(int code, float x, float inverse)
{
    const double exact = (double)x * inverse;
    assert_true(fabs(exact - code) <= 0.5 + 128 * 0x1p-24);
}

static void check_encode_integers(const cpu_kernels *k)
{
    const int64_t n = random_between(1, 200);
    float *x = guarded(n, 3);
    float max = k->max_abs(x, n), inverse = 127 / max;
    assert_true(max == definition()->max_abs(x, n));
    int8_t a[202];
    uint8_t b[202];
    int16_t c[202];
    a[n] = 99, b[n] = 99, c[n] = 99;
    int32_t left[3] = {k->encode_int8(a, x, n, inverse), k->encode_uint8(b, x, n, inverse),
                       k->encode_int16(c, x, n, inverse)};
    for (int64_t i = 0; i < n; i++) {
        assert_rounded(a[i], x[i], inverse);
        assert_rounded(b[i] - 128, x[i], inverse);
        assert_rounded(c[i], x[i], inverse);
        left[0] -= a[i];
        left[1] -= b[i] - 128;
        left[2] -= c[i];
    }
    assert_true(left[0] == 0 && left[1] == 0 && left[2] == 0);
    assert_true(a[n] == 99 && b[n] == 99 && c[n] == 99);
    guarded_free(x, n);
}

static void check_hadamard(const cpu_kernels *k)
{
    const int64_t block = (int64_t)1 << random_between(0, 8), n = block * random_between(1, 3);
    float *got = guarded(n, 1), *want = guarded_copy(got, n);
    k->hadamard(got, n, block);
    definition()->hadamard(want, n, block);
    compare("hadamard", k, got, want, n, 1e-6);
    guarded_free(got, n);
    guarded_free(want, n);
}

static void check_decode_sums(const cpu_kernels *k)
{
    const int64_t n = random_between(1, 100);
    const int32_t offset = (int32_t)(random32() % 200000) - 100000;
    float *scales = guarded(n, 1), *got = guarded(n, 1), *want = guarded(n, 1);
    for (int64_t i = 0; i < n; i++) {
        int32_t sum = (int32_t)(random32() % 4000000) - 2000000;
        memcpy(got + i, &sum, 4);
        memcpy(want + i, &sum, 4);
    }
    k->decode_sums(got, (int32_t *)(void *)got, n, offset, 0.013f, scales);
    definition()->decode_sums(want, (int32_t *)(void *)want, n, offset, 0.013f, scales);
    compare("decode_sums", k, got, want, n, 1e-6);
    guarded_free(scales, n);
    guarded_free(got, n);
    guarded_free(want, n);
}

/* ---- Rows of activations --------------------------------------------------------------------- */

static void check_norms(const cpu_kernels *k)
{
    const int64_t n = random_between(1, 500);
    float *x = guarded(n, 3), *w = guarded(n, 2), *s = guarded(n, 2), *y = guarded(n, 1);
    float *got = guarded_copy(y, n), *want = guarded_copy(y, n);
    const float *scale = random32() & 1 ? s : NULL;
    k->rms_norm(got, x, w, scale, n, 1e-5f);
    definition()->rms_norm(want, x, w, scale, n, 1e-5f);
    compare("rms_norm", k, got, want, n, 1e-6);
    k->add_rms_norm(got, x, w, scale, n, 1e-5f);
    definition()->add_rms_norm(want, x, w, scale, n, 1e-5f);
    compare("add_rms_norm", k, got, want, n, 1e-6);
    const float *shift = random32() & 1 ? w : NULL;
    k->layer_norm(got, x, s, shift, n, 1e-6f);
    definition()->layer_norm(want, x, s, shift, n, 1e-6f);
    if (n > 1) /* of one number the norm is 0, and all digits are rounding */
        compare("layer_norm", k, got, want, n, 2e-6);
    guarded_free(x, n);
    guarded_free(w, n);
    guarded_free(s, n);
    guarded_free(y, n);
    guarded_free(got, n);
    guarded_free(want, n);
}

static void check_rope(const cpu_kernels *k)
{
    const int64_t n = 2 * random_between(1, 70);
    nn_rope_pairs pairs = random32() & 1 ? NN_ROPE_HALVES : NN_ROPE_INTERLEAVED;
    float *cosine = guarded(n / 2, 1), *sine = guarded(n / 2, 1);
    float *got = guarded(n, 1), *want = guarded_copy(got, n);
    k->rope(got, cosine, sine, n, pairs);
    definition()->rope(want, cosine, sine, n, pairs);
    compare("rope", k, got, want, n, 1e-6);
    guarded_free(cosine, n / 2);
    guarded_free(sine, n / 2);
    guarded_free(got, n);
    guarded_free(want, n);
}

static void check_pointwise(const cpu_kernels *k)
{
    const int64_t n = random_between(1, 300);
    float *x = guarded(n, 80), *y = guarded(n, 2);
    float far = -1e30f;
    k->silu(&far, &far, 1);
    assert_true(fabsf(far) < 1e-30f);
    float *got = guarded_copy(x, n), *want = guarded_copy(x, n);
    k->silu(got, x, n);
    definition()->silu(want, x, n);
    compare("silu", k, got, want, n, 1e-6);
    memcpy(got, x, (size_t)n * sizeof(float));
    memcpy(want, x, (size_t)n * sizeof(float));
    k->swiglu(got, y, n);
    definition()->swiglu(want, y, n);
    compare("swiglu", k, got, want, n, 1e-6);
    k->add(got, y, n);
    definition()->add(want, y, n);
    compare("add", k, got, want, n, 1e-6);
    k->add_product(got, y, x, n);
    definition()->add_product(want, y, x, n);
    compare("add_product", k, got, want, n, 1e-6);
    for (int64_t i = 0; i < n; i++)
        got[i] = want[i] = x[i] / 16; /* far below 0 nothing is left of it */
    k->gelu(got, n);
    definition()->gelu(want, n);
    compare("gelu", k, got, want, n, 1e-6);
    k->scale(got, n, 0.3f);
    definition()->scale(want, n, 0.3f);
    compare("scale", k, got, want, n, 1e-6);
    guarded_free(x, n);
    guarded_free(y, n);
    guarded_free(got, n);
    guarded_free(want, n);
}

static void check_channels(const cpu_kernels *k)
{
    const int64_t pixels = random_between(1, 40), channels = random_between(1, 70);
    const int64_t n = pixels * channels;
    const bool silu = random32() & 1;
    const int64_t stride = channels + random_between(0, 5);
    float *x = guarded(n, 3), *factor = guarded(channels, 2), *offset = guarded(channels, 2);
    float *wide = guarded(pixels * stride, 3), *got = guarded(n, 1), *want = guarded_copy(got, n);
    double sums[2][2][70] = {{{0}}};
    k->channel_sums(sums[0][0], sums[0][1], x, pixels, channels);
    definition()->channel_sums(sums[1][0], sums[1][1], x, pixels, channels);
    for (int64_t c = 0; c < channels; c++)
        for (int i = 0; i < 2; i++)
            assert_true(fabs(sums[0][i][c] - sums[1][i][c]) <= 1e-12 * (1 + sums[1][1][c]));
    k->channel_affine(got, wide, stride, factor, offset, pixels, channels, silu);
    definition()->channel_affine(want, wide, stride, factor, offset, pixels, channels, silu);
    compare("channel_affine", k, got, want, n, 1e-6);
    guarded_free(wide, pixels * stride);
    guarded_free(x, n);
    guarded_free(factor, channels);
    guarded_free(offset, channels);
    guarded_free(got, n);
    guarded_free(want, n);
}

/* An identity of the definition itself, which all others are compared with: the transforms of a
 * tile and a kernel, multiplied, make the convolution. */
static void check_winograd_identity(const cpu_kernels *k)
{
    float w[9], in[36], u[36], v[36], y[16], zero = 0;
    for (int i = 0; i < 9; i++)
        w[i] = random_float(1);
    for (int i = 0; i < 36; i++)
        in[i] = random_float(1);
    const float *rows[6] = {in, in + 6, in + 12, in + 18, in + 24, in + 30};
    const int64_t columns[6] = {0, 1, 2, 3, 4, 5};
    k->winograd_weights(u, 1, w, 1);
    k->winograd_input(v, 1, rows, columns, 1);
    for (int p = 0; p < 36; p++)
        v[p] *= u[p];
    k->winograd_output(y, 4, 1, v, 1, &zero, 1, false);
    for (int p = 0; p < 16; p++) {
        double sum = 0;
        for (int t = 0; t < 9; t++)
            sum += (double)w[t] * (double)in[(p / 4 + t / 3) * 6 + p % 4 + t % 3];
        if (!(fabs(sum - (double)y[p]) < 1e-5))
            fail_msg("winograd of %s: %g instead of %g", k->name, (double)y[p], sum);
    }
}

static void check_winograd(const cpu_kernels *k)
{
    const int64_t n = random_between(1, 70), stride = n + random_between(0, 3);
    float *w = guarded(9 * n, 1), *bias = guarded(n, 1), *m = guarded(36 * stride, 1);
    float *got = guarded(36 * stride, 1), *want = guarded_copy(got, 36 * stride);
    k->winograd_weights(got, stride, w, n);
    definition()->winograd_weights(want, stride, w, n);
    compare("winograd_weights", k, got, want, 36 * stride, 1e-6);

    /* A doubled picture: rows and columns that are there once. */
    static const int doubled[6] = {0, 1, 1, 2, 2, 3};
    const bool up = random32() & 1;
    const int64_t side = up ? 4 : 6;
    float *in = guarded(side * side * n, 1);
    const float *rows[6];
    int64_t columns[6];
    for (int i = 0; i < 6; i++) {
        rows[i] = in + (up ? doubled[i] : i) * side * n;
        columns[i] = (up ? doubled[i] : i) * n;
    }
    k->winograd_input(got, stride, rows, columns, n);
    definition()->winograd_input(want, stride, rows, columns, n);
    compare("winograd_input", k, got, want, 36 * stride, 1e-6);

    const int64_t column = n + random_between(0, 3), row = 4 * column + random_between(0, 9);
    float *out = guarded(3 * row + 3 * column + n, 1);
    float *sum = guarded_copy(out, 3 * row + 3 * column + n);
    const bool accumulate = random32() & 1;
    k->winograd_output(out, row, column, m, stride, bias, n, accumulate);
    definition()->winograd_output(sum, row, column, m, stride, bias, n, accumulate);
    compare("winograd_output", k, out, sum, 3 * row + 3 * column + n, 1e-6);
    guarded_free(w, 9 * n);
    guarded_free(bias, n);
    guarded_free(m, 36 * stride);
    guarded_free(got, 36 * stride);
    guarded_free(want, 36 * stride);
    guarded_free(in, side * side * n);
    guarded_free(out, 3 * row + 3 * column + n);
    guarded_free(sum, 3 * row + 3 * column + n);
}

static void test_kernels(void **state)
{
    void (*check)(const cpu_kernels *) = *state;
    each_table(check);
}

/* Nothing that a table claims to have may be missing from the checks above. */
static void test_tables(void **state)
{
    (void)state;
    cpu_kernels best, k;
    ct_error error;
    assert_int_equal(cpu_kernels_choose(&best, NULL, &error), CT_OK);
    assert_true(cpu_kernels_usable(&best));
    for (int i = 0; cpu_kernels_tier(&k, i); i++) {
        assert_true(k.gemm[CPU_F32] && k.gemm[CPU_INT8]);
        ct_status status = cpu_kernels_choose(&best, k.name, &error);
        assert_int_equal(status, cpu_kernels_usable(&k) ? CT_OK : CT_EUNSUPPORTED);
    }
    assert_int_equal(cpu_kernels_choose(&best, "abacus", &error), CT_EINVAL);
    assert_non_null(strstr(error.message, "abacus"));
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        bench_kernels();
        return 0;
    }
    if (getenv("SEED"))
        seed = strtoull(getenv("SEED"), NULL, 10);
    else
        seed = (uint64_t)(clock_seconds() * 1e6);
    fprintf(stderr, "# SEED=%llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables),
        {"round_bf16", test_kernels, NULL, NULL, (void *)check_round_bf16},
        {"row_max", test_kernels, NULL, NULL, (void *)check_row_max},
        {"exp2_row", test_kernels, NULL, NULL, (void *)check_exp2_row},
        {"exp2_row_bf16", test_kernels, NULL, NULL, (void *)check_exp2_row_bf16},
        {"encode_bf16", test_kernels, NULL, NULL, (void *)check_encode_bf16},
        {"transpose", test_kernels, NULL, NULL, (void *)check_transpose},
        {"decode", test_kernels, NULL, NULL, (void *)check_decode},
        {"codes", test_kernels, NULL, NULL, (void *)check_codes},
        {"encode_integers", test_kernels, NULL, NULL, (void *)check_encode_integers},
        {"hadamard", test_kernels, NULL, NULL, (void *)check_hadamard},
        {"decode_sums", test_kernels, NULL, NULL, (void *)check_decode_sums},
        {"norms", test_kernels, NULL, NULL, (void *)check_norms},
        {"rope", test_kernels, NULL, NULL, (void *)check_rope},
        {"pointwise", test_kernels, NULL, NULL, (void *)check_pointwise},
        {"channels", test_kernels, NULL, NULL, (void *)check_channels},
        {"winograd", test_kernels, NULL, NULL, (void *)check_winograd},
        {"winograd_identity", test_kernels, NULL, NULL, (void *)check_winograd_identity},
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
