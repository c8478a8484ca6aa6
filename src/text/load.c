/* Builds a tokenizer from tokenizer.json, or from vocab.json, merges.txt and their companions.
 * Everything that would make the reference give other ids than this implementation is refused. */
#include "core/file.h"
#include "core/mem.h"
#include "io/json_scan.h"
#include "text/nfc.h"
#include "text/tokenizer_private.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* The published files have up to 35 MB. Parsed JSON can be twenty times as large as its text. */
#define FILE_MAXIMUM ((size_t)64 << 20)
/* The largest vocabularies have about 2^18 tokens, and as many merges. */
#define ID_LIMIT ((int64_t)1 << 24)

typedef struct loader {
    tokenizer *t;
    const char *what; /* the file that is being read */
    vocab vocab;
    unsigned char *used; /* a bit for each id below ID_LIMIT */
} loader;

static ct_status loader_start(loader *l, const ct_allocator *a, const char *what, ct_error *error)
{
    *l = (loader){.what = what};
    l->t = mem_zero_array(a, 1, sizeof *l->t);
    if (!l->t)
        return error_memory(error, sizeof *l->t, "the tokenizer");
    l->t->allocator = *a;
    l->used = mem_zero_array(a, ID_LIMIT / 8, 1);
    return l->used ? CT_OK : error_memory(error, ID_LIMIT / 8, "the tokenizer");
}

/* Frees what was needed for loading only, and the tokenizer too unless status is CT_OK. */
static void loader_finish(loader *l, const ct_allocator *a, ct_status status, tokenizer **out)
{
    vocab_free(&l->vocab);
    mem_free(a, l->used);
    if (status == CT_OK)
        *out = l->t;
    else
        tokenizer_free(l->t);
}

/* Marks an id as taken and keeps track of the highest. */
static ct_status take_id(loader *l, const char *token, int64_t id, ct_error *error)
{
    if (id < 0 || id >= ID_LIMIT)
        return error_set(error, CT_EFORMAT, "%s: token \"%.100s\" has the id %lld, not in 0..%lld",
                         l->what, token, (long long)id, (long long)ID_LIMIT - 1);
    unsigned char bit = (unsigned char)(1u << (id & 7));
    if (l->used[id >> 3] & bit)
        return error_set(error, CT_EFORMAT,
                         "%s: token \"%.100s\" has the id %lld, as another one does", l->what,
                         token, (long long)id);
    l->used[id >> 3] |= bit;
    if (id >= l->t->size)
        l->t->size = (int32_t)id + 1;
    return CT_OK;
}

/* ---- Vocabulary and merges ------------------------------------------------------------------- */

static ct_status not_json(const loader *l, const char *list, ct_error *error)
{
    return error_set(error, CT_EFORMAT, "%s is not valid JSON, somewhere in the %s", l->what, list);
}

/* Reads what s stands before. The vocabulary refers to its text. */
static ct_status load_vocab(loader *l, json_scan *s, ct_error *error)
{
    if (json_scan_kind(s) != JSON_KIND_OBJECT)
        return error_set(error, CT_EFORMAT, "%s: the vocabulary is not an object", l->what);
    ct_status status = vocab_init(&l->vocab, &l->t->allocator, json_scan_count(s), error);
    bool more = status == CT_OK && json_scan_open(s, '{');
    for (; more && status == CT_OK; more = json_scan_more(s, '}')) {
        const char *token;
        size_t length;
        int64_t id;
        if (!json_scan_key(s, &token, &length))
            break;
        const json_kind kind = json_scan_kind(s);
        if (kind != JSON_KIND_INTEGER)
            return error_set(error, CT_EFORMAT, "%s: the id of token \"%.100s\" is %s", l->what,
                             token, json_kind_name(kind));
        if (!json_scan_integer(s, &id))
            break;
        status = take_id(l, token, id, error);
        if (status == CT_OK && !vocab_add(&l->vocab, token, length, (int32_t)id))
            status =
                error_set(error, CT_EFORMAT, "%s: token \"%.100s\" is there twice", l->what, token);
    }
    return status == CT_OK && !json_scan_good(s) ? not_json(l, "vocabulary", error) : status;
}

