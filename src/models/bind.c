#include "models/bind.h"

#include "core/affine.h"
#include "core/file.h"
#include "core/mem.h"
#include "io/names.h"

#include <inttypes.h>
#include <math.h>
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

static ct_status check_shape(const binder *b, const weight_view *v, int rank, const int64_t *shape)
{
    bool same = v->rank == rank;
    for (int i = 0; same && i < rank; i++)
        same = v->shape[i] == shape[i];
    if (same)
        return CT_OK;
    char found[128], expected[128];
    shape_text(found, sizeof found, v->rank, v->shape);
    shape_text(expected, sizeof expected, rank, shape);
    return error_set(b->error, CT_EFORMAT,
                     "%s: tensor %s has shape [%s], but by config.json it must be [%s]",
                     weights_source(b->source), v->name, found, expected);
}

/* ---- Quantized matrices ---------------------------------------------------------------------- */

#define WEIGHT ".weight"

static bool is_weight(const char *name)
{
    size_t length = strlen(name);
    return length > strlen(WEIGHT) && !strcmp(name + length - strlen(WEIGHT), WEIGHT);
}

/* The tensor beside module.weight: module.part. */
static const weight_view *beside(const binder *b, const weight_view *v, const char *part)
{
    char name[NAMES_LENGTH];
    if (!is_weight(v->name))
        return NULL;
    snprintf(name, sizeof name, "%.*s.%s", (int)(strlen(v->name) - strlen(WEIGHT)), v->name, part);
    return weights_find(b->source, name);
}

/* The modes of MLX whose scales are 8-bit floats, told by their sizes. */
static ct_status refuse_mode(const binder *b, const weight_view *v, int64_t bits, int64_t group)
{
    const char *mode = group == 16 ? "nvfp4" : bits == 8 ? "mxfp8" : "mxfp4";
    return error_set(b->error, CT_EUNSUPPORTED,
                     "%s: tensor %s is quantized in MLX's mode %s, which is not supported; mode "
                     "\"affine\" is",
                     weights_source(b->source), v->name, mode);
}

/* codes, scales and biases must fit each other and the matrix [rows, columns]. */
static ct_status check_codes(const binder *b, const weight_view *v, const int64_t shape[2],
                             nn_weight *w)
{
    const char *source = weights_source(b->source);
    const weight_view *scales = beside(b, v, "scales"), *biases = beside(b, v, "biases");
    const int64_t rows = shape[0], columns = shape[1];
    if (v->rank != 2 || v->shape[0] != rows)
        return check_shape(b, v, 2, shape);
    /* rows is at least 1 and the file holds them all, so that these products are small. */
    const int64_t bits = v->shape[1] * 32 / columns;
    if (v->shape[1] * 32 % columns != 0 || !affine_bits(bits))
        return error_set(b->error, CT_EFORMAT,
                         "%s: tensor %s has %" PRId64 " words of codes in a row, which does not "
                         "fit rows of %" PRId64 " numbers with 2, 3, 4, 5, 6 or 8 bits",
                         source, v->name, v->shape[1], columns);
    if (!scales)
        return error_set(b->error, CT_ENOTFOUND,
                         "%s: tensor %s holds codes (U32), but there are no .scales beside it; the "
                         "files are incomplete, or quantized in a way that is not supported",
                         source, v->name);
    if (scales->rank != 2 || scales->shape[0] != rows || scales->shape[1] < 1 ||
        columns % scales->shape[1] != 0)
        return error_set(b->error, CT_EFORMAT,
                         "%s: tensor %s must have one row of scales for each of the %" PRId64
                         " rows of codes, and a number of them that divides %" PRId64,
                         source, scales->name, rows, columns);
    const int64_t group = columns / scales->shape[1];
    if (scales->type == DTYPE_U8)
        return refuse_mode(b, v, bits, group);
    if (!biases)
        return error_set(b->error, CT_ENOTFOUND,
                         "%s: tensor %s has scales, but no .biases beside it; the files are "
                         "incomplete",
                         source, v->name);
    if (biases->type != scales->type || biases->rank != 2 || biases->shape[0] != rows ||
        biases->shape[1] != scales->shape[1])
        return error_set(b->error, CT_EFORMAT,
                         "%s: tensors %s and %s must have one dtype and shape", source,
                         scales->name, biases->name);
    if (scales->type != DTYPE_F32 && scales->type != DTYPE_F16 && scales->type != DTYPE_BF16)
        return error_set(b->error, CT_EUNSUPPORTED,
                         "%s: tensor %s is %s; scales can be F32, F16 or BF16", source,
                         scales->name, dtype_name(scales->type));
    *w = (nn_weight){.type = scales->type,
                     .bits = (int)bits,
                     .group = group,
                     .scales = scales->data,
                     .biases = biases->data};
    weights_set_codes(b->source, v, w->bits, w->group);
    return CT_OK;
}

