/* Exif 2.32, section 4.6.4: tag 0x0112 of the first directory. */
#include "io/exif.h"

#include "core/mem.h"

#include <string.h>

#define TAG_ORIENTATION 0x0112u
#define TYPE_SHORT 3u
#define ENTRY_BYTES 12u

typedef struct reader {
    const unsigned char *data;
    size_t size;
    bool big; /* the first byte of a number is the highest */
} reader;

/* 0 behind the end. */
static uint32_t number(const reader *r, size_t at, size_t bytes)
{
    uint32_t value = 0;
    if (at > r->size || bytes > r->size - at)
        return 0;
    for (size_t i = 0; i < bytes; i++)
        value |= (uint32_t)r->data[at + i] << 8 * (r->big ? bytes - 1 - i : i);
    return value;
}

int exif_orientation(const unsigned char *data, size_t size)
{
    static const unsigned char prefix[6] = "Exif\0";
    if (size >= sizeof prefix && !memcmp(data, prefix, sizeof prefix)) {
        data += sizeof prefix;
        size -= sizeof prefix;
    }
    reader r = {data, size, false};
    if (size < 8 || (memcmp(data, "II*\0", 4) != 0 && memcmp(data, "MM\0*", 4) != 0))
        return 1;
    r.big = data[0] == 'M';
    const size_t directory = number(&r, 4, 4);
    const uint32_t entries = number(&r, directory, 2);
    for (uint32_t i = 0; i < entries; i++) {
        const size_t at = directory + 2 + (size_t)i * ENTRY_BYTES;
        if (at >= size)
            break;
        if (number(&r, at, 2) != TAG_ORIENTATION || number(&r, at + 2, 2) != TYPE_SHORT)
            continue;
        const uint32_t value = number(&r, at + 8, 2);
        return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

ct_status exif_turn(const ct_allocator *a, int orientation, uint8_t **rgb, int *width, int *height,
                    ct_error *error)
{
    if (orientation <= 1 || orientation > 8)
        return CT_OK;
    const size_t w = (size_t)*width, h = (size_t)*height;
    const bool turned = orientation >= 5; /* rows become columns */
    const size_t out_w = turned ? h : w, out_h = turned ? w : h;
    uint8_t *out = mem_array(a, w * h, 3);
    if (!out)
        return error_memory(error, w * h * 3, "the picture");
    /* Which edge of the stored picture is left, and which is on top. */
    const bool from_right =
        orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool from_bottom =
        orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    for (size_t y = 0; y < out_h; y++)
        for (size_t x = 0; x < out_w; x++) {
            const size_t column = turned ? y : x, row = turned ? x : y;
            const size_t from_x = from_right ? w - 1 - column : column;
            const size_t from_y = from_bottom ? h - 1 - row : row;
            memcpy(out + 3 * (y * out_w + x), *rgb + 3 * (from_y * w + from_x), 3);
        }
    mem_free(a, *rgb);
    *rgb = out;
    *width = (int)out_w;
    *height = (int)out_h;
    return CT_OK;
}
