/* The JSON writer, the recipe in both its forms, and the fingerprint of a model. */
#include "test_support.h"

#include "core/mem.h"
#include "io/fingerprint.h"
#include "io/json.h"
#include "io/jsonwrite.h"
#include "io/safetensors.h"
#include "pipeline/recipe.h"

#include <locale.h>
#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- The JSON writer ---- */

static void writes_json(void **state)
{
    (void)state;
    strbuf s;
    strbuf_init(&s, &mem_default, 4096);
    json_writer w;
    json_write_init(&w, &s);
    json_write_object(&w);
    json_write_key(&w, "empty");
    json_write_object(&w);
    json_write_object_end(&w);
    json_write_key(&w, "list");
    json_write_array(&w);
    json_write_integer(&w, INT64_MIN);
    json_write_unsigned(&w, UINT64_MAX);
    json_write_array(&w);
    json_write_array_end(&w);
    json_write_boolean(&w, true);
    json_write_boolean(&w, false);
    json_write_null(&w);
    json_write_string(&w, NULL);
    json_write_array_end(&w);
    json_write_key(&w, "a\"b");
    json_write_string(&w, "\\ \"\b\f\n\r\t\x01\x7f\xc2\x9b \xc3\xa9 \xf0\x9f\x8d\x8e \xff/");
    json_write_object_end(&w);
    char *text = strbuf_take(&s);
    assert_string_equal(text, "{\"empty\":{},\"list\":[-9223372036854775808,"
                              "18446744073709551615,[],true,false,null,null],"
                              "\"a\\\"b\":\"\\\\ \\\"\\b\\f\\n\\r\\t\\u0001"
                              "\\u007f\\u009b \xc3\xa9 \xf0\x9f\x8d\x8e \xef\xbf\xbd/\"}");
    mem_free(&mem_default, text);
}

static void number(char *out, size_t size, double value)
{
    strbuf s;
    strbuf_init(&s, &mem_default, 4096);
    json_writer w;
    json_write_init(&w, &s);
    json_write_number(&w, value);
    char *text = strbuf_take(&s);
    assert_true(strlen(text) < size);
    memcpy(out, text, strlen(text) + 1);
    mem_free(&mem_default, text);
}

static void writes_numbers(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } cases[] = {
        {0, "0.0"}, {-0.0, "-0.0"}, {3, "3.0"}, {-4.5, "-4.5"}, {0.1, "0.1"}, {1e15, "1e+15"},
        {999999999999999, "999999999999999.0"}, {1e-7, "1e-07"}, {1.0 / 3, "0.3333333333333333"},
        {5e-324, "5e-324"}, {1.7976931348623157e308, "1.7976931348623157e+308"},
        {0.1 + 0.2, "0.30000000000000004"}, {NAN, "null"}, {INFINITY, "null"}, {-INFINITY, "null"},
    };
    char text[64];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        number(text, sizeof text, cases[i].value);
        assert_string_equal(text, cases[i].text);
    }
    uint64_t bits = 1;
    for (int i = 0; i < 20000; i++) {
        bits = bits * 6364136223846793005u + 1442695040888963407u;
        double value;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value))
            continue;
        number(text, sizeof text, value);
        double again = strtod(text, NULL);
        test_bytes_equal(&again, &value, sizeof value);
    }
}

static void ignores_the_locale(void **state)
{
    (void)state;
    /* Where none of these is installed there is nothing to test. */
    if (!setlocale(LC_NUMERIC, "de_DE.UTF-8") && !setlocale(LC_NUMERIC, "fr_FR.UTF-8") &&
        !setlocale(LC_NUMERIC, "ps_AF"))
        skip();
    char text[64];
    number(text, sizeof text, 0.25);
    setlocale(LC_NUMERIC, "C");
    assert_string_equal(text, "0.25");
}

/* ---- The recipe ---- */

