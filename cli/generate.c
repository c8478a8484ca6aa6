/* calotype generate: options -> parameters -> plan -> pictures. */
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/params.h"
#include "core/clock.h"
#include "core/mem.h"
#include "core/strbuf.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define PATH_LENGTH_MAXIMUM ((size_t)1 << 16)

/* What one call of the command owns. */
typedef struct work {
    const options *o;
    report *report;
    char *prompt; /* read from standard input; NULL: it stands in the options */
    char **paths;
    int pictures;
    uint64_t seed;
    ct_generate_params params;
    ct_image *references[OPTIONS_REFERENCES];
    ct_context *context;
    ct_model *model;
    ct_job *job;
} work;

static void work_free(work *w)
{
    references_close(w->references);
    ct_job_free(&w->job);
    ct_model_free(&w->model);
    ct_context_free(&w->context);
    for (int i = 0; w->paths && i < w->pictures; i++)
        mem_free(&mem_default, w->paths[i]);
    mem_free(&mem_default, w->paths);
    mem_free(&mem_default, w->prompt);
}

/* ---- The prompt and the seed --------------------------------------------------------------- */

static ct_status choose_seed(work *w, ct_error *error)
{
    const option_value *seed = &w->o->value[OPTION_SEED];
    if (seed->given && !seed->random) {
        w->seed = seed->seed;
        return CT_OK;
    }
    /* 32 bits are enough to choose from, easy to copy, and survive programs that keep the numbers
     * of JSON as doubles. */
    uint32_t random;
    if (getentropy(&random, sizeof random) != 0)
        return error_set(error, CT_EIO,
                         "the system gives no random seed: %s; choose one with "
                         "--seed",
                         strerror(errno));
    w->seed = random;
    return CT_OK;
}

/* ---- Where the pictures go ----------------------------------------------------------------- */

/* out.png, out_2.png, out_3.png */
static char *picture_path(const char *path, int number)
{
    const char *name = strrchr(path, '/');
    name = name ? name + 1 : path;
    const char *dot = strrchr(name, '.');
    size_t stem = dot && dot > name ? (size_t)(dot - path) : strlen(path);
    strbuf s;
    strbuf_init(&s, &mem_default, PATH_LENGTH_MAXIMUM);
    strbuf_add(&s, path, stem);
    if (number > 1)
        strbuf_printf(&s, "_%d", number);
    strbuf_puts(&s, path + stem);
    return strbuf_take(&s);
}

static bool is_other_format(const char *path)
{
    static const char *const others[] = {".jpg", ".jpeg", ".webp", ".gif", ".bmp",
                                         ".tif", ".tiff", ".avif", ".jxl", ".heic"};
    const char *dot = strrchr(path, '.');
    for (size_t i = 0; dot && i < sizeof others / sizeof *others; i++) {
        size_t at = 0;
        while (dot[at] && (dot[at] | 32) == others[i][at])
            at++;
        if (!dot[at] && !others[i][at])
            return true;
    }
    return false;
}

static ct_status check_paths(work *w, ct_error *error)
{
    const char *path = w->o->value[OPTION_OUTPUT].text;
    if (!strcmp(path, "-"))
        return error_set(error, CT_EINVAL,
                         "--output: pictures go to files, not to standard "
                         "output; write ./- for a file of that name");
    if (is_other_format(path))
        return error_set(error, CT_EINVAL,
                         "--output %s: pictures are written as PNG; choose a "
                         "name that ends in .png",
                         path);
    const char *trace = w->o->value[OPTION_TRACE].text;
    const ct_status traced = trace ? ct_output_check(trace, error) : CT_OK;
    if (traced != CT_OK)
        return traced;
    w->paths = mem_zero_array(&mem_default, (size_t)w->pictures, sizeof *w->paths);
    if (!w->paths)
        return error_memory(error, (size_t)w->pictures * sizeof *w->paths, "the file names");
    for (int i = 0; i < w->pictures; i++) {
        w->paths[i] = picture_path(path, i + 1);
        if (!w->paths[i])
            return error_set(error, CT_EINVAL, "--output: the path is too long");
        ct_status status = ct_output_check(w->paths[i], error);
        if (status != CT_OK)
            return status;
    }
    return CT_OK;
}

/* ---- Parameters ---------------------------------------------------------------------------- */

/* Options that make no sense together, beyond the conflicts of the table. */
static ct_status check_options(const options *o, int pictures, ct_error *error)
{
    if (o->value[OPTION_TRACE_MODULES].given && !o->value[OPTION_TRACE].given)
        return error_set(error, CT_EINVAL, "--trace-modules needs --trace");
    if (o->value[OPTION_KEEP_SIZE].given && o->references == 0)
        return error_set(error, CT_EINVAL, "--keep-size needs --reference");
    if (o->value[OPTION_KEEP_SIZE].given &&
        (o->value[OPTION_WIDTH].given || o->value[OPTION_HEIGHT].given))
        return error_set(error, CT_EINVAL,
                         "--keep-size takes the size of the first reference; leave out --width and "
                         "--height");
    if (pictures > 1 && o->value[OPTION_TRACE].given)
        return error_set(error, CT_EINVAL, "--trace records one picture; leave out --batch-count");
    if (pictures > 1 && o->value[OPTION_NOISE].given)
        return error_set(error, CT_EINVAL,
                         "--noise replaces what the seed draws, so that all %d "
                         "pictures would be the same; leave out --batch-count",
                         pictures);
    return CT_OK;
}

