#include "text/nfc.h"

#include "core/mem.h"
#include "core/utf8.h"

#include <utf8proc.h>

#include <string.h>

/* A code point of n UTF-8 bytes never decomposes into more than 2n (U+0390: two bytes, three code
 * points; U+1F82: three bytes, four). */
#define EXPANSION 2
#define LONGEST_DECOMPOSITION 4

/* Everything below U+0300 is its own normal form and never joins with what stands before it, and
 * the first byte of all code points from there on is at least 0xcc. */
static bool is_trivial(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)text[i] >= 0xcc)
            return false;
    return true;
}

/* What the reference's normalizer leaves alone: it knows Unicode 9, so that marks and compositions
 * of later versions are plain characters to it. utf8proc knows some of them, depending on its
 * version. U+11A7 is here because some versions of utf8proc lose it behind a Hangul syllable,
 * taking it for a final consonant (they begin at U+11A8). */
static const struct {
    uint32_t first, last;
} inert[] = {
    {0x5c8, 0x5c9},     {0x7fd, 0x7fd},     {0x897, 0x89f},     {0x8ca, 0x8d3},
    {0x9fe, 0x9fe},     {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},
    {0x11a7, 0x11a7},   {0x1715, 0x1715},   {0x1abf, 0x1af0},   {0x1df6, 0x1dfa},
    {0xa82c, 0xa82c},   {0x105c0, 0x105f3}, {0x10d24, 0x10d27}, {0x10d69, 0x10d6d},
    {0x10eab, 0x10eac}, {0x10ecb, 0x10ecf}, {0x10ef0, 0x10efb}, {0x10efd, 0x10eff},
    {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b},
    {0x11380, 0x113ff}, {0x1145e, 0x1145e}, {0x11839, 0x1183a}, {0x11900, 0x1195f},
    {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99},
    {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42},
    {0x16100, 0x1613f}, {0x16d40, 0x16d7f}, {0x16ff0, 0x16ff1}, {0x1d127, 0x1d128},
    {0x1d250, 0x1d252}, {0x1d25b, 0x1d25c}, {0x1d25f, 0x1d25f}, {0x1d280, 0x1d281},
    {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef},
    {0x1e4ec, 0x1e4ef}, {0x1e5ee, 0x1e5ef}, {0x1e6e3, 0x1e6e3}, {0x1e6e6, 0x1e6e6},
    {0x1e6ee, 0x1e6ef}, {0x1e6f5, 0x1e6f5},
};

static bool is_inert(uint32_t code)
{
    size_t low = 0, high = sizeof inert / sizeof inert[0];
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > inert[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < sizeof inert / sizeof inert[0] && code >= inert[low].first;
}

static ct_status decompose(utf8proc_int32_t *out, size_t *count, const char *text, size_t length,
                           ct_error *error)
{
    const utf8proc_option_t options = UTF8PROC_COMPOSE | UTF8PROC_STABLE;
    size_t n = 0;
    for (size_t at = 0; at < length;) {
        size_t start = at;
        uint32_t code = utf8_next(text, length, &at);
        utf8proc_int32_t parts[LONGEST_DECOMPOSITION];
        utf8proc_ssize_t got = 1;
        if (is_inert(code))
            parts[0] = (utf8proc_int32_t)code;
        else
            got = utf8proc_decompose_char((utf8proc_int32_t)code, parts, LONGEST_DECOMPOSITION,
                                          options, NULL);
        if (got < 1 || got > LONGEST_DECOMPOSITION || (size_t)got > EXPANSION * (at - start))
            return error_set(error, CT_EINTERNAL, "U+%04X cannot be decomposed", (unsigned)code);
        memcpy(out + n, parts, (size_t)got * sizeof parts[0]);
        n += (size_t)got;
    }
    *count = n;
    return CT_OK;
}

static unsigned combining_class(utf8proc_int32_t code)
{
    return is_inert((uint32_t)code) ? 0
                                    : (unsigned)utf8proc_get_property(code)->combining_class & 255u;
}

static void insertion_sort(utf8proc_int32_t *run, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        utf8proc_int32_t code = run[i];
        size_t j = i;
        for (; j > 0 && combining_class(run[j - 1]) > combining_class(code); j--)
            run[j] = run[j - 1];
        run[j] = code;
    }
}

/* Stable counting sort, for runs where the other would take quadratic time. */
static void counting_sort(utf8proc_int32_t *run, size_t count, utf8proc_int32_t *scratch)
{
    size_t start[257] = {0};
    for (size_t i = 0; i < count; i++)
        start[combining_class(run[i]) + 1]++;
    for (size_t i = 1; i < 257; i++)
        start[i] += start[i - 1];
    for (size_t i = 0; i < count; i++)
        scratch[start[combining_class(run[i])]++] = run[i];
    memcpy(run, scratch, count * sizeof *run);
}

/* Canonical order: every run of combining marks is sorted by class. utf8proc_decompose would do
 * this too, but in quadratic time. */
static void reorder(utf8proc_int32_t *codes, size_t count, utf8proc_int32_t *scratch)
{
    for (size_t at = 0; at < count;) {
        size_t end = at;
        while (end < count && combining_class(codes[end]) != 0)
            end++;
        if (end - at <= 32)
            insertion_sort(codes + at, end - at);
        else
            counting_sort(codes + at, end - at, scratch);
        at = end + 1;
    }
}

/* Composes the stretches between inert code points, in place. Returns the new count, or -1. */
static utf8proc_ssize_t compose(utf8proc_int32_t *codes, size_t count)
{
    size_t kept = 0;
    for (size_t at = 0; at < count;) {
        size_t end = at;
        while (end < count && !is_inert((uint32_t)codes[end]))
            end++;
        utf8proc_ssize_t n = utf8proc_normalize_utf32(codes + at, (utf8proc_ssize_t)(end - at),
                                                      UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (n < 0)
            return -1;
        memmove(codes + kept, codes + at, (size_t)n * sizeof *codes);
        kept += (size_t)n;
        if (end < count)
            codes[kept++] = codes[end];
        at = end + 1;
    }
    return (utf8proc_ssize_t)kept;
}

static void append(strbuf *out, const utf8proc_int32_t *codes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char bytes[4];
        strbuf_add(out, bytes, utf8_put((uint32_t)codes[i], bytes));
    }
}

ct_status nfc_normalize(strbuf *out, const ct_allocator *a, const char *text, size_t length,
                        ct_error *error)
{
    if (is_trivial(text, length)) {
        strbuf_add(out, text, length);
        return strbuf_ok(out) ? CT_OK : error_memory(error, length, "normalized text");
    }
    size_t room, bytes;
    if (!size_mul(length, EXPANSION, &room) ||
        !size_mul(room, 2 * sizeof(utf8proc_int32_t), &bytes))
        return error_memory(error, length, "normalized text");
    utf8proc_int32_t *codes = mem_alloc(a, bytes);
    if (!codes)
        return error_memory(error, bytes, "normalized text");
    size_t count = 0;
    ct_status status = decompose(codes, &count, text, length, error);
    if (status == CT_OK) {
        reorder(codes, count, codes + room);
        utf8proc_ssize_t composed = compose(codes, count);
        if (composed < 0)
            status = error_set(error, CT_EINTERNAL, "text cannot be normalized");
        else
            append(out, codes, (size_t)composed);
    }
    mem_free(a, codes);
    if (status == CT_OK && !strbuf_ok(out))
        return error_memory(error, length, "normalized text");
    return status;
}
