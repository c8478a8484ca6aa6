/* A file: a header, the problem that the plan is for, and the plan's text. */
#include "nn/cuda/dnn_file.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/mem.h"

#include <stdio.h>
#include <string.h>

#define MAGIC "ctdnn02"
#define MAX_BYTES ((size_t)64 << 20)

typedef struct file_header {
    char magic[8];
    uint64_t scratch, key_bytes, bytes;
    hash128 hash; /* of the file with zeros here */
} file_header;

char *dnn_file_path(const ct_allocator *a, const char *folder, const char *machine, const void *key,
                    size_t key_bytes)
{
    char digits[HASH_DIGITS + 1], name[HASH_DIGITS + 16];
    hash128 hash = hash_begin();
    hash_add_string(&hash, machine);
    hash_add(&hash, key, key_bytes);
    hash_print(&hash, digits);
    snprintf(name, sizeof name, "dnn-%s.bin", digits);
    return path_join(a, folder, name);
}

static hash128 hash_of(const file_header *header, const void *key, const char *text)
{
    file_header h = *header;
    h.hash = (hash128){0, 0};
    hash128 hash = hash_begin();
    hash_add(&hash, &h, sizeof h);
    hash_add(&hash, key, h.key_bytes);
    hash_add(&hash, text, h.bytes);
    return hash;
}

/* The text of a file; NULL where it does not fill it, or is not what was written. */
static const char *find_text(const char *data, size_t size, const void *key, size_t key_bytes,
                             file_header *h)
{
    if (size < sizeof *h + key_bytes)
        return NULL;
    memcpy(h, data, sizeof *h);
    if (memcmp(h->magic, MAGIC, sizeof h->magic) != 0 || h->key_bytes != key_bytes ||
        h->scratch > SIZE_MAX || memcmp(data + sizeof *h, key, key_bytes) != 0)
        return NULL;
    const char *text = data + sizeof *h + key_bytes;
    if (h->bytes == 0 || h->bytes != size - sizeof *h - key_bytes)
        return NULL;
    const hash128 hash = hash_of(h, key, text);
    return hash.high == h->hash.high && hash.low == h->hash.low ? text : NULL;
}

bool dnn_file_read(const ct_allocator *a, const char *path, const void *key, size_t key_bytes,
                   dnn_text *out)
{
    *out = (dnn_text){0};
    char *data;
    size_t size;
    if (file_read(a, path, MAX_BYTES, &data, &size, NULL) != CT_OK)
        return false;
    file_header h;
    const char *text = find_text(data, size, key, key_bytes, &h);
    if (text)
        *out = (dnn_text){(size_t)h.scratch, mem_strndup(a, text, h.bytes), (size_t)h.bytes};
    mem_free(a, data);
    return out->text != NULL;
}

ct_status dnn_file_write(const char *path, const void *key, size_t key_bytes, const dnn_text *text,
                         ct_error *error)
{
    file_header h = {
        .magic = MAGIC, .scratch = text->scratch, .key_bytes = key_bytes, .bytes = text->bytes};
    h.hash = hash_of(&h, key, text->text);
    file_output out;
    const ct_status status = file_output_open(&out, path, error);
    if (status != CT_OK)
        return status;
    fwrite(&h, sizeof h, 1, out.stream);
    fwrite(key, 1, key_bytes, out.stream);
    fwrite(text->text, 1, text->bytes, out.stream);
    return file_output_commit(&out, error); /* tells of what failed above */
}
