#include "cli/report.h"
#include "app/format.h"
#include "cli/interrupt.h"
#include "core/mem.h"

#include <inttypes.h>
#include <string.h>

#define HELD_MAXIMUM ((size_t)1 << 16)
#define LABEL_COLUMNS 12 /* of the plan, with the two blanks in front */

void report_init(report *r)
{
    *r = (report){0};
    terminal_init(&r->out, stdout);
    terminal_init(&r->err, stderr);
}

void report_configure(report *r, const options *o)
{
    bool quiet = o->value[OPTION_QUIET].given;
    if (o->value[OPTION_JSON].given)
        r->mode = REPORT_JSON;
    else if (quiet)
        r->mode = REPORT_QUIET;
    r->progress_events = !quiet;
    r->verbosity = o->value[OPTION_VERBOSE].given;
    progress_init(&r->progress, r->mode == REPORT_HUMAN ? &r->err : NULL);
}

/* ---- Callbacks ----------------------------------------------------------------------------- */

static void on_log(void *user, ct_log_level level, const char *message)
{
    report *r = user;
    if (r->silent)
        return;
    if (level == CT_LOG_WARNING) {
        report_warning(r, message);
        return;
    }
    if (r->verbosity < (int)level)
        return;
    if (r->mode == REPORT_JSON) {
        events_message(stdout, "log", level == CT_LOG_INFO ? "info" : "debug", message);
        return;
    }
    terminal_clear(&r->err);
    fprintf(stderr, "%s  ", terminal_escape(&r->err, STYLE_DIM));
    terminal_clean(&r->err, message, false, 0);
    fprintf(stderr, "%s\n", terminal_escape(&r->err, STYLE_PLAIN));
}

static void on_progress(void *user, const ct_progress *news)
{
    report *r = user;
    progress_update(&r->progress, news);
    if (r->mode == REPORT_JSON && r->progress_events)
        events_progress(stdout, r->progress.picture, news);
}

static bool on_cancel(void *user)
{
    report *r = user;
    progress_tick(&r->progress);
    return interrupt_signal() != 0;
}

ct_callbacks report_callbacks(report *r)
{
    return (ct_callbacks){.user = r, .log = on_log, .progress = on_progress, .cancel = on_cancel};
}

/* ---- The plan ------------------------------------------------------------------------------ */

static void label(const report *r, const char *name)
{
    fprintf(stderr, "  %s%-*s%s", terminal_escape(&r->err, STYLE_DIM), LABEL_COLUMNS - 2, name,
            terminal_escape(&r->err, STYLE_PLAIN));
}

/* In a log a prompt may be longer than a line, but need not fill the page. */
#define LOG_COLUMNS 400

/* A prompt on one line, shortened unless more was asked for. */
static void plan_text(const report *r, const char *name, const char *text, int tokens)
{
    char suffix[40];
    int suffix_columns = snprintf(suffix, sizeof suffix, " (%d tokens)", tokens);
    int columns = r->verbosity ? 0 : LOG_COLUMNS;
    if (r->err.live && !r->verbosity) {
        columns = terminal_width(&r->err) - 1 - LABEL_COLUMNS - suffix_columns;
        if (columns < 8)
            columns = 8;
    }
    label(r, name);
    terminal_clean(&r->err, *text ? text : "(empty)", false, columns);
    fprintf(stderr, "%s%s%s\n", terminal_escape(&r->err, STYLE_DIM), suffix,
            terminal_escape(&r->err, STYLE_PLAIN));
}

/* How much of each file the model has, which nobody would notice in the picture. */
static void plan_loras(const report *r, const ct_model_info *model)
{
    for (int i = 0; i < model->loras; i++) {
        const ct_lora_info *l = &model->lora[i];
        label(r, i ? "" : "lora");
        terminal_clean(&r->err, l->name, false, 0);
        fprintf(stderr, ", scale %g, %zu of %zu modules match\n", l->scale, l->matched, l->modules);
    }
}

static void plan_guidance(const report *r, const work_plan *plan)
{
    const ct_job_info *job = plan->job;
    label(r, "guidance");
    if (job->guided_steps == 0) {
        fputs("off\n", stderr);
        return;
    }
    fprintf(stderr, "%g (cfg-scale %g)%s", job->guidance, job->cfg_scale,
            plan->params->cfg_normalization ? ", norm kept" : "");
    if (job->guided_steps < job->steps)
        fprintf(stderr, ", in %d of %d steps", job->guided_steps, job->steps);
    fprintf(stderr, ", both prompts in %s\n", job->cfg_batch ? "one pass" : "two passes");
}

