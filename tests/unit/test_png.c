/* PNG files: every kind that the format knows against its definition, texts, hostile files. */
#include "test_support.h"

#include "core/mem.h"
#include "io/png.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

/* ---- A small encoder, so that the reader is not tested against the library that it uses ---- */

typedef struct bytes {
    unsigned char data[1 << 16];
    size_t size;
} bytes;

static void put(bytes *b, const void *data, size_t size)
{
    assert_true(b->size + size <= sizeof b->data);
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void put_u32(bytes *b, uint32_t v)
{
    put(b,
        (unsigned char[]){(unsigned char)(v >> 24), (unsigned char)(v >> 16),
                          (unsigned char)(v >> 8), (unsigned char)v},
        4);
}

static uint32_t crc32_of(const unsigned char *data, size_t size)
{
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int k = 0; k < 8; k++)
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
    }
    return crc ^ 0xffffffff;
}

static void put_chunk(bytes *b, const char *type, const void *data, size_t size)
{
    put_u32(b, (uint32_t)size);
    size_t start = b->size;
    put(b, type, 4);
    put(b, data, size);
    put_u32(b, crc32_of(b->data + start, b->size - start));
}

static void put_signature(bytes *b)
{
    put(b, "\x89PNG\r\n\x1a\n", 8);
}

static void put_header(bytes *b, uint32_t width, uint32_t height, int depth, int type,
                       int interlace)
{
    bytes h = {.size = 0};
    put_u32(&h, width);
    put_u32(&h, height);
    put(&h,
        (unsigned char[]){(unsigned char)depth, (unsigned char)type, 0, 0,
                          (unsigned char)interlace},
        5);
    put_chunk(b, "IHDR", h.data, h.size);
}

/* One stored block, which holds up to 65535 bytes. */
static void put_pixels(bytes *b, const bytes *raw)
{
    static bytes z;
    z.size = 0;
    put(&z, "\x78\x01\x01", 3);
    uint16_t n = (uint16_t)raw->size, m = (uint16_t)~n;
    put(&z,
        (unsigned char[]){(unsigned char)n, (unsigned char)(n >> 8), (unsigned char)m,
                          (unsigned char)(m >> 8)},
        4);
    put(&z, raw->data, raw->size);
    uint32_t s1 = 1, s2 = 0;
    for (size_t i = 0; i < raw->size; i++) {
        s1 = (s1 + raw->data[i]) % 65521;
        s2 = (s2 + s1) % 65521;
    }
    put_u32(&z, s2 << 16 | s1);
    put_chunk(b, "IDAT", z.data, z.size);
}

/* ---- Pictures of every kind ---- */

typedef struct kind {
    int type, depth, interlace;
    bool transparency; /* a tRNS chunk */
    uint32_t width, height;
} kind;

static unsigned hash(unsigned x, unsigned y, unsigned c)
{
    unsigned h = x * 2654435761u + y * 2246822519u + c * 3266489917u;
    h ^= h >> 15;
    h *= 2654435761u;
    return h >> 8;
}

static int channels_of(int type)
{
    return type == 2 ? 3 : type == 4 ? 2 : type == 6 ? 4 : 1;
}

static unsigned sample(const kind *k, unsigned x, unsigned y, unsigned c)
{
    return hash(x, y, c) & ((1u << k->depth) - 1);
}

/* The colour that a tRNS chunk makes transparent: that of the first pixel. */
static bool is_transparent(const kind *k, unsigned x, unsigned y)
{
    for (unsigned c = 0; c < (unsigned)channels_of(k->type); c++)
        if (sample(k, x, y, c) != sample(k, 0, 0, c))
            return false;
    return true;
}

/* tRNS of a palette may be shorter than the palette. */
static unsigned palette_alpha(const kind *k, unsigned index)
{
    return k->transparency && index < (1u << k->depth) - 1 ? hash(index, 7, 9) & 255 : 255;
}

static void put_samples(bytes *raw, const kind *k, unsigned x0, unsigned dx, unsigned y)
{
    put(raw, "", 1); /* filter: none */
    unsigned bits = 0, filled = 0;
    for (unsigned x = x0; x < k->width; x += dx)
        for (unsigned c = 0; c < (unsigned)channels_of(k->type); c++) {
            unsigned v = sample(k, x, y, c);
            if (k->depth == 16)
                put(raw, (unsigned char[]){(unsigned char)(v >> 8), (unsigned char)v}, 2);
            else {
                bits = bits << k->depth | v;
                filled += (unsigned)k->depth;
                if (filled == 8) {
                    put(raw, &(unsigned char){(unsigned char)bits}, 1);
                    bits = filled = 0;
                }
            }
        }
    if (filled)
        put(raw, &(unsigned char){(unsigned char)(bits << (8 - filled))}, 1);
}

