/* Whole runs and every module against the reference (diffusers in float32): the recorded tensors in
 * tests/fixtures, made by tools/reference/make_fixtures.py.
 *
 * Bounds are relative L2. Float32 rounds each operation to 6e-8; a block is a chain of some ten
 * sums of a few hundred terms, whose rounding errors add like a random walk. The reference itself,
 * float32 against float64, departs by up to 1.1e-6 on these runs, and any part of it that was
 * disturbed (an epsilon, a pad token, a norm) moved some tensor by 1e-4 or more: 1e-5 lies between,
 * for modules and for whole runs. */
#include "recorded.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/threads.h"
#include "io/weights.h"
#include "models/vae_kl.h"
#include "models/vae_qwen.h"
#include "nn/cpu/kernels.h"

#define BOUND 1e-5

static const char *const runs[] = {"turbo/small",
                                   "turbo/wide",
                                   "base/guided",
                                   "base/normalized",
                                   "base/truncated_guidance",
                                   "base/truncated_prompt",
                                   "head128/tall",
                                   "klein/small",
                                   "klein/wide",
                                   "klein/truncated_prompt",
                                   "klein/one_reference",
                                   "klein/three_references",
                                   "klein_base/guided_reference",
                                   "klein_kv/two_references",
                                   "klein_kv/no_reference",
                                   "klein_base/guided",
                                   "klein_base/unguided",
                                   "qwen/guided",
                                   "qwen/wide",
                                   "qwen/long_negative",
                                   "qwen/truncated_prompt",
                                   "qwen_bf16/guided",
                                   "qwen_bf16/unguided",
                                   "qwen_edit/guided",
                                   "qwen_plus/two_references",
                                   "qwen_2509/two_references"};
enum { RUNS = sizeof runs / sizeof *runs };

static ct_context *cpu_context(const char *cpu, int threads)
{
    ct_context_params cp;
    ct_context_params_init(&cp);
    cp.device = "cpu";
    cp.cpu = cpu;
    cp.threads = threads;
    cp.cache_memory = 0; /* every job computes everything */
    ct_context *context = NULL;
    ct_error error;
    test_ok(ct_context_create(&cp, &context, &error), &error);
    return context;
}

static ct_image *generate(const char *run, const ct_generate_params *params, int threads)
{
    ct_context *context = cpu_context(NULL, threads);
    ct_model *model = recorded_model(context, run);
    ct_image *image = NULL;
    ct_error error;
    test_ok(recorded_generate(model, run, params, &image, &error), &error);
    ct_model_free(&model);
    ct_context_free(&context);
    return image;
}

static void compare_run(const char *run, const char *cpu)
{
    ct_context *context = cpu_context(cpu, 2);
    ct_model *model = recorded_model(context, run);
    weights *truth = recorded_open(run);
    const ct_generate_params p = recorded_params(truth);
    const recorded_errors e = recorded_compare(model, run, &p);
    if (!(e.modules <= BOUND))
        fail_msg("%s, %s: relative L2 %.2e", run, e.module, e.modules);
    if (!(e.outputs <= BOUND))
        fail_msg("%s, %s: relative L2 %.2e", run, e.output, e.outputs);
    if (e.pixels > 1)
        fail_msg("%s: a byte of the picture differs by %d", run, e.pixels);
    assert_true(e.compared >= 2);
    weights_close(truth);
    ct_model_free(&model);
    ct_context_free(&context);
}

static void test_runs(void **state)
{
    (void)state;
    for (int i = 0; i < RUNS; i++)
        compare_run(runs[i], NULL);
}

/* The definition and every instruction set that this processor has. */
static void test_every_kernel_set(void **state)
{
    (void)state;
    cpu_kernels tier;
    for (int i = 0; cpu_kernels_tier(&tier, i); i++)
        if (cpu_kernels_usable(&tier)) {
            compare_run("turbo/small", tier.name);
            compare_run("base/normalized", tier.name);
            compare_run("klein/small", tier.name);
            compare_run("klein/one_reference", tier.name);
            compare_run("qwen/guided", tier.name);
        }
}

static void check_threads(const char *run)
{
    weights *truth = recorded_open(run);
    ct_generate_params p = recorded_params(truth);
    test_folder folder;
    test_folder_create(&folder);
    unsigned char *first = NULL;
    size_t first_size = 0;
    static const int threads[] = {1, 2, 3, 7};
    for (int i = 0; i < 4; i++) {
        p.trace_path = test_path(&folder, "trace.safetensors");
        p.trace_modules = true;
        ct_image *image = generate(run, &p, threads[i]);
        size_t size;
        unsigned char *bytes = test_read_file(p.trace_path, &size);
        if (first) {
            assert_int_equal(size, first_size);
            assert_memory_equal(bytes, first, size);
            free(bytes);
        } else {
            first = bytes;
            first_size = size;
        }
        ct_image_free(&image);
    }
    free(first);
    weights_close(truth);
    test_folder_remove(&folder);
}

static void test_threads_change_nothing(void **state)
{
    (void)state;
    check_threads("turbo/wide");
    check_threads("klein/wide");
    check_threads("klein/three_references");
    check_threads("qwen/guided");
    check_threads("klein_kv/two_references");
    check_threads("qwen_2509/two_references");
}

/* Our bf16 mode rounds less than the reference's (sums stay in float32), so its error against
 * float32 must be at most 1.2 times that of the reference's own bf16 run. */
