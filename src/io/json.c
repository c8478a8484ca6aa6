#include "io/json.h"

#include "core/file.h"
#include "core/mem.h"

#include <jansson.h>

#include <stdio.h>
#include <string.h>

/* The largest configuration file that is read. Real ones have a few kilobytes. */
#define CONFIG_MAXIMUM ((size_t)16 << 20)

static ct_status parse_error(const json_error_t *e, const char *what, ct_error *error)
{
    if (json_error_code(e) == json_error_out_of_memory)
        return error_set(error, CT_ENOMEM, "out of memory while parsing %s", what);
    return error_set(error, CT_EFORMAT, "%s is not valid JSON: line %d, column %d: %s", what,
                     e->line, e->column, e->text);
}

ct_status json_parse(json_value **out, const char *text, size_t length, const char *what,
                     ct_error *error)
{
    *out = NULL;
    if (length == 0)
        return error_set(error, CT_EFORMAT, "%s is not valid JSON: it is empty", what);
    json_error_t e;
    json_t *root = json_loadb(text, length, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!root)
        return parse_error(&e, what, error);
    *out = root;
    return CT_OK;
}

ct_status json_read(json_value **out, const ct_allocator *a, const char *path, size_t maximum,
                    ct_error *error)
{
    *out = NULL;
    char *text;
    size_t length;
    ct_status status = file_read(a, path, maximum, &text, &length, error);
    if (status != CT_OK)
        return status;
    status = json_parse(out, text, length, path, error);
    mem_free(a, text);
    return status;
}

void json_free(json_value *root)
{
    json_decref(root);
}

json_kind json_get_kind(const json_value *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT: return JSON_KIND_OBJECT;
    case JSON_ARRAY: return JSON_KIND_ARRAY;
    case JSON_STRING: return JSON_KIND_STRING;
    case JSON_INTEGER: return JSON_KIND_INTEGER;
    case JSON_REAL: return JSON_KIND_REAL;
    case JSON_TRUE:
    case JSON_FALSE: return JSON_KIND_BOOL;
    case JSON_NULL: break;
    }
    return JSON_KIND_NULL;
}

const char *json_kind_name(json_kind kind)
{
    switch (kind) {
    case JSON_KIND_NULL: return "null";
    case JSON_KIND_BOOL: return "a boolean";
    case JSON_KIND_INTEGER: return "an integer";
    case JSON_KIND_REAL: return "a real number";
    case JSON_KIND_STRING: return "a string";
    case JSON_KIND_ARRAY: return "an array";
    case JSON_KIND_OBJECT: return "an object";
    }
    return "unknown";
}

const json_value *json_get(const json_value *object, const char *key)
{
    return json_object_get(object, key);
}

size_t json_size(const json_value *value)
{
    return json_is_array(value) ? json_array_size(value) : json_object_size(value);
}

const json_value *json_at(const json_value *array, size_t index)
{
    return json_array_get(array, index);
}

ct_status json_each(const json_value *object,
                    ct_status (*visit)(void *user, const char *key, const json_value *value,
                                       ct_error *error),
                    void *user, ct_error *error)
{
    /* Jansson's iterators are not const because values could be replaced through them. */
    json_t *o = (json_t *)(uintptr_t)object;
    for (void *at = json_object_iter(o); at; at = json_object_iter_next(o, at)) {
        ct_status status = visit(user, json_object_iter_key(at), json_object_iter_value(at), error);
        if (status != CT_OK)
            return status;
    }
    return CT_OK;
}

const char *json_get_string(const json_value *value, size_t *length)
{
    const char *text = json_string_value(value);
    if (text && length)
        *length = json_string_length(value);
    return text;
}

bool json_get_integer(const json_value *value, int64_t *out)
{
    if (!json_is_integer(value))
        return false;
    *out = json_integer_value(value);
    return true;
}

bool json_get_number(const json_value *value, double *out)
{
    if (!json_is_number(value))
        return false;
    *out = json_number_value(value);
    return true;
}

bool json_get_boolean(const json_value *value, bool *out)
{
    if (!json_is_boolean(value))
        return false;
    *out = json_is_true(value);
    return true;
}

/* ---- Configuration files --------------------------------------------------------------------- */

/* The end of a long path says more than its beginning. */
static void shorten(char *out, size_t capacity, const char *path)
{
    size_t length = strlen(path);
    if (length < capacity)
        memcpy(out, path, length + 1);
    else
        snprintf(out, capacity, "...%s", path + (length - (capacity - 4)));
}

