/* Errors: a code and a message that names the file, tensor or option.
 * Every internal function that can fail takes a ct_error last (NULL is allowed) and returns its
 * code, so a failure is reported once, where it is understood best. */
#ifndef CORE_ERROR_H
#define CORE_ERROR_H

#include "calotype/calotype.h"

#if defined(__GNUC__)
#define CORE_PRINTF(text, args) __attribute__((format(printf, text, args)))
#else
#define CORE_PRINTF(text, args)
#endif

/* Stores code and message (when error is not NULL) and returns code. Control characters in the
 * message are replaced, so that a hostile file cannot write to a terminal. */
ct_status error_set(ct_error *error, ct_status code, const char *format, ...) CORE_PRINTF(3, 4);

/* CT_ENOMEM with the number of bytes and what they were for. */
ct_status error_memory(ct_error *error, size_t bytes, const char *what);

#endif
