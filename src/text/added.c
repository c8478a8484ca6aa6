#include "text/added.h"

#include "core/mem.h"

#include <stdlib.h>
#include <string.h>

ct_status added_init(added_set *set, const ct_allocator *a, size_t capacity, ct_error *error)
{
    *set = (added_set){.allocator = a, .capacity = capacity};
    strbuf_init(&set->pool, a, SIZE_MAX / 4);
    set->tokens = mem_array(a, capacity, sizeof *set->tokens);
    if (!set->tokens)
        return error_memory(error, capacity * sizeof *set->tokens, "added tokens");
    return CT_OK;
}

void added_free(added_set *set)
{
    if (!set->allocator)
        return;
    strbuf_free(&set->pool);
    mem_free(set->allocator, set->tokens);
    *set = (added_set){0};
}

ct_status added_put(added_set *set, const char *content, size_t length, int32_t id, ct_error *error)
{
    if (set->count == set->capacity || length == 0)
        return error_set(error, CT_EINTERNAL, "an added token has no room or no content");
    set->tokens[set->count++] = (added_token){set->pool.length, length, NULL, id};
    set->begins[(unsigned char)content[0]] = true;
    strbuf_add(&set->pool, content, length);
    return strbuf_ok(&set->pool) ? CT_OK : error_memory(error, length, "added tokens");
}

static int compare(const void *left, const void *right)
{
    const added_token *a = left, *b = right;
    int order = memcmp(a->content, b->content, a->length < b->length ? a->length : b->length);
    if (order)
        return order;
    return (a->length > b->length) - (a->length < b->length);
}

const added_token *added_finish(added_set *set)
{
    for (size_t i = 0; i < set->count; i++)
        set->tokens[i].content = set->pool.data + set->tokens[i].offset;
    if (set->count > 1)
        qsort(set->tokens, set->count, sizeof *set->tokens, compare);
    for (size_t i = 1; i < set->count; i++)
        if (compare(&set->tokens[i - 1], &set->tokens[i]) == 0)
            return &set->tokens[i];
    return NULL;
}

/* Among tokens low..high, which agree in their first depth bytes, the first whose next byte is at
 * least byte. A token that ends there counts as less than every byte. */
static size_t lower_bound(const added_set *set, size_t low, size_t high, size_t depth, int byte)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const added_token *token = &set->tokens[middle];
        int here = token->length == depth ? -1 : (unsigned char)token->content[depth];
        if (here < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token that text begins with. */
static const added_token *longest(const added_set *set, const char *text, size_t length)
{
    const added_token *best = NULL;
    size_t low = 0, high = set->count;
    for (size_t depth = 0; depth < length && low < high; depth++) {
        int byte = (unsigned char)text[depth];
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1);
        if (low < high && set->tokens[low].length == depth + 1)
            best = &set->tokens[low];
    }
    return best;
}

const added_token *added_find(const added_set *set, const char *text, size_t length, size_t *start)
{
    for (size_t at = *start; at < length; at++) {
        if (!set->begins[(unsigned char)text[at]])
            continue;
        const added_token *token = longest(set, text + at, length - at);
        if (token) {
            *start = at;
            return token;
        }
    }
    return NULL;
}

const added_token *added_get(const added_set *set, const char *content, size_t length)
{
    const added_token *token = longest(set, content, length);
    return token && token->length == length ? token : NULL;
}
