/* The tokenizer against the ids that the reference gave, and against files that are not right. */
#include "test_support.h"

#include "core/mem.h"
#include "core/strbuf.h"
#include "core/utf8.h"
#include "io/json.h"
#include "text/tokenizer.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Truth ----------------------------------------------------------------------------------- */

typedef struct sample {
    char *text;
    size_t length;
    int32_t *ids;
    size_t count;
} sample;

typedef struct samples {
    sample *at;
    size_t count, capacity;
} samples;

static int base64_digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *found = c ? strchr(digits, c) : NULL;
    return found ? (int)(found - digits) : -1;
}

static size_t base64_decode(char *out, const char *text)
{
    size_t count = 0;
    unsigned bits = 0;
    int held = 0;
    for (; base64_digit(*text) >= 0; text++) {
        bits = bits << 6 | (unsigned)base64_digit(*text);
        held += 6;
        if (held >= 8) {
            held -= 8;
            out[count++] = (char)(bits >> held & 255u);
        }
    }
    return count;
}

static void add_sample(samples *list, const json_value *line)
{
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 64;
        list->at = realloc(list->at, list->capacity * sizeof *list->at);
        assert_non_null(list->at);
    }
    sample *s = &list->at[list->count++];
    size_t length = 0;
    const char *text = json_get_string(json_get(line, "text"), &length);
    const char *encoded = json_get_string(json_get(line, "bytes_b64"), NULL);
    assert_true(text || encoded);
    /* Of the exact size, so that the address sanitizer sees any byte read behind it. */
    s->text = malloc(text ? length + !length : strlen(encoded) + 1);
    assert_non_null(s->text);
    if (text)
        memcpy(s->text, text, length);
    s->length = text ? length : base64_decode(s->text, encoded);
    const json_value *ids = json_get(line, "ids");
    s->count = json_size(ids);
    s->ids = malloc((s->count + 1) * sizeof *s->ids);
    assert_non_null(s->ids);
    for (size_t i = 0; i < s->count; i++) {
        int64_t id = -1;
        assert_true(json_get_integer(json_at(ids, i), &id));
        s->ids[i] = (int32_t)id;
    }
}

static void read_samples(samples *list, const char *name)
{
    size_t size;
    char *text = (char *)test_read_file(test_fixture(name), &size);
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        json_value *root;
        ct_error error = {0};
        test_ok(json_parse(&root, line, (size_t)(end - line), name, &error), &error);
        add_sample(list, root);
        json_free(root);
    }
    free(text);
}

static void free_samples(samples *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->at[i].text);
        free(list->at[i].ids);
    }
    free(list->at);
    *list = (samples){0};
}

static bool gives(const tokenizer *t, const sample *s)
{
    int32_t *ids;
    size_t count;
    ct_error error = {0};
    if (tokenizer_encode(t, s->text, s->length, &ids, &count, &error) != CT_OK)
        return false;
    bool same = count == s->count;
    for (size_t i = 0; i < count && same; i++)
        same = ids[i] == s->ids[i];
    mem_free(&mem_default, ids);
    return same;
}

static void check_samples(const tokenizer *t, const samples *list)
{
    size_t wrong = 0;
    for (size_t i = 0; i < list->count; i++) {
        if (gives(t, &list->at[i]))
            continue;
        wrong++;
        fprintf(stderr, "sample %zu differs: %.*s\n", i, (int)list->at[i].length, list->at[i].text);
    }
    if (wrong)
        fail_msg("%zu of %zu samples differ", wrong, list->count);
}

static tokenizer *load(const char *directory)
{
    tokenizer *t;
    ct_error error = {0};
    test_ok(tokenizer_load(&t, &mem_default, directory, &error), &error);
    return t;
}

static void test_truth(void **state)
{
    (void)state;
    tokenizer *t = load(test_fixture("tokenizer"));
    samples list = {0};
    read_samples(&list, "tokenizer/strings.jsonl");
    assert_true(list.count >= 2500);
    read_samples(&list, "tokenizer/invalid.jsonl");
    check_samples(t, &list);
    free_samples(&list);
    tokenizer_free(t);
}

typedef struct worker {
    const tokenizer *t;
    const samples *list;
    size_t wrong;
} worker;

