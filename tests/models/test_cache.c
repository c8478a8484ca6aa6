/* Results that are kept: the same pictures with them, from networks that cannot work any more.
 *
 * To see that a network is not needed, numbers of the model's files are overwritten while the model
 * is open: the files are mapped, so whoever reads them from then on computes nonsense, or finds
 * numbers that are not finite. */
#define _DEFAULT_SOURCE
#include "recorded.h"

#include "core/file.h"
#include "core/folder.h"
#include "core/mem.h"
#include "pipeline/internal.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- What the tests share -------------------------------------------------------------------- */

typedef struct seen {
    int warnings, encoder, schedule, pictures; /* lines that say so */
    int memory;                                /* of them, in memory */
    int angles;                                /* that were in memory, where else they never are */
    char warning[1024];
} seen;

static void on_log(void *user, ct_log_level level, const char *message)
{
    seen *s = user;
    s->warnings += level == CT_LOG_WARNING;
    if (level == CT_LOG_WARNING)
        snprintf(s->warning, sizeof s->warning, "%s", message);
    if (strncmp(message, "cache: ", 7) != 0 || level != CT_LOG_INFO)
        return;
    if (strstr(message, "the angles of")) {
        s->angles++;
        return;
    }
    s->encoder += strstr(message, "the text encoder does not run") != NULL;
    s->schedule += strstr(message, "schedule") != NULL;
    s->pictures += strstr(message, "reference picture") != NULL;
    s->memory += strstr(message, "in memory") != NULL;
}

/* cache: a folder, or NULL. */
static ct_context *open_context(const char *cache, bool memory, seen *s)
{
    ct_context_params p;
    ct_context *context = NULL;
    ct_error error;
    ct_context_params_init(&p);
    p.threads = 2;
    p.device = "cpu";
    p.cache = cache;
    p.cache_memory = memory ? p.cache_memory : 0;
    if (s)
        p.callbacks = (ct_callbacks){.user = s, .log = on_log};
    test_ok(ct_context_create(&p, &context, &error), &error);
    return context;
}

static ct_model *open_model(ct_context *context, const char *path)
{
    ct_model *model = NULL;
    ct_error error;
    test_ok(ct_model_load(context, path, &model, &error), &error);
    return model;
}

/* A family: what its pictures are made from, and which tensors do what is kept. */
typedef struct kind {
    const char *name;
    int references;
    bool guided, sees;
    const char *const *modulation; /* parts of names; NULL ends them */
} kind;

static const char *const zimage_modulation[] = {"adaLN_modulation", "t_embedder", NULL};
static const char *const flux2_modulation[] = {"modulation", "norm_out.linear",
                                               "time_guidance_embed", NULL};
static const char *const qwen_modulation[] = {"img_mod", "txt_mod", "norm_out.linear",
                                              "time_text_embed", NULL};

static const kind kinds[] = {
    {"turbo", 0, false, false, zimage_modulation}, {"base", 0, true, false, zimage_modulation},
    {"klein", 2, false, false, flux2_modulation},  {"klein_base", 0, true, false, flux2_modulation},
    {"qwen", 0, true, false, qwen_modulation},     {"qwen_plus", 1, true, true, qwen_modulation},
};
#define KINDS (sizeof kinds / sizeof *kinds)

typedef struct world {
    test_folder folder; /* with a copy of the model, and the cache */
    char model[600], cache[600];
    const kind *kind;
    ct_context *plain; /* that keeps nothing; it has the references */
    ct_image *references[2];
} world;

typedef struct copying {
    const char *from, *to;
} copying;

static void copy_folder(const char *from, const char *to);

static ct_status copy_entry(void *user, const char *name, ct_error *error)
{
    (void)error;
    const copying *c = user;
    char from[700], to[700];
    snprintf(from, sizeof from, "%s/%s", c->from, name);
    snprintf(to, sizeof to, "%s/%s", c->to, name);
    if (file_is_directory(from)) {
        copy_folder(from, to);
        return CT_OK;
    }
    size_t size;
    unsigned char *data = test_read_file(from, &size);
    test_write_file(to, data, size);
    free(data);
    return CT_OK;
}

static void copy_folder(const char *from, const char *to)
{
    copying c = {from, to};
    ct_error error;
    test_ok(folder_create(to, &error), &error);
    test_ok(folder_each(from, copy_entry, &c, &error), &error);
}

