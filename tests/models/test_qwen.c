/* Qwen-Image through the public interface: what is its own, besides the numbers, which
 * test_reference.c compares. */
#include "recorded.h"

#include "pipeline/job.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calotype/calotype.h"

static ct_context *context;

static int set_up(void **state)
{
    (void)state;
    ct_context_params p;
    ct_context_params_init(&p);
    p.threads = 2;
    p.device = "cpu";
    p.cache_memory = 0; /* every job computes everything */
    return ct_context_create(&p, &context, NULL) == CT_OK ? 0 : 1;
}

static int tear_down(void **state)
{
    (void)state;
    ct_context_free(&context);
    return 0;
}

static ct_image *picture(const char *name)
{
    ct_image *image = NULL;
    ct_error error;
    test_ok(ct_image_load(context, test_fixture(name), &image, &error), &error);
    return image;
}

static ct_generate_params small(void)
{
    ct_generate_params p;
    ct_generate_params_init(&p);
    p.prompt = "A red fox.";
    p.width = 48;
    p.height = 32;
    p.steps = 2;
    p.seed = 7;
    return p;
}

static void test_defaults(void **state)
{
    (void)state;
    static const struct {
        const char *name, *variant, *class_name;
        int steps, references;
    } models[] = {{"qwen", "base", "QwenImagePipeline", 50, 0},
                  {"qwen_edit", "Edit", "QwenImageEditPipeline", 50, 1},
                  {"qwen_plus", "Edit-Plus", "QwenImageEditPlusPipeline", 40, 10},
                  {"qwen_2509", "Edit-Plus", "QwenImageEditPlusPipeline", 40, 10}};
    for (int i = 0; i < 4; i++) {
        ct_model *model = recorded_model(context, models[i].name);
        const ct_model_info *info = ct_model_get_info(model);
        assert_string_equal(info->family, "Qwen-Image");
        assert_string_equal(info->variant, models[i].variant);
        assert_string_equal(info->class_name, models[i].class_name);
        assert_int_equal(info->default_steps, models[i].steps);
        assert_true(info->default_guidance == 4 && info->default_cfg_scale == 4);
        assert_int_equal(info->max_references, models[i].references);
        assert_int_equal(info->size_multiple, 16);
        assert_int_equal(info->default_width, 1024);
        ct_model_free(&model);
    }
}

/* The negative prompt of the card is one blank; the picture with none given is that with it. */
static void test_negative_prompt(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "qwen");
    ct_generate_params p = small();
    ct_image *usual = picture_of(model, &p);
    p.negative_prompt = " ";
    ct_image *blank = picture_of(model, &p);
    p.negative_prompt = "";
    ct_image *empty = picture_of(model, &p);
    p.negative_prompt = NULL;
    p.cfg_scale = 1;
    ct_image *unguided = picture_of(model, &p);
    assert_true(same_pixels(usual, blank));
    assert_false(same_pixels(usual, empty));
    assert_false(same_pixels(usual, unguided));
    ct_image_free(&usual);
    ct_image_free(&blank);
    ct_image_free(&empty);
    ct_image_free(&unguided);
    ct_model_free(&model);
}

/* The schedule of Qwen-Image-Lightning, whose scheduler has base_shift = max_shift = log 3 and no
 * shift_terminal: sigma = 3 / (3 + 1 / s - 1). */
static void test_shift_terminal(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "qwen");
    static const float lightning[] = {1, 0.9f, 0.75f, 0.5f, 0};
    ct_generate_params p = small();
    ct_error error;
    ct_job *job = NULL;
    p.steps = 4;
    p.shift = 3;
    p.shift_terminal = -1;
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    assert_true(ct_job_get_info(job)->shift_terminal == 0);
    for (int i = 0; i < 5; i++)
        assert_true(fabsf(job->sigmas[i] - lightning[i]) <= 1e-6f);
    ct_job_free(&job);
    p.shift_terminal = 0.125;
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    assert_true(job->sigmas[0] == 1 && fabsf(job->sigmas[3] - 0.125f) <= 1e-6f);
    ct_job_free(&job);
    p.shift_terminal = 0; /* the model's own */
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    assert_true(fabsf(job->sigmas[3] - 0.02f) <= 1e-6f);
    ct_job_free(&job);
    p.shift_terminal = 1;
    test_error(ct_job_create(model, &p, &job, &error), CT_EINVAL, &error, "shift_terminal");
    ct_model_free(&model);
}