static void *work(void *user)
{
    worker *w = user;
    for (size_t i = 0; i < w->list->count; i++)
        w->wrong += !gives(w->t, &w->list->at[i]);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    enum { THREADS = 4 };
    tokenizer *t = load(test_fixture("tokenizer"));
    samples list = {0};
    read_samples(&list, "tokenizer/strings.jsonl");
    pthread_t threads[THREADS];
    worker workers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){t, &list, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(workers[i].wrong, 0);
    }
    free_samples(&list);
    tokenizer_free(t);
}

/* ---- Small tokenizers ------------------------------------------------------------------------ */

#define SPLIT                                                                                      \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{L}+|.\"},\"behavior\":\"Isolated\","       \
    "\"invert\":false}"
#define BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define SEQUENCE(a, b) "{\"type\":\"Sequence\",\"pretokenizers\":[" a "," b "]}"

/* The parts of a tokenizer.json; NULL takes what is right. Ids 0..255 are the bytes. */
typedef struct document {
    const char *normalizer, *pre_tokenizer;
    const char *model;  /* members of the model, ended by a comma */
    const char *tokens; /* members of the vocabulary, begun by a comma */
    const char *merges, *added;
    int missing; /* a byte without a symbol, or 0 */
} document;

static const char * or (const char *text, const char *standard)
{
    return text ? text : standard;
}