static void check_bf16_bound(const char *run)
{
    char name[128];
    snprintf(name, sizeof name, "%s_bf16", run);
    weights *truth = recorded_open(run), *rounded = recorded_open(name), *ours = NULL;
    test_folder folder;
    test_folder_create(&folder);
    ct_generate_params p = recorded_params(truth);
    p.precision = CT_PRECISION_BF16;
    p.trace_path = test_path(&folder, "trace.safetensors");
    ct_image *image = generate(run, &p, 2);
    ct_error error;
    test_ok(weights_open_file(&ours, &mem_default, p.trace_path, &error), &error);
    static const char *const names[][2] = {{"latents", "bf16.latents"}, {"image", "bf16.image"}};
    for (int i = 0; i < 2; i++) {
        const weight_view *exact = weights_find(truth, names[i][0]);
        const weight_view *theirs = weights_find(rounded, names[i][1]);
        const weight_view *mine = weights_find(ours, names[i][0]);
        size_t n = exact->bytes / 4;
        double their_error =
            recorded_difference((const float *)theirs->data, (const float *)exact->data, n);
        double my_error =
            recorded_difference((const float *)mine->data, (const float *)exact->data, n);
        if (!(my_error > 0 && my_error <= 1.2 * their_error))
            fail_msg("%s: error %.3e, the reference in bf16 has %.3e", names[i][0], my_error,
                     their_error);
    }
    ct_image_free(&image);
    weights_close(ours);
    weights_close(rounded);
    weights_close(truth);
    test_folder_remove(&folder);
}

static void test_bf16_bound(void **state)
{
    (void)state;
    check_bf16_bound("turbo/wide");
    check_bf16_bound("klein/wide");
    check_bf16_bound("qwen/wide");
}

/* ---- The encoder ----------------------------------------------------------------------------- */

typedef struct encode_check {
    const weights *truth;
    int compared;
} encode_check;

static void compare_stage(void *user, const char *name, const nn_tensor *value)
{
    encode_check *check = user;
    const weight_view *v = weights_find(check->truth, name);
    if (!v)
        return;
    const float *truth = (const float *)v->data;
    int64_t pixels = value->n[0] * value->n[1], channels = value->n[2];
    double error = 0, norm = 0;
    assert_int_equal(v->bytes / 4, pixels * channels);
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < channels; c++) {
            double t = (double)truth[c * pixels + i];
            double d = (double)value->data[i * channels + c] - t;
            error += d * d;
            norm += t * t;
        }
    if (!(sqrt(error / norm) <= BOUND))
        fail_msg("%s: relative L2 %.2e", name, sqrt(error / norm));
    check->compared++;
}

static bool always(void *user)
{
    (void)user;
    return true;
}

/* Of either kind. */
typedef struct any_vae {
    vae_kl *kl;
    vae_qwen *qwen;
} any_vae;

static any_vae load_vae(const char *model)
{
    char name[128];
    ct_error error;
    any_vae vae = {0};
    snprintf(name, sizeof name, "%s/model/vae", model);
    const load_options options = {.allocator = &mem_default};
    if (!strncmp(model, "qwen", 4))
        test_ok(vae_qwen_load(&vae.qwen, &options, test_fixture(name), &error), &error);
    else
        test_ok(vae_kl_load(&vae.kl, &options, test_fixture(name), &error), &error);
    return vae;
}

static void encode_run(const char *model)
{
    char name[128];
    ct_error error;
    any_vae vae = load_vae(model);
    pool *threads = NULL;
    test_ok(pool_create(&threads, &mem_default, 2, &error), &error);
    snprintf(name, sizeof name, "%s/encode", model);
    weights *truth = recorded_open(name);
    const weight_view *input = weights_find(truth, "vae.encode.input");
    const weight_view *moments = weights_find(truth, "vae.encode.moments");
    const float *picture = (const float *)input->data;
    float *out = malloc(moments->bytes);
    assert_non_null(out);

    encode_check check = {truth, 0};
    nn_trace trace = {&check, always, compare_stage};
    nn_params params = {.allocator = &mem_default, .threads = threads, .dry = true};
    cpu_kernels kernels;
    test_ok(cpu_kernels_choose(&kernels, NULL, &error), &error);
    params.kernels = &kernels;
    for (int dry = 1; dry >= 0; dry--) {
        nn *c = NULL;
        params.dry = dry;
        params.trace = &trace;
        test_ok(nn_create(&c, &params, &error), &error);
        if (vae.qwen)
            vae_qwen_encode(c, vae.qwen, picture, input->shape[1], input->shape[2], out);
        else
            vae_kl_encode(c, vae.kl, picture, input->shape[1], input->shape[2], out);
        test_ok(nn_status(c, &error), &error);
        params.arena_bytes = nn_peak(c);
        nn_free(c);
    }
    double d = recorded_difference(out, (const float *)moments->data, moments->bytes / 4);
    if (!(d <= BOUND))
        fail_msg("%s: moments, relative L2 %.2e", model, d);
    assert_true(check.compared >= 4);
    free(out);
    weights_close(truth);
    pool_free(threads);
    vae_kl_free(vae.kl);
    vae_qwen_free(vae.qwen);
}

static void test_encoder(void **state)
{
    (void)state;
    encode_run("turbo");
    encode_run("head128");
    encode_run("qwen");
    encode_run("qwen_bf16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_every_kernel_set),
        cmocka_unit_test(test_threads_change_nothing),
        cmocka_unit_test(test_bf16_bound),
        cmocka_unit_test(test_encoder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
