/* Text through the tokenizer. Without a zero byte in the input, all of it is text for a fixed
 * tokenizer, whose ids must stand for the bytes of the text. With one, what stands before it is the
 * text of a tokenizer.json, and what stands behind it is text to encode. */
#include "core/mem.h"
#include "core/strbuf.h"
#include "core/utf8.h"
#include "text/nfc.h"
#include "text/pretokenize.h"
#include "text/repair.h"
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The tokens of the fixed tokenizer behind its 256 bytes. */
static const char *const tokens[] = {
    "he", "ll", "hell", "hello", "in", "th", "the", "aa", "aaaa", "<|a|>", "<|a|>b", "!>",
};
#define TOKENS (sizeof tokens / sizeof tokens[0])
#define MERGES "\"h e\",\"l l\",\"he ll\",\"hell o\",\"i n\",\"t h\",\"th e\",\"a a\",\"aa aa\""
#define ADDED                                                                                      \
    "{\"id\":265,\"content\":\"<|a|>\",\"special\":true,\"normalized\":false},"                    \
    "{\"id\":266,\"content\":\"<|a|>b\",\"normalized\":false},"                                    \
    "{\"id\":267,\"content\":\"!>\",\"normalized\":true}"

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void write_json_pattern(strbuf *s)
{
    for (const char *c = pretokenizer_qwen; *c; c++) {
        strbuf_puts(s, *c == '\\' ? "\\" : "");
        strbuf_add(s, c, 1);
    }
}

static void write_symbols(strbuf *s)
{
    uint32_t other = 256;
    for (unsigned byte = 0; byte < 256; byte++) {
        bool printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
        uint32_t code = printable ? byte : other++;
        char bytes[4];
        strbuf_puts(s, code == '"' || code == '\\' ? "\"\\" : "\"");
        strbuf_add(s, bytes, utf8_put(code, bytes));
        strbuf_printf(s, "\":%u,", byte);
    }
    for (size_t i = 0; i < TOKENS; i++)
        strbuf_printf(s, "\"%s\":%zu%s", tokens[i], 256 + i, i + 1 < TOKENS ? "," : "");
}

static tokenizer *fixed_tokenizer(void)
{
    strbuf s;
    strbuf_init(&s, &mem_default, 1 << 20);
    strbuf_puts(&s, "{\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\","
                    "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"");
    write_json_pattern(&s);
    strbuf_puts(&s, "\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\","
                    "\"add_prefix_space\":false,\"use_regex\":false}]},\"added_tokens\":[" ADDED
                    "],\"model\":{\"type\":\"BPE\",\"merges\":[" MERGES "],\"vocab\":{");
    write_symbols(&s);
    strbuf_puts(&s, "}}}");
    tokenizer *t;
    ct_status status = tokenizer_parse(&t, &mem_default, s.data, s.length, "fixed", NULL);
    require(status == CT_OK);
    strbuf_free(&s);
    return t;
}

static void decode(strbuf *out, const int32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char byte = (char)ids[i];
        if (ids[i] < 256)
            strbuf_add(out, &byte, 1);
        else
            strbuf_puts(out, tokens[ids[i] - 256]);
    }
}

/* What ids of the fixed tokenizer stand for, brought to normal form, is the text in normal form:
 * nothing was lost, added or moved. (The stretches between added tokens were normalized one by one,
 * which leaves more to be joined than the whole has.) */
static void check_bytes(const char *text, size_t length, const int32_t *ids, size_t count)
{
    strbuf valid, normal, decoded, again;
    strbuf_init(&valid, &mem_default, 1 << 24);
    strbuf_init(&normal, &mem_default, 1 << 24);
    strbuf_init(&decoded, &mem_default, 1 << 24);
    strbuf_init(&again, &mem_default, 1 << 24);
    utf8_repair(&valid, text, length);
    decode(&decoded, ids, count);
    if (valid.length) {
        require(utf8_valid(valid.data, valid.length));
        nfc_normalize(&normal, &mem_default, valid.data, valid.length, NULL);
        nfc_normalize(&again, &mem_default, decoded.data, decoded.length, NULL);
    }
    require(normal.length == again.length);
    require(!normal.length || !memcmp(normal.data, again.data, normal.length));
    strbuf_free(&valid);
    strbuf_free(&normal);
    strbuf_free(&decoded);
    strbuf_free(&again);
}

static void encode(const tokenizer *t, const char *text, size_t length, bool fixed)
{
    int32_t *ids;
    size_t count;
    ct_error error = {0};
    ct_status status = tokenizer_encode(t, text, length, &ids, &count, &error);
    require((status == CT_OK) == (ids != NULL) && status == error.code);
    if (status != CT_OK) {
        require(!fixed && count == 0);
        return;
    }
    for (size_t i = 0; i < count; i++)
        require(ids[i] >= 0 && ids[i] < tokenizer_size(t));
    if (fixed)
        check_bytes(text, length, ids, count);
    mem_free(&mem_default, ids);
}

static void parse_and_encode(const char *json, size_t json_length, const char *text, size_t length)
{
    tokenizer *t;
    ct_error error = {0};
    ct_status status = tokenizer_parse(&t, &mem_default, json, json_length, "input", &error);
    require((status == CT_OK) == (t != NULL) && status == error.code);
    if (t)
        encode(t, text, length, false);
    tokenizer_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static tokenizer *fixed;
    if (!fixed)
        fixed = fixed_tokenizer();
    const char *input = (const char *)data;
    const char *zero = size ? memchr(input, 0, size) : NULL;
    if (!zero) {
        encode(fixed, input, size, true);
    } else {
        size_t json_length = (size_t)(zero - input);
        parse_and_encode(input, json_length, zero + 1, size - json_length - 1);
    }
    return 0;
}
