/* The JSON layer: parsing, values, and configuration files. */
#include "test_support.h"

#include "core/mem.h"
#include "io/json_scan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ct_status parse(json_value **out, const char *text, ct_error *error)
{
    /* A copy of the exact size, so that the address sanitizer sees any byte read behind it. */
    size_t length = strlen(text);
    char *exact = malloc(length ? length : 1);
    assert_non_null(exact);
    memcpy(exact, text, length);
    ct_status status = json_parse(out, exact, length, "x.json", error);
    free(exact);
    assert_true((*out != NULL) == (status == CT_OK));
    return status;
}

static json_value *must_parse(const char *text)
{
    json_value *root;
    ct_error error = {0};
    test_ok(parse(&root, text, &error), &error);
    return root;
}

static void must_fail(const char *text, const char *part)
{
    json_value *root;
    ct_error error = {0};
    test_error(parse(&root, text, &error), CT_EFORMAT, &error, part);
    assert_non_null(strstr(error.message, "x.json"));
}

static void test_parse_errors(void **state)
{
    (void)state;
    must_fail("", "empty");
    must_fail("   ", "line 1");
    must_fail("{", "line 1, column 1");
    must_fail("{\"a\":\n  1,\n  x}", "line 3, column 3");
    must_fail("{\"a\": 1, \"a\": 2}", "duplicate object key");
    must_fail("[1,]", "line 1");
    must_fail("{} {}", "end of file expected");
    must_fail("[9223372036854775808]", "too big integer");
    must_fail("[-9223372036854775809]", "too big negative integer");
    must_fail("[123456789012345678901234567890]", "too big integer");
    must_fail("[1e999]", "real number overflow");
    must_fail("[NaN]", "invalid token");
    must_fail("[Infinity]", "invalid token");
    must_fail("\"text\"", "expected");
    must_fail("[\"\x80\"]", "decode byte 0x80");
    must_fail("[\"\xed\xa0\x80\"]", "decode byte 0xed");
    must_fail("[\"\\ud800\"]", "Unicode");
    must_fail("[\"a\nb\"]", "line 1");
    must_fail("{\"a\\u0000b\": 1}", "NUL");
}

static void test_deep(void **state)
{
    (void)state;
    enum { DEPTH = 100000 };
    char *text = malloc(DEPTH);
    assert_non_null(text);
    memset(text, '[', DEPTH);
    json_value *root;
    ct_error error = {0};
    test_error(json_parse(&root, text, DEPTH, "x.json", &error), CT_EFORMAT, &error, "depth");
    assert_null(root);
    free(text);
}

static void test_truncated(void **state)
{
    (void)state;
    const char *text = "{\"a\":[1,-2.5e3,true,false,null,\"x\\u00e9\\n\",{\"b\":{}}],"
                       "\"c\":\"\xc3\xa9\"}";
    for (size_t length = 0; length < strlen(text); length++) {
        char *exact = malloc(length ? length : 1);
        assert_non_null(exact);
        memcpy(exact, text, length);
        json_value *root;
        ct_error error = {0};
        test_error(json_parse(&root, exact, length, "x.json", &error), CT_EFORMAT, &error,
                   "x.json");
        assert_null(root);
        free(exact);
    }
    json_free(must_parse(text));
    json_free(NULL);
}

