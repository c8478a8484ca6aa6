#include "app/suggest.h"

#include <stdint.h>
#include <string.h>

#define LONGEST 40

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* '_' and '-' are the same, and so are capitals and small letters. */
static char fold(char c)
{
    if (c == '_')
        return '-';
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

size_t suggest_distance(const char *a, size_t a_length, const char *b, size_t b_length)
{
    if (a_length > LONGEST || b_length > LONGEST)
        return SIZE_MAX;
    /* row[i % 3][j]: the distance between the first i letters of a and the first j of b. */
    size_t row[3][LONGEST + 1];
    for (size_t j = 0; j <= b_length; j++)
        row[0][j] = j;
    for (size_t i = 1; i <= a_length; i++) {
        size_t *now = row[i % 3];
        const size_t *above = row[(i - 1) % 3], *two_above = row[(i + 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= b_length; j++) {
            char x = fold(a[i - 1]), y = fold(b[j - 1]);
            now[j] = smaller(above[j] + 1, now[j - 1] + 1);
            now[j] = smaller(now[j], above[j - 1] + (x != y));
            if (i > 1 && j > 1 && x == fold(b[j - 2]) && fold(a[i - 2]) == y)
                now[j] = smaller(now[j], two_above[j - 2] + 1);
        }
    }
    return row[a_length % 3][b_length];
}

void suggest_init(suggestion *s, const char *word, size_t length)
{
    /* One mistake in three letters is as far as a guess goes. */
    *s = (suggestion){.word = word, .length = length, .best_distance = length / 3 + 1};
    if (length < 3)
        s->best_distance = 1;
}

void suggest_try(suggestion *s, const char *candidate, size_t length)
{
    size_t distance = suggest_distance(s->word, s->length, candidate, length);
    if (distance < s->best_distance) {
        s->best = candidate;
        s->best_length = length;
        s->best_distance = distance;
    }
}
