/* The library as its users meet it: bad input, cancel, memory that runs out, several seeds. */
#define _XOPEN_SOURCE 700
#include "recorded.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static ct_context *context;

static int set_up(void **state)
{
    (void)state;
    ct_context_params p;
    ct_context_params_init(&p);
    p.device = "cpu";
    p.threads = 2;
    p.cache_memory = 0; /* every job computes everything */
    return ct_context_create(&p, &context, NULL) == CT_OK ? 0 : 1;
}

static int tear_down(void **state)
{
    (void)state;
    ct_context_free(&context);
    return context != NULL;
}

static ct_model *load_turbo(void)
{
    ct_model *model = NULL;
    ct_error error;
    test_ok(ct_model_load(context, test_fixture("turbo/model"), &model, &error), &error);
    return model;
}

static ct_generate_params small(void)
{
    ct_generate_params p;
    ct_generate_params_init(&p);
    p.prompt = "A red fox.";
    p.width = 48;
    p.height = 16;
    p.steps = 2;
    p.seed = 7;
    return p;
}

/* ---- Directories with one thing wrong -------------------------------------------------------- */

static const char *const model_files[] = {
    "model_index.json",         "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    "text_encoder/config.json", "text_encoder/model.safetensors",
    "transformer/config.json",  "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",          "vae/diffusion_pytorch_model.safetensors",
};

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    (void)ftw;
    return remove(path);
}