/* A merge written "A B". Tokens never hold a space, which the byte symbols write as U+0120. */
static ct_status add_written_merge(loader *l, const char *text, size_t length, size_t rank,
                                   ct_error *error)
{
    const char *space = memchr(text, ' ', length);
    size_t left = space ? (size_t)(space - text) : 0;
    if (left == 0 || left + 1 == length || memchr(space + 1, ' ', length - left - 1))
        return error_set(error, CT_EFORMAT,
                         "%s: merge %zu (\"%.*s\") is not two tokens with a space between", l->what,
                         rank, length < 100 ? (int)length : 100, text);
    return bpe_add_merge(&l->t->bpe, &l->vocab, text, left, space + 1, length - left - 1,
                         (uint32_t)rank, l->what, error);
}

/* "A B", or ["A", "B"]. Mistakes of the text are found by the caller. */
static ct_status add_json_merge(loader *l, json_scan *s, size_t rank, ct_error *error)
{
    const char *part[2];
    size_t length[2];
    const json_kind kind = json_scan_kind(s);
    if (kind == JSON_KIND_STRING)
        return json_scan_string(s, &part[0], &length[0])
                   ? add_written_merge(l, part[0], length[0], rank, error)
                   : CT_OK;
    int count = 0;
    if (kind == JSON_KIND_ARRAY)
        for (bool more = json_scan_open(s, '['); more; more = json_scan_more(s, ']')) {
            if (count == 2 || json_scan_kind(s) != JSON_KIND_STRING) {
                count = 0;
                break;
            }
            if (!json_scan_string(s, &part[count], &length[count]))
                return CT_OK;
            count++;
        }
    if (!json_scan_good(s))
        return CT_OK;
    if (count != 2 || !length[0] || !length[1])
        return error_set(error, CT_EFORMAT, "%s: merge %zu is neither a string nor two strings",
                         l->what, rank);
    return bpe_add_merge(&l->t->bpe, &l->vocab, part[0], length[0], part[1], length[1],
                         (uint32_t)rank, l->what, error);
}

static ct_status start_merges(loader *l, size_t count, ct_error *error)
{
    if (count > (size_t)ID_LIMIT)
        return error_set(error, CT_EFORMAT, "%s: there are %zu merges; at most %lld are allowed",
                         l->what, count, (long long)ID_LIMIT);
    return bpe_init(&l->t->bpe, &l->t->allocator, &l->vocab, count, l->what, error);
}

static ct_status load_json_merges(loader *l, json_scan *s, ct_error *error)
{
    if (json_scan_kind(s) != JSON_KIND_ARRAY)
        return error_set(error, CT_EFORMAT, "%s: model.merges is not an array", l->what);
    ct_status status = start_merges(l, json_scan_count(s), error);
    size_t rank = 0;
    bool more = status == CT_OK && json_scan_open(s, '[');
    for (; more && status == CT_OK; more = json_scan_more(s, ']'))
        status = add_json_merge(l, s, rank++, error);
    return status == CT_OK && !json_scan_good(s) ? not_json(l, "merges", error) : status;
}

static size_t count_lines(const char *text, size_t length)
{
    size_t lines = 1;
    for (size_t i = 0; i < length; i++)
        lines += text[i] == '\n';
    return lines;
}

/* merges.txt: one merge in a line; "#version" lines and empty ones do not count. */
static ct_status load_written_merges(loader *l, const char *text, size_t length, ct_error *error)
{
    ct_status status = start_merges(l, count_lines(text, length), error);
    size_t rank = 0;
    while (length > 0 && status == CT_OK) {
        const char *newline = memchr(text, '\n', length);
        size_t line = newline ? (size_t)(newline - text) : length;
        size_t used = newline ? line + 1 : line;
        if (line > 0 && text[line - 1] == '\r')
            line--;
        bool version = line >= 8 && !memcmp(text, "#version", 8);
        if (line > 0 && !version)
            status = add_written_merge(l, text, line, rank++, error);
        text += used;
        length -= used;
    }
    return status;
}

