/* How the tokenizer cuts and normalises Unicode: the pre-tokenizer and NFC against classes of the
 * reference (tests/fixtures/tokenizer/classes.json). */
#include "test_support.h"

#include "core/mem.h"
#include "core/strbuf.h"
#include "core/utf8.h"
#include "io/json.h"
#include "text/nfc.h"
#include "text/pretokenize.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Pieces as "a|b|c|". */
static ct_status join_piece(void *user, const char *piece, size_t length, ct_error *error)
{
    (void)error;
    strbuf_add(user, piece, length);
    strbuf_puts(user, "|");
    return CT_OK;
}

static char *split(const char *pattern, bool jit, const char *text, size_t length)
{
    pretokenizer *p;
    strbuf s;
    ct_error error = {0};
    strbuf_init(&s, &mem_default, 1 << 24);
    test_ok(pretokenizer_create(&p, &mem_default, pattern, strlen(pattern), jit, "x", &error),
            &error);
    test_ok(pretokenizer_split(p, text, length, join_piece, &s, &error), &error);
    pretokenizer_free(p);
    char *joined = strbuf_take(&s);
    assert_non_null(joined);
    return joined;
}

static void must_split(const char *pattern, const char *text, const char *expected)
{
    for (int jit = 0; jit < 2; jit++) {
        char *joined = split(pattern, jit, text, strlen(text));
        assert_string_equal(joined, expected);
        mem_free(&mem_default, joined);
    }
}

static void test_split(void **state)
{
    (void)state;
    must_split(pretokenizer_qwen, "", "");
    must_split(pretokenizer_qwen, "Hello world", "Hello| world|");
    must_split(pretokenizer_qwen, "  foo", " | foo|");
    must_split(pretokenizer_qwen, "I'M we'LL x's", "I|'M| we|'LL| x|'s|");
    must_split(pretokenizer_qwen, "it'\xc5\xbf", "it|'\xc5\xbf|");
    must_split(pretokenizer_qwen, "a 12.5", "a| |1|2|.|5|");
    must_split(pretokenizer_qwen, "a \n\n b \t", "a| \n\n| b| \t|");
    must_split(pretokenizer_qwen, "x!!\r\ny", "x|!!\r\n|y|");
    must_split(pretokenizer_qwen, "e\xcc\x81", "e|\xcc\x81|");
    /* Matches that are empty cut, and take nothing. */
    must_split("x*", "axxb\xc3\xa9", "a|xx|b|\xc3\xa9|");
    must_split("(?=b)", "abcb", "a|bc|b|");
    must_split("(?<=a)b", "bab", "ba|b|");
    must_split("\\S\\s|[^\\S\\n]+", "ab \t\n", "a|b |\t|\n|");
    must_split("[\\s,]{2,}|\\P{L}", "a1b , c", "a|1|b| , |c|");
    must_split("z", "abc", "abc|");
}

/* With and without machine code, long pieces are found, within the limits. */
static void test_split_long(void **state)
{
    (void)state;
    static const char *const units[] = {
        "a", " ", "\n", " \n", "\r\n\t", "!", "7", "'s", " a", "\xcc\x81", "\xf0\x9f\x98\x80", "''",
    };
    enum { BYTES_OF_TEXT = 400000 };
    char *text = malloc(BYTES_OF_TEXT + 8);
    assert_non_null(text);
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        size_t length = 0;
        for (; length < BYTES_OF_TEXT; length += strlen(units[i]))
            memcpy(text + length, units[i], strlen(units[i]));
        text[length++] = 'x';
        char *compiled = split(pretokenizer_qwen, true, text, length);
        char *interpreted = split(pretokenizer_qwen, false, text, length);
        assert_string_equal(compiled, interpreted);
        mem_free(&mem_default, compiled);
        mem_free(&mem_default, interpreted);
    }
    free(text);
}

static void must_refuse(const char *pattern, ct_status status, const char *part)
{
    pretokenizer *p;
    ct_error error = {0};
    test_error(
        pretokenizer_create(&p, &mem_default, pattern, strlen(pattern), true, "x.json", &error),
        status, &error, part);
    assert_null(p);
    assert_non_null(strstr(error.message, "x.json"));
}

