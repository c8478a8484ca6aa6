/* Random numbers and schedules against what torch and diffusers gave (tests/fixtures). */
#include "test_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "io/json.h"
#include "io/weights.h"
#include "sampling/flow_match.h"
#include "sampling/rng.h"

/* Names are "seed42.n17" or, for several draws from one generator, "seed42.n3.then16.then1"; the
 * numbers of all draws follow one another in the tensor. */
static void check_draws(const weight_view *v)
{
    torch_generator g;
    char *at;
    torch_seed(&g, strtoull(v->name + strlen("seed"), &at, 10));
    const float *truth = (const float *)v->data;
    int64_t all = (int64_t)(v->bytes / sizeof(float)), done = 0;
    float *ours = malloc(v->bytes);
    assert_non_null(ours);
    while (*at) {
        at += strcspn(at, "0123456789");
        int64_t n = strtoll(at, &at, 10);
        assert_true(n > 0 && done + n <= all);
        torch_randn(&g, ours + done, n, NULL);
        done += n;
    }
    assert_int_equal(done, all);
    /* torch's vectorised log, sin and cos differ from the C library's in the last digits. */
    for (int64_t i = 0; i < all; i++)
        if (!(fabsf(ours[i] - truth[i]) <= 4e-6f))
            fail_msg("%s: number %lld is %.8g, torch has %.8g", v->name, (long long)i,
                     (double)ours[i], (double)truth[i]);
    free(ours);
}

static void test_torch_randn(void **state)
{
    (void)state;
    weights *w = NULL;
    ct_error error;
    test_ok(weights_open_file(&w, &mem_default, test_fixture("rng.safetensors"), &error), &error);
    assert_true(weights_count(w) >= 50);
    for (size_t i = 0; i < weights_count(w); i++)
        check_draws(weights_at(w, i));
    weights_close(w);
}

static void test_randn_on_threads(void **state)
{
    (void)state;
    enum { COUNT = 100003 };
    float *alone = malloc(COUNT * sizeof *alone), *shared = malloc(COUNT * sizeof *shared);
    pool *threads = NULL;
    torch_generator a, b;
    assert_true(alone && shared && pool_create(&threads, &mem_default, 3, NULL) == CT_OK);
    torch_seed(&a, 7);
    torch_seed(&b, 7);
    torch_randn(&a, alone, COUNT, NULL);
    torch_randn(&b, shared, COUNT, threads);
    assert_memory_equal(alone, shared, COUNT * sizeof *alone);
    pool_free(threads);
    free(alone);
    free(shared);
}

static float number_at(const json_value *array, size_t i)
{
    double x = 0;
    assert_true(json_get_number(json_at(array, i), &x));
    return (float)x;
}

static void check_sigmas(const json_value *entry)
{
    double shift = 0;
    int64_t steps = 0;
    assert_true(json_get_number(json_get(json_get(entry, "scheduler"), "shift"), &shift));
    assert_true(json_get_integer(json_get(entry, "steps"), &steps));
    flow_match f = {.train_timesteps = 1000, .shift = shift};
    const json_value *truth = json_get(entry, "sigmas");
    float *sigmas = malloc(((size_t)steps + 1) * sizeof(float));
    assert_non_null(sigmas);
    assert_int_equal(json_size(truth), steps + 1);
    flow_match_sigmas(&f, (int)steps, 256, sigmas);
    for (int64_t i = 0; i <= steps; i++)
        if (sigmas[i] != number_at(truth, (size_t)i))
            fail_msg("shift %g, %lld steps: sigma %lld is %.9g, diffusers has %.9g", shift,
                     (long long)steps, (long long)i, (double)sigmas[i],
                     (double)number_at(truth, (size_t)i));
    free(sigmas);
}

static void test_sigmas(void **state)
{
    (void)state;
    json_value *root = NULL;
    ct_error error;
    test_ok(json_read(&root, &mem_default, test_fixture("sigmas.json"), 1 << 20, &error), &error);
    size_t checked = 0;
    for (size_t i = 0; i < json_size(root); i++) {
        bool dynamic = false;
        const json_value *scheduler = json_get(json_at(root, i), "scheduler");
        if (json_get_boolean(json_get(scheduler, "use_dynamic_shifting"), &dynamic) && dynamic)
            continue;
        check_sigmas(json_at(root, i));
        checked++;
    }
    assert_true(checked >= 20);
    json_free(root);
}

/* Ladders of the specification with dynamic shifting: Qwen-Image at 1024 x 1024, mu 0.693548,
 * terminal 0.02. */
static void test_dynamic_shift(void **state)
{
    (void)state;
    static const float truth[] = {1,        .916024f, .820046f, .709295f, .580075f,
                                  .427347f, .244054f, .020000f, 0};
    flow_match f = {.train_timesteps = 1000,
                    .dynamic = true,
                    .base_shift = 0.5,
                    .max_shift = 0.9,
                    .base_length = 256,
                    .max_length = 8192,
                    .shift_terminal = 0.02};
    float sigmas[9];
    flow_match_sigmas(&f, 8, 4096, sigmas);
    for (int i = 0; i < 9; i++)
        assert_true(fabsf(sigmas[i] - truth[i]) < 1e-6f);
}

static ct_status read_scheduler(const char *text, ct_error *error)
{
    test_folder folder;
    test_folder_create(&folder);
    test_write_file(test_path(&folder, "scheduler_config.json"), text, strlen(text));
    flow_match f;
    ct_status status = flow_match_read(&f, &mem_default, folder.path, error);
    test_folder_remove(&folder);
    return status;
}

static void test_scheduler_config(void **state)
{
    (void)state;
    ct_error e;
#define CLASS "{\"_class_name\": \"FlowMatchEulerDiscreteScheduler\""
    test_ok(read_scheduler(CLASS ", \"shift\": 3.0}", &e), &e);
    test_error(read_scheduler("{\"_class_name\": \"DDIMScheduler\"}", &e), CT_EUNSUPPORTED, &e,
               "DDIMScheduler");
    test_error(read_scheduler(CLASS ", \"use_karras_sigmas\": true}", &e), CT_EUNSUPPORTED, &e,
               "use_karras_sigmas");
    test_error(read_scheduler(CLASS ", \"shift\": \"3\"}", &e), CT_EFORMAT, &e, "shift");
    test_error(read_scheduler(CLASS ", \"shift\": -1}", &e), CT_EFORMAT, &e, "shift");
    test_error(read_scheduler("{", &e), CT_EFORMAT, &e, "scheduler_config.json");
    test_error(read_scheduler("{}", &e), CT_EFORMAT, &e, "_class_name");
#undef CLASS
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_torch_randn),      cmocka_unit_test(test_randn_on_threads),
        cmocka_unit_test(test_sigmas),           cmocka_unit_test(test_dynamic_shift),
        cmocka_unit_test(test_scheduler_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