/* ---- Added tokens ---------------------------------------------------------------------------- */

static ct_status added_start(loader *l, size_t count, ct_error *error)
{
    if (count > (size_t)ID_LIMIT)
        return error_set(error, CT_EFORMAT, "%s: there are %zu added tokens", l->what, count);
    const ct_allocator *a = &l->t->allocator;
    ct_status status = added_init(&l->t->raw, a, count, error);
    return status == CT_OK ? added_init(&l->t->normalized, a, count, error) : status;
}

/* Tokens with "normalized": true are looked for in normalized text, so in normalized form. */
static ct_status put_normalized(loader *l, const char *content, size_t length, int32_t id,
                                ct_error *error)
{
    const ct_allocator *a = &l->t->allocator;
    strbuf normal;
    strbuf_init(&normal, a, SIZE_MAX / 4);
    ct_status status = nfc_normalize(&normal, a, content, length, error);
    if (status == CT_OK)
        status = added_put(&l->t->normalized, normal.data, normal.length, id, error);
    strbuf_free(&normal);
    return status;
}

static ct_status add_added(loader *l, const char *content, size_t length, int64_t id,
                           bool normalized, ct_error *error)
{
    if (length == 0)
        return error_set(error, CT_EFORMAT, "%s: the added token with the id %lld is empty",
                         l->what, (long long)id);
    int32_t known = vocab_find(&l->vocab, content, length, "", 0);
    if (known >= 0 && known != id)
        return error_set(error, CT_EFORMAT,
                         "%s: the added token \"%.100s\" has the id %lld, but %ld in the "
                         "vocabulary",
                         l->what, content, (long long)id, (long)known);
    ct_status status = known < 0 ? take_id(l, content, id, error) : CT_OK;
    if (status != CT_OK)
        return status;
    return normalized ? put_normalized(l, content, length, (int32_t)id, error)
                      : added_put(&l->t->raw, content, length, (int32_t)id, error);
}

/* One member of an added token; absent counts as false. */
static ct_status get_flag(loader *l, const json_value *token, const char *name, bool *out,
                          ct_error *error)
{
    const json_value *value = json_get(token, name);
    *out = false;
    if (value && json_get_kind(value) != JSON_KIND_NULL && !json_get_boolean(value, out))
        return error_set(error, CT_EFORMAT, "%s: \"%s\" of an added token is not a boolean",
                         l->what, name);
    return CT_OK;
}

/* An added token described by an object. */
static ct_status add_described(loader *l, const json_value *token, int64_t id, ct_error *error)
{
    size_t length;
    const char *content = json_get_string(json_get(token, "content"), &length);
    if (!content)
        return error_set(error, CT_EFORMAT, "%s: the added token with the id %lld has no content",
                         l->what, (long long)id);
    static const char *const flags[] = {"lstrip", "rstrip", "single_word"};
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        bool set;
        ct_status status = get_flag(l, token, flags[i], &set, error);
        if (status != CT_OK)
            return status;
        if (set)
            return error_set(error, CT_EUNSUPPORTED,
                             "%s: the added token \"%.100s\" has \"%s\", which is not supported",
                             l->what, content, flags[i]);
    }
    bool normalized;
    ct_status status = get_flag(l, token, "normalized", &normalized, error);
    return status == CT_OK ? add_added(l, content, length, id, normalized, error) : status;
}

static ct_status added_end(loader *l, ct_error *error)
{
    const added_token *twice = added_finish(&l->t->raw);
    if (!twice)
        twice = added_finish(&l->t->normalized);
    if (twice)
        return error_set(error, CT_EFORMAT, "%s: the added token \"%.*s\" is there twice", l->what,
                         twice->length < 100 ? (int)twice->length : 100, twice->content);
    return CT_OK;
}