/* "Scaled" FP8: the number that all of a tensor is multiplied with, under the names of both
 * conventions. Inputs have scales, too; they are for products in FP8. */
static ct_status find_factor(const binder *b, const weight_view *v, nn_weight *w)
{
    const weight_view *scale = beside(b, v, "scale_weight");
    if (!scale)
        scale = beside(b, v, "weight_scale");
    if (!scale)
        return CT_OK;
    int64_t count = 1;
    for (int i = 0; i < scale->rank; i++)
        count = scale->shape[i] == 1 ? count : 0;
    if (!dtype_is_float(scale->type) || count != 1)
        return error_set(b->error, CT_EUNSUPPORTED,
                         "%s: tensor %s must be a single number; other kinds of scaled FP8 are not "
                         "supported",
                         weights_source(b->source), scale->name);
    dtype_to_float(&w->factor, scale->data, scale->type, 1);
    if (!isfinite(w->factor) || w->factor == 0)
        return error_set(b->error, CT_EFORMAT, "%s: tensor %s is zero or not a number",
                         weights_source(b->source), scale->name);
    return CT_OK;
}

/* ---- Memory instead of the file -------------------------------------------------------------- */

/* [out, places, in] to [out, in, pixels], the last so many places. */
static ct_status channels_first(const binder *b, nn_weight *w, int64_t out, size_t in,
                                size_t places, size_t pixels)
{
    const size_t size = dtype_size(w->type);
    if (places == 1)
        return CT_OK;
    const size_t bytes = (size_t)out * in * pixels * size; /* at most those of the tensor */
    unsigned char *to = weights_allocate(b->source, bytes);
    if (!to)
        return error_memory(b->error, bytes, w->name);
    const unsigned char *from = (const unsigned char *)w->data + (places - pixels) * in * size;
    w->data = to;
    for (int64_t o = 0; o < out; o++, from += places * in * size)
        for (size_t i = 0; i < in; i++)
            for (size_t p = 0; p < pixels; p++, to += size)
                memcpy(to, from + (p * in + i) * size, size);
    return CT_OK;
}

/* ---- Binding --------------------------------------------------------------------------------- */

static ct_status check_numbers(const binder *b, const weight_view *v, nn_weight *w)
{
    if (!dtype_is_float(v->type))
        return error_set(b->error, CT_EUNSUPPORTED,
                         "%s: tensor %s is %s; F32, F16, BF16, F8_E4M3 and F8_E5M2 can be used",
                         weights_source(b->source), v->name, dtype_name(v->type));
    w->type = v->type;
    return dtype_size(v->type) == 1 ? find_factor(b, v, w) : CT_OK;
}

