#include "app/number.h"

#include <locale.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static size_t count_digits(const char *text)
{
    return strspn(text, "0123456789");
}

number_result number_unsigned(const char *text, uint64_t *out)
{
    if (*text == '+')
        text++;
    size_t digits = count_digits(text);
    if (digits == 0 || text[digits])
        return NUMBER_MALFORMED;
    uint64_t value = 0;
    for (; *text; text++) {
        uint64_t digit = (uint64_t)(*text - '0');
        if (value > (UINT64_MAX - digit) / 10)
            return NUMBER_TOO_LARGE;
        value = value * 10 + digit;
    }
    *out = value;
    return NUMBER_OK;
}

number_result number_integer(const char *text, int64_t *out)
{
    bool negative = *text == '-';
    if (negative && text[1] == '+')
        return NUMBER_MALFORMED;
    uint64_t magnitude;
    number_result result = number_unsigned(negative ? text + 1 : text, &magnitude);
    if (result != NUMBER_OK)
        return result;
    if (magnitude > INT64_MAX)
        return NUMBER_TOO_LARGE;
    *out = negative ? -(int64_t)magnitude : (int64_t)magnitude;
    return NUMBER_OK;
}

/* Length of a number of the documented form, 0 if text is something else. */
static size_t real_length(const char *text)
{
    size_t at = *text == '+' || *text == '-';
    size_t digits = count_digits(text + at);
    at += digits;
    if (text[at] == '.') {
        size_t fraction = count_digits(text + at + 1);
        at += 1 + fraction;
        digits += fraction;
    }
    if (digits == 0)
        return 0;
    if (text[at] == 'e' || text[at] == 'E') {
        at++;
        at += text[at] == '+' || text[at] == '-';
        size_t exponent = count_digits(text + at);
        if (exponent == 0)
            return 0;
        at += exponent;
    }
    return at;
}

number_result number_real(const char *text, double *out)
{
    size_t length = real_length(text);
    if (length == 0 || text[length])
        return NUMBER_MALFORMED;
    /* strtod rounds correctly, but wants the point of the locale, which may have several bytes. */
    char local[128];
    const char *point = localeconv()->decimal_point;
    size_t point_length = strlen(point);
    if (length + point_length >= sizeof local)
        return NUMBER_TOO_LARGE;
    char *to = local;
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '.') {
            memcpy(to, point, point_length);
            to += point_length;
        } else {
            *to++ = text[i];
        }
    }
    *to = 0;
    double value = strtod(local, NULL);
    if (!isfinite(value))
        return NUMBER_TOO_LARGE;
    *out = value;
    return NUMBER_OK;
}

number_result number_bytes(const char *text, uint64_t *out)
{
    static const char letters[] = "KMGT";
    char digits[64];
    const size_t length = strspn(text, "0123456789.");
    const char *unit = text + length;
    double factor = 1, value;
    if (length >= sizeof digits)
        return NUMBER_TOO_LARGE;
    memcpy(digits, text, length);
    digits[length] = 0;
    if (*unit) {
        const char *letter = strchr(letters, *unit & ~32); /* upper case */
        if (!letter || !(unit[1] == 0 || !strcmp(unit + 1, "B") || !strcmp(unit + 1, "iB")))
            return NUMBER_MALFORMED;
        factor = ldexp(1, 10 * (int)(letter - letters + 1));
    }
    number_result result = number_real(digits, &value);
    if (result != NUMBER_OK)
        return result;
    if (value * factor >= 0x1p63)
        return NUMBER_TOO_LARGE;
    *out = (uint64_t)(value * factor);
    return NUMBER_OK;
}
