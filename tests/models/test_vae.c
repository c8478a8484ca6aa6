/* The VAE's decoder in strips against the whole, bit for bit, on small models with random weights;
 * and what it says about its memory and progress. */
#include "test_support.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "models/vae_kl.h"
#include "models/vae_qwen.h"
#include "nn/cpu/kernels.h"

/* 8, 8, 8, 12 channels; 4, 8, 8, 12, with three resnets; 6, 12, 6, 12, where blocks also grow, with
 * post_quant_conv. Packed latents; three levels and a small decoder. Qwen-Image's. */
static const char *const folders[] = {
    "turbo/model/vae",      "base/model/vae", "head128/model/vae",  "klein/model/vae",
    "klein_base/model/vae", "qwen/model/vae", "qwen_bf16/model/vae"};
enum { FOLDERS = sizeof folders / sizeof *folders };

typedef struct fixture {
    vae_kl *kl; /* one of the two */
    vae_qwen *qwen;
    pool *threads;
    cpu_kernels kernels;
    nn_params params;
    int units; /* reported */
} fixture;

static fixture *fixture_new(const char *folder, int threads)
{
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    ct_error error;
    const load_options options = {.allocator = &mem_default};
    if (!strncmp(folder, "qwen", 4))
        test_ok(vae_qwen_load(&f->qwen, &options, test_fixture(folder), &error), &error);
    else
        test_ok(vae_kl_load(&f->kl, &options, test_fixture(folder), &error), &error);
    test_ok(pool_create(&f->threads, &mem_default, threads, &error), &error);
    test_ok(cpu_kernels_choose(&f->kernels, NULL, &error), &error);
    f->params = (nn_params){.allocator = &mem_default,
                            .threads = f->threads,
                            .kernels = &f->kernels,
                            .precision = NN_BF16}; /* which the VAE must not heed */
    return f;
}

static void fixture_free(fixture *f)
{
    vae_kl_free(f->kl);
    vae_qwen_free(f->qwen);
    pool_free(f->threads);
    free(f);
}

static int64_t factor_of(const fixture *f)
{
    return f->qwen ? vae_qwen_factor(f->qwen) : vae_kl_factor(f->kl);
}

static int64_t channels_of(const fixture *f)
{
    return f->qwen ? f->qwen->latent_channels : vae_kl_channels(f->kl);
}

static int units_of(const fixture *f, const vae_decoding *d)
{
    return f->qwen ? vae_qwen_decode_units(f->qwen) : vae_kl_decode_units(f->kl, d);
}

static size_t peak_of(const fixture *f, const vae_decoding *d)
{
    size_t bytes = 0;
    ct_error error;
    test_ok(f->qwen ? vae_qwen_decode_peak(f->qwen, d, &f->params, &bytes, &error)
                    : vae_kl_decode_peak(f->kl, d, &f->params, &bytes, &error),
            &error);
    return bytes;
}

static void decode_with(nn *c, const fixture *f, const vae_decoding *d)
{
    if (f->qwen)
        vae_qwen_decode(c, f->qwen, d);
    else
        vae_kl_decode(c, f->kl, d);
}

static void count_unit(void *user, int unit)
{
    fixture *f = user;
    assert_int_equal(unit, f->units++);
}

/* The picture; freed by the caller. */
static float *decode(fixture *f, vae_decoding d)
{
    const size_t pixels = (size_t)(d.height * d.width * factor_of(f) * factor_of(f));
    ct_error error;
    nn_params params = f->params;
    params.arena_bytes = peak_of(f, &d);
    nn *c;
    test_ok(nn_create(&c, &params, &error), &error);
    d.picture = malloc(3 * pixels * sizeof(float));
    d.scratch = malloc((size_t)(channels_of(f) * d.height * d.width) * sizeof(float));
    assert_non_null(d.picture);
    assert_non_null(d.scratch);
    d.unit_done = count_unit;
    d.user = f;
    f->units = 0;
    decode_with(c, f, &d);
    test_ok(nn_status(c, &error), &error);
    assert_int_equal(nn_peak(c), params.arena_bytes);
    assert_int_equal(f->units, units_of(f, &d));
    nn_free(c);
    free(d.scratch);
    return d.picture;
}

static float *random_latents(const fixture *f, int64_t height, int64_t width)
{
    static uint32_t state = 7;
    float *latents = malloc((size_t)(channels_of(f) * height * width) * sizeof(float));
    assert_non_null(latents);
    for (int64_t i = 0; i < channels_of(f) * height * width; i++) {
        state = state * 1664525u + 1013904223u;
        latents[i] = (float)(state >> 8) / 8388608.0f - 1;
    }
    return latents;
}

static void test_strips(void **state)
{
    (void)state;
    static const int64_t sizes[][2] = {{1, 1}, {2, 5}, {7, 3}, {13, 4}};
    for (int i = 0; i < FOLDERS; i++) {
        fixture *f = fixture_new(folders[i], 3), *alone = fixture_new(folders[i], 1);
        for (int j = 0; j < 4; j++) {
            vae_decoding d = {.height = sizes[j][0], .width = sizes[j][1]};
            float *latents = random_latents(f, d.height, d.width);
            const int64_t pixels = d.height * d.width * factor_of(f) * factor_of(f);
            d.latents = latents;
            float *whole = decode(alone, d);
            for (int rows = 1; rows <= (int)d.height + 1; rows += 1 + rows / 3) {
                d.strip_rows = rows;
                float *strips = decode(f, d);
                if (memcmp(whole, strips, (size_t)(3 * pixels) * sizeof(float)) != 0)
                    fail_msg("%s, %lld x %lld latents: strips of %d differ from the whole",
                             folders[i], (long long)d.height, (long long)d.width, rows);
                free(strips);
            }
            free(whole);
            free(latents);
        }
        fixture_free(f);
        fixture_free(alone);
    }
}

/* Dry runs at a size that matters: smaller strips take less. */
static void test_memory(void **state)
{
    (void)state;
    for (int i = 0; i < FOLDERS; i++) {
        fixture *f = fixture_new(folders[i], 2);
        static const int rows[] = {0, 32, 8};
        size_t last = SIZE_MAX;
        for (int j = 0; j < 3; j++) {
            vae_decoding d = {.height = 256, .width = 256, .strip_rows = rows[j]};
            const size_t bytes = peak_of(f, &d);
            /* Of the small decoder, what no band changes is the most. */
            assert_true(j < 2 ? bytes < last : bytes <= last);
            last = bytes;
        }
        fixture_free(f);
    }
}

/* After the first band of the last block; the decoder stops within an operation. */
static bool cancelled(void *user)
{
    return ((fixture *)user)->units >= 6;
}

static void test_cancel(void **state)
{
    (void)state;
    fixture *f = fixture_new(folders[0], 2);
    f->params.cancel = cancelled;
    f->params.cancel_user = f;
    vae_decoding d = {.height = 4, .width = 4, .strip_rows = 1};
    float *latents = random_latents(f, 4, 4);
    float picture[3 * 32 * 32];
    d.latents = latents;
    d.picture = picture;
    d.unit_done = count_unit;
    d.user = f;
    ct_error error;
    f->params.arena_bytes = peak_of(f, &d);
    nn *c;
    test_ok(nn_create(&c, &f->params, &error), &error);
    decode_with(c, f, &d);
    assert_int_equal(nn_status(c, &error), CT_ECANCELLED);
    assert_int_equal(f->units, 6);
    assert_true(units_of(f, &d) > 6);
    nn_free(c);
    free(latents);
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strips),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_cancel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
