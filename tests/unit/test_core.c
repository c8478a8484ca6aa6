/* The ground floor: errors, memory, growing strings, UTF-8, 16-bit floats, files. */
#define _POSIX_C_SOURCE 200809L
#include "test_support.h"

#include "core/dtype.h"
#include "core/error.h"
#include "core/file.h"
#include "core/mem.h"
#include "core/strbuf.h"
#include "core/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Errors ---- */

static void formats_messages(void **state)
{
    (void)state;
    ct_error error;
    assert_int_equal(error_set(&error, CT_EIO, "%s is %d", "x", 7), CT_EIO);
    test_error(error.code, CT_EIO, &error, "x is 7");
    assert_int_equal(error_set(NULL, CT_EIO, "unseen"), CT_EIO);
    assert_int_equal(error_memory(&error, 3 << 20, "tea"), CT_ENOMEM);
    assert_string_equal(error.message, "out of memory: 3.0 MiB for tea could not be had");
}

static void makes_messages_printable(void **state)
{
    (void)state;
    ct_error error;
    error_set(&error, CT_EIO, "%s", "a\x1b[0m\r\n\x7f \xc3\xa9\xf0\x9f\x8d\x8e \xc2\x9b \xff\xc3");
    assert_string_equal(error.message, "a?[0m??? \xc3\xa9\xf0\x9f\x8d\x8e ?? ??");
}

static void cuts_messages_behind_a_character(void **state)
{
    (void)state;
    for (size_t shift = 0; shift < 4; shift++) {
        char text[2048];
        memset(text, 'x', shift);
        for (size_t i = shift; i + 3 < sizeof text; i += 3)
            memcpy(text + i, "\xe4\xb8\xad", 4);
        ct_error error;
        error_set(&error, CT_EIO, "%s", text);
        size_t length = strlen(error.message);
        assert_in_range(length, sizeof error.message - 4, sizeof error.message - 1);
        assert_string_equal(error.message + length - 3, "...");
        assert_true(utf8_valid(error.message, length));
        assert_null(strchr(error.message, '?'));
    }
    /* The longest that fits is left whole. */
    char text[1025];
    memset(text, 'y', sizeof text);
    text[1023] = 0;
    ct_error error;
    error_set(&error, CT_EIO, "%s", text);
    assert_string_equal(error.message, text);
}

static void names_every_status(void **state)
{
    (void)state;
    for (int status = CT_EDEVICE; status <= CT_OK; status++)
        assert_string_not_equal(ct_status_name((ct_status)status), "unknown status");
    assert_string_equal(ct_status_name((ct_status)1), "unknown status");
}

/* ---- Memory ---- */

