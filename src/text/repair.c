#include "text/repair.h"

#include "core/utf8.h"
#include "text/tokenizer.h"

/* How many bytes at the start of text, which is not valid there, stand for one U+FFFD. */
static size_t invalid_length(const char *text, size_t length)
{
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 1;
    size_t more = s[0] < 0xe0 ? 1 : s[0] < 0xf0 ? 2 : 3;
    /* The range of the second byte keeps out surrogates, overlong forms and what is too large. */
    unsigned char low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    unsigned char high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    size_t i = 1;
    for (; i < more && i < length && s[i] >= low && s[i] <= high; i++) {
        low = 0x80;
        high = 0xbf;
    }
    return i;
}

size_t utf8_valid_length(const char *text, size_t length)
{
    for (size_t at = 0; at < length;) {
        size_t start = at;
        if (utf8_next(text, length, &at) == UTF8_INVALID)
            return start;
    }
    return length;
}

void utf8_repair(strbuf *out, const char *text, size_t length)
{
    for (;;) {
        size_t valid = utf8_valid_length(text, length);
        strbuf_add(out, text, valid);
        if (valid == length)
            return;
        strbuf_puts(out, UTF8_REPLACEMENT);
        valid += invalid_length(text + valid, length - valid);
        text += valid;
        length -= valid;
    }
}
