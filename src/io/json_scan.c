#include "io/json_scan.h"

#include "core/utf8.h"

#include <string.h>

#define MAX_DEPTH 512

bool json_scan_good(const json_scan *s)
{
    return !s->failed;
}

static bool fail(json_scan *s)
{
    s->failed = true;
    s->at = s->end;
    return false;
}

/* The next character that is not white space, or 0. */
static char peek(json_scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\n' || *s->at == '\r' || *s->at == '\t'))
        s->at++;
    return s->at < s->end ? *s->at : 0;
}

static bool accept(json_scan *s, char c)
{
    if (peek(s) != c || s->at >= s->end)
        return false;
    s->at++;
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

bool json_scan_at_end(json_scan *s)
{
    peek(s);
    return !s->failed && s->at == s->end;
}

json_kind json_scan_kind(json_scan *s)
{
    switch (peek(s)) {
    case '{': return JSON_KIND_OBJECT;
    case '[': return JSON_KIND_ARRAY;
    case '"': return JSON_KIND_STRING;
    case 't':
    case 'f': return JSON_KIND_BOOL;
    case 0:
    case 'n': return JSON_KIND_NULL;
    default: break;
    }
    const char *p = s->at + (*s->at == '-');
    while (p < s->end && is_digit(*p))
        p++;
    return p < s->end && (*p == '.' || *p == 'e' || *p == 'E') ? JSON_KIND_REAL : JSON_KIND_INTEGER;
}

bool json_scan_open(json_scan *s, char open)
{
    if (!accept(s, open))
        return fail(s);
    return !accept(s, open == '{' ? '}' : ']') && !s->failed;
}

bool json_scan_more(json_scan *s, char close)
{
    if (s->failed || accept(s, close))
        return false;
    return accept(s, ',') || fail(s);
}

/* Four hexadecimal digits. */
static bool read_hex(json_scan *s, uint32_t *code)
{
    *code = 0;
    if (s->end - s->at < 4)
        return fail(s);
    for (int i = 0; i < 4; i++) {
        char c = *s->at++, letter = (char)(c | 32);
        if (!is_digit(c) && !(letter >= 'a' && letter <= 'f'))
            return fail(s);
        *code = *code * 16 + (uint32_t)(is_digit(c) ? c - '0' : letter - 'a' + 10);
    }
    return true;
}

/* What stands behind "\u"; two of them where a surrogate says so. */
static bool read_point(json_scan *s, uint32_t *point)
{
    uint32_t low;
    if (!read_hex(s, point))
        return false;
    if (*point < 0xd800 || *point > 0xdfff)
        return true;
    if (*point > 0xdbff || s->end - s->at < 2 || s->at[0] != '\\' || s->at[1] != 'u')
        return fail(s);
    s->at += 2;
    if (!read_hex(s, &low) || low < 0xdc00 || low > 0xdfff)
        return fail(s);
    *point = 0x10000 + ((*point - 0xd800) << 10) + (low - 0xdc00);
    return true;
}

/* What stands behind a backslash, to *to. It is never longer than it was written. */
static bool read_escape(json_scan *s, char **to)
{
    static const char from[] = "\"\\/bfnrt", plain[] = "\"\\/\b\f\n\r\t";
    if (s->at >= s->end)
        return fail(s);
    const char c = *s->at++;
    uint32_t point;
    if (c == 'u') {
        if (!read_point(s, &point))
            return false;
        *to += utf8_put(point, *to);
        return true;
    }
    const char *known = c ? strchr(from, c) : NULL;
    if (!known)
        return fail(s);
    *(*to)++ = plain[known - from];
    return true;
}

bool json_scan_string(json_scan *s, const char **text, size_t *length)
{
    if (!accept(s, '"'))
        return fail(s);
    char *const first = s->at, *to = first;
    while (s->at < s->end) {
        const unsigned char c = (unsigned char)*s->at;
        if (c == '"') {
            s->at++;
            *to = 0;
            *text = first;
            *length = (size_t)(to - first);
            return true;
        }
        if (c == '\\') {
            s->at++;
            if (!read_escape(s, &to))
                return false;
        } else if (c < 32) {
            return fail(s);
        } else if (c < 128) {
            *to++ = *s->at++;
        } else {
            size_t bytes = 0;
            if (utf8_next(s->at, (size_t)(s->end - s->at), &bytes) == UTF8_INVALID)
                return fail(s);
            memmove(to, s->at, bytes);
            to += bytes;
            s->at += bytes;
        }
    }
    return fail(s);
}

bool json_scan_key(json_scan *s, const char **text, size_t *length)
{
    if (!json_scan_string(s, text, length))
        return false;
    return (strlen(*text) == *length && accept(s, ':')) || fail(s);
}

bool json_scan_integer(json_scan *s, int64_t *value)
{
    const bool negative = accept(s, '-');
    if (s->at >= s->end || !is_digit(negative ? *s->at : peek(s)))
        return fail(s);
    const bool zero = *s->at == '0';
    uint64_t number = 0;
    int digits = 0;
    for (; s->at < s->end && is_digit(*s->at) && digits < 19; digits++)
        number = number * 10 + (uint64_t)(*s->at++ - '0');
    const char behind = s->at < s->end ? *s->at : 0;
    if ((zero && digits > 1) || number > INT64_MAX || is_digit(behind) || behind == '.' ||
        behind == 'e' || behind == 'E')
        return fail(s);
    *value = negative ? -(int64_t)number : (int64_t)number;
    return true;
}

/* A character of a number, or of true, false and null. */
static bool is_word(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || c == '-' || c == '+' || c == '.' || c == 'E';
}

static bool skip_string(json_scan *s)
{
    for (s->at++; s->at < s->end; s->at++) {
        if (*s->at == '"') {
            s->at++;
            return true;
        }
        if (*s->at == '\\' && ++s->at >= s->end)
            break;
    }
    return fail(s);
}

bool json_scan_skip(json_scan *s)
{
    int depth = 0;
    do {
        const char c = peek(s);
        if (s->at >= s->end)
            return fail(s);
        if (c == '"') {
            if (!skip_string(s))
                return false;
        } else if (c == '{' || c == '[') {
            s->at++;
            if (++depth > MAX_DEPTH)
                return fail(s);
        } else if (c == '}' || c == ']') {
            s->at++;
            if (--depth < 0)
                return fail(s);
        } else if (depth && (c == ',' || c == ':')) {
            s->at++;
        } else { /* a number, true, false, null */
            const char *first = s->at;
            while (s->at < s->end && is_word(*s->at))
                s->at++;
            if (s->at == first)
                return fail(s);
        }
    } while (depth);
    return true;
}

bool json_scan_raw_key(json_scan *s, const char **text, size_t *length)
{
    if (peek(s) != '"')
        return fail(s);
    *text = s->at + 1;
    if (!skip_string(s))
        return false;
    *length = (size_t)(s->at - *text) - 1;
    return accept(s, ':') || fail(s);
}

size_t json_scan_count(const json_scan *s)
{
    json_scan copy = *s;
    const bool object = json_scan_kind(&copy) == JSON_KIND_OBJECT;
    size_t count = 0;
    for (bool more = json_scan_open(&copy, object ? '{' : '['); more;
         more = json_scan_more(&copy, object ? '}' : ']')) {
        const char *key;
        size_t length;
        if (object && !json_scan_raw_key(&copy, &key, &length))
            break;
        if (!json_scan_skip(&copy))
            break;
        count++;
    }
    return count;
}

bool json_scan_cut(json_scan *s, json_scan *value)
{
    peek(s);
    *value = (json_scan){.at = s->at, .end = s->at};
    if (!json_scan_skip(s))
        return false;
    value->end = s->at;
    return true;
}