/* A copy of the turbo model by symbolic links, so that single files can be replaced. */
static void link_model(char *path, size_t size)
{
    static const char *const folders[] = {"scheduler", "tokenizer", "text_encoder", "transformer",
                                          "vae"};
    const char *base = getenv("TMPDIR");
    snprintf(path, size, "%s/calotype-model-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(path));
    char to[1024], from[1024];
    for (int i = 0; i < 5; i++) {
        snprintf(to, sizeof to, "%s/%s", path, folders[i]);
        assert_int_equal(mkdir(to, 0777), 0);
    }
    for (size_t i = 0; i < sizeof model_files / sizeof *model_files; i++) {
        snprintf(from, sizeof from, "turbo/model/%s", model_files[i]);
        snprintf(to, sizeof to, "%s/%s", path, model_files[i]);
        assert_int_equal(symlink(test_fixture(from), to), 0);
    }
}

static void drop_model(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* Replaces a file; NULL removes it. */
static void put(const char *model, const char *file, const char *data, size_t size)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", model, file);
    unlink(path);
    if (data)
        test_write_file(path, data, size);
}

/* Replaces the first "from" in a file by "to". */
static void edit(const char *model, const char *file, const char *from, const char *to)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", model, file);
    size_t size;
    char *text = (char *)test_read_file(path, &size);
    char *at = strstr(text, from);
    if (!at)
        fail_msg("%s has no %s", file, from);
    size_t length = size - strlen(from) + strlen(to);
    char *changed = malloc(length + 1);
    assert_non_null(changed);
    snprintf(changed, length + 1, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    put(model, file, changed, length);
    free(changed);
    free(text);
}

static void expect_load(const char *model, ct_status status, const char *part)
{
    ct_model *m = (ct_model *)1;
    ct_error error;
    test_error(ct_model_load(context, model, &m, &error), status, &error, part);
    assert_null(m);
}

typedef struct damage {
    const char *file, *from, *to; /* from NULL: the whole file becomes to; both NULL: it is gone */
    ct_status status;
    const char *part; /* of the message */
} damage;

static const damage damages[] = {
    {"model_index.json", "ZImagePipeline", "QwenImageLayeredPipeline", CT_EUNSUPPORTED,
     "not supported yet"},
    {"model_index.json", "ZImagePipeline", "NoSuchPipeline", CT_EUNSUPPORTED, "NoSuchPipeline"},
    {"model_index.json", NULL, "[1, 2", CT_EFORMAT, "model_index.json"},
    {"model_index.json", NULL, "", CT_EFORMAT, "model_index.json"},
    {"scheduler/scheduler_config.json", NULL, NULL, CT_ENOTFOUND, "scheduler_config.json"},
    {"tokenizer/tokenizer.json", NULL, NULL, CT_ENOTFOUND, "tokenizer"},
    {"tokenizer/tokenizer.json", NULL, "{}", CT_EUNSUPPORTED, "tokenizer.json"},
    {"tokenizer/tokenizer.json", "<|im_start|>", "<|im_sturt|>", CT_EFORMAT, "<|im_start|>"},
    {"text_encoder/config.json", NULL, NULL, CT_ENOTFOUND, "text_encoder"},
    {"text_encoder/config.json", "Qwen3ForCausalLM", "LlamaForCausalLM", CT_EUNSUPPORTED, "Llama"},
    {"text_encoder/config.json", "\"hidden_size\": ", "\"hidden_size\": 1", CT_EFORMAT,
     "embed_tokens.weight"},
    {"text_encoder/config.json", "\"num_hidden_layers\": ", "\"num_hidden_layers\": -", CT_EFORMAT,
     "num_hidden_layers"},
    {"text_encoder/config.json", "\"num_hidden_layers\": ", "\"num_hidden_layers\": 1",
     CT_ENOTFOUND, "is missing"},
    {"text_encoder/config.json", "\"vocab_size\": ", "\"vocab_size\": 99999999", CT_EFORMAT,
     "vocab_size"},
    {"text_encoder/model.safetensors", NULL, NULL, CT_ENOTFOUND, "text_encoder"},
    {"text_encoder/model.safetensors", NULL, "short", CT_EFORMAT, "model.safetensors"},
    {"transformer/config.json", NULL, NULL, CT_ENOTFOUND, "transformer"},
    {"transformer/config.json", "ZImageTransformer2DModel", "FluxTransformer2DModel",
     CT_EUNSUPPORTED, "FluxTransformer2DModel"},
    {"transformer/config.json", "\"n_heads\": ", "\"n_heads\": 7", CT_EFORMAT, "axes_dims"},
    {"transformer/config.json", "\"n_layers\": ", "\"n_layers\": 1", CT_ENOTFOUND, "layers."},
    {"transformer/config.json", "\"cap_feat_dim\": ", "\"cap_feat_dim\": 1", CT_EFORMAT,
     "cap_embedder.0.weight"},
    {"transformer/config.json", "\"dim\": ", "\"dim\": \"many\", \"x\": ", CT_EFORMAT, "dim"},
    {"transformer/config.json", "\"siglip_feat_dim\": null", "\"siglip_feat_dim\": 1152",
     CT_EUNSUPPORTED, "siglip_feat_dim"},
    {"vae/config.json", NULL, NULL, CT_ENOTFOUND, "vae"},
    {"vae/config.json", "\"latent_channels\": ", "\"latent_channels\": 1", CT_EFORMAT, "conv_out"},
    {"vae/config.json", "\"norm_num_groups\": ", "\"norm_num_groups\": 7", CT_EFORMAT,
     "norm_num_groups"},
    {"vae/config.json", "\"act_fn\": \"silu\"", "\"act_fn\": \"relu\"", CT_EUNSUPPORTED, "act_fn"},
};

static void test_damaged_models(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        const damage *d = &damages[i];
        char model[512];
        link_model(model, sizeof model);
        if (d->from)
            edit(model, d->file, d->from, d->to);
        else
            put(model, d->file, d->to, d->to ? strlen(d->to) : 0);
        expect_load(model, d->status, d->part);
        drop_model(model);
    }
    expect_load("/no/such/folder", CT_ENOTFOUND, "/no/such/folder");
    expect_load(test_fixture("rng.safetensors"), CT_ENOTFOUND, "is not a directory");
}

/* A weight file that ends early, at many places: never a crash, always its name. */
static void test_truncated_weights(void **state)
{
    (void)state;
    char model[512];
    link_model(model, sizeof model);
    const char *file = "transformer/diffusion_pytorch_model.safetensors";
    size_t size;
    char name[128];
    snprintf(name, sizeof name, "turbo/model/%s", file);
    char *whole = (char *)test_read_file(test_fixture(name), &size);
    for (size_t length = 0; length < size; length += size / 37 + 1) {
        put(model, file, whole, length);
        expect_load(model, CT_EFORMAT, "diffusion_pytorch_model.safetensors");
    }
    free(whole);
    drop_model(model);
}