static ct_status bind_numbers(binder *b, const weight_view *v, int rank, const int64_t *shape,
                              nn_weight *w)
{
    const bool last = rank == 4 && names_channels_last(b->source);
    const int64_t stored[4] = {shape[0], last ? shape[2] : 0, last ? shape[3] : 0,
                               last ? shape[1] : 0};
    ct_status status = check_shape(b, v, rank, last ? stored : shape);
    if (status == CT_OK)
        status = check_numbers(b, v, w);
    const size_t pixels = last ? (size_t)(shape[2] * shape[3]) : 0;
    return status == CT_OK && last
               ? channels_first(b, w, shape[0], (size_t)shape[1], pixels, pixels)
               : status;
}

/* The tensor of this name, which is printed; NULL after a failure, or when this is one. */
CORE_PRINTF(3, 0)
static const weight_view *find(binder *b, char name[NAMES_LENGTH], const char *format, va_list args)
{
    if (b->status != CT_OK)
        return NULL;
    vsnprintf(name, NAMES_LENGTH, format, args);
    const weight_view *v = names_find(b->source, name);
    if (!v)
        b->status = error_set(b->error, CT_ENOTFOUND,
                              "%s: tensor %s is missing; the files are incomplete or belong to "
                              "another model",
                              weights_source(b->source), name);
    return v;
}

