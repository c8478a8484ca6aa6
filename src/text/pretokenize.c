#include "text/pretokenize.h"

#include "core/mem.h"
#include "core/strbuf.h"
#include "core/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string.h>

const char pretokenizer_qwen[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
                                 "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

#define PATTERN_MAXIMUM ((size_t)8192)

/* What one search may cost. The pattern above needs a few steps for each byte; others can be made
 * to need exponentially many. */
#define MATCH_LIMIT 10000
#define MATCH_LIMIT_BYTE 20
#define HEAP_LIMIT_KIB (64u * 1024)

struct pretokenizer {
    ct_allocator allocator;
    bool creating, failed; /* an allocation failed while creating */
    pcre2_general_context *general;
    pcre2_code *code;
};

/* ---- Translation of the pattern -------------------------------------------------------------- */

/* White_Space, which is what \s means to Oniguruma, and everything else. PCRE2 would count U+180E
 * among the spaces too. */
#define SPACES                                                                                     \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"    \
    "\\x{205f}\\x{3000}"
#define NO_SPACES                                                                                  \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}"                   \
    "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}"                 \
    "\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"

/* Letters and numbers of Unicode 15 to 16, which the reference counts (Oniguruma 6.9.10), but PCRE2
 * before 10.45 does not. */
#define NEW_LETTERS                                                                                \
    "\\x{1c89}\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"                \
    "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}\\x{11240}"          \
    "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}" \
    "\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}"          \
    "\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}"         \
    "\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}"                     \
    "\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}"          \
    "\\x{31350}-\\x{323af}"
#define NEW_NUMBERS                                                                                \
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"         \
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"         \
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"

typedef struct translation {
    const char *at, *end;
    strbuf out;
    bool in_class;
    const char *class_start; /* the first character of the class, behind [ or [^ */
    const char *refused;     /* why the pattern cannot be used, or NULL */
} translation;

static bool is_alphanumeric(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Whether the rest begins with a text. */
static bool follows(const translation *t, const char *text)
{
    size_t length = strlen(text);
    return (size_t)(t->end - t->at) >= length && !memcmp(t->at, text, length);
}

static void copy(translation *t, size_t length)
{
    strbuf_add(&t->out, t->at, length);
    t->at += length;
}

/* \p{L} and \p{N} with what PCRE2 may lack. */
static bool translate_known_property(translation *t)
{
    bool letters = follows(t, "\\p{L}"), numbers = follows(t, "\\p{N}");
    if (!letters && !numbers)
        return false;
    strbuf_puts(&t->out, t->in_class ? "" : "[");
    copy(t, strlen("\\p{L}"));
    strbuf_puts(&t->out, letters ? NEW_LETTERS : NEW_NUMBERS);
    strbuf_puts(&t->out, t->in_class ? "" : "]");
    return true;
}

/* \p{Name}, with \p at the current place. */
static void translate_property(translation *t)
{
    if (translate_known_property(t))
        return;
    const char *p = t->at + 2;
    if (p < t->end && *p == '{')
        for (p++; p < t->end && (is_alphanumeric(*p) || *p == '_'); p++)
            continue;
    if (p < t->end && *p == '}')
        copy(t, (size_t)(p + 1 - t->at));
    else
        t->refused = "a property that is not written \\p{Name}";
}

static void translate_space(translation *t, bool spaces)
{
    const char *set = spaces ? SPACES : NO_SPACES;
    t->at += 2;
    if (!t->in_class) {
        strbuf_printf(&t->out, "[%s]", set);
        return;
    }
    /* The set must not become one end of a range. */
    bool behind = t->at - 2 > t->class_start && t->at[-3] == '-';
    bool before = t->end - t->at >= 2 && t->at[0] == '-' && t->at[1] != ']';
    if (behind || before)
        t->refused = "\\s beside a hyphen";
    else
        strbuf_puts(&t->out, set);
}

static void translate_escape(translation *t)
{
    char c = t->end - t->at >= 2 ? t->at[1] : 0;
    if (c == 's' || c == 'S')
        translate_space(t, c == 's');
    else if (c == 'p' || c == 'P')
        translate_property(t);
    else if (c == 'r' || c == 'n' || c == 't' || c == 'd' || c == 'D')
        copy(t, 2);
    else if (c > 32 && c < 127 && !is_alphanumeric(c))
        copy(t, 2);
    else
        t->refused = "an escape other than \\r \\n \\t \\d \\D \\s \\S \\p \\P";
}

static void translate_in_class(translation *t)
{
    if (*t->at == '\\')
        translate_escape(t);
    else if (*t->at == '[' || follows(t, "&&"))
        t->refused = "a class within a class";
    else if (*t->at == ']' && t->at == t->class_start)
        t->refused = "an empty class";
    else {
        t->in_class = *t->at != ']';
        copy(t, 1);
    }
}

static void translate_class_start(translation *t)
{
    copy(t, 1);
    if (follows(t, "^"))
        copy(t, 1);
    t->in_class = true;
    t->class_start = t->at;
}

static void translate_group(translation *t)
{
    static const char *const groups[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++)
        if (follows(t, groups[i])) {
            copy(t, strlen(groups[i]));
            return;
        }
    if (follows(t, "(?") || follows(t, "(*"))
        t->refused = "a group other than ( (?: (?i: (?= (?! (?<= (?<! (?>";
    else
        copy(t, 1);
}

/* {n}, {n,} and {n,m}. Behind them, ? and + mean different things to different engines. */
static void translate_count(translation *t)
{
    const char *p = t->at + 1, *digits = p;
    while (p < t->end && *p >= '0' && *p <= '9')
        p++;
    bool valid = p > digits;
    if (valid && p < t->end && *p == ',')
        for (p++; p < t->end && *p >= '0' && *p <= '9'; p++)
            continue;
    valid = valid && p < t->end && *p == '}';
    if (!valid || (p + 1 < t->end && (p[1] == '?' || p[1] == '+')))
        t->refused = "a repetition that is not written {n}, {n,} or {n,m}";
    else
        copy(t, (size_t)(p + 1 - t->at));
}

static void translate(translation *t)
{
    while (t->at < t->end && !t->refused) {
        if (t->in_class)
            translate_in_class(t);
        else if (*t->at == '\\')
            translate_escape(t);
        else if (*t->at == '[')
            translate_class_start(t);
        else if (*t->at == '(')
            translate_group(t);
        else if (*t->at == '{')
            translate_count(t);
        else if (*t->at == '^' || *t->at == '$')
            t->refused = "an anchor";
        else
            copy(t, 1);
    }
}

/* ---- Compilation ----------------------------------------------------------------------------- */

static void *pcre_alloc(size_t size, void *user)
{
    pretokenizer *p = user;
    void *pointer = mem_alloc(&p->allocator, size);
    if (!pointer && p->creating) /* afterwards there may be several threads */
        p->failed = true;
    return pointer;
}

static void pcre_free(void *pointer, void *user)
{
    const pretokenizer *p = user;
    if (pointer)
        mem_free(&p->allocator, pointer);
}

static ct_status compile(pretokenizer *p, const char *pattern, size_t length, bool jit,
                         const char *what, ct_error *error)
{
    p->general = pcre2_general_context_create(pcre_alloc, pcre_free, p);
    pcre2_compile_context *context = p->general ? pcre2_compile_context_create(p->general) : NULL;
    if (!context)
        return error_memory(error, length, "the pre-tokenizer");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code;
    PCRE2_SIZE offset;
    p->code =
        pcre2_compile((PCRE2_SPTR)pattern, length, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
                      &code, &offset, context);
    pcre2_compile_context_free(context);
    if (!p->code && code == PCRE2_ERROR_HEAP_FAILED)
        return error_memory(error, length, "the pre-tokenizer");
    if (!p->code) {
        PCRE2_UCHAR message[128] = "";
        pcre2_get_error_message(code, message, sizeof message);
        return error_set(error, CT_EFORMAT, "%s: the pattern of the pre-tokenizer is not valid: %s",
                         what, (const char *)message);
    }
    /* Where there is no machine code (the system may forbid it), matching is slower and otherwise
     * the same. */
    if (jit)
        pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE);
    return p->failed ? error_memory(error, length, "the pre-tokenizer") : CT_OK;
}

ct_status pretokenizer_create(pretokenizer **out, const ct_allocator *a, const char *pattern,
                              size_t length, bool jit, const char *what, ct_error *error)
{
    *out = NULL;
    if (length > PATTERN_MAXIMUM || !utf8_valid(pattern, length))
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: the pattern of the pre-tokenizer is not UTF-8, or longer than "
                         "%zu bytes",
                         what, PATTERN_MAXIMUM);
    pretokenizer *p = mem_zero_array(a, 1, sizeof *p);
    if (!p)
        return error_memory(error, sizeof *p, "the pre-tokenizer");
    p->allocator = *a;
    p->creating = true;
    translation t = {.at = pattern, .end = pattern + length};
    strbuf_init(&t.out, a, SIZE_MAX / 4);
    translate(&t);
    ct_status status = CT_OK;
    if (t.refused)
        status = error_set(error, CT_EUNSUPPORTED,
                           "%s: the pattern of the pre-tokenizer has %s, which is not supported",
                           what, t.refused);
    else if (!strbuf_ok(&t.out))
        status = error_memory(error, length, "the pre-tokenizer");
    else
        status = compile(p, t.out.data ? t.out.data : "", t.out.length, jit, what, error);
    strbuf_free(&t.out);
    p->creating = false;
    if (status != CT_OK)
        pretokenizer_free(p);
    else
        *out = p;
    return status;
}