static void put_passes(bytes *raw, const kind *k)
{
    static const unsigned adam7[7][4] = {{0, 8, 0, 8}, {4, 8, 0, 8}, {0, 4, 4, 8}, {2, 4, 0, 4},
                                         {0, 2, 2, 4}, {1, 2, 0, 2}, {0, 1, 1, 2}};
    if (!k->interlace) {
        for (unsigned y = 0; y < k->height; y++)
            put_samples(raw, k, 0, 1, y);
        return;
    }
    for (int p = 0; p < 7; p++)
        if (adam7[p][0] < k->width)
            for (unsigned y = adam7[p][2]; y < k->height; y += adam7[p][3])
                put_samples(raw, k, adam7[p][0], adam7[p][1], y);
}

static void make_picture(bytes *b, const kind *k)
{
    b->size = 0;
    put_signature(b);
    put_header(b, k->width, k->height, k->depth, k->type, k->interlace);
    bytes chunk = {.size = 0};
    if (k->type == 3) {
        for (unsigned i = 0; i < 1u << k->depth; i++)
            for (unsigned c = 0; c < 3; c++)
                put(&chunk, &(unsigned char){(unsigned char)hash(i, c, 5)}, 1);
        put_chunk(b, "PLTE", chunk.data, chunk.size);
    }
    chunk.size = 0;
    if (k->transparency && k->type == 3)
        for (unsigned i = 0; i < (1u << k->depth) - 1; i++)
            put(&chunk, &(unsigned char){(unsigned char)palette_alpha(k, i)}, 1);
    else if (k->transparency)
        for (unsigned c = 0; c < (unsigned)channels_of(k->type); c++) {
            unsigned v = sample(k, 0, 0, c);
            put(&chunk, (unsigned char[]){(unsigned char)(v >> 8), (unsigned char)v}, 2);
        }
    if (k->transparency)
        put_chunk(b, "tRNS", chunk.data, chunk.size);
    static bytes raw;
    raw.size = 0;
    put_passes(&raw, k);
    put_pixels(b, &raw);
    put_chunk(b, "IEND", "", 0);
}

static unsigned scale(const kind *k, unsigned v)
{
    return k->depth == 16 ? v >> 8 : v * 255 / ((1u << k->depth) - 1);
}

/* The definition: 8-bit colour, alpha over white. */
static unsigned expected(const kind *k, unsigned x, unsigned y, unsigned c)
{
    unsigned colour, alpha = 255;
    if (k->type == 3) {
        unsigned index = sample(k, x, y, 0);
        colour = hash(index, c, 5) & 255;
        alpha = palette_alpha(k, index);
    } else {
        bool grey = k->type == 0 || k->type == 4;
        colour = scale(k, sample(k, x, y, grey ? 0 : c));
        if (k->type >= 4)
            alpha = scale(k, sample(k, x, y, grey ? 1 : 3));
        else if (k->transparency)
            alpha = is_transparent(k, x, y) ? 0 : 255;
    }
    return (colour * alpha + 255 * (255 - alpha) + 127) / 255;
}

static ct_status read_plain(const ct_allocator *a, const void *data, size_t size, uint8_t **rgb,
                            int *width, int *height, ct_error *error)
{
    unsigned char *exact = malloc(size ? size : 1);
    assert_non_null(exact);
    memcpy(exact, data, size);
    ct_status status =
        png_read_memory(a, exact, size, "x.png", rgb, width, height, NULL, 0, NULL, error);
    free(exact);
    return status;
}

