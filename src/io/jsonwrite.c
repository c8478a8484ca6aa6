#include "io/jsonwrite.h"
#include "core/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void json_write_init(json_writer *w, strbuf *out)
{
    *w = (json_writer){.out = out};
}

static void begin_value(json_writer *w)
{
    if (w->comma)
        strbuf_puts(w->out, ",");
    w->comma = true;
}

static void open_container(json_writer *w, const char *bracket)
{
    begin_value(w);
    strbuf_puts(w->out, bracket);
    w->comma = false;
}

static void close_container(json_writer *w, const char *bracket)
{
    strbuf_puts(w->out, bracket);
    w->comma = true;
}

void json_write_object(json_writer *w)
{
    open_container(w, "{");
}

void json_write_object_end(json_writer *w)
{
    close_container(w, "}");
}

void json_write_array(json_writer *w)
{
    open_container(w, "[");
}

void json_write_array_end(json_writer *w)
{
    close_container(w, "]");
}

void json_write_key(json_writer *w, const char *key)
{
    begin_value(w);
    json_quote(w->out, key, strlen(key));
    strbuf_puts(w->out, ":");
    w->comma = false;
}

void json_write_string(json_writer *w, const char *text)
{
    if (!text) {
        json_write_null(w);
        return;
    }
    begin_value(w);
    json_quote(w->out, text, strlen(text));
}

void json_write_integer(json_writer *w, int64_t value)
{
    begin_value(w);
    strbuf_printf(w->out, "%" PRId64, value);
}

void json_write_unsigned(json_writer *w, uint64_t value)
{
    begin_value(w);
    strbuf_printf(w->out, "%" PRIu64, value);
}

void json_write_number(json_writer *w, double value)
{
    if (!isfinite(value)) {
        json_write_null(w);
        return;
    }
    char text[JSON_NUMBER_SIZE];
    json_number_text(text, value);
    begin_value(w);
    strbuf_puts(w->out, text);
    if (!strpbrk(text, ".e"))
        strbuf_puts(w->out, ".0");
}

void json_write_boolean(json_writer *w, bool value)
{
    begin_value(w);
    strbuf_puts(w->out, value ? "true" : "false");
}

void json_write_null(json_writer *w)
{
    begin_value(w);
    strbuf_puts(w->out, "null");
}

static void quote_control(strbuf *out, uint32_t point)
{
    switch (point) {
    case '\b': strbuf_puts(out, "\\b"); return;
    case '\f': strbuf_puts(out, "\\f"); return;
    case '\n': strbuf_puts(out, "\\n"); return;
    case '\r': strbuf_puts(out, "\\r"); return;
    case '\t': strbuf_puts(out, "\\t"); return;
    default: strbuf_printf(out, "\\u%04x", (unsigned)point);
    }
}

void json_quote(strbuf *out, const char *text, size_t length)
{
    strbuf_puts(out, "\"");
    for (size_t at = 0; at < length;) {
        size_t start = at;
        uint32_t point = utf8_next(text, length, &at);
        if (point == UTF8_INVALID)
            strbuf_puts(out, UTF8_REPLACEMENT);
        else if (point == '"' || point == '\\')
            strbuf_printf(out, "\\%c", (int)point);
        else if (point < 32 || (point >= 127 && point < 160)) /* also those that move a terminal */
            quote_control(out, point);
        else
            strbuf_add(out, text + start, at - start);
    }
    strbuf_puts(out, "\"");
}

void json_number_text(char out[JSON_NUMBER_SIZE], double value)
{
    /* Whole numbers are written out as long as every digit is exact. */
    if (fabs(value) < 1e15 && value == floor(value)) {
        snprintf(out, JSON_NUMBER_SIZE, "%.0f", value);
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, JSON_NUMBER_SIZE, "%.*g", digits, value);
        if (strtod(out, NULL) == value)
            break;
    }
    /* Whatever the locale has for a decimal point, possibly of several bytes, becomes a point. */
    char *to = out;
    bool foreign = false;
    for (const char *from = out; *from; from++) {
        if (strchr("0123456789+-e", *from)) {
            *to++ = *from;
            foreign = false;
        } else if (!foreign) {
            *to++ = '.';
            foreign = true;
        }
    }
    *to = 0;
}
