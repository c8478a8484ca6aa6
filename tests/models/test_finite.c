/* Numbers that are not finite: a job fails, and names the first operation that made them. On the
 * CPU, or with a device as argument, on that; skipped where it cannot be used. */
#define _XOPEN_SOURCE 700 /* mkdtemp */
#include "recorded.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/mem.h"

static ct_context *context;

#define TRANSFORMER "transformer/diffusion_pytorch_model.safetensors"
#define ENCODER "text_encoder/model.safetensors"
#define VAE "vae/diffusion_pytorch_model.safetensors"

static const char *const folders[] = {"scheduler", "tokenizer", "text_encoder", "transformer",
                                      "vae"};
static const char *const files[] = {"model_index.json",         "scheduler/scheduler_config.json",
                                    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
                                    "text_encoder/config.json", ENCODER,
                                    "transformer/config.json",  TRANSFORMER,
                                    "vae/config.json",          VAE};
enum { FOLDERS = sizeof folders / sizeof *folders, FILES = sizeof files / sizeof *files };

/* The bytes of a file of weights, with number `index` of a tensor made NaN. */
static unsigned char *with_nan(const char *file, const char *tensor, size_t index, size_t *size)
{
    char name[256], key[256];
    snprintf(name, sizeof name, "turbo/model/%s", file);
    unsigned char *bytes = test_read_file(test_fixture(name), size);
    uint64_t header;
    memcpy(&header, bytes, 8);
    snprintf(key, sizeof key, "\"%s\":", tensor);
    const char *at = strstr((const char *)bytes + 8, key);
    assert_non_null(at);
    const bool halves = strstr(at, "BF16") && strstr(at, "BF16") < strchr(at, '}');
    at = strstr(at, "\"data_offsets\":");
    assert_non_null(at);
    const size_t offset = (size_t)strtoull(strchr(at, '[') + 1, NULL, 10);
    static const unsigned char nan[] = {0, 0, 0xc0, 0x7f};
    memcpy(bytes + 8 + header + offset + index * (halves ? 2 : 4), halves ? nan + 2 : nan,
           halves ? 2 : 4);
    return bytes;
}

/* A copy of the model by links but for the file with the damage. */
static void make_model(char *path, const char *file, const char *tensor, size_t index)
{
    char to[512], from[512];
    assert_non_null(mkdtemp(path));
    for (int i = 0; i < FOLDERS; i++) {
        snprintf(to, sizeof to, "%s/%s", path, folders[i]);
        assert_int_equal(mkdir(to, 0777), 0);
    }
    for (int i = 0; i < FILES; i++) {
        snprintf(to, sizeof to, "%s/%s", path, files[i]);
        snprintf(from, sizeof from, "turbo/model/%s", files[i]);
        if (strcmp(files[i], file) != 0) {
            assert_int_equal(symlink(test_fixture(from), to), 0);
            continue;
        }
        size_t size;
        unsigned char *bytes = with_nan(file, tensor, index, &size);
        test_write_file(to, bytes, size);
        free(bytes);
    }
}

static void drop_model(const char *path)
{
    char name[512];
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "%s/%s", path, files[i]);
        assert_int_equal(unlink(name), 0);
    }
    for (int i = 0; i < FOLDERS; i++) {
        snprintf(name, sizeof name, "%s/%s", path, folders[i]);
        assert_int_equal(rmdir(name), 0);
    }
    assert_int_equal(rmdir(path), 0);
}

typedef struct damage {
    const char *file, *tensor;
    ct_precision precision;
    ct_status status;
    const char *part; /* of the message */
} damage;

