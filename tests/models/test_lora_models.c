/* Models with LoRAs through the public interface: runs that the reference recorded with a LoRA,
 * recipes, plans, quantizing. */
#include "recorded.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calotype/calotype.h"
#include "core/affine.h"
#include "core/dtype.h"
#include "core/folder.h"
#include "core/mem.h"
#include "io/names.h"

static ct_context *context;

static int set_up(void **state)
{
    (void)state;
    ct_context_params p;
    ct_context_params_init(&p);
    p.threads = 2;
    p.device = "cpu";
    return ct_context_create(&p, &context, NULL) == CT_OK ? 0 : 1;
}

static int tear_down(void **state)
{
    (void)state;
    ct_context_free(&context);
    return 0;
}

static const char *lora_of(const char *family)
{
    char name[64];
    snprintf(name, sizeof name, "lora/%s_lora.safetensors", family);
    return test_fixture(name);
}

static ct_status load(ct_model **out, const char *directory, const char *lora, double scale,
                      bool plan_only, ct_error *error)
{
    const ct_lora list[] = {{lora, scale}};
    ct_model_params p;
    ct_model_params_init(&p);
    p.lora = list;
    p.loras = lora ? 1 : 0;
    p.plan_only = plan_only;
    return ct_model_load_with(context, directory, &p, out, error);
}

static ct_model *opened(const char *directory, const char *lora, double scale, bool plan_only)
{
    ct_model *model = NULL;
    ct_error error;
    test_ok(load(&model, directory, lora, scale, plan_only, &error), &error);
    return model;
}

static ct_model *family_with(const char *family, double scale)
{
    char name[64];
    snprintf(name, sizeof name, "%s/model", family);
    return opened(test_fixture(name), lora_of(family), scale, false);
}

static ct_image *picture(ct_model *model)
{
    ct_generate_params p;
    ct_generate_params_init(&p);
    p.prompt = "A red fox.";
    p.width = p.height = 32;
    p.steps = 2;
    p.seed = 7;
    p.cfg_scale = 1;
    p.precision = CT_PRECISION_FP32;
    ct_image *image = NULL;
    ct_error error;
    test_ok(ct_generate(model, &p, &image, &error), &error);
    return image;
}

/* ---- The reference --------------------------------------------------------------------------- */

/* diffusers keeps a LoRA beside the weight, here it is in it: sums of another order. */
static void test_reference(void **state)
{
    (void)state;
    static const char *const families[] = {"qwen", "turbo", "klein"};
    for (int i = 0; i < 3; i++) {
        char run[32];
        snprintf(run, sizeof run, "lora/%s", families[i]);
        weights *truth = recorded_open(run);
        const ct_generate_params p = recorded_params(truth);
        const double scale = strtod(weights_metadata(truth, "lora_scale"), NULL);
        ct_model *with = family_with(families[i], scale), *without = family_with(families[i], 0);
        const recorded_errors e = recorded_compare(with, run, &p);
        const recorded_errors other = recorded_compare(without, run, &p);
        if (getenv("CT_SHOW"))
            printf("%s: %.1e (%s), %d levels; without %.2f\n", run, e.outputs, e.output, e.pixels,
                   other.outputs);
        assert_true(e.compared >= 6);
        assert_true(e.outputs < 1e-4 && e.pixels <= 1);
        assert_true(other.outputs > 0.1);
        ct_model_free(&with);
        ct_model_free(&without);
        weights_close(truth);
    }
}

/* ---- Recipes and hashes ---------------------------------------------------------------------- */

