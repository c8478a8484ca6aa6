/* Operations on latents, and number by number, against their definitions, written out. */
#include "test_support.h"

#include <math.h>
#include <stdlib.h>

#include "core/mem.h"
#include "nn/cpu/kernels.h"
#include "nn/nn.h"

enum { CHANNELS = 3, HEIGHT = 6, WIDTH = 10, PATCH = 2, COUNT = CHANNELS * HEIGHT * WIDTH };
enum { TOKENS = COUNT / (CHANNELS * PATCH * PATCH), FEATURES = CHANNELS * PATCH * PATCH };

typedef struct arrays {
    float a[COUNT], b[COUNT], out[COUNT], tokens[COUNT];
} arrays;

static float number(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 8388608.0f - 1;
}

static arrays random_arrays(void)
{
    arrays r = {{0}, {0}, {0}, {0}};
    uint32_t state = 5;
    for (int i = 0; i < COUNT; i++) {
        r.a[i] = number(&state);
        r.b[i] = number(&state);
    }
    return r;
}

/* Calls body in a dry run and then for real. */
static void run(void (*body)(nn *c, arrays *r), arrays *r)
{
    ct_error error;
    pool *threads = NULL;
    cpu_kernels kernels;
    test_ok(pool_create(&threads, &mem_default, 2, &error), &error);
    test_ok(cpu_kernels_choose(&kernels, NULL, &error), &error);
    nn_params params = {
        .allocator = &mem_default, .threads = threads, .kernels = &kernels, .dry = true};
    for (int real = 0; real < 2; real++) {
        nn *c;
        params.dry = !real;
        test_ok(nn_create(&c, &params, &error), &error);
        body(c, r);
        test_ok(nn_status(c, &error), &error);
        params.arena_bytes = nn_peak(c);
        nn_free(c);
    }
    pool_free(threads);
}

/* Pixel (py, px) of token t in a channel. */
static int pixel(int token, int channel, int py, int px)
{
    const int across = WIDTH / PATCH;
    return (channel * HEIGHT + token / across * PATCH + py) * WIDTH + token % across * PATCH + px;
}

static void pack(nn *c, arrays *r)
{
    nn_tensor a = nn_new3(c, CHANNELS, HEIGHT, WIDTH), back = nn_new3(c, CHANNELS, HEIGHT, WIDTH);
    nn_tensor tokens = nn_new2(c, TOKENS, FEATURES);
    nn_upload(c, &a, r->a, COUNT);
    nn_pack(c, &tokens, &a, PATCH);
    nn_unpack(c, &back, &tokens, PATCH);
    nn_download(c, &tokens, r->tokens, COUNT);
    nn_download(c, &back, r->out, COUNT);
}

static void test_pack(void **state)
{
    (void)state;
    arrays r = random_arrays();
    run(pack, &r);
    for (int t = 0; t < TOKENS; t++)
        for (int ch = 0; ch < CHANNELS; ch++)
            for (int i = 0; i < PATCH * PATCH; i++)
                assert_true(r.tokens[t * FEATURES + ch * PATCH * PATCH + i] ==
                            r.a[pixel(t, ch, i / PATCH, i % PATCH)]);
    assert_memory_equal(r.out, r.a, sizeof r.a);
}

static void guide(nn *c, arrays *r)
{
    nn_tensor a = nn_new3(c, CHANNELS, HEIGHT, WIDTH), b = nn_new3(c, CHANNELS, HEIGHT, WIDTH);
    nn_upload(c, &a, r->a, COUNT);
    nn_upload(c, &b, r->b, COUNT);
    nn_guide_tokens(c, &a, &b, 2.5, PATCH);
    nn_download(c, &a, r->out, COUNT);
}

static void test_guide_tokens(void **state)
{
    (void)state;
    arrays r = random_arrays();
    /* A token whose guided estimate is nothing: it stays that, and is a number. */
    for (int k = 0; k < FEATURES; k++) {
        const int i = pixel(3, k / (PATCH * PATCH), k / PATCH % PATCH, k % PATCH);
        r.a[i] = r.b[i] = 0;
    }
    run(guide, &r);
    for (int t = 0; t < TOKENS; t++) {
        double before = 0, after = 0, error = 0, guided[FEATURES];
        for (int k = 0; k < FEATURES; k++) {
            const int i = pixel(t, k / (PATCH * PATCH), k / PATCH % PATCH, k % PATCH);
            guided[k] = (double)r.a[i] + 2.5 * ((double)r.a[i] - (double)r.b[i]);
            before += (double)r.a[i] * (double)r.a[i];
            after += guided[k] * guided[k];
        }
        const double factor = after > 0 ? sqrt(before / after) : 0;
        for (int k = 0; k < FEATURES; k++) {
            const int i = pixel(t, k / (PATCH * PATCH), k / PATCH % PATCH, k % PATCH);
            error += pow((double)r.out[i] - factor * guided[k], 2);
        }
        /* Three roundings of float32 for each number. */
        assert_true(sqrt(error) <= 1e-6 * sqrt(before));
    }
}

static void gelu(nn *c, arrays *r)
{
    nn_tensor a = nn_new3(c, CHANNELS, HEIGHT, WIDTH), b = nn_new3(c, CHANNELS, HEIGHT, WIDTH);
    nn_upload(c, &a, r->a, COUNT);
    nn_upload(c, &b, r->b, COUNT);
    nn_gelu(c, &a);
    nn_multiply(c, &a, &b);
    nn_download(c, &a, r->out, COUNT);
}

static void test_gelu(void **state)
{
    (void)state;
    arrays r = random_arrays();
    for (int i = 0; i < COUNT; i++)
        r.a[i] *= 4;
    run(gelu, &r);
    for (int i = 0; i < COUNT; i++) {
        const double x = (double)r.a[i], want = x / 2 * (1 + erf(x / sqrt(2))) * (double)r.b[i];
        /* Where erf is near -1, its rounding to float32 is what is left. */
        assert_true(fabs((double)r.out[i] - want) <= 3e-7 * fabs(x));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack),
        cmocka_unit_test(test_guide_tokens),
        cmocka_unit_test(test_gelu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
