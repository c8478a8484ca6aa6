/* libjpeg reports errors by a function that must not return. So that no variable is lost in the
 * jump, everything that lives across one is in a struct. */
#include "io/jpeg.h"

#include "core/mem.h"
#include "io/exif.h"
#include "io/picture.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

typedef struct jpeg_reader {
    struct jpeg_decompress_struct jpeg; /* first, so that the library's pointer is ours */
    struct jpeg_error_mgr errors;
    jmp_buf jump;
    const ct_allocator *allocator;
    const unsigned char *data;
    size_t size;
    const char *what;
    uint8_t *rgb, *row;
    int orientation;
    bool damaged;
    ct_status status; /* of what is not libjpeg's */
    ct_error *error;
    char message[JMSG_LENGTH_MAX]; /* libjpeg's own */
} jpeg_reader;

static jpeg_reader *reader_of(j_common_ptr info)
{
    return (jpeg_reader *)(void *)info;
}

static void on_error(j_common_ptr info)
{
    jpeg_reader *r = reader_of(info);
    info->err->format_message(info, r->message);
    longjmp(r->jump, 1);
}

/* The library goes on behind damage, with grey. What merely stands where nothing should does not
 * change the pixels. */
static void on_message(j_common_ptr info, int level)
{
    jpeg_reader *r = reader_of(info);
    const int code = info->err->msg_code;
    if (level >= 0 || code == JWRN_EXTRANEOUS_DATA || code == JWRN_ADOBE_XFORM)
        return;
    r->damaged = true;
    on_error(info);
}

static void on_output(j_common_ptr info)
{
    (void)info;
}

static void read_orientation(jpeg_reader *r)
{
    r->orientation = 1;
    for (jpeg_saved_marker_ptr m = r->jpeg.marker_list; m; m = m->next)
        if (m->marker == JPEG_APP0 + 1 && m->data_length > 6 && !memcmp(m->data, "Exif", 5)) {
            r->orientation = exif_orientation(m->data, m->data_length);
            return;
        }
}

/* Inks to light. Adobe's programs store them inverted. */
static void from_cmyk(uint8_t *rgb, const uint8_t *cmyk, size_t width, bool inverted)
{
    for (size_t i = 0; i < width; i++, cmyk += 4, rgb += 3)
        for (int c = 0; c < 3; c++) {
            const int ink = inverted ? cmyk[c] : 255 - cmyk[c];
            const int black = inverted ? cmyk[3] : 255 - cmyk[3];
            rgb[c] = (uint8_t)((ink * black + 127) / 255);
        }
}

static void decode(jpeg_reader *r)
{
    struct jpeg_decompress_struct *jpeg = &r->jpeg;
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, r->data, (unsigned long)r->size);
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(jpeg, TRUE);
    r->status = picture_check_sides(r->what, jpeg->image_width, jpeg->image_height, r->error);
    if (r->status != CT_OK)
        return;
    read_orientation(r);
    const bool inks = jpeg->num_components == 4;
    jpeg->out_color_space = inks ? JCS_CMYK : JCS_RGB;
    const size_t width = jpeg->image_width, height = jpeg->image_height;
    r->rgb = mem_array(r->allocator, width * height, 3);
    r->row = mem_array(r->allocator, width, 4);
    if (!r->rgb || !r->row) {
        r->status = error_memory(r->error, width * height * 3, "the picture");
        return;
    }
    jpeg_start_decompress(jpeg);
    while (jpeg->output_scanline < jpeg->output_height) {
        uint8_t *to = r->rgb + 3 * width * jpeg->output_scanline;
        JSAMPROW rows[1] = {inks ? r->row : to};
        jpeg_read_scanlines(jpeg, rows, 1);
        if (inks)
            from_cmyk(to, r->row, width, jpeg->saw_Adobe_marker);
    }
    jpeg_finish_decompress(jpeg);
}

/* False after an error of the library. */
static bool decode_safely(jpeg_reader *r)
{
    if (setjmp(r->jump))
        return false;
    decode(r);
    return true;
}

ct_status jpeg_read_memory(const ct_allocator *a, const unsigned char *data, size_t size,
                           const char *what, uint8_t **rgb, int *width, int *height,
                           ct_error *error)
{
    *rgb = NULL;
    jpeg_reader *r = mem_zero_array(a, 1, sizeof *r);
    if (!r)
        return error_memory(error, sizeof *r, "a picture");
    r->allocator = a;
    r->data = data;
    r->size = size;
    r->what = what;
    r->error = error;
    r->jpeg.err = jpeg_std_error(&r->errors);
    r->errors.error_exit = on_error;
    r->errors.emit_message = on_message;
    r->errors.output_message = on_output;
    const bool decoded = decode_safely(r);
    ct_status status = r->status;
    if (!decoded)
        status = error_set(error, CT_EFORMAT, "%s is a damaged or truncated JPEG file: %s", what,
                           r->message);
    *width = (int)r->jpeg.image_width;
    *height = (int)r->jpeg.image_height;
    uint8_t *pixels = r->rgb;
    if (status == CT_OK)
        status = exif_turn(a, r->orientation, &pixels, width, height, error);
    jpeg_destroy_decompress(&r->jpeg);
    mem_free(a, r->row);
    mem_free(a, r);
    if (status != CT_OK) {
        mem_free(a, pixels);
        return status;
    }
    *rgb = pixels;
    return CT_OK;
}
