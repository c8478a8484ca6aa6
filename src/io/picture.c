#include "io/picture.h"

#include "core/mem.h"
#include "io/exif.h"
#include "io/jpeg.h"
#include "io/webp.h"

#include <inttypes.h>
#include <string.h>

ct_status picture_check_sides(const char *what, uint64_t width, uint64_t height, ct_error *error)
{
    if (width < 1 || height < 1)
        return error_set(error, CT_EFORMAT, "%s: the picture has no pixels", what);
    if (width > PICTURE_MAX_SIDE || height > PICTURE_MAX_SIDE ||
        width * height > PICTURE_MAX_PIXELS)
        return error_set(error, CT_EUNSUPPORTED,
                         "%s: the picture has %" PRIu64 " x %" PRIu64 " pixels, which is too large",
                         what, width, height);
    return CT_OK;
}

static bool begins(const unsigned char *data, size_t size, size_t at, const char *text,
                   size_t length)
{
    return size >= at + length && !memcmp(data + at, text, length);
}

/* The data of the first chunk of a PNG with this name; NULL where there is none. */
static const unsigned char *find_chunk(const unsigned char *data, size_t size, const char *name,
                                       size_t *found)
{
    for (size_t at = 8; at + 8 <= size;) {
        const uint32_t length = (uint32_t)data[at] << 24 | (uint32_t)data[at + 1] << 16 |
                                (uint32_t)data[at + 2] << 8 | data[at + 3];
        if (length > size - at - 8)
            return NULL;
        *found = length;
        if (!memcmp(data + at + 4, name, 4))
            return data + at + 8;
        at += 12 + (size_t)length;
    }
    return NULL;
}

static ct_status read_png(const ct_allocator *a, const unsigned char *data, size_t size,
                          const char *what, uint8_t **rgb, int *width, int *height,
                          const char *const *keys, int key_count, char **found, ct_error *error)
{
    size_t length;
    if (find_chunk(data, size, "acTL", &length))
        return error_set(error, CT_EUNSUPPORTED, "%s is animated; give a single picture", what);
    ct_status status =
        png_read_memory(a, data, size, what, rgb, width, height, keys, key_count, found, error);
    const unsigned char *exif = find_chunk(data, size, "eXIf", &length);
    if (status == CT_OK && exif)
        status = exif_turn(a, exif_orientation(exif, length), rgb, width, height, error);
    if (status == CT_OK)
        return CT_OK;
    mem_free(a, *rgb);
    *rgb = NULL;
    for (int i = 0; i < key_count; i++) {
        mem_free(a, found[i]);
        found[i] = NULL;
    }
    return status;
}

/* The name of a format that we know and do not read; NULL: none. */
static const char *other_format(const unsigned char *data, size_t size)
{
    static const struct {
        size_t at, length;
        const char *text, *name;
    } formats[] = {
        {0, 4, "GIF8", "GIF"},      {0, 2, "BM", "BMP"},
        {0, 4, "II*\0", "TIFF"},    {0, 4, "MM\0*", "TIFF"},
        {4, 8, "ftypavif", "AVIF"}, {4, 8, "ftypheic", "HEIC"},
        {4, 8, "ftypmif1", "HEIF"}, {0, 2, "\xff\x0a", "JPEG XL"},
        {4, 4, "JXL ", "JPEG XL"},  {4, 8, "jP  \r\n\x87\n", "JPEG 2000"},
        {0, 4, "%PDF", "PDF"},
    };
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (begins(data, size, formats[i].at, formats[i].text, formats[i].length))
            return formats[i].name;
    return NULL;
}

ct_status picture_read_memory(const ct_allocator *a, const unsigned char *data, size_t size,
                              const char *what, uint8_t **rgb, int *width, int *height,
                              const char *const *keys, int key_count, char **found, ct_error *error)
{
    *rgb = NULL;
    for (int i = 0; i < key_count; i++)
        found[i] = NULL;
    if (begins(data, size, 0, "\xff\xd8\xff", 3))
        return jpeg_read_memory(a, data, size, what, rgb, width, height, error);
    if (begins(data, size, 0, "RIFF", 4) && begins(data, size, 8, "WEBP", 4))
        return webp_read_memory(a, data, size, what, rgb, width, height, error);
    if (begins(data, size, 0, "\x89PNG", 4))
        return read_png(a, data, size, what, rgb, width, height, keys, key_count, found, error);
    const char *name = other_format(data, size);
    if (name)
        return error_set(error, CT_EUNSUPPORTED, "%s is a %s file; PNG, JPEG and WebP can be read",
                         what, name);
    return error_set(error, CT_EFORMAT, "%s is no picture; PNG, JPEG and WebP can be read", what);
}
