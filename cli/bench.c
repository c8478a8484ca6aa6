/* calotype bench: the speed of this machine as a table, or the stages of a model. */
#define _POSIX_C_SOURCE 200809L
#include "cli/cache.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/members.h"
#include "cli/params.h"
#include "core/clock.h"
#include "core/mem.h"
#include "core/processor.h"

#include <inttypes.h>
#include <string.h>
#include <sys/resource.h>

#define JSON_MAXIMUM ((size_t)1 << 20)
#define NAME_SIZE 128
#define STEPS 4 /* of a picture, unless --steps says otherwise */
#define MOST_STEPS 64
#define TOKENS 128

typedef struct measuring {
    report *report;
    ct_context *context;
    char processor[NAME_SIZE];
    strbuf text; /* of the JSON object */
    json_writer json;
    char operation[NAME_SIZE]; /* of the line before */
} measuring;

/* ---- The machine ----------------------------------------------------------------------------- */

static void machine_json(measuring *m)
{
    json_writer *w = &m->json;
    json_write_key(w, "machine");
    json_write_object(w);
    member_string(w, "processor", m->processor);
    member_integer(w, "threads", ct_context_threads(m->context));
    member_string(w, "kernels", ct_context_cpu(m->context));
    member_string(w, "version", ct_version());
    json_write_object_end(w);
}

static void print_machine(const measuring *m)
{
    const terminal *t = &m->report->out;
    const int threads = ct_context_threads(m->context);
    fputs(terminal_escape(t, STYLE_BOLD), t->stream);
    terminal_clean(t, m->processor, false, 0);
    fprintf(t->stream, "%s, %d thread%s, %s, calotype %s\n", terminal_escape(t, STYLE_PLAIN),
            threads, threads == 1 ? "" : "s", ct_context_cpu(m->context), ct_version());
    if (ct_context_gpu(m->context))
        fprintf(t->stream, "%s\n", ct_context_gpu(m->context));
}

/* ---- Operations ------------------------------------------------------------------------------ */

static void print_line(measuring *m, const ct_bench_line *l)
{
    const terminal *t = &m->report->out;
    char product[64] = "", share[16] = "", time[32] = "";
    if (strcmp(m->operation, l->operation) != 0)
        fprintf(t->stream, "\n%s%s%s\n", terminal_escape(t, STYLE_BOLD), l->operation,
                terminal_escape(t, STYLE_PLAIN));
    if (l->k)
        snprintf(product, sizeof product, "%" PRId64 " x %" PRId64 " x %" PRId64, l->m, l->n, l->k);
    else if (l->m)
        snprintf(product, sizeof product, "%" PRId64 " x %" PRId64, l->m, l->n);
    const bool peak = !strcmp(l->operation, "peak");
    if (!peak)
        snprintf(time, sizeof time, "%.2f ms", l->seconds * 1e3);
    if (!peak && l->peak > 0)
        snprintf(share, sizeof share, "%.0f %%", 100 * l->rate / l->peak);
    fprintf(t->stream, "  %-30s %-20s %-5s %-7s %-11s %11s %9.1f %-8s %s\n", l->shape, product,
            l->compute, l->weights ? l->weights : "", l->kernel, time, l->rate, l->unit, share);
    fflush(t->stream);
}

/* Peaks are the members of an object, all others the elements of an array. */
static void line_json(measuring *m, const ct_bench_line *l)
{
    json_writer *w = &m->json;
    const bool peak = !strcmp(l->operation, "peak");
    if (peak) {
        json_write_key(w, l->compute);
    } else if (!strcmp(m->operation, "peak") || !*m->operation) {
        json_write_object_end(w);
        json_write_key(w, "kernels");
        json_write_array(w);
    }
    json_write_object(w);
    if (!peak) {
        member_string(w, "op", l->operation);
        member_string(w, "shape", l->shape);
        member_string(w, "compute", l->compute);
        member_string(w, "weights", l->weights);
    }
    member_string(w, "isa", l->kernel);
    if (l->m) {
        member_integer(w, "m", l->m);
        member_integer(w, "n", l->n);
    }
    if (l->k)
        member_integer(w, "k", l->k);
    if (!peak) {
        member_integer(w, "runs", l->runs);
        member_number(w, "seconds", l->seconds);
    }
    member_number(w, !strcmp(l->unit, "GB/s") ? "gbytes" : "gflops", l->rate);
    if (!peak && l->peak > 0)
        member_number(w, "share", l->rate / l->peak);
    json_write_object_end(w);
}