static void checks_sizes(void **state)
{
    (void)state;
    size_t out;
    assert_true(size_mul(SIZE_MAX, 1, &out) && out == SIZE_MAX);
    assert_true(size_mul(0, SIZE_MAX, &out) && out == 0);
    assert_true(size_mul(SIZE_MAX, 0, &out) && out == 0);
    assert_false(size_mul(SIZE_MAX / 2 + 1, 2, &out));
    assert_true(size_add(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
    assert_false(size_add(SIZE_MAX, 1, &out));
    assert_null(mem_array(&mem_default, SIZE_MAX / 2, 3));
    assert_null(mem_zero_array(&mem_default, SIZE_MAX / 2, 3));
    assert_null(mem_alloc_aligned(&mem_default, SIZE_MAX - 8));
    assert_null(mem_strndup(&mem_default, "", SIZE_MAX));
}

static void hands_out_memory(void **state)
{
    (void)state;
    test_heap heap;
    test_heap_init(&heap, 0);
    const ct_allocator *a = &heap.allocator;
    void *empty = mem_alloc(a, 0);
    assert_non_null(empty);
    unsigned char *zeros = mem_zero_array(a, 100, 3);
    for (int i = 0; i < 300; i++)
        assert_int_equal(zeros[i], 0);
    memset(zeros, 7, 300);
    zeros = mem_grow(a, zeros, 300, 600);
    assert_int_equal(zeros[299], 7);
    zeros = mem_grow(a, zeros, 600, 10);
    assert_int_equal(zeros[9], 7);
    char *copy = mem_strndup(a, "abcdef", 3);
    assert_string_equal(copy, "abc");
    for (size_t size = 0; size < 300; size++) {
        unsigned char *p = mem_alloc_aligned(a, size);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % MEM_ALIGN, 0);
        memset(p, 1, size + MEM_PAD);
        mem_free_aligned(a, p);
    }
    mem_free_aligned(a, NULL);
    mem_free(a, NULL);
    mem_free(a, empty);
    mem_free(a, zeros);
    mem_free(a, copy);
    assert_int_equal(heap.live, 0);
}

static void keeps_the_old_block_when_growing_fails(void **state)
{
    (void)state;
    test_heap heap;
    test_heap_init(&heap, 2);
    char *p = mem_strdup(&heap.allocator, "kept");
    assert_null(mem_grow(&heap.allocator, p, 5, 100));
    assert_string_equal(p, "kept");
    mem_free(&heap.allocator, p);
    assert_int_equal(heap.live, 0);
}

/* ---- Growing strings ---- */

static void grows_strings(void **state)
{
    (void)state;
    strbuf s;
    strbuf_init(&s, &mem_default, SIZE_MAX);
    assert_null(s.data);
    strbuf_puts(&s, "");
    assert_string_equal(s.data, "");
    for (int i = 0; i < 1000; i++)
        strbuf_printf(&s, "%03d,", i);
    strbuf_add(&s, "\0x", 2);
    assert_int_equal(s.length, 4002);
    assert_memory_equal(s.data + 3996, "999,\0x", 7);
    char *text = strbuf_take(&s);
    assert_null(s.data);
    mem_free(&mem_default, text);
    text = strbuf_take(&s);
    assert_string_equal(text, "");
    mem_free(&mem_default, text);
    strbuf_free(&s);
}

static void stops_at_the_maximum(void **state)
{
    (void)state;
    strbuf s;
    strbuf_init(&s, &mem_default, 10);
    strbuf_puts(&s, "0123456789");
    assert_true(strbuf_ok(&s));
    strbuf_puts(&s, "");
    assert_true(strbuf_ok(&s));
    strbuf_printf(&s, "%d", 1);
    assert_false(strbuf_ok(&s));
    assert_string_equal(s.data, "0123456789");
    strbuf_puts(&s, ""); /* a failure sticks */
    assert_false(strbuf_ok(&s));
    assert_null(strbuf_take(&s));
    strbuf_init(&s, &mem_default, 10);
    strbuf_add(&s, "x", SIZE_MAX);
    assert_false(strbuf_ok(&s));
    strbuf_free(&s);
}

static ct_status build_string(const ct_allocator *a, void *user, ct_error *error)
{
    (void)user;
    strbuf s;
    strbuf_init(&s, a, 1 << 20);
    for (int i = 0; i < 5000; i++)
        strbuf_printf(&s, "%d ", i);
    char *text = strbuf_take(&s);
    if (!text)
        return error_memory(error, 1, "a string");
    mem_free(a, text);
    return CT_OK;
}

static void survives_short_memory(void **state)
{
    (void)state;
    test_each_allocation(build_string, NULL);
}

/* ---- UTF-8 ---- */

static void knows_every_code_point(void **state)
{
    (void)state;
    for (uint32_t point = 0; point <= 0x10ffff; point++) {
        if (point == 0xd800)
            point = 0xe000;
        char bytes[4];
        size_t n = utf8_put(point, bytes), at = 0;
        if (utf8_next(bytes, n, &at) != point || at != n)
            fail_msg("U+%04X is not read back", (unsigned)point);
        for (size_t cut = 1; cut < n; cut++) {
            at = 0;
            if (utf8_next(bytes, cut, &at) != UTF8_INVALID || at != 1)
                fail_msg("U+%04X cut to %zu bytes is taken", (unsigned)point, cut);
        }
    }
}

static void refuses_bad_utf8(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xed\xa0\x80",
        "\xed\xbf\xbf", "\xf0\x80\x80\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80", "\xff", "\xfe", "\xc3(", "\xe4\xb8(", "\xf0\x9f\x8d(", "\xc3\xc3\xa9",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        size_t at = 0;
        assert_int_equal(utf8_next(bad[i], strlen(bad[i]), &at), UTF8_INVALID);
        assert_int_equal(at, 1);
        assert_false(utf8_valid(bad[i], strlen(bad[i])));
    }
    assert_true(utf8_valid("", 0));
    assert_true(utf8_valid("a\xc3\xa9\0\xf0\x9f\x8d\x8e", 8));
}

