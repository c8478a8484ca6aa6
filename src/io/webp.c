#include "io/webp.h"

#include "core/mem.h"
#include "io/exif.h"
#include "io/picture.h"

#include <webp/decode.h>
#include <webp/demux.h>

static int orientation_of(const unsigned char *data, size_t size)
{
    const WebPData file = {data, size};
    WebPDemuxer *demuxer = WebPDemux(&file);
    if (!demuxer)
        return 1;
    int orientation = 1;
    WebPChunkIterator chunk;
    if (WebPDemuxGetChunk(demuxer, "EXIF", 1, &chunk)) {
        orientation = exif_orientation(chunk.chunk.bytes, chunk.chunk.size);
        WebPDemuxReleaseChunkIterator(&chunk);
    }
    WebPDemuxDelete(demuxer);
    return orientation;
}

/* RGBA to RGB over white, rounded to nearest. */
static void flatten(uint8_t *rgb, const uint8_t *rgba, size_t pixels)
{
    for (size_t i = 0; i < pixels; i++, rgba += 4, rgb += 3)
        for (int c = 0; c < 3; c++)
            rgb[c] = (uint8_t)((rgba[c] * rgba[3] + 255 * (255 - rgba[3]) + 127) / 255);
}

/* The pixels in new memory. */
static ct_status decode(const ct_allocator *a, const unsigned char *data, size_t size,
                        const char *what, const WebPBitstreamFeatures *features, uint8_t **rgb,
                        ct_error *error)
{
    const size_t pixels = (size_t)features->width * (size_t)features->height;
    const size_t channels = features->has_alpha ? 4 : 3;
    const int stride = features->width * (int)channels;
    uint8_t *out = mem_array(a, pixels, 3);
    uint8_t *decoded = features->has_alpha ? mem_array(a, pixels, 4) : out;
    if (!out || !decoded) {
        mem_free(a, out);
        if (features->has_alpha)
            mem_free(a, decoded);
        return error_memory(error, pixels * channels, "the picture");
    }
    const bool whole = (features->has_alpha ? WebPDecodeRGBAInto : WebPDecodeRGBInto)(
                           data, size, decoded, pixels * channels, stride) != NULL;
    if (whole && features->has_alpha)
        flatten(out, decoded, pixels);
    if (features->has_alpha)
        mem_free(a, decoded);
    if (!whole) {
        mem_free(a, out);
        return error_set(error, CT_EFORMAT, "%s is a damaged or truncated WebP file", what);
    }
    *rgb = out;
    return CT_OK;
}

ct_status webp_read_memory(const ct_allocator *a, const unsigned char *data, size_t size,
                           const char *what, uint8_t **rgb, int *width, int *height,
                           ct_error *error)
{
    *rgb = NULL;
    WebPBitstreamFeatures features;
    if (WebPGetFeatures(data, size, &features) != VP8_STATUS_OK)
        return error_set(error, CT_EFORMAT, "%s is a damaged or truncated WebP file", what);
    if (features.has_animation)
        return error_set(error, CT_EUNSUPPORTED, "%s is animated; give a single picture", what);
    *width = features.width;
    *height = features.height;
    ct_status status =
        picture_check_sides(what, (uint64_t)features.width, (uint64_t)features.height, error);
    if (status == CT_OK)
        status = decode(a, data, size, what, &features, rgb, error);
    if (status == CT_OK)
        status = exif_turn(a, orientation_of(data, size), rgb, width, height, error);
    if (status != CT_OK) {
        mem_free(a, *rgb);
        *rgb = NULL;
    }
    return status;
}