static void test_values(void **state)
{
    (void)state;
    json_value *root = must_parse(
        "{\"null\":null,\"bool\":true,\"int\":-7,\"max\":9223372036854775807,\"real\":2.5,"
        "\"text\":\"a\\u0000b\",\"list\":[1,2,3],\"map\":{\"k\":false}}");
    static const struct {
        const char *key;
        json_kind kind;
        const char *name;
    } kinds[] = {
        {"null", JSON_KIND_NULL, "null"},         {"bool", JSON_KIND_BOOL, "a boolean"},
        {"int", JSON_KIND_INTEGER, "an integer"}, {"real", JSON_KIND_REAL, "a real number"},
        {"text", JSON_KIND_STRING, "a string"},   {"list", JSON_KIND_ARRAY, "an array"},
        {"map", JSON_KIND_OBJECT, "an object"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        json_kind kind = json_get_kind(json_get(root, kinds[i].key));
        assert_int_equal(kind, kinds[i].kind);
        assert_string_equal(json_kind_name(kind), kinds[i].name);
    }
    int64_t integer = 0;
    double number = 0;
    bool flag = false;
    size_t length = 0;
    assert_true(json_get_integer(json_get(root, "int"), &integer) && integer == -7);
    assert_true(json_get_integer(json_get(root, "max"), &integer) && integer == INT64_MAX);
    assert_true(json_get_number(json_get(root, "int"), &number) && number == -7);
    assert_true(json_get_number(json_get(root, "real"), &number) && number == 2.5);
    assert_true(json_get_boolean(json_get(root, "bool"), &flag) && flag);
    assert_true(json_get_boolean(json_get(json_get(root, "map"), "k"), &flag) && !flag);
    const char *text = json_get_string(json_get(root, "text"), &length);
    assert_int_equal(length, 3);
    assert_memory_equal(text, "a\0b", 4);
    assert_int_equal(json_size(json_get(root, "list")), 3);
    assert_int_equal(json_size(json_get(root, "map")), 1);
    assert_true(json_get_integer(json_at(json_get(root, "list"), 2), &integer) && integer == 3);

    /* Wrong kinds and absent values leave the output alone. */
    integer = 5;
    assert_false(json_get_integer(json_get(root, "real"), &integer));
    assert_false(json_get_integer(json_get(root, "bool"), &integer));
    assert_false(json_get_integer(NULL, &integer));
    assert_int_equal(integer, 5);
    assert_false(json_get_number(json_get(root, "text"), &number));
    assert_false(json_get_boolean(json_get(root, "int"), &flag));
    assert_null(json_get_string(json_get(root, "int"), &length));
    assert_null(json_get_string(NULL, NULL));
    assert_null(json_get(json_get(root, "list"), "k"));
    assert_null(json_get(NULL, "k"));
    assert_null(json_get(root, "absent"));
    assert_null(json_at(json_get(root, "list"), 3));
    assert_null(json_at(root, 0));
    assert_null(json_at(NULL, 0));
    assert_int_equal(json_size(json_get(root, "text")), 0);
    assert_int_equal(json_size(NULL), 0);
    json_free(root);
}

static ct_status count_until(void *user, const char *key, const json_value *value, ct_error *error)
{
    int *left = user;
    assert_int_equal(strlen(key), 1);
    assert_int_equal(json_get_kind(value), JSON_KIND_INTEGER);
    return --*left ? CT_OK : error_set(error, CT_ECANCELLED, "enough");
}

static void test_each(void **state)
{
    (void)state;
    json_value *root = must_parse("{\"a\":1,\"b\":2,\"c\":3}");
    ct_error error = {0};
    int left = 10;
    test_ok(json_each(root, count_until, &left, &error), &error);
    assert_int_equal(left, 7);
    left = 2;
    test_error(json_each(root, count_until, &left, &error), CT_ECANCELLED, &error, "enough");
    assert_int_equal(left, 0);
    json_free(root);
    root = must_parse("[1]");
    left = 1;
    test_ok(json_each(root, count_until, &left, &error), &error);
    test_ok(json_each(NULL, count_until, &left, &error), &error);
    assert_int_equal(left, 1);
    json_free(root);
}

/* ---- Files ----------------------------------------------------------------------------------- */

static void test_read(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "a.json");
    ct_error error = {0};
    json_value *root;
    test_error(json_read(&root, &mem_default, path, 100, &error), CT_ENOTFOUND, &error, "a.json");
    assert_null(root);
    test_write_file(path, "[1, 2]", 6);
    test_error(json_read(&root, &mem_default, path, 5, &error), CT_EFORMAT, &error, "a.json");
    test_ok(json_read(&root, &mem_default, path, 6, &error), &error);
    assert_int_equal(json_size(root), 2);
    json_free(root);
    test_folder_remove(&folder);
}

static void open_config(config *c, const test_folder *folder, const char *text)
{
    const char *path = test_path(folder, "config.json");
    test_write_file(path, text, strlen(text));
    ct_error error = {0};
    test_ok(config_open(c, &mem_default, path, &error), &error);
}

static void test_config_open(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "config.json");
    config c;
    ct_error error = {0};
    test_error(config_open(&c, &mem_default, path, &error), CT_ENOTFOUND, &error, "config.json");
    config_close(&c);
    test_write_file(path, "[]", 2);
    test_error(config_open(&c, &mem_default, path, &error), CT_EFORMAT, &error, "an array");
    test_write_file(path, "{", 1);
    test_error(config_open(&c, &mem_default, path, &error), CT_EFORMAT, &error, "not valid JSON");
    open_config(&c, &folder, "{\"a\":1,\"b\":null}");
    assert_true(config_has(&c, "a"));
    assert_false(config_has(&c, "b"));
    assert_false(config_has(&c, "c"));
    assert_string_equal(c.path, path);
    config_close(&c);
    config_close(&c);
    test_folder_remove(&folder);
}