static void open_world(world *w, const kind *k)
{
    char name[100];
    ct_error error;
    *w = (world){.kind = k};
    test_folder_create(&w->folder);
    snprintf(w->model, sizeof w->model, "%s/model", w->folder.path);
    snprintf(w->cache, sizeof w->cache, "%s/cache", w->folder.path);
    snprintf(name, sizeof name, "%s/model", k->name);
    copy_folder(test_fixture(name), w->model);
    w->plain = open_context(NULL, false, NULL);
    for (int i = 0; i < k->references; i++) {
        uint8_t pixels[80 * 64 * 3];
        for (size_t p = 0; p < sizeof pixels; p++)
            pixels[p] = (uint8_t)(p * 3 + p / 97 + (size_t)i * 50);
        test_ok(ct_image_from_pixels(w->plain, 80, 64, pixels, &w->references[i], &error), &error);
    }
}

static void close_world(world *w)
{
    for (int i = 0; i < 2; i++)
        ct_image_free(&w->references[i]);
    ct_context_free(&w->plain);
    folder_remove(&mem_default, w->folder.path);
}

static ct_generate_params params_of(const world *w)
{
    ct_generate_params p;
    ct_generate_params_init(&p);
    p.prompt = "A red fox.";
    p.width = 48;
    p.height = 32;
    p.steps = 2;
    p.seed = 7;
    p.precision = CT_PRECISION_FP32;
    if (w->kind->guided)
        p.cfg_scale = 3;
    p.references = (const ct_image *const *)w->references;
    p.reference_count = w->kind->references;
    return p;
}

/* Generates, and the picture must be that. */
static void expect_picture(ct_model *model, const ct_generate_params *p, const ct_image *picture)
{
    ct_image *image = picture_of(model, p);
    assert_true(same_pixels(image, picture));
    ct_image_free(&image);
}

static void expect_failure(ct_model *model, const ct_generate_params *p)
{
    ct_image *image = NULL;
    ct_error error;
    test_error(ct_generate(model, p, &image, &error), CT_EFORMAT, &error, "not finite");
}

/* How many files of a kind ("": of any) are kept. */
typedef struct counting {
    const char *kind;
    int files;
} counting;

static ct_status count_file(void *user, const char *name, ct_error *error)
{
    counting *c = user;
    (void)error;
    c->files += strncmp(name, c->kind, strlen(c->kind)) == 0;
    return CT_OK;
}

static int count_files(const char *folder, const char *prefix)
{
    counting c = {prefix, 0};
    folder_each(folder, count_file, &c, NULL);
    return c.files;
}

/* The picture without a cache. */
static ct_image *truth(const world *w, const ct_generate_params *p)
{
    ct_model *model = open_model(w->plain, w->model);
    ct_image *image = picture_of(model, p);
    ct_model_free(&model);
    return image;
}

/* Overwrites numbers in the files of an open model: all of a part, or those of tensors with one of
 * these in their names. */
static void damage(const ct_model *model, int part, const char *const *names)
{
    const weights *w = model->parts.weights[part];
    int damaged = 0;
    for (size_t i = 0; i < weights_count(w); i++) {
        const weight_view *v = weights_at(w, i);
        bool chosen = !names;
        for (int k = 0; names && names[k]; k++)
            chosen |= strstr(v->name, names[k]) != NULL;
        size_t at;
        const file_map *map = weights_locate(w, v->data, &at);
        if (!chosen || !map)
            continue;
        const int fd = open(weights_path(w, v->file), O_WRONLY);
        assert_true(fd >= 0);
        unsigned char *ones = malloc(v->bytes);
        memset(ones, 0xff, v->bytes); /* no number, in every format */
        assert_int_equal(pwrite(fd, ones, v->bytes, (off_t)at), v->bytes);
        free(ones);
        close(fd);
        damaged++;
    }
    assert_true(damaged > 0);
}

/* ---- Tests ----------------------------------------------------------------------------------- */

