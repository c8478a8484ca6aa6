/* libpng reports errors by longjmp. So that no variable is lost in the jump, everything that
 * changes between setjmp and a jump lives in a struct of the caller, and the functions that call
 * setjmp only pass its address on. */

#include <png.h>

#include "core/file.h"
#include "core/mem.h"
#include "core/strbuf.h"
#include "core/utf8.h"
#include "io/png.h"
#include "io/png_stream.h"

#include <errno.h>
#include <string.h>

#define MAX_SIDE 32768
#define MAX_PIXELS ((uint64_t)1 << 28)
#define MAX_CHUNK ((png_alloc_size_t)16 << 20) /* texts and profiles after decompression */
#define MAX_CHUNKS 256                         /* of texts and unknown ones */

#define DAMAGED "the file is damaged or incomplete"

/* What both directions share; libpng hands its address to the callbacks. */
typedef struct png_common {
    const ct_allocator *allocator;
    png_structp png;
    png_infop info;
    bool out_of_memory;
    int file_errno;    /* of a failed write */
    char message[128]; /* libpng's own, without context */
} png_common;

static void on_error(png_structp png, png_const_charp message)
{
    png_common *c = png_get_error_ptr(png);
    size_t length = strlen(message);
    if (length >= sizeof c->message)
        length = sizeof c->message - 1;
    memcpy(c->message, message, length);
    c->message[length] = 0;
    png_longjmp(png, 1);
}

/* What libpng merely warns of (unknown chunks, wrong profiles) does not change the pixels. */
static void on_warning(png_structp png, png_const_charp message)
{
    (void)png;
    (void)message;
}

static png_voidp on_alloc(png_structp png, png_alloc_size_t size)
{
    png_common *c = png_get_mem_ptr(png);
    void *p = mem_alloc(c->allocator, size);
    if (!p)
        c->out_of_memory = true;
    return p;
}

static void on_free(png_structp png, png_voidp pointer)
{
    png_common *c = png_get_mem_ptr(png);
    mem_free(c->allocator, pointer);
}

/* ---- Texts ---- */

static bool is_key(const char *key)
{
    size_t length = strlen(key);
    if (length < 1 || length > 79 || key[0] == ' ' || key[length - 1] == ' ')
        return false;
    for (size_t i = 0; i < length; i++)
        if (key[i] < 32 || key[i] > 126 || (key[i] == ' ' && key[i + 1] == ' '))
            return false;
    return true;
}

/* text as Latin-1 when that is possible and holds no control character but newline, which is all
 * that a tEXt chunk may hold; *latin1 tells. Otherwise as UTF-8 with U+FFFD for what is invalid. */
static void encode_text(strbuf *out, const char *text, bool *latin1)
{
    size_t length = strlen(text);
    *latin1 = true;
    for (size_t at = 0; at < length && *latin1;) {
        uint32_t point = utf8_next(text, length, &at);
        *latin1 = point <= 0xff && (point >= 0xa0 || (point >= 32 && point < 127) || point == '\n');
    }
    for (size_t at = 0; at < length;) {
        size_t start = at;
        uint32_t point = utf8_next(text, length, &at);
        if (*latin1)
            strbuf_add(out, &(unsigned char){(unsigned char)point}, 1);
        else if (point == UTF8_INVALID)
            strbuf_puts(out, UTF8_REPLACEMENT);
        else
            strbuf_add(out, text + start, at - start);
    }
    strbuf_add(out, "", 0); /* so that an empty text is not NULL */
}

/* The UTF-8 of a text chunk, whose compression tells tEXt and zTXt from iTXt. NULL when memory is
 * short. */
static char *decode_text(const ct_allocator *a, const png_text *chunk)
{
    bool latin1 = chunk->compression < PNG_ITXT_COMPRESSION_NONE;
    const char *text = chunk->text ? chunk->text : "";
    size_t length = strlen(text);
    strbuf out;
    strbuf_init(&out, a, 4 * MAX_CHUNK);
    for (size_t at = 0; at < length;) {
        if (latin1) {
            char bytes[4];
            strbuf_add(&out, bytes, utf8_put((unsigned char)text[at++], bytes));
            continue;
        }
        size_t start = at;
        if (utf8_next(text, length, &at) == UTF8_INVALID)
            strbuf_puts(&out, UTF8_REPLACEMENT);
        else
            strbuf_add(&out, text + start, at - start);
    }
    return strbuf_take(&out);
}

