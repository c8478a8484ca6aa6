/* Whole tiny models on a GPU against the recorded runs of the reference, beside those of the CPU in
 * tests/models/test_reference.c. Prints a line for each run and goes on after a failure. Skipped
 * where there is no GPU that can be used; `test_models cpu` runs the same on the CPU.
 *
 * Bounds, relative L2:
 *
 *   fp32   1e-5 for modules and 1e-4 for what steps estimate, latents and picture. Products are in
 *          true float32, but sums are split and ordered as cuBLASLt likes, so that the errors of
 *          the CPU (1e-6) may grow a little; whatever is wrong moves some tensor by 1e-4.
 *   bf16   1.2 times the error of the reference's own run in bf16, where that is recorded. Both
 *          round the same operands to 2^-9.
 *   fp16   has three bits more than bf16, and so an eighth of the error; half of what bf16 may have
 *          is allowed, because the reference's error is one sample of what rounding does.
 *   8 bits see test_eight_bits. */
#define _XOPEN_SOURCE 700 /* mkdtemp */
#include "recorded.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

#define FLOAT_MODULES 1e-5
#define FLOAT_RUNS 1e-4
#define HALF_FACTOR 1.2

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
                                   "klein_base/guided",
                                   "klein_base/unguided",
                                   "qwen/guided",
                                   "qwen/wide",
                                   "qwen/long_negative",
                                   "qwen_bf16/guided",
                                   "qwen_edit/guided",
                                   "qwen_plus/two_references",
                                   "qwen_2509/two_references"};
enum { RUNS = sizeof runs / sizeof *runs };

static ct_context *context;
static int failures;

/* The outcome of one case. */
static void report(bool good, const char *run, const char *how, const char *format, ...)
    CORE_PRINTF(4, 5);
static void report(bool good, const char *run, const char *how, const char *format, ...)
{
    va_list args;
    printf("%s %-28s %-16s ", good ? "ok    " : "FAILED", run, how);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
    failures += !good;
}

static void none_failed(void)
{
    const int failed = failures;
    failures = 0;
    assert_int_equal(failed, 0);
}

/* ---- float32 --------------------------------------------------------------------------------- */

static void test_float32(void **state)
{
    (void)state;
    for (int i = 0; i < RUNS; i++) {
        ct_model *model = recorded_model(context, runs[i]);
        weights *truth = recorded_open(runs[i]);
        ct_generate_params p = recorded_params(truth);
        /* What is not guided is the same in both. */
        for (int way = CT_CFG_BATCH_ON; way <= (p.guidance > 1 ? CT_CFG_BATCH_OFF : 1); way++) {
            p.cfg_batch = (ct_cfg_batch)way;
            const recorded_errors e = recorded_compare(model, runs[i], &p);
            const bool good = e.modules <= FLOAT_MODULES && e.outputs <= FLOAT_RUNS &&
                              e.pixels <= 1 && e.compared >= 4;
            report(good, runs[i], way == CT_CFG_BATCH_ON ? "fp32" : "fp32, two passes",
                   "modules %.1e (%s), run %.1e (%s), bytes %d, %d tensors", e.modules, e.module,
                   e.outputs, e.output, e.pixels, e.compared);
        }
        weights_close(truth);
        ct_model_free(&model);
    }
    none_failed();
}

/* ---- Fewer bits ------------------------------------------------------------------------------ */

/* Latents and picture of a run that is made now, from its trace. */
typedef struct result {
    float *values[2];
    size_t count[2];
} result;

static const char *const traced[] = {"latents", "image"};

static void free_result(result *r)
{
    for (int i = 0; i < 2; i++)
        free(r->values[i]);
}

/* False, with a line printed, where the job fails. */
static bool make(ct_model *model, const char *run, ct_precision precision, result *out)
{
    test_folder folder;
    test_folder_create(&folder);
    weights *truth = recorded_open(run), *ours = NULL;
    ct_generate_params p = recorded_params(truth);
    p.precision = precision;
    p.trace_path = test_path(&folder, "trace.safetensors");
    ct_image *image = NULL;
    ct_error error;
    *out = (result){0};
    const bool made = recorded_generate(model, run, &p, &image, &error) == CT_OK;
    if (!made) {
        report(false, run, ct_precision_name(precision), "%s", error.message);
    } else {
        test_ok(weights_open_file(&ours, &mem_default, p.trace_path, &error), &error);
        for (int i = 0; i < 2; i++) {
            const weight_view *v = weights_find(ours, traced[i]);
            out->count[i] = v->bytes / 4;
            out->values[i] = malloc(v->bytes);
            assert_non_null(out->values[i]);
            memcpy(out->values[i], v->data, v->bytes);
        }
        weights_close(ours);
    }
    ct_image_free(&image);
    weights_close(truth);
    test_folder_remove(&folder);
    return made;
}

