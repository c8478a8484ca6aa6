#include "core/strbuf.h"
#include "core/mem.h"

#include <stdio.h>
#include <string.h>

void strbuf_init(strbuf *s, const ct_allocator *allocator, size_t maximum)
{
    /* Lets the arithmetic in reserve go without checks. */
    if (maximum > SIZE_MAX / 4)
        maximum = SIZE_MAX / 4;
    *s = (strbuf){.allocator = allocator, .maximum = maximum};
}

void strbuf_free(strbuf *s)
{
    if (s->data)
        mem_free(s->allocator, s->data);
    s->data = NULL;
    s->length = s->capacity = 0;
}

static bool reserve(strbuf *s, size_t more)
{
    if (s->failed || more > s->maximum || s->length > s->maximum - more) {
        s->failed = true;
        return false;
    }
    size_t need = s->length + more + 1;
    if (need <= s->capacity)
        return true;
    size_t capacity = s->capacity < 64 ? 64 : s->capacity;
    while (capacity < need)
        capacity *= 2;
    char *data = mem_grow(s->allocator, s->data, s->length, capacity);
    if (!data) {
        s->failed = true;
        return false;
    }
    s->data = data;
    s->capacity = capacity;
    return true;
}

void strbuf_add(strbuf *s, const void *data, size_t length)
{
    if (!reserve(s, length))
        return;
    if (length)
        memcpy(s->data + s->length, data, length);
    s->length += length;
    s->data[s->length] = 0;
}

void strbuf_puts(strbuf *s, const char *text)
{
    strbuf_add(s, text, strlen(text));
}

void strbuf_printf(strbuf *s, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (length < 0) {
        s->failed = true;
        return;
    }
    if (!reserve(s, (size_t)length))
        return;
    va_start(args, format);
    vsnprintf(s->data + s->length, (size_t)length + 1, format, args);
    va_end(args);
    s->length += (size_t)length;
}

bool strbuf_ok(const strbuf *s)
{
    return !s->failed;
}

char *strbuf_take(strbuf *s)
{
    strbuf_add(s, "", 0);
    if (s->failed) {
        strbuf_free(s);
        return NULL;
    }
    char *data = s->data;
    s->data = NULL;
    s->length = s->capacity = 0;
    return data;
}