/* ---- Writing ---- */

typedef struct png_writer {
    png_common common;
    file_output out;
    png_text *chunks;
    strbuf *buffers; /* behind the chunks */
    int text_count;
    png_stream *pixels;
    png_uint_32 width, height;
} png_writer;

static void on_write(png_structp png, png_bytep data, size_t size)
{
    png_writer *w = png_get_io_ptr(png);
    if (fwrite(data, 1, size, w->out.stream) != size) {
        w->common.file_errno = errno ? errno : EIO;
        png_error(png, "write failed");
    }
}

/* Our own stream is flushed when the file is committed. */
static void on_flush(png_structp png)
{
    (void)png;
}

static void encode(png_writer *w)
{
    png_structp png = w->common.png;
    png_infop info = w->common.info;
    png_set_write_fn(png, w, on_write, on_flush);
    png_set_IHDR(png, info, w->width, w->height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (w->text_count)
        png_set_text(png, info, w->chunks, w->text_count);
    png_write_info(png, info);
    /* png_write_end would miss the rows, which libpng has not seen. */
    for (;;) {
        const uint8_t *data;
        size_t size;
        if (!png_stream_next(w->pixels, &data, &size))
            png_error(png, "zlib failed");
        if (!size)
            break;
        png_write_chunk(png, (png_const_bytep) "IDAT", data, size);
    }
    png_write_chunk(png, (png_const_bytep) "IEND", NULL, 0);
}

static bool encode_safely(png_writer *w)
{
    png_common *c = &w->common;
    c->png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, c, on_error, on_warning, c, on_alloc,
                                       on_free);
    c->info = c->png ? png_create_info_struct(c->png) : NULL;
    bool done = false;
    if (c->info && !setjmp(png_jmpbuf(c->png))) {
        encode(w);
        done = true;
    }
    png_destroy_write_struct(&c->png, &c->info);
    /* A text chunk that libpng had no memory for is left out with a mere warning. */
    return done && !c->out_of_memory;
}

static ct_status prepare_texts(png_writer *w, const char *path, const png_note *texts,
                               ct_error *error)
{
    const ct_allocator *a = w->common.allocator;
    size_t count = (size_t)w->text_count;
    w->chunks = mem_zero_array(a, count, sizeof *w->chunks);
    w->buffers = mem_zero_array(a, count, sizeof *w->buffers);
    if (!w->chunks || !w->buffers)
        return error_memory(error, count * sizeof *w->chunks, path);
    static char none[] = "";
    for (size_t i = 0; i < count; i++) {
        if (!is_key(texts[i].key))
            return error_set(error, CT_EINVAL, "\"%.100s\" cannot be the key of a text in a PNG",
                             texts[i].key);
        strbuf_init(&w->buffers[i], a, MAX_CHUNK);
        bool latin1;
        encode_text(&w->buffers[i], texts[i].text, &latin1);
        if (!strbuf_ok(&w->buffers[i]))
            return error_memory(error, 4 * strlen(texts[i].text), "a text in a PNG");
        w->chunks[i] = (png_text){
            .compression = latin1 ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE,
            .key = (char *)(uintptr_t)texts[i].key,
            .text = w->buffers[i].data,
            .text_length = w->buffers[i].length,
            .lang = none,
            .lang_key = none,
        };
    }
    return CT_OK;
}