static void test_long_path(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    test_write_file(test_path(&folder, "config.json"), "{}", 2);
    /* The same file through many "/." that change nothing. */
    char path[3000];
    size_t at = strlen(folder.path);
    memcpy(path, folder.path, at);
    for (; at < 2900; at += 2)
        memcpy(path + at, "/.", 2);
    snprintf(path + at, sizeof path - at, "/config.json");
    config c;
    ct_error error = {0};
    test_ok(config_open(&c, &mem_default, path, &error), &error);
    assert_int_equal(strlen(c.path), sizeof c.path - 1);
    assert_memory_equal(c.path, "...", 3);
    assert_string_equal(c.path + strlen(c.path) - 13, "./config.json");
    config_close(&c);
    test_folder_remove(&folder);
}

static void test_config_numbers(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    config c;
    open_config(&c, &folder,
                "{\"i\":5,\"r\":0.5,\"n\":null,\"s\":\"x\",\"b\":true,\"huge\":1e300}");
    ct_error error = {0};
    int64_t i = 0;
    test_ok(config_integer(&c, "i", 0, 5, true, 9, &i, &error), &error);
    assert_int_equal(i, 5);
    test_ok(config_integer(&c, "n", 0, 5, false, 9, &i, &error), &error);
    assert_int_equal(i, 9);
    test_ok(config_integer(&c, "absent", 0, 5, false, -1, &i, &error), &error);
    assert_int_equal(i, -1);
    test_error(config_integer(&c, "absent", 0, 5, true, 0, &i, &error), CT_EFORMAT, &error,
               "\"absent\" is missing");
    test_error(config_integer(&c, "n", 0, 5, true, 0, &i, &error), CT_EFORMAT, &error,
               "\"n\" is missing");
    test_error(config_integer(&c, "i", 6, 9, true, 0, &i, &error), CT_EFORMAT, &error,
               "\"i\" is 5, but must be in 6..9");
    test_error(config_integer(&c, "i", 0, 4, false, 0, &i, &error), CT_EFORMAT, &error, "0..4");
    test_error(config_integer(&c, "r", 0, 4, false, 0, &i, &error), CT_EFORMAT, &error,
               "\"r\" must be an integer, but is a real number");
    test_error(config_integer(&c, "b", 0, 4, false, 0, &i, &error), CT_EFORMAT, &error,
               "a boolean");
    assert_int_equal(i, -1);

    double d = 0;
    test_ok(config_number(&c, "i", 0, 10, true, 0, &d, &error), &error);
    assert_true(d == 5);
    test_ok(config_number(&c, "r", 0, 10, true, 0, &d, &error), &error);
    assert_true(d == 0.5);
    test_ok(config_number(&c, "n", 0, 10, false, 7.25, &d, &error), &error);
    assert_true(d == 7.25);
    test_error(config_number(&c, "huge", 0, 10, true, 0, &d, &error), CT_EFORMAT, &error,
               "\"huge\" is 1e+300, but must be in 0..10");
    test_error(config_number(&c, "s", 0, 10, true, 0, &d, &error), CT_EFORMAT, &error, "a string");
    test_error(config_number(&c, "n", 0, 10, true, 0, &d, &error), CT_EFORMAT, &error, "missing");
    assert_true(d == 7.25);
    config_close(&c);
    test_folder_remove(&folder);
}