/* In memory, then on disk; every network that is damaged is missed by a job that needs it. */
static void check_kind(const kind *k)
{
    world w;
    seen log = {0};
    open_world(&w, k);
    const ct_generate_params p = params_of(&w);
    ct_image *picture = truth(&w, &p);

    ct_context *context = open_context(w.cache, true, &log);
    ct_model *model = open_model(context, w.model);
    expect_picture(model, &p, picture);
    assert_int_equal(log.encoder + log.schedule + log.pictures, 0);
    assert_int_equal(count_files(w.cache, "prompt-"), k->guided ? 2 : 1);
    assert_int_equal(count_files(w.cache, "schedule-"), 1);
    assert_int_equal(count_files(w.cache, "latents-"), k->references);
    assert_int_equal(count_files(w.cache, "vision-"), k->sees ? k->references : 0);
    expect_picture(model, &p, picture);
    assert_int_equal(log.encoder, k->guided ? 2 : 1);
    assert_int_equal(log.schedule, 1);
    assert_int_equal(log.pictures, k->references); /* what was seen is in the features */
    assert_int_equal(log.memory, log.encoder + log.schedule + log.pictures);
    assert_true(log.angles >= (k->guided ? 2 : 1)); /* test_positions.c */
    assert_int_equal(count_files(w.cache, "rope-"), 0);
    ct_model_free(&model);

    log = (seen){0};
    model = open_model(context, w.model);
    damage(model, PART_TEXT_ENCODER, NULL);
    damage(model, PART_TRANSFORMER, k->modulation);
    if (k->references)
        damage(model, PART_VAE, (const char *const[]){"encoder.", NULL});
    expect_picture(model, &p, picture);
    assert_int_equal(log.encoder, k->guided ? 2 : 1);
    assert_int_equal(log.schedule, 1);
    assert_int_equal(log.pictures, k->references);
    assert_int_equal(log.memory + log.warnings, 0);
    log = (seen){0};
    expect_picture(model, &p, picture); /* what came from disk is in memory, too */
    assert_int_equal(log.memory, log.encoder + log.schedule + log.pictures);
    /* What was not there before needs the networks. */
    ct_generate_params other = p;
    other.prompt = "A red foxes.";
    expect_failure(model, &other);
    other = p;
    other.steps = 3;
    expect_failure(model, &other);
    other = p;
    other.shift = 2.5;
    expect_failure(model, &other);
    other = p;
    other.trace_path = test_path(&w.folder, "trace.safetensors"); /* sees networks at work */
    expect_failure(model, &other);
    if (k->references) {
        const ct_image *others[] = {w.references[0], w.references[0]};
        uint8_t black[64 * 64 * 3] = {0};
        ct_image *another = NULL;
        ct_error error;
        test_ok(ct_image_from_pixels(context, 64, 64, black, &another, &error), &error);
        others[0] = another;
        other = p;
        other.references = others;
        expect_failure(model, &other);
        ct_image_free(&another);
    }
    ct_model_free(&model);
    /* Other weights make other results. */
    model = open_model(context, w.model);
    expect_failure(model, &p);
    ct_model_free(&model);
    ct_context_free(&context);
    ct_image_free(&picture);
    close_world(&w);
}

static void test_families(void **state)
{
    (void)state;
    for (size_t i = 0; i < KINDS; i++)
        check_kind(&kinds[i]);
}

/* What results depend on besides: each has its own. */
static void test_misses(void **state)
{
    (void)state;
    world w;
    seen log = {0};
    open_world(&w, &kinds[0]);
    ct_generate_params p = params_of(&w);
    ct_context *context = open_context(w.cache, false, &log);
    ct_model *model = open_model(context, w.model);
    ct_image *image = picture_of(model, &p);
    ct_image_free(&image);
    p.seed = 8; /* and what they do not depend on */
    p.width = 64;
    image = picture_of(model, &p);
    ct_image_free(&image);
    assert_int_equal(log.encoder, 1);
    assert_int_equal(log.schedule, 1);
    assert_int_equal(count_files(w.cache, ""), 2);
    p.precision = CT_PRECISION_BF16;
    image = picture_of(model, &p);
    ct_image_free(&image);
    assert_int_equal(log.encoder + log.schedule, 2);
    assert_int_equal(count_files(w.cache, ""), 4);
    p.precision = CT_PRECISION_INT8; /* the text encoder computes as in bf16 */
    image = picture_of(model, &p);
    ct_image_free(&image);
    assert_int_equal(log.encoder, 2);
    assert_int_equal(log.schedule, 1);
    ct_model_free(&model);
    /* A LoRA changes the transformer alone. */
    const ct_lora lora = {.path = test_fixture("lora/turbo_lora.safetensors"), .scale = 0.5};
    ct_model_params with;
    ct_error error;
    ct_model_params_init(&with);
    with.lora = &lora;
    with.loras = 1;
    log = (seen){0};
    p.precision = CT_PRECISION_FP32;
    test_ok(ct_model_load_with(context, w.model, &with, &model, &error), &error);
    image = picture_of(model, &p);
    ct_image_free(&image);
    assert_int_equal(log.encoder, 1);
    assert_int_equal(log.schedule, 0);
    ct_model_free(&model);
    ct_context_free(&context);
    /* Other kernels may round differently. */
    ct_context_params params;
    ct_context_params_init(&params);
    params.cpu = "baseline";
    params.device = "cpu";
    params.cache = w.cache;
    params.callbacks = (ct_callbacks){.user = &log, .log = on_log};
    log = (seen){0};
    test_ok(ct_context_create(&params, &context, &error), &error);
    model = open_model(context, w.model);
    image = picture_of(model, &p);
    ct_image_free(&image);
    const bool same = !strcmp(ct_context_cpu(context), ct_context_cpu(w.plain));
    assert_int_equal(log.encoder + log.schedule, same ? 2 : 0);
    ct_model_free(&model);
    ct_context_free(&context);
    close_world(&w);
}

