/* Byte pair encoding of one piece of text. */
#ifndef TEXT_BPE_H
#define TEXT_BPE_H

#include "core/error.h"

/* Token strings to ids, needed only while a tokenizer is loaded. Keys are not copied. */
typedef struct vocab_entry {
    const char *key; /* NULL: free */
    size_t length;
    int32_t id;
} vocab_entry;

typedef struct vocab {
    const ct_allocator *allocator;
    vocab_entry *entries;
    size_t mask; /* number of entries - 1, a power of two minus one */
} vocab;

/* Room for count tokens. vocab_free may be called on a zeroed vocab. */
ct_status vocab_init(vocab *v, const ct_allocator *a, size_t count, ct_error *error);
void vocab_free(vocab *v);
/* At most count times. False when the key is there already. */
bool vocab_add(vocab *v, const char *key, size_t length, int32_t id);
/* The id of the string that is left and right in a row, or -1. */
int32_t vocab_find(const vocab *v, const char *left, size_t left_length, const char *right,
                   size_t right_length);

typedef struct bpe_merge {
    uint64_t pair; /* ids of the parts, left one in the upper half */
    uint32_t rank;
    int32_t id; /* of the result */
} bpe_merge;

typedef struct bpe {
    const ct_allocator *allocator;
    int32_t byte_id[256];
    bpe_merge *merges;
    size_t mask;
} bpe;

/* Finds the 256 byte symbols in the vocabulary and makes room for a number of merges. what names
 * the source in messages. bpe_free may be called on a zeroed bpe. */
ct_status bpe_init(bpe *b, const ct_allocator *a, const vocab *v, size_t merges, const char *what,
                   ct_error *error);
void bpe_free(bpe *b);
/* The merge of the next rank. A pair that is there already takes the new rank, as in the
 * reference. */
ct_status bpe_add_merge(bpe *b, const vocab *v, const char *left, size_t left_length,
                        const char *right, size_t right_length, uint32_t rank, const char *what,
                        ct_error *error);

/* Working memory of bpe_encode, for one thread. Zeroed at the start. */
typedef struct bpe_work {
    void *memory;
    size_t capacity; /* in bytes of text */
} bpe_work;

void bpe_work_free(bpe_work *work, const ct_allocator *a);

/* Writes at most length ids and sets *count. length is at most INT32_MAX. */
ct_status bpe_encode(const bpe *b, bpe_work *work, const char *text, size_t length, int32_t *ids,
                     size_t *count, ct_error *error);

#endif