/* ---- Parameters ------------------------------------------------------------------------------ */

static void test_bad_parameters(void **state)
{
    (void)state;
    ct_model *model = load_turbo();
    ct_generate_params p = small();
    p.width = 50;
    expect_refusal(model, &p, CT_EINVAL, "48 and 64");
    p = small();
    p.height = -16;
    expect_refusal(model, &p, CT_EINVAL, "height");
    p = small();
    p.width = 1 << 30;
    expect_refusal(model, &p, CT_EINVAL, "width");
    p = small();
    p.steps = -1;
    expect_refusal(model, &p, CT_EINVAL, "steps");
    p = small();
    p.steps = 1001;
    expect_refusal(model, &p, CT_EINVAL, "steps");
    p = small();
    p.guidance = -0.5;
    expect_refusal(model, &p, CT_EINVAL, "guidance");
    p = small();
    p.guidance = NAN;
    expect_refusal(model, &p, CT_EINVAL, "guidance");
    p = small();
    p.cfg_scale = 0.5;
    expect_refusal(model, &p, CT_EINVAL, "cfg_scale");
    p = small();
    p.cfg_scale = 4;
    p.guidance = 3;
    expect_refusal(model, &p, CT_EINVAL, "give one of them");
    p = small();
    p.shift = -3;
    expect_refusal(model, &p, CT_EINVAL, "shift");
    p = small();
    p.cfg_truncation = 2;
    expect_refusal(model, &p, CT_EINVAL, "cfg_truncation");
    p = small();
    p.precision = (ct_precision)77;
    expect_refusal(model, &p, CT_EINVAL, "precision");
    p = small();
    p.rng = (ct_rng)77;
    expect_refusal(model, &p, CT_EINVAL, "rng");
    p = small();
    p.prompt = NULL;
    expect_refusal(model, &p, CT_EINVAL, "prompt");
    p = small();
    p.prompt = "bad \xff\xfe bytes";
    expect_refusal(model, &p, CT_EINVAL, "byte 4");
    p = small();
    p.trace_path = "/no/such/folder/trace.safetensors";
    expect_refusal(model, &p, CT_EIO, "/no/such/folder/trace.safetensors");
    p = small();
    p.struct_size = 3;
    expect_refusal(model, &p, CT_EINVAL, "ct_generate_params_init");
    ct_error error;
    ct_image *image;
    assert_int_equal(ct_generate(NULL, &p, &image, &error), CT_EINVAL);
    ct_model_free(&model);
}

static void count_warning(void *user, ct_log_level level, const char *message)
{
    (void)message;
    if (level == CT_LOG_WARNING)
        ++*(int *)user;
}

static void test_prompt_lengths(void **state)
{
    (void)state;
    ct_model *model = load_turbo();
    int warnings = 0;
    ct_callbacks callbacks = {.user = &warnings, .log = count_warning};
    ct_generate_params p = small();
    p.callbacks = &callbacks;
    ct_job *job = NULL;
    ct_error error;
    p.prompt = "";
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    assert_true(ct_job_get_info(job)->prompt_tokens > 0); /* the chat frame alone */
    ct_job_free(&job);
    assert_int_equal(warnings, 0);

    char *big = malloc(100001);
    assert_non_null(big);
    for (int i = 0; i < 100000; i++)
        big[i] = "red fox, "[i % 9];
    big[100000] = 0;
    p.prompt = big;
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    assert_true(ct_job_get_info(job)->prompt_truncated);
    assert_int_equal(ct_job_get_info(job)->prompt_tokens, 512);
    assert_int_equal(warnings, 1);
    ct_job_free(&job);
    free(big);
    ct_model_free(&model);
}