/* "added_tokens" of tokenizer.json. */
static ct_status load_added_list(loader *l, const json_value *array, ct_error *error)
{
    if (array && json_get_kind(array) == JSON_KIND_NULL)
        array = NULL;
    if (array && json_get_kind(array) != JSON_KIND_ARRAY)
        return error_set(error, CT_EFORMAT, "%s: \"added_tokens\" is not an array", l->what);
    size_t count = json_size(array);
    ct_status status = added_start(l, count, error);
    for (size_t i = 0; i < count && status == CT_OK; i++) {
        const json_value *token = json_at(array, i);
        int64_t id;
        if (!json_get_integer(json_get(token, "id"), &id))
            return error_set(error, CT_EFORMAT, "%s: added token %zu has no integer \"id\"",
                             l->what, i);
        status = add_described(l, token, id, error);
    }
    return status == CT_OK ? added_end(l, error) : status;
}

/* A member "id": {"content": ...} of "added_tokens_decoder" in tokenizer_config.json. */
static ct_status load_decoder_entry(void *user, const char *key, const json_value *value,
                                    ct_error *error)
{
    loader *l = user;
    char *end;
    long id = strtol(key, &end, 10);
    if (key[0] < '0' || key[0] > '9' || *end || id >= ID_LIMIT)
        return error_set(error, CT_EFORMAT, "%s: \"%.100s\" in added_tokens_decoder is not an id",
                         l->what, key);
    return add_described(l, value, id, error);
}

/* A member "content": id of added_tokens.json. */
static ct_status load_added_entry(void *user, const char *key, const json_value *value,
                                  ct_error *error)
{
    loader *l = user;
    int64_t id;
    if (!json_get_integer(value, &id))
        return error_set(error, CT_EFORMAT, "%s: the id of \"%.100s\" is not an integer", l->what,
                         key);
    return add_added(l, key, strlen(key), id, false, error);
}

/* ---- tokenizer.json -------------------------------------------------------------------------- */

/* The string member of an object, or "" where there is none. */
static const char *get_string(const json_value *object, const char *key)
{
    const char *text = json_get_string(json_get(object, key), NULL);
    return text ? text : "";
}

static bool is_type(const json_value *object, const char *type)
{
    return !strcmp(get_string(object, "type"), type);
}

static bool is_true(const json_value *object, const char *key)
{
    bool value;
    return json_get_boolean(json_get(object, key), &value) && value;
}

/* Members whose absence, null, false, 0 and "" all mean that something is off. */
static bool is_off(const json_value *object, const char *key)
{
    const json_value *value = json_get(object, key);
    double number;
    bool flag;
    size_t length;
    return !value || json_get_kind(value) == JSON_KIND_NULL ||
           (json_get_boolean(value, &flag) && !flag) ||
           (json_get_number(value, &number) && number >= 0 && number <= 0) ||
           (json_get_string(value, &length) && length == 0);
}

static ct_status unsupported(loader *l, const char *field, const char *expected,
                             const json_value *value, ct_error *error)
{
    const char *type = get_string(value, "type");
    return error_set(error, CT_EUNSUPPORTED, "%s: \"%s\" is %s%s, but must be %s", l->what, field,
                     !value  ? "missing"
                     : *type ? "of type "
                             : json_kind_name(json_get_kind(value)),
                     type, expected);
}

static ct_status check_normalizer(loader *l, const json_value *normalizer, ct_error *error)
{
    /* Some writers wrap a single normalizer. */
    const json_value *list = json_get(normalizer, "normalizers");
    const json_value *only = normalizer;
    if (is_type(normalizer, "Sequence") && json_size(list) == 1)
        only = json_at(list, 0);
    return is_type(only, "NFC") ? CT_OK : unsupported(l, "normalizer", "NFC", normalizer, error);
}