static const damage damages[] = {
    {TRANSFORMER, "layers.1.feed_forward.w2.weight", CT_PRECISION_FP32, CT_EFORMAT,
     "step 1 of 3: linear with layers.1.feed_forward.w2.weight, computed in fp32"},
    {TRANSFORMER, "layers.1.feed_forward.w2.weight", CT_PRECISION_BF16, CT_EUNSUPPORTED,
     "--precision fp32"},
    {TRANSFORMER, "layers.0.attention.norm_q.weight", CT_PRECISION_FP32, CT_EFORMAT,
     "head_norm_rope with layers.0.attention.norm_q.weight"},
    {TRANSFORMER, "layers.0.attention.to_v.weight", CT_PRECISION_BF16, CT_EUNSUPPORTED,
     "step 1 of 3: linears with layers.0.attention.to_q.weight"},
    {TRANSFORMER, "layers.1.ffn_norm2.weight", CT_PRECISION_INT8, CT_EUNSUPPORTED,
     "add_rms_norm with layers.1.ffn_norm2.weight, computed in int8"},
    {TRANSFORMER, "layers.0.adaLN_modulation.0.bias", CT_PRECISION_FP32, CT_EFORMAT,
     "linear with layers.0.adaLN_modulation.0.weight"},
    {TRANSFORMER, "context_refiner.0.ffn_norm2.weight", CT_PRECISION_FP32, CT_EFORMAT,
     "with context_refiner.0.ffn_norm2.weight"},
    {ENCODER, "model.layers.0.mlp.down_proj.weight", CT_PRECISION_FP32, CT_EFORMAT,
     "text encoder: linear with model.layers.0.mlp.down_proj.weight"},
    {VAE, "decoder.conv_in.weight", CT_PRECISION_FP32, CT_EFORMAT,
     "VAE: conv2d with decoder.conv_in.weight"},
    {VAE, "decoder.conv_norm_out.weight", CT_PRECISION_FP32, CT_EFORMAT,
     "VAE: group_factors with decoder.conv_norm_out.weight"},
};

static ct_generate_params small(ct_precision precision)
{
    ct_generate_params p;
    ct_generate_params_init(&p);
    p.prompt = "A red fox.";
    p.width = 48;
    p.height = 32;
    p.steps = 3;
    p.precision = precision;
    return p;
}

/* The same job fails alike when it is run again, and with a trace. */
static void test_damaged_weights(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        const damage *d = &damages[i];
        char path[] = "/tmp/calotype_finite_XXXXXX";
        make_model(path, d->file, d->tensor, 0);
        ct_model *model = NULL;
        ct_job *job = NULL;
        ct_image *image = NULL;
        ct_error error;
        test_folder folder;
        test_folder_create(&folder);
        ct_generate_params p = small(d->precision);
        test_ok(ct_model_load(context, path, &model, &error), &error);
        for (int traced = 0; traced < 2; traced++) {
            p.trace_path = traced ? test_path(&folder, "trace.safetensors") : NULL;
            p.trace_modules = traced;
            test_ok(ct_job_create(model, &p, &job, &error), &error);
            for (int again = 0; again < 2; again++) {
                test_error(ct_job_run(job, 7, &image, &error), d->status, &error, d->part);
                assert_null(image);
            }
            ct_job_free(&job);
        }
        assert_int_equal(test_folder_count(&folder), 0);
        test_folder_remove(&folder);
        ct_model_free(&model);
        drop_model(path);
    }
}

static void write_noise(const char *path, float first)
{
    static const char header[] = "{\"noise\":{\"dtype\":\"F32\",\"shape\":[16,4,6],"
                                 "\"data_offsets\":[0,1536]}}     ";
    static unsigned char file[8 + sizeof header - 1 + 1536];
    const uint64_t size = sizeof header - 1;
    memset(file, 0, sizeof file);
    memcpy(file, &size, 8);
    memcpy(file + 8, header, size);
    memcpy(file + 8 + size, &first, sizeof first);
    test_write_file(path, file, sizeof file);
}

static void test_damaged_noise(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    ct_model *model = recorded_model(context, "turbo/small");
    ct_image *image = NULL;
    ct_error error;
    ct_generate_params p = small(CT_PRECISION_FP32);
    p.noise_path = test_path(&folder, "noise.safetensors");
    write_noise(p.noise_path, 1);
    test_ok(ct_generate(model, &p, &image, &error), &error);
    ct_image_free(&image);
    write_noise(p.noise_path, 1.0f / 0.0f);
    test_error(ct_generate(model, &p, &image, &error), CT_EFORMAT, &error, "not finite");
    ct_model_free(&model);
    test_folder_remove(&folder);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_damaged_weights),
        cmocka_unit_test(test_damaged_noise),
    };
    ct_context_params params;
    ct_error error;
    ct_context_params_init(&params);
    params.device = argc > 1 ? argv[1] : "cpu";
    params.cache = getenv("CALOTYPE_CACHE");
    params.threads = 2;
    params.cache_limit = params.cache_memory = 0; /* every job computes everything */
    if (ct_context_create(&params, &context, &error) != CT_OK) {
        printf("skipped: %s\n", error.message);
        return 77;
    }
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    ct_context_free(&context);
    return failed;
}