static ct_status damage_file(void *user, const char *name, ct_error *error)
{
    (void)error;
    const copying *c = user; /* to: cut off rather than changed, where it is not NULL */
    char path[700];
    size_t size;
    snprintf(path, sizeof path, "%s/%s", c->from, name);
    unsigned char *data = test_read_file(path, &size);
    data[size / 2] ^= 16;
    test_write_file(path, data, c->to ? size / 2 : size);
    free(data);
    return CT_OK;
}

/* Damaged files are told of, and made again. */
static void test_damaged_files(void **state)
{
    (void)state;
    world w;
    seen log = {0};
    ct_error error;
    open_world(&w, &kinds[2]);
    const ct_generate_params p = params_of(&w);
    ct_image *picture = truth(&w, &p);
    ct_context *context = open_context(w.cache, false, &log);
    ct_model *model = open_model(context, w.model);
    expect_picture(model, &p, picture);
    const int files = count_files(w.cache, "");
    for (int cut = 0; cut < 2; cut++) {
        copying c = {w.cache, cut ? "" : NULL};
        test_ok(folder_each(w.cache, damage_file, &c, &error), &error);
        log = (seen){0};
        expect_picture(model, &p, picture);
        assert_int_equal(log.warnings, files);
        assert_non_null(strstr(log.warning, cut ? "cut off" : "damaged"));
        assert_int_equal(log.encoder + log.schedule + log.pictures, 0);
        assert_int_equal(count_files(w.cache, ""), files);
        log = (seen){0};
        expect_picture(model, &p, picture);
        assert_int_equal(log.warnings, 0);
        assert_int_equal(log.encoder + log.schedule + log.pictures, 1 + 1 + 2);
    }
    ct_model_free(&model);
    ct_context_free(&context);
    ct_image_free(&picture);
    close_world(&w);
}

/* Where nothing can be kept, a person is told once, and the work goes on. */
static void test_unwritable(void **state)
{
    (void)state;
    world w;
    seen log = {0};
    open_world(&w, &kinds[0]);
    ct_generate_params p = params_of(&w);
    ct_image *picture = truth(&w, &p);
    test_write_file(w.cache, "a file", 6);
    ct_context *context = open_context(w.cache, false, &log);
    ct_model *model = open_model(context, w.model);
    expect_picture(model, &p, picture);
    expect_picture(model, &p, picture);
    assert_int_equal(log.warnings, 1);
    assert_non_null(strstr(log.warning, w.cache));
    assert_int_equal(log.encoder + log.schedule, 0);
    ct_model_free(&model);
    ct_context_free(&context);
    assert_int_equal(unlink(w.cache), 0);

    /* Room for one of the two, the smaller: that is no reason to complain. */
    ct_context_params params;
    ct_error error;
    ct_context_params_init(&params);
    params.cache = w.cache;
    params.cache_memory = 0;
    params.device = "cpu";
    params.callbacks = (ct_callbacks){.user = &log, .log = on_log};
    log = (seen){0};
    for (int i = 0; i < 2; i++) {
        params.cache_limit = i ? 0 : 4000;
        test_ok(ct_context_create(&params, &context, &error), &error);
        model = open_model(context, w.model);
        expect_picture(model, &p, picture);
        assert_int_equal(count_files(w.cache, ""), 1);
        expect_picture(model, &p, picture);
        assert_int_equal(log.warnings, 0);
        assert_int_equal(log.encoder + log.schedule, 1); /* no more without a limit */
        ct_model_free(&model);
        ct_context_free(&context);
    }
    ct_image_free(&picture);
    close_world(&w);
}

