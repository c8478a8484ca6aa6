/* Guidance: both prompts in one pass or in two, and in some of the steps. */
#include "recorded.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

#define MODULES true

static ct_context *context, *alone; /* of two threads, and of one */

static ct_context *open_context(int threads)
{
    ct_context_params p;
    ct_context *c = NULL;
    ct_context_params_init(&p);
    p.threads = threads;
    p.cache_memory = 0; /* every job computes everything */
    p.device = "cpu";
    return ct_context_create(&p, &c, NULL) == CT_OK ? c : NULL;
}

static int set_up(void **state)
{
    (void)state;
    context = open_context(2);
    alone = open_context(1);
    return context && alone ? 0 : 1;
}

static int tear_down(void **state)
{
    (void)state;
    ct_context_free(&context);
    ct_context_free(&alone);
    return 0;
}

#define LONG                                                                                       \
    "A red fox in a winter forest at dawn, looking back over its shoulder at the tracks that it "  \
    "left in the snow, with a frozen brook, bare birches and a farm with smoke above its roof "    \
    "far behind; oil on canvas, warm light from the left, and long blue shadows"

/* A step, guided, with prompts of very different lengths. */
static ct_generate_params guided(const weights *run)
{
    ct_generate_params p = recorded_params(run);
    p.prompt = LONG;
    p.negative_prompt = "x";
    p.steps = 1;
    p.guidance = 3.5;
    return p;
}

/* All that the run wrote: to be closed. */
static weights *trace(ct_model *model, const char *run, const ct_generate_params *params,
                      bool modules)
{
    test_folder folder;
    test_folder_create(&folder);
    ct_generate_params p = *params;
    p.trace_path = test_path(&folder, "trace.safetensors");
    p.trace_modules = modules;
    ct_image *image = NULL;
    ct_error error;
    weights *w = NULL;
    test_ok(recorded_generate(model, run, &p, &image, &error), &error);
    test_ok(weights_open_file(&w, &mem_default, p.trace_path, &error), &error);
    ct_image_free(&image);
    test_folder_remove(&folder); /* the file stays mapped */
    return w;
}

static bool same_tensor(const weights *a, const weights *b, const char *name)
{
    const weight_view *x = weights_find(a, name), *y = weights_find(b, name);
    if (!x || !y)
        fail_msg("no %s", name);
    return x->bytes == y->bytes && !memcmp(x->data, y->data, x->bytes);
}

/* Every tensor of one is in the other, with the same bytes. */
static void expect_same(const char *what, const weights *a, const weights *b)
{
    assert_int_equal(weights_count(a), weights_count(b));
    for (size_t i = 0; i < weights_count(a); i++)
        if (!same_tensor(a, b, weights_at(a, i)->name))
            fail_msg("%s: %s differs", what, weights_at(a, i)->name);
}

/* ---- One pass or two ------------------------------------------------------------------------- */

/* Runs of every family that guides, with and without references; those of Edit-Plus are modulated
 * for themselves. Each of the last two takes seconds, because its references become large. */
static const struct {
    const char *name;
    ct_precision precisions[3];
    bool quick;
} runs[] = {{"base/guided", {CT_PRECISION_FP32, CT_PRECISION_BF16, CT_PRECISION_INT8}, true},
            {"klein_base/guided", {CT_PRECISION_FP32, CT_PRECISION_BF16, CT_PRECISION_INT8}, true},
            {"klein_base/guided_reference",
             {CT_PRECISION_FP32, CT_PRECISION_BF16, CT_PRECISION_INT8},
             true},
            {"qwen/long_negative", {CT_PRECISION_FP32, CT_PRECISION_BF16, CT_PRECISION_INT8}, true},
            {"qwen_edit/guided", {CT_PRECISION_INT8}, false},
            {"qwen_plus/two_references", {CT_PRECISION_FP32}, false}};
#define RUNS (sizeof runs / sizeof *runs)

static void test_same_bytes(void **state)
{
    (void)state;
    for (size_t i = 0; i < RUNS; i++) {
        const char *run = runs[i].name;
        weights *recorded = recorded_open(run);
        ct_model *model = recorded_model(context, run), *other = recorded_model(alone, run);
        for (int k = 0; k < 3 && runs[i].precisions[k]; k++) {
            ct_generate_params p = guided(recorded);
            char what[80];
            snprintf(what, sizeof what, "%s, %s", run, ct_precision_name(runs[i].precisions[k]));
            p.precision = runs[i].precisions[k];
            p.cfg_batch = CT_CFG_BATCH_OFF;
            weights *off = trace(model, run, &p, MODULES);
            p.cfg_batch = CT_CFG_BATCH_ON;
            weights *on = trace(k == 1 ? other : model, run, &p, MODULES);
            expect_same(what, off, on);
            assert_non_null(weights_find(on, "step.00.negative_output"));
            weights_close(on);
            weights_close(off);
        }
        ct_model_free(&model);
        ct_model_free(&other);
        weights_close(recorded);
    }
}

