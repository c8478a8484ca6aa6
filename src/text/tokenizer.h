/* The byte-level BPE tokenizer of the Qwen family (Qwen2Tokenizer).
 * prompt -> [added tokens | segments] -> NFC -> pieces (regular expression) -> bytes -> merges ->
 * ids */
#ifndef TEXT_TOKENIZER_H
#define TEXT_TOKENIZER_H

#include "core/error.h"

typedef struct tokenizer tokenizer;

/* Loads tokenizer.json where it exists, else vocab.json + merges.txt with the added tokens of
 * tokenizer_config.json or added_tokens.json. Refuses tokenizers of another kind (model other than
 * BPE, another pre-tokenizer or normalizer), naming the file and the field. */
ct_status tokenizer_load(tokenizer **out, const ct_allocator *a, const char *directory,
                         ct_error *error);
/* From a tokenizer.json in memory; what names it in messages. */
ct_status tokenizer_parse(tokenizer **out, const ct_allocator *a, const char *text, size_t length,
                          const char *what, ct_error *error);
void tokenizer_free(tokenizer *t); /* NULL is allowed */

/* Highest id + 1, added tokens included. */
int32_t tokenizer_size(const tokenizer *t);
/* The id of an added token such as "<|im_start|>", or -1. */
int32_t tokenizer_added(const tokenizer *t, const char *content);

/* Text of any bytes, at most 1 MiB (CT_EINVAL above), to ids. Special tokens inside the text are
 * recognised, as the reference does. Each maximal invalid UTF-8 sequence counts as U+FFFD (Python's
 * errors="replace"). Nothing is added in front or behind. *ids is never NULL on success and is
 * freed with mem_free. Safe to call from several threads. */
ct_status tokenizer_encode(const tokenizer *t, const char *text, size_t length, int32_t **ids,
                           size_t *count, ct_error *error);

/* Offset of the first byte that is not valid UTF-8, or length when all is valid. */
size_t utf8_valid_length(const char *text, size_t length);

#endif
