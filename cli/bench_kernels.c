/* calotype bench kernels: the speed of this machine, operation by operation. */
#include "app/number.h"
#include "app/suggest.h"
#include "cli/bench.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SIDES 16
#define NAME_SIZE 64

typedef struct kernels {
    measuring *m;
    /* Of the line before. */
    char operation[NAME_SIZE], model[NAME_SIZE], compute[NAME_SIZE];
    int side;
    bool peaks, lines; /* a JSON object or array is open: of peaks of one kind, of lines */
} kernels;

/* ---- Options --------------------------------------------------------------------------------- */

/* Calls take for every part of "a,b,c". */
static ct_status each_part(const char *list,
                           ct_status (*take)(void *user, const char *part, ct_error *error),
                           void *user, ct_error *error)
{
    ct_status status = CT_OK;
    for (const char *at = list;; at++) {
        char part[NAME_SIZE];
        const size_t length = strcspn(at, ",");
        snprintf(part, sizeof part, "%.*s", (int)(length < NAME_SIZE ? length : NAME_SIZE - 1), at);
        status = take(user, part, error);
        at += length;
        if (status != CT_OK || !*at)
            return status;
    }
}

static ct_status take_shapes(void *user, const char *part, ct_error *error)
{
    static const struct {
        const char *name;
        unsigned models;
    } names[] = {
        {"z-image", CT_BENCH_Z_IMAGE},      {"klein-4b", CT_BENCH_KLEIN_4B},
        {"klein-9b", CT_BENCH_KLEIN_9B},    {"qwen-image", CT_BENCH_QWEN_IMAGE},
        {"flux2-klein", CT_BENCH_KLEIN_4B}, {"all", CT_BENCH_ALL_MODELS},
    };
    unsigned *models = user;
    suggestion near;
    suggest_init(&near, part, strlen(part));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!strcmp(part, names[i].name)) {
            *models |= names[i].models;
            return CT_OK;
        }
        suggest_try(&near, names[i].name, strlen(names[i].name));
    }
    return error_set(error, CT_EINVAL, "--shapes: \"%s\" is not one of: %s%s%s%s", part,
                     option_table[OPTION_SHAPES].words, near.best ? "; did you mean " : "",
                     near.best ? near.best : "", near.best ? "?" : "");
}

typedef struct side_list {
    int side[SIDES], count;
} side_list;

static ct_status take_side(void *user, const char *part, ct_error *error)
{
    static const int all[] = {256, 512, 1024};
    side_list *list = user;
    int64_t side;
    const bool everything = !strcmp(part, "all");
    const int count = everything ? 3 : 1;
    if (list->count + count > SIDES)
        return error_set(error, CT_EINVAL, "--sizes: more than %d sizes", SIDES);
    if (!everything && (number_integer(part, &side) != NUMBER_OK || side < 1 || side > 1 << 20))
        return error_set(error, CT_EINVAL,
                         "--sizes: \"%s\" is not the side of a square picture in pixels, such as "
                         "512; several are separated by commas",
                         part);
    for (int i = 0; i < count; i++)
        list->side[list->count++] = everything ? all[i] : (int)side;
    return CT_OK;
}

/* ---- Lines ----------------------------------------------------------------------------------- */

static bool is_peak(const char *operation)
{
    return !strcmp(operation, "peak");
}

static void print_heading(const terminal *t, const ct_bench_line *l)
{
    fprintf(t->stream, "\n%s%s%s", terminal_escape(t, STYLE_BOLD), l->operation,
            terminal_escape(t, STYLE_PLAIN));
    if (l->model)
        fprintf(t->stream, "  %s, %d x %d", l->model, l->side, l->side);
    fputs("\n", t->stream);
}

static void print_line(const terminal *t, const ct_bench_line *l)
{
    char product[64] = "", share[16] = "";
    if (is_peak(l->operation)) {
        fprintf(t->stream, "  %-5s %-12s %10.1f %s\n", l->compute, l->kernel, l->rate, l->unit);
        return;
    }
    if (l->k)
        snprintf(product, sizeof product, "%" PRId64 " x %" PRId64 " x %" PRId64, l->m, l->n, l->k);
    else
        snprintf(product, sizeof product, "%" PRId64 " x %" PRId64, l->m, l->n);
    if (l->peak > 0)
        snprintf(share, sizeof share, "%.0f %%", 100 * l->rate / l->peak);
    fprintf(t->stream, "  %-28s %-20s %-5s %-7s %-11s %9.2f ms %9.1f %-8s %s\n", l->layer, product,
            l->compute, l->weights ? l->weights : "", l->kernel, l->seconds * 1e3, l->rate, l->unit,
            share);
}

