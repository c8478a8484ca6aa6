/* FLUX.2-klein through the public interface: what is its own, besides the numbers, which
 * test_reference.c compares. */
#define _XOPEN_SOURCE 700 /* nftw */
#include "recorded.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calotype/calotype.h"

typedef struct seen {
    int warnings, encoded; /* encoded: units of the first stage */
    char last[256];
} seen;

static seen log_seen;
static ct_context *context;

static void on_log(void *user, ct_log_level level, const char *message)
{
    seen *s = user;
    if (level != CT_LOG_WARNING)
        return;
    s->warnings++;
    snprintf(s->last, sizeof s->last, "%s", message);
}

static void on_progress(void *user, const ct_progress *p)
{
    seen *s = user;
    s->encoded += p->stage == CT_STAGE_ENCODE && p->step > 0;
}

static int set_up(void **state)
{
    (void)state;
    ct_context_params p;
    ct_context_params_init(&p);
    p.threads = 2;
    p.device = "cpu";
    p.cache_memory = 0; /* every job computes everything */
    p.callbacks = (ct_callbacks){.user = &log_seen, .log = on_log, .progress = on_progress};
    return ct_context_create(&p, &context, NULL) == CT_OK ? 0 : 1;
}

static int tear_down(void **state)
{
    (void)state;
    ct_context_free(&context);
    return 0;
}

/* A picture that is different everywhere. */
static ct_image *make_picture(int width, int height)
{
    uint8_t *pixels = malloc(3 * (size_t)width * (size_t)height);
    assert_non_null(pixels);
    for (int i = 0; i < 3 * width * height; i++)
        pixels[i] = (uint8_t)(i * 7 + i / 11 + i / (3 * width) * 5);
    ct_image *image = NULL;
    ct_error error;
    test_ok(ct_image_from_pixels(context, width, height, pixels, &image, &error), &error);
    free(pixels);
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
    p.precision = CT_PRECISION_FP32;
    return p;
}

static void test_defaults(void **state)
{
    (void)state;
    static const struct {
        const char *model, *variant;
        int steps;
        double guidance;
        int multiple;
    } models[] = {{"klein", "distilled", 4, 1, 16}, {"klein_base", "base", 50, 4, 8}};
    for (int i = 0; i < 2; i++) {
        ct_model *model = recorded_model(context, models[i].model);
        const ct_model_info *info = ct_model_get_info(model);
        assert_string_equal(info->family, "FLUX.2-klein");
        assert_string_equal(info->class_name, "Flux2KleinPipeline");
        assert_string_equal(info->variant, models[i].variant);
        assert_int_equal(info->default_steps, models[i].steps);
        assert_true(info->default_guidance == models[i].guidance);
        assert_true(info->default_cfg_scale == models[i].guidance);
        assert_true(info->default_shift == 0);
        assert_int_equal(info->default_width, 1024);
        assert_int_equal(info->size_multiple, models[i].multiple);
        assert_int_equal(info->max_prompt_tokens, 512);
        assert_int_equal(info->max_references, 10);
        ct_model_free(&model);
    }
}

/* The distilled model takes none; for the base model the scale is the usual one, and a negative
 * prompt is not needed. */
static void test_guidance(void **state)
{
    (void)state;
    ct_model *distilled = recorded_model(context, "klein"),
             *base = recorded_model(context, "klein_base");
    ct_generate_params p = small();
    ct_image *plain = picture_of(distilled, &p);
    log_seen = (seen){0};
    p.guidance = 3;
    ct_image *same = picture_of(distilled, &p);
    assert_int_equal(log_seen.warnings, 1);
    assert_non_null(strstr(log_seen.last, "without guidance"));
    assert_true(same_pixels(plain, same));
    ct_image_free(&plain);
    ct_image_free(&same);

    ct_image *guided = picture_of(base, &p);
    p.negative_prompt = "";
    same = picture_of(base, &p);
    assert_true(same_pixels(guided, same));
    ct_image_free(&same);
    p.guidance = CT_GUIDANCE_DEFAULT;
    p.cfg_scale = 3;
    same = picture_of(base, &p);
    assert_true(same_pixels(guided, same));
    ct_image_free(&same);
    ct_image_free(&guided);

    ct_job *job = NULL;
    ct_error error;
    p.cfg_scale = 0;
    static const double off[] = {0, 0.5, 1};
    for (int i = 0; i < 3; i++) {
        p.guidance = off[i];
        test_ok(ct_job_create(base, &p, &job, &error), &error);
        assert_int_equal(ct_job_get_info(job)->evaluations, 2);
        assert_true(ct_job_get_info(job)->cfg_scale == 1);
        ct_job_free(&job);
    }
    ct_model_free(&distilled);
    ct_model_free(&base);
}