static void on_line(void *user, const ct_bench_line *l)
{
    measuring *m = user;
    if (m->report->mode == REPORT_JSON)
        line_json(m, l);
    else
        print_line(m, l);
    snprintf(m->operation, sizeof m->operation, "%s", l->operation);
}

static ct_status bench_operations(measuring *m, const options *o, ct_error *error)
{
    static const unsigned in_order_of_words[] = {CT_BENCH_ALL,         CT_BENCH_PEAK,
                                                 CT_BENCH_LINEAR,      CT_BENCH_ATTENTION,
                                                 CT_BENCH_CONVOLUTION, CT_BENCH_ROWS};
    ct_bench_params p;
    ct_bench_params_init(&p);
    if (o->value[OPTION_WHAT].given)
        p.what = in_order_of_words[o->value[OPTION_WHAT].integer];
    if (o->value[OPTION_ROWS].given)
        p.rows = (int)o->value[OPTION_ROWS].integer;
    if (o->value[OPTION_SECONDS].given)
        p.seconds = o->value[OPTION_SECONDS].number;
    p.user = m;
    p.line = on_line;
    if (m->report->mode != REPORT_JSON)
        print_machine(m);
    json_write_key(&m->json, "peak");
    json_write_object(&m->json);
    ct_status status = ct_bench(m->context, &p, error);
    if (!strcmp(m->operation, "peak") || !*m->operation)
        json_write_object_end(&m->json);
    else
        json_write_array_end(&m->json);
    return status;
}

/* ---- A model --------------------------------------------------------------------------------- */

typedef struct stages {
    ct_callbacks report;                  /* of the command: Ctrl-C */
    double load, encode, decode, picture; /* seconds; the best of all pictures */
    double first;                         /* the first picture */
    double step[MOST_STEPS];              /* of the picture whose best step was the best */
    double now[MOST_STEPS], encode_now, decode_now;
    int steps; /* finished */
    double before;
} stages;