static ct_status load_pretokenizer(loader *l, const json_value *value, ct_error *error)
{
    const json_value *list = json_get(value, "pretokenizers");
    const json_value *split = json_at(list, 0), *bytes = json_at(list, 1);
    if (!is_type(value, "Sequence") || json_size(list) != 2 || !is_type(split, "Split") ||
        !is_type(bytes, "ByteLevel"))
        return unsupported(l, "pre_tokenizer", "a Sequence of Split and ByteLevel", value, error);
    /* Both are on where they are absent. */
    bool prefix, regex;
    if (!json_get_boolean(json_get(bytes, "add_prefix_space"), &prefix) || prefix)
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: \"add_prefix_space\" of ByteLevel must be false", l->what);
    if (!json_get_boolean(json_get(bytes, "use_regex"), &regex) || regex)
        return error_set(error, CT_EUNSUPPORTED, "%s: \"use_regex\" of ByteLevel must be false",
                         l->what);
    if (strcmp(get_string(split, "behavior"), "Isolated") != 0 || is_true(split, "invert"))
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: \"behavior\" of Split must be \"Isolated\", and \"invert\" false",
                         l->what);
    size_t length;
    const char *pattern = json_get_string(json_get(json_get(split, "pattern"), "Regex"), &length);
    if (!pattern)
        return error_set(error, CT_EUNSUPPORTED, "%s: \"pattern\" of Split must hold a \"Regex\"",
                         l->what);
    return pretokenizer_create(&l->t->pretokenizer, &l->t->allocator, pattern, length, true,
                               l->what, error);
}

static ct_status check_model(loader *l, const json_value *model, ct_error *error)
{
    if (!is_type(model, "BPE"))
        return unsupported(l, "model", "of type BPE", model, error);
    /* unk_token, fuse_unk and byte_fallback make no difference: every byte has a token. */
    static const char *const off[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                      "ignore_merges"};
    for (size_t i = 0; i < sizeof off / sizeof off[0]; i++)
        if (!is_off(model, off[i]))
            return error_set(error, CT_EUNSUPPORTED, "%s: \"%s\" of the model is not supported",
                             l->what, off[i]);
    return CT_OK;
}

/* root is the document without its vocabulary and its merges. */
static ct_status load_document(loader *l, const json_value *root, json_scan *tokens,
                               json_scan *merges, ct_error *error)
{
    if (json_get_kind(root) != JSON_KIND_OBJECT)
        return error_set(error, CT_EFORMAT, "%s: expected an object, found %s", l->what,
                         json_kind_name(json_get_kind(root)));
    const json_value *model = json_get(root, "model");
    ct_status status = check_model(l, model, error);
    if (status == CT_OK)
        status = check_normalizer(l, json_get(root, "normalizer"), error);
    if (status == CT_OK)
        status = load_pretokenizer(l, json_get(root, "pre_tokenizer"), error);
    if (status == CT_OK)
        status = load_vocab(l, tokens, error);
    if (status == CT_OK)
        status = load_json_merges(l, merges, error);
    if (status == CT_OK)
        status = load_added_list(l, json_get(root, "added_tokens"), error);
    return status;
}

/* Parses all but two members, which are large: where they stand, the parser sees empty ones. */
static ct_status parse_around(json_value **root, const ct_allocator *a, const char *text,
                              size_t length, const json_scan *first, const json_scan *second,
                              const char *what, ct_error *error)
{
    strbuf rest;
    strbuf_init(&rest, a, FILE_MAXIMUM);
    const char *at = text;
    const json_scan *cuts[] = {first, second};
    for (int i = 0; i < 2; i++) {
        if (cuts[i]->at == cuts[i]->end)
            continue;
        strbuf_add(&rest, at, (size_t)(cuts[i]->at - at));
        strbuf_puts(&rest, *cuts[i]->at == '{' ? "{}" : *cuts[i]->at == '[' ? "[]" : "null");
        at = cuts[i]->end;
    }
    strbuf_add(&rest, at, (size_t)(text + length - at));
    ct_status status = strbuf_ok(&rest) ? json_parse(root, rest.data, rest.length, what, error)
                                        : error_memory(error, length, what);
    strbuf_free(&rest);
    return status;
}