static void test_recipe(void **state)
{
    (void)state;
    ct_model *plain = recorded_model(context, "qwen"), *zero = family_with("qwen", 0);
    ct_model *half = family_with("qwen", 0.5), *one = family_with("qwen", 1);
    const ct_model_info *info = ct_model_get_info(half);
    assert_string_equal(ct_model_get_info(plain)->hash, ct_model_get_info(zero)->hash);
    assert_string_not_equal(info->hash, ct_model_get_info(plain)->hash);
    assert_string_not_equal(info->hash, ct_model_get_info(one)->hash);
    assert_int_equal(info->loras, 1);
    assert_int_equal(info->lora[0].modules, 29);
    assert_int_equal(info->lora[0].matched, 29);
    assert_int_equal(info->lora[0].unmatched, 0);
    assert_int_equal(info->lora[0].least_rank, 3);
    assert_int_equal(info->lora[0].most_rank, 3);
    assert_string_equal(info->lora[0].name, "qwen_lora.safetensors");
    assert_int_equal(strlen(info->lora[0].hash), 32);
    assert_true(info->component[1].decoded_bytes > 100000);
    assert_int_equal(ct_model_get_info(zero)->component[1].decoded_bytes, 0);
    ct_image *a = picture(plain), *b = picture(zero), *c = picture(half);
    assert_memory_equal(ct_image_pixels(a), ct_image_pixels(b), 32 * 32 * 3);
    assert_string_equal(ct_image_recipe_json(a), ct_image_recipe_json(b));
    assert_string_equal(ct_image_recipe_text(a), ct_image_recipe_text(b));
    assert_null(strstr(ct_image_recipe_json(a), "loras"));
    assert_memory_not_equal(ct_image_pixels(a), ct_image_pixels(c), 32 * 32 * 3);
    char text[200];
    snprintf(text, sizeof text,
             "\"loras\":[{\"name\":\"qwen_lora.safetensors\",\"hash\":\"%s\",\"scale\":0.5}]",
             info->lora[0].hash);
    assert_non_null(strstr(ct_image_recipe_json(c), text));
    snprintf(text, sizeof text,
             "Lora hashes: \"qwen_lora: %.10s\", Lora scales: \"qwen_lora: 0.5\"",
             info->lora[0].hash);
    assert_non_null(strstr(ct_image_recipe_text(c), text));
    ct_image_free(&a);
    ct_image_free(&b);
    ct_image_free(&c);
    ct_model_free(&plain);
    ct_model_free(&zero);
    ct_model_free(&half);
    ct_model_free(&one);
}

/* ---- Refusals -------------------------------------------------------------------------------- */

static void test_refused(void **state)
{
    (void)state;
    ct_model *model = NULL;
    ct_error error;
    test_error(load(&model, test_fixture("turbo/model"), lora_of("qwen"), 1, false, &error),
               CT_EFORMAT, &error, "is a LoRA of another model");
    assert_null(model);
    /* Names that are the same, in another size. */
    test_error(load(&model, test_fixture("qwen_bf16/model"), lora_of("qwen"), 1, false, &error),
               CT_EFORMAT, &error, "does not fit the model's");
    test_error(load(&model, test_fixture("qwen/model"), lora_of("qwen"), 1000, false, &error),
               CT_EINVAL, &error, "scale");
    ct_model_params p;
    ct_model_params_init(&p);
    p.loras = CT_LORAS + 1;
    p.lora = &(ct_lora){lora_of("qwen"), 1};
    test_error(ct_model_load_with(context, test_fixture("qwen/model"), &p, &model, &error),
               CT_EINVAL, &error, "33 LoRAs");
    p.loras = 1;
    p.lora = NULL;
    test_error(ct_model_load_with(context, test_fixture("qwen/model"), &p, &model, &error),
               CT_EINVAL, &error, "LoRAs");
}

/* ---- Plans ----------------------------------------------------------------------------------- */

static ct_memory_plan planned(ct_model *model)
{
    ct_generate_params p;
    ct_generate_params_init(&p);
    p.width = p.height = 32;
    ct_memory_plan plan;
    ct_memory_plan_init(&plan);
    ct_error error;
    test_ok(ct_model_plan(model, &p, &plan, &error), &error);
    return plan;
}

/* A plan counts what is merged whether it is merged or not; what is in memory is not read from the
 * file. */
