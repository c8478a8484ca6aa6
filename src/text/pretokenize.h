/* Splitting text into pieces with a regular expression (PCRE2; only pretokenize.c includes it). */
#ifndef TEXT_PRETOKENIZE_H
#define TEXT_PRETOKENIZE_H

#include "core/error.h"

typedef struct pretokenizer pretokenizer;

/* The pattern of Qwen2Tokenizer, as tokenizer.json has it. */
extern const char pretokenizer_qwen[];

/* Compiles a pattern in the syntax of Oniguruma, which the reference uses. It is translated where
 * PCRE2 would read it otherwise (\s), and refused where that is not possible or not known to be
 * needed: anchors, \w, nested classes, back references, options other than (?i:...).
 * jit: compile to machine code where that works; results are the same without. */
ct_status pretokenizer_create(pretokenizer **out, const ct_allocator *a, const char *pattern,
                              size_t length, bool jit, const char *what, ct_error *error);
void pretokenizer_free(pretokenizer *p); /* NULL is allowed */

/* Calls visit for every match and for every stretch between matches, in the order of the text
 * (behaviour "Isolated"), until it fails. text must be valid UTF-8. */
ct_status pretokenizer_split(const pretokenizer *p, const char *text, size_t length,
                             ct_status (*visit)(void *user, const char *piece, size_t length,
                                                ct_error *error),
                             void *user, ct_error *error);

#endif
