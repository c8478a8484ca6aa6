#include "app/bench_file.h"
#include "core/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MOST 1e18 /* of any number */

/* An object of the file, and what it is called in messages: "seconds.load". */
typedef struct place {
    const bench_file *file;
    const json_value *object;
    char name[64];
    ct_error *error;
} place;

/* ---- Members --------------------------------------------------------------------------------- */

static ct_status wrong(const place *p, const char *key, const json_value *value, const char *wanted)
{
    return error_set(p->error, CT_EFORMAT, "%s: %s%s%s is %s; it must be %s", p->file->path,
                     p->name, *p->name ? "." : "", key,
                     value ? json_kind_name(json_get_kind(value)) : "missing", wanted);
}

static bool absent(const json_value *value)
{
    return !value || json_get_kind(value) == JSON_KIND_NULL;
}

static ct_status get_string(const place *p, const char *key, bool required, const char **out)
{
    const json_value *value = json_get(p->object, key);
    size_t length = 0;
    *out = NULL;
    if (!required && absent(value))
        return CT_OK;
    *out = json_get_string(value, &length);
    if (*out && strlen(*out) == length)
        return CT_OK;
    *out = NULL;
    return wrong(p, key, value, "a text");
}

/* 0 to MOST. */
static ct_status get_number(const place *p, const char *key, bool required, double fallback,
                            double *out)
{
    const json_value *value = json_get(p->object, key);
    *out = fallback;
    if (!required && absent(value))
        return CT_OK;
    if (!json_get_number(value, out))
        return wrong(p, key, value, "a number");
    if (*out >= 0 && *out <= MOST)
        return CT_OK;
    return error_set(p->error, CT_EFORMAT, "%s: %s%s%s is %g; it must be 0 to %g", p->file->path,
                     p->name, *p->name ? "." : "", key, *out, MOST);
}

static ct_status get_integer(const place *p, const char *key, bool required, int64_t *out)
{
    double number = 0;
    ct_status status = get_number(p, key, required, 0, &number);
    if (status == CT_OK && number != floor(number))
        return wrong(p, key, json_get(p->object, key), "a whole number");
    *out = (int64_t)number;
    return status;
}

static ct_status get_place(const place *from, const char *key, json_kind kind, place *out)
{
    *out = *from;
    const json_value *value = json_get(from->object, key);
    if (!value || json_get_kind(value) != kind)
        return wrong(from, key, value, json_kind_name(kind));
    out->object = value;
    snprintf(out->name, sizeof out->name, "%.40s%s%.15s", from->name, *from->name ? "." : "", key);
    return CT_OK;
}

/* Element i of the array at from. */
static ct_status get_element(const place *from, size_t i, place *out)
{
    *out = *from;
    out->object = json_at(from->object, i);
    snprintf(out->name, sizeof out->name, "%.40s[%zu]", from->name, i);
    if (out->object && json_get_kind(out->object) == JSON_KIND_OBJECT)
        return CT_OK;
    return error_set(from->error, CT_EFORMAT, "%s: %s is not an object", from->file->path,
                     out->name);
}

/* ---- Kernels --------------------------------------------------------------------------------- */

static ct_status read_kernel(const place *p, bench_kernel *k)
{
    ct_status s = get_string(p, "op", true, &k->op);
    if (s == CT_OK)
        s = get_string(p, "compute", true, &k->compute);
    if (s == CT_OK)
        s = get_string(p, "isa", true, &k->isa);
    if (s == CT_OK)
        s = get_string(p, "layer", true, &k->layer);
    if (s == CT_OK)
        s = get_string(p, "weights", false, &k->weights);
    if (s == CT_OK)
        s = get_string(p, "model", false, &k->model);
    if (s == CT_OK)
        s = get_integer(p, "m", true, &k->m);
    if (s == CT_OK)
        s = get_integer(p, "n", true, &k->n);
    if (s == CT_OK)
        s = get_integer(p, "k", false, &k->k);
    if (s == CT_OK)
        s = get_integer(p, "size", false, &k->size);
    if (s == CT_OK)
        s = get_number(p, "share", false, -1, &k->share);
    const bool rows = s == CT_OK && !absent(json_get(p->object, "gbytes"));
    return s == CT_OK ? get_number(p, rows ? "gbytes" : "gflops", true, 0, &k->rate) : s;
}

static ct_status read_kernels(bench_file *f, const place *root)
{
    place list, element;
    ct_status status = get_place(root, "kernels", JSON_KIND_ARRAY, &list);
    if (status != CT_OK)
        return status;
    const size_t count = json_size(list.object);
    if (count == 0 || count > BENCH_FILE_KERNELS)
        return error_set(root->error, CT_EFORMAT, "%s: %zu kernels; there must be 1 to %d", f->path,
                         count, BENCH_FILE_KERNELS);
    f->kernel = mem_zero_array(&mem_default, count, sizeof *f->kernel);
    if (!f->kernel)
        return error_memory(root->error, count * sizeof *f->kernel, "kernels");
    for (; (size_t)f->kernels < count && status == CT_OK; f->kernels++) {
        status = get_element(&list, (size_t)f->kernels, &element);
        if (status == CT_OK)
            status = read_kernel(&element, &f->kernel[f->kernels]);
    }
    return status;
}

/* ---- Models ---------------------------------------------------------------------------------- */