/* The shift that the model chooses gives the same picture when it is given. */
static void test_shift(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "klein");
    ct_generate_params p = small();
    ct_error error;
    ct_job *job = NULL;
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    const double shift = ct_job_get_info(job)->shift;
    ct_job_free(&job);
    assert_true(shift > 1);
    ct_image *own = picture_of(model, &p);
    p.shift = shift;
    ct_image *given = picture_of(model, &p);
    assert_true(same_pixels(own, given));
    ct_image_free(&own);
    ct_image_free(&given);
    ct_model_free(&model);
}

/* Pictures of 1 to 10 references; each of them counts. */
static void test_references(void **state)
{
    (void)state;
    ct_model *model = recorded_model(context, "klein");
    ct_image *references[10], *last = NULL;
    for (int i = 0; i < 10; i++)
        references[i] = make_picture(64 + 9 * i, 100 - 4 * i);
    ct_generate_params p = small();
    p.references = (const ct_image *const *)references;
    static const int counts[] = {1, 2, 10};
    for (int i = 0; i < 3; i++) {
        p.reference_count = counts[i];
        ct_image *image = picture_of(model, &p);
        if (last)
            assert_true(memcmp(ct_image_pixels(image), ct_image_pixels(last), 3 * 48 * 32) != 0);
        ct_image_free(&last);
        last = image;
    }
    ct_image_free(&last);

    /* A job keeps what it encoded, and the caller's pictures may go. */
    p.reference_count = 2;
    p.seed = 8;
    ct_image *eight = picture_of(model, &p), *again = NULL, *seven = NULL;
    ct_job *job = NULL;
    ct_error error;
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    for (int i = 0; i < 10; i++)
        ct_image_free(&references[i]);
    log_seen = (seen){0};
    test_ok(ct_job_run(job, 7, &seven, &error), &error);
    assert_int_equal(log_seen.encoded, 27 + 2);
    test_ok(ct_job_run(job, 8, &again, &error), &error);
    assert_int_equal(log_seen.encoded, 27 + 2);
    assert_true(same_pixels(eight, again));
    assert_non_null(strstr(ct_image_recipe_json(again), "\"references\""));
    ct_job_free(&job);
    ct_image_free(&eight);
    ct_image_free(&again);
    ct_image_free(&seven);
    ct_model_free(&model);
}

static void test_sizes(void **state)
{
    (void)state;
    static const struct {
        int width, height, made_width, made_height;
    } sizes[] = {{64, 64, 64, 64}, {79, 95, 64, 80}, {512, 64, 512, 64}, {1300, 1000, 1152, 896}};
    ct_model *model = recorded_model(context, "klein");
    for (int i = 0; i < 4; i++) {
        ct_image *reference = make_picture(sizes[i].width, sizes[i].height);
        ct_generate_params p = small();
        ct_job *job = NULL;
        ct_error error;
        p.width = p.height = 0;
        p.references = (const ct_image *const *)&reference;
        p.reference_count = 1;
        test_ok(ct_job_create(model, &p, &job, &error), &error);
        assert_int_equal(ct_job_get_info(job)->width, sizes[i].made_width);
        assert_int_equal(ct_job_get_info(job)->height, sizes[i].made_height);
        assert_int_equal(ct_job_get_info(job)->picture_width, sizes[i].made_width);
        ct_job_free(&job);
        p.keep_size = true;
        test_ok(ct_job_create(model, &p, &job, &error), &error);
        assert_int_equal(ct_job_get_info(job)->width, (sizes[i].width + 15) / 16 * 16);
        assert_int_equal(ct_job_get_info(job)->picture_width, sizes[i].width);
        assert_int_equal(ct_job_get_info(job)->picture_height, sizes[i].height);
        ct_job_free(&job);
        ct_image_free(&reference);
    }
    ct_model_free(&model);
}