/* What is estimated for a prompt does not depend on the other in the pass: not on its words, not on
 * its length, not on whether there is one. */
static void test_company(void **state)
{
    (void)state;
    for (size_t i = 0; i < RUNS && runs[i].quick; i++) {
        weights *recorded = recorded_open(runs[i].name);
        ct_model *model = recorded_model(context, runs[i].name);
        ct_generate_params p = guided(recorded);
        p.cfg_batch = CT_CFG_BATCH_ON;
        p.prompt = "a fox";
        weights *few = trace(model, runs[i].name, &p, false);
        p.negative_prompt = LONG ", " LONG;
        weights *many = trace(model, runs[i].name, &p, false);
        p.guidance = 0;
        weights *none = trace(model, runs[i].name, &p, false);
        assert_true(same_tensor(few, many, "step.00.model_output"));
        assert_true(same_tensor(few, none, "step.00.model_output"));
        assert_false(same_tensor(few, many, "step.00.negative_output"));
        weights_close(few);
        weights_close(many);
        weights_close(none);
        ct_model_free(&model);
        weights_close(recorded);
    }
}

/* ---- The interval ---------------------------------------------------------------------------- */

static ct_generate_params simple(void)
{
    ct_generate_params p;
    ct_generate_params_init(&p);
    p.prompt = "a red fox";
    p.negative_prompt = "blue";
    p.width = p.height = 48;
    p.steps = 4;
    p.guidance = 3;
    p.precision = CT_PRECISION_FP32;
    return p;
}

static void test_evaluations(void **state)
{
    (void)state;
    static const struct {
        double start, end, truncation;
        int steps, guided;
    } cases[] = {{0, 1, 1, 10, 10},    {0, 0.5, 1, 10, 5},  {0.5, 1, 1, 10, 5},
                 {0.3, 0.7, 1, 10, 4}, {0, 0.01, 1, 10, 1}, {0.9, 1, 1, 10, 1},
                 {0.91, 1, 1, 10, 0},  {0, 0.5, 1, 5, 3},   {0.1, 0.2, 1, 10, 1},
                 {0, 0.6, 0, 10, 1},   {0.1, 1, 0, 10, 0},  {0, 1, 1, 1, 1}};
    ct_model *model = recorded_model(context, "base/guided");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ct_generate_params p = simple();
        ct_job *job = NULL;
        ct_error error;
        ct_memory_plan plan;
        ct_memory_plan_init(&plan);
        p.guidance_start = cases[i].start;
        p.guidance_end = cases[i].end;
        p.cfg_truncation = cases[i].truncation;
        p.steps = cases[i].steps;
        test_ok(ct_job_create(model, &p, &job, &error), &error);
        const ct_job_info *info = ct_job_get_info(job);
        assert_int_equal(info->guided_steps, cases[i].guided);
        assert_int_equal(info->evaluations, cases[i].steps + cases[i].guided);
        assert_int_equal(info->cfg_batch, cases[i].guided > 0);
        assert_int_equal(info->negative_tokens > 0, cases[i].guided > 0);
        test_ok(ct_model_plan(model, &p, &plan, &error), &error);
        assert_int_equal(plan.evaluations, info->evaluations);
        assert_int_equal(plan.cfg_batch, info->cfg_batch);
        ct_job_free(&job);
    }
    ct_model_free(&model);
}

static const float *numbers(const weights *w, const char *name, int step, size_t *count)
{
    char full[64];
    snprintf(full, sizeof full, "step.%02d.%s", step, name);
    const weight_view *v = weights_find(w, full);
    if (v)
        *count = v->bytes / sizeof(float);
    return v ? (const float *)v->data : NULL;
}

/* The latents behind a step from those in front of it and what it estimated: Euler's step of
 * Z-Image, whose output is the negative of the velocity. */
