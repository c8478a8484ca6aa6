#include "models/bind.h"

#include "core/file.h"
#include "core/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

static void shape_text(char *text, size_t size, int rank, const int64_t *shape)
{
    size_t at = 0;
    text[0] = 0;
    for (int i = 0; i < rank && at < size; i++) {
        int n = snprintf(text + at, size - at, "%s%" PRId64, i ? ", " : "", shape[i]);
        at += n > 0 ? (size_t)n : 0;
    }
}

CORE_PRINTF(4, 0)
static nn_weight bind(binder *b, int rank, const int64_t *shape, const char *format, va_list args)
{
    nn_weight none = {0};
    if (b->status != CT_OK)
        return none;
    char name[256];
    vsnprintf(name, sizeof name, format, args);
    const char *source = weights_source(b->source);
    const weight_view *v = weights_find(b->source, name);
    if (!v) {
        b->status = error_set(b->error, CT_ENOTFOUND,
                              "%s: tensor %s is missing; the files are incomplete or belong to "
                              "another model",
                              source, name);
        return none;
    }
    bool same = v->rank == rank;
    for (int i = 0; same && i < rank; i++)
        same = v->shape[i] == shape[i];
    if (!same) {
        char found[128], expected[128];
        shape_text(found, sizeof found, v->rank, v->shape);
        shape_text(expected, sizeof expected, rank, shape);
        b->status = error_set(b->error, CT_EFORMAT,
                              "%s: tensor %s has shape [%s], but by config.json it must be [%s]",
                              source, name, found, expected);
        return none;
    }
    if (!dtype_is_float(v->type)) {
        b->status = error_set(b->error, CT_EUNSUPPORTED,
                              "%s: tensor %s is %s; F32, F16 and BF16 can be used", source, name,
                              dtype_name(v->type));
        return none;
    }
    nn_weight w = {.name = v->name, .type = v->type, .rank = rank, .data = v->data};
    uint64_t count = 1;
    for (int i = 0; i < rank; i++) {
        w.n[i] = shape[i];
        count *= (uint64_t)shape[i];
    }
    b->parameters += count;
    return w;
}

nn_weight bind1(binder *b, int64_t n0, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    nn_weight w = bind(b, 1, (const int64_t[]){n0}, format, args);
    va_end(args);
    return w;
}

nn_weight bind2(binder *b, int64_t n0, int64_t n1, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    nn_weight w = bind(b, 2, (const int64_t[]){n0, n1}, format, args);
    va_end(args);
    return w;
}

nn_weight bind_conv(binder *b, int64_t n0, int64_t n1, int64_t k, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    nn_weight w = bind(b, 4, (const int64_t[]){n0, n1, k, k}, format, args);
    va_end(args);
    return w;
}

/* The configuration names the class in _class_name (diffusers) or architectures (transformers). */
static ct_status check_class(const config *c, const char *class_prefix, ct_error *error)
{
    const char *name = json_get_string(json_get(c->root, "_class_name"), NULL);
    if (!name)
        name = json_get_string(json_at(json_get(c->root, "architectures"), 0), NULL);
    if (!name)
        return error_set(error, CT_EFORMAT, "%s: neither _class_name nor architectures is there",
                         c->path);
    if (strncmp(name, class_prefix, strlen(class_prefix)) != 0)
        return error_set(error, CT_EUNSUPPORTED, "%s: the class is %s, expected %s", c->path, name,
                         class_prefix);
    return CT_OK;
}

ct_status component_open(config *c, weights **w, const ct_allocator *a, const char *directory,
                         const char *stem, const char *class_prefix, ct_error *error)
{
    *w = NULL;
    *c = (config){0};
    char *path = path_join(a, directory, "config.json");
    if (!path)
        return error_memory(error, strlen(directory), "a path");
    ct_status status = config_open(c, a, path, error);
    mem_free(a, path);
    if (status == CT_OK)
        status = check_class(c, class_prefix, error);
    if (status == CT_OK)
        status = weights_open_directory(w, a, directory, stem, error);
    if (status != CT_OK)
        config_close(c);
    return status;
}
