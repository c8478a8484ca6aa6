/* Pictures in files, against Pillow: decoded, turned upright, made smaller; and what cannot be
 * read. The recordings in tests/fixtures/pictures are made by tools/reference. */
#include "test_support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "io/exif.h"
#include "io/picture.h"
#include "io/resample.h"

typedef struct picture {
    uint8_t *rgb;
    int width, height;
} picture;

static ct_status read_bytes(picture *p, const unsigned char *data, size_t size, ct_error *error)
{
    *p = (picture){0};
    return picture_read_memory(&mem_default, data, size, "the file", &p->rgb, &p->width, &p->height,
                               NULL, 0, NULL, error);
}

static picture read_fixture(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "pictures/%s", name);
    size_t size;
    unsigned char *data = test_read_file(test_fixture(path), &size);
    picture p;
    ct_error error;
    test_ok(read_bytes(&p, data, size, &error), &error);
    free(data);
    return p;
}

static void picture_free(picture *p)
{
    mem_free(&mem_default, p->rgb);
}

/* Decoders may round differently, by one or two steps. */
static void compare(const char *name, const picture *p, const picture *truth, int bound)
{
    assert_int_equal(p->width, truth->width);
    assert_int_equal(p->height, truth->height);
    for (int i = 0; i < 3 * p->width * p->height; i++)
        if (abs((int)p->rgb[i] - (int)truth->rgb[i]) > bound)
            fail_msg("%s: byte %d is %d, not %d", name, i, p->rgb[i], truth->rgb[i]);
}

static void test_decoding(void **state)
{
    (void)state;
    static const char *const names[] = {
        "plain.jpg",     "half.jpg",    "progressive.jpg", "grey.jpg",
        "turned2.jpg",   "turned3.jpg", "turned4.jpg",     "turned5.jpg",
        "turned6.jpg",   "turned7.jpg", "turned8.jpg",     "lossy.webp",
        "lossless.webp", "alpha.webp",  "turned6.webp",    "turned8.png"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char decoded[64];
        snprintf(decoded, sizeof decoded, "%s.png", names[i]);
        picture p = read_fixture(names[i]), truth = read_fixture(decoded);
        compare(names[i], &p, &truth,
                strstr(names[i], "lossless") || strstr(names[i], ".png") ? 0 : 2);
        picture_free(&p);
        picture_free(&truth);
    }
}

/* In most the rows come first, in 58 x 30 and 58 x 28 the columns. */
static void test_resampling(void **state)
{
    (void)state;
    static const struct {
        int width, height;
        bool cubic;
    } sizes[] = {{40, 29, false}, {61, 20, false}, {7, 45, false}, {1, 1, false}, {100, 50, false},
                 {58, 30, false}, {56, 42, true},  {58, 28, true}, {84, 56, true}};
    picture busy = read_fixture("busy.png");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char name[64];
        snprintf(name, sizeof name, "busy.%s%dx%d.png", sizes[i].cubic ? "cubic." : "",
                 sizes[i].width, sizes[i].height);
        picture truth = read_fixture(name),
                p = {.width = sizes[i].width, .height = sizes[i].height};
        ct_error error;
        test_ok((sizes[i].cubic ? resample_bicubic
                                : resample_lanczos)(&mem_default, busy.rgb, busy.width, busy.height,
                                                    p.width, p.height, &p.rgb, &error),
                &error);
        compare(name, &p, &truth, 0);
        picture_free(&p);
        picture_free(&truth);
    }
    picture_free(&busy);
}

static void expect_failure(const char *name, ct_status status, const char *part)
{
    char path[128];
    snprintf(path, sizeof path, "pictures/%s", name);
    size_t size;
    unsigned char *data = test_read_file(test_fixture(path), &size);
    picture p;
    ct_error error;
    test_error(read_bytes(&p, data, size, &error), status, &error, part);
    assert_null(p.rgb);
    free(data);
}

static void test_refused(void **state)
{
    (void)state;
    expect_failure("animated.webp", CT_EUNSUPPORTED, "animated");
    expect_failure("animated.png", CT_EUNSUPPORTED, "animated");
    expect_failure("other.gif", CT_EUNSUPPORTED, "GIF");
    picture p;
    ct_error error;
    test_error(read_bytes(&p, (const unsigned char *)"hello, world", 12, &error), CT_EFORMAT,
               &error, "no picture");
    test_error(read_bytes(&p, (const unsigned char *)"", 0, &error), CT_EFORMAT, &error,
               "no picture");
}