static ct_status write_picture(png_writer *w, const char *path, const png_note *texts,
                               ct_error *error)
{
    ct_status status = prepare_texts(w, path, texts, error);
    if (status == CT_OK)
        status = file_output_open(&w->out, path, error);
    if (status != CT_OK)
        return status;
    if (encode_safely(w))
        return file_output_commit(&w->out, error);
    file_output_abort(&w->out);
    const png_common *c = &w->common;
    if (c->file_errno)
        return error_set(error, CT_EIO, "cannot write %s: %s", path, strerror(c->file_errno));
    if (c->out_of_memory)
        return error_memory(error, (size_t)w->width * 3, path);
    return error_set(error, CT_EINTERNAL, "cannot write %s: libpng: %s", path, c->message);
}

ct_status png_write(const ct_allocator *a, pool *threads, const char *path, const uint8_t *rgb,
                    int width, int height, const png_note *texts, int text_count, ct_error *error)
{
    if (width < 1 || height < 1 || text_count < 0)
        return error_set(error, CT_EINVAL, "cannot write %s: a picture of %d x %d pixels", path,
                         width, height);
    png_writer *w = mem_zero_array(a, 1, sizeof *w);
    if (!w)
        return error_memory(error, sizeof *w, path);
    w->common.allocator = a;
    w->width = (png_uint_32)width;
    w->height = (png_uint_32)height;
    w->text_count = text_count;
    w->pixels = png_stream_create(a, threads, rgb, (size_t)width, (size_t)height);
    ct_status status = w->pixels ? write_picture(w, path, texts, error)
                                 : error_memory(error, (size_t)width * 3, path);
    png_stream_free(w->pixels);
    for (int i = 0; w->buffers && i < text_count; i++)
        if (w->buffers[i].data)
            strbuf_free(&w->buffers[i]);
    mem_free(a, w->buffers);
    mem_free(a, w->chunks);
    mem_free(a, w);
    return status;
}

/* ---- Reading ---- */

typedef struct png_reader {
    png_common common;
    const unsigned char *data;
    size_t size, at;
    uint8_t *pixels;
    png_uint_32 width, height;
    int channels; /* of pixels: 3, or 4 with alpha */
    const char *const *keys;
    int key_count;
    char **found;
} png_reader;

static void on_read(png_structp png, png_bytep out, size_t size)
{
    png_reader *r = png_get_io_ptr(png);
    if (size > r->size - r->at)
        png_error(png, "it ends too early");
    memcpy(out, r->data + r->at, size);
    r->at += size;
}

static uint32_t read_u32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* libpng would only say that the header is invalid. */
static ct_status check_sides(const unsigned char *data, size_t size, const char *what,
                             ct_error *error)
{
    if (size < 24 || memcmp(data + 12, "IHDR", 4))
        return CT_OK;
    uint32_t width = read_u32(data + 16), height = read_u32(data + 20);
    if (width <= MAX_SIDE && height <= MAX_SIDE && (uint64_t)width * height <= MAX_PIXELS)
        return CT_OK;
    return error_set(error, CT_EUNSUPPORTED,
                     "%s has %u x %u pixels; at most %d on a side and %u in all can be read", what,
                     (unsigned)width, (unsigned)height, MAX_SIDE, (unsigned)MAX_PIXELS);
}

static void check_promise(png_reader *r)
{
    png_structp png = r->common.png;
    r->width = png_get_image_width(png, r->common.info);
    r->height = png_get_image_height(png, r->common.info);
    uint64_t pixels = (uint64_t)r->width * r->height;
    if (pixels > MAX_PIXELS)
        png_error(png, "it has too many pixels");
    /* Deflate shrinks by a factor of at most 1032. A header that promises more than the file can
     * hold is refused before memory for its pixels is taken. */
    unsigned bits =
        (unsigned)png_get_bit_depth(png, r->common.info) * png_get_channels(png, r->common.info);
    if (pixels * bits / 8 / 1032 > r->size)
        png_error(png, "it ends too early");
}

static void set_transformations(png_structp png, png_infop info)
{
    png_set_expand(png);   /* palettes, few bits, tRNS */
    png_set_strip_16(png); /* the high byte, as PIL does */
    png_byte type = png_get_color_type(png, info);
    if (!(type & PNG_COLOR_MASK_COLOR))
        png_set_gray_to_rgb(png);
}