static void expect_step(const weights *w, int step, double guidance)
{
    size_t n = 0;
    const float *before =
        step ? numbers(w, "latents", step - 1, &n) : (const float *)weights_find(w, "noise")->data;
    const float *after = numbers(w, "latents", step, &n),
                *output = numbers(w, "model_output", step, &n);
    const float *negative = numbers(w, "negative_output", step, &n);
    const float *sigma = (const float *)weights_find(w, "sigmas")->data + step;
    assert_true(before && after && output);
    assert_true((negative != NULL) == (guidance > 0));
    for (size_t i = 0; i < n; i++) {
        double v = (double)output[i];
        if (guidance > 0)
            v += guidance * ((double)output[i] - (double)negative[i]);
        const double want = (double)before[i] + ((double)sigma[0] - (double)sigma[1]) * v;
        if (!(fabs((double)after[i] - want) <= 1e-5 * (1 + fabs(want))))
            fail_msg("step %d: latent %zu is %g, not %g", step, i, (double)after[i], want);
    }
}

/* Guided steps are those of a guided run as long as they have the same past, others those of one
 * without guidance. */
static void test_interval(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "base/guided");
    for (int way = CT_CFG_BATCH_AUTO; way <= CT_CFG_BATCH_OFF; way++) {
        ct_generate_params p = simple();
        p.cfg_batch = (ct_cfg_batch)way;
        weights *always = trace(model, "base/guided", &p, false);
        p.guidance_end = 0.5;
        weights *early = trace(model, "base/guided", &p, false);
        p.guidance_start = 0.5;
        p.guidance_end = 1;
        weights *late = trace(model, "base/guided", &p, false);
        p.guidance = 0;
        weights *never = trace(model, "base/guided", &p, false);
        for (int step = 0; step < 4; step++) {
            expect_step(always, step, 3);
            expect_step(early, step, step < 2 ? 3 : 0);
            expect_step(late, step, step < 2 ? 0 : 3);
            expect_step(never, step, 0);
        }
        assert_true(same_tensor(early, always, "step.01.latents"));
        assert_true(same_tensor(early, always, "step.02.model_output"));
        assert_false(same_tensor(early, always, "step.02.latents"));
        assert_true(same_tensor(late, never, "step.01.latents"));
        assert_true(same_tensor(late, never, "step.02.model_output"));
        assert_false(same_tensor(late, never, "step.02.latents"));
        weights_close(always);
        weights_close(early);
        weights_close(late);
        weights_close(never);
    }
    ct_model_free(&model);
}

static void count_warning(void *user, ct_log_level level, const char *message)
{
    if (level == CT_LOG_WARNING && strstr(message, "guidance interval"))
        ++*(int *)user;
}

/* An interval between two steps is no guidance at all, and says so. */
static void test_empty_interval(void **state)
{
    (void)state;
    int warnings = 0;
    const ct_callbacks callbacks = {.user = &warnings, .log = count_warning};
    ct_model *model = recorded_model(context, "base/guided");
    ct_generate_params p = simple();
    p.negative_prompt = NULL;
    p.callbacks = &callbacks;
    p.guidance_start = 0.8;
    weights *empty = trace(model, "base/guided", &p, false);
    assert_int_equal(warnings, 1);
    p.guidance_start = 0;
    p.guidance = 0;
    weights *off = trace(model, "base/guided", &p, false);
    assert_int_equal(warnings, 1);
    expect_same("an empty interval", empty, off);
    weights_close(empty);
    weights_close(off);
    ct_model_free(&model);
}

static void test_bad_values(void **state)
{
    (void)state;
    static const double bad[][2] = {{-0.1, 1}, {0, 1.1},      {0.5, 0.5},     {0.6, 0.4}, {NAN, 1},
                                    {0, NAN},  {0, INFINITY}, {-INFINITY, 1}, {0, 0},     {1, 1}};
    ct_model *model = recorded_model(context, "base/guided");
    ct_generate_params p = simple();
    ct_job *job = (ct_job *)1;
    ct_error error;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        p.guidance_start = bad[i][0];
        p.guidance_end = bad[i][1];
        test_error(ct_job_create(model, &p, &job, &error), CT_EINVAL, &error, "interval");
        assert_null(job);
    }
    p = simple();
    p.cfg_batch = (ct_cfg_batch)77;
    test_error(ct_job_create(model, &p, &job, &error), CT_EINVAL, &error, "cfg_batch");
    p.cfg_batch = (ct_cfg_batch)-1;
    test_error(ct_job_create(model, &p, &job, &error), CT_EINVAL, &error, "cfg_batch");
    ct_model_free(&model);
}