static void check_kind(const kind *k)
{
    static bytes b;
    make_picture(&b, k);
    uint8_t *rgb;
    int width, height;
    ct_error error;
    test_ok(read_plain(&mem_default, b.data, b.size, &rgb, &width, &height, &error), &error);
    assert_int_equal(width, k->width);
    assert_int_equal(height, k->height);
    for (unsigned y = 0; y < k->height; y++)
        for (unsigned x = 0; x < k->width; x++)
            for (unsigned c = 0; c < 3; c++)
                if (rgb[(y * k->width + x) * 3 + c] != expected(k, x, y, c))
                    fail_msg("type %d depth %d interlace %d tRNS %d: pixel %u,%u channel %u: %u "
                             "instead of %u",
                             k->type, k->depth, k->interlace, k->transparency, x, y, c,
                             rgb[(y * k->width + x) * 3 + c], expected(k, x, y, c));
    mem_free(&mem_default, rgb);
}

static void reads_every_kind(void **state)
{
    (void)state;
    static const int kinds[][2] = {{0, 1}, {0, 2}, {0, 4}, {0, 8}, {0, 16}, {2, 8}, {2, 16}, {3, 1},
                                   {3, 2}, {3, 4}, {3, 8}, {4, 8}, {4, 16}, {6, 8}, {6, 16}};
    static const uint32_t sizes[][2] = {{1, 1}, {2, 9}, {5, 3}, {8, 8}, {9, 1}, {17, 13}, {33, 40}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int variant = 0; variant < 4; variant++) {
                kind k = {kinds[i][0], kinds[i][1], variant & 1,
                          variant > 1, sizes[s][0], sizes[s][1]};
                if (k.transparency && k.type >= 4)
                    continue;
                check_kind(&k);
            }
}

/* ---- Writing ---- */

static void fill(uint8_t *rgb, int width, int height)
{
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            uint8_t *p = rgb + ((size_t)y * (size_t)width + (size_t)x) * 3;
            p[0] = (uint8_t)(x * 3);
            p[1] = (uint8_t)(y * 5 + x);
            p[2] = (uint8_t)hash((unsigned)x, (unsigned)y, 0);
        }
}

static uint32_t read_u32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static bool has_chunk(const unsigned char *data, size_t size, const char *type)
{
    for (size_t at = 8; at + 12 <= size;) {
        size_t length = read_u32(data + at);
        if (!memcmp(data + at + 4, type, 4))
            return true;
        at += length + 12;
    }
    return false;
}

/* Noise does not shrink, zeros shrink most, fill is between. */
enum { FILL, NOISE, ZEROS, CONTENTS };

static uint8_t *make_pixels(int width, int height, int content)
{
    size_t count = (size_t)width * (size_t)height * 3;
    uint8_t *rgb = calloc(count, 1);
    assert_non_null(rgb);
    if (content == FILL)
        fill(rgb, width, height);
    for (size_t i = 0; content == NOISE && i < count; i++)
        rgb[i] = (uint8_t)hash((unsigned)i, 7, 9);
    return rgb;
}

/* As strict as can be: checksums, the order of chunks, one zlib stream that ends with the data, as
 * many bytes as the rows have, a known filter before each. */
static void check_file(const unsigned char *data, size_t size, int width, int height)
{
    unsigned char *stream = malloc(size);
    assert_non_null(stream);
    size_t at = 8, joined = 0, chunks = 0;
    const char *before = "";
    while (at < size) {
        assert_true(size - at >= 12);
        size_t length = read_u32(data + at);
        const char *type = (const char *)data + at + 4;
        assert_true(length <= size - at - 12);
        assert_int_equal(read_u32(data + at + 8 + length), crc32_of(data + at + 4, length + 4));
        assert_true(!memcmp(type, "IHDR", 4) == (chunks == 0));
        assert_true(!memcmp(type, "IEND", 4) == (at + 12 + length == size));
        if (!memcmp(type, "IDAT", 4)) {
            assert_true(length > 0);
            memcpy(stream + joined, data + at + 8, length);
            joined += length;
        }
        if (!memcmp(type, "IEND", 4))
            assert_memory_equal(before, "IDAT", 4);
        before = type;
        at += 12 + length;
        chunks++;
    }
    size_t stride = 3 * (size_t)width + 1, expected_size = stride * (size_t)height;
    unsigned char *raw = malloc(expected_size + 1);
    assert_non_null(raw);
    z_stream z = {.next_in = stream,
                  .avail_in = (uInt)joined,
                  .next_out = raw,
                  .avail_out = (uInt)expected_size + 1};
    assert_int_equal(inflateInit(&z), Z_OK);
    assert_int_equal(inflate(&z, Z_FINISH), Z_STREAM_END); /* Adler-32 is right, too */
    assert_int_equal(z.avail_in, 0);
    assert_int_equal(z.total_out, expected_size);
    assert_int_equal(inflateEnd(&z), Z_OK);
    for (size_t y = 0; y < (size_t)height; y++)
        assert_true(raw[y * stride] <= 4);
    free(raw);
    free(stream);
}