static ct_status read_time(const place *p, bench_time *t)
{
    ct_status status = get_number(p, "median", true, 0, &t->median);
    if (status == CT_OK)
        status = get_number(p, "min", true, 0, &t->least);
    if (status == CT_OK)
        status = get_number(p, "max", true, 0, &t->most);
    if (status == CT_OK && !(t->least <= t->median && t->median <= t->most))
        return error_set(p->error, CT_EFORMAT, "%s: %s: the median is not between min and max",
                         p->file->path, p->name);
    return status;
}

static ct_status read_steps(bench_file *f, const place *seconds)
{
    place list, element;
    ct_status status = get_place(seconds, "steps", JSON_KIND_ARRAY, &list);
    if (status != CT_OK)
        return status;
    const size_t count = json_size(list.object);
    if (count == 0 || count > BENCH_FILE_STEPS)
        return error_set(seconds->error, CT_EFORMAT, "%s: %zu steps; there must be 1 to %d",
                         f->path, count, BENCH_FILE_STEPS);
    f->step = mem_zero_array(&mem_default, count, sizeof *f->step);
    if (!f->step)
        return error_memory(seconds->error, count * sizeof *f->step, "steps");
    for (; (size_t)f->steps < count && status == CT_OK; f->steps++) {
        bench_time t = {0};
        status = get_element(&list, (size_t)f->steps, &element);
        if (status == CT_OK)
            status = read_time(&element, &t);
        f->step[f->steps] = t.median;
    }
    return status;
}

static ct_status read_model(bench_file *f, const place *root)
{
    static const char *const stages[] = {"load", "encode", "step", "decode", "picture"};
    place model, settings, seconds, stage, memory;
    ct_status s = get_place(root, "model", JSON_KIND_OBJECT, &model);
    if (s == CT_OK)
        s = get_string(&model, "name", true, &f->model);
    if (s == CT_OK)
        s = get_place(root, "settings", JSON_KIND_OBJECT, &settings);
    if (s == CT_OK)
        s = get_string(&settings, "precision", true, &f->precision);
    if (s == CT_OK)
        s = get_integer(&settings, "width", true, &f->width);
    if (s == CT_OK)
        s = get_integer(&settings, "height", true, &f->height);
    if (s == CT_OK)
        s = get_place(root, "seconds", JSON_KIND_OBJECT, &seconds);
    for (int i = 0; i < BENCH_STAGES && s == CT_OK; i++) {
        s = get_place(&seconds, stages[i], JSON_KIND_OBJECT, &stage);
        if (s == CT_OK)
            s = read_time(&stage, &f->stage[i]);
    }
    if (s == CT_OK)
        s = read_steps(f, &seconds);
    if (s == CT_OK)
        s = get_place(root, "memory", JSON_KIND_OBJECT, &memory);
    if (s == CT_OK)
        s = get_number(&memory, "peak_bytes", true, 0, &f->memory);
    return s == CT_OK ? get_number(&memory, "gpu_peak_bytes", false, 0, &f->gpu_memory) : s;
}

/* ---- Files ----------------------------------------------------------------------------------- */

static ct_status read_machine(bench_file *f, const place *root)
{
    place machine;
    ct_status s = get_string(root, "version", true, &f->version);
    if (s == CT_OK)
        s = get_string(root, "date", true, &f->date);
    if (s == CT_OK)
        s = get_place(root, "machine", JSON_KIND_OBJECT, &machine);
    if (s == CT_OK)
        s = get_string(&machine, "processor", true, &f->processor);
    if (s == CT_OK)
        s = get_string(&machine, "isa", false, &f->isa);
    if (s == CT_OK)
        s = get_string(&machine, "gpu", false, &f->gpu);
    return s == CT_OK ? get_integer(&machine, "threads", true, &f->threads) : s;
}

/* Takes the root. */
static ct_status read_root(bench_file *f, json_value *root, const char *path, ct_error *error)
{
    *f = (bench_file){.root = root, .path = path};
    const place top = {.file = f, .object = root, .name = "", .error = error};
    ct_status status;
    if (json_get(root, "kernels") || json_get(root, "peak"))
        f->kind = BENCH_KERNELS;
    else if (json_get(root, "model") && json_get(root, "seconds"))
        f->kind = BENCH_MODEL;
    else {
        status = error_set(error, CT_EFORMAT,
                           "%s: this is not what \"calotype bench kernels --json\" or \"calotype "
                           "bench model DIR --json\" prints",
                           path);
        bench_file_close(f);
        return status;
    }
    status = read_machine(f, &top);
    if (status == CT_OK)
        status = f->kind == BENCH_KERNELS ? read_kernels(f, &top) : read_model(f, &top);
    if (status != CT_OK)
        bench_file_close(f);
    return status;
}

ct_status bench_file_parse(bench_file *out, const char *text, size_t length, const char *path,
                           ct_error *error)
{
    json_value *root;
    ct_status status = json_parse(&root, text, length, path, error);
    return status == CT_OK ? read_root(out, root, path, error) : status;
}

ct_status bench_file_read(bench_file *out, const char *path, ct_error *error)
{
    json_value *root;
    ct_status status = json_read(&root, &mem_default, path, BENCH_FILE_BYTES, error);
    return status == CT_OK ? read_root(out, root, path, error) : status;
}

void bench_file_close(bench_file *f)
{
    json_free(f->root);
    mem_free(&mem_default, f->kernel);
    mem_free(&mem_default, f->step);
    *f = (bench_file){0};
}