static void on_progress(void *user, const ct_progress *p)
{
    stages *s = user;
    if (p->stage == CT_STAGE_ENCODE)
        s->encode_now = p->stage_seconds;
    else if (p->stage == CT_STAGE_DECODE)
        s->decode_now = p->stage_seconds;
    else if (p->stage == CT_STAGE_DENOISE && p->step > 0 && s->steps < MOST_STEPS)
        s->now[s->steps++] = p->stage_seconds - s->before;
    s->before = p->stage_seconds;
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

static double best_of(const double *step, int steps)
{
    double best = step[0];
    for (int i = 1; i < steps; i++)
        best = step[i] < best ? step[i] : best;
    return best;
}

static double best_step(const stages *s)
{
    return best_of(s->step, s->steps);
}

static void keep_best(stages *s, int picture, double seconds)
{
    const bool first = picture == 0;
    if (first)
        s->first = seconds;
    if (first || seconds < s->picture)
        s->picture = seconds;
    if (first || s->encode_now < s->encode)
        s->encode = s->encode_now;
    if (first || s->decode_now < s->decode)
        s->decode = s->decode_now;
    if (first || best_of(s->now, s->steps) < best_step(s))
        memcpy(s->step, s->now, sizeof s->step);
}

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

static void stages_json(measuring *m, const stages *s, const ct_model_info *model,
                        const ct_job_info *job)
{
    json_writer *w = &m->json;
    json_write_key(w, "model");
    json_write_object(w);
    member_string(w, "name", model->name);
    member_string(w, "family", model->family);
    member_string(w, "hash", model->hash);
    member_integer(w, "width", job->width);
    member_integer(w, "height", job->height);
    member_string(w, "precision", ct_precision_name(job->precision));
    member_integer(w, "tokens", job->caption_tokens);
    member_integer(w, "evaluations", job->evaluations);
    member_boolean(w, "cfg_batch", job->cfg_batch);
    member_integer(w, "streamed_blocks", job->streamed_blocks);
    member_number(w, "load_seconds", s->load);
    member_number(w, "encode_seconds", s->encode);
    json_write_key(w, "step_seconds");
    json_write_array(w);
    for (int i = 0; i < s->steps; i++)
        json_write_number(w, s->step[i]);
    json_write_array_end(w);
    member_number(w, "best_step_seconds", best_step(s));
    member_number(w, "decode_seconds", s->decode);
    member_number(w, "picture_seconds", s->picture);
    member_number(w, "first_picture_seconds", s->first);
    member_unsigned(w, "peak_bytes", peak_bytes());
    json_write_object_end(w);
}

static void print_stages(const measuring *m, const stages *s, const ct_model_info *model,
                         const ct_job_info *job)
{
    const terminal *t = &m->report->out;
    char text[FORMAT_SIZE];
    print_machine(m);
    fputs("\n", t->stream);
    terminal_clean(t, model->name, false, 0);
    fprintf(t->stream, ", %d x %d, %s, %d tokens", job->width, job->height,
            ct_precision_name(job->precision), job->caption_tokens);
    if (job->guided_steps)
        fprintf(t->stream, ", guided, both prompts in %s",
                job->cfg_batch ? "one pass" : "two passes");
    if (job->streamed_blocks)
        fprintf(t->stream, ", %d of %d blocks streamed", job->streamed_blocks, job->blocks);
    fputs("\n", t->stream);
    fprintf(t->stream, "  load    %s\n", format_duration(text, s->load));
    fprintf(t->stream, "  encode  %s\n", format_duration(text, s->encode));
    fprintf(t->stream, "  step    %s, the best of", format_duration(text, best_step(s)));
    for (int i = 0; i < s->steps; i++)
        fprintf(t->stream, "%s %s", i ? "," : "", format_duration(text, s->step[i]));
    fprintf(t->stream, "\n  decode  %s\n", format_duration(text, s->decode));
    fprintf(t->stream, "  picture %s", format_duration(text, s->picture));
    fprintf(t->stream, " of %d steps; the first took %s\n", s->steps,
            format_duration(text, s->first));
    fprintf(t->stream, "  memory  %s at most\n", format_bytes(text, peak_bytes()));
}

static ct_status bench_model(measuring *m, const options *o, ct_error *error)
{
    const option_value *v = o->value;
    stages s = {.report = report_callbacks(m->report)};
    ct_model *model = NULL;
    ct_job *job = NULL;
    ct_image *image = NULL;
    report_busy(m->report, "opening", v[OPTION_MODEL].text);
    const double start = clock_seconds();
    ct_status status =
        model_from_options(&model, m->context, v[OPTION_MODEL].text, o, false, error);
    s.load = clock_seconds() - start;

    const ct_callbacks callbacks = {.user = &s, .progress = on_progress, .cancel = on_cancel};
    ct_image *references[OPTIONS_REFERENCES] = {0};
    ct_generate_params p;
    params_from_options(&p, o);
    p.callbacks = &callbacks;
    if (!v[OPTION_STEPS].given)
        p.steps = STEPS;
    if (status == CT_OK)
        status = references_open(references, &p, m->context, o, error);
    const int pictures = v[OPTION_BATCH_COUNT].given ? (int)v[OPTION_BATCH_COUNT].integer : 1;
    for (int i = 0; status == CT_OK && i < pictures; i++) {
        ct_job_free(&job);
        s.steps = 0;
        status = create_job(model, &p, &job, error);
        if (status != CT_OK)
            break;
        report_busy(m->report, "measuring", ct_model_get_info(model)->name);
        ct_image_free(&image);
        const double begin = clock_seconds();
        status = ct_job_run(job, (uint64_t)i, &image, error);
        if (status == CT_OK)
            keep_best(&s, i, clock_seconds() - begin);
    }
    terminal_clear(&m->report->err);
    if (status == CT_OK && m->report->mode == REPORT_JSON)
        stages_json(m, &s, ct_model_get_info(model), ct_job_get_info(job));
    else if (status == CT_OK)
        print_stages(m, &s, ct_model_get_info(model), ct_job_get_info(job));
    ct_image_free(&image);
    ct_job_free(&job);
    references_close(references);
    ct_model_free(&model);
    return status;
}

/* ---- The command ----------------------------------------------------------------------------- */

/* Which options go with a model, and which without one. */
static ct_status check_options(const options *o, ct_error *error)
{
    static const option_id others[] = {OPTION_WHAT, OPTION_ROWS, OPTION_SECONDS};
    static const option_id models[] = {OPTION_REFERENCE,
                                       OPTION_KEEP_SIZE,
                                       OPTION_WIDTH,
                                       OPTION_HEIGHT,
                                       OPTION_SIZE,
                                       OPTION_STEPS,
                                       OPTION_GUIDANCE,
                                       OPTION_CFG_SCALE,
                                       OPTION_CFG_TRUNCATION,
                                       OPTION_GUIDANCE_INTERVAL,
                                       OPTION_CFG_BATCH,
                                       OPTION_BATCH_COUNT,
                                       OPTION_CFG_NORMALIZATION,
                                       OPTION_PRECISION,
                                       OPTION_MAX_MEMORY,
                                       OPTION_MAX_VRAM,
                                       OPTION_DEQUANTIZE,
                                       OPTION_LORA};
    const bool model = o->value[OPTION_MODEL].given;
    for (size_t i = 0; model && i < sizeof others / sizeof *others; i++)
        if (o->value[others[i]].given)
            return error_set(error, CT_EINVAL, "--%s and --model cannot be given together",
                             option_table[others[i]].name);
    for (size_t i = 0; !model && i < sizeof models / sizeof *models; i++)
        if (o->value[models[i]].given)
            return error_set(error, CT_EINVAL,
                             "--%s needs --model: without one, operations are measured",
                             option_table[models[i]].name);
    return CT_OK;
}

int bench_run(const options *o, report *r)
{
    const bool json = r->mode == REPORT_JSON;
    measuring m = {.report = r};
    ct_error error;
    ct_context_params params;
    ct_context_params_init(&params);
    char cache[4096];
    params.cache = cache_folder(cache, sizeof cache);
    params.cache_limit = params.cache_memory = 0; /* every picture computes everything */
    params.device = o->value[OPTION_MODEL].given ? o->value[OPTION_DEVICE].text : "cpu";
    params.threads = (int)o->value[OPTION_THREADS].integer;
    params.cpu = o->value[OPTION_CPU].text;
    params.callbacks = report_callbacks(r);
    ct_status status = check_options(o, &error);
    if (status == CT_OK)
        status = ct_context_create(&params, &m.context, &error);
    if (status != CT_OK)
        return report_error(r, &error);
    processor_name(m.processor, sizeof m.processor);
    members_open(&m.json, &m.text);
    machine_json(&m);
    status =
        o->value[OPTION_MODEL].given ? bench_model(&m, o, &error) : bench_operations(&m, o, &error);
    if (json && status == CT_OK)
        members_close(stdout, &m.json, &m.text);
    else
        strbuf_free(&m.text);
    ct_context_free(&m.context);
    return status == CT_OK ? EXIT_OK : report_error(r, &error);
}