/* Writes without a pool and with each of them: the same bytes, which hold the pixels. */
static void check_picture(const char *path, int w, int h, int content, pool *const *pools,
                          size_t pool_count)
{
    uint8_t *rgb = make_pixels(w, h, content), *again;
    size_t size, other_size;
    int width, height;
    ct_error error;
    test_ok(png_write(&mem_default, NULL, path, rgb, w, h, NULL, 0, &error), &error);
    unsigned char *data = test_read_file(path, &size);
    check_file(data, size, w, h);
    test_ok(read_plain(&mem_default, data, size, &again, &width, &height, &error), &error);
    assert_int_equal(width, w);
    assert_int_equal(height, h);
    test_bytes_equal(again, rgb, (size_t)w * (size_t)h * 3);
    mem_free(&mem_default, again);
    for (size_t i = 0; i < pool_count; i++) {
        test_heap dirty; /* zlib's memory is not zero here */
        test_heap_init(&dirty, 0);
        test_ok(png_write(&dirty.allocator, pools[i], path, rgb, w, h, NULL, 0, &error), &error);
        assert_int_equal(dirty.live, 0);
        unsigned char *other = test_read_file(path, &other_size);
        assert_int_equal(other_size, size);
        test_bytes_equal(other, data, size);
        free(other);
    }
    free(data);
    free(rgb);
}

static void writes_pictures(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "a.png");
    static const int threads[] = {1, 2, 3, 7};
    pool *pools[4];
    ct_error error;
    for (size_t i = 0; i < 4; i++)
        test_ok(pool_create(&pools[i], &mem_default, threads[i], &error), &error);
    /* A band is 64 KiB: from less than one row (30000 pixels) and one band to more bands than are
     * in memory at once (900 x 700: 30, one thread keeps 4), whole ones at the end (2184 x 20: ten
     * rows each) and not. */
    static const int sizes[][2] = {{1, 1},     {2, 1},     {1, 2},    {1, 700},  {700, 1},
                                   {1, 30000}, {3, 2},     {64, 48},  {257, 31}, {2184, 20},
                                   {157, 213}, {30000, 5}, {900, 700}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int content = 0; content < CONTENTS; content++)
            check_picture(path, sizes[i][0], sizes[i][1], content, pools, 4);
    for (unsigned i = 0; i < 40; i++) {
        int w = 1 + (int)(hash(i, 1, 2) % 300), h = 1 + (int)(hash(i, 3, 4) % 300);
        check_picture(path, w, h, (int)(i % CONTENTS), pools, 4);
    }
    assert_int_equal(test_folder_count(&folder), 1);
    for (size_t i = 0; i < 4; i++)
        pool_free(pools[i]);
    test_folder_remove(&folder);
}

static void keeps_texts(void **state)
{
    (void)state;
    static const struct {
        const char *text, *chunk, *read; /* read: NULL where it equals text */
    } cases[] = {
        {"", "tEXt", NULL},
        {"plain\nlines", "tEXt", NULL},
        {"caf\xc3\xa9 \xc2\xa0 \xc3\xbf", "tEXt", NULL},
        {"\xe4\xb8\xad\xe6\x96\x87", "iTXt", NULL},
        {"\xf0\x9f\x8d\x8e", "iTXt", NULL},
        {"a\ttab", "iTXt", NULL},
        {"carriage\r\n", "iTXt", NULL},
        {"\x7f", "iTXt", NULL},
        {"\xc2\x80", "iTXt", NULL},
        {"broken \xff\xc3", "iTXt", "broken \xef\xbf\xbd\xef\xbf\xbd"},
    };
    static const char *const keys[] = {"none", "parameters", "calotype"};
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "a.png");
    const uint8_t rgb[3] = {1, 2, 3};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        png_note texts[] = {{"parameters", cases[i].text}};
        ct_error error;
        test_ok(png_write(&mem_default, NULL, path, rgb, 1, 1, texts, 1, &error), &error);
        size_t size;
        unsigned char *data = test_read_file(path, &size);
        if (!has_chunk(data, size, cases[i].chunk))
            fail_msg("case %zu is not in a chunk %s", i, cases[i].chunk);
        uint8_t *again;
        int width, height;
        char *found[3];
        test_ok(png_read_memory(&mem_default, data, size, "x", &again, &width, &height, keys, 3,
                                found, &error),
                &error);
        assert_null(found[0]);
        assert_string_equal(found[1], cases[i].read ? cases[i].read : cases[i].text);
        assert_null(found[2]);
        mem_free(&mem_default, found[1]);
        mem_free(&mem_default, again);
        free(data);
    }
    test_folder_remove(&folder);
}