static void plan_seed(const report *r, const work_plan *plan)
{
    label(r, "seed");
    fprintf(stderr, "%s%" PRIu64 "%s", terminal_escape(&r->err, STYLE_BOLD), plan->seed,
            terminal_escape(&r->err, STYLE_PLAIN));
    if (plan->pictures > 1)
        fprintf(stderr, " to %" PRIu64, plan->seed + (uint64_t)plan->pictures - 1);
    fputs(plan->seed_random ? " (random)\n" : "\n", stderr);
}

static void plan_output(const report *r, const work_plan *plan)
{
    label(r, "output");
    terminal_clean(&r->err, plan->paths[0], false, 0);
    if (plan->pictures > 1) {
        fputs(plan->pictures > 2 ? " ... " : ", ", stderr);
        terminal_clean(&r->err, plan->paths[plan->pictures - 1], false, 0);
    }
    fputs("\n", stderr);
}

static void print_plan(report *r, const work_plan *plan)
{
    char text[FORMAT_SIZE];
    const ct_job_info *job = plan->job;
    terminal_clear(&r->err);
    fprintf(stderr, "%s", terminal_escape(&r->err, STYLE_BOLD));
    terminal_clean(&r->err, plan->model->name, false, 0);
    fprintf(stderr, "%s  %s %s, %s parameters\n", terminal_escape(&r->err, STYLE_PLAIN),
            plan->model->family, plan->model->variant, format_count(text, plan->model->parameters));
    plan_loras(r, plan->model);
    plan_text(r, "prompt", plan->params->prompt, job->prompt_tokens);
    if (job->guided_steps && plan->params->negative_prompt && *plan->params->negative_prompt)
        plan_text(r, "negative", plan->params->negative_prompt, job->negative_tokens);
    label(r, "size");
    fprintf(stderr, "%d%s%d", job->picture_width, r->err.utf8 ? "×" : "x", job->picture_height);
    if (job->references)
        fprintf(stderr, ", from %d picture%s", job->references, job->references > 1 ? "s" : "");
    fputs("\n", stderr);
    label(r, "steps");
    fprintf(stderr, "%d, shift %g, %s\n", job->steps, job->shift, job->scheduler);
    plan_guidance(r, plan);
    label(r, "work");
    fprintf(stderr, "%d evaluation%s%s, %s, %s of working memory\n", job->evaluations,
            job->evaluations == 1 ? "" : "s", plan->pictures > 1 ? " for each picture" : "",
            ct_precision_name(job->precision), format_bytes(text, job->activation_bytes));
    label(r, "memory");
    fprintf(stderr, "%s at the most", format_bytes(text, job->peak_bytes));
    if (job->gpu_peak_bytes)
        fprintf(stderr, ", %s of the GPU", format_bytes(text, job->gpu_peak_bytes));
    if (job->streamed_blocks)
        fprintf(stderr, ", %d of %d blocks of the transformer streamed", job->streamed_blocks,
                job->blocks);
    if (job->strip_height)
        fprintf(stderr, ", the VAE in strips of %d rows", job->strip_height);
    fputs("\n", stderr);
    label(r, "machine");
    int threads = ct_context_threads(plan->context);
    fprintf(stderr, "%d thread%s, %s kernels\n", threads, threads == 1 ? "" : "s",
            ct_context_cpu(plan->context));
    plan_seed(r, plan);
    plan_output(r, plan);
}

void report_hold(report *r)
{
    strbuf_init(&r->held, &mem_default, HELD_MAXIMUM);
    r->holding = true;
}

static void release(report *r)
{
    if (!r->holding)
        return;
    r->holding = false;
    for (size_t at = 0; at < r->held.length; at += strlen(r->held.data + at) + 1)
        report_warning(r, r->held.data + at);
    strbuf_free(&r->held);
}

void report_plan(report *r, const work_plan *plan)
{
    if (r->mode == REPORT_JSON)
        events_start(stdout, plan);
    else if (r->mode == REPORT_HUMAN)
        print_plan(r, plan);
    release(r);
}

/* ---- Messages ------------------------------------------------------------------------------ */

void report_busy(report *r, const char *verb, const char *name)
{
    char line[64];
    if (r->mode != REPORT_HUMAN || terminal_width(&r->err) < (int)sizeof line)
        return;
    size_t length = strlen(name);
    size_t room = sizeof line - 24;
    snprintf(line, sizeof line, "  %.16s %s", verb, length > room ? "the model" : name);
    terminal_draw(&r->err, line);
}