static void test_defaults(void **state)
{
    (void)state;
    static const struct {
        const char *model, *variant;
        int steps, evaluations;
        double guidance, shift;
    } truth[] = {{"turbo/model", "Turbo", 8, 8, 0, 3}, {"base/model", "base", 50, 100, 4, 6}};
    for (int i = 0; i < 2; i++) {
        ct_model *model = NULL;
        ct_job *job = NULL;
        ct_error error;
        test_ok(ct_model_load(context, test_fixture(truth[i].model), &model, &error), &error);
        const ct_model_info *info = ct_model_get_info(model);
        assert_string_equal(info->variant, truth[i].variant);
        assert_int_equal(info->components, 3);
        assert_int_equal(strlen(info->hash), 32);
        ct_generate_params p = small();
        p.steps = 0;
        test_ok(ct_job_create(model, &p, &job, &error), &error);
        const ct_job_info *j = ct_job_get_info(job);
        assert_int_equal(j->steps, truth[i].steps);
        assert_int_equal(j->evaluations, truth[i].evaluations);
        assert_true(j->guidance == truth[i].guidance && j->cfg_scale == truth[i].guidance + 1);
        assert_true(j->shift == truth[i].shift);
        assert_true(j->activation_bytes > 0);
        ct_job_free(&job);
        ct_model_free(&model);
    }
}

/* ---- Noise from a file ----------------------------------------------------------------------- */

static void test_noise_file(void **state)
{
    (void)state;
    ct_model *model = load_turbo();
    ct_error error;
    ct_image *drawn = NULL, *read = NULL;
    ct_generate_params p = small();
    test_folder folder;
    test_folder_create(&folder);
    p.trace_path = test_path(&folder, "trace.safetensors"); /* has the tensor "noise" */
    test_ok(ct_generate(model, &p, &drawn, &error), &error);
    p.noise_path = p.trace_path;
    p.trace_path = NULL;
    p.seed = 1;
    test_ok(ct_generate(model, &p, &read, &error), &error);
    assert_memory_equal(ct_image_pixels(drawn), ct_image_pixels(read), 48 * 16 * 3);
    ct_image_free(&read);
    p.width = 16;
    ct_job *job = NULL; /* is refused before any work */
    test_error(ct_job_create(model, &p, &job, &error), CT_EFORMAT, &error, "shape [16, 2, 2]");
    p.noise_path = test_fixture("rng.safetensors");
    test_error(ct_job_create(model, &p, &job, &error), CT_ENOTFOUND, &error, "noise");
    p.noise_path = "/no/such/file";
    test_error(ct_job_create(model, &p, &job, &error), CT_ENOTFOUND, &error, "/no/such/file");
    ct_image_free(&drawn);
    ct_model_free(&model);
    test_folder_remove(&folder);
}

/* ---- Callbacks ------------------------------------------------------------------------------- */

typedef struct watcher {
    int asked, stop_at; /* cancel when asked for the stop_at-th time; 0: never */
    int stage, step, previews;
    bool went_back;
} watcher;

static bool cancel(void *user)
{
    watcher *w = user;
    return ++w->asked == w->stop_at;
}

static void progress(void *user, const ct_progress *p)
{
    watcher *w = user;
    w->went_back |= (int)p->stage < w->stage || ((int)p->stage == w->stage && p->step < w->step) ||
                    p->step > p->steps;
    w->stage = (int)p->stage;
    w->step = p->step;
    if (p->preview) {
        assert_int_equal(p->preview->channels, 16);
        assert_int_equal(p->preview->height * p->preview->width, 2 * 6);
        w->previews++;
    }
}