static bool is_key(const char *key, size_t length, const char *wanted)
{
    return strlen(wanted) == length && !memcmp(key, wanted, length);
}

/* Where "vocab" and "merges" of "model" stand. What is wrong elsewhere, the parser will find. */
static void find_lists(json_scan s, json_scan *tokens, json_scan *merges)
{
    const char *key;
    size_t length;
    bool model = false, more = json_scan_kind(&s) == JSON_KIND_OBJECT && json_scan_open(&s, '{');
    while (more && json_scan_raw_key(&s, &key, &length)) {
        json_scan other;
        if (!model && is_key(key, length, "model") && json_scan_kind(&s) == JSON_KIND_OBJECT) {
            model = true;
            more = json_scan_open(&s, '{');
            continue;
        }
        json_scan_cut(&s, model && is_key(key, length, "vocab")    ? tokens
                          : model && is_key(key, length, "merges") ? merges
                                                                   : &other);
        more = json_scan_more(&s, '}');
    }
}

/* Strings of text are decoded in place. */
static ct_status parse_in_place(tokenizer **out, const ct_allocator *a, char *text, size_t length,
                                const char *what, ct_error *error)
{
    json_value *root;
    json_scan tokens = {.at = text, .end = text}, merges = tokens;
    find_lists((json_scan){.at = text, .end = text + length}, &tokens, &merges);
    const bool in_order = tokens.at <= merges.at;
    ct_status status = parse_around(&root, a, text, length, in_order ? &tokens : &merges,
                                    in_order ? &merges : &tokens, what, error);
    if (status == CT_EFORMAT) { /* once more for the line of the mistake */
        status = json_parse(&root, text, length, what, error);
        if (status == CT_OK)
            json_free(root);
        return error_set(status == CT_OK ? error : NULL, CT_EFORMAT, "%s is not valid JSON", what);
    }
    if (status != CT_OK)
        return status;
    loader l;
    status = loader_start(&l, a, what, error);
    if (status == CT_OK)
        status = load_document(&l, root, &tokens, &merges, error);
    loader_finish(&l, a, status, out);
    json_free(root);
    return status;
}

ct_status tokenizer_parse(tokenizer **out, const ct_allocator *a, const char *text, size_t length,
                          const char *what, ct_error *error)
{
    *out = NULL;
    char *copy = mem_strndup(a, text, length);
    if (!copy)
        return error_memory(error, length, what);
    ct_status status = parse_in_place(out, a, copy, length, what, error);
    mem_free(a, copy);
    return status;
}

/* ---- Directories ----------------------------------------------------------------------------- */

static ct_status join(char **path, const ct_allocator *a, const char *directory, const char *name,
                      ct_error *error)
{
    *path = path_join(a, directory, name);
    return *path ? CT_OK : error_memory(error, strlen(directory), "a path");
}

/* A JSON file of the directory and its path (for messages). A file that is not there gives a NULL
 * root unless it is required. */
typedef struct json_file {
    char *path;
    json_value *root;
} json_file;

static ct_status json_file_open(json_file *f, const ct_allocator *a, const char *directory,
                                const char *name, bool required, ct_error *error)
{
    *f = (json_file){0};
    ct_status status = join(&f->path, a, directory, name, error);
    if (status == CT_OK && (required || file_exists(f->path)))
        status = json_read(&f->root, a, f->path, FILE_MAXIMUM, error);
    return status;
}

static void json_file_close(json_file *f, const ct_allocator *a)
{
    json_free(f->root);
    mem_free(a, f->path);
}

static ct_status load_merges_file(loader *l, const char *directory, ct_error *error)
{
    const ct_allocator *a = &l->t->allocator;
    char *path, *text;
    size_t length;
    ct_status status = join(&path, a, directory, "merges.txt", error);
    if (status != CT_OK)
        return status;
    l->what = path;
    status = file_read(a, path, FILE_MAXIMUM, &text, &length, error);
    if (status == CT_OK) {
        status = load_written_merges(l, text, length, error);
        mem_free(a, text);
    }
    mem_free(a, path);
    return status;
}