/* With a limit of memory nothing is added to it. */
static void check_max_memory(const kind *k)
{
    world w;
    seen log = {0};
    open_world(&w, k);
    ct_generate_params p = params_of(&w);
    ct_image *picture = truth(&w, &p);
    ct_context *context = open_context(NULL, true, &log);
    ct_model *model = open_model(context, w.model);
    p.max_memory = (uint64_t)1 << 40;
    expect_picture(model, &p, picture);
    assert_int_equal(blob_memory_bytes(model->kept), 0);
    p.max_memory = 0;
    expect_picture(model, &p, picture);
    const uint64_t kept = blob_memory_bytes(model->kept);
    assert_true(kept > 0);
    /* What a plan counts is what was kept; now no more comes. */
    ct_memory_plan with, without;
    ct_error error;
    ct_memory_plan_init(&with);
    ct_memory_plan_init(&without);
    test_ok(ct_model_plan(model, &p, &with, &error), &error);
    p.max_memory = (uint64_t)1 << 40;
    test_ok(ct_model_plan(model, &p, &without, &error), &error);
    for (int i = CT_STAGE_DENOISE; i <= CT_STAGE_DECODE; i++)
        assert_int_equal(with.stage[i].buffer_bytes, without.stage[i].buffer_bytes + kept);
    log = (seen){0};
    expect_picture(model, &p, picture);
    assert_int_equal(log.encoder + log.schedule, k->guided ? 3 : 2);
    assert_int_equal(log.angles, k->guided ? 2 : 1);
    ct_model_free(&model);
    ct_context_free(&context);
    ct_image_free(&picture);
    close_world(&w);
}

/* Also of prompts that share a table, and of two that do not. */
static void test_max_memory(void **state)
{
    (void)state;
    check_max_memory(&kinds[0]);
    check_max_memory(&kinds[1]);
    check_max_memory(&kinds[4]);
}

/* Two processes that begin together, with an empty folder. */
static void test_processes(void **state)
{
    (void)state;
    world w;
    pid_t children[2];
    open_world(&w, &kinds[4]);
    const ct_generate_params p = params_of(&w);
    ct_image *picture = truth(&w, &p);
    ct_context_free(&w.plain); /* and its threads */
    for (int i = 0; i < 2; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] > 0)
            continue;
        for (int again = 0; again < 3; again++) {
            seen log = {0};
            ct_context *context = open_context(w.cache, false, &log);
            ct_model *model = open_model(context, w.model);
            expect_picture(model, &p, picture);
            ct_model_free(&model);
            ct_context_free(&context);
            if (log.warnings || (again && log.encoder + log.schedule != 3))
                _exit(1);
        }
        _exit(0);
    }
    for (int i = 0; i < 2; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(count_files(w.cache, ""), 3);
    ct_image_free(&picture);
    close_world(&w);
}

typedef struct working {
    ct_model *model;
    const ct_generate_params *p;
    const ct_image *picture;
    int wrong;
} working;

static void *work_in_thread(void *user)
{
    working *k = user;
    const size_t bytes = (size_t)(3 * ct_image_width(k->picture) * ct_image_height(k->picture));
    for (int i = 0; i < 3; i++) {
        ct_image *image = NULL;
        const ct_status status = ct_generate(k->model, k->p, &image, NULL);
        k->wrong += status != CT_OK ||
                    memcmp(ct_image_pixels(image), ct_image_pixels(k->picture), bytes) != 0;
        ct_image_free(&image);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    world w;
    open_world(&w, &kinds[0]);
    const ct_generate_params p = params_of(&w);
    ct_image *picture = truth(&w, &p);
    ct_context *context = open_context(w.cache, true, NULL);
    ct_model *model = open_model(context, w.model);
    working work[2] = {{model, &p, picture, 0}, {model, &p, picture, 0}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, work_in_thread, &work[i]), 0);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(work[i].wrong, 0);
    }
    ct_model_free(&model);
    ct_context_free(&context);
    ct_image_free(&picture);
    close_world(&w);
}