/* {"peak": {"fp32": {"avx2": 207.1, ...}, ...}: by what is computed, then by instruction set. */
static void peak_json(kernels *k, const ct_bench_line *l)
{
    json_writer *w = &k->m->json;
    if (strcmp(k->compute, l->compute) != 0) {
        if (k->peaks)
            json_write_object_end(w);
        json_write_key(w, l->compute);
        json_write_object(w);
        k->peaks = true;
    }
    member_number(w, l->kernel, l->rate);
}

/* The end of "peak", and the beginning of "kernels". */
static void begin_lines(kernels *k)
{
    json_writer *w = &k->m->json;
    if (k->lines)
        return;
    if (k->peaks)
        json_write_object_end(w);
    json_write_object_end(w);
    json_write_key(w, "kernels");
    json_write_array(w);
    k->lines = true;
}

static void line_json(kernels *k, const ct_bench_line *l)
{
    json_writer *w = &k->m->json;
    begin_lines(k);
    json_write_object(w);
    member_string(w, "op", l->operation);
    member_string(w, "compute", l->compute);
    member_string(w, "isa", l->kernel);
    member_integer(w, "m", l->m);
    member_integer(w, "n", l->n);
    if (l->k)
        member_integer(w, "k", l->k);
    member_number(w, !strcmp(l->unit, "GB/s") ? "gbytes" : "gflops", l->rate);
    if (l->peak > 0)
        member_number(w, "share", l->rate / l->peak);
    if (l->weights)
        member_string(w, "weights", l->weights);
    member_string(w, "model", l->model);
    member_integer(w, "size", l->side);
    member_string(w, "layer", l->layer);
    member_number(w, "seconds", l->seconds);
    member_integer(w, "runs", l->runs);
    json_write_object_end(w);
}

static void on_line(void *user, const ct_bench_line *l)
{
    kernels *k = user;
    const char *model = l->model ? l->model : "";
    if (k->m->report->mode == REPORT_JSON) {
        if (is_peak(l->operation))
            peak_json(k, l);
        else
            line_json(k, l);
    } else {
        const terminal *t = &k->m->report->out;
        if (!*k->operation)
            measuring_print_machine(k->m);
        if (strcmp(k->operation, l->operation) != 0 || strcmp(k->model, model) != 0 ||
            k->side != l->side)
            print_heading(t, l);
        print_line(t, l);
        fflush(t->stream);
    }
    snprintf(k->operation, sizeof k->operation, "%s", l->operation);
    snprintf(k->model, sizeof k->model, "%s", model);
    snprintf(k->compute, sizeof k->compute, "%s", l->compute);
    k->side = l->side;
}

ct_status bench_kernels(measuring *m, ct_error *error)
{
    static const unsigned in_order_of_words[] = {CT_BENCH_ALL,         CT_BENCH_PEAK,
                                                 CT_BENCH_GEMM,        CT_BENCH_ATTENTION,
                                                 CT_BENCH_CONVOLUTION, CT_BENCH_ROWS};
    const option_value *v = m->o->value;
    kernels k = {.m = m};
    side_list sides = {.count = 0};
    ct_bench_params p;
    ct_bench_params_init(&p);
    if (v[OPTION_WHAT].given)
        p.what = in_order_of_words[v[OPTION_WHAT].integer];
    if (v[OPTION_ROWS].given)
        p.rows = (int)v[OPTION_ROWS].integer;
    if (v[OPTION_SECONDS].given)
        p.seconds = v[OPTION_SECONDS].number;
    p.precision = (ct_precision)v[OPTION_PRECISION].integer;
    ct_status status = CT_OK;
    if (v[OPTION_SHAPES].given)
        status = each_part(v[OPTION_SHAPES].text, take_shapes, &p.models, error);
    if (status == CT_OK && v[OPTION_SIZES].given)
        status = each_part(v[OPTION_SIZES].text, take_side, &sides, error);
    if (status != CT_OK)
        return status;
    p.sides = sides.side;
    p.side_count = sides.count;
    p.user = &k;
    p.line = on_line;
    json_write_key(&m->json, "peak");
    json_write_object(&m->json);
    status = ct_bench(m->context, &p, error);
    begin_lines(&k);
    json_write_array_end(&m->json);
    return status;
}
