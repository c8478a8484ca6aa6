/* JSON, as a thin layer over Jansson (the only file that includes it is json.c).
 * Values are read-only and belong to the root that json_parse returned. */
#ifndef IO_JSON_H
#define IO_JSON_H

#include "core/error.h"

typedef struct json_t json_value;

typedef enum json_kind {
    JSON_KIND_NULL,
    JSON_KIND_BOOL,
    JSON_KIND_INTEGER,
    JSON_KIND_REAL,
    JSON_KIND_STRING,
    JSON_KIND_ARRAY,
    JSON_KIND_OBJECT
} json_kind;

/* Parses UTF-8 text of the given length. what names the source in messages: a path. Messages give
 * line and column. A key that occurs twice in one object is an error. */
ct_status json_parse(json_value **out, const char *text, size_t length, const char *what,
                     ct_error *error);
/* Reads and parses a file of at most maximum bytes. */
ct_status json_read(json_value **out, const ct_allocator *a, const char *path, size_t maximum,
                    ct_error *error);
void json_free(json_value *root); /* NULL is allowed */

json_kind json_get_kind(const json_value *value);
const char *json_kind_name(json_kind kind); /* "an integer" */

/* NULL when object is not an object or has no such key. */
const json_value *json_get(const json_value *object, const char *key);
/* Elements of an array or members of an object; 0 for all other kinds. */
size_t json_size(const json_value *value);
/* NULL when out of range. */
const json_value *json_at(const json_value *array, size_t index);
/* Calls visit for each member in an unspecified order until it fails; returns its status. */
ct_status json_each(const json_value *object,
                    ct_status (*visit)(void *user, const char *key, const json_value *value,
                                       ct_error *error),
                    void *user, ct_error *error);

/* The value of a string (its length may be NULL), or NULL when it is not a string. Strings may
 * hold zero bytes; callers that need none must compare length. */
const char *json_get_string(const json_value *value, size_t *length);
/* False when value is NULL, not an integer, or (json_get_number) not a number. */
bool json_get_integer(const json_value *value, int64_t *out);
bool json_get_number(const json_value *value, double *out);
bool json_get_boolean(const json_value *value, bool *out);

/* A configuration file: members with a range and a default, and messages that name file and key. */
typedef struct config {
    json_value *root; /* an object */
    char path[1024];  /* for messages; shortened if it is longer */
} config;

ct_status config_open(config *c, const ct_allocator *a, const char *path, ct_error *error);
void config_close(config *c);
bool config_has(const config *c, const char *key); /* present and not null */

/* Each reads one member of the top object. A member that is absent or null takes fallback; where
 * required is true that is an error. Wrong kinds and values outside min..max are errors. */
ct_status config_integer(const config *c, const char *key, int64_t min, int64_t max, bool required,
                         int64_t fallback, int64_t *out, ct_error *error);
ct_status config_number(const config *c, const char *key, double min, double max, bool required,
                        double fallback, double *out, ct_error *error);
ct_status config_boolean(const config *c, const char *key, bool fallback, bool *out,
                         ct_error *error);
/* NULL for an absent string that is not required. Lives as long as the config. */
ct_status config_string(const config *c, const char *key, bool required, const char **out,
                        ct_error *error);
/* An array of integers in min..max with 1..capacity elements. */
ct_status config_integers(const config *c, const char *key, int64_t min, int64_t max, int capacity,
                          int64_t *out, int *count, ct_error *error);

#endif