/* The shift follows the size: e^mu of the scheduler's configuration, unless one is given. */
static void test_shift(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "qwen");
    ct_generate_params p = small();
    ct_job *job = NULL;
    ct_error error;
    p.width = p.height = 1024;
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    const double shift = ct_job_get_info(job)->shift;
    assert_true(shift > 2.00 && shift < 2.001); /* e^0.693548, for 4096 tokens */
    ct_job_free(&job);
    p = small();
    p.steps = 3; /* the first and the last level are the same for all shifts */
    ct_image *usual = picture_of(model, &p);
    p.shift = 3;
    ct_image *shifted = picture_of(model, &p);
    assert_false(same_pixels(usual, shifted));
    ct_image_free(&usual);
    ct_image_free(&shifted);
    ct_model_free(&model);
}

static void test_bad_references(void **state)
{
    (void)state;
    ct_model *text = recorded_model(context, "qwen"), *edit = recorded_model(context, "qwen_edit");
    ct_image *a = picture("qwen_plus/two_references.0.png");
    ct_image *b = picture("qwen_plus/two_references.1.png");
    const ct_image *both[] = {a, b};
    ct_generate_params p = small();
    expect_refusal(edit, &p, CT_EINVAL, "give it a reference picture");
    p.references = both;
    p.reference_count = 2;
    expect_refusal(edit, &p, CT_EINVAL, "takes only 1");
    p.reference_count = 1;
    expect_refusal(text, &p, CT_EUNSUPPORTED, "from text alone");
    p.prompt = "a fox beside <|image_pad|>";
    expect_refusal(edit, &p, CT_EINVAL, "stands for a picture");
    p.prompt = "A fox.";
    p.negative_prompt = "<|image_pad|>";
    expect_refusal(edit, &p, CT_EINVAL, "negative prompt contains");
    ct_image_free(&a);
    ct_image_free(&b);
    ct_model_free(&text);
    ct_model_free(&edit);
}

/* Sizes as the reference rounds them, to multiples of 32 with about 1024 x 1024 pixels; several
 * pictures: that of the last. */
static void test_sizes(void **state)
{
    (void)state;
    ct_model *plus = recorded_model(context, "qwen_plus");
    ct_image *a = picture("qwen_plus/two_references.0.png"); /* 33 x 48 */
    ct_image *b = picture("qwen_plus/two_references.1.png"); /* 64 x 24 */
    const ct_image *both[] = {a, b};
    ct_generate_params p = small();
    ct_job *job = NULL;
    ct_error error;
    p.width = p.height = 0;
    p.references = both;
    for (int count = 1; count <= 2; count++) {
        p.reference_count = count;
        test_ok(ct_job_create(plus, &p, &job, &error), &error);
        assert_int_equal(ct_job_get_info(job)->width, count == 1 ? 864 : 1664);
        assert_int_equal(ct_job_get_info(job)->height, count == 1 ? 1248 : 640);
        ct_job_free(&job);
    }
    ct_image_free(&a);
    ct_image_free(&b);
    ct_model_free(&plus);
}

/* 2509 and 2511 differ in zero_cond_t of the configuration alone; here they have the same weights.
 * What is recorded of one is not what the other makes. */
static void test_zero_cond_t(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "qwen_plus");
    weights *truth = recorded_open("qwen_2509/two_references");
    const ct_generate_params p = recorded_params(truth);
    const recorded_errors e = recorded_compare(model, "qwen_2509/two_references", &p);
    assert_true(e.outputs > 0.01);
    weights_close(truth);
    ct_model_free(&model);
}