ct_status config_open(config *c, const ct_allocator *a, const char *path, ct_error *error)
{
    *c = (config){0};
    shorten(c->path, sizeof c->path, path);
    ct_status status = json_read(&c->root, a, path, CONFIG_MAXIMUM, error);
    if (status != CT_OK)
        return status;
    json_kind kind = json_get_kind(c->root);
    if (kind == JSON_KIND_OBJECT)
        return CT_OK;
    config_close(c);
    return error_set(error, CT_EFORMAT, "%s: expected an object, found %s", path,
                     json_kind_name(kind));
}

void config_close(config *c)
{
    json_free(c->root);
    c->root = NULL;
}

bool config_has(const config *c, const char *key)
{
    const json_value *value = json_get(c->root, key);
    return value && !json_is_null(value);
}

/* *value is NULL where the fallback is to be taken. */
static ct_status member(const config *c, const char *key, bool required, const json_value **value,
                        ct_error *error)
{
    *value = config_has(c, key) ? json_get(c->root, key) : NULL;
    if (!*value && required)
        return error_set(error, CT_EFORMAT, "%s: \"%s\" is missing", c->path, key);
    return CT_OK;
}

static ct_status wrong_kind(const config *c, const char *key, const char *expected,
                            const json_value *value, ct_error *error)
{
    return error_set(error, CT_EFORMAT, "%s: \"%s\" must be %s, but is %s", c->path, key, expected,
                     json_kind_name(json_get_kind(value)));
}

static ct_status check_range(const config *c, const char *key, int64_t value, int64_t min,
                             int64_t max, ct_error *error)
{
    if (value >= min && value <= max)
        return CT_OK;
    return error_set(error, CT_EFORMAT, "%s: \"%s\" is %lld, but must be in %lld..%lld", c->path,
                     key, (long long)value, (long long)min, (long long)max);
}

ct_status config_integer(const config *c, const char *key, int64_t min, int64_t max, bool required,
                         int64_t fallback, int64_t *out, ct_error *error)
{
    const json_value *value;
    ct_status status = member(c, key, required, &value, error);
    if (status != CT_OK)
        return status;
    int64_t number = fallback;
    if (value) {
        if (!json_get_integer(value, &number))
            return wrong_kind(c, key, "an integer", value, error);
        status = check_range(c, key, number, min, max, error);
    }
    if (status == CT_OK)
        *out = number;
    return status;
}

ct_status config_number(const config *c, const char *key, double min, double max, bool required,
                        double fallback, double *out, ct_error *error)
{
    const json_value *value;
    ct_status status = member(c, key, required, &value, error);
    if (status != CT_OK)
        return status;
    double number = fallback;
    if (value) {
        if (!json_get_number(value, &number))
            return wrong_kind(c, key, "a number", value, error);
        if (!(number >= min && number <= max))
            return error_set(error, CT_EFORMAT, "%s: \"%s\" is %g, but must be in %g..%g", c->path,
                             key, number, min, max);
    }
    *out = number;
    return CT_OK;
}

ct_status config_boolean(const config *c, const char *key, bool fallback, bool *out,
                         ct_error *error)
{
    const json_value *value;
    ct_status status = member(c, key, false, &value, error);
    if (status != CT_OK)
        return status;
    bool flag = fallback;
    if (value && !json_get_boolean(value, &flag))
        return wrong_kind(c, key, "a boolean", value, error);
    *out = flag;
    return CT_OK;
}

ct_status config_string(const config *c, const char *key, bool required, const char **out,
                        ct_error *error)
{
    *out = NULL;
    const json_value *value;
    ct_status status = member(c, key, required, &value, error);
    if (status != CT_OK || !value)
        return status;
    size_t length;
    const char *text = json_get_string(value, &length);
    if (!text)
        return wrong_kind(c, key, "a string", value, error);
    if (strlen(text) != length)
        return error_set(error, CT_EFORMAT, "%s: \"%s\" holds a zero byte", c->path, key);
    *out = text;
    return CT_OK;
}

ct_status config_integers(const config *c, const char *key, int64_t min, int64_t max, int capacity,
                          int64_t *out, int *count, ct_error *error)
{
    *count = 0;
    const json_value *value;
    ct_status status = member(c, key, true, &value, error);
    if (status != CT_OK)
        return status;
    if (!json_is_array(value))
        return wrong_kind(c, key, "an array of integers", value, error);
    size_t size = json_size(value);
    if (size < 1 || capacity < 0 || size > (size_t)capacity)
        return error_set(error, CT_EFORMAT, "%s: \"%s\" has %zu elements, but must have 1..%d",
                         c->path, key, size, capacity);
    for (size_t i = 0; i < size; i++) {
        int64_t number;
        if (!json_get_integer(json_at(value, i), &number))
            return wrong_kind(c, key, "an array of integers", json_at(value, i), error);
        status = check_range(c, key, number, min, max, error);
        if (status != CT_OK)
            return status;
        out[i] = number;
    }
    *count = (int)size;
    return CT_OK;
}
