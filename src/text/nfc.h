/* Unicode Normalization Form C (utf8proc; only nfc.c includes it). */
#ifndef TEXT_NFC_H
#define TEXT_NFC_H

#include "core/strbuf.h"

/* Appends the normal form of valid UTF-8. Time is linear in length whatever the text. */
ct_status nfc_normalize(strbuf *out, const ct_allocator *a, const char *text, size_t length,
                        ct_error *error);

#endif