static void test_bad_references(void **state)
{
    (void)state;
    static const struct {
        int width, height;
        const char *part;
    } sizes[] = {{1, 1, "too small"},
                 {63, 400, "at least 64"},
                 {64, 513, "8 times"},
                 {30000, 4000, "at most 16384"}};
    ct_model *model = recorded_model(context, "klein"), *other = recorded_model(context, "turbo");
    ct_generate_params p = small();
    p.reference_count = 1;
    for (int i = 0; i < 4; i++) {
        ct_image *reference = make_picture(sizes[i].width, sizes[i].height);
        p.references = (const ct_image *const *)&reference;
        expect_refusal(model, &p, CT_EINVAL, sizes[i].part);
        ct_image_free(&reference);
    }
    ct_image *reference = make_picture(64, 64), *many[11];
    for (int i = 0; i < 11; i++)
        many[i] = reference;
    p.references = (const ct_image *const *)many;
    p.reference_count = 11;
    expect_refusal(model, &p, CT_EINVAL, "11 reference pictures");
    p.reference_count = -1;
    expect_refusal(model, &p, CT_EINVAL, "1 to 10");
    p.reference_count = 1;
    expect_refusal(other, &p, CT_EUNSUPPORTED, "text alone");
    p.keep_size = true;
    expect_refusal(model, &p, CT_EINVAL, "leave out width");
    p.reference_count = 0;
    expect_refusal(model, &p, CT_EINVAL, "needs a reference");
    p.reference_count = 2;
    p.keep_size = false;
    many[1] = NULL;
    expect_refusal(model, &p, CT_EINVAL, "reference 2 is NULL");
    p.references = NULL;
    expect_refusal(model, &p, CT_EINVAL, "reference pictures");
    ct_error error;
    ct_image *none = (ct_image *)1;
    test_error(ct_image_from_pixels(context, 0, 5, (const uint8_t *)"", &none, &error), CT_EINVAL,
               &error, "0 x 5");
    assert_null(none);
    ct_image_free(&reference);
    ct_model_free(&model);
    ct_model_free(&other);
}

static double psnr(const ct_image *a, const ct_image *b)
{
    const int bytes = 3 * ct_image_width(a) * ct_image_height(a);
    double square = 0;
    for (int i = 0; i < bytes; i++) {
        const double d = (double)ct_image_pixels(a)[i] - (double)ct_image_pixels(b)[i];
        square += d * d / bytes;
    }
    return 10 * log10(255 * 255 / square);
}

/* The same picture with all blocks streamed; 8 bits are near. */
static void check_memory_and_precision(const char *name)
{
    ct_model *model = recorded_model(context, name);
    ct_image *reference = make_picture(80, 64);
    ct_generate_params p = small();
    p.references = (const ct_image *const *)&reference;
    p.reference_count = 1;
    ct_image *whole = picture_of(model, &p);
    ct_memory_plan plan;
    ct_memory_plan_init(&plan);
    ct_error error;
    test_ok(ct_model_plan(model, &p, &plan, &error), &error);
    assert_int_equal(plan.stage[CT_STAGE_DENOISE].blocks, 6); /* ends included */
    assert_true(plan.strips.peak_bytes <= plan.resident.peak_bytes);
    /* What the process itself takes grows a little, and with sanitizers more. */
    ct_image *streamed = NULL;
    for (uint64_t margin = 65536; !streamed && margin <= 64 << 20; margin *= 2) {
        p.max_memory = plan.strips.peak_bytes + margin;
        ct_status status = ct_generate(model, &p, &streamed, &error);
        if (status != CT_OK)
            test_error(status, CT_ENOMEM, &error, "of the limit");
    }
    assert_non_null(streamed);
    assert_true(same_pixels(whole, streamed));
    p.max_memory = 0;
    static const ct_precision precisions[] = {CT_PRECISION_BF16, CT_PRECISION_INT8};
    for (int i = 0; i < 2; i++) {
        p.precision = precisions[i];
        ct_image *rounded = picture_of(model, &p);
        assert_true(psnr(whole, rounded) > 35);
        ct_image_free(&rounded);
    }
    ct_image_free(&whole);
    ct_image_free(&streamed);
    ct_image_free(&reference);
    ct_model_free(&model);
}

static void test_memory_and_precision(void **state)
{
    (void)state;
    check_memory_and_precision("klein");
    check_memory_and_precision("klein_kv");
}

/* The checkpoint whose references stand apart: another picture than that of the same weights,
 * unless there are none. */