CORE_PRINTF(4, 0)
static nn_weight bind(binder *b, int rank, const int64_t *shape, const char *format, va_list args)
{
    nn_weight w = {0};
    char name[NAMES_LENGTH];
    const weight_view *v = find(b, name, format, args);
    if (!v)
        return w;
    const bool codes = rank == 2 && v->type == DTYPE_U32 && is_weight(v->name);
    if (codes)
        b->status = check_codes(b, v, shape, &w);
    w.name = v->name;
    w.rank = rank;
    w.data = v->data;
    uint64_t count = 1;
    for (int i = 0; i < rank; i++) {
        w.n[i] = shape[i];
        count *= (uint64_t)shape[i];
    }
    if (!codes)
        b->status = bind_numbers(b, v, rank, shape, &w);
    if (b->status == CT_OK && rank == 2)
        b->status = bind_in_memory(b, name, v, &w);
    b->parameters += count;
    return b->status == CT_OK ? w : (nn_weight){0};
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

/* The last k * k of each k * k * k numbers. */
static ct_status take_last_slice(binder *b, const weight_view *v, nn_weight *w)
{
    const size_t size = dtype_size(w->type), slice = (size_t)(w->n[2] * w->n[3]) * size;
    const size_t kernels = (size_t)w->n[0] * (size_t)w->n[1], depth = (size_t)w->n[2];
    const size_t bytes = kernels * slice; /* less than those of the tensor */
    unsigned char *to = weights_allocate(b->source, bytes);
    if (!to)
        return error_memory(b->error, bytes, v->name);
    w->data = to;
    for (size_t i = 0; i < kernels; i++)
        memcpy(to + i * slice, v->data + (i * depth + depth - 1) * slice, slice);
    weights_drop(b->source, v->data, v->bytes);
    return CT_OK;
}

nn_weight bind_last_slice(binder *b, int64_t n0, int64_t n1, int64_t k, const char *format, ...)
{
    va_list args;
    char name[NAMES_LENGTH];
    va_start(args, format);
    const weight_view *v = find(b, name, format, args);
    va_end(args);
    if (!v)
        return (nn_weight){0};
    nn_weight w = {.name = v->name, .rank = 4, .n = {n0, n1, k, k}, .data = v->data};
    const bool last = names_channels_last(b->source);
    b->status =
        check_shape(b, v, 5, last ? (int64_t[]){n0, k, k, k, n1} : (int64_t[]){n0, n1, k, k, k});
    if (b->status == CT_OK)
        b->status = check_numbers(b, v, &w);
    if (b->status == CT_OK && last)
        b->status = channels_first(b, &w, n0, (size_t)n1, (size_t)(k * k * k), (size_t)(k * k));
    else if (b->status == CT_OK && k > 1)
        b->status = take_last_slice(b, v, &w);
    b->parameters += (uint64_t)(n0 * n1 * k * k * k);
    return b->status == CT_OK ? w : (nn_weight){0};
}

nn_weight bind_kernel_rows(binder *b, int64_t n0, int64_t n1, int64_t frames, int64_t k,
                           const char *format, ...)
{
    va_list args;
    char name[NAMES_LENGTH];
    va_start(args, format);
    const weight_view *v = find(b, name, format, args);
    va_end(args);
    if (!v)
        return (nn_weight){0};
    nn_weight w = {.name = v->name, .rank = 2, .n = {n0, n1 * frames * k * k}, .data = v->data};
    const bool last = names_channels_last(b->source);
    const size_t places = (size_t)(frames * k * k);
    b->status = check_shape(
        b, v, 5, last ? (int64_t[]){n0, frames, k, k, n1} : (int64_t[]){n0, n1, frames, k, k});
    if (b->status == CT_OK)
        b->status = check_numbers(b, v, &w);
    if (b->status == CT_OK && last)
        b->status = channels_first(b, &w, n0, (size_t)n1, places, places);
    b->parameters += (uint64_t)(w.n[0] * w.n[1]);
    return b->status == CT_OK ? w : (nn_weight){0};
}

nn_weight bind_channels(binder *b, int64_t n0, const char *format, ...)
{
    va_list args;
    char name[NAMES_LENGTH];
    va_start(args, format);
    const weight_view *v = find(b, name, format, args);
    va_end(args);
    if (!v)
        return (nn_weight){0};
    nn_weight w = {.name = v->name, .rank = 1, .n = {n0}, .data = v->data};
    int64_t shape[WEIGHT_MAX_RANK] = {n0};
    for (int i = 1; i < WEIGHT_MAX_RANK; i++)
        shape[i] = 1;
    b->status = check_shape(b, v, v->rank > 0 ? v->rank : 1, shape);
    if (b->status == CT_OK)
        b->status = check_numbers(b, v, &w);
    b->parameters += (uint64_t)n0;
    return b->status == CT_OK ? w : (nn_weight){0};
}

/* ---- Components ------------------------------------------------------------------------------ */

#define INFERRED_MAXIMUM 4096

int64_t tensor_size(const weights *w, const char *name, int axis)
{
    const weight_view *v = names_find(w, name);
    return v && axis < v->rank ? v->shape[axis] : 0;
}

void infer_integer(json_writer *out, const char *key, int64_t value)
{
    json_write_key(out, key);
    json_write_integer(out, value);
}

static ct_status infer_config(config *c, const weights *w, const component_format *format,
                              const ct_allocator *a, ct_error *error)
{
    strbuf text;
    json_writer out;
    strbuf_init(&text, a, INFERRED_MAXIMUM);
    json_write_init(&out, &text);
    json_write_object(&out);
    format->infer(w, &out);
    json_write_object_end(&out);
    snprintf(c->path, sizeof c->path, "%s (it has no config.json)", weights_source(w));
    ct_status status = strbuf_ok(&text)
                           ? json_parse(&c->root, text.data, text.length, c->path, error)
                           : error_memory(error, INFERRED_MAXIMUM, "a configuration");
    strbuf_free(&text);
    return status;
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

ct_status component_open(config *c, weights **w, const component_format *format,
                         const load_options *options, const char *directory, ct_error *error)
{
    const ct_allocator *a = options->allocator;
    *w = NULL;
    *c = (config){0};
    char *path = path_join(a, directory, "config.json");
    if (!path)
        return error_memory(error, strlen(directory), "a path");
    const bool infer = options->infer && !file_exists(path);
    ct_status status = infer ? CT_OK : config_open(c, a, path, error);
    mem_free(a, path);
    if (status == CT_OK && !infer)
        status = check_class(c, format->class_prefix, error);
    if (status == CT_OK)
        status = weights_open_directory(w, a, directory, format->stem, error);
    if (status == CT_OK && infer)
        status = infer_config(c, *w, format, a, error);
    if (status != CT_OK)
        config_close(c);
    return status;
}