void pretokenizer_free(pretokenizer *p)
{
    if (!p)
        return;
    pcre2_code_free(p->code);
    pcre2_general_context_free(p->general);
    ct_allocator a = p->allocator;
    mem_free(&a, p);
}

/* ---- Splitting ------------------------------------------------------------------------------- */

/* What the searches in one text share. It is not part of the pretokenizer, which several threads
 * may use. */
typedef struct scan {
    const pcre2_code *code;
    pcre2_match_context *context;
    pcre2_match_data *data;
    PCRE2_SPTR text;
    size_t length;
} scan;

static ct_status scan_start(scan *s, const pretokenizer *p, const char *text, size_t length,
                            ct_error *error)
{
    *s = (scan){.code = p->code, .text = (PCRE2_SPTR)text, .length = length};
    s->context = pcre2_match_context_create(p->general);
    s->data = pcre2_match_data_create(1, p->general);
    if (!s->context || !s->data)
        return error_memory(error, length, "pre-tokenizing");
    size_t limit = length < UINT32_MAX / MATCH_LIMIT_BYTE - MATCH_LIMIT
                       ? MATCH_LIMIT + MATCH_LIMIT_BYTE * length
                       : UINT32_MAX;
    pcre2_set_match_limit(s->context, (uint32_t)limit);
    pcre2_set_heap_limit(s->context, HEAP_LIMIT_KIB);
    return CT_OK;
}