static void keep_texts(png_reader *r)
{
    png_text *chunks = NULL;
    int count = png_get_text(r->common.png, r->common.info, &chunks, NULL);
    for (int i = 0; i < count; i++)
        for (int k = 0; k < r->key_count; k++) {
            if (strcmp(chunks[i].key, r->keys[k]))
                continue;
            mem_free(r->common.allocator, r->found[k]); /* the last one counts, as in PIL */
            r->found[k] = decode_text(r->common.allocator, &chunks[i]);
            if (!r->found[k]) {
                r->common.out_of_memory = true;
                png_error(r->common.png, "out of memory");
            }
        }
}

static void decode(png_reader *r)
{
    png_structp png = r->common.png;
    png_infop info = r->common.info;
    png_set_read_fn(png, r, on_read);
    png_set_user_limits(png, MAX_SIDE, MAX_SIDE);
    png_set_chunk_malloc_max(png, MAX_CHUNK);
    png_set_chunk_cache_max(png, MAX_CHUNKS);
    png_read_info(png, info);
    check_promise(r);
    set_transformations(png, info);
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    r->channels = png_get_channels(png, info);
    size_t stride = (size_t)r->width * (size_t)r->channels;
    if ((r->channels != 3 && r->channels != 4) || png_get_rowbytes(png, info) != stride)
        png_error(png, "unexpected layout of rows");
    r->pixels = mem_array(r->common.allocator, r->height, stride);
    if (!r->pixels) {
        r->common.out_of_memory = true;
        png_error(png, "out of memory");
    }
    for (int pass = 0; pass < passes; pass++)
        for (size_t y = 0; y < r->height; y++)
            png_read_row(png, r->pixels + y * stride, NULL);
    png_read_end(png, info);
    keep_texts(r);
}

static bool decode_safely(png_reader *r)
{
    png_common *c = &r->common;
    c->png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, c, on_error, on_warning, c, on_alloc,
                                      on_free);
    c->info = c->png ? png_create_info_struct(c->png) : NULL;
    bool done = false;
    if (c->info && !setjmp(png_jmpbuf(c->png))) {
        decode(r);
        done = true;
    }
    png_destroy_read_struct(&c->png, &c->info, NULL);
    return done && !c->out_of_memory;
}

/* RGBA to RGB in place: the writing position never passes the reading position. */
static void flatten(uint8_t *pixels, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        unsigned alpha = pixels[4 * i + 3];
        for (size_t c = 0; c < 3; c++)
            pixels[3 * i + c] =
                (uint8_t)((pixels[4 * i + c] * alpha + 255 * (255 - alpha) + 127) / 255);
    }
}

ct_status png_read_memory(const ct_allocator *a, const unsigned char *data, size_t size,
                          const char *what, uint8_t **rgb, int *width, int *height,
                          const char *const *keys, int key_count, char **found, ct_error *error)
{
    *rgb = NULL;
    *width = *height = 0;
    for (int i = 0; i < key_count; i++)
        found[i] = NULL;
    if (size < 8 || png_sig_cmp(data, 0, 8))
        return error_set(error, CT_EFORMAT, "%s is not a PNG file", what);
    ct_status status = check_sides(data, size, what, error);
    if (status != CT_OK)
        return status;
    png_reader r = {.common.allocator = a,
                    .data = data,
                    .size = size,
                    .keys = keys,
                    .key_count = key_count,
                    .found = found};
    if (!decode_safely(&r)) {
        mem_free(a, r.pixels);
        for (int i = 0; i < key_count; i++) {
            mem_free(a, found[i]);
            found[i] = NULL;
        }
        if (r.common.out_of_memory)
            return error_memory(error, (size_t)r.width * r.height * 3, what);
        return error_set(error, CT_EFORMAT, "%s cannot be read as PNG: %s; " DAMAGED, what,
                         r.common.message);
    }
    if (r.channels == 4)
        flatten(r.pixels, (size_t)r.width * r.height);
    *rgb = r.pixels;
    *width = (int)r.width;
    *height = (int)r.height;
    return CT_OK;
}