/* All blocks streamed and the VAE in the lowest strips: the same picture. */
static void test_memory(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "qwen");
    ct_generate_params p = small();
    p.width = p.height = 128;
    ct_image *whole = picture_of(model, &p), *streamed = NULL;
    ct_memory_plan plan;
    ct_memory_plan_init(&plan);
    ct_error error;
    test_ok(ct_model_plan(model, &p, &plan, &error), &error);
    assert_int_equal(plan.stage[CT_STAGE_DENOISE].blocks, 4); /* ends included */
    assert_true(plan.strips.peak_bytes < plan.resident.peak_bytes);
    for (uint64_t margin = 65536; !streamed && margin <= 64 << 20; margin *= 2) {
        p.max_memory = plan.strips.peak_bytes + margin;
        ct_status status = ct_generate(model, &p, &streamed, &error);
        if (status != CT_OK)
            test_error(status, CT_ENOMEM, &error, "of the limit");
    }
    assert_non_null(streamed);
    assert_true(same_pixels(whole, streamed));
    ct_image_free(&whole);
    ct_image_free(&streamed);
    ct_model_free(&model);
}

/* A job's second seed uses what the first has encoded. */
static void test_seeds(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "qwen_edit");
    ct_image *a = picture("qwen_edit/guided.0.png"), *image = NULL, *again = NULL;
    const ct_image *references[] = {a};
    ct_generate_params p = small();
    ct_job *job = NULL;
    ct_error error;
    p.steps = 1;
    p.references = references;
    p.reference_count = 1;
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    for (uint64_t seed = 0; seed < 2; seed++) {
        ct_image_free(&image);
        test_ok(ct_job_run(job, seed, &image, &error), &error);
    }
    p.seed = 1;
    again = picture_of(model, &p);
    assert_true(same_pixels(image, again));
    ct_job_free(&job);
    ct_image_free(&a);
    ct_image_free(&image);
    ct_image_free(&again);
    ct_model_free(&model);
}

/* ---- Memory runs out at every place ---------------------------------------------------------- */

/* Edits without the run, which takes long. */
static ct_status whole_life(const ct_allocator *a, bool edits, ct_error *error)
{
    ct_context_params cp;
    ct_context_params_init(&cp);
    cp.device = "cpu";
    cp.allocator = *a;
    cp.threads = 1;
    cp.cache_memory = 0;
    ct_generate_params p = small();
    p.steps = 1;
    ct_context *c = NULL;
    ct_model *model = NULL;
    ct_image *image = NULL, *seen = NULL;
    ct_job *job = NULL;
    ct_status status = ct_context_create(&cp, &c, error);
    if (status == CT_OK)
        status =
            ct_model_load(c, test_fixture(edits ? "qwen_edit/model" : "qwen/model"), &model, error);
    if (status == CT_OK && edits)
        status = ct_image_load(c, test_fixture("qwen_edit/guided.0.png"), &seen, error);
    const ct_image *references[] = {seen};
    p.references = edits ? references : NULL;
    p.reference_count = edits;
    if (status == CT_OK)
        status = ct_job_create(model, &p, &job, error);
    if (status == CT_OK && !edits)
        status = ct_job_run(job, 1, &image, error);
    ct_job_free(&job);
    ct_image_free(&seen);
    ct_image_free(&image);
    ct_model_free(&model);
    ct_context_free(&c);
    return status;
}

static void test_every_allocation_fails(void **state)
{
    (void)state;
    for (int edits = 0; edits < 2; edits++) {
        test_heap heap;
        ct_error error;
        test_heap_init(&heap, 0);
        test_ok(whole_life(&heap.allocator, edits, &error), &error);
        assert_int_equal(heap.live, 0);
        const long all = heap.calls;
        assert_true(all > 50);
        for (long at = 1; at <= all; at++) {
            test_heap_init(&heap, at);
            /* Some memory only makes things faster or a plan exact. */
            ct_status status = whole_life(&heap.allocator, edits, &error);
            if (status != CT_OK)
                test_error(status, CT_ENOMEM, &error, "memory");
            assert_int_equal(heap.live, 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),    cmocka_unit_test(test_negative_prompt),
        cmocka_unit_test(test_shift),       cmocka_unit_test(test_shift_terminal),
        cmocka_unit_test(test_zero_cond_t), cmocka_unit_test(test_bad_references),
        cmocka_unit_test(test_sizes),       cmocka_unit_test(test_memory),
        cmocka_unit_test(test_seeds),       cmocka_unit_test(test_every_allocation_fails),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