static void test_config_others(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    config c;
    open_config(&c, &folder,
                "{\"s\":\"text\",\"z\":\"a\\u0000b\",\"n\":null,\"t\":true,\"i\":1,"
                "\"list\":[1,2,3],\"mixed\":[1,\"2\"],\"empty\":[],\"nested\":[[1]]}");
    ct_error error = {0};
    const char *s = NULL;
    test_ok(config_string(&c, "s", true, &s, &error), &error);
    assert_string_equal(s, "text");
    test_ok(config_string(&c, "n", false, &s, &error), &error);
    assert_null(s);
    test_error(config_string(&c, "n", true, &s, &error), CT_EFORMAT, &error, "missing");
    test_error(config_string(&c, "i", false, &s, &error), CT_EFORMAT, &error, "must be a string");
    test_error(config_string(&c, "z", false, &s, &error), CT_EFORMAT, &error, "zero byte");

    bool flag = false;
    test_ok(config_boolean(&c, "t", false, &flag, &error), &error);
    assert_true(flag);
    test_ok(config_boolean(&c, "n", false, &flag, &error), &error);
    assert_false(flag);
    test_error(config_boolean(&c, "i", false, &flag, &error), CT_EFORMAT, &error, "a boolean");

    int64_t list[3];
    int count = -1;
    test_ok(config_integers(&c, "list", 1, 3, 3, list, &count, &error), &error);
    assert_int_equal(count, 3);
    assert_int_equal(list[2], 3);
    test_error(config_integers(&c, "list", 1, 3, 2, list, &count, &error), CT_EFORMAT, &error,
               "has 3 elements");
    assert_int_equal(count, 0);
    test_error(config_integers(&c, "list", 1, 2, 3, list, &count, &error), CT_EFORMAT, &error,
               "is 3, but must be in 1..2");
    test_error(config_integers(&c, "mixed", 0, 9, 3, list, &count, &error), CT_EFORMAT, &error,
               "a string");
    test_error(config_integers(&c, "nested", 0, 9, 3, list, &count, &error), CT_EFORMAT, &error,
               "an array");
    test_error(config_integers(&c, "empty", 0, 9, 3, list, &count, &error), CT_EFORMAT, &error,
               "has 0 elements");
    test_error(config_integers(&c, "i", 0, 9, 3, list, &count, &error), CT_EFORMAT, &error,
               "an array of integers");
    test_error(config_integers(&c, "n", 0, 9, 3, list, &count, &error), CT_EFORMAT, &error,
               "missing");
    config_close(&c);
    test_folder_remove(&folder);
}

static ct_status open_and_close(const ct_allocator *a, void *user, ct_error *error)
{
    config c;
    ct_status status = config_open(&c, a, user, error);
    config_close(&c);
    return status;
}

static void test_memory(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    char path[1024];
    snprintf(path, sizeof path, "%s", test_path(&folder, "config.json"));
    test_write_file(path, "{\"a\":[1,2]}", 11);
    test_each_allocation(open_and_close, path);
    test_folder_remove(&folder);
}

/* ---- Scanning -------------------------------------------------------------------------------- */

static json_scan scan_of(char *buffer, size_t size, const char *text)
{
    snprintf(buffer, size, "%s", text);
    return (json_scan){.at = buffer, .end = buffer + strlen(buffer)};
}

static void test_scan(void **state)
{
    (void)state;
    char buffer[512];
    json_scan s = scan_of(buffer, sizeof buffer,
                          " { \"a\" : 1, \"b\\u00e9\\n\":-20 ,\"\":[ [] , {} , \"x\", "
                          "9223372036854775807 , [\"\\ud83d\\ude00\"]]} ");
    const char *text;
    size_t length;
    int64_t value;
    assert_int_equal(json_scan_count(&s), 3);
    assert_int_equal(json_scan_kind(&s), JSON_KIND_OBJECT);
    assert_true(json_scan_open(&s, '{'));
    assert_true(json_scan_key(&s, &text, &length) && !strcmp(text, "a") && length == 1);
    assert_true(json_scan_integer(&s, &value) && value == 1);
    assert_true(json_scan_more(&s, '}'));
    assert_true(json_scan_key(&s, &text, &length) && !strcmp(text, "b\xc3\xa9\n"));
    assert_true(json_scan_integer(&s, &value) && value == -20);
    assert_true(json_scan_more(&s, '}'));
    assert_true(json_scan_key(&s, &text, &length) && length == 0);
    assert_int_equal(json_scan_count(&s), 5);
    assert_true(json_scan_open(&s, '['));
    assert_false(json_scan_open(&s, '['));
    assert_true(json_scan_more(&s, ']'));
    assert_false(json_scan_open(&s, '{'));
    assert_true(json_scan_more(&s, ']'));
    assert_true(json_scan_string(&s, &text, &length) && !strcmp(text, "x"));
    assert_true(json_scan_more(&s, ']'));
    assert_true(json_scan_integer(&s, &value) && value == INT64_MAX);
    assert_true(json_scan_more(&s, ']'));
    assert_true(json_scan_open(&s, '['));
    assert_true(json_scan_string(&s, &text, &length) && !strcmp(text, "\xf0\x9f\x98\x80"));
    assert_false(json_scan_more(&s, ']'));
    assert_false(json_scan_more(&s, ']'));
    assert_false(json_scan_at_end(&s));
    assert_false(json_scan_more(&s, '}'));
    assert_true(json_scan_at_end(&s));

    s = scan_of(buffer, sizeof buffer, "{\"x\":{\"m\":1},\"m\":{\"v\":[1,\"]\\\"\"]},\"v\":3}");
    json_scan x, m;
    assert_true(json_scan_open(&s, '{') && json_scan_raw_key(&s, &text, &length) && *text == 'x');
    assert_true(json_scan_cut(&s, &x) && x.at[0] == '{' && x.end[-1] == '}' && x.end - x.at == 7);
    assert_true(json_scan_more(&s, '}') && json_scan_raw_key(&s, &text, &length) && length == 1);
    assert_true(json_scan_cut(&s, &m) && json_scan_open(&m, '{'));
    assert_true(json_scan_raw_key(&m, &text, &length) && json_scan_count(&m) == 2);
    assert_true(json_scan_cut(&m, &x) && x.end - x.at == 9);
    assert_false(json_scan_more(&m, '}'));
    assert_true(json_scan_at_end(&m));
}