/* Errors of the reference's own run in bf16, RUN_bf16, against its run in float32. */
static void their_errors(const char *run, double errors[2])
{
    char name[128];
    snprintf(name, sizeof name, "%s_bf16", run);
    weights *truth = recorded_open(run), *rounded = recorded_open(name);
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "bf16.%s", traced[i]);
        const weight_view *exact = weights_find(truth, traced[i]);
        const weight_view *theirs = weights_find(rounded, name);
        errors[i] = recorded_difference((const float *)theirs->data, (const float *)exact->data,
                                        exact->bytes / 4);
    }
    weights_close(truth);
    weights_close(rounded);
}

static void against_record(ct_model *model, const char *run, ct_precision precision,
                           const double bounds[2])
{
    result ours;
    if (!make(model, run, precision, &ours))
        return;
    weights *truth = recorded_open(run);
    for (int i = 0; i < 2; i++) {
        const weight_view *exact = weights_find(truth, traced[i]);
        assert_int_equal(exact->bytes, ours.count[i] * 4);
        const double d =
            recorded_difference(ours.values[i], (const float *)exact->data, ours.count[i]);
        report(d > 0 && d <= bounds[i], run, ct_precision_name(precision), "%s %.2e of %.2e",
               traced[i], d, bounds[i]);
    }
    weights_close(truth);
    free_result(&ours);
}

static const char *const rounded_runs[] = {"turbo/wide", "klein/wide", "qwen/wide"};

static void test_halves(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        ct_model *model = recorded_model(context, rounded_runs[i]);
        double bounds[2];
        their_errors(rounded_runs[i], bounds);
        for (int k = 0; k < 2; k++)
            bounds[k] *= HALF_FACTOR;
        against_record(model, rounded_runs[i], CT_PRECISION_BF16, bounds);
        for (int k = 0; k < 2; k++)
            bounds[k] /= 2;
        if (ct_context_gpu(context)) /* a CPU has no fp16 */
            against_record(model, rounded_runs[i], CT_PRECISION_FP16, bounds);
        ct_model_free(&model);
    }
    none_failed();
}

/* A number of e4m3 is off by 2^-4 at most and by 2.6 % in the root of the mean square; one of int8,
 * with rows whose largest number is 4 times their root mean square, by 0.9 %. A product of two such
 * operands is off by 1.4 times that, 3.7 and 1.3 %, and a network of tiny layers by about as much:
 * what residuals keep exact makes up for what products add. The bounds are three times that, far
 * below the 100 % of a product that went wrong. */
static void test_eight_bits(void **state)
{
    (void)state;
    static const struct {
        ct_precision precision;
        double bounds[2];
    } kinds[] = {{CT_PRECISION_INT8, {0.04, 0.04}}, {CT_PRECISION_FP8, {0.11, 0.11}}};
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 2; k++) {
            ct_model *model = recorded_model(context, rounded_runs[i]);
            if (kinds[k].precision == CT_PRECISION_FP8 && !ct_context_gpu(context))
                printf("skipped %s: fp8 needs a GPU\n", rounded_runs[i]);
            else
                against_record(model, rounded_runs[i], kinds[k].precision, kinds[k].bounds);
            ct_model_free(&model);
        }
    none_failed();
}

/* ---- Packed weights -------------------------------------------------------------------------- */

static void remove_tree(const char *path)
{
    char command[1024];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    assert_int_equal(system(command), 0);
}

/* A model quantized in MLX groups is unpacked on the GPU: the same numbers as on the CPU, in
 * float32 to rounding, in bf16 with the errors that bf16 has (twice those of the reference on the
 * original weights, which are other weights). */