static void test_patterns_refused(void **state)
{
    (void)state;
    static const char *const unsupported[] = {
        "^a",   "a$",          "\\w",     "\\b",    "\\1",     "(a)\\1", "\\x41",   "\\Qa\\E",
        "a\\",  "[[:alpha:]]", "[a[b]]",  "[a&&b]", "[]a]",    "[^]a]",  "(?m)a",   "(?i)a",
        "(?R)", "(?1)",        "(*FAIL)", "(?#x)",  "(?<n>a)", "\\pL",   "\\p{^L}", "\\p{L",
        "\\p",  "a{,3}",       "a{3",     "a{x}",   "a{2}?",   "a{2}+",  "[a-\\s]", "[\\s-a]",
        "\\R",  "\\X",         "\\C",     "\\h",    "\xff",
    };
    for (size_t i = 0; i < sizeof unsupported / sizeof unsupported[0]; i++)
        must_refuse(unsupported[i], CT_EUNSUPPORTED, "pattern");
    must_refuse("(a", CT_EFORMAT, "not valid");
    must_refuse("[a", CT_EFORMAT, "not valid");
    must_refuse("a)", CT_EFORMAT, "not valid");
    must_refuse("*", CT_EFORMAT, "not valid");
    must_refuse("\\p{Nonsense}", CT_EFORMAT, "not valid");
    must_refuse("[z-a]", CT_EFORMAT, "not valid");
    must_refuse("(?:(?:a{60000}){60000}){60000}", CT_EFORMAT, "not valid");
    char *pattern = calloc(1, 10000);
    assert_non_null(pattern);
    memset(pattern, 'a', 9999);
    must_refuse(pattern, CT_EUNSUPPORTED, "longer than");
    free(pattern);
}

static void test_pattern_limit(void **state)
{
    (void)state;
    char text[61];
    memset(text, 'a', 60);
    text[60] = 0;
    for (int jit = 0; jit < 2; jit++) {
        pretokenizer *p;
        strbuf s;
        ct_error error = {0};
        const char *pattern = "(?:(?:a|a)*)*[bc]";
        strbuf_init(&s, &mem_default, 1000);
        test_ok(pretokenizer_create(&p, &mem_default, pattern, strlen(pattern), jit, "x", &error),
                &error);
        test_error(pretokenizer_split(p, text, 60, join_piece, &s, &error), CT_EUNSUPPORTED, &error,
                   "pattern");
        pretokenizer_free(p);
        strbuf_free(&s);
    }
}

/* Sets a bit for each code point of a list of ranges. */
static void mark_ranges(const json_value *ranges, unsigned char *marks, unsigned char bit)
{
    assert_true(json_size(ranges) > 0);
    for (size_t i = 0; i < json_size(ranges); i++) {
        int64_t first = 0, last = -1;
        assert_true(json_get_integer(json_at(json_at(ranges, i), 0), &first));
        assert_true(json_get_integer(json_at(json_at(ranges, i), 1), &last));
        assert_true(first >= 0 && last < 0x110000);
        for (; first <= last; first++)
            marks[first] |= bit;
    }
}

/* Whether a one-character pattern finds the character at all code points that truth names. */
static size_t count_class_errors(const char *pattern, bool jit, const unsigned char *marks,
                                 unsigned char bit)
{
    char around[64];
    snprintf(around, sizeof around, "(?<=\n)%s(?=\n)", pattern);
    strbuf text;
    strbuf_init(&text, &mem_default, 1 << 24);
    strbuf_puts(&text, "\n");
    for (uint32_t code = 1; code < 0x110000; code++) {
        char bytes[4];
        if ((code >= 0xd800 && code < 0xe000) || code == '\n' || code == '|')
            continue;
        strbuf_add(&text, bytes, utf8_put(code, bytes));
        strbuf_puts(&text, "\n");
    }
    char *pieces = split(around, jit, text.data, text.length);
    strbuf_free(&text);
    /* A match cuts its character off from the line feeds beside it. */
    size_t wrong = 0, length = strlen(pieces), previous = 0;
    for (size_t at = 0; at < length;) {
        size_t start = at;
        uint32_t code = utf8_next(pieces, length, &at);
        if (code == '\n' || code == '|')
            previous = code;
        else {
            bool found = previous == '|';
            wrong += found != ((marks[code] & bit) != 0);
            previous = start;
        }
    }
    mem_free(&mem_default, pieces);
    return wrong;
}

static size_t count_normal_errors(const unsigned char *marks, unsigned char changed,
                                  unsigned char reordered)
{
    size_t wrong = 0;
    for (uint32_t code = 1; code < 0x110000; code++) {
        if (code >= 0xd800 && code < 0xe000)
            continue;
        char text[16];
        size_t length = utf8_put(code, text);
        strbuf s;
        ct_error error = {0};
        strbuf_init(&s, &mem_default, 1000);
        test_ok(nfc_normalize(&s, &mem_default, text, length, &error), &error);
        bool same = s.length == length && !memcmp(s.data, text, length);
        wrong += same == ((marks[code] & changed) != 0);
        strbuf_free(&s);
        if ((marks[code] & changed) || code == 0x334 || code == 0x345)
            continue;
        /* A mark goes before U+0345 (class 240), or behind U+0334 (class 1). */
        char before[16] = "\xcd\x85", behind[16];
        memcpy(before + 2, text, length);
        memcpy(behind, text, length);
        memcpy(behind + length, "\xcc\xb4", 2);
        strbuf_init(&s, &mem_default, 1000);
        test_ok(nfc_normalize(&s, &mem_default, before, length + 2, &error), &error);
        bool moved = s.length == length + 2 && !memcmp(s.data, text, length);
        strbuf_free(&s);
        strbuf_init(&s, &mem_default, 1000);
        test_ok(nfc_normalize(&s, &mem_default, behind, length + 2, &error), &error);
        moved = moved || (s.length == length + 2 && !memcmp(s.data, "\xcc\xb4", 2));
        strbuf_free(&s);
        wrong += moved != ((marks[code] & reordered) != 0);
    }
    return wrong;
}