static void scan_end(scan *s)
{
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
}

/* The first match at or behind from; *found is false when there is none. */
static ct_status search(scan *s, size_t from, bool *found, ct_error *error)
{
    /* Text was checked once; checking it in every call would take quadratic time. */
    const uint32_t options = PCRE2_NO_UTF_CHECK;
    int rc = pcre2_match(s->code, s->text, s->length, from, options, s->data, s->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(s->code, s->text, s->length, from, options | PCRE2_NO_JIT, s->data,
                         s->context);
    *found = rc >= 0;
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH)
        return CT_OK;
    if (rc == PCRE2_ERROR_NOMEMORY)
        return error_memory(error, s->length, "pre-tokenizing");
    PCRE2_UCHAR message[128] = "";
    pcre2_get_error_message(rc, message, sizeof message);
    return error_set(error, CT_EUNSUPPORTED, "the pattern of the pre-tokenizer failed: %s",
                     (const char *)message);
}

ct_status pretokenizer_split(const pretokenizer *p, const char *text, size_t length,
                             ct_status (*visit)(void *user, const char *piece, size_t length,
                                                ct_error *error),
                             void *user, ct_error *error)
{
    scan s;
    ct_status status = scan_start(&s, p, text, length, error);
    size_t done = 0; /* everything before went to visit */
    for (size_t from = 0; status == CT_OK && from < length;) {
        bool found;
        status = search(&s, from, &found, error);
        if (status != CT_OK || !found)
            break;
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(s.data);
        size_t start = range[0], end = range[1];
        if (start > done)
            status = visit(user, text + done, start - done, error);
        if (status == CT_OK && end > start)
            status = visit(user, text + start, end - start, error);
        done = end;
        /* An empty match cuts, but the next search begins one character further on. */
        from = end;
        if (end == start && end < length)
            utf8_next(text, length, &from);
    }
    if (status == CT_OK && done < length)
        status = visit(user, text + done, length - done, error);
    scan_end(&s);
    return status;
}
