/* The whole of xxHash is compiled into this file: there is no library to find at run time. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/file.h"
#include "io/fingerprint.h"

#include <stdio.h>
#include <string.h>

#define SAMPLE 4096

_Static_assert(sizeof(XXH3_state_t) <= sizeof(((fingerprint *)0)->state), "state is too small");

static XXH3_state_t *state_of(fingerprint *f)
{
    return (XXH3_state_t *)(void *)f->state;
}

void fingerprint_begin(fingerprint *f)
{
    XXH3_INITSTATE(state_of(f));
    XXH3_128bits_reset(state_of(f));
}

void fingerprint_add(fingerprint *f, const void *data, size_t size)
{
    if (size)
        XXH3_128bits_update(state_of(f), data, size);
}

static void add_piece(fingerprint *f, const void *data, size_t size)
{
    unsigned char length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)((uint64_t)size >> (8 * i));
    fingerprint_add(f, length, sizeof length);
    fingerprint_add(f, data, size);
}

ct_status fingerprint_add_file(fingerprint *f, const char *path, ct_error *error)
{
    file_map map;
    ct_status status = file_map_open(&map, path, error);
    if (status != CT_OK)
        return status;
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    add_piece(f, name, strlen(name));
    add_piece(f, map.data, map.size);
    file_map_close(&map);
    return CT_OK;
}

void fingerprint_add_weights(fingerprint *f, const weights *w)
{
    for (int file = 0; file < weights_files(w); file++) {
        size_t length;
        const char *header = weights_header(w, file, &length);
        add_piece(f, header, length);
        for (size_t i = 0; i < weights_count(w); i++) {
            const weight_view *view = weights_at(w, i);
            if (view->file != file)
                continue;
            size_t size = view->bytes < SAMPLE ? view->bytes : SAMPLE;
            add_piece(f, view->data, size);
            add_piece(f, view->data + view->bytes - size, size);
        }
    }
}

void fingerprint_add_lora(fingerprint *f, const char *hash, double scale)
{
    uint64_t bits;
    unsigned char bytes[8];
    memcpy(&bits, &scale, sizeof bits);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(bits >> (8 * i));
    add_piece(f, hash, strlen(hash));
    add_piece(f, bytes, sizeof bytes);
}

void fingerprint_hex(const fingerprint *f, char hex[FINGERPRINT_DIGITS + 1])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical,
                             XXH3_128bits_digest((const XXH3_state_t *)(const void *)f->state));
    for (size_t i = 0; i < sizeof canonical.digest; i++)
        snprintf(hex + 2 * i, 3, "%02x", canonical.digest[i]);
}
