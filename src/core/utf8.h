/* UTF-8, one code point at a time. */
#ifndef CORE_UTF8_H
#define CORE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UTF8_INVALID 0xffffffffu        /* returned for a byte that begins no valid sequence */
#define UTF8_REPLACEMENT "\xef\xbf\xbd" /* U+FFFD, which stands for such a byte in output */

/* The code point at text[*at], where *at < length; *at is moved behind it. Overlong forms,
 * surrogates and values above U+10FFFF are invalid; *at is then moved by one byte. */
uint32_t utf8_next(const char *text, size_t length, size_t *at);
/* Writes 1..4 bytes (no zero byte at the end) and returns how many. point must be valid. */
size_t utf8_put(uint32_t point, char out[4]);
bool utf8_valid(const char *text, size_t length);

#endif