/* ---- 16-bit floats ---- */

/* Sign, exponent and fraction by the definition. */
static double slow_value(uint16_t h, int exponent_bits)
{
    int fraction_bits = 15 - exponent_bits;
    int top = (1 << exponent_bits) - 1, bias = top / 2;
    int exponent = h >> fraction_bits & top, fraction = h & ((1 << fraction_bits) - 1);
    double sign = h & 0x8000 ? -1 : 1;
    if (exponent == top)
        return fraction ? NAN : sign * INFINITY;
    if (exponent == 0)
        return sign * ldexp(fraction, 1 - bias - fraction_bits);
    return sign * ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

static bool same(double a, double b)
{
    return (isnan(a) && isnan(b)) || (a == b && signbit(a) == signbit(b));
}

static void reads_every_half(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        if (!same((double)bf16_to_float((uint16_t)h), slow_value((uint16_t)h, 8)))
            fail_msg("BF16 %04x is read as %g", h, (double)bf16_to_float((uint16_t)h));
        if (!same((double)f16_to_float((uint16_t)h), slow_value((uint16_t)h, 5)))
            fail_msg("F16 %04x is read as %g", h, (double)f16_to_float((uint16_t)h));
    }
}

/* The nearer of the two BF16 numbers around f, or the even one; the number behind the largest
 * counts as 2^128, as IEEE 754 has it. */
static uint16_t slow_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint16_t low = (uint16_t)(bits >> 16), high = (uint16_t)(low + 1);
    if (isinf(f))
        return low;
    double a = fabs(slow_value(low, 8)), b = fabs(slow_value(high, 8)), x = fabs((double)f);
    if (isinf(b))
        b = ldexp(1, 128);
    if (x - a == b - x)
        return low & 1 ? high : low;
    return x - a < b - x ? low : high;
}

static void rounds_to_bf16(void **state)
{
    (void)state;
    static const uint32_t low[] = {0, 1, 0x1234, 0x7fff, 0x8000, 0x8001, 0xc000, 0xffff};
    for (uint32_t h = 0; h < 65536; h++)
        for (size_t i = 0; i < sizeof low / sizeof *low; i++) {
            uint32_t bits = h << 16 | low[i];
            float f;
            memcpy(&f, &bits, 4);
            uint16_t rounded = bf16_from_float(f);
            if (isnan(f) ? !isnan(bf16_to_float(rounded)) : rounded != slow_bf16(f))
                fail_msg("%08x is rounded to %04x", bits, rounded);
        }
}