static void reads_text_behind_the_pixels(void **state)
{
    (void)state;
    static bytes b;
    kind k = {.type = 0, .depth = 8, .width = 1, .height = 1};
    make_picture(&b, &k);
    b.size -= 12; /* IEND */
    put_chunk(&b, "tEXt", "key\0first", 9);
    put_chunk(&b, "tEXt", "key\0\xe9", 5);
    put_chunk(&b, "IEND", "", 0);
    uint8_t *rgb;
    int width, height;
    char *found[1];
    ct_error error;
    test_ok(png_read_memory(&mem_default, b.data, b.size, "x", &rgb, &width, &height,
                            (const char *const[]){"key"}, 1, found, &error),
            &error);
    assert_string_equal(found[0], "\xc3\xa9");
    mem_free(&mem_default, found[0]);
    mem_free(&mem_default, rgb);
}

static void refuses_bad_output(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const uint8_t rgb[3] = {1, 2, 3};
    ct_error error = {0};
    const char *path = test_path(&folder, "a.png");
    static const char *const bad[] = {"", " a", "a ", "a  b", "caf\xc3\xa9", "a\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        test_error(
            png_write(&mem_default, NULL, path, rgb, 1, 1, &(png_note){bad[i], "x"}, 1, &error),
            CT_EINVAL, &error, "cannot be the key");
    test_error(png_write(&mem_default, NULL, path, rgb, 0, 1, NULL, 0, &error), CT_EINVAL, &error,
               "0 x 1");
    test_error(
        png_write(&mem_default, NULL, test_path(&folder, "no/a.png"), rgb, 1, 1, NULL, 0, &error),
        CT_EIO, &error, "No such file");
    test_error(png_write(&mem_default, NULL, folder.path, rgb, 1, 1, NULL, 0, &error), CT_EIO,
               &error, "directory");
    assert_int_equal(test_folder_count(&folder), 0);
    /* A disk without room. */
    static uint8_t large[256 * 256 * 3];
    fill(large, 256, 256);
    test_error(png_write(&mem_default, NULL, "/dev/full", large, 256, 256, NULL, 0, &error), CT_EIO,
               &error, "No space left");
    test_ok(png_write(&mem_default, NULL, "/dev/null", large, 256, 256, NULL, 0, &error), &error);
    test_folder_remove(&folder);
}

/* ---- Hostile files ---- */

static ct_status read_bytes(const bytes *b, ct_error *error)
{
    uint8_t *rgb;
    int width, height;
    test_heap heap;
    test_heap_init(&heap, 0);
    ct_status status = read_plain(&heap.allocator, b->data, b->size, &rgb, &width, &height, error);
    assert_true((rgb != NULL) == (status == CT_OK));
    mem_free(&heap.allocator, rgb);
    assert_int_equal(heap.live, 0);
    return status;
}

