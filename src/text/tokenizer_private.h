/* What load.c builds and tokenizer.c uses. */
#ifndef TEXT_TOKENIZER_PRIVATE_H
#define TEXT_TOKENIZER_PRIVATE_H

#include "text/added.h"
#include "text/bpe.h"
#include "text/pretokenize.h"
#include "text/tokenizer.h"

struct tokenizer {
    ct_allocator allocator;
    added_set raw;        /* found in the text as it is */
    added_set normalized; /* found after normalization ("normalized": true) */
    pretokenizer *pretokenizer;
    bpe bpe;
    int32_t size;
};

#endif
