/* Writes JSON on a string buffer: one line, no spaces, the commas put by themselves.
 * Failures stick in the buffer (strbuf_ok). */
#ifndef IO_JSONWRITE_H
#define IO_JSONWRITE_H

#include "core/strbuf.h"

typedef struct json_writer {
    strbuf *out;
    bool comma; /* something stands before the next key or value */
} json_writer;

void json_write_init(json_writer *w, strbuf *out);
void json_write_object(json_writer *w);
void json_write_object_end(json_writer *w);
void json_write_array(json_writer *w);
void json_write_array_end(json_writer *w);
/* Inside an object a key goes before each value. */
void json_write_key(json_writer *w, const char *key);
/* Bytes that are not UTF-8 become U+FFFD. NULL becomes null. */
void json_write_string(json_writer *w, const char *text);
void json_write_integer(json_writer *w, int64_t value);
void json_write_unsigned(json_writer *w, uint64_t value);
/* The shortest form that reads back as the same double, always with a point or an exponent so that
 * it stays a real number ("3.0"); NaN and the infinities, which JSON lacks, become null. */
void json_write_number(json_writer *w, double value);
void json_write_boolean(json_writer *w, bool value);
void json_write_null(json_writer *w);

/* Text as a JSON string with its quotes, without a writer. */
void json_quote(strbuf *out, const char *text, size_t length);
/* The shortest decimal form of a finite double, such as "3", "0.5" or "1e-07", with a point in any
 * locale. */
#define JSON_NUMBER_SIZE 40
void json_number_text(char out[JSON_NUMBER_SIZE], double value);

#endif
