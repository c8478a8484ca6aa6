/* A file image through the reader of PNG files, as it is and with the checksums of its chunks put
 * right, because no mutation would get past them. Memory is limited, so that large pictures also
 * try the paths of short memory. */
#include "core/mem.h"
#include "core/utf8.h"
#include "io/png.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LARGEST ((size_t)16 << 20)

static void *limited_alloc(void *user, size_t size)
{
    (void)user;
    return size > LARGEST ? NULL : malloc(size);
}

static void limited_free(void *user, void *pointer)
{
    (void)user;
    free(pointer);
}

static void read_image(const uint8_t *data, size_t size)
{
    static const ct_allocator a = {NULL, limited_alloc, limited_free};
    static const char *const keys[] = {"calotype", "parameters"};
    uint8_t *rgb;
    int width, height;
    char *found[2];
    ct_error error = {0};
    ct_status status = png_read_memory(&a, data, size, "input", &rgb, &width, &height, keys, 2,
                                       found, &error);
    if ((status == CT_OK) != (rgb != NULL) || status != error.code)
        abort();
    if (rgb) {
        /* A copy touches every byte. */
        size_t bytes = (size_t)width * (size_t)height * 3;
        uint8_t *copy = malloc(bytes);
        if (copy)
            memcpy(copy, rgb, bytes);
        free(copy);
    }
    for (int k = 0; k < 2; k++) {
        if (found[k] && !utf8_valid(found[k], strlen(found[k])))
            abort();
        mem_free(&a, found[k]);
    }
    mem_free(&a, rgb);
}

static uint32_t checksum(const uint8_t *data, size_t size)
{
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int k = 0; k < 8; k++)
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
    }
    return crc ^ 0xffffffff;
}

static void repair(uint8_t *data, size_t size)
{
    for (size_t at = 8; size >= 12 && at <= size - 12;) {
        size_t length = (size_t)data[at] << 24 | (size_t)data[at + 1] << 16 |
                        (size_t)data[at + 2] << 8 | data[at + 3];
        if (length > size - 12 - at)
            return;
        uint32_t crc = checksum(data + at + 4, length + 4);
        for (int i = 0; i < 4; i++)
            data[at + 8 + length + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
        at += 12 + length;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_image(data, size);
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy)
        return 0;
    if (size)
        memcpy(copy, data, size);
    repair(copy, size);
    read_image(copy, size);
    free(copy);
    return 0;
}