static void converts_rows(void **state)
{
    (void)state;
    const float f[3] = {1, -2.5f, 1e-40f};
    const uint16_t halves[3] = {0x3c00, 0xc100, 0x0001}, brains[3] = {0x3f80, 0xc020, 0x0001};
    unsigned char bytes[13];
    float out[3];
    memcpy(bytes + 1, f, sizeof f); /* at an odd address */
    dtype_to_float(out, bytes + 1, DTYPE_F32, 3);
    test_bytes_equal(out, f, sizeof f);
    memcpy(bytes + 1, halves, sizeof halves);
    dtype_to_float(out, bytes + 1, DTYPE_F16, 3);
    assert_true(out[0] == 1 && out[1] == -2.5f && out[2] == ldexpf(1, -24));
    memcpy(bytes + 1, brains, sizeof brains);
    dtype_to_float(out, bytes + 1, DTYPE_BF16, 3);
    assert_true(out[0] == 1 && out[1] == -2.5f && out[2] == ldexpf(1, -133));
    dtype_to_float(out, NULL, DTYPE_BF16, 0);
}

static void names_dtypes(void **state)
{
    (void)state;
    for (int i = 0; i < DTYPE_COUNT; i++) {
        dtype type;
        assert_true(dtype_parse(dtype_name((dtype)i), &type));
        assert_int_equal(type, i);
        assert_in_range(dtype_size(type), 1, 8);
    }
    dtype type;
    assert_false(dtype_parse("", &type));
    assert_false(dtype_parse("f32", &type));
    assert_true(dtype_is_float(DTYPE_BF16) && !dtype_is_float(DTYPE_I32));
}

/* ---- Files ---- */

static void joins_paths(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"/", "b", "/b"}, {"", "b", "b"}, {"a", "", "a/"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *path = path_join(&mem_default, cases[i][0], cases[i][1]);
        assert_string_equal(path, cases[i][2]);
        mem_free(&mem_default, path);
    }
}

static void reads_files(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "a");
    test_write_file(path, "hello", 5);
    char *data;
    size_t size;
    ct_error error;
    test_ok(file_read(&mem_default, path, 5, &data, &size, &error), &error);
    assert_int_equal(size, 5);
    assert_string_equal(data, "hello");
    mem_free(&mem_default, data);
    test_error(file_read(&mem_default, path, 4, &data, &size, &error), CT_EFORMAT, &error,
               "has 5 bytes, more than the 4 allowed");
    assert_null(data);
    test_error(file_read(&mem_default, folder.path, 4, &data, &size, &error), CT_EIO, &error,
               "not a regular file");
    test_error(file_read(&mem_default, test_path(&folder, "no"), 4, &data, &size, &error),
               CT_ENOTFOUND, &error, "cannot open");
    test_error(file_read(&mem_default, "/dev/null", 4, &data, &size, &error), CT_EIO, &error,
               "not a regular file");
    test_heap heap;
    test_heap_init(&heap, 1);
    test_error(file_read(&heap.allocator, path, 5, &data, &size, &error), CT_ENOMEM, &error, path);

    file_map map;
    test_ok(file_map_open(&map, path, &error), &error);
    assert_int_equal(map.size, 5);
    assert_memory_equal(map.data, "hello", 5);
    file_map_close(&map);
    file_map_close(&map);
    test_write_file(path, "", 0);
    test_ok(file_map_open(&map, path, &error), &error);
    assert_null(map.data);
    file_map_close(&map);
    test_error(file_map_open(&map, folder.path, &error), CT_EIO, &error, "not a regular file");
    assert_true(file_exists(path) && !file_exists(test_path(&folder, "no")));
    assert_true(file_is_directory(folder.path) && !file_is_directory(path));
    test_folder_remove(&folder);
}

static void check_content(const char *path, const char *expected)
{
    size_t size;
    unsigned char *data = test_read_file(path, &size);
    assert_string_equal((const char *)data, expected);
    free(data);
}

static void replaces_files_when_whole(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "a");
    test_write_file(path, "old", 3);
    file_output out, second;
    ct_error error;
    test_ok(file_output_open(&out, path, &error), &error);
    fputs("new", out.stream);
    fflush(out.stream);
    check_content(path, "old");
    file_output_abort(&out);
    file_output_abort(&out);
    check_content(path, "old");
    assert_int_equal(test_folder_count(&folder), 1);
    /* Two at once do not disturb each other; the last commit wins. */
    test_ok(file_output_open(&out, path, &error), &error);
    test_ok(file_output_open(&second, path, &error), &error);
    assert_string_not_equal(out.temporary, second.temporary);
    fputs("first", out.stream);
    fputs("second", second.stream);
    test_ok(file_output_commit(&second, &error), &error);
    check_content(path, "second");
    test_ok(file_output_commit(&out, &error), &error);
    check_content(path, "first");
    file_output_abort(&out);
    check_content(path, "first");
    assert_int_equal(test_folder_count(&folder), 1);
    test_folder_remove(&folder);
}