static void check_packed(ct_context *cpu, const char *run, int bits)
{
    char folder[] = "/tmp/calotype_models_XXXXXX", output[64], path[128], how[32];
    assert_non_null(mkdtemp(folder));
    snprintf(output, sizeof output, "%s/packed", folder);
    snprintf(path, sizeof path, "%.*s/model", (int)strcspn(run, "/"), run);
    snprintf(how, sizeof how, "%d bits, ", bits);
    ct_quantize_params q;
    ct_error error;
    ct_quantize_params_init(&q);
    q.output = output;
    q.bits = bits;
    q.group_size = 32;
    test_ok(ct_quantize(cpu, test_fixture(path), &q, NULL, &error), &error);

    ct_model *here = NULL, *there = NULL;
    test_ok(ct_model_load(cpu, output, &here, &error), &error);
    test_ok(ct_model_load(context, output, &there, &error), &error);
    result truth, ours;
    double theirs[2];
    their_errors(run, theirs);
    assert_true(make(here, run, CT_PRECISION_FP32, &truth));
    for (int b = 0; b < 2; b++) {
        const ct_precision precision = b ? CT_PRECISION_BF16 : CT_PRECISION_FP32;
        if (!make(there, run, precision, &ours))
            continue;
        snprintf(how, sizeof how, "%d bits, %s", bits, ct_precision_name(precision));
        for (int i = 0; i < 2; i++) {
            const double d = recorded_difference(ours.values[i], truth.values[i], ours.count[i]);
            const double bound = b ? 2 * theirs[i] : FLOAT_RUNS;
            report(d <= bound, run, how, "%s %.2e of %.2e", traced[i], d, bound);
        }
        free_result(&ours);
    }
    free_result(&truth);
    ct_model_free(&here);
    ct_model_free(&there);
    remove_tree(folder);
}

static void test_packed(void **state)
{
    (void)state;
    ct_context *cpu = NULL;
    ct_context_params params;
    ct_error error;
    ct_context_params_init(&params);
    params.device = "cpu";
    params.cache_memory = 0;
    test_ok(ct_context_create(&params, &cpu, &error), &error);
    for (int i = 0; i < 2; i++) {
        check_packed(cpu, rounded_runs[i], 8);
        check_packed(cpu, rounded_runs[i], 4);
    }
    ct_context_free(&cpu);
    none_failed();
}

/* ---- Again, and at once ---------------------------------------------------------------------- */

typedef struct task {
    ct_model *model;
    const char *run;
    ct_precision precision;
    result made; /* latents of the last step, and bytes of the picture */
    bool good;
} task;

static void keep_latents(void *user, const ct_progress *progress)
{
    task *t = user;
    if (!progress->preview)
        return;
    const ct_latents *l = progress->preview;
    const size_t count = (size_t)l->channels * (size_t)l->height * (size_t)l->width;
    t->made.values[0] = realloc(t->made.values[0], count * sizeof(float));
    t->made.count[0] = t->made.values[0] ? count : 0;
    if (t->made.values[0])
        memcpy(t->made.values[0], l->data, count * sizeof(float));
}

/* Without a trace, so that steps are recorded and played back. On any thread, where a test cannot
 * fail: what went wrong is for the others to find. */
static void *perform(void *user)
{
    task *t = user;
    const ct_callbacks callbacks = {.user = t, .progress = keep_latents};
    weights *truth = recorded_open(t->run);
    ct_generate_params p = recorded_params(truth);
    p.precision = t->precision;
    p.callbacks = &callbacks;
    ct_image *image = NULL;
    ct_error error = {0};
    t->good = recorded_generate(t->model, t->run, &p, &image, &error) == CT_OK;
    if (t->good) {
        const size_t count = 3 * (size_t)ct_image_width(image) * (size_t)ct_image_height(image);
        t->made.values[1] = malloc(count * sizeof(float));
        t->made.count[1] = t->made.values[1] ? count : 0;
        for (size_t i = 0; i < t->made.count[1]; i++)
            t->made.values[1][i] = ct_image_pixels(image)[i];
    } else {
        printf("%s: %s\n", t->run, error.message);
    }
    ct_image_free(&image);
    weights_close(truth);
    return NULL;
}

static bool equal(const result *a, const result *b)
{
    for (int i = 0; i < 2; i++)
        if (a->count[i] == 0 || a->count[i] != b->count[i] ||
            memcmp(a->values[i], b->values[i], a->count[i] * sizeof(float)) != 0)
            return false;
    return true;
}

