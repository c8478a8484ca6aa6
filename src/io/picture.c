#include "io/picture.h"

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

/* Whether the chunk acTL comes before the pixels. */
static bool is_animated_png(const unsigned char *data, size_t size)
{
    for (size_t at = 8; at + 8 <= size;) {
        const uint32_t length = (uint32_t)data[at] << 24 | (uint32_t)data[at + 1] << 16 |
                                (uint32_t)data[at + 2] << 8 | data[at + 3];
        if (!memcmp(data + at + 4, "acTL", 4))
            return true;
        if (!memcmp(data + at + 4, "IDAT", 4) || length > size - at - 8)
            return false;
        at += 12 + (size_t)length;
    }
    return false;
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
    if (begins(data, size, 0, "\x89PNG", 4)) {
        if (is_animated_png(data, size))
            return error_set(error, CT_EUNSUPPORTED, "%s is animated; give a single picture", what);
        return png_read_memory(a, data, size, what, rgb, width, height, keys, key_count, found,
                               error);
    }
    const char *name = other_format(data, size);
    if (name)
        return error_set(error, CT_EUNSUPPORTED, "%s is a %s file; PNG, JPEG and WebP can be read",
                         what, name);
    return error_set(error, CT_EFORMAT, "%s is no picture; PNG, JPEG and WebP can be read", what);
}