static void refuses_bad_outputs(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    file_output out;
    ct_error error = {0};
    test_error(file_output_open(&out, "", &error), CT_EINVAL, &error, "empty");
    char path[5000];
    memset(path, 'x', sizeof path);
    path[4999] = 0;
    test_error(file_output_open(&out, path, &error), CT_EINVAL, &error, "longer than 4095");
    test_error(file_output_open(&out, folder.path, &error), CT_EIO, &error, "is a directory");
    test_error(file_output_open(&out, test_path(&folder, "new/"), &error), CT_EIO, &error,
               "is a directory");
    test_error(file_output_open(&out, test_path(&folder, "no/file"), &error), CT_EIO, &error,
               "No such file or directory");
    file_output_abort(&out);
    test_error(ct_output_check(NULL, &error), CT_EINVAL, &error, "NULL");
    test_error(ct_output_check(folder.path, &error), CT_EIO, &error, "is a directory");
    test_error(ct_output_check(test_path(&folder, "no/file"), &error), CT_EIO, &error, "No such");
    test_ok(ct_output_check(test_path(&folder, "yes"), &error), &error);
    assert_int_equal(test_folder_count(&folder), 0);
    if (geteuid() != 0) { /* root may write anywhere */
        chmod(folder.path, 0500);
        test_error(ct_output_check(test_path(&folder, "yes"), &error), CT_EIO, &error, "ermission");
        chmod(folder.path, 0700);
    }
    test_folder_remove(&folder);
}

/* A rename would put a regular file in the place of a device. */
static void writes_to_devices_directly(void **state)
{
    (void)state;
    file_output out;
    ct_error error;
    test_ok(ct_output_check("/dev/null", &error), &error);
    test_ok(file_output_open(&out, "/dev/null", &error), &error);
    assert_string_equal(out.temporary, "");
    fputs("gone", out.stream);
    test_ok(file_output_commit(&out, &error), &error);
    struct stat st;
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    test_ok(file_output_open(&out, "/dev/null", &error), &error);
    file_output_abort(&out);
    assert_true(file_exists("/dev/null"));
    if (file_exists("/dev/full")) {
        test_ok(file_output_open(&out, "/dev/full", &error), &error);
        fputs("too much", out.stream);
        test_error(file_output_commit(&out, &error), CT_EIO, &error, "No space left");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(formats_messages),
        cmocka_unit_test(makes_messages_printable),
        cmocka_unit_test(cuts_messages_behind_a_character),
        cmocka_unit_test(names_every_status),
        cmocka_unit_test(checks_sizes),
        cmocka_unit_test(hands_out_memory),
        cmocka_unit_test(keeps_the_old_block_when_growing_fails),
        cmocka_unit_test(grows_strings),
        cmocka_unit_test(stops_at_the_maximum),
        cmocka_unit_test(survives_short_memory),
        cmocka_unit_test(knows_every_code_point),
        cmocka_unit_test(refuses_bad_utf8),
        cmocka_unit_test(reads_every_half),
        cmocka_unit_test(rounds_to_bf16),
        cmocka_unit_test(converts_rows),
        cmocka_unit_test(names_dtypes),
        cmocka_unit_test(joins_paths),
        cmocka_unit_test(reads_files),
        cmocka_unit_test(replaces_files_when_whole),
        cmocka_unit_test(refuses_bad_outputs),
        cmocka_unit_test(writes_to_devices_directly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