static const recipe plain = {
    .prompt = "a red apple",
    .negative = NULL,
    .seed = 42,
    .width = 256,
    .height = 192,
    .steps = 8,
    .evaluations = 8,
    .guidance = 0,
    .cfg_scale = 1,
    .cfg_truncation = 1,
    .guidance_end = 1,
    .shift = 3,
    .scheduler = "FlowMatchEulerDiscreteScheduler",
    .precision = "fp32",
    .rng = "torch",
    .model_name = "emoji-256",
    .model_hash = "0123456789abcdef0123456789abcdef",
    .model_class = "ZImagePipeline",
    .version = "0.1.0",
    .cpu = "avx2",
};

static void check_text(const recipe *r, const char *expected)
{
    char *text = recipe_text(&mem_default, r);
    assert_non_null(text);
    assert_string_equal(text, expected);
    mem_free(&mem_default, text);
}

static void writes_text(void **state)
{
    (void)state;
    check_text(&plain, "a red apple\n"
                       "Steps: 8, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 42, "
                       "Size: 256x192, Model hash: 0123456789, Model: emoji-256, Shift: 3, "
                       "RNG: CPU, Precision: fp32, Version: calotype 0.1.0");
    recipe r = plain;
    r.prompt = "two\nlines, with: all";
    r.negative = "blurry\ndark";
    r.guidance = 4;
    r.cfg_scale = 5;
    r.cfg_normalization = true;
    r.shift = 2.5;
    r.seed = UINT64_MAX;
    r.model_name = "my, \"best\": model\\";
    r.scheduler = "OtherScheduler";
    r.rng = "file";
    check_text(&r, "two\nlines, with: all\nNegative prompt: blurry\ndark\n"
                   "Steps: 8, Sampler: OtherScheduler, CFG scale: 5, Seed: 18446744073709551615, "
                   "Size: 256x192, Model hash: 0123456789, "
                   "Model: \"my, \\\"best\\\": model\\\\\", Shift: 2.5, CFG normalization: True, "
                   "RNG: file, Precision: fp32, Version: calotype 0.1.0");
    r = plain;
    r.prompt = "";
    r.negative = "";
    r.model_name = "";
    check_text(&r, "Steps: 8, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 42, "
                   "Size: 256x192, Model hash: 0123456789, Shift: 3, RNG: CPU, Precision: fp32, "
                   "Version: calotype 0.1.0");
}

/* In the order given, without the endings of their names; what has no effect is left out. */
static void writes_loras(void **state)
{
    (void)state;
    const ct_lora_info loras[] = {
        {.name = "one.v2.safetensors", .hash = "00112233445566778899aabbccddeeff", .scale = 0.1},
        {.name = "none.safetensors", .hash = "ff112233445566778899aabbccddeeff", .scale = 0},
        {.name = ".two, \"x\"", .hash = "99112233445566778899aabbccddeeff", .scale = -2}};
    recipe r = plain;
    r.lora = loras;
    r.loras = 3;
    check_text(&r, "a red apple\n"
                   "Steps: 8, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 42, "
                   "Size: 256x192, Model hash: 0123456789, Model: emoji-256, "
                   "Lora hashes: \"one.v2: 0011223344, .two, \\\"x\\\": 9911223344\", "
                   "Lora scales: \"one.v2: 0.1, .two, \\\"x\\\": -2\", Shift: 3, "
                   "RNG: CPU, Precision: fp32, Version: calotype 0.1.0");
    char *text = recipe_json(&mem_default, &r);
    assert_non_null(strstr(text, "\"loras\":[{\"name\":\"one.v2.safetensors\",\"hash\":"
                                 "\"00112233445566778899aabbccddeeff\",\"scale\":0.1},{\"name\":"
                                 "\".two, \\\"x\\\"\","));
    assert_null(strstr(text, "none"));
    mem_free(&mem_default, text);
    r.lora = loras + 1;
    r.loras = 1; /* as if there were none */
    text = recipe_json(&mem_default, &r);
    assert_null(strstr(text, "loras"));
    mem_free(&mem_default, text);
}

