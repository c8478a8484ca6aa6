/* Arbitrary text through the JSON parser, every value through every accessor, and the members of
 * the top object through the configuration getters. */
#include "io/json.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void walk(const json_value *value);

static ct_status walk_member(void *user, const char *key, const json_value *value, ct_error *error)
{
    (void)error;
    require(json_get(user, key) == value);
    walk(value);
    return CT_OK;
}

static void walk(const json_value *value)
{
    int64_t integer;
    double number;
    bool flag;
    size_t length;
    json_kind kind = json_get_kind(value);
    require(json_get_integer(value, &integer) == (kind == JSON_KIND_INTEGER));
    require(json_get_number(value, &number) ==
            (kind == JSON_KIND_INTEGER || kind == JSON_KIND_REAL));
    require(json_get_boolean(value, &flag) == (kind == JSON_KIND_BOOL));
    const char *text = json_get_string(value, &length);
    require((text != NULL) == (kind == JSON_KIND_STRING));
    require(!text || (strlen(text) <= length && text[length] == 0));
    if (kind == JSON_KIND_ARRAY)
        for (size_t i = 0; i < json_size(value); i++)
            walk(json_at(value, i));
    require(!json_at(value, json_size(value)));
    json_each(value, walk_member, (void *)(uintptr_t)value, NULL);
}

/* The status and the message must agree, and a value must be within its range. */
static void get(const config *c, const char *key, bool required)
{
    ct_error error = {0};
    int64_t integer = 0, list[4];
    double number = 0;
    bool flag;
    int count;
    const char *text;
    ct_status status = config_integer(c, key, -10, 1000, required, 7, &integer, &error);
    require(status == error.code && integer >= -10 && integer <= 1000);
    error = (ct_error){0};
    status = config_number(c, key, -0.5, 1e6, required, 0.25, &number, &error);
    require(status == error.code && number >= -0.5 && number <= 1e6);
    error = (ct_error){0};
    require(config_boolean(c, key, true, &flag, &error) == error.code);
    error = (ct_error){0};
    status = config_string(c, key, required, &text, &error);
    require(status == error.code && (!text || status == CT_OK));
    error = (ct_error){0};
    status = config_integers(c, key, 0, 9, 4, list, &count, &error);
    require(status == error.code && (status == CT_OK) == (count > 0) && count <= 4);
    for (int i = 0; i < count; i++)
        require(list[i] >= 0 && list[i] <= 9);
}

static ct_status get_member(void *user, const char *key, const json_value *value, ct_error *error)
{
    (void)error;
    require(config_has(user, key) == (json_get_kind(value) != JSON_KIND_NULL));
    get(user, key, false);
    get(user, key, true);
    return CT_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    config c = {.path = "input"};
    ct_error error = {0};
    ct_status status = json_parse(&c.root, (const char *)data, size, "input", &error);
    require((status == CT_OK) == (c.root != NULL) && status == error.code);
    if (!c.root)
        return 0;
    walk(c.root);
    if (json_get_kind(c.root) == JSON_KIND_OBJECT) {
        json_each(c.root, get_member, &c, NULL);
        get(&c, "hidden_size", false);
        get(&c, "hidden_size", true);
    }
    config_close(&c);
    return 0;
}