static void test_cancel_anywhere(void **state)
{
    (void)state;
    ct_model *model = load_turbo();
    watcher w = {0};
    ct_callbacks callbacks = {.user = &w, .cancel = cancel, .progress = progress};
    ct_generate_params p = small();
    p.callbacks = &callbacks;
    ct_error error;
    ct_job *job = NULL;
    ct_image *first = NULL, *image = NULL;
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    assert_int_equal(w.asked, 0); /* a plan asks nobody */
    test_ok(ct_job_run(job, 7, &first, &error), &error);
    assert_false(w.went_back);
    assert_int_equal(w.previews, 2);
    assert_int_equal(w.stage, CT_STAGE_DECODE);
    ct_job_free(&job);
    int all = w.asked;
    assert_true(all > 100); /* between any two operations */

    test_ok(ct_job_create(model, &p, &job, &error), &error);
    for (int at = 1; at <= all; at += 13) {
        w = (watcher){.stop_at = at};
        ct_status status = ct_job_run(job, 7, &image, &error);
        if (status ==
            CT_OK) { /* the prompt was encoded by an earlier run, so there is less to ask */
            assert_true(w.asked < at);
            ct_image_free(&image);
            continue;
        }
        test_error(status, CT_ECANCELLED, &error, "cancelled");
        assert_null(image);
    }
    /* After all that the job still gives the same picture. */
    w = (watcher){0};
    test_ok(ct_job_run(job, 7, &image, &error), &error);
    assert_memory_equal(ct_image_pixels(first), ct_image_pixels(image), 48 * 16 * 3);
    ct_image_free(&first);
    ct_image_free(&image);
    ct_job_free(&job);
    ct_model_free(&model);
}

static void test_seeds_do_not_meet(void **state)
{
    (void)state;
    ct_model *model = load_turbo();
    ct_generate_params p = small();
    ct_error error;
    ct_job *job = NULL;
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    for (uint64_t seed = 5; seed < 8; seed++) {
        ct_image *together = NULL, *alone = NULL;
        test_ok(ct_job_run(job, seed, &together, &error), &error);
        p.seed = seed;
        test_ok(ct_generate(model, &p, &alone, &error), &error);
        assert_memory_equal(ct_image_pixels(together), ct_image_pixels(alone), 48 * 16 * 3);
        assert_true(ct_image_seed(together) == seed);
        assert_string_equal(ct_image_recipe_json(together), ct_image_recipe_json(alone));
        ct_image_free(&together);
        ct_image_free(&alone);
    }
    ct_job_free(&job);
    ct_model_free(&model);
}

static void test_save_and_load(void **state)
{
    (void)state;
    ct_model *model = load_turbo();
    ct_generate_params p = small();
    p.prompt = "Füchsin 🦊, \"quoted\"\nsecond line";
    ct_error error;
    ct_image *image = NULL, *back = NULL;
    test_folder folder;
    test_folder_create(&folder);
    test_ok(ct_generate(model, &p, &image, &error), &error);
    const char *path = test_path(&folder, "a.png");
    test_ok(ct_image_save(image, path, &error), &error);
    test_ok(ct_image_load(context, path, &back, &error), &error);
    assert_int_equal(ct_image_width(back), 48);
    assert_int_equal(ct_image_height(back), 16);
    assert_memory_equal(ct_image_pixels(back), ct_image_pixels(image), 48 * 16 * 3);
    assert_string_equal(ct_image_recipe_json(back), ct_image_recipe_json(image));
    assert_string_equal(ct_image_recipe_text(back), ct_image_recipe_text(image));
    assert_non_null(strstr(ct_image_recipe_text(back), "Seed: 7"));
    test_error(ct_image_save(image, "/no/such/folder/a.png", &error), CT_EIO, &error, "/no/such");
    test_error(ct_image_save(image, folder.path, &error), CT_EIO, &error, "directory");
    test_ok(ct_output_check(test_path(&folder, "b.png"), &error), &error);
    assert_int_equal(test_folder_count(&folder), 1);
    ct_image_free(&image);
    ct_image_free(&back);
    ct_model_free(&model);
    test_folder_remove(&folder);
}

/* ---- Memory as planned ----------------------------------------------------------------------- */

