/* A file: a header, the problem that the plan is for, and a text for each step. */
#include "nn/cuda/dnn_file.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/mem.h"

#include <stdio.h>
#include <string.h>

#define MAGIC "ctdnn01"
#define MAX_BYTES ((size_t)64 << 20)

typedef struct file_header {
    char magic[8];
    uint64_t steps, scratch, key_bytes, bytes[DNN_FILE_STEPS];
    hash128 hash; /* of the file with zeros here */
} file_header;

void dnn_texts_free(const ct_allocator *a, dnn_texts *texts)
{
    for (int i = 0; i < DNN_FILE_STEPS; i++)
        mem_free(a, texts->text[i]);
    *texts = (dnn_texts){0};
}

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

static hash128 hash_of(const file_header *header, const void *key, const char *const *text)
{
    file_header h = *header;
    h.hash = (hash128){0, 0};
    hash128 hash = hash_begin();
    hash_add(&hash, &h, sizeof h);
    hash_add(&hash, key, h.key_bytes);
    for (uint64_t i = 0; i < h.steps; i++)
        hash_add(&hash, text[i], h.bytes[i]);
    return hash;
}

/* Finds the parts of a file; false where they do not fill it, or are not what was written. */
static bool parse(const char *data, size_t size, const void *key, size_t key_bytes, file_header *h,
                  const char **text)
{
    if (size < sizeof *h + key_bytes)
        return false;
    memcpy(h, data, sizeof *h);
    if (memcmp(h->magic, MAGIC, sizeof h->magic) != 0 || h->key_bytes != key_bytes ||
        h->steps < 1 || h->steps > DNN_FILE_STEPS || h->scratch > SIZE_MAX ||
        memcmp(data + sizeof *h, key, key_bytes) != 0)
        return false;
    size_t at = sizeof *h + key_bytes;
    for (uint64_t i = 0; i < h->steps; i++) {
        if (h->bytes[i] == 0 || h->bytes[i] > size - at)
            return false;
        text[i] = data + at;
        at += h->bytes[i];
    }
    if (at != size)
        return false;
    const hash128 hash = hash_of(h, key, text);
    return hash.high == h->hash.high && hash.low == h->hash.low;
}

bool dnn_file_read(const ct_allocator *a, const char *path, const void *key, size_t key_bytes,
                   dnn_texts *texts)
{
    *texts = (dnn_texts){0};
    char *data;
    size_t size;
    if (file_read(a, path, MAX_BYTES, &data, &size, NULL) != CT_OK)
        return false;
    file_header h;
    const char *text[DNN_FILE_STEPS];
    bool good = parse(data, size, key, key_bytes, &h, text);
    if (good) {
        texts->steps = (int)h.steps;
        texts->scratch = h.scratch;
    }
    for (int i = 0; i < texts->steps && good; i++) {
        texts->bytes[i] = h.bytes[i];
        texts->text[i] = mem_strndup(a, text[i], h.bytes[i]);
        good = texts->text[i] != NULL;
    }
    mem_free(a, data);
    if (!good)
        dnn_texts_free(a, texts);
    return good;
}

ct_status dnn_file_write(const char *path, const void *key, size_t key_bytes,
                         const dnn_texts *texts, ct_error *error)
{
    file_header h = {.magic = MAGIC,
                     .steps = (uint64_t)texts->steps,
                     .scratch = texts->scratch,
                     .key_bytes = key_bytes};
    const char *text[DNN_FILE_STEPS] = {NULL};
    for (int i = 0; i < texts->steps; i++) {
        h.bytes[i] = texts->bytes[i];
        text[i] = texts->text[i];
    }
    h.hash = hash_of(&h, key, text);
    file_output out;
    const ct_status status = file_output_open(&out, path, error);
    if (status != CT_OK)
        return status;
    fwrite(&h, sizeof h, 1, out.stream);
    fwrite(key, 1, key_bytes, out.stream);
    for (int i = 0; i < texts->steps; i++)
        fwrite(text[i], 1, texts->bytes[i], out.stream);
    return file_output_commit(&out, error); /* tells of what failed above */
}
