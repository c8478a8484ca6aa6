/* calotype quantize: a model with fewer bits, and what it costs in accuracy. */
#include "cli/commands.h"
#include "app/format.h"
#include "cli/interrupt.h"
#include "cli/members.h"
#include "cli/params.h"
#include "core/clock.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define WORST 5 /* matrices that are named at the end */
#define NAME_SIZE 256

typedef struct bad_matrix {
    char name[NAME_SIZE]; /* "transformer layers.0.attention.to_q" */
    double relative_l2;
} bad_matrix;

typedef struct quantizing {
    report *report;
    bad_matrix worst[WORST]; /* the worst one first; an error of 0 is none */
} quantizing;

static void keep_worst(quantizing *q, const ct_quantized_tensor *t)
{
    int at = WORST;
    while (at > 0 && q->worst[at - 1].relative_l2 < t->relative_l2)
        at--;
    if (at == WORST)
        return;
    memmove(&q->worst[at + 1], &q->worst[at], sizeof *q->worst * (size_t)(WORST - 1 - at));
    snprintf(q->worst[at].name, NAME_SIZE, "%s %s", t->component, t->name);
    q->worst[at].relative_l2 = t->relative_l2;
}

static void tensor_json(const ct_quantized_tensor *t)
{
    strbuf s;
    json_writer w;
    members_open(&w, &s);
    member_string(&w, "event", "tensor");
    member_string(&w, "component", t->component);
    member_string(&w, "name", t->name);
    member_boolean(&w, "quantized", t->quantized);
    if (t->quantized) {
        member_integer(&w, "rows", t->rows);
        member_integer(&w, "columns", t->columns);
        member_number(&w, "relative_l2", t->relative_l2);
    }
    member_unsigned(&w, "bytes_before", t->bytes_before);
    member_unsigned(&w, "bytes_after", t->bytes_after);
    members_close(stdout, &w, &s);
}

static void on_tensor(void *user, const ct_quantized_tensor *t)
{
    quantizing *q = user;
    report *r = q->report;
    if (r->mode == REPORT_JSON)
        tensor_json(t);
    if (!t->quantized)
        return;
    keep_worst(q, t);
    if (r->mode != REPORT_HUMAN)
        return;
    terminal_clear(&r->err);
    printf("%.6f  %s ", t->relative_l2, t->component);
    terminal_clean(&r->out, t->name, false, 0);
    printf("  %s%" PRId64 " x %" PRId64 "%s\n", terminal_escape(&r->out, STYLE_DIM), t->rows,
           t->columns, terminal_escape(&r->out, STYLE_PLAIN));
}

static void done_json(const quantizing *q, const ct_quantize_params *p,
                      const ct_quantize_result *result, double seconds)
{
    strbuf s;
    json_writer w;
    members_open(&w, &s);
    member_string(&w, "event", "done");
    member_string(&w, "output", p->output);
    member_integer(&w, "bits", p->bits);
    member_integer(&w, "group_size", p->group_size);
    member_integer(&w, "tensors", result->tensors);
    member_integer(&w, "quantized", result->quantized);
    member_integer(&w, "merged", result->merged);
    member_unsigned(&w, "bytes_before", result->bytes_before);
    member_unsigned(&w, "bytes_after", result->bytes_after);
    member_number(&w, "relative_l2", result->relative_l2);
    json_write_key(&w, "worst");
    json_write_array(&w);
    for (int i = 0; i < WORST && q->worst[i].relative_l2 > 0; i++) {
        json_write_object(&w);
        member_string(&w, "name", q->worst[i].name);
        member_number(&w, "relative_l2", q->worst[i].relative_l2);
        json_write_object_end(&w);
    }
    json_write_array_end(&w);
    member_number(&w, "seconds", seconds);
    members_close(stdout, &w, &s);
}

static void print_done(const quantizing *q, const ct_quantize_params *p,
                       const ct_quantize_result *result, double seconds)
{
    const terminal *t = &q->report->out;
    char before[FORMAT_SIZE], after[FORMAT_SIZE], time[FORMAT_SIZE];
    if (q->report->mode == REPORT_HUMAN && q->worst[0].relative_l2 > 0) {
        printf("\nworst\n");
        for (int i = 0; i < WORST && q->worst[i].relative_l2 > 0; i++) {
            printf("  %.6f  ", q->worst[i].relative_l2);
            terminal_clean(t, q->worst[i].name, false, 0);
            fputs("\n", stdout);
        }
        fputs("\n", stdout);
    }
    fputs(terminal_escape(t, STYLE_BOLD), stdout);
    if (t->live)
        terminal_clean(t, p->output, false, 0);
    else
        fputs(p->output, stdout);
    printf("%s  %d-bit, groups of %d: %d of %d tensors, %s to %s, relative L2 error %.6f, %s\n",
           terminal_escape(t, STYLE_PLAIN), p->bits, p->group_size, result->quantized,
           result->tensors, format_bytes(before, result->bytes_before),
           format_bytes(after, result->bytes_after), result->relative_l2,
           format_duration(time, seconds));
}

int quantize_run(const options *o, report *r)
{
    const option_value *value = o->value;
    quantizing q = {.report = r};
    ct_quantize_params p;
    ct_quantize_params_init(&p);
    p.output = value[OPTION_OUTPUT_DIRECTORY].text;
    p.bits = atoi(value[OPTION_BITS].text);
    p.group_size = value[OPTION_GROUP_SIZE].given ? atoi(value[OPTION_GROUP_SIZE].text) : 64;
    p.tensor = on_tensor;
    p.user = &q;
    loras l;
    ct_error error;
    const char *model = NULL;
    ct_status status = model_argument(&model, o, 0, "quantize", &error);
    if (status != CT_OK)
        return report_error(r, &error);
    status = loras_open(&l, o, &error);
    p.lora = l.list;
    p.loras = l.count;
    ct_context_params context_params;
    ct_context_params_init(&context_params);
    context_params.device = "cpu";
    context_params.threads = (int)value[OPTION_THREADS].integer;
    context_params.callbacks = report_callbacks(r);
    r->progress_events = false; /* each tensor has an event of its own */
    interrupt_install();
    ct_context *context = NULL;
    ct_quantize_result result;
    const double began = clock_seconds();
    if (status == CT_OK)
        status = ct_context_create(&context_params, &context, &error);
    if (status == CT_OK)
        status = ct_quantize(context, model, &p, &result, &error);
    ct_context_free(&context);
    loras_close(&l);
    if (status != CT_OK)
        return report_error(r, &error);
    progress_end(&r->progress);
    if (r->mode == REPORT_JSON)
        done_json(&q, &p, &result, clock_seconds() - began);
    else
        print_done(&q, &p, &result, clock_seconds() - began);
    return EXIT_OK;
}