/* Every beginning of a file fails or, where only trailing bytes are missing, gives the picture. */
static void test_truncated(void **state)
{
    (void)state;
    static const char *const names[] = {"plain.jpg", "progressive.jpg", "lossy.webp", "alpha.webp"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[128];
        snprintf(path, sizeof path, "pictures/%s", names[i]);
        size_t size;
        unsigned char *data = test_read_file(test_fixture(path), &size);
        picture truth = read_fixture(names[i]);
        for (size_t length = 0; length < size; length += 1 + length / 40) {
            picture p;
            ct_error error;
            unsigned char *part = malloc(length + 1);
            assert_non_null(part);
            memcpy(part, data, length);
            if (read_bytes(&p, part, length, &error) == CT_OK) {
                if (size - length > 16)
                    fail_msg("%s: %zu of %zu bytes are enough", names[i], length, size);
                compare(names[i], &p, &truth, 0);
                picture_free(&p);
            } else {
                assert_null(p.rgb);
            }
            free(part);
        }
        picture_free(&truth);
        free(data);
    }
}

/* Bytes changed at random: no crash, and no memory is lost (a sanitizer sees it). */
static void test_damaged(void **state)
{
    (void)state;
    static const char *const names[] = {"half.jpg", "turned6.jpg", "lossy.webp", "turned6.webp",
                                        "lossless.webp"};
    uint32_t random = 1;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[128];
        snprintf(path, sizeof path, "pictures/%s", names[i]);
        size_t size;
        unsigned char *data = test_read_file(test_fixture(path), &size);
        for (int round = 0; round < 300; round++) {
            unsigned char *copy = malloc(size);
            assert_non_null(copy);
            memcpy(copy, data, size);
            for (int change = 0; change < 4; change++) {
                random = random * 1664525u + 1013904223u;
                copy[(random >> 8) % size] = (unsigned char)(random >> 3);
            }
            picture p;
            ct_error error;
            if (read_bytes(&p, copy, size, &error) == CT_OK)
                picture_free(&p);
            free(copy);
        }
        free(data);
    }
}

static void test_orientation(void **state)
{
    (void)state;
    static const unsigned char little[] = "Exif\0\0II*\0\10\0\0\0\1\0\22\1\3\0\1\0\0\0\6\0\0\0";
    static const unsigned char big[] = "MM\0*\0\0\0\10\0\1\1\22\0\3\0\0\0\1\0\10\0\0";
    assert_int_equal(exif_orientation(little, sizeof little - 1), 6);
    assert_int_equal(exif_orientation(big, sizeof big - 1), 8);
    for (size_t length = 0; length < sizeof little - 6; length++)
        assert_in_range(exif_orientation(little, length), 1, 8);
    assert_int_equal(exif_orientation((const unsigned char *)"II*\0\377\377\377\377", 8), 1);
    assert_int_equal(exif_orientation(NULL, 0), 1);
}

static ct_status decode_all(const ct_allocator *a, void *user, ct_error *error)
{
    const char *name = user;
    char path[128];
    snprintf(path, sizeof path, "pictures/%s", name);
    size_t size;
    unsigned char *data = test_read_file(test_fixture(path), &size);
    uint8_t *rgb = NULL, *small = NULL;
    int width, height;
    ct_status status =
        picture_read_memory(a, data, size, name, &rgb, &width, &height, NULL, 0, NULL, error);
    free(data);
    if (status == CT_OK)
        status = resample_lanczos(a, rgb, width, height, 9, 5, &small, error);
    mem_free(a, rgb);
    mem_free(a, small);
    return status;
}

static void test_memory(void **state)
{
    (void)state;
    test_each_allocation(decode_all, (void *)(uintptr_t) "turned6.jpg");
    test_each_allocation(decode_all, (void *)(uintptr_t) "alpha.webp");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decoding), cmocka_unit_test(test_resampling),
        cmocka_unit_test(test_refused),  cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_damaged),  cmocka_unit_test(test_orientation),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