/* Whatever the scanner takes, the parser takes, and both read the same. */
static void test_scan_agrees(void **state)
{
    (void)state;
    static const char *const pieces[] = {
        "a",
        "\\n",
        "\\\"",
        "\\u00e9",
        "\\ud83d\\ude00",
        "\\ud83d",
        "\\ude00",
        "\xc3\xa9",
        "\xc3",
        "\xed\xa0\x80",
        "\n",
        "\\x",
        "\\u12",
        "\\/",
        "\x7f",
        "\xf0\x9f\x98\x80",
        "\\u0000",
        "\\",
        "\\uABCD",
        "0",
        "\"",
        " ",
        "\xff",
        "\\b\\f\\r\\t",
    };
    const unsigned count = sizeof pieces / sizeof *pieces;
    unsigned random = 1;
    int good = 0;
    for (int i = 0; i < 20000; i++) {
        char text[256] = "\"", copy[256];
        const int parts = (int)(random >> 8) % 4;
        for (int k = 0; k < parts; k++) {
            random = random * 1664525u + 1013904223u;
            strcat(text, pieces[(random >> 10) % count]);
        }
        random = random * 1664525u + 1013904223u;
        strcat(text, "\"");
        char list[300];
        snprintf(list, sizeof list, "[%s]", text);
        json_value *root = NULL;
        const bool parsed = json_parse(&root, list, strlen(list), "x", NULL) == CT_OK;
        json_scan s = scan_of(copy, sizeof copy, text);
        const char *scanned;
        size_t length = 0, expected_length = 0;
        const bool taken = json_scan_string(&s, &scanned, &length) && json_scan_at_end(&s);
        if (parsed != taken)
            fail_msg("%s: parser %d, scanner %d", text, parsed, taken);
        if (parsed) {
            const char *expected = json_get_string(json_at(root, 0), &expected_length);
            assert_int_equal(length, expected_length);
            assert_memory_equal(scanned, expected, length + 1);
            good++;
        }
        json_free(root);
    }
    assert_true(good > 2000 && good < 18000);

    static const char *const numbers[] = {"0",
                                          "-0",
                                          "7",
                                          "-12",
                                          "01",
                                          "-",
                                          "+1",
                                          "1.5",
                                          "1e3",
                                          "",
                                          "--1",
                                          "9223372036854775807",
                                          "9223372036854775808",
                                          "1 2",
                                          "- 1",
                                          "1a",
                                          "00",
                                          "-01"};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char list[64], copy[64];
        snprintf(list, sizeof list, "[%s]", numbers[i]);
        json_value *root = NULL;
        int64_t parsed = 1, scanned = 2;
        const bool integer = json_parse(&root, list, strlen(list), "x", NULL) == CT_OK &&
                             json_get_integer(json_at(root, 0), &parsed);
        json_scan s = scan_of(copy, sizeof copy, numbers[i]);
        const bool taken = json_scan_integer(&s, &scanned) && json_scan_at_end(&s);
        if (integer != taken || (taken && parsed != scanned))
            fail_msg("%s: parser %d, scanner %d", numbers[i], integer, taken);
        json_free(root);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse_errors),   cmocka_unit_test(test_deep),
        cmocka_unit_test(test_truncated),      cmocka_unit_test(test_values),
        cmocka_unit_test(test_each),           cmocka_unit_test(test_read),
        cmocka_unit_test(test_config_open),    cmocka_unit_test(test_long_path),
        cmocka_unit_test(test_config_numbers), cmocka_unit_test(test_config_others),
        cmocka_unit_test(test_memory),         cmocka_unit_test(test_scan),
        cmocka_unit_test(test_scan_agrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
