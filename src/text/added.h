/* Added tokens such as "<|im_start|>": found in text before anything else is done to it. */
#ifndef TEXT_ADDED_H
#define TEXT_ADDED_H

#include "core/strbuf.h"

typedef struct added_token {
    size_t offset, length; /* of the content in the pool */
    const char *content;   /* set by added_finish */
    int32_t id;
} added_token;

typedef struct added_set {
    const ct_allocator *allocator;
    strbuf pool;
    added_token *tokens; /* in the order of their bytes */
    size_t count, capacity;
    bool begins[256]; /* whether any token begins with this byte */
} added_set;

/* An empty set with room for capacity tokens. added_free may be called on a zeroed set. */
ct_status added_init(added_set *set, const ct_allocator *a, size_t capacity, ct_error *error);
void added_free(added_set *set);
/* Copies content, which must not be empty. */
ct_status added_put(added_set *set, const char *content, size_t length, int32_t id,
                    ct_error *error);
/* To be called once, after the last added_put. Returns a token that is there twice, or NULL. */
const added_token *added_finish(added_set *set);

/* The first token in text at or behind *start, the longest of those that begin there; *start moves
 * to it. NULL when there is none. */
const added_token *added_find(const added_set *set, const char *text, size_t length, size_t *start);
/* The token with exactly this content, or NULL. */
const added_token *added_get(const added_set *set, const char *content, size_t length);

#endif
