/* The file of choices: a header of 40 bytes, then records as they are in memory. It is written and
 * read on one machine, so byte order is no question. */
#include "nn/cuda/blas_file.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/mem.h"

#include <string.h>

#define MAGIC "ctblas1"
/* 160 bytes each; a machine meets a few for each model and size of picture. */
#define MAX_CHOICES 32768

_Static_assert(sizeof(blas_key) == 96, "keys are compared as bytes: there must be no padding");
_Static_assert(sizeof(blas_choice) == 160, "records of the file");

typedef struct file_header {
    char magic[8];
    uint64_t record_bytes, count;
    hash128 hash; /* of the records */
} file_header;

/* Finds damage, nothing more. */
static hash128 hash_of(const void *data, size_t size)
{
    hash128 hash = hash_begin();
    hash_add(&hash, data, size);
    return hash;
}

void blas_file_read(const ct_allocator *a, const char *path, blas_choice **choices, size_t *count)
{
    *choices = NULL;
    *count = 0;
    char *data;
    size_t size;
    const size_t maximum = sizeof(file_header) + MAX_CHOICES * sizeof(blas_choice);
    if (file_read(a, path, maximum, &data, &size, NULL) != CT_OK)
        return;
    file_header h = {0};
    if (size >= sizeof h)
        memcpy(&h, data, sizeof h);
    const bool whole = memcmp(h.magic, MAGIC, sizeof h.magic) == 0 &&
                       h.record_bytes == sizeof(blas_choice) && h.count > 0 &&
                       h.count <= MAX_CHOICES && size == sizeof h + h.count * sizeof(blas_choice);
    const hash128 hash = whole ? hash_of(data + sizeof h, size - sizeof h) : (hash128){0, 0};
    if (whole && hash.high == h.hash.high && hash.low == h.hash.low) {
        *choices = mem_array(a, h.count, sizeof(blas_choice));
        if (*choices) {
            memcpy(*choices, data + sizeof h, size - sizeof h);
            *count = h.count;
        }
    }
    mem_free(a, data);
}

static bool holds(const blas_choice *choices, size_t count, const blas_key *key)
{
    for (size_t i = 0; i < count; i++)
        if (memcmp(&choices[i].key, key, sizeof *key) == 0)
            return true;
    return false;
}

ct_status blas_file_add(const ct_allocator *a, const char *path, const blas_choice *choices,
                        size_t count, ct_error *error)
{
    blas_choice *old;
    size_t old_count;
    blas_file_read(a, path, &old, &old_count);
    blas_choice *all = mem_array(a, old_count + count, sizeof *all);
    if (!all) {
        mem_free(a, old);
        return error_memory(error, (old_count + count) * sizeof *all, path);
    }
    file_header h = {.magic = MAGIC, .record_bytes = sizeof *all, .count = old_count};
    if (old_count)
        memcpy(all, old, old_count * sizeof *all);
    mem_free(a, old);
    for (size_t i = 0; i < count && h.count < MAX_CHOICES; i++)
        if (!holds(all, old_count, &choices[i].key))
            all[h.count++] = choices[i];
    ct_status status = CT_OK;
    if (h.count > old_count) {
        h.hash = hash_of(all, h.count * sizeof *all);
        file_output out;
        status = file_output_open(&out, path, error);
        if (status == CT_OK) {
            fwrite(&h, sizeof h, 1, out.stream);
            fwrite(all, sizeof *all, h.count, out.stream);
            status = file_output_commit(&out, error); /* tells of what failed above */
        }
    }
    mem_free(a, all);
    return status;
}
