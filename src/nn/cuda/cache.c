/* A file of the cache is a header and the code. The numbers are this machine's own: a cache is not
 * carried about. */
#include "nn/cuda/cache.h"
#include "core/file.h"
#include "core/folder.h"
#include "core/mem.h"
#include "core/strbuf.h"

#include <string.h>

#define MAX_BYTES ((size_t)256 << 20)

typedef struct cache_header {
    char magic[8];
    hash128 key;
    uint64_t compiler, bytes; /* bytes: of the code */
    hash128 sum;              /* over what is above, and the code */
} cache_header;

static const char magic[8] = "CTCUBIN1";

static hash128 sum_of(const cache_header *header, const void *code, size_t bytes)
{
    hash128 sum = hash_begin();
    hash_add(&sum, header, offsetof(cache_header, sum));
    hash_add(&sum, code, bytes);
    return sum;
}

static bool same(const hash128 *a, const hash128 *b)
{
    return a->high == b->high && a->low == b->low;
}

char *cuda_cache_path(const ct_allocator *a, const char *folder, const char *name,
                      const hash128 *key)
{
    char digits[HASH_DIGITS + 1];
    hash_print(key, digits);
    strbuf s;
    strbuf_init(&s, a, 4096);
    strbuf_printf(&s, "%s/%.*s-%s.cubin", folder, (int)strcspn(name, "."), name, digits);
    return strbuf_take(&s);
}

bool cuda_cache_is_file(const char *name)
{
    const size_t length = file_output_stem(name);
    const bool measured = !strncmp(name, "blas-", 5) || !strncmp(name, "dnn-", 4);
    return (length > 6 && !strncmp(name + length - 6, ".cubin", 6)) ||
           (measured && !strncmp(name + length - 4, ".bin", 4));
}

ct_status cuda_cache_read(const ct_allocator *a, const char *path, const hash128 *key, void **code,
                          size_t *bytes, ct_error *error)
{
    *code = NULL;
    *bytes = 0;
    char *data;
    size_t size;
    ct_status status = file_read(a, path, MAX_BYTES, &data, &size, error);
    if (status != CT_OK)
        return status;
    cache_header header = {0};
    if (size > sizeof header)
        memcpy(&header, data, sizeof header);
    const char *fault = NULL;
    if (size <= sizeof header || memcmp(header.magic, magic, sizeof magic) != 0)
        fault = "is no file of the cache";
    else if (header.bytes != size - sizeof header)
        fault = "is cut off";
    else if (!same(&header.key, key))
        fault = "was made from something else";
    else {
        const hash128 sum = sum_of(&header, data + sizeof header, size - sizeof header);
        if (!same(&header.sum, &sum))
            fault = "is damaged";
    }
    if (fault) {
        mem_free(a, data);
        return error_set(error, CT_EFORMAT, "%s %s", path, fault);
    }
    *bytes = size - sizeof header;
    memmove(data, data + sizeof header, *bytes + 1);
    *code = data;
    return CT_OK;
}

ct_status cuda_cache_write(const char *path, const hash128 *key, int compiler, const void *code,
                           size_t bytes, ct_error *error)
{
    cache_header header = {.key = *key, .compiler = (uint64_t)compiler, .bytes = bytes};
    memcpy(header.magic, magic, sizeof magic);
    header.sum = sum_of(&header, code, bytes);
    ct_status status = folder_create_parents(path, error);
    if (status != CT_OK)
        return status;
    file_output out;
    status = file_output_open(&out, path, error);
    if (status != CT_OK)
        return status;
    /* What fails here is told by file_output_commit. */
    fwrite(&header, 1, sizeof header, out.stream);
    fwrite(code, 1, bytes, out.stream);
    return file_output_commit(&out, error);
}
