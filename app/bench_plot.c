#include "app/bench_plot.h"
#include "app/format.h"
#include "core/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define WIDTH 920.0
#define MARGIN 24.0
#define RATIO_RIGHT (WIDTH - MARGIN)
#define PITCH 13.0 /* of the bars of one row */
#define BAR 11.0
#define ROW_GAP 6.0
#define WAY_GAP 5.0 /* before rows of another precision */
#define TEXT 80     /* bytes of a number with its unit */

/* Names of files and processors; as many letters as fit. */
#define LEGEND_COLUMNS 130
#define LAYER_COLUMNS 30
#define WAY_COLUMNS 15

typedef struct plot {
    svg svg;
    const bench_file *file;
    int files;
    double y; /* the next thing is drawn below it */
} plot;

/* Where the bars of a chart are, and what they mean. */
typedef struct scale {
    double left, width; /* pixels */
    double most, step;  /* of the axis, in its unit */
} scale;

static const char *series_class(int file)
{
    static const char *const names[SVG_SERIES] = {"s0", "s1", "s2", "s3"};
    return names[file];
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static double x_of(const scale *s, double value)
{
    const double share = s->most > 0 ? value / s->most : 0;
    return s->left + s->width * (share < 0 ? 0 : share > 1 ? 1 : share);
}

/* A step of 1, 2 or 5 times a power of ten, of which two to five make most. */
static double nice_step(double most)
{
    if (!(most > 0))
        return 1;
    const double power = pow(10, floor(log10(most)));
    return most >= 5 * power ? 2 * power : most >= 2.5 * power ? power : power / 2;
}

/* ---- Parts of the page ----------------------------------------------------------------------- */

/* "emoji-256, 512 x 512, bf16" */
static void describe_model(char *out, size_t size, const bench_file *f)
{
    snprintf(out, size, "%.60s, %" PRId64 " \xc3\x97 %" PRId64 ", %.20s", f->model, f->width,
             f->height, f->precision);
}

/* What each colour is. */
static void draw_legend(plot *p)
{
    for (int i = 0; i < p->files; i++) {
        const bench_file *f = &p->file[i];
        char text[640], model[160] = "";
        if (f->kind == BENCH_MODEL) {
            describe_model(model, sizeof model - 2, f);
            strcat(model, "; ");
        }
        snprintf(text, sizeof text, "%s%.80s, %" PRId64 " thread%s%s%.30s, calotype %.20s, %.10s",
                 model, f->gpu ? f->gpu : f->processor, f->threads, f->threads == 1 ? "" : "s",
                 f->isa ? ", " : "", f->isa ? f->isa : "", f->version, f->date);
        svg_rect(&p->svg, series_class(i), MARGIN, p->y + 3, 12, 12);
        svg_text(&p->svg, "bold", SVG_START, MARGIN + 20, p->y + 13, 40, file_name(f->path));
        svg_text(&p->svg, "dim", SVG_START, MARGIN + 20, p->y + 28, LEGEND_COLUMNS, text);
        p->y += 34;
    }
    p->y += 6;
}

static void draw_heading(plot *p, const char *text)
{
    p->y += 12;
    svg_text(&p->svg, "head", SVG_START, MARGIN, p->y + 14, 100, text);
    p->y += 22;
}

/* The name of a chart at its left, numbers along the axis, and lines down from them. */
static void draw_axis(plot *p, const char *name, const scale *s, double height,
                      void (*label)(char out[TEXT], double value), const char *ratio)
{
    char text[TEXT];
    svg_text(&p->svg, "bold", SVG_START, MARGIN, p->y + 14, 60, name);
    for (int i = 0; i * s->step <= s->most * 1.0001; i++) {
        const double x = x_of(s, i * s->step);
        label(text, i * s->step);
        svg_text(&p->svg, "dim", SVG_MIDDLE, x, p->y + 14, 0, text);
        svg_line(&p->svg, i == 0 ? "axis" : "grid", x, p->y + 20, x, p->y + 20 + height);
    }
    if (p->files == 2 && ratio)
        svg_text(&p->svg, "dim", SVG_END, RATIO_RIGHT, p->y + 14, 0, ratio);
    p->y += 24;
}

/* How many times as fast the second file is. */
static void draw_ratio(plot *p, double y, double speed_first, double speed_second)
{
    char text[TEXT];
    if (p->files != 2 || !(speed_first > 0) || !(speed_second > 0))
        return;
    snprintf(text, sizeof text, "%.2f\xc3\x97", speed_second / speed_first);
    svg_text(&p->svg, "bold", SVG_END, RATIO_RIGHT, y, 12, text);
}

static double row_height(const plot *p)
{
    return p->files * PITCH + ROW_GAP;
}

/* The line on which a text stands that belongs to a row. */
static double row_baseline(const plot *p)
{
    return p->y + p->files * PITCH / 2 + 4;
}

static void draw_bar(plot *p, int file, const scale *s, double value, double label_x,
                     const char *label)
{
    const double y = p->y + file * PITCH, end = x_of(s, value);
    svg_rect(&p->svg, series_class(file), s->left, y + 1, end - s->left, BAR);
    svg_text(&p->svg, "value", SVG_START, (label_x > end ? label_x : end) + 6, y + BAR - 1, 48,
             label);
}

/* ---- Kernels --------------------------------------------------------------------------------- */

/* The same work in several files. */
typedef struct kernel_row {
    const bench_kernel *first, *of[SVG_SERIES];
    bool drawn;
} kernel_row;

static bool same_text(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : a == b;
}

/* Whether they stand in one chart. */
static bool same_chart(const bench_kernel *a, const bench_kernel *b)
{
    return same_text(a->op, b->op) && same_text(a->model, b->model) && a->size == b->size;
}

static bool same_work(const bench_kernel *a, const bench_kernel *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && same_chart(a, b) &&
           same_text(a->compute, b->compute) && same_text(a->weights, b->weights) &&
           same_text(a->layer, b->layer);
}

/* Returns how many rows there are; room for the kernels of all files. */
static int match_kernels(const plot *p, kernel_row *rows)
{
    int count = 0;
    for (int f = 0; f < p->files; f++)
        for (int i = 0; i < p->file[f].kernels; i++) {
            const bench_kernel *k = &p->file[f].kernel[i];
            int r = 0;
            while (r < count && (rows[r].of[f] || !same_work(rows[r].first, k)))
                r++;
            if (r == count)
                rows[count++].first = k;
            rows[r].of[f] = k;
        }
    return count;
}

static void share_label(char out[TEXT], double value)
{
    snprintf(out, TEXT, "%.0f %%", 100 * value);
}

static void rate_label(char out[TEXT], double value)
{
    snprintf(out, TEXT, "%.*f GB/s", value < 10 ? 2 : value < 100 ? 1 : 0, value);
}

static void rate_tick(char out[TEXT], double value)
{
    snprintf(out, TEXT, value > 0 ? "%g GB/s" : "0", value);
}

static const char *chart_name(const char *op)
{
    static const struct {
        const char *op, *name;
    } names[] = {
        {"gemm", "Linear layers, share of the peak"},
        {"attention", "Attention, share of the peak"},
        {"conv", "Convolutions, counted as direct"},
        {"rows", "Passes over rows"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(op, names[i].op))
            return names[i].name;
    return op;
}

static void kernel_label(char out[TEXT], const bench_kernel *k, bool shares)
{
    if (shares)
        snprintf(out, TEXT, "%.0f %%, %.0f %s", 100 * k->share, k->rate,
                 !strcmp(k->compute, "int8") ? "GOP/s" : "GFLOP/s");
    else
        rate_label(out, k->rate);
}

/* Whether it is computed in another way than what stands above it. */
static bool new_way(const bench_kernel *k, const bench_kernel *above)
{
    return !above || !same_text(above->compute, k->compute) ||
           !same_text(above->weights, k->weights);
}

/* "int8, 4 bits" */
static void draw_way(plot *p, const bench_kernel *k)
{
    char text[TEXT];
    const bool few_bits = k->weights && strcmp(k->weights, "bf16") != 0;
    snprintf(text, sizeof text, "%.20s%s%.20s", k->compute, few_bits ? ", " : "",
             few_bits ? k->weights : "");
    svg_text(&p->svg, "", SVG_START, MARGIN, row_baseline(p), WAY_COLUMNS, text);
}

static void draw_kernel_row(plot *p, const kernel_row *row, const scale *s, bool shares)
{
    char text[TEXT];
    svg_text(&p->svg, "", SVG_END, s->left - 8, row_baseline(p), LAYER_COLUMNS, row->first->layer);
    for (int f = 0; f < p->files; f++)
        if (row->of[f]) {
            kernel_label(text, row->of[f], shares);
            draw_bar(p, f, s, shares ? row->of[f]->share : row->of[f]->rate, 0, text);
        }
    if (row->of[0] && row->of[1])
        draw_ratio(p, row_baseline(p), row->of[0]->rate, row->of[1]->rate);
    p->y += row_height(p);
}

/* Everything of one operation, model and size. */
static void draw_kernel_chart(plot *p, kernel_row *rows, int count, const bench_kernel *of)
{
    scale s = {.left = 300, .width = 360, .most = 0};
    bool shares = true;
    int inside = 0, ways = 0;
    const bench_kernel *above = NULL;
    for (int i = 0; i < count; i++)
        for (int f = 0; f < p->files && same_chart(rows[i].first, of); f++)
            if (rows[i].of[f])
                shares = shares && rows[i].of[f]->share >= 0;
    for (int i = 0; i < count; i++) {
        if (!same_chart(rows[i].first, of))
            continue;
        inside++;
        ways += above && new_way(rows[i].first, above);
        above = rows[i].first;
        for (int f = 0; f < p->files; f++)
            if (rows[i].of[f]) {
                const double value = shares ? rows[i].of[f]->share : rows[i].of[f]->rate;
                s.most = value > s.most ? value : s.most;
            }
    }
    if (shares && s.most < 1)
        s.most = 1;
    s.step = shares && s.most < 1.6 ? 0.25 : shares && s.most < 3.1 ? 0.5 : nice_step(s.most);
    draw_axis(p, chart_name(of->op), &s, inside * row_height(p) + ways * WAY_GAP,
              shares ? share_label : rate_tick, "2nd : 1st");
    above = NULL;
    for (int i = 0; i < count; i++)
        if (same_chart(rows[i].first, of)) {
            if (new_way(rows[i].first, above)) {
                p->y += above ? WAY_GAP : 0;
                draw_way(p, rows[i].first);
            }
            draw_kernel_row(p, &rows[i], &s, shares);
            above = rows[i].first;
            rows[i].drawn = true;
        }
    p->y += 10;
}

static ct_status draw_kernels(plot *p, ct_error *error)
{
    size_t all = 0;
    for (int f = 0; f < p->files; f++)
        all += (size_t)p->file[f].kernels;
    kernel_row *rows = mem_zero_array(&mem_default, all, sizeof *rows);
    if (!rows)
        return error_memory(error, all * sizeof *rows, "the plot");
    const int count = match_kernels(p, rows);
    const bench_kernel *above = NULL;
    for (int i = 0; i < count; i++) {
        const bench_kernel *k = rows[i].first;
        char text[120];
        if (rows[i].drawn)
            continue;
        if (k->model && (!above || !same_text(above->model, k->model) || above->size != k->size)) {
            snprintf(text, sizeof text, "%.60s, %" PRId64 " \xc3\x97 %" PRId64 " pixels", k->model,
                     k->size, k->size);
            draw_heading(p, text);
        }
        draw_kernel_chart(p, rows, count, k);
        above = k;
    }
    mem_free(&mem_default, rows);
    return CT_OK;
}

/* ---- Models ---------------------------------------------------------------------------------- */

static void seconds_label(char out[TEXT], double seconds)
{
    char text[FORMAT_SIZE];
    snprintf(out, TEXT, "%s", seconds > 0 ? format_measured(text, seconds) : "0");
}

/* Round numbers, along an axis. */
static void seconds_tick(char out[TEXT], double seconds)
{
    if (seconds <= 0)
        snprintf(out, TEXT, "0");
    else if (seconds < 1)
        snprintf(out, TEXT, "%g ms", seconds * 1e3);
    else
        snprintf(out, TEXT, "%g s", seconds);
}

static void bytes_label(char out[TEXT], double bytes)
{
    char text[FORMAT_SIZE];
    snprintf(out, TEXT, "%s", bytes > 0 ? format_bytes(text, (uint64_t)bytes) : "0");
}

static void bytes_tick(char out[TEXT], double bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    for (; bytes >= 1000 && unit < 4; unit++)
        bytes /= 1024;
    snprintf(out, TEXT, bytes > 0 ? "%g %s" : "0", bytes, units[unit]);
}

static double sum_of_parts(const bench_file *f)
{
    double sum = f->stage[BENCH_ENCODE].median + f->stage[BENCH_DECODE].median;
    for (int i = 0; i < f->steps; i++)
        sum += f->step[i];
    return sum;
}

/* One rectangle of a row of several; between two steps there is a gap if there is room. */
static double draw_part(plot *p, const char *class, const scale *s, double from, double seconds)
{
    const double x = x_of(s, from), end = x_of(s, from + seconds);
    svg_rect(&p->svg, class, x, p->y + 1, end - x > 3 ? end - x - 1 : end - x, 2 * BAR);
    return from + seconds;
}

static void draw_key(plot *p, double left)
{
    static const struct {
        const char *class, *name;
    } parts[] = {{"s0 faint", "encode"}, {"s0", "steps"}, {"s0 half", "decode"}};
    for (int i = 0; i < 3; i++) {
        svg_rect(&p->svg, parts[i].class, left + 80 * i, p->y + 2, 10, 10);
        svg_text(&p->svg, "dim", SVG_START, left + 80 * i + 15, p->y + 11, 0, parts[i].name);
    }
    p->y += 18;
}

/* A picture as a row of its parts, for each file. */
static void draw_pictures(plot *p)
{
    scale s = {.left = 200, .width = 470};
    for (int f = 0; f < p->files; f++) {
        const double whole = p->file[f].stage[BENCH_PICTURE].median,
                     sum = sum_of_parts(&p->file[f]);
        s.most = whole > s.most ? whole : s.most;
        s.most = sum > s.most ? sum : s.most;
    }
    s.step = nice_step(s.most);
    draw_heading(p, "A picture, from prompt to pixels");
    draw_key(p, s.left);
    draw_axis(p, "", &s, p->files * (2 * BAR + 6), seconds_tick, "2nd : 1st");
    for (int f = 0; f < p->files; f++) {
        const bench_file *file = &p->file[f];
        char text[TEXT], class[16];
        double at = 0;
        svg_text(&p->svg, "", SVG_END, s.left - 8, p->y + 15, 26, file_name(file->path));
        snprintf(class, sizeof class, "%s faint", series_class(f));
        at = draw_part(p, class, &s, at, file->stage[BENCH_ENCODE].median);
        for (int i = 0; i < file->steps; i++)
            at = draw_part(p, series_class(f), &s, at, file->step[i]);
        snprintf(class, sizeof class, "%s half", series_class(f));
        at = draw_part(p, class, &s, at, file->stage[BENCH_DECODE].median);
        seconds_label(text, file->stage[BENCH_PICTURE].median);
        svg_text(&p->svg, "bold", SVG_START, x_of(&s, at) + 6, p->y + 16, 0, text);
        if (f == 1)
            draw_ratio(p, p->y + 15, 1 / p->file[0].stage[BENCH_PICTURE].median,
                       1 / file->stage[BENCH_PICTURE].median);
        p->y += 2 * BAR + 6;
    }
    p->y += 10;
}

/* From the fastest run to the slowest, across the end of a bar. */
static double draw_spread(plot *p, int file, const scale *s, const bench_time *t)
{
    const double y = p->y + file * PITCH + 1 + BAR / 2, least = x_of(s, t->least);
    const double most = x_of(s, t->most);
    if (most - least < 1)
        return most;
    svg_line(&p->svg, "spread", least, y, most, y);
    svg_line(&p->svg, "spread", least, y - 3, least, y + 3);
    svg_line(&p->svg, "spread", most, y - 3, most, y + 3);
    return most;
}

static void draw_stages(plot *p)
{
    static const struct {
        bench_stage stage;
        const char *name;
    } rows[] = {{BENCH_LOAD, "load"},
                {BENCH_ENCODE, "encode the prompt"},
                {BENCH_STEP, "a step"},
                {BENCH_DECODE, "decode the picture"}};
    const int count = sizeof rows / sizeof *rows;
    scale s = {.left = 200, .width = 470};
    for (int i = 0; i < count; i++)
        for (int f = 0; f < p->files; f++) {
            const double most = p->file[f].stage[rows[i].stage].most;
            s.most = most > s.most ? most : s.most;
        }
    s.step = nice_step(s.most);
    draw_heading(p, "Stages: the median, and from the fastest to the slowest run");
    draw_axis(p, "", &s, count * row_height(p), seconds_tick, "2nd : 1st");
    for (int i = 0; i < count; i++) {
        svg_text(&p->svg, "", SVG_END, s.left - 8, row_baseline(p), 0, rows[i].name);
        for (int f = 0; f < p->files; f++) {
            const bench_time *t = &p->file[f].stage[rows[i].stage];
            char text[TEXT];
            seconds_label(text, t->median);
            draw_bar(p, f, &s, t->median, x_of(&s, t->most), text);
            draw_spread(p, f, &s, t);
        }
        if (p->files == 2)
            draw_ratio(p, row_baseline(p), 1 / p->file[0].stage[rows[i].stage].median,
                       1 / p->file[1].stage[rows[i].stage].median);
        p->y += row_height(p);
    }
    p->y += 10;
}

static void draw_memory(plot *p)
{
    scale s = {.left = 200, .width = 470};
    bool gpu = false;
    for (int f = 0; f < p->files; f++) {
        const bench_file *file = &p->file[f];
        gpu = gpu || file->gpu_memory > 0;
        s.most = file->memory > s.most ? file->memory : s.most;
        s.most = file->gpu_memory > s.most ? file->gpu_memory : s.most;
    }
    /* Steps of the binary units that are written. */
    double unit = 1;
    while (s.most / unit >= 1000)
        unit *= 1024;
    s.step = nice_step(s.most / unit) * unit;
    draw_heading(p, "Memory at most");
    draw_axis(p, "", &s, (gpu ? 2 : 1) * row_height(p), bytes_tick, NULL);
    for (int i = 0; i < (gpu ? 2 : 1); i++) {
        svg_text(&p->svg, "", SVG_END, s.left - 8, row_baseline(p), 0,
                 i ? "of the GPU" : "of the process");
        for (int f = 0; f < p->files; f++) {
            const double bytes = i ? p->file[f].gpu_memory : p->file[f].memory;
            char text[TEXT];
            bytes_label(text, bytes);
            if (bytes > 0)
                draw_bar(p, f, &s, bytes, 0, text);
        }
        p->y += row_height(p);
    }
}

/* ---- All ------------------------------------------------------------------------------------- */

static bool same_picture(const bench_file *a, const bench_file *b)
{
    return same_text(a->model, b->model) && a->width == b->width && a->height == b->height;
}

static void make_title(char *out, size_t size, const plot *p)
{
    bool same = true;
    for (int f = 1; f < p->files; f++)
        same = same && same_picture(&p->file[0], &p->file[f]);
    if (p->file[0].kind == BENCH_KERNELS)
        snprintf(out, size, "calotype: kernels and the peak of their machine");
    else if (same)
        snprintf(out, size, "calotype: %.60s, %" PRId64 " \xc3\x97 %" PRId64 " pixels",
                 p->file[0].model, p->file[0].width, p->file[0].height);
    else
        snprintf(out, size, "calotype: models");
}

ct_status bench_plot_draw(strbuf *out, const bench_file *files, int count, ct_error *error)
{
    char title[160];
    for (int f = 1; f < count; f++)
        if (files[f].kind != files[0].kind)
            return error_set(error, CT_EINVAL,
                             "%.200s has kernels and %.200s a model; one plot shows one of them",
                             files[files[0].kind == BENCH_KERNELS ? 0 : f].path,
                             files[files[0].kind == BENCH_KERNELS ? f : 0].path);
    plot p = {.file = files, .files = count, .y = MARGIN};
    ct_status status = CT_OK;
    svg_init(&p.svg);
    make_title(title, sizeof title, &p);
    svg_text(&p.svg, "title", SVG_START, MARGIN, p.y + 16, 80, title);
    p.y += 32;
    draw_legend(&p);
    if (files[0].kind == BENCH_KERNELS) {
        status = draw_kernels(&p, error);
    } else {
        draw_pictures(&p);
        draw_stages(&p);
        draw_memory(&p);
    }
    svg_finish(&p.svg, out, WIDTH, p.y + MARGIN / 2, title);
    svg_free(&p.svg);
    if (status == CT_OK && !strbuf_ok(out))
        status = error_set(error, CT_ENOMEM, "out of memory while the plot was drawn");
    return status;
}