static void fill_params(work *w)
{
    const option_value *value = w->o->value;
    ct_generate_params *p = &w->params;
    params_from_options(p, w->o);
    if (w->prompt)
        p->prompt = w->prompt;
    p->seed = w->seed;
    p->noise_path = value[OPTION_NOISE].text;
    p->trace_path = value[OPTION_TRACE].text;
    p->trace_modules = value[OPTION_TRACE_MODULES].given;
}

/* All that can be checked before a model is opened. */
static ct_status prepare(work *w, ct_error *error)
{
    const option_value *value = w->o->value;
    w->pictures = value[OPTION_BATCH_COUNT].given ? (int)value[OPTION_BATCH_COUNT].integer : 1;
    ct_status status = check_options(w->o, w->pictures, error);
    if (status == CT_OK)
        status = check_paths(w, error);
    if (status == CT_OK)
        status = choose_seed(w, error);
    if (status == CT_OK)
        status = read_prompt(&w->prompt, w->o, error);
    if (status == CT_OK)
        fill_params(w);
    return status;
}

/* LoRAs are merged, and matrices decoded, while a model is opened, which can take minutes. What a
 * job would be refused for is found before, on a model whose weights are left alone. */
static ct_status try_job(work *w, ct_error *error)
{
    ct_model *model = NULL;
    ct_memory_plan plan;
    ct_memory_plan_init(&plan);
    w->report->silent = true;
    ct_status status =
        model_from_options(&model, w->context, w->o->value[OPTION_MODEL].text, w->o, true, error);
    if (status == CT_OK)
        status = ct_model_plan(model, &w->params, &plan, error);
    if (status == CT_OK && !(plan.chosen.fits && (!plan.gpu.total_bytes || plan.gpu.chosen.fits)))
        status = error->code;
    ct_model_free(&model);
    w->report->silent = false;
    return status;
}

static ct_status open_job(work *w, ct_error *error)
{
    const option_value *value = w->o->value;
    report_hold(w->report);
    report_busy(w->report, "opening", value[OPTION_MODEL].text);
    ct_status status = context_from_options(&w->context, w->o, w->report, error);
    if (status == CT_OK)
        status = references_open(w->references, &w->params, w->context, w->o, error);
    if (status == CT_OK && (w->o->loras || value[OPTION_DEQUANTIZE].given))
        status = try_job(w, error);
    if (status == CT_OK)
        status =
            model_from_options(&w->model, w->context, value[OPTION_MODEL].text, w->o, false, error);
    if (status == CT_OK)
        status = ct_job_create(w->model, &w->params, &w->job, error);
    references_close(w->references); /* the job has what it needs */
    return status;
}

/* ---- The work ------------------------------------------------------------------------------ */

static void announce(const work *w)
{
    const option_value *seed = &w->o->value[OPTION_SEED];
    work_plan plan = {
        .context = w->context,
        .model = ct_model_get_info(w->model),
        .job = ct_job_get_info(w->job),
        .params = &w->params,
        .seed = w->seed,
        .seed_random = !seed->given || seed->random,
        .pictures = w->pictures,
        .paths = (const char *const *)w->paths,
    };
    report_plan(w->report, &plan);
}

static ct_status make_picture(work *w, int number, ct_error *error)
{
    report *r = w->report;
    const char *path = w->paths[number - 1];
    ct_image *image = NULL;
    double began = clock_seconds();
    progress_begin(&r->progress, number, w->pictures);
    ct_status status = ct_job_run(w->job, w->seed + (uint64_t)(number - 1), &image, error);
    if (status == CT_OK)
        status = ct_image_save(image, path, error);
    if (status == CT_OK) {
        finished done = {.image = image,
                         .path = path,
                         .number = number,
                         .progress = &r->progress,
                         .seconds = clock_seconds() - began};
        report_image(r, &done);
    }
    ct_image_free(&image);
    return status;
}

static ct_status make_pictures(work *w, ct_error *error)
{
    double began = clock_seconds();
    announce(w);
    for (int number = 1; number <= w->pictures; number++) {
        ct_status status = interrupt_signal() ? error_set(error, CT_ECANCELLED, "cancelled")
                                              : make_picture(w, number, error);
        if (status != CT_OK)
            return status;
    }
    report_done(w->report, w->pictures, clock_seconds() - began);
    return CT_OK;
}

int generate_run(const options *o, report *r)
{
    ct_error error;
    work w = {.o = o, .report = r};
    ct_status status = prepare(&w, &error);
    if (status == CT_OK) {
        interrupt_install();
        status = open_job(&w, &error);
    }
    if (status == CT_OK)
        status = make_pictures(&w, &error);
    work_free(&w);
    return status == CT_OK ? EXIT_OK : report_error(r, &error);
}