/* Gives every member of an object to visit; ends the list of added tokens. */
static ct_status load_added_object(loader *l, const json_value *object, const char *what,
                                   ct_status (*visit)(void *user, const char *key,
                                                      const json_value *value, ct_error *error),
                                   ct_error *error)
{
    l->what = what;
    if (object && json_get_kind(object) != JSON_KIND_OBJECT)
        return error_set(error, CT_EFORMAT, "%s: the added tokens are not an object", what);
    ct_status status = added_start(l, json_size(object), error);
    if (status == CT_OK && object)
        status = json_each(object, visit, l, error);
    return status == CT_OK ? added_end(l, error) : status;
}

static ct_status load_added_files(loader *l, const char *directory, ct_error *error)
{
    const ct_allocator *a = &l->t->allocator;
    json_file settings, added = {0};
    ct_status status =
        json_file_open(&settings, a, directory, "tokenizer_config.json", false, error);
    const json_value *decoder = json_get(settings.root, "added_tokens_decoder");
    if (status == CT_OK && decoder)
        status = load_added_object(l, decoder, settings.path, load_decoder_entry, error);
    else if (status == CT_OK) {
        status = json_file_open(&added, a, directory, "added_tokens.json", false, error);
        if (status == CT_OK)
            status = load_added_object(l, added.root, added.path, load_added_entry, error);
    }
    json_file_close(&added, a);
    json_file_close(&settings, a);
    return status;
}

static ct_status load_separate(loader *l, const char *directory, ct_error *error)
{
    const ct_allocator *a = &l->t->allocator;
    char *path, *text = NULL;
    size_t length;
    ct_status status = join(&path, a, directory, "vocab.json", error);
    if (status != CT_OK)
        return status;
    l->what = path;
    status = file_read(a, path, FILE_MAXIMUM, &text, &length, error);
    if (status == CT_OK) {
        json_scan s = {.at = text, .end = text + length};
        status = load_vocab(l, &s, error);
        if (status == CT_OK && !json_scan_at_end(&s))
            status = not_json(l, "vocabulary", error);
    }
    if (status == CT_OK)
        status = load_merges_file(l, directory, error);
    if (status == CT_OK)
        status = load_added_files(l, directory, error);
    if (status == CT_OK)
        status = pretokenizer_create(&l->t->pretokenizer, a, pretokenizer_qwen,
                                     strlen(pretokenizer_qwen), true, directory, error);
    /* The vocabulary refers to the text of the file. */
    vocab_free(&l->vocab);
    mem_free(a, text);
    mem_free(a, path);
    return status;
}

static ct_status load_single(tokenizer **out, const ct_allocator *a, const char *path,
                             ct_error *error)
{
    char *text;
    size_t length;
    ct_status status = file_read(a, path, FILE_MAXIMUM, &text, &length, error);
    if (status != CT_OK)
        return status;
    status = parse_in_place(out, a, text, length, path, error);
    mem_free(a, text);
    return status;
}

ct_status tokenizer_load(tokenizer **out, const ct_allocator *a, const char *directory,
                         ct_error *error)
{
    *out = NULL;
    char *path, *vocab_path = NULL;
    ct_status status = join(&path, a, directory, "tokenizer.json", error);
    if (status == CT_OK)
        status = join(&vocab_path, a, directory, "vocab.json", error);
    if (status == CT_OK && file_exists(path))
        status = load_single(out, a, path, error);
    else if (status == CT_OK && file_exists(vocab_path)) {
        loader l;
        status = loader_start(&l, a, directory, error);
        if (status == CT_OK)
            status = load_separate(&l, directory, error);
        loader_finish(&l, a, status, out);
    } else if (status == CT_OK)
        status =
            error_set(error, CT_ENOTFOUND,
                      "%s holds neither tokenizer.json nor vocab.json and merges.txt", directory);
    mem_free(a, path);
    mem_free(a, vocab_path);
    return status;
}