static void test_kv(void **state)
{
    (void)state;
    ct_model *plain = recorded_model(context, "klein"), *kv = recorded_model(context, "klein_kv");
    const ct_model_info *info = ct_model_get_info(kv);
    assert_string_equal(info->variant, "KV");
    assert_string_equal(info->class_name, "Flux2KleinKVPipeline");
    assert_int_equal(info->default_steps, 4);
    ct_generate_params p = small();
    ct_image *a = picture_of(plain, &p), *b = picture_of(kv, &p);
    assert_true(same_pixels(a, b));
    ct_image_free(&a);
    ct_image_free(&b);
    ct_image *reference = make_picture(80, 64);
    p.references = (const ct_image *const *)&reference;
    p.reference_count = 1;
    a = picture_of(plain, &p);
    b = picture_of(kv, &p);
    assert_true(memcmp(ct_image_pixels(a), ct_image_pixels(b), 3 * 48 * 32) != 0);
    ct_image_free(&a);
    ct_image_free(&b);
    ct_image_free(&reference);
    ct_model_free(&plain);
    ct_model_free(&kv);
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    (void)ftw;
    return remove(path);
}

/* Both layouts of quantized files, with the names of each. */
static void test_quantized(void **state)
{
    (void)state;
    static const struct {
        int bits, group;
        const char *file, *name;
    } kinds[] = {
        {8, 32, "transformer/model.safetensors", "time_guidance_embed.timestep_embedder.linear_1"},
        {8, 64, "transformer/0.safetensors", "\"time_guidance_embed.linear_1.weight"}};
    ct_model *model = recorded_model(context, "klein_base");
    ct_generate_params p = small();
    ct_image *exact = picture_of(model, &p);
    ct_model_free(&model);
    for (int i = 0; i < 2; i++) {
        test_folder folder;
        test_folder_create(&folder);
        ct_quantize_params q;
        ct_quantize_params_init(&q);
        q.output = test_path(&folder, "out");
        q.bits = kinds[i].bits;
        q.group_size = kinds[i].group;
        ct_error error;
        test_ok(ct_quantize(context, test_fixture("klein_base/model"), &q, NULL, &error), &error);
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", q.output, kinds[i].file);
        size_t size;
        char *bytes = (char *)test_read_file(path, &size);
        bytes[size < 20000 ? size - 1 : 20000] = 0; /* the header is longer than that */
        assert_non_null(strstr(bytes + 8, kinds[i].name));
        free(bytes);
        test_ok(ct_model_load(context, q.output, &model, &error), &error);
        ct_image *rounded = picture_of(model, &p);
        assert_true(psnr(exact, rounded) > 45);
        ct_image_free(&rounded);
        ct_model_free(&model);
        nftw(q.output, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
        test_folder_remove(&folder);
    }
    ct_image_free(&exact);
}

static ct_status whole_life(const ct_allocator *a, void *user, ct_error *error)
{
    (void)user;
    ct_context_params cp;
    ct_context_params_init(&cp);
    cp.allocator = *a;
    cp.threads = 1;
    cp.device = "cpu";
    cp.cache_memory = 0;
    ct_context *c = NULL;
    ct_model *model = NULL;
    ct_image *image = NULL, *reference = NULL;
    ct_generate_params p = small();
    p.steps = 1;
    p.width = p.height = 16;
    ct_status status = ct_context_create(&cp, &c, error);
    if (status == CT_OK)
        status = ct_model_load(c, test_fixture("klein/model"), &model, error);
    if (status == CT_OK)
        status = ct_image_load(c, test_fixture("klein/three_references.0.png"), &reference, error);
    p.references = (const ct_image *const *)&reference;
    p.reference_count = 1;
    if (status == CT_OK)
        status = ct_generate(model, &p, &image, error);
    ct_image_free(&image);
    ct_image_free(&reference);
    ct_model_free(&model);
    ct_context_free(&c);
    return status;
}

/* Not every allocation, which takes long: some hundred of them. */
static void test_allocations_fail(void **state)
{
    (void)state;
    test_heap heap;
    ct_error error;
    test_heap_init(&heap, 0);
    test_ok(whole_life(&heap.allocator, NULL, &error), &error);
    assert_int_equal(heap.live, 0);
    const long all = heap.calls, step = all > 200 ? all / 200 : 1;
    for (long at = 1; at <= all; at += at < all - 60 ? step : 1) {
        test_heap_init(&heap, at);
        ct_status status = whole_life(&heap.allocator, NULL, &error);
        if (status != CT_OK)
            test_error(status, CT_ENOMEM, &error, "memory");
        assert_int_equal(heap.live, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_guidance),
        cmocka_unit_test(test_shift),
        cmocka_unit_test(test_references),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_bad_references),
        cmocka_unit_test(test_memory_and_precision),
        cmocka_unit_test(test_kv),
        cmocka_unit_test(test_quantized),
        cmocka_unit_test(test_allocations_fail),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
