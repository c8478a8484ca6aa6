/* calotype bench: finds out which of its sub-commands is meant, and what they have in common. */
#define _POSIX_C_SOURCE 200809L
#include "cli/bench.h"
#include "cli/cache.h"
#include "cli/params.h"
#include "core/file.h"
#include "core/processor.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { KERNELS = 1, MODEL = 2, PLOT = 4 };

static const struct {
    const char *name;
    int bit;
    const char *needs; /* what an option that is not its own is told */
} sub_commands[] = {
    {"kernels", KERNELS, "bench kernels"},
    {"model", MODEL, "bench model DIR"},
    {"plot", PLOT, "bench plot"},
};
enum { SUB_COMMANDS = sizeof sub_commands / sizeof *sub_commands };

/* Options that only some of the sub-commands have. */
static const struct {
    option_id id;
    int of;
} option_of[] = {
    {OPTION_WHAT, KERNELS},
    {OPTION_SHAPES, KERNELS},
    {OPTION_SIZES, KERNELS},
    {OPTION_ROWS, KERNELS},
    {OPTION_SECONDS, KERNELS},
    {OPTION_PRECISION, KERNELS | MODEL},
    {OPTION_THREADS, KERNELS | MODEL},
    {OPTION_JSON, KERNELS | MODEL},
    {OPTION_MODEL, MODEL},
    {OPTION_REFERENCE, MODEL},
    {OPTION_KEEP_SIZE, MODEL},
    {OPTION_WIDTH, MODEL},
    {OPTION_HEIGHT, MODEL},
    {OPTION_SIZE, MODEL},
    {OPTION_STEPS, MODEL},
    {OPTION_BATCH_COUNT, MODEL},
    {OPTION_GUIDANCE, MODEL},
    {OPTION_CFG_SCALE, MODEL},
    {OPTION_CFG_NORMALIZATION, MODEL},
    {OPTION_CFG_TRUNCATION, MODEL},
    {OPTION_GUIDANCE_INTERVAL, MODEL},
    {OPTION_CFG_BATCH, MODEL},
    {OPTION_MAX_MEMORY, MODEL},
    {OPTION_MAX_VRAM, MODEL},
    {OPTION_DEQUANTIZE, MODEL},
    {OPTION_LORA, MODEL},
    {OPTION_OUTPUT_PLOT, PLOT},
};

/* Without a word it is the kernels, or the model of --model. */
static ct_status find_sub_command(int *which, const options *o, ct_error *error)
{
    const char *word = o->argument[0];
    *which = o->value[OPTION_MODEL].given ? 1 : 0;
    if (o->arguments == 0)
        return CT_OK;
    for (*which = 0; *which < SUB_COMMANDS; ++*which)
        if (!strcmp(word, sub_commands[*which].name))
            return CT_OK;
    return file_is_directory(word)
               ? error_set(error, CT_EINVAL,
                           "\"calotype bench\" measures \"kernels\" or a \"model\"; did you mean "
                           "calotype bench model %.200s?",
                           word)
               : error_set(error, CT_EINVAL,
                           "\"calotype bench\" can do \"kernels\", \"model DIR\" and \"plot "
                           "FILE...\", but not \"%.60s\"",
                           word);
}

/* "bench kernels" or "bench model DIR", from the bits of those that have an option. */
static const char *owner(int of)
{
    for (int i = 0; i < SUB_COMMANDS; i++)
        if (sub_commands[i].bit & of)
            return sub_commands[i].needs;
    return "";
}

static ct_status check_options(const options *o, int which, ct_error *error)
{
    const int bit = sub_commands[which].bit;
    for (size_t i = 0; i < sizeof option_of / sizeof *option_of; i++)
        if (o->value[option_of[i].id].given && !(option_of[i].of & bit))
            return error_set(error, CT_EINVAL, "--%s is not for \"bench %s\", but for \"%s\"",
                             option_table[option_of[i].id].name, sub_commands[which].name,
                             owner(option_of[i].of));
    const char *device = o->value[OPTION_DEVICE].text;
    if (bit == KERNELS && device && strcmp(device, "cpu") != 0 && strcmp(device, "auto") != 0)
        return error_set(error, CT_EINVAL,
                         "\"bench kernels\" measures the processor, not the device %.60s; \"bench "
                         "model DIR\" can be told to (--device cpu: the processor)",
                         device);
    if (bit == KERNELS && o->arguments > 1)
        return error_set(error, CT_EINVAL, "unexpected argument \"%.200s\" behind \"kernels\"",
                         o->argument[1]);
    return CT_OK;
}

void measuring_print_machine(const measuring *m)
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

/* What two results have to agree in to be compared, or differ in for a reason. */
static void write_head(measuring *m, const char *name)
{
    json_writer *w = &m->json;
    char date[32] = "";
    const time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc))
        strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &utc);
    member_string(w, "bench", name);
    member_string(w, "version", ct_version());
    member_string(w, "date", date);
    json_write_key(w, "machine");
    json_write_object(w);
    member_string(w, "processor", m->processor);
    member_integer(w, "threads", ct_context_threads(m->context));
    member_string(w, "isa", ct_context_cpu(m->context));
    member_string(w, "gpu", ct_context_gpu(m->context));
    json_write_object_end(w);
}

static ct_status measure(report *r, const options *o, int which, ct_error *error)
{
    measuring m = {.o = o, .report = r};
    const bool kernels = sub_commands[which].bit == KERNELS;
    const char *directory = NULL;
    char cache[4096];
    ct_context_params params;
    ct_context_params_init(&params);
    params.cache = cache_folder(cache, sizeof cache);
    params.cache_limit = params.cache_memory = 0; /* every picture computes everything */
    params.device = kernels ? "cpu" : o->value[OPTION_DEVICE].text;
    params.threads = (int)o->value[OPTION_THREADS].integer;
    params.cpu = o->value[OPTION_CPU].text;
    params.callbacks = report_callbacks(r);
    ct_status status = kernels ? CT_OK : model_argument(&directory, o, 1, "bench model", error);
    if (status == CT_OK)
        status = ct_context_create(&params, &m.context, error);
    if (status != CT_OK)
        return status;
    processor_name(m.processor, sizeof m.processor);
    members_open(&m.json, &m.text);
    write_head(&m, sub_commands[which].name);
    status = kernels ? bench_kernels(&m, error) : bench_model(&m, directory, error);
    if (r->mode == REPORT_JSON && status == CT_OK)
        members_close(stdout, &m.json, &m.text);
    else
        strbuf_free(&m.text);
    ct_context_free(&m.context);
    return status;
}

int bench_run(const options *o, report *r)
{
    ct_error error;
    int which = 0;
    ct_status status = find_sub_command(&which, o, &error);
    if (status == CT_OK)
        status = check_options(o, which, &error);
    if (status == CT_OK)
        status = sub_commands[which].bit == PLOT ? bench_plot(r, o, &error)
                                                 : measure(r, o, which, &error);
    return status == CT_OK ? EXIT_OK : report_error(r, &error);
}