static void test_plan(void **state)
{
    (void)state;
    const char *directory = test_fixture("head128/model"), *lora = NULL;
    ct_model *plain = opened(directory, lora, 1, true);
    assert_int_equal(planned(plain).merged_bytes, 0);
    ct_model *only = opened(test_fixture("qwen/model"), lora_of("qwen"), 1, true);
    ct_model *merged = family_with("qwen", 1);
    const ct_memory_plan a = planned(only), b = planned(merged);
    assert_true(a.merged_bytes > 0);
    assert_int_equal(a.merged_bytes, b.merged_bytes);
    assert_true(a.process_bytes > a.merged_bytes);
    const int64_t difference = (int64_t)a.process_bytes - (int64_t)b.process_bytes;
    assert_true(llabs(difference) < 4 << 20); /* the allocator's own */
    ct_generate_params p;
    ct_generate_params_init(&p);
    p.prompt = "A fox.";
    ct_job *job = NULL;
    ct_error error;
    test_error(ct_job_create(only, &p, &job, &error), CT_EINVAL, &error, "plan_only");
    /* Nothing smaller fits either, and the advice is what helps. */
    p.width = p.height = 32;
    p.max_memory = 1 << 20;
    test_error(ct_job_create(merged, &p, &job, &error), CT_ENOMEM, &error,
               "calotype quantize --lora");
    ct_model_free(&plain);
    ct_model_free(&only);
    ct_model_free(&merged);
}

/* ---- Quantizing ------------------------------------------------------------------------------ */

static float at(const weights *w, const char *name, int64_t row, int64_t column)
{
    char beside[200];
    const weight_view *v = names_find(w, name);
    assert_non_null(v);
    float out;
    if (v->type != DTYPE_U32) {
        const size_t size = dtype_size(v->type);
        dtype_to_float(&out, v->data + (size_t)(row * v->shape[1] + column) * size, v->type, 1);
        return out;
    }
    snprintf(beside, sizeof beside, "%.*sscales", (int)strlen(v->name) - 6, v->name);
    const weight_view *scales = weights_find(w, beside);
    snprintf(beside, sizeof beside, "%.*sbiases", (int)strlen(v->name) - 6, v->name);
    const weight_view *biases = weights_find(w, beside);
    const size_t groups = (size_t)scales->shape[1] * dtype_size(scales->type);
    affine_decode(&out, v->data + (size_t)(row * v->shape[1]) * 4, 8, 32,
                  scales->data + (size_t)row * groups, biases->data + (size_t)row * groups,
                  scales->type, column, 1);
    return out;
}

static weights *transformer_of(const char *directory)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/transformer", directory);
    weights *w = NULL;
    ct_error error;
    test_ok(weights_open_directory(&w, &mem_default, path, "diffusion_pytorch_model", &error),
            &error);
    return w;
}

/* W + (alpha / rank) B A, element by element in double, against the new files: matrices that are
 * quantized to half a step of 8 bits, others to float32. And the picture is near that of the merged
 * model. */