/* Reads one field as stable-diffusion-webui does: its expression in POSIX form. */
static bool find_field(const char *line, const char *key, char *value, size_t size)
{
    regex_t re;
    assert_int_equal(regcomp(&re,
                             "^[[:space:]]*([[:alnum:]_][[:alnum:]_ /-]+):[[:space:]]*"
                             "(\"(\\\\.|[^\\\"])+\"|[^,]*)(,|$)", REG_EXTENDED), 0);
    bool found = false;
    regmatch_t m[5];
    for (; !found && *line && regexec(&re, line, 5, m, 0) == 0; line += m[0].rm_eo) {
        size_t n = (size_t)(m[1].rm_eo - m[1].rm_so);
        size_t length = (size_t)(m[2].rm_eo - m[2].rm_so);
        if (n != strlen(key) || memcmp(line + m[1].rm_so, key, n))
            continue;
        assert_true(length < size);
        memcpy(value, line + m[2].rm_so, length);
        value[length] = 0;
        found = true;
    }
    regfree(&re);
    return found;
}

static void text_can_be_read_back(void **state)
{
    (void)state;
    static const char *const names[] = {"plain", "a, b", "Seed: 1, Steps: 2", "\"quoted\"", "x\"",
                                        "line\nfeed", " padded ", "back\\slash", "back\\, slash",
                                        "\\\"", "\xc3\xa9, \xe4\xb8\xad", "a\rb"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        recipe r = plain;
        r.model_name = names[i];
        char *text = recipe_text(&mem_default, &r), value[256];
        const char *line = strrchr(text, '\n') + 1;
        assert_true(find_field(line, "Model", value, sizeof value));
        if (value[0] == '"') {
            json_value *root;
            char array[300];
            int n = snprintf(array, sizeof array, "[%s]", value);
            ct_error error;
            test_ok(json_parse(&root, array, (size_t)n, "value", &error), &error);
            assert_string_equal(json_get_string(json_at(root, 0), NULL), names[i]);
            json_free(root);
        } else {
            assert_string_equal(value, names[i]);
        }
        assert_true(find_field(line, "Version", value, sizeof value));
        assert_string_equal(value, "calotype 0.1.0");
        assert_true(find_field(line, "Seed", value, sizeof value));
        assert_string_equal(value, "42");
        mem_free(&mem_default, text);
    }
}

static void writes_recipe_json(void **state)
{
    (void)state;
    char *text = recipe_json(&mem_default, &plain);
    assert_string_equal(
        text, "{\"calotype\":\"0.1.0\",\"prompt\":\"a red apple\",\"negative_prompt\":null,"
              "\"seed\":42,\"width\":256,\"height\":192,\"steps\":8,\"evaluations\":8,"
              "\"guidance\":0.0,\"cfg_scale\":1.0,\"cfg_normalization\":false,"
              "\"cfg_truncation\":1.0,\"shift\":3.0,"
              "\"scheduler\":\"FlowMatchEulerDiscreteScheduler\",\"precision\":\"fp32\","
              "\"rng\":\"torch\",\"model\":\"emoji-256\","
              "\"model_hash\":\"0123456789abcdef0123456789abcdef\","
              "\"model_class\":\"ZImagePipeline\",\"cpu\":\"avx2\"}");
    mem_free(&mem_default, text);
    recipe r = plain;
    r.prompt = "a\n\"b\" \xff";
    r.seed = UINT64_MAX;
    text = recipe_json(&mem_default, &r);
    assert_null(strchr(text, '\n'));
    json_value *root;
    ct_error error;
    test_ok(json_parse(&root, text, strlen(text), "recipe", &error), &error);
    assert_string_equal(json_get_string(json_get(root, "prompt"), NULL), "a\n\"b\" \xef\xbf\xbd");
    assert_string_equal(json_get_string(json_get(root, "seed"), NULL), "18446744073709551615");
    json_free(root);
    mem_free(&mem_default, text);
}

static ct_status both_forms(const ct_allocator *a, void *user, ct_error *error)
{
    (void)user;
    char *json = recipe_json(a, &plain), *text = recipe_text(a, &plain);
    bool ok = json && text;
    mem_free(a, json);
    mem_free(a, text);
    return ok ? CT_OK : error_memory(error, 1, "the recipe");
}

static void survives_short_memory(void **state)
{
    (void)state;
    test_each_allocation(both_forms, NULL);
}

/* ---- The fingerprint ---- */

