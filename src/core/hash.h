/* A hash of 128 bits for telling contents apart: FNV-1a as its authors define it (offset basis
 * 6c62272e07bb014262b821756295c58d, prime 2^88 + 0x13b). Not against those who forge on purpose. */
#ifndef CORE_HASH_H
#define CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct hash128 {
    uint64_t high, low;
} hash128;

hash128 hash_begin(void);
void hash_add(hash128 *h, const void *data, size_t bytes);
/* A string with the zero byte at its end, so that "ab", "c" differs from "a", "bc". */
void hash_add_string(hash128 *h, const char *text);

#define HASH_DIGITS 32
/* Hexadecimal, ended by a zero byte. */
void hash_print(const hash128 *h, char out[HASH_DIGITS + 1]);

#endif
