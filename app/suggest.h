/* The word that was meant, for messages about a word that is not known. */
#ifndef APP_SUGGEST_H
#define APP_SUGGEST_H

#include <stddef.h>

/* Keeps the best candidate of those that it is shown. */
typedef struct suggestion {
    const char *word; /* what was written */
    size_t length;
    const char *best; /* NULL: nothing comes near */
    size_t best_length;
    size_t best_distance;
} suggestion;

void suggest_init(suggestion *s, const char *word, size_t length);
void suggest_try(suggestion *s, const char *candidate, size_t length);

/* How many letters to insert, drop, change or swap with their neighbour to get from a to b.
 * SIZE_MAX for words of more than 40 letters. */
size_t suggest_distance(const char *a, size_t a_length, const char *b, size_t b_length);

#endif
