/* calotype bench model: the stages of a picture, timed in several runs. */
#define _POSIX_C_SOURCE 200809L
#include "cli/bench.h"
#include "app/format.h"
#include "cli/params.h"
#include "core/clock.h"
#include "core/mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define STEPS 4 /* of a picture, unless --steps says otherwise */
#define RUNS 3
#define TOKENS 128

/* What is timed once in each run, in the order in which it happens; steps stand behind. */
enum { LOAD, ENCODE, DECODE, PICTURE, STEP };

typedef struct stages {
    ct_callbacks report; /* of the command: Ctrl-C */
    const ct_context *context;
    int runs, run;
    int steps, step;          /* of a picture, and how many of this run are finished */
    double *seconds, *sorted; /* [STEP + steps][runs], and room for all the steps of all runs */
    double before;            /* of the step before, since the stage began */
    uint64_t gpu_free;        /* when nothing of the model was there; 0: no GPU */
    uint64_t gpu_taken;       /* the most, since then */
} stages;

typedef struct summary {
    double median, least, most;
} summary;

/* ---- Times ----------------------------------------------------------------------------------- */

static double *times_of(const stages *s, int what)
{
    return s->seconds + (size_t)what * (size_t)s->runs;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of count numbers; of an even number of them the median is the mean of the two in the middle. */
static summary summarize(const stages *s, const double *seconds, size_t count)
{
    memcpy(s->sorted, seconds, count * sizeof *seconds);
    qsort(s->sorted, count, sizeof *s->sorted, compare);
    const double *middle = s->sorted + count / 2;
    return (summary){.median = count % 2 ? *middle : (middle[-1] + *middle) / 2,
                     .least = s->sorted[0],
                     .most = s->sorted[count - 1]};
}

static summary summary_of(const stages *s, int what)
{
    return summarize(s, times_of(s, what), (size_t)s->runs);
}

/* Over every step of every run. */
static summary summary_of_steps(const stages *s)
{
    return summarize(s, times_of(s, STEP), (size_t)s->runs * (size_t)s->steps);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

/* The most memory that this process has had. */
static uint64_t peak_bytes(void)
{
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0)
        return 0;
#if defined(__APPLE__)
    return (uint64_t)usage.ru_maxrss;
#else
    return (uint64_t)usage.ru_maxrss * 1024;
#endif
}

static uint64_t gpu_free_bytes(const ct_context *context)
{
    uint64_t free_bytes, total;
    return ct_context_gpu_memory(context, &free_bytes, &total, NULL) == CT_OK ? free_bytes : 0;
}

/* In the first run alone, so that the others are not disturbed. */
static void look_at_gpu(stages *s)
{
    if (s->gpu_free == 0 || s->run > 0)
        return;
    const uint64_t now = gpu_free_bytes(s->context);
    if (now < s->gpu_free && s->gpu_free - now > s->gpu_taken)
        s->gpu_taken = s->gpu_free - now;
}

/* ---- Runs ------------------------------------------------------------------------------------ */

static void on_progress(void *user, const ct_progress *p)
{
    stages *s = user;
    if (p->stage == CT_STAGE_ENCODE)
        times_of(s, ENCODE)[s->run] = p->stage_seconds;
    else if (p->stage == CT_STAGE_DECODE)
        times_of(s, DECODE)[s->run] = p->stage_seconds;
    else if (p->stage == CT_STAGE_DENOISE && p->step > 0 && s->step < s->steps)
        times_of(s, STEP + s->step++)[s->run] = p->stage_seconds - s->before;
    s->before = p->stage_seconds;
    look_at_gpu(s);
}

static bool on_cancel(void *user)
{
    const stages *s = user;
    return s->report.cancel && s->report.cancel(s->report.user);
}

/* A caption of so many words that the transformer is given TOKENS tokens, if that is up to it. */
static ct_status create_job(ct_model *model, ct_generate_params *p, ct_job **job, ct_error *error)
{
    char text[2 * TOKENS + 1];
    int words = TOKENS / 2;
    for (int round = 0;; round++) {
        for (int i = 0; i < words; i++)
            memcpy(text + 2 * i, "a ", 2);
        text[words ? 2 * words - 1 : 0] = 0;
        p->prompt = text;
        ct_status status = ct_job_create(model, p, job, error);
        if (status != CT_OK || round == 1)
            return status;
        words += TOKENS - ct_job_get_info(*job)->caption_tokens;
        words = words < 1 ? 1 : words > TOKENS ? TOKENS : words;
        ct_job_free(job);
    }
}

/* Opened once for each run, to see how long that takes; the last one stays. */
static ct_status load(const measuring *m, const char *directory, stages *s, ct_model **model,
                      ct_error *error)
{
    ct_status status = CT_OK;
    for (int i = 0; i < s->runs && status == CT_OK; i++) {
        ct_model_free(model);
        report_busy(m->report, "opening", directory);
        const double start = clock_seconds();
        status = model_from_options(model, m->context, directory, m->o, false, error);
        times_of(s, LOAD)[i] = clock_seconds() - start;
    }
    return status;
}

static ct_status run(const measuring *m, ct_model *model, ct_generate_params *p, stages *s,
                     ct_job **job, ct_error *error)
{
    ct_status status = CT_OK;
    ct_image *image = NULL;
    for (s->run = 0; s->run < s->runs && status == CT_OK; s->run++) {
        ct_job_free(job);
        s->step = 0;
        status = create_job(model, p, job, error);
        if (status != CT_OK)
            break;
        report_busy(m->report, "measuring", ct_model_get_info(model)->name);
        const double begin = clock_seconds();
        status = ct_job_run(*job, (uint64_t)s->run, &image, error);
        times_of(s, PICTURE)[s->run] = clock_seconds() - begin;
        ct_image_free(&image);
    }
    terminal_clear(&m->report->err);
    return status;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void summary_json(json_writer *w, summary t)
{
    member_number(w, "median", t.median);
    member_number(w, "min", t.least);
    member_number(w, "max", t.most);
}

static void times_json(json_writer *w, const stages *s, int what)
{
    json_write_object(w);
    summary_json(w, summary_of(s, what));
    json_write_key(w, "runs");
    json_write_array(w);
    for (int i = 0; i < s->runs; i++)
        json_write_number(w, times_of(s, what)[i]);
    json_write_array_end(w);
    json_write_object_end(w);
}

static void settings_json(json_writer *w, const measuring *m, const ct_job_info *job)
{
    json_write_key(w, "settings");
    json_write_object(w);
    member_integer(w, "width", job->width);
    member_integer(w, "height", job->height);
    member_integer(w, "steps", job->steps);
    member_string(w, "precision", ct_precision_name(job->precision));
    member_integer(w, "tokens", job->caption_tokens);
    member_integer(w, "evaluations", job->evaluations);
    member_boolean(w, "cfg_batch", job->cfg_batch);
    member_integer(w, "references", job->references);
    member_integer(w, "streamed_blocks", job->streamed_blocks);
    member_integer(w, "strip_height", job->strip_height);
    member_boolean(w, "dequantize", m->o->value[OPTION_DEQUANTIZE].given > 0);
    json_write_object_end(w);
}

static void stages_json(measuring *m, const stages *s, const ct_model_info *model,
                        const ct_job_info *job)
{
    json_writer *w = &m->json;
    json_write_key(w, "model");
    json_write_object(w);
    member_string(w, "name", model->name);
    member_string(w, "family", model->family);
    member_string(w, "variant", model->variant);
    member_string(w, "hash", model->hash);
    member_unsigned(w, "parameters", model->parameters);
    member_unsigned(w, "bytes", model->bytes);
    json_write_object_end(w);
    settings_json(w, m, job);
    json_write_key(w, "seconds");
    json_write_object(w);
    json_write_key(w, "load");
    times_json(w, s, LOAD);
    json_write_key(w, "encode");
    times_json(w, s, ENCODE);
    json_write_key(w, "step");
    json_write_object(w);
    summary_json(w, summary_of_steps(s));
    json_write_object_end(w);
    json_write_key(w, "steps");
    json_write_array(w);
    for (int i = 0; i < s->steps; i++)
        times_json(w, s, STEP + i);
    json_write_array_end(w);
    json_write_key(w, "decode");
    times_json(w, s, DECODE);
    json_write_key(w, "picture");
    times_json(w, s, PICTURE);
    json_write_object_end(w);
    json_write_key(w, "memory");
    json_write_object(w);
    member_unsigned(w, "peak_bytes", peak_bytes());
    member_unsigned(w, "planned_bytes", job->peak_bytes);
    if (s->gpu_free) {
        member_unsigned(w, "gpu_peak_bytes", s->gpu_taken);
        member_unsigned(w, "gpu_planned_bytes", job->gpu_peak_bytes);
    }
    json_write_object_end(w);
}

/* ---- For people ------------------------------------------------------------------------------ */

static void print_times(const terminal *t, const char *name, summary s)
{
    char median[FORMAT_SIZE], least[FORMAT_SIZE], most[FORMAT_SIZE];
    fprintf(t->stream, "  %-12s %9s %9s %9s\n", name, format_measured(median, s.median),
            format_measured(least, s.least), format_measured(most, s.most));
}

static void print_memory(const terminal *t, const char *name, uint64_t peak, uint64_t planned)
{
    char text[FORMAT_SIZE], plan[FORMAT_SIZE];
    fprintf(t->stream, "  %-12s %9s at most, planned %s\n", name, format_bytes(text, peak),
            format_bytes(plan, planned));
}

static void print_stages(const measuring *m, const stages *s, const ct_model_info *model,
                         const ct_job_info *job)
{
    const terminal *t = &m->report->out;
    measuring_print_machine(m);
    fputs("\n", t->stream);
    terminal_clean(t, model->name, false, 0);
    fprintf(t->stream, ", %d x %d, %s, %d tokens", job->width, job->height,
            ct_precision_name(job->precision), job->caption_tokens);
    if (job->guided_steps)
        fprintf(t->stream, ", guided, both prompts in %s",
                job->cfg_batch ? "one pass" : "two passes");
    if (job->streamed_blocks)
        fprintf(t->stream, ", %d of %d blocks streamed", job->streamed_blocks, job->blocks);
    fprintf(t->stream, ", %d run%s\n\n", s->runs, s->runs == 1 ? "" : "s");
    fprintf(t->stream, "%s  %-12s %9s %9s %9s%s\n", terminal_escape(t, STYLE_DIM), "", "median",
            "fastest", "slowest", terminal_escape(t, STYLE_PLAIN));
    print_times(t, "load", summary_of(s, LOAD));
    print_times(t, "encode", summary_of(s, ENCODE));
    for (int i = 0; i < s->steps; i++) {
        char name[32];
        snprintf(name, sizeof name, "step %d", i + 1);
        print_times(t, name, summary_of(s, STEP + i));
    }
    if (s->steps > 1)
        print_times(t, "all steps", summary_of_steps(s));
    print_times(t, "decode", summary_of(s, DECODE));
    print_times(t, "picture", summary_of(s, PICTURE));
    fputs("\n", t->stream);
    print_memory(t, "memory", peak_bytes(), job->peak_bytes);
    if (s->gpu_free)
        print_memory(t, "GPU memory", s->gpu_taken, job->gpu_peak_bytes);
}

/* ---- All ------------------------------------------------------------------------------------- */

static ct_status stages_create(stages *s, ct_error *error)
{
    const size_t all = (size_t)(STEP + s->steps) * (size_t)s->runs;
    s->seconds = mem_zero_array(&mem_default, all, sizeof *s->seconds);
    s->sorted = mem_array(&mem_default, all, sizeof *s->sorted);
    return s->seconds && s->sorted ? CT_OK
                                   : error_memory(error, 2 * all * sizeof(double), "the times");
}

ct_status bench_model(measuring *m, const char *directory, ct_error *error)
{
    const option_value *v = m->o->value;
    ct_model *model = NULL;
    ct_job *job = NULL;
    stages s = {.report = report_callbacks(m->report), .context = m->context};
    const ct_callbacks callbacks = {.user = &s, .progress = on_progress, .cancel = on_cancel};
    ct_image *references[OPTIONS_REFERENCES] = {0};
    ct_generate_params p;
    params_from_options(&p, m->o);
    p.callbacks = &callbacks;
    if (!v[OPTION_STEPS].given)
        p.steps = STEPS;
    s.steps = p.steps;
    s.runs = v[OPTION_BATCH_COUNT].given ? (int)v[OPTION_BATCH_COUNT].integer : RUNS;
    s.gpu_free = gpu_free_bytes(m->context);
    ct_status status = stages_create(&s, error);
    if (status == CT_OK)
        status = load(m, directory, &s, &model, error);
    if (status == CT_OK)
        status = references_open(references, &p, m->context, m->o, error);
    if (status == CT_OK)
        status = run(m, model, &p, &s, &job, error);
    terminal_clear(&m->report->err);
    if (status == CT_OK && m->report->mode == REPORT_JSON)
        stages_json(m, &s, ct_model_get_info(model), ct_job_get_info(job));
    else if (status == CT_OK)
        print_stages(m, &s, ct_model_get_info(model), ct_job_get_info(job));
    ct_job_free(&job);
    references_close(references);
    ct_model_free(&model);
    mem_free(&mem_default, s.seconds);
    mem_free(&mem_default, s.sorted);
    return status;
}
