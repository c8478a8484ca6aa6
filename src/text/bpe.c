#include "text/bpe.h"

#include "core/mem.h"

#include <string.h>

/* ---- Vocabulary ------------------------------------------------------------------------------ */

#define HASH_START UINT64_C(0xcbf29ce484222325)

/* FNV-1a, which can go on from the left part to the right part of a merge. */
static uint64_t hash_bytes(uint64_t hash, const char *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)bytes[i]) * UINT64_C(0x100000001b3);
    return hash;
}

/* The finalizer of splitmix64. */
static uint64_t hash_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* A power of two of which count is at most two thirds; 0 when there is none. */
static size_t table_size(size_t count)
{
    size_t size = 16;
    if (count > SIZE_MAX / 8)
        return 0;
    while (size / 3 * 2 < count)
        size *= 2;
    return size;
}

ct_status vocab_init(vocab *v, const ct_allocator *a, size_t count, ct_error *error)
{
    size_t size = table_size(count);
    *v = (vocab){.allocator = a};
    v->entries = size ? mem_zero_array(a, size, sizeof *v->entries) : NULL;
    if (!v->entries)
        return error_memory(error, size * sizeof *v->entries, "the vocabulary");
    v->mask = size - 1;
    return CT_OK;
}

void vocab_free(vocab *v)
{
    if (v->allocator)
        mem_free(v->allocator, v->entries);
    *v = (vocab){0};
}

/* The entry of a string, or the free one where it belongs. */
static vocab_entry *vocab_slot(const vocab *v, const char *left, size_t left_length,
                               const char *right, size_t right_length)
{
    uint64_t hash = hash_bytes(hash_bytes(HASH_START, left, left_length), right, right_length);
    for (size_t at = hash_mix(hash) & v->mask;; at = (at + 1) & v->mask) {
        vocab_entry *e = &v->entries[at];
        if (!e->key)
            return e;
        if (e->length == left_length + right_length && !memcmp(e->key, left, left_length) &&
            !memcmp(e->key + left_length, right, right_length))
            return e;
    }
}

bool vocab_add(vocab *v, const char *key, size_t length, int32_t id)
{
    vocab_entry *e = vocab_slot(v, key, length, "", 0);
    if (e->key)
        return false;
    *e = (vocab_entry){key, length, id};
    return true;
}

int32_t vocab_find(const vocab *v, const char *left, size_t left_length, const char *right,
                   size_t right_length)
{
    const vocab_entry *e = vocab_slot(v, left, left_length, right, right_length);
    return e->key ? e->id : -1;
}

/* ---- Byte symbols and merges ----------------------------------------------------------------- */

