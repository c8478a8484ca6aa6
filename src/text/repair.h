/* Repair of text that is not valid UTF-8, as Python's errors="replace" does it. */
#ifndef TEXT_REPAIR_H
#define TEXT_REPAIR_H

#include "core/strbuf.h"

/* Appends text with U+FFFD in place of invalid bytes. Bytes that are the beginning of a valid
 * sequence, but do not go on as one, count together as one. */
void utf8_repair(strbuf *out, const char *text, size_t length);

#endif
