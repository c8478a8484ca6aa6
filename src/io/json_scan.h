/* JSON read from front to back, for members with hundreds of thousands of values (the vocabulary of
 * a tokenizer), for which a tree of values takes half a second and a hundred megabytes.
 *
 *     json_scan s = {text, text + length};
 *     for (bool more = json_scan_open(&s, '{'); more; more = json_scan_more(&s, '}'))
 *         if (json_scan_key(&s, &key, &key_length) && json_scan_integer(&s, &value))
 *             ...
 *     bool good = json_scan_good(&s);
 *
 * The first mistake in the text makes everything behind it fail. */
#ifndef IO_JSON_SCAN_H
#define IO_JSON_SCAN_H

#include "io/json.h"

typedef struct json_scan {
    char *at, *end; /* what is left; strings are decoded in place */
    bool failed;
} json_scan;

/* No mistake so far. */
bool json_scan_good(const json_scan *s);
/* No mistake, and nothing but white space is left. */
bool json_scan_at_end(json_scan *s);
/* The kind of the next value; JSON_KIND_NULL at the end and after a mistake, too. */
json_kind json_scan_kind(json_scan *s);

/* Enters an object '{' or an array '['; false: it is empty, and left again. */
bool json_scan_open(json_scan *s, char open);
/* Behind a member or element: true if another one follows; false: close ended the list. */
bool json_scan_more(json_scan *s, char close);
/* The text ends with a zero byte behind length, and overwrites the quotes. */
bool json_scan_string(json_scan *s, const char **text, size_t *length);
/* The key of a member, which may not hold a zero byte, and the colon. */
bool json_scan_key(json_scan *s, const char **text, size_t *length);
bool json_scan_integer(json_scan *s, int64_t *value);
/* Passes over a value. Changes nothing in the text, and is not as strict. */
bool json_scan_skip(json_scan *s);
/* How many members or elements the next value has; s stays before it. */
size_t json_scan_count(const json_scan *s);

/* A key as it is written, and the colon; nothing is decoded, so that the text stays as it is. */
bool json_scan_raw_key(json_scan *s, const char **text, size_t *length);
/* Passes over a value; value is then a scanner of it alone. */
bool json_scan_cut(json_scan *s, json_scan *value);

#endif
