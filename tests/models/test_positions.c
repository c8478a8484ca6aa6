/* Tables of rotary positions that stay from picture to picture. A line of the log is the only sign
 * that one was not made anew: pictures are the same. */
#include "recorded.h"

#include "pipeline/internal.h"

#include <string.h>

typedef struct kind {
    const char *name, *reference; /* NULL: none */
    bool guided;
    bool one_table; /* for both prompts: they are filled up to one length */
} kind;

static const kind kinds[] = {
    {"turbo", NULL, false, false},
    {"base", NULL, true, true},
    {"klein", "klein/one_reference.0.png", false, false},
    {"klein_base", NULL, true, false}, /* the second has the pictures first */
    {"klein_kv", "klein/one_reference.0.png", false, false},
    {"qwen", NULL, true, false},
};

typedef struct seen {
    int tables, others; /* that were in memory */
} seen;

static void on_log(void *user, ct_log_level level, const char *message)
{
    seen *s = user;
    if (level != CT_LOG_INFO || !strstr(message, "in memory"))
        return;
    if (strstr(message, "cache: the angles of"))
        s->tables++;
    else
        s->others++;
}

static ct_context *open_context(uint64_t memory, seen *log)
{
    ct_context_params p;
    ct_context *context = NULL;
    ct_error error;
    ct_context_params_init(&p);
    p.threads = 2;
    p.device = "cpu";
    if (memory != UINT64_MAX) /* that of a context that nobody asked for another */
        p.cache_memory = memory;
    if (log)
        p.callbacks = (ct_callbacks){.user = log, .log = on_log};
    test_ok(ct_context_create(&p, &context, &error), &error);
    return context;
}

/* A model with a cache and one without, and what both are asked for. */
typedef struct world {
    const kind *kind;
    seen log;
    ct_context *context, *plain_context;
    ct_model *model, *plain;
    ct_image *reference;
    const ct_image *references[1];
    ct_generate_params p;
} world;

static void open_world(world *w, const kind *k, uint64_t memory)
{
    ct_error error;
    *w = (world){.kind = k};
    w->context = open_context(memory, &w->log);
    w->plain_context = open_context(0, NULL);
    w->model = recorded_model(w->context, k->name);
    w->plain = recorded_model(w->plain_context, k->name);
    ct_generate_params_init(&w->p);
    w->p.prompt = "A red fox.";
    w->p.width = w->p.height = 48;
    w->p.steps = 1;
    w->p.precision = CT_PRECISION_FP32;
    if (k->guided)
        w->p.cfg_scale = 3;
    if (!k->reference)
        return;
    test_ok(ct_image_load(w->context, test_fixture(k->reference), &w->reference, &error), &error);
    w->references[0] = w->reference;
    w->p.references = w->references;
    w->p.reference_count = 1;
}

static void close_world(world *w)
{
    ct_image_free(&w->reference);
    ct_model_free(&w->model);
    ct_model_free(&w->plain);
    ct_context_free(&w->context);
    ct_context_free(&w->plain_context);
}

/* A picture, the same as without a cache, for which so many tables are in memory. */
static void expect_tables(world *w, int width, uint64_t seed, int tables)
{
    w->p.width = width;
    w->p.seed = seed;
    w->log = (seen){0};
    ct_image *image = picture_of(w->model, &w->p), *truth = picture_of(w->plain, &w->p);
    assert_true(same_pixels(image, truth));
    assert_int_equal(w->log.tables, tables);
    ct_image_free(&image);
    ct_image_free(&truth);
}

/* The pictures of a job after the first find its tables. */
static void check_job(world *w, int first, int all)
{
    ct_job *job = NULL;
    ct_image *image = NULL;
    ct_error error;
    w->p.width = 80;
    test_ok(ct_job_create(w->model, &w->p, &job, &error), &error);
    for (uint64_t seed = 0; seed < 3; seed++) {
        w->log = (seen){0};
        test_ok(ct_job_run(job, seed, &image, &error), &error);
        ct_image_free(&image);
        assert_int_equal(w->log.tables, seed ? all : first);
    }
    ct_job_free(&job);
}

static void check_kind(const kind *k)
{
    world w;
    open_world(&w, k, UINT64_MAX);
    /* The negative prompt's, where the prompt has just made it. */
    const int first = k->one_table, all = k->guided ? 2 : 1;
    expect_tables(&w, 48, 7, first);
    expect_tables(&w, 48, 8, all);
    expect_tables(&w, 64, 8, first); /* another size */
    expect_tables(&w, 64, 9, all);
    expect_tables(&w, 48, 9, all);
    check_job(&w, first, all);
    w.p.max_memory = (uint64_t)1 << 40; /* reads, but adds nothing */
    expect_tables(&w, 48, 7, all);
    expect_tables(&w, 96, 7, 0);
    expect_tables(&w, 96, 7, 0);
    w.p.max_memory = 0;
    test_folder folder; /* what is traced is made */
    test_folder_create(&folder);
    w.p.trace_path = test_path(&folder, "trace.safetensors");
    expect_tables(&w, 48, 7, 0);
    test_folder_remove(&folder);
    close_world(&w);
}

static void test_kinds(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        check_kind(&kinds[i]);
}

/* What they depend on besides the size: a prompt's length, but not its words; references. */
static void test_misses(void **state)
{
    (void)state;
    world w;
    open_world(&w, &kinds[5], UINT64_MAX);
    expect_tables(&w, 48, 7, 0);
    w.p.prompt = "A red fox on a table.";
    expect_tables(&w, 48, 7, 1); /* the negative prompt is the same */
    w.p.prompt = "A fox on a red table.";
    expect_tables(&w, 48, 7, 2);
    close_world(&w);
    open_world(&w, &kinds[2], UINT64_MAX);
    expect_tables(&w, 48, 7, 0);
    w.p.reference_count = 0;
    expect_tables(&w, 48, 7, 0);
    w.p.reference_count = 1;
    expect_tables(&w, 48, 7, 1);
    close_world(&w);
}

/* Two sizes where there is room for the tables of one, and all else: what was not used for longest
 * goes, and what every picture uses stays. */
static void test_limit(void **state)
{
    (void)state;
    world w;
    open_world(&w, &kinds[0], UINT64_MAX);
    expect_tables(&w, 64, 7, 0);
    const uint64_t held = blob_memory_bytes(w.model->kept);
    expect_tables(&w, 48, 7, 0);
    assert_true(blob_memory_bytes(w.model->kept) > held);
    expect_tables(&w, 64, 7, 1);
    close_world(&w);
    open_world(&w, &kinds[0], held);
    expect_tables(&w, 64, 7, 0);
    assert_int_equal(blob_memory_bytes(w.model->kept), held);
    expect_tables(&w, 64, 8, 1);
    expect_tables(&w, 48, 7, 0);
    assert_true(blob_memory_bytes(w.model->kept) <= held);
    expect_tables(&w, 48, 8, 1);
    expect_tables(&w, 64, 7, 0);
    assert_int_equal(w.log.others, 2); /* the prompt's features and the schedule */
    assert_true(blob_memory_bytes(w.model->kept) <= held);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_misses),
        cmocka_unit_test(test_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