static void test_quantize(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *directory = test_fixture("qwen/model"), *output = test_path(&folder, "out");
    const ct_lora lora = {lora_of("qwen"), 1};
    ct_quantize_params p;
    ct_quantize_result result;
    ct_error error;
    ct_quantize_params_init(&p);
    p.output = output;
    p.bits = 8;
    p.group_size = 32;
    p.lora = &lora;
    p.loras = 1;
    test_ok(ct_quantize(context, directory, &p, &result, &error), &error);
    assert_int_equal(result.merged, 29);
    weights *before = transformer_of(directory), *after = transformer_of(output), *file = NULL;
    test_ok(weights_open_file(&file, &mem_default, lora.path, &error), &error);
    static const char *const modules[] = {"transformer_blocks.1.img_mlp.net.2",
                                          "transformer_blocks.0.attn.to_q", "img_in"};
    int quantized = 0;
    for (int m = 0; m < 3; m++) {
        char name[200], down[200], up[200];
        snprintf(name, sizeof name, "%s.weight", modules[m]);
        snprintf(down, sizeof down, "%s.lora_down.weight", modules[m]);
        snprintf(up, sizeof up, "%s.lora_up.weight", modules[m]);
        const weight_view *v = weights_find(before, name);
        const bool codes = names_find(after, name)->type == DTYPE_U32;
        quantized += codes;
        double worst = 0, change = 0, most = 0;
        for (int64_t i = 0; i < v->shape[0]; i++)
            for (int64_t j = 0; j < v->shape[1]; j++) {
                double sum = 0;
                for (int64_t r = 0; r < 3; r++)
                    sum += (double)at(file, up, i, r) * (double)at(file, down, r, j);
                const double truth = (double)at(before, name, i, j) + 2.0 / 3 * sum;
                worst = fmax(worst, fabs(truth - (double)at(after, name, i, j)));
                change = fmax(change, fabs(sum));
                most = fmax(most, fabs(truth));
            }
        assert_true(worst < (codes ? most / 200 : most * 1e-6));
        assert_true(change > 10 * worst);
    }
    assert_int_equal(quantized, 1);
    weights_close(before);
    weights_close(after);
    weights_close(file);
    ct_model *merged = family_with("qwen", 1), *written = opened(output, NULL, 1, false);
    ct_image *a = picture(merged), *b = picture(written);
    double sum = 0;
    for (int i = 0; i < 32 * 32 * 3; i++) {
        const double d = ct_image_pixels(a)[i] - ct_image_pixels(b)[i];
        sum += d * d;
    }
    assert_true(sqrt(sum / (32 * 32 * 3)) < 8); /* of 8 bits; another picture is at 70 */
    ct_image_free(&a);
    ct_image_free(&b);
    ct_model_free(&merged);
    ct_model_free(&written);
    /* What is refused leaves nothing behind. */
    p.output = test_path(&folder, "other");
    p.lora = &(ct_lora){lora_of("klein"), 1};
    test_error(ct_quantize(context, directory, &p, &result, &error), CT_EFORMAT, &error,
               "LoRA of another model");
    folder_remove(&mem_default, folder.path);
}

/* A quantized model takes a LoRA, in 8 bits, or in BF16 where it is decoded. */
static void test_on_quantized(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *output = test_path(&folder, "out");
    ct_quantize_params p;
    ct_error error;
    ct_quantize_params_init(&p);
    p.output = output;
    p.bits = 8;
    p.group_size = 32;
    test_ok(ct_quantize(context, test_fixture("qwen/model"), &p, NULL, &error), &error);
    ct_model *exact = family_with("qwen", 1), *codes = opened(output, lora_of("qwen"), 1, false);
    const ct_lora lora = {lora_of("qwen"), 1};
    ct_model_params params;
    ct_model_params_init(&params);
    params.lora = &lora;
    params.loras = 1;
    params.dequantize = true;
    ct_model *decoded = NULL;
    test_ok(ct_model_load_with(context, output, &params, &decoded, &error), &error);
    ct_image *truth = picture(exact);
    ct_model *const models[] = {codes, decoded};
    for (int k = 0; k < 2; k++) {
        ct_image *image = picture(models[k]);
        double sum = 0;
        for (int i = 0; i < 32 * 32 * 3; i++) {
            const double d = ct_image_pixels(truth)[i] - ct_image_pixels(image)[i];
            sum += d * d;
        }
        assert_true(sqrt(sum / (32 * 32 * 3)) < 8);
        ct_image_free(&image);
    }
    /* What is quantized is not quantized again, with or without. */
    p.output = test_path(&folder, "other");
    p.lora = &lora;
    p.loras = 1;
    test_error(ct_quantize(context, output, &p, NULL, &error), CT_EUNSUPPORTED, &error,
               "quantized already");
    ct_image_free(&truth);
    ct_model_free(&exact);
    ct_model_free(&codes);
    ct_model_free(&decoded);
    folder_remove(&mem_default, folder.path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference), cmocka_unit_test(test_recipe),
        cmocka_unit_test(test_refused),   cmocka_unit_test(test_plan),
        cmocka_unit_test(test_quantize),  cmocka_unit_test(test_on_quantized),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
