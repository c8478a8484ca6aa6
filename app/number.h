/* Numbers as people write them on a command line: strict, and the same in every locale. */
#ifndef APP_NUMBER_H
#define APP_NUMBER_H

#include <stdbool.h>
#include <stdint.h>

typedef enum number_result {
    NUMBER_OK,
    NUMBER_MALFORMED, /* not a number, or something stands before or behind it */
    NUMBER_TOO_LARGE  /* a number, but it does not fit */
} number_result;

/* [+-]digits */
number_result number_integer(const char *text, int64_t *out);
/* digits, or +digits */
number_result number_unsigned(const char *text, uint64_t *out);
/* [+-]digits[.digits][e[+-]digits], digits on at least one side of the point. Never infinite. */
number_result number_real(const char *text, double *out);
/* An amount of memory: a number without sign or exponent, then nothing, or K, M, G or T (powers of
 * 1024; "GB" and "GiB" mean the same). */
number_result number_bytes(const char *text, uint64_t *out);

#endif
