/* The hash that names a model: XXH3-128 of everything that tells two models apart, without reading
 * all of their gigabytes. It is no protection against people who want two models to look the same.
 *
 * What is hashed, in the order of the calls, each piece led by its length (64 bits, little-endian):
 *     fingerprint_add_file:     the name without folders, then the bytes of the file;
 *     fingerprint_add_weights:  for each file, in the order of weights_path: its JSON header; then
 *                               for each of its tensors, by name: the first 4096 bytes of its data
 *                               and the last 4096 (all of it, twice, where it is shorter);
 *     fingerprint_add_lora:     the digits of its hash; its scale as a double, little-endian.
 * Neither folders nor names of weight files are hashed, so a copy elsewhere has the same hash. */
#ifndef IO_FINGERPRINT_H
#define IO_FINGERPRINT_H

#include "core/error.h"
#include "io/weights.h"

#include <stdalign.h>

#define FINGERPRINT_DIGITS 32

typedef struct fingerprint {
    alignas(64) unsigned char state[640]; /* the hash library's own */
} fingerprint;

void fingerprint_begin(fingerprint *f);
/* The bytes alone, without their length. */
void fingerprint_add(fingerprint *f, const void *data, size_t size);
ct_status fingerprint_add_file(fingerprint *f, const char *path, ct_error *error);
void fingerprint_add_weights(fingerprint *f, const weights *w);
void fingerprint_add_lora(fingerprint *f, const char *hash, double scale);
/* The digits of all that was added so far: lower case, most significant first. */
void fingerprint_hex(const fingerprint *f, char hex[FINGERPRINT_DIGITS + 1]);

#endif