static void test_plan(void **state)
{
    (void)state;
    ct_model *model = load_turbo();
    ct_error error;
    ct_generate_params p = small();
    ct_memory_plan plan = {0}, longest;
    assert_int_equal(ct_model_plan(model, &p, &plan, &error), CT_EINVAL);
    ct_memory_plan_init(&plan);
    ct_memory_plan_init(&longest);
    assert_int_equal(ct_model_plan(NULL, &p, &plan, &error), CT_EINVAL);
    p.width = 50;
    assert_int_equal(ct_model_plan(model, &p, &plan, &error), CT_EINVAL);
    p = small();
    p.trace_path = "/no/such/folder/trace"; /* nothing is written */
    test_ok(ct_model_plan(model, &p, &plan, &error), &error);
    p.trace_path = NULL;
    assert_int_equal(plan.width, 48);
    assert_int_equal(plan.height, 16);
    assert_false(plan.prompt_assumed);
    assert_true(plan.chosen.fits && plan.chosen.streamed_blocks == 0);
    assert_true(plan.limit_bytes == plan.available_bytes);
    p.prompt = NULL;
    test_ok(ct_model_plan(model, &p, &longest, &error), &error);
    assert_true(longest.prompt_assumed && longest.prompt_tokens == 512);
    assert_true(longest.stage[0].activation_bytes > plan.stage[0].activation_bytes);

    /* The plan does not refuse, the job does, and says the same. */
    p = small();
    p.max_memory = 1 << 20;
    test_ok(ct_model_plan(model, &p, &plan, &error), &error);
    assert_false(plan.chosen.fits);
    test_error(error.code, CT_ENOMEM, &error, "of the limit");
    assert_int_equal(plan.chosen.streamed_blocks, plan.stage[CT_STAGE_DENOISE].blocks);
    expect_refusal(model, &p, CT_ENOMEM, "of the limit");

    /* The VAE decides: strips, as high as they can be, and nothing of the transformer is streamed;
     * the job does what the plan says. */
    p.width = p.height = 512;
    p.max_memory = 0;
    test_ok(ct_model_plan(model, &p, &plan, &error), &error);
    assert_int_equal(plan.chosen.strip_height, 0);
    assert_int_equal(plan.streamed.strip_height, 0);
    assert_true(plan.strips.peak_bytes < plan.resident.peak_bytes);
    assert_true(plan.strips.stage_bytes[CT_STAGE_DECODE] >
                plan.resident.stage_bytes[CT_STAGE_DENOISE]);
    const uint64_t between = (plan.strips.peak_bytes + plan.resident.peak_bytes) / 2;
    const int lowest = plan.strips.strip_height;
    p.max_memory = between;
    test_ok(ct_model_plan(model, &p, &plan, &error), &error);
    assert_true(plan.chosen.fits && plan.chosen.peak_bytes <= between);
    assert_true(plan.chosen.strip_height > lowest && lowest > 0);
    assert_int_equal(plan.chosen.streamed_blocks, 0);
    ct_job *job = NULL;
    test_ok(ct_job_create(model, &p, &job, &error), &error);
    assert_int_equal(ct_job_get_info(job)->strip_height, plan.chosen.strip_height);
    ct_job_free(&job);
    ct_model_free(&model);
}

/* ---- Memory runs out at every place ---------------------------------------------------------- */

static ct_status whole_life(const ct_allocator *a, ct_error *error)
{
    ct_context_params cp;
    ct_context_params_init(&cp);
    cp.device = "cpu";
    cp.allocator = *a;
    cp.threads = 1;
    cp.cache_memory = 0; /* test_cache.c has the same with it */
    ct_generate_params p = small();
    p.steps = 1;
    p.width = 16;
    ct_context *c = NULL;
    ct_model *model = NULL;
    ct_image *image = NULL;
    ct_status status = ct_context_create(&cp, &c, error);
    if (status == CT_OK)
        status = ct_model_load(c, test_fixture("turbo/model"), &model, error);
    ct_memory_plan plan;
    ct_memory_plan_init(&plan);
    if (status == CT_OK)
        status = ct_model_plan(model, &p, &plan, error);
    if (status == CT_OK)
        status = ct_generate(model, &p, &image, error);
    ct_image_free(&image);
    ct_model_free(&model);
    ct_context_free(&c);
    return status;
}

/* ---- Measuring ------------------------------------------------------------------------------- */

typedef struct bench_seen {
    int lines, stop_after; /* 0: never */
} bench_seen;

