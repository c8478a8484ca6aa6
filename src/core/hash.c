#include "core/hash.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

hash128 hash_begin(void)
{
    return (hash128){UINT64_C(0x6c62272e07bb0142), UINT64_C(0x62b821756295c58d)};
}

void hash_add(hash128 *h, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    const uint64_t factor = 0x13b;
    uint64_t high = h->high, low = h->low;
    for (size_t i = 0; i < bytes; i++) {
        low ^= p[i];
        /* Times 2^88 + factor, modulo 2^128. carry: the upper 64 bits of low * factor. */
        const uint64_t carry = ((low >> 32) * factor + ((low & UINT32_MAX) * factor >> 32)) >> 32;
        high = high * factor + carry + (low << 24);
        low *= factor;
    }
    *h = (hash128){high, low};
}

void hash_add_string(hash128 *h, const char *text)
{
    hash_add(h, text, strlen(text) + 1);
}

void hash_print(const hash128 *h, char out[HASH_DIGITS + 1])
{
    snprintf(out, HASH_DIGITS + 1, "%016" PRIx64 "%016" PRIx64, h->high, h->low);
}
