/* A file image through the readers of JPEG and WebP files, and of Exif data. Memory is limited, so
 * that large pictures also try the paths of short memory. */
#include "core/mem.h"
#include "io/exif.h"
#include "io/picture.h"

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ct_allocator a = {NULL, limited_alloc, limited_free};
    uint8_t *rgb;
    int width = 0, height = 0;
    ct_error error = {0};
    ct_status status = picture_read_memory(&a, data, size, "input", &rgb, &width, &height, NULL, 0,
                                           NULL, &error);
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
    mem_free(&a, rgb);
    const int orientation = exif_orientation(data, size);
    if (orientation < 1 || orientation > 8)
        abort();
    return 0;
}
