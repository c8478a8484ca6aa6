/* A growing string with a maximum. The first failure (memory, maximum) sticks: later calls do
 * nothing, and strbuf_ok tells at the end. */
#ifndef CORE_STRBUF_H
#define CORE_STRBUF_H

#include "core/error.h"

#include <stdarg.h>

typedef struct strbuf {
    const ct_allocator *allocator;
    char *data; /* always ended by a zero byte once something was added; NULL before */
    size_t length, capacity, maximum;
    bool failed;
} strbuf;

void strbuf_init(strbuf *s, const ct_allocator *allocator, size_t maximum);
void strbuf_free(strbuf *s);
void strbuf_add(strbuf *s, const void *data, size_t length);
void strbuf_puts(strbuf *s, const char *text);
void strbuf_printf(strbuf *s, const char *format, ...) CORE_PRINTF(2, 3);
bool strbuf_ok(const strbuf *s);
/* Hands the zero-ended string to the caller (mem_free), or NULL if anything failed. */
char *strbuf_take(strbuf *s);

#endif