static bool is_printable_byte(unsigned byte)
{
    return (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
}

static void write_symbols(strbuf *s, int missing)
{
    uint32_t other = 256;
    bool comma = false;
    for (unsigned byte = 0; byte < 256; byte++) {
        uint32_t code = is_printable_byte(byte) ? byte : other++;
        char bytes[4];
        if (missing && byte == (unsigned)missing)
            continue;
        strbuf_puts(s, comma ? ",\"" : "\"");
        strbuf_puts(s, code == '"' || code == '\\' ? "\\" : "");
        strbuf_add(s, bytes, utf8_put(code, bytes));
        strbuf_printf(s, "\":%u", byte);
        comma = true;
    }
}

static char *write_document(const document *d)
{
    strbuf s;
    strbuf_init(&s, &mem_default, 1 << 20);
    strbuf_printf(&s, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,");
    strbuf_printf(&s, "\"normalizer\":%s,", or (d->normalizer, "{\"type\":\"NFC\"}"));
    strbuf_printf(&s, "\"pre_tokenizer\":%s,", or (d->pre_tokenizer, SEQUENCE(SPLIT, BYTES)));
    strbuf_printf(&s, "\"added_tokens\":%s,", or (d->added, "[]"));
    strbuf_printf(&s, "\"model\":{%s\"vocab\":{", or (d->model, "\"type\":\"BPE\","));
    write_symbols(&s, d->missing);
    strbuf_printf(&s, "%s},\"merges\":%s}}", or (d->tokens, ""), or (d->merges, "[]"));
    char *text = strbuf_take(&s);
    assert_non_null(text);
    return text;
}

static ct_status parse_document(const document *d, tokenizer **t, ct_error *error)
{
    char *text = write_document(d);
    ct_status status = tokenizer_parse(t, &mem_default, text, strlen(text), "x.json", error);
    mem_free(&mem_default, text);
    assert_true((*t != NULL) == (status == CT_OK));
    return status;
}

static tokenizer *make(const document *d)
{
    tokenizer *t;
    ct_error error = {0};
    test_ok(parse_document(d, &t, &error), &error);
    return t;
}

static void must_encode(const tokenizer *t, const char *text, size_t count, const int32_t *expected)
{
    sample s = {(char *)(uintptr_t)text, strlen(text), (int32_t *)(uintptr_t)expected, count};
    if (!gives(t, &s))
        fail_msg("other ids for \"%s\"", text);
}

static void refuse(document d, ct_status status, const char *part)
{
    tokenizer *t;
    ct_error error = {0};
    test_error(parse_document(&d, &t, &error), status, &error, part);
    assert_non_null(strstr(error.message, "x.json"));
}

static void test_small(void **state)
{
    (void)state;
    tokenizer *t = make(&(document){0});
    assert_int_equal(tokenizer_size(t), 256);
    must_encode(t, "", 0, NULL);
    must_encode(t, "Az 0\n", 5, (int32_t[]){'A', 'z', ' ', '0', '\n'});
    must_encode(t, "\xc3\xa9", 2, (int32_t[]){0xc3, 0xa9});
    must_encode(t, "\xff", 3, (int32_t[]){0xef, 0xbf, 0xbd});
    must_encode(t, "\xe2\x82", 3, (int32_t[]){0xef, 0xbf, 0xbd});
    must_encode(t, "\xed\xa0\x80", 9,
                (int32_t[]){0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd, 0xef, 0xbf, 0xbd});
    assert_int_equal(tokenizer_added(t, "<a>"), -1);
    assert_int_equal(tokenizer_added(t, ""), -1);
    tokenizer_free(t);
    tokenizer_free(NULL);
}

static void test_merges(void **state)
{
    (void)state;
    /* Lowest rank first, then from the left; strings and pairs; a later rank replaces another. */
    tokenizer *t =
        make(&(document){.tokens = ",\"ab\":256,\"bc\":257,\"abc\":258,\"aa\":259,\"aaa\":260",
                         .merges = "[\"b c\",[\"a\",\"b\"],\"ab c\",\"a a\",\"aa a\",\"a bc\"]"});
    must_encode(t, "abc", 1, (int32_t[]){258});
    must_encode(t, "ab", 1, (int32_t[]){256});
    must_encode(t, "aaaaa", 2, (int32_t[]){259, 260});
    must_encode(t, "aaa", 1, (int32_t[]){260});
    must_encode(t, "abab", 2, (int32_t[]){256, 256});
    tokenizer_free(t);
    t = make(&(document){.tokens = ",\"ab\":256,\"bc\":257", .merges = "[\"a b\",\"b c\"]"});
    must_encode(t, "abc", 2, (int32_t[]){256, 'c'});
    tokenizer_free(t);
    t = make(
        &(document){.tokens = ",\"ab\":256,\"bc\":257", .merges = "[\"a b\",\"b c\",\"a b\"]"});
    must_encode(t, "abc", 2, (int32_t[]){'a', 257});
    tokenizer_free(t);
}

static void test_merges_refused(void **state)
{
    (void)state;
    refuse((document){.merges = "[\"a b\"]"}, CT_EFORMAT, "merge 0 (\"a\" \"b\"): its result");
    refuse((document){.merges = "[\"ab c\"]"}, CT_EFORMAT, "its left part");
    refuse((document){.merges = "[[\"a\",\"bc\"]]"}, CT_EFORMAT, "its right part");
    static const char *const lone[] = {
        "[\"ab\"]",       "[\"\"]",         "[\" a\"]", "[\"a \"]",  "[\" \"]",
        "[\"a b c\"]",    "[\"a  b\"]",     "[[]]",     "[[\"a\"]]", "[[\"a\",\"b\",\"c\"]]",
        "[[\"a\",1]]",    "[[1,\"a\"]]",    "[1]",      "[null]",    "[{\"a\":\"b\"}]",
        "[[\"\",\"a\"]]", "[[\"a\",\"\"]]",
    };
    for (size_t i = 0; i < sizeof lone / sizeof lone[0]; i++)
        refuse((document){.tokens = ",\"ab\":256", .merges = lone[i]}, CT_EFORMAT, "merge 0");
    refuse((document){.merges = "{}"}, CT_EFORMAT, "merges");
    refuse((document){.merges = "null"}, CT_EFORMAT, "merges");
}

static void test_vocab_refused(void **state)
{
    (void)state;
    refuse((document){.missing = 'A'}, CT_EFORMAT, "no token \"A\" for the byte 0x41");
    refuse((document){.missing = 0xff}, CT_EFORMAT, "0xff");
    refuse((document){.tokens = ",\"ab\":255"}, CT_EFORMAT, "255");
    refuse((document){.tokens = ",\"ab\":-1"}, CT_EFORMAT, "-1");
    refuse((document){.tokens = ",\"ab\":16777216"}, CT_EFORMAT, "16777216");
    refuse((document){.tokens = ",\"ab\":9223372036854775807"}, CT_EFORMAT, "\"ab\"");
    refuse((document){.tokens = ",\"ab\":9223372036854775808"}, CT_EFORMAT, "JSON");
    refuse((document){.tokens = ",\"ab\":1.5"}, CT_EFORMAT, "a real number");
    refuse((document){.tokens = ",\"ab\":\"256\""}, CT_EFORMAT, "a string");
    refuse((document){.tokens = ",\"ab\":256,\"ab\":257"}, CT_EFORMAT, "\"ab\" is there twice");
    tokenizer *t = make(&(document){.tokens = ",\"ab\":16777215"});
    assert_int_equal(tokenizer_size(t), 16777216);
    tokenizer_free(t);
}

static void test_kinds_refused(void **state)
{
    (void)state;
    refuse((document){.normalizer = "null"}, CT_EUNSUPPORTED, "\"normalizer\" is null");
    refuse((document){.normalizer = "{\"type\":\"NFKC\"}"}, CT_EUNSUPPORTED, "of type NFKC");
    refuse((document){.normalizer = "[]"}, CT_EUNSUPPORTED, "\"normalizer\"");
    refuse((document){.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[]}"}, CT_EUNSUPPORTED,
           "\"normalizer\"");
    tokenizer_free(make(
        &(document){.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}"}));

    static const char *const others[] = {
        "null",
        "[]",
        "1",
        BYTES,
        SPLIT,
        SEQUENCE(BYTES, SPLIT),
        SEQUENCE(SPLIT, SPLIT),
        "{\"type\":\"Sequence\"}",
        "{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT "]}",
        "{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT "," BYTES "," BYTES "]}",
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        refuse((document){.pre_tokenizer = others[i]}, CT_EUNSUPPORTED, "\"pre_tokenizer\"");
    refuse((document){.pre_tokenizer = SEQUENCE(SPLIT, "{\"type\":\"ByteLevel\"}")},
           CT_EUNSUPPORTED, "add_prefix_space");
    refuse((document){.pre_tokenizer =
                          SEQUENCE(SPLIT, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}")},
           CT_EUNSUPPORTED, "use_regex");
    refuse((document){.pre_tokenizer =
                          SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":"
                                   "\"Removed\"}",
                                   BYTES)},
           CT_EUNSUPPORTED, "behavior");
    refuse((document){.pre_tokenizer =
                          SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":"
                                   "\"Isolated\",\"invert\":true}",
                                   BYTES)},
           CT_EUNSUPPORTED, "invert");
    refuse((document){.pre_tokenizer = SEQUENCE(
                          "{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":"
                          "\"Isolated\"}",
                          BYTES)},
           CT_EUNSUPPORTED, "Regex");
    refuse((document){.pre_tokenizer =
                          SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":"
                                   "\"Isolated\"}",
                                   BYTES)},
           CT_EFORMAT, "not valid");

    refuse((document){.model = ""}, CT_EUNSUPPORTED, "\"model\"");
    refuse((document){.model = "\"type\":\"Unigram\","}, CT_EUNSUPPORTED, "of type Unigram");
    refuse((document){.model = "\"type\":\"BPE\",\"dropout\":0.1,"}, CT_EUNSUPPORTED, "dropout");
    refuse((document){.model = "\"type\":\"BPE\",\"ignore_merges\":true,"}, CT_EUNSUPPORTED,
           "ignore_merges");
    refuse((document){.model = "\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\","},
           CT_EUNSUPPORTED, "end_of_word_suffix");
    refuse((document){.model = "\"type\":\"BPE\",\"continuing_subword_prefix\":\"##\","},
           CT_EUNSUPPORTED, "continuing_subword_prefix");
    tokenizer_free(make(&(document){
        .model = "\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
                 "\"continuing_subword_prefix\":\"\",\"end_of_word_suffix\":\"\","
                 "\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,"}));
}

