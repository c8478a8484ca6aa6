#include "text/tokenizer.h"

#include "core/mem.h"
#include "text/nfc.h"
#include "text/repair.h"
#include "text/tokenizer_private.h"

#include <string.h>

/* A prompt beyond this is a mistake; memory for merging grows with the longest word. */
#define TEXT_MAXIMUM ((size_t)1 << 20)

void tokenizer_free(tokenizer *t)
{
    if (!t)
        return;
    ct_allocator a = t->allocator;
    added_free(&t->raw);
    added_free(&t->normalized);
    pretokenizer_free(t->pretokenizer);
    bpe_free(&t->bpe);
    mem_free(&a, t);
}

int32_t tokenizer_size(const tokenizer *t)
{
    return t->size;
}

int32_t tokenizer_added(const tokenizer *t, const char *content)
{
    const added_token *token = added_get(&t->raw, content, strlen(content));
    if (!token)
        token = added_get(&t->normalized, content, strlen(content));
    return token ? token->id : -1;
}

/* ---- Encoding -------------------------------------------------------------------------------- */

typedef struct encoder {
    const tokenizer *t;
    bpe_work work;
    int32_t *ids;
    size_t count, capacity;
} encoder;

static ct_status reserve(encoder *e, size_t more, ct_error *error)
{
    if (e->capacity - e->count >= more)
        return CT_OK;
    size_t capacity = e->capacity + e->capacity / 2;
    if (capacity < e->count + more)
        capacity = e->count + more;
    if (capacity < 64)
        capacity = 64;
    int32_t *ids =
        mem_grow(&e->t->allocator, e->ids, e->count * sizeof *ids, capacity * sizeof *ids);
    if (!ids)
        return error_memory(error, capacity * sizeof *ids, "tokens");
    e->ids = ids;
    e->capacity = capacity;
    return CT_OK;
}

static ct_status encode_piece(void *user, const char *piece, size_t length, ct_error *error)
{
    encoder *e = user;
    ct_status status = reserve(e, length, error);
    if (status != CT_OK)
        return status;
    size_t count;
    status = bpe_encode(&e->t->bpe, &e->work, piece, length, e->ids + e->count, &count, error);
    e->count += count;
    return status;
}

/* Normalized text without added tokens. */
static ct_status encode_plain(encoder *e, const char *text, size_t length, ct_error *error)
{
    return length ? pretokenizer_split(e->t->pretokenizer, text, length, encode_piece, e, error)
                  : CT_OK;
}

typedef ct_status encode_function(encoder *e, const char *text, size_t length, ct_error *error);

/* Gives the stretches between added tokens to another function. */
static ct_status encode_around(encoder *e, const added_set *set, encode_function *between,
                               const char *text, size_t length, ct_error *error)
{
    size_t done = 0, at = 0;
    const added_token *token;
    while ((token = added_find(set, text, length, &at))) {
        ct_status status = between(e, text + done, at - done, error);
        if (status == CT_OK)
            status = reserve(e, 1, error);
        if (status != CT_OK)
            return status;
        e->ids[e->count++] = token->id;
        at += token->length;
        done = at;
    }
    return between(e, text + done, length - done, error);
}

static ct_status encode_raw(encoder *e, const char *text, size_t length, ct_error *error)
{
    if (length == 0)
        return CT_OK;
    const ct_allocator *a = &e->t->allocator;
    strbuf normal;
    strbuf_init(&normal, a, SIZE_MAX / 4);
    ct_status status = nfc_normalize(&normal, a, text, length, error);
    if (status == CT_OK)
        status =
            encode_around(e, &e->t->normalized, encode_plain, normal.data, normal.length, error);
    strbuf_free(&normal);
    return status;
}

static ct_status encode_valid(encoder *e, const char *text, size_t length, ct_error *error)
{
    return encode_around(e, &e->t->raw, encode_raw, text, length, error);
}

static ct_status encode_repaired(encoder *e, const char *text, size_t length, ct_error *error)
{
    strbuf valid;
    strbuf_init(&valid, &e->t->allocator, SIZE_MAX / 4);
    utf8_repair(&valid, text, length);
    ct_status status = strbuf_ok(&valid) ? encode_valid(e, valid.data, valid.length, error)
                                         : error_memory(error, length, "text");
    strbuf_free(&valid);
    return status;
}

ct_status tokenizer_encode(const tokenizer *t, const char *text, size_t length, int32_t **ids,
                           size_t *count, ct_error *error)
{
    *ids = NULL;
    *count = 0;
    if (length > TEXT_MAXIMUM)
        return error_set(error, CT_EINVAL, "the text has %zu bytes; at most %zu are allowed",
                         length, TEXT_MAXIMUM);
    encoder e = {.t = t};
    ct_status status = reserve(&e, 1, error); /* so that *ids is never NULL on success */
    bool valid = utf8_valid_length(text, length) == length;
    if (status == CT_OK)
        status = (valid ? encode_valid : encode_repaired)(&e, text, length, error);
    bpe_work_free(&e.work, &t->allocator);
    if (status != CT_OK) {
        mem_free(&t->allocator, e.ids);
        return status;
    }
    *ids = e.ids;
    *count = e.count;
    return CT_OK;
}