static void write_weights(const char *path, size_t size, size_t changed)
{
    unsigned char *data = calloc(size, 1);
    assert_non_null(data);
    for (size_t i = 0; i < size; i++)
        data[i] = (unsigned char)(i * 7 + i / 256);
    data[changed] ^= 1;
    safetensors_writer *w;
    ct_error error;
    test_ok(safetensors_writer_open(&w, &mem_default, path, &error), &error);
    test_ok(safetensors_writer_add(w, "t", DTYPE_U8, 1, (const int64_t[]){(int64_t)size}, data,
                                   &error), &error);
    test_ok(safetensors_writer_add(w, "none", DTYPE_U8, 1, (const int64_t[]){0}, NULL, &error),
            &error);
    test_ok(safetensors_writer_commit(w, &error), &error);
    free(data);
}

static void hash_weights(const char *path, char hex[33])
{
    weights *w;
    ct_error error;
    test_ok(weights_open_file(&w, &mem_default, path, &error), &error);
    fingerprint f;
    fingerprint_begin(&f);
    fingerprint_add_weights(&f, w);
    fingerprint_hex(&f, hex);
    weights_close(w);
}

static void hashes_as_xxh3(void **state)
{
    (void)state;
    char hex[33];
    fingerprint f;
    fingerprint_begin(&f);
    fingerprint_hex(&f, hex);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f"); /* xxhsum -H2 of nothing */
    fingerprint_add(&f, "calo", 4);
    fingerprint_add(&f, "", 0);
    fingerprint_add(&f, "type", 4);
    fingerprint_hex(&f, hex);
    char whole[33];
    fingerprint_begin(&f);
    fingerprint_add(&f, "calotype", 8);
    fingerprint_hex(&f, whole);
    assert_string_equal(hex, whole);
    assert_string_equal(hex, "2ef1c568f0163c10791467690cf0d016");
}

static void names_a_model_by_content(void **state)
{
    (void)state;
    test_folder one, two;
    test_folder_create(&one);
    test_folder_create(&two);
    char first[33], second[33];
    write_weights(test_path(&one, "a.safetensors"), 20000, 0);
    write_weights(test_path(&two, "b.safetensors"), 20000, 0);
    hash_weights(test_path(&one, "a.safetensors"), first);
    hash_weights(test_path(&two, "b.safetensors"), second);
    assert_string_equal(first, second);
    write_weights(test_path(&two, "b.safetensors"), 20000, 4095);
    hash_weights(test_path(&two, "b.safetensors"), second);
    assert_string_not_equal(first, second);
    write_weights(test_path(&two, "b.safetensors"), 20000, 20000 - 4096);
    hash_weights(test_path(&two, "b.safetensors"), second);
    assert_string_not_equal(first, second);

    fingerprint f;
    ct_error error;
    test_write_file(test_path(&one, "config.json"), "{}", 2);
    test_write_file(test_path(&two, "config.json"), "{}", 2);
    test_write_file(test_path(&two, "other.json"), "{}", 2);
    fingerprint_begin(&f);
    test_ok(fingerprint_add_file(&f, test_path(&one, "config.json"), &error), &error);
    fingerprint_hex(&f, first);
    fingerprint_begin(&f);
    test_ok(fingerprint_add_file(&f, test_path(&two, "config.json"), &error), &error);
    fingerprint_hex(&f, second);
    assert_string_equal(first, second);
    fingerprint_begin(&f);
    test_ok(fingerprint_add_file(&f, test_path(&two, "other.json"), &error), &error);
    fingerprint_hex(&f, second);
    assert_string_not_equal(first, second);
    test_error(fingerprint_add_file(&f, test_path(&two, "none.json"), &error), CT_ENOTFOUND, &error,
               "none.json");
    test_folder_remove(&one);
    test_folder_remove(&two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_json),
        cmocka_unit_test(writes_numbers),
        cmocka_unit_test(ignores_the_locale),
        cmocka_unit_test(writes_text), cmocka_unit_test(writes_loras),
        cmocka_unit_test(text_can_be_read_back),
        cmocka_unit_test(writes_recipe_json),
        cmocka_unit_test(survives_short_memory),
        cmocka_unit_test(hashes_as_xxh3),
        cmocka_unit_test(names_a_model_by_content),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