static void test_wrong_shapes(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "[]",
        "{}",
        "[1]",
        "{\"model\":null}",
        "{\"model\":[]}",
        "{\"model\":{\"type\":1}}",
        "{\"model\":{\"type\":\"BPE\"}}",
        "",
        "x",
        "{\"model\":",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        tokenizer *t;
        ct_error error = {0};
        ct_status status =
            tokenizer_parse(&t, &mem_default, texts[i], strlen(texts[i]), "x.json", &error);
        assert_true(status == CT_EFORMAT || status == CT_EUNSUPPORTED);
        test_error(status, status, &error, "x.json");
        assert_null(t);
    }
}

static void test_truncated(void **state)
{
    (void)state;
    char *text = write_document(
        &(document){.tokens = ",\"ab\":256",
                    .merges = "[\"a b\"]",
                    .added = "[{\"id\":300,\"content\":\"<a>\",\"normalized\":false}]"});
    for (size_t length = 0; length < strlen(text); length++) {
        tokenizer *t;
        ct_error error = {0};
        test_error(tokenizer_parse(&t, &mem_default, text, length, "x.json", &error), CT_EFORMAT,
                   &error, "not valid JSON");
        assert_null(t);
    }
    mem_free(&mem_default, text);
}

static void test_added(void **state)
{
    (void)state;
    tokenizer *t = make(&(document){
        .tokens = ",\"ab\":256,\"bc\":257",
        .merges = "[\"a b\",\"b c\"]",
        .added = "[{\"id\":300,\"content\":\"<a>\"},{\"id\":301,\"content\":\"<a>b\"},"
                 "{\"id\":257,\"content\":\"bc\",\"special\":true,\"normalized\":false},"
                 "{\"id\":303,\"content\":\"\xc3\xa9!\",\"normalized\":false},"
                 "{\"id\":304,\"content\":\"A\xcc\x8a\",\"normalized\":true},"
                 "{\"id\":305,\"content\":\"!>\",\"normalized\":true}]"});
    assert_int_equal(tokenizer_size(t), 306);
    assert_int_equal(tokenizer_added(t, "<a>b"), 301);
    assert_int_equal(tokenizer_added(t, "<a"), -1);
    assert_int_equal(tokenizer_added(t, "<a>bc"), -1);
    assert_int_equal(tokenizer_added(t, "!>"), 305);
    /* The longest of those that begin first. */
    must_encode(t, "<a>b<a>c<a<a>", 6, (int32_t[]){301, 300, 'c', '<', 'a', 300});
    must_encode(t, "<a>bc", 2, (int32_t[]){301, 'c'});
    /* Found before words are: "abc" would give 256 'c'. */
    must_encode(t, "abc", 2, (int32_t[]){'a', 257});
    /* Not normalized: the bytes as they are. */
    must_encode(t, "\xc3\xa9!", 1, (int32_t[]){303});
    must_encode(t, "e\xcc\x81!", 3, (int32_t[]){0xc3, 0xa9, '!'});
    /* Normalized: any form, but not where normalization joins a character to it. */
    must_encode(t, "A\xcc\x8a\xc3\x85\xe2\x84\xab", 3, (int32_t[]){304, 304, 304});
    must_encode(t, "!>", 1, (int32_t[]){305});
    must_encode(t, "!>\xcc\xb8", 4, (int32_t[]){'!', 0xe2, 0x89, 0xaf});
    must_encode(t, "<a>\xcc\xb8", 3, (int32_t[]){300, 0xcc, 0xb8});
    tokenizer_free(t);
}