static bool bench_cancel(void *user)
{
    const bench_seen *seen = user;
    return seen->stop_after && seen->lines >= seen->stop_after;
}

static void bench_line(void *user, const ct_bench_line *line)
{
    bench_seen *seen = user;
    seen->lines++;
    assert_non_null(line->operation);
    assert_non_null(line->compute);
    assert_non_null(line->kernel);
    const bool peak = !strcmp(line->operation, "peak");
    assert_true(peak == !line->layer && peak == !line->model && peak == !line->side);
    assert_true(line->rate > 0 && line->seconds > 0 && line->runs >= 3);
}

static void test_bench(void **state)
{
    (void)state;
    bench_seen seen = {0};
    ct_context_params context_params;
    ct_context_params_init(&context_params);
    context_params.device = "cpu";
    context_params.threads = 2;
    context_params.callbacks = (ct_callbacks){.user = &seen, .cancel = bench_cancel};
    ct_context *c = NULL;
    ct_error error;
    test_ok(ct_context_create(&context_params, &c, &error), &error);
    ct_bench_params p;
    ct_bench_params_init(&p);
    test_error(ct_bench(c, &p, &error), CT_EINVAL, &error, "lines");
    p.user = &seen;
    p.line = bench_line;
    p.rows = -1;
    test_error(ct_bench(c, &p, &error), CT_EINVAL, &error, "rows");
    p.rows = 2;
    p.seconds = NAN;
    test_error(ct_bench(c, &p, &error), CT_EINVAL, &error, "seconds");
    p.seconds = 0.001;
    p.what = 1u << 20;
    test_error(ct_bench(c, &p, &error), CT_EINVAL, &error, "work");
    p.what = CT_BENCH_ROWS;
    p.models = 1u << 20;
    test_error(ct_bench(c, &p, &error), CT_EINVAL, &error, "model");
    p.models = 0;
    p.precision = CT_PRECISION_FP8;
    test_error(ct_bench(c, &p, &error), CT_EINVAL, &error, "precision");
    p.precision = CT_PRECISION_AUTO;
    p.side_count = 1;
    test_error(ct_bench(c, &p, &error), CT_EINVAL, &error, "sides");
    p.sides = (const int[]){500};
    test_error(ct_bench(c, &p, &error), CT_EINVAL, &error, "multiples of 16");
    p.sides = (const int[]){64};
    test_ok(ct_bench(c, &p, &error), &error);
    assert_true(seen.lines >= 5);
    seen.stop_after = seen.lines;
    test_error(ct_bench(c, &p, &error), CT_ECANCELLED, &error, "cancel");
    p.struct_size = 1;
    test_error(ct_bench(c, &p, &error), CT_EINVAL, &error, "ct_bench_params_init");
    uint64_t free_bytes, total;
    test_error(ct_context_gpu_memory(c, &free_bytes, &total, &error), CT_EUNSUPPORTED, &error,
               "CPU");
    ct_context_free(&c);
}

static void test_every_allocation_fails(void **state)
{
    (void)state;
    test_heap heap;
    ct_error error;
    test_heap_init(&heap, 0);
    test_ok(whole_life(&heap.allocator, &error), &error);
    assert_int_equal(heap.live, 0);
    long all = heap.calls;
    assert_true(all > 50);
    for (long at = 1; at <= all; at++) {
        test_heap_init(&heap, at);
        /* The regular expression's compiler is optional: without memory for it, it is slower. */
        ct_status status = whole_life(&heap.allocator, &error);
        if (status != CT_OK)
            test_error(status, CT_ENOMEM, &error, "memory");
        assert_int_equal(heap.live, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_damaged_models),
        cmocka_unit_test(test_truncated_weights),
        cmocka_unit_test(test_bad_parameters),
        cmocka_unit_test(test_prompt_lengths),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_noise_file),
        cmocka_unit_test(test_cancel_anywhere),
        cmocka_unit_test(test_seeds_do_not_meet),
        cmocka_unit_test(test_save_and_load),
        cmocka_unit_test(test_every_allocation_fails),
        cmocka_unit_test(test_plan),

        cmocka_unit_test(test_bench),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