void report_warning(report *r, const char *message)
{
    if (r->holding) {
        strbuf_add(&r->held, message, strlen(message) + 1);
        return;
    }
    if (r->mode == REPORT_JSON)
        events_message(stdout, "warning", NULL, message);
    if (r->mode != REPORT_HUMAN)
        return;
    terminal_clear(&r->err);
    fprintf(stderr, "%scalotype: warning:%s ", terminal_escape(&r->err, STYLE_YELLOW),
            terminal_escape(&r->err, STYLE_PLAIN));
    terminal_clean(&r->err, message, false, 0);
    fputs("\n", stderr);
}

/* "encode 0.31 s, 8 steps 4.10 s (0.51 s each), decode 0.92 s, 5.42 s in all" */
static void print_times(const report *r, const finished *done)
{
    char text[FORMAT_SIZE], each[FORMAT_SIZE];
    const progress *p = done->progress;
    fprintf(stderr, "%s  ", terminal_escape(&r->err, STYLE_DIM));
    if (p->units[CT_STAGE_ENCODE])
        fprintf(stderr, "encode %s, ", format_duration(text, p->seconds[CT_STAGE_ENCODE]));
    int steps = p->units[CT_STAGE_DENOISE];
    double denoise = p->seconds[CT_STAGE_DENOISE];
    if (steps == 1)
        fprintf(stderr, "1 step %s, ", format_duration(text, denoise));
    else if (steps > 1)
        fprintf(stderr, "%d steps %s (%s each), ", steps, format_duration(text, denoise),
                format_duration(each, denoise / steps));
    if (p->units[CT_STAGE_DECODE])
        fprintf(stderr, "decode %s, ", format_duration(text, p->seconds[CT_STAGE_DECODE]));
    fprintf(stderr, "%s in all%s\n", format_duration(text, done->seconds),
            terminal_escape(&r->err, STYLE_PLAIN));
}

void report_image(report *r, const finished *done)
{
    progress_end(&r->progress);
    if (r->mode == REPORT_JSON) {
        events_image(stdout, done);
        return;
    }
    if (r->mode == REPORT_HUMAN)
        print_times(r, done);
    /* The same text in both modes; the path as it is, for programs that read it. */
    fputs(terminal_escape(&r->out, STYLE_BOLD), stdout);
    if (r->out.live)
        terminal_clean(&r->out, done->path, false, 0);
    else
        fputs(done->path, stdout);
    fprintf(stdout, "%s seed %" PRIu64 "\n", terminal_escape(&r->out, STYLE_PLAIN),
            ct_image_seed(done->image));
    fflush(stdout);
}

void report_done(report *r, int pictures, double seconds)
{
    char text[FORMAT_SIZE];
    if (r->mode == REPORT_JSON)
        events_done(stdout, pictures, seconds);
    else if (r->mode == REPORT_HUMAN && pictures > 1)
        fprintf(stderr, "%d pictures in %s\n", pictures, format_duration(text, seconds));
}

static int exit_status(const ct_error *error)
{
    int came = interrupt_signal();
    switch (error->code) {
    case CT_EINVAL: return EXIT_USAGE;
    /* As a shell reports a program that the signal ended: 130 for Ctrl-C. */
    case CT_ECANCELLED: return came ? 128 + came : EXIT_CANCELLED;
    default: return EXIT_WORK_FAILED;
    }
}

int report_error(report *r, const ct_error *error)
{
    progress_end(&r->progress);
    release(r);
    terminal_clear(&r->err);
    if (r->mode == REPORT_JSON) {
        events_error(stdout, error);
        return exit_status(error);
    }
    fflush(stdout);
    if (error->code == CT_ECANCELLED) {
        fputs("calotype: cancelled", stderr);
    } else {
        fprintf(stderr, "%scalotype: error:%s ", terminal_escape(&r->err, STYLE_RED),
                terminal_escape(&r->err, STYLE_PLAIN));
        terminal_clean(&r->err, error->message, false, 0);
    }
    if (r->progress.picture > 0 && r->progress.pictures > 1)
        fprintf(stderr, " (%d of %d pictures are finished)", r->progress.picture - 1,
                r->progress.pictures);
    fputs("\n", stderr);
    if (error->code == CT_EINVAL)
        fprintf(stderr, "see \"calotype %s%s\"\n", r->command ? r->command : "help",
                r->command ? " --help" : "");
    return exit_status(error);
}