static bool is_printable(unsigned byte)
{
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

/* The character that stands for a byte in vocabularies of this kind: printable bytes are the
 * character of that number, the others follow from U+0100 on, in order. All are below U+0800. */
static size_t byte_symbol(unsigned byte, char out[2])
{
    unsigned code = byte;
    if (!is_printable(byte)) {
        code = 256;
        for (unsigned b = 0; b < byte; b++)
            code += !is_printable(b);
    }
    if (code < 128) {
        out[0] = (char)code;
        return 1;
    }
    out[0] = (char)(0xc0u | code >> 6);
    out[1] = (char)(0x80u | (code & 0x3fu));
    return 2;
}

#define NO_PAIR UINT64_MAX /* no pair of ids, which are never negative */

ct_status bpe_init(bpe *b, const ct_allocator *a, const vocab *v, size_t merges, const char *what,
                   ct_error *error)
{
    *b = (bpe){0};
    for (unsigned byte = 0; byte < 256; byte++) {
        char symbol[2];
        size_t length = byte_symbol(byte, symbol);
        b->byte_id[byte] = vocab_find(v, symbol, length, "", 0);
        if (b->byte_id[byte] < 0)
            return error_set(error, CT_EFORMAT,
                             "%s: the vocabulary has no token \"%.*s\" for the byte 0x%02x", what,
                             (int)length, symbol, byte);
    }
    size_t size = merges < UINT32_MAX ? table_size(merges) : 0;
    b->merges = size ? mem_array(a, size, sizeof *b->merges) : NULL;
    if (!b->merges)
        return error_memory(error, size * sizeof *b->merges, "the merges");
    b->allocator = a;
    b->mask = size - 1;
    for (size_t i = 0; i < size; i++)
        b->merges[i].pair = NO_PAIR;
    return CT_OK;
}

void bpe_free(bpe *b)
{
    if (b->allocator)
        mem_free(b->allocator, b->merges);
    *b = (bpe){0};
}

/* The entry of a pair, or the free one where it belongs. */
static bpe_merge *merge_slot(const bpe *b, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (size_t at = hash_mix(pair) & b->mask;; at = (at + 1) & b->mask)
        if (b->merges[at].pair == pair || b->merges[at].pair == NO_PAIR)
            return &b->merges[at];
}

static ct_status merge_error(uint32_t rank, const char *left, size_t left_length, const char *right,
                             size_t right_length, const char *part, const char *what,
                             ct_error *error)
{
    int l = left_length < 100 ? (int)left_length : 100;
    int r = right_length < 100 ? (int)right_length : 100;
    return error_set(error, CT_EFORMAT,
                     "%s: merge %lu (\"%.*s\" \"%.*s\"): %s is not in the vocabulary", what,
                     (unsigned long)rank, l, left, r, right, part);
}

ct_status bpe_add_merge(bpe *b, const vocab *v, const char *left, size_t left_length,
                        const char *right, size_t right_length, uint32_t rank, const char *what,
                        ct_error *error)
{
    int32_t left_id = vocab_find(v, left, left_length, "", 0);
    int32_t right_id = vocab_find(v, right, right_length, "", 0);
    int32_t id = vocab_find(v, left, left_length, right, right_length);
    if (left_id < 0 || right_id < 0 || id < 0)
        return merge_error(rank, left, left_length, right, right_length,
                           left_id < 0    ? "its left part"
                           : right_id < 0 ? "its right part"
                                          : "its result",
                           what, error);
    bpe_merge *m = merge_slot(b, left_id, right_id);
    m->pair = (uint64_t)(uint32_t)left_id << 32 | (uint32_t)right_id;
    m->rank = rank;
    m->id = id;
    return CT_OK;
}

static const bpe_merge *find_merge(const bpe *b, int32_t left, int32_t right)
{
    const bpe_merge *m = merge_slot(b, left, right);
    return m->pair == NO_PAIR ? NULL : m;
}

/* ---- Encoding -------------------------------------------------------------------------------- */

/* A piece is a list of symbols, at first its bytes; merged ones drop out. */
typedef struct symbol {
    int32_t id;             /* -1: dropped out */
    int32_t previous, next; /* -1: none */
} symbol;

/* A merge that may be done: at first the rank counts, then the place. */
typedef struct candidate {
    uint64_t order; /* rank in the upper half, index of the left symbol in the lower */
    int32_t id;     /* of the result */
} candidate;

typedef struct heap {
    candidate *at;
    size_t count;
} heap;

static void heap_push(heap *h, candidate c)
{
    size_t i = h->count++;
    for (; i > 0 && h->at[(i - 1) / 2].order > c.order; i = (i - 1) / 2)
        h->at[i] = h->at[(i - 1) / 2];
    h->at[i] = c;
}

static candidate heap_pop(heap *h)
{
    candidate top = h->at[0], last = h->at[--h->count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < h->count; i = child) {
        if (child + 1 < h->count && h->at[child + 1].order < h->at[child].order)
            child++;
        if (h->at[child].order >= last.order)
            break;
        h->at[i] = h->at[child];
    }
    h->at[i] = last;
    return top;
}

/* Offers the merge of the symbol at left with its next one, where there is such a merge. */
static void consider(const bpe *b, heap *h, const symbol *symbols, int32_t left)
{
    if (left < 0 || symbols[left].next < 0)
        return;
    const bpe_merge *m = find_merge(b, symbols[left].id, symbols[symbols[left].next].id);
    if (m)
        heap_push(h, (candidate){(uint64_t)m->rank << 32 | (uint32_t)left, m->id});
}

static void merge_all(const bpe *b, heap *h, symbol *symbols)
{
    while (h->count > 0) {
        candidate c = heap_pop(h);
        int32_t at = (int32_t)(c.order & UINT32_MAX);
        symbol *left = &symbols[at];
        if (left->id < 0 || left->next < 0)
            continue;
        /* An old entry stands only while the pair at its place still gives the same token. The
         * reference compares the token as well, not the rank: two pairs can give one token. */
        symbol *right = &symbols[left->next];
        const bpe_merge *m = find_merge(b, left->id, right->id);
        if (!m || m->id != c.id)
            continue;
        left->id = c.id;
        left->next = right->next;
        right->id = -1;
        if (right->next >= 0)
            symbols[right->next].previous = at;
        consider(b, h, symbols, left->previous);
        consider(b, h, symbols, at);
    }
}

/* Every merge takes one candidate out and puts at most two in, and a piece of n bytes has at most
 * n - 1 merges after at most n - 1 candidates: 2n hold them all. */
#define CANDIDATES_PER_BYTE 2

static ct_status work_reserve(bpe_work *work, const ct_allocator *a, size_t length, ct_error *error)
{
    if (length <= work->capacity)
        return CT_OK;
    size_t capacity = length < 64 ? 64 : length;
    bpe_work_free(work, a);
    work->memory = mem_array(a, capacity, CANDIDATES_PER_BYTE * sizeof(candidate) + sizeof(symbol));
    if (!work->memory)
        return error_memory(error, capacity, "merging");
    work->capacity = capacity;
    return CT_OK;
}

void bpe_work_free(bpe_work *work, const ct_allocator *a)
{
    if (work->memory)
        mem_free(a, work->memory);
    *work = (bpe_work){0};
}

ct_status bpe_encode(const bpe *b, bpe_work *work, const char *text, size_t length, int32_t *ids,
                     size_t *count, ct_error *error)
{
    *count = 0;
    if (length > INT32_MAX)
        return error_set(error, CT_EINVAL, "a piece of text has %zu bytes", length);
    ct_status status = work_reserve(work, b->allocator, length, error);
    if (status != CT_OK)
        return status;
    heap h = {.at = work->memory};
    symbol *symbols = (symbol *)(h.at + CANDIDATES_PER_BYTE * work->capacity);
    int32_t n = (int32_t)length;
    for (int32_t i = 0; i < n; i++)
        symbols[i] = (symbol){b->byte_id[(unsigned char)text[i]], i - 1, i + 1 < n ? i + 1 : -1};
    for (int32_t i = 0; i < n; i++)
        consider(b, &h, symbols, i);
    merge_all(b, &h, symbols);
    for (int32_t i = 0; i >= 0 && i < n; i = symbols[i].next)
        ids[(*count)++] = symbols[i].id;
    return CT_OK;
}