/* Only a picture that is not guided in all steps says in which. */
static void test_recipe(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "base/guided");
    ct_generate_params p = simple();
    ct_image *image = NULL;
    ct_error error;
    p.steps = 2;
    test_ok(ct_generate(model, &p, &image, &error), &error);
    assert_null(strstr(ct_image_recipe_json(image), "interval"));
    ct_image_free(&image);
    p.guidance_end = 0.5;
    test_ok(ct_generate(model, &p, &image, &error), &error);
    assert_non_null(strstr(ct_image_recipe_json(image), "\"guidance_interval\":[0.0,0.5]"));
    assert_non_null(strstr(ct_image_recipe_json(image), "\"evaluations\":3"));
    assert_non_null(strstr(ct_image_recipe_text(image), "Guidance start: 0, Guidance end: 0.5"));
    ct_image_free(&image);
    ct_model_free(&model);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static ct_memory_plan plan_of(ct_model *model, const ct_generate_params *p)
{
    ct_memory_plan plan;
    ct_error error;
    ct_memory_plan_init(&plan);
    test_ok(ct_model_plan(model, p, &plan, &error), &error);
    return plan;
}

/* One pass takes more, which the plan knows; where that does not fit, auto takes two. An interval
 * that begins late takes as much as one that begins at once. */
static void test_memory(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "klein_base/guided");
    ct_generate_params p = simple();
    p.width = p.height = 64;
    p.guidance_start = 0.5;
    p.steps = 2;
    p.cfg_batch = CT_CFG_BATCH_OFF;
    const ct_memory_plan off = plan_of(model, &p);
    p.cfg_batch = CT_CFG_BATCH_ON;
    const ct_memory_plan on = plan_of(model, &p);
    const uint64_t two = off.stage[CT_STAGE_DENOISE].activation_bytes;
    const uint64_t one = on.stage[CT_STAGE_DENOISE].activation_bytes;
    assert_true(on.cfg_batch && !off.cfg_batch);
    assert_true(one > two && one < 2 * two);
    p.guidance_start = 0;
    assert_true(plan_of(model, &p).stage[CT_STAGE_DENOISE].activation_bytes == one);
    p.cfg_batch = CT_CFG_BATCH_AUTO;
    assert_true(plan_of(model, &p).cfg_batch);

    /* The VAE must fit as well, in strips. */
    const uint64_t least = off.strips.stage_bytes[CT_STAGE_DENOISE];
    const uint64_t most = on.strips.stage_bytes[CT_STAGE_DENOISE];
    assert_true(least < most && off.strips.stage_bytes[CT_STAGE_DECODE] < (least + most) / 2);
    p.max_memory = (least + most) / 2;
    const ct_memory_plan automatic = plan_of(model, &p);
    p.cfg_batch = CT_CFG_BATCH_ON;
    const ct_memory_plan refused = plan_of(model, &p);
    /* Sanitizers keep what was freed: there the process itself grows from plan to plan. */
    if (refused.process_bytes < on.process_bytes + (most - least) / 4) {
        assert_true(automatic.chosen.fits && !automatic.cfg_batch);
        assert_false(refused.chosen.fits);
    }
    ct_model_free(&model);
}

/* ---- Cancel ---------------------------------------------------------------------------------- */

typedef struct watcher {
    int asked, stop_at; /* 0: never */
} watcher;

static bool cancel(void *user)
{
    watcher *w = user;
    return ++w->asked == w->stop_at;
}

static void test_cancel(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "klein_base/guided");
    watcher w = {0};
    const ct_callbacks callbacks = {.user = &w, .cancel = cancel};
    ct_generate_params p = simple();
    p.callbacks = &callbacks;
    p.steps = 1;
    p.cfg_batch = CT_CFG_BATCH_ON;
    ct_job *job = NULL;
    ct_image *first = NULL, *image = NULL;
    ct_error error;
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    test_ok(ct_job_run(job, 7, &first, &error), &error);
    w.asked = 0;
    test_ok(ct_job_run(job, 7, &image, &error), &error);
    ct_image_free(&image);
    const int all = w.asked; /* without the text encoder */
    for (int at = 1; at <= all; at += 7) {
        w = (watcher){.stop_at = at};
        test_error(ct_job_run(job, 7, &image, &error), CT_ECANCELLED, &error, "cancelled");
        assert_null(image);
    }
    w = (watcher){0};
    test_ok(ct_job_run(job, 7, &image, &error), &error);
    assert_memory_equal(ct_image_pixels(first), ct_image_pixels(image), 48 * 48 * 3);
    ct_image_free(&first);
    ct_image_free(&image);
    ct_job_free(&job);
    ct_model_free(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes),     cmocka_unit_test(test_company),
        cmocka_unit_test(test_evaluations),    cmocka_unit_test(test_interval),
        cmocka_unit_test(test_empty_interval), cmocka_unit_test(test_bad_values),
        cmocka_unit_test(test_recipe),         cmocka_unit_test(test_memory),
        cmocka_unit_test(test_cancel),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