/* Where memory for keeping is short, a picture is made all the same, or fails for want of it. */
static void test_allocations_fail(void **state)
{
    (void)state;
    world w;
    test_heap heap;
    open_world(&w, &kinds[2]);
    const ct_generate_params p = params_of(&w);
    ct_image *picture = truth(&w, &p);
    test_heap_init(&heap, 0);
    ct_context_params params;
    ct_context *context = NULL;
    ct_error error;
    ct_context_params_init(&params);
    params.device = "cpu";
    params.threads = 1;
    params.allocator = heap.allocator;
    params.cache = w.cache;
    params.cache_memory = 6000; /* not enough for all */
    test_ok(ct_context_create(&params, &context, &error), &error);
    ct_model *model = open_model(context, w.model);
    bool reached = true;
    for (long n = 1; reached; n += 1 + n / 16) {
        folder_remove(&mem_default, w.cache);
        for (int again = 0; again < 2; again++) {
            ct_image *image = NULL;
            const long live = heap.live;
            heap.fail_at = heap.calls + n;
            const ct_status status = ct_generate(model, &p, &image, &error);
            reached = heap.calls >= heap.fail_at;
            heap.fail_at = 0;
            assert_true(status == CT_OK || (reached && status == CT_ENOMEM));
            ct_image_free(&image);
            assert_in_range(heap.live, live - 8, live + 8); /* entries of the cache */
        }
        if (n % 5 == 0)
            expect_picture(model, &p, picture);
    }
    ct_model_free(&model);
    ct_context_free(&context);
    assert_int_equal(heap.live, 0);
    ct_image_free(&picture);
    close_world(&w);
}

/* The folder from outside. */
static void test_usage(void **state)
{
    (void)state;
    world w;
    ct_cache_kind usage[CT_CACHE_KINDS];
    ct_error error;
    open_world(&w, &kinds[2]);
    test_ok(ct_cache_usage(w.cache, usage, &error), &error); /* there is none yet */
    assert_int_equal(usage[0].files, 0);
    const ct_generate_params p = params_of(&w);
    ct_context *context = open_context(w.cache, true, NULL);
    ct_model *model = open_model(context, w.model);
    ct_image *picture = picture_of(model, &p);
    ct_model_free(&model);
    ct_context_free(&context);
    test_write_file(test_path(&w.folder, "cache/rows-0.cubin"), "x", 1);
    test_write_file(test_path(&w.folder, "cache/blas-GPU-sm90-1.bin"), "xy", 2);
    test_write_file(test_path(&w.folder, "cache/notes.txt"), "x", 1);
    static const int files[CT_CACHE_KINDS] = {1, 0, 2, 1, 2};
    for (int clears = 0; clears < 2; clears++) {
        test_ok(clears ? ct_cache_clear(w.cache, usage, &error)
                       : ct_cache_usage(w.cache, usage, &error),
                &error);
        for (int i = 0; i < CT_CACHE_KINDS; i++)
            assert_int_equal(usage[i].files, files[i]);
        assert_string_equal(usage[4].name, "kernel");
        assert_int_equal(usage[4].bytes, 3);
        assert_true(usage[0].bytes > 2 * BLOB_HEADER);
    }
    assert_int_equal(count_files(w.cache, ""), 1);
    assert_int_equal(count_files(w.cache, "notes.txt"), 1);
    test_error(ct_cache_usage("", usage, &error), CT_EINVAL, &error, "folder");
    test_error(ct_cache_usage(test_path(&w.folder, "cache/notes.txt"), usage, &error), CT_ENOTFOUND,
               &error, "notes.txt");
    test_error(ct_cache_clear(NULL, NULL, &error), CT_EINVAL, &error, "folder");
    ct_image_free(&picture);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_processes),  cmocka_unit_test(test_families),
        cmocka_unit_test(test_misses),     cmocka_unit_test(test_damaged_files),
        cmocka_unit_test(test_unwritable), cmocka_unit_test(test_max_memory),
        cmocka_unit_test(test_threads),    cmocka_unit_test(test_allocations_fail),
        cmocka_unit_test(test_usage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