static void test_classes(void **state)
{
    (void)state;
    enum { LETTER = 1, NUMBER = 2, SPACE = 4, CHANGED = 8, REORDERED = 16 };
    size_t size;
    char *text = (char *)test_read_file(test_fixture("tokenizer/classes.json"), &size);
    unsigned char *marks = calloc(0x110000, 1);
    json_value *root;
    ct_error error = {0};
    assert_non_null(marks);
    test_ok(json_parse(&root, text, size, "classes.json", &error), &error);
    mark_ranges(json_get(root, "letter"), marks, LETTER);
    mark_ranges(json_get(root, "number"), marks, NUMBER);
    mark_ranges(json_get(root, "space"), marks, SPACE);
    mark_ranges(json_get(root, "nfc"), marks, CHANGED);
    mark_ranges(json_get(root, "reordered"), marks, REORDERED);
    for (int jit = 0; jit < 2; jit++) {
        assert_int_equal(count_class_errors("\\p{L}", jit, marks, LETTER), 0);
        assert_int_equal(count_class_errors("[\\p{L}]", jit, marks, LETTER), 0);
        assert_int_equal(count_class_errors("\\p{N}", jit, marks, NUMBER), 0);
        assert_int_equal(count_class_errors("\\s", jit, marks, SPACE), 0);
        assert_int_equal(count_class_errors("[\\s]", jit, marks, SPACE), 0);
        assert_int_equal(count_class_errors("[^\\S]", jit, marks, SPACE), 0);
    }
    assert_int_equal(count_normal_errors(marks, CHANGED, REORDERED), 0);
    json_free(root);
    free(marks);
    free(text);
}

static void must_normalize(const char *text, const char *expected)
{
    strbuf s;
    ct_error error = {0};
    strbuf_init(&s, &mem_default, 1 << 24);
    test_ok(nfc_normalize(&s, &mem_default, text, strlen(text), &error), &error);
    assert_string_equal(s.data, expected);
    strbuf_free(&s);
}

static void test_nfc(void **state)
{
    (void)state;
    must_normalize("", "");
    must_normalize("abc \xc3\xa9", "abc \xc3\xa9");
    must_normalize("e\xcc\x81", "\xc3\xa9");
    must_normalize("a\xcc\x81\xcc\xa3", "\xe1\xba\xa1\xcc\x81");
    must_normalize("\xe2\x84\xab\xe2\x84\xaa\xcd\xbe", "\xc3\x85K;");
    must_normalize("\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81");
    /* U+11A7 is no final consonant and stays. */
    must_normalize("\xea\xb0\x80\xe1\x86\xa7", "\xea\xb0\x80\xe1\x86\xa7");
    must_normalize("\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc");
    /* Long runs of marks: sorted by class, in their order within a class. */
    enum { MARKS = 50000 };
    char *text = malloc(4 * MARKS + 2), *expected = malloc(4 * MARKS + 3);
    assert_true(text && expected);
    text[0] = 'x';
    expected[0] = 'x';
    for (size_t i = 0; i < MARKS; i++) {
        memcpy(text + 1 + 4 * i, "\xcc\x85\xcc\xa3", 4); /* U+0305 above, U+0323 below */
        memcpy(expected + 3 + 2 * i, "\xcc\xa3", 2);
        memcpy(expected + 3 + 2 * (MARKS + i), "\xcc\x85", 2);
    }
    /* The first mark below joins with the x no more than with others. */
    memmove(expected + 1, expected + 3, 4 * (size_t)MARKS);
    text[4 * MARKS + 1] = expected[4 * MARKS + 1] = 0;
    must_normalize(text, expected);
    free(text);
    free(expected);
}

static void test_utf8(void **state)
{
    (void)state;
    assert_int_equal(utf8_valid_length("", 0), 0);
    assert_int_equal(utf8_valid_length("a\0b", 3), 3);
    assert_int_equal(utf8_valid_length("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9), 9);
    assert_int_equal(utf8_valid_length("ab\xff", 3), 2);
    assert_int_equal(utf8_valid_length("a\xe2\x82", 3), 1);
    assert_int_equal(utf8_valid_length("\xed\xa0\x80", 3), 0);
    assert_int_equal(utf8_valid_length("\xc0\x80", 2), 0);
    assert_int_equal(utf8_valid_length("\xf4\x90\x80\x80", 4), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_split_long),
        cmocka_unit_test(test_patterns_refused),
        cmocka_unit_test(test_pattern_limit),
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_nfc),
        cmocka_unit_test(test_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