static void test_added_refused(void **state)
{
    (void)state;
    static const struct {
        const char *added;
        ct_status status;
        const char *part;
    } cases[] = {
        {"{}", CT_EFORMAT, "added_tokens"},
        {"[1]", CT_EFORMAT, "added token 0"},
        {"[{\"content\":\"a\"}]", CT_EFORMAT, "\"id\""},
        {"[{\"id\":\"300\",\"content\":\"a\"}]", CT_EFORMAT, "\"id\""},
        {"[{\"id\":300}]", CT_EFORMAT, "no content"},
        {"[{\"id\":300,\"content\":1}]", CT_EFORMAT, "no content"},
        {"[{\"id\":300,\"content\":\"\"}]", CT_EFORMAT, "empty"},
        {"[{\"id\":5,\"content\":\"<a>\"}]", CT_EFORMAT, "has the id 5"},
        {"[{\"id\":-1,\"content\":\"<a>\"}]", CT_EFORMAT, "-1"},
        {"[{\"id\":16777216,\"content\":\"<a>\"}]", CT_EFORMAT, "16777216"},
        {"[{\"id\":300,\"content\":\"a\"}]", CT_EFORMAT, "97 in the vocabulary"},
        {"[{\"id\":300,\"content\":\"<a>\"},{\"id\":300,\"content\":\"<b>\"}]", CT_EFORMAT, "300"},
        {"[{\"id\":300,\"content\":\"<a>\"},{\"id\":301,\"content\":\"<a>\"}]", CT_EFORMAT,
         "twice"},
        {"[{\"id\":97,\"content\":\"a\"},{\"id\":97,\"content\":\"a\"}]", CT_EFORMAT, "twice"},
        {"[{\"id\":300,\"content\":\"\xc3\xa9!\",\"normalized\":true},"
         "{\"id\":301,\"content\":\"e\xcc\x81!\",\"normalized\":true}]",
         CT_EFORMAT, "twice"},
        {"[{\"id\":300,\"content\":\"<a>\",\"lstrip\":true}]", CT_EUNSUPPORTED, "lstrip"},
        {"[{\"id\":300,\"content\":\"<a>\",\"rstrip\":true}]", CT_EUNSUPPORTED, "rstrip"},
        {"[{\"id\":300,\"content\":\"<a>\",\"single_word\":true}]", CT_EUNSUPPORTED, "single_word"},
        {"[{\"id\":300,\"content\":\"<a>\",\"single_word\":1}]", CT_EFORMAT, "single_word"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refuse((document){.added = cases[i].added}, cases[i].status, cases[i].part);
    tokenizer_free(make(&(document){.added = "null"}));
}

/* ---- Long texts ------------------------------------------------------------------------------ */

static size_t count_ids(const tokenizer *t, const char *unit, size_t bytes)
{
    size_t step = strlen(unit), length = bytes / step * step;
    char *text = malloc(length);
    assert_non_null(text);
    for (size_t i = 0; i < length; i += step)
        memcpy(text + i, unit, step);
    int32_t *ids;
    size_t count;
    ct_error error = {0};
    test_ok(tokenizer_encode(t, text, length, &ids, &count, &error), &error);
    mem_free(&mem_default, ids);
    free(text);
    return count;
}

static void test_long(void **state)
{
    (void)state;
    tokenizer *t = load(test_fixture("tokenizer"));
    static const char *const units[] = {
        "a",
        "ab",
        "etaoin",
        " ",
        "\n",
        " \n",
        "\r\n\t",
        "!",
        "7",
        "'s",
        "\xe4\xb8\x80",
        "\xcc\x81\xcc\xa3",
        "\xea\xb0\x80\xe1\x86\xa7",
        "<|im_start|>",
        "<|im_start|",
        "<",
        "\xff",
        "\xe2\x82",
        "\xf0\x9f\x98\x80",
        "a b",
    };
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
        assert_true(count_ids(t, units[i], 100000) > 0);
    assert_int_equal(count_ids(t, "7", 100000), 100000);
    assert_int_equal(count_ids(t, "<|im_start|>", 120000), 10000);
    assert_true(count_ids(t, "a", 1 << 20) > 0);
    char *text = calloc(1, (1 << 20) + 1);
    assert_non_null(text);
    int32_t *ids;
    size_t count;
    ct_error error = {0};
    test_error(tokenizer_encode(t, text, (1 << 20) + 1, &ids, &count, &error), CT_EINVAL, &error,
               "1048577 bytes");
    assert_null(ids);
    free(text);
    tokenizer_free(t);
}

/* ---- Directories ----------------------------------------------------------------------------- */

/* Writes vocab.json and merges.txt from the tokenizer.json of the fixtures. */
static void write_separate(const test_folder *folder)
{
    size_t size;
    char *text = (char *)test_read_file(test_fixture("tokenizer/tokenizer.json"), &size);
    char *vocab = strstr(text, "\"vocab\":{");
    assert_non_null(vocab);
    vocab += strlen("\"vocab\":");
    char *end = strstr(vocab, "},\"merges\"");
    assert_non_null(end);
    test_write_file(test_path(folder, "vocab.json"), vocab, (size_t)(end + 1 - vocab));

    json_value *root;
    ct_error error = {0};
    test_ok(json_parse(&root, text, size, "tokenizer.json", &error), &error);
    const json_value *merges = json_get(json_get(root, "model"), "merges");
    strbuf s;
    strbuf_init(&s, &mem_default, 1 << 24);
    strbuf_puts(&s, "#version: 0.2\n");
    for (size_t i = 0; i < json_size(merges); i++) {
        const json_value *merge = json_at(merges, i);
        const char *both = json_get_string(merge, NULL);
        if (both)
            strbuf_printf(&s, "%s\n", both);
        else
            strbuf_printf(&s, "%s %s\n", json_get_string(json_at(merge, 0), NULL),
                          json_get_string(json_at(merge, 1), NULL));
    }
    assert_true(strbuf_ok(&s));
    test_write_file(test_path(folder, "merges.txt"), s.data, s.length);
    strbuf_free(&s);
    json_free(root);
    free(text);
}

static void copy_file(const test_folder *folder, const char *name, const char *fixture)
{
    size_t size;
    unsigned char *data = test_read_file(test_fixture(fixture), &size);
    test_write_file(test_path(folder, name), data, size);
    free(data);
}

static void test_separate_files(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    write_separate(&folder);
    copy_file(&folder, "tokenizer_config.json", "tokenizer/tokenizer_config.json");
    tokenizer *whole = load(test_fixture("tokenizer")), *t = load(folder.path);
    assert_int_equal(tokenizer_size(t), tokenizer_size(whole));
    assert_true(tokenizer_added(t, "<|im_start|>") > 0);
    assert_int_equal(tokenizer_added(t, "</think>"), tokenizer_added(whole, "</think>"));
    samples list = {0};
    read_samples(&list, "tokenizer/strings.jsonl");
    check_samples(t, &list);
    free_samples(&list);
    tokenizer_free(t);
    tokenizer_free(whole);
    test_folder_remove(&folder);
}

static void write_text(const test_folder *folder, const char *name, const char *text)
{
    test_write_file(test_path(folder, name), text, strlen(text));
}

static void refuse_folder(const test_folder *folder, ct_status status, const char *part)
{
    tokenizer *t;
    ct_error error = {0};
    test_error(tokenizer_load(&t, &mem_default, folder->path, &error), status, &error, part);
    assert_null(t);
}

static void write_vocab(const test_folder *folder, const char *tokens)
{
    strbuf s;
    strbuf_init(&s, &mem_default, 1 << 20);
    strbuf_puts(&s, "{");
    write_symbols(&s, 0);
    strbuf_printf(&s, "%s}", tokens);
    test_write_file(test_path(folder, "vocab.json"), s.data, s.length);
    strbuf_free(&s);
}

static void test_folders(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    refuse_folder(&folder, CT_ENOTFOUND, "neither tokenizer.json nor vocab.json");
    write_vocab(&folder, ",\"ab\":256,\"<x>\":257");
    refuse_folder(&folder, CT_ENOTFOUND, "merges.txt");
    write_text(&folder, "merges.txt", "#version: 0.2\r\na b\r\n\r\n");
    tokenizer *t = load(folder.path);
    must_encode(t, "ab<x>", 4, (int32_t[]){256, '<', 'x', '>'});
    tokenizer_free(t);

    write_text(&folder, "added_tokens.json", "{\"<x>\":257,\"<y>\":258}");
    t = load(folder.path);
    must_encode(t, "<y>ab<x>", 3, (int32_t[]){258, 256, 257});
    tokenizer_free(t);
    write_text(&folder, "tokenizer_config.json", "{\"model_max_length\":5}");
    t = load(folder.path);
    assert_int_equal(tokenizer_added(t, "<y>"), 258);
    tokenizer_free(t);
    write_text(&folder, "tokenizer_config.json",
               "{\"added_tokens_decoder\":{\"300\":{\"content\":\"<z>\"}}}");
    t = load(folder.path);
    assert_int_equal(tokenizer_added(t, "<y>"), -1);
    assert_int_equal(tokenizer_added(t, "<z>"), 300);
    assert_int_equal(tokenizer_size(t), 301);
    tokenizer_free(t);

    write_text(&folder, "tokenizer_config.json", "{\"added_tokens_decoder\":{\"x\":{}}}");
    refuse_folder(&folder, CT_EFORMAT, "\"x\" in added_tokens_decoder");
    write_text(&folder, "tokenizer_config.json", "{\"added_tokens_decoder\":{\"99999999999\":{}}}");
    refuse_folder(&folder, CT_EFORMAT, "99999999999");
    write_text(&folder, "tokenizer_config.json", "{\"added_tokens_decoder\":{\"300\":{}}}");
    refuse_folder(&folder, CT_EFORMAT, "no content");
    write_text(&folder, "tokenizer_config.json", "{\"added_tokens_decoder\":[]}");
    refuse_folder(&folder, CT_EFORMAT, "tokenizer_config.json");
    write_text(&folder, "tokenizer_config.json", "{");
    refuse_folder(&folder, CT_EFORMAT, "tokenizer_config.json");
    write_text(&folder, "tokenizer_config.json", "{}");
    write_text(&folder, "added_tokens.json", "{\"<x>\":\"1\"}");
    refuse_folder(&folder, CT_EFORMAT, "added_tokens.json");
    write_text(&folder, "added_tokens.json", "[]");
    refuse_folder(&folder, CT_EFORMAT, "added_tokens.json");
    write_text(&folder, "added_tokens.json", "{}");
    write_text(&folder, "merges.txt", "a b\nb\n");
    refuse_folder(&folder, CT_EFORMAT, "merge 1");
    write_text(&folder, "vocab.json", "[]");
    refuse_folder(&folder, CT_EFORMAT, "vocab.json");
    write_text(&folder, "tokenizer.json", "{}");
    refuse_folder(&folder, CT_EUNSUPPORTED, "tokenizer.json");
    test_folder_remove(&folder);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static ct_status parse_and_encode(const ct_allocator *a, void *user, ct_error *error)
{
    const char *text = user;
    tokenizer *t;
    ct_status status = tokenizer_parse(&t, a, text, strlen(text), "x.json", error);
    if (status != CT_OK)
        return status;
    static const char prompt[] = "ab <a> e\xcc\x81 \xff <n> \xc3\xa9";
    int32_t *ids;
    size_t count;
    status = tokenizer_encode(t, prompt, sizeof prompt - 1, &ids, &count, error);
    assert_true((ids != NULL) == (status == CT_OK));
    mem_free(a, ids);
    tokenizer_free(t);
    return status;
}

static ct_status load_and_encode(const ct_allocator *a, void *user, ct_error *error)
{
    tokenizer *t;
    ct_status status = tokenizer_load(&t, a, user, error);
    if (status != CT_OK)
        return status;
    const char *prompt = "<|im_start|>user\na <|im_end|> \xc3\xa9<|im_end|>\n<think>\n\n";
    int32_t *ids = NULL;
    size_t count;
    status = tokenizer_encode(t, prompt, strlen(prompt), &ids, &count, error);
    mem_free(a, ids);
    tokenizer_free(t);
    return status;
}

static void test_memory(void **state)
{
    (void)state;
    char *text = write_document(
        &(document){.tokens = ",\"ab\":256",
                    .merges = "[\"a b\"]",
                    .added = "[{\"id\":300,\"content\":\"<a>\",\"normalized\":false},"
                             "{\"id\":301,\"content\":\"<n>\",\"normalized\":true}]"});
    test_each_allocation(parse_and_encode, text);
    mem_free(&mem_default, text);

    test_folder folder;
    test_folder_create(&folder);
    write_vocab(&folder, ",\"ab\":256");
    write_text(&folder, "merges.txt", "#version: 0.2\na b\n");
    write_text(&folder, "added_tokens.json", "{\"<|im_end|>\":258}");
    test_each_allocation(load_and_encode, folder.path);
    test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truth),          cmocka_unit_test(test_threads),
        cmocka_unit_test(test_small),          cmocka_unit_test(test_merges),
        cmocka_unit_test(test_merges_refused), cmocka_unit_test(test_vocab_refused),
        cmocka_unit_test(test_kinds_refused),  cmocka_unit_test(test_wrong_shapes),
        cmocka_unit_test(test_truncated),      cmocka_unit_test(test_added),
        cmocka_unit_test(test_added_refused),  cmocka_unit_test(test_long),
        cmocka_unit_test(test_separate_files), cmocka_unit_test(test_folders),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