/* Two jobs one after the other, each twice, then both at once: the same bits every time. */
static void check_again(const char *first, const char *second, ct_precision precision)
{
    ct_model *a = recorded_model(context, first);
    const bool shared = !strncmp(first, second, strcspn(first, "/") + 1);
    ct_model *b = shared ? a : recorded_model(context, second);
    task alone[4], together[2];
    for (int i = 0; i < 4; i++) {
        alone[i] = (task){i % 2 ? b : a, i % 2 ? second : first, precision, {{0}, {0}}, false};
        perform(&alone[i]);
    }
    pthread_t thread[2];
    for (int i = 0; i < 2; i++) {
        together[i] = (task){alone[i].model, alone[i].run, precision, {{0}, {0}}, false};
        assert_int_equal(pthread_create(&thread[i], NULL, perform, &together[i]), 0);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i < 2; i++) {
        result with_trace = {0};
        const bool traced_too = make(alone[i].model, alone[i].run, precision, &with_trace);
        report(traced_too && alone[i].made.count[0] == with_trace.count[0] &&
                   !memcmp(alone[i].made.values[0], with_trace.values[0],
                           with_trace.count[0] * sizeof(float)),
               alone[i].run, ct_precision_name(precision), "without recordings");
        free_result(&with_trace);
        const bool made = alone[i].good && alone[i + 2].good && together[i].good;
        const char *how = ct_precision_name(precision);
        report(made && equal(&alone[i].made, &alone[i + 2].made), alone[i].run, how, "again");
        report(made && equal(&alone[i].made, &together[i].made), alone[i].run, how, "beside %s",
               alone[1 - i].run);
    }
    for (int i = 0; i < 4; i++)
        free_result(&alone[i].made);
    for (int i = 0; i < 2; i++)
        free_result(&together[i].made);
    if (!shared)
        ct_model_free(&b);
    ct_model_free(&a);
}

static void test_again(void **state)
{
    (void)state;
    check_again("turbo/wide", "turbo/small", CT_PRECISION_BF16);
    check_again("turbo/wide", "klein/wide", CT_PRECISION_BF16);
    check_again("base/normalized", "klein/one_reference", CT_PRECISION_FP32);
    check_again("turbo/wide", "klein/wide", CT_PRECISION_INT8);
    none_failed();
}

/* ---- The decoder played back ----------------------------------------------------------------- */

enum { SEEDS = 4 }; /* run, recorded, played back twice */

/* Pictures of a model, the sides changed over in turned ones. A trace lets nothing be recorded. */
static void make_pictures(ct_model *model, ct_generate_params p, bool turned, const char *trace,
                          ct_image *out[SEEDS])
{
    const int width = p.width, height = p.height;
    ct_error error;
    p.width = turned ? height : width;
    p.height = turned ? width : height;
    p.trace_path = trace;
    for (int i = 0; i < SEEDS; i++) {
        p.seed = (uint64_t)i;
        test_ok(ct_generate(model, &p, &out[i], &error), &error);
    }
}

static void check_decoder(const char *run, ct_precision precision)
{
    test_folder folder;
    test_folder_create(&folder);
    ct_model *model = recorded_model(context, run);
    weights *truth = recorded_open(run);
    ct_generate_params p = recorded_params(truth);
    ct_image *played[3][SEEDS], *plain[2][SEEDS];
    p.precision = precision;
    for (int i = 0; i < 3; i++) /* another size in between */
        make_pictures(model, p, i == 1, NULL, played[i]);
    for (int i = 0; i < 2; i++)
        make_pictures(model, p, i == 1, test_path(&folder, "trace.safetensors"), plain[i]);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < SEEDS; k++) {
            const ct_image *ours = played[i][k], *want = plain[i == 1][k];
            const size_t bytes = 3 * (size_t)ct_image_width(want) * (size_t)ct_image_height(want);
            report(!memcmp(ct_image_pixels(ours), ct_image_pixels(want), bytes) &&
                       (k == 0 ||
                        memcmp(ct_image_pixels(ours), ct_image_pixels(played[i][0]), bytes) != 0),
                   run, ct_precision_name(precision), "recordings, %d x %d, picture %d",
                   ct_image_width(want), ct_image_height(want), k + 1);
        }
    for (int k = 0; k < SEEDS; k++) {
        for (int i = 0; i < 3; i++)
            ct_image_free(&played[i][k]);
        for (int i = 0; i < 2; i++)
            ct_image_free(&plain[i][k]);
    }
    weights_close(truth);
    ct_model_free(&model);
    test_folder_remove(&folder);
}

static void test_decoder(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        check_decoder(rounded_runs[i], CT_PRECISION_BF16);
        check_decoder(rounded_runs[i], CT_PRECISION_FP32);
    }
    none_failed();
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float32),    cmocka_unit_test(test_halves),
        cmocka_unit_test(test_eight_bits), cmocka_unit_test(test_packed),
        cmocka_unit_test(test_again),      cmocka_unit_test(test_decoder),
    };
    ct_context_params params;
    ct_error error;
    ct_context_params_init(&params);
    params.device = argc > 1 ? argv[1] : "cuda";
    params.cache = getenv("CALOTYPE_CACHE");
    params.cache_limit = params.cache_memory = 0; /* every job computes everything */
    if (ct_context_create(&params, &context, &error) != CT_OK) {
        printf("skipped: %s\n", error.message);
        return 77;
    }
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    ct_context_free(&context);
    return failed;
}