static void refuses_hostile_files(void **state)
{
    (void)state;
    static bytes b, raw;
    ct_error error = {0};
    b.size = 0;
    test_error(read_bytes(&b, &error), CT_EFORMAT, &error, "x.png is not a PNG file");
    put(&b, "GIF89a..", 8);
    test_error(read_bytes(&b, &error), CT_EFORMAT, &error, "x.png is not a PNG file");
    static const struct {
        uint32_t width, height;
        int depth, type, interlace;
        ct_status status;
        const char *message;
    } cases[] = {
        {0, 1, 8, 2, 0, CT_EFORMAT, "Invalid IHDR"},
        {1, 0, 8, 2, 0, CT_EFORMAT, "Invalid IHDR"},
        {1, 1, 3, 0, 0, CT_EFORMAT, "Invalid IHDR"},
        {1, 1, 8, 5, 0, CT_EFORMAT, "Invalid IHDR"},
        {1, 1, 8, 2, 2, CT_EFORMAT, "Invalid IHDR"},
        {1, 1, 8, 3, 0, CT_EFORMAT, "PLTE"},
        {32769, 1, 8, 2, 0, CT_EUNSUPPORTED, "32769 x 1 pixels"},
        {0x7fffffff, 0x7fffffff, 8, 2, 0, CT_EUNSUPPORTED, "pixels"},
        {0xffffffff, 1, 8, 2, 0, CT_EUNSUPPORTED, "pixels"},
        {16385, 16385, 1, 0, 0, CT_EUNSUPPORTED, "pixels"},
        {16384, 16384, 8, 2, 0, CT_EFORMAT, "it ends too early"},
        {16384, 16384, 1, 0, 1, CT_EFORMAT, "it ends too early"},
        {100, 100, 8, 2, 0, CT_EFORMAT, "x.png cannot be read as PNG"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        b.size = raw.size = 0;
        put_signature(&b);
        put_header(&b, cases[i].width, cases[i].height, cases[i].depth, cases[i].type,
                   cases[i].interlace);
        put(&raw, "\0\1\2\3", 4);
        put_pixels(&b, &raw);
        put_chunk(&b, "IEND", "", 0);
        test_error(read_bytes(&b, &error), cases[i].status, &error, cases[i].message);
    }
}

static void survives_cuts_and_flips(void **state)
{
    (void)state;
    static bytes whole, b;
    static const kind kinds[] = {{3, 4, 1, true, 9, 5}, {6, 16, 0, false, 3, 3}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        make_picture(&whole, &kinds[i]);
        for (size_t n = 0; n < whole.size; n++) {
            ct_error error = {0};
            b = whole;
            b.size = n;
            assert_int_equal(read_bytes(&b, &error), CT_EFORMAT);
            b = whole;
            b.data[n] ^= (unsigned char)(1u << n % 8);
            read_bytes(&b, &error);
        }
    }
}

/* ---- Short memory ---- */

typedef struct job {
    const char *path;
    pool *threads;
    uint8_t rgb[40 * 30 * 3];
} job;

static ct_status write_once(const ct_allocator *a, void *user, ct_error *error)
{
    const job *j = user;
    const png_note texts[] = {{"calotype", "{}"}, {"parameters", "\xe4\xb8\xad"}};
    return png_write(a, NULL, j->path, j->rgb, 40, 30, texts, 2, error);
}

/* Several bands on several threads. */
static ct_status write_many(const ct_allocator *a, void *user, ct_error *error)
{
    const job *j = user;
    static uint8_t rgb[500 * 400 * 3];
    fill(rgb, 500, 400);
    return png_write(a, j->threads, j->path, rgb, 500, 400, NULL, 0, error);
}

static ct_status read_once(const ct_allocator *a, void *user, ct_error *error)
{
    const job *j = user;
    size_t size;
    unsigned char *data = test_read_file(j->path, &size);
    uint8_t *rgb;
    int width, height;
    char *found[2];
    static const char *const keys[] = {"parameters", "calotype"};
    ct_status status =
        png_read_memory(a, data, size, "x", &rgb, &width, &height, keys, 2, found, error);
    free(data);
    if (status == CT_OK) {
        assert_string_equal(found[0], "\xe4\xb8\xad");
        assert_string_equal(found[1], "{}");
        test_bytes_equal(rgb, j->rgb, sizeof j->rgb);
    } else {
        assert_null(rgb);
        assert_null(found[0]);
        assert_null(found[1]);
    }
    mem_free(a, rgb);
    mem_free(a, found[0]);
    mem_free(a, found[1]);
    return status;
}

static void survives_short_memory(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    static job j;
    j.path = test_path(&folder, "a.png");
    fill(j.rgb, 40, 30);
    ct_error error;
    test_ok(pool_create(&j.threads, &mem_default, 3, &error), &error);
    test_each_allocation(write_many, &j);
    pool_free(j.threads);
    test_each_allocation(write_once, &j);
    assert_int_equal(test_folder_count(&folder), 1);
    test_each_allocation(read_once, &j);
    test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_every_kind),
        cmocka_unit_test(writes_pictures),
        cmocka_unit_test(keeps_texts),
        cmocka_unit_test(reads_text_behind_the_pixels),
        cmocka_unit_test(refuses_bad_output),
        cmocka_unit_test(refuses_hostile_files),
        cmocka_unit_test(survives_cuts_and_flips),
        cmocka_unit_test(survives_short_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
