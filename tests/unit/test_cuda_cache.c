/* The cache of compiled kernels, and the hash that names its files. Needs neither GPU nor
 * compiler. */
#define _POSIX_C_SOURCE 200809L
#include "test_support.h"

#include "core/file.h"
#include "core/folder.h"
#include "core/hash.h"
#include "core/mem.h"
#include "nn/cuda/cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The values that the authors of FNV give. */
static void hashes_as_defined(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", "6c62272e07bb014262b821756295c58d"},
        {"a", "d228cb696f1a8caf78912b704e4a8964"},
        {"foobar", "343e1662793c64bf6f0d3597ba446f18"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hash128 h = hash_begin();
        hash_add(&h, cases[i][0], strlen(cases[i][0]));
        char digits[HASH_DIGITS + 1];
        hash_print(&h, digits);
        assert_string_equal(digits, cases[i][1]);
    }
    hash128 a = hash_begin(), b = hash_begin();
    hash_add_string(&a, "ab");
    hash_add_string(&a, "c");
    hash_add_string(&b, "a");
    hash_add_string(&b, "bc");
    assert_true(a.high != b.high && a.low != b.low);
}

typedef struct fixture {
    test_folder folder;
    hash128 key;
    char *path;
    unsigned char code[1000];
} fixture;

static void open_fixture(fixture *f)
{
    test_folder_create(&f->folder);
    f->key = hash_begin();
    hash_add_string(&f->key, "a key");
    f->path = cuda_cache_path(&mem_default, f->folder.path, "rows.cu", &f->key);
    for (size_t i = 0; i < sizeof f->code; i++)
        f->code[i] = (unsigned char)(i * 7 + i / 256);
}

static void close_fixture(fixture *f)
{
    mem_free(&mem_default, f->path);
    test_folder_remove(&f->folder);
}

static void store(const fixture *f)
{
    ct_error error;
    test_ok(cuda_cache_write(f->path, &f->key, 13000, f->code, sizeof f->code, &error), &error);
}

static void expect_code(const fixture *f)
{
    void *code;
    size_t bytes;
    ct_error error;
    test_ok(cuda_cache_read(&mem_default, f->path, &f->key, &code, &bytes, &error), &error);
    assert_int_equal(bytes, sizeof f->code);
    test_bytes_equal(code, f->code, bytes);
    assert_int_equal(((const char *)code)[bytes], 0);
    mem_free(&mem_default, code);
}

static void expect_fault(const fixture *f, const hash128 *key, ct_status expected, const char *part)
{
    void *code;
    size_t bytes;
    ct_error error;
    test_error(cuda_cache_read(&mem_default, f->path, key, &code, &bytes, &error), expected, &error,
               part);
    assert_null(code);
    assert_int_equal(bytes, 0);
}

static void keeps_code(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f);
    assert_non_null(strstr(f.path, "/rows-"));
    assert_string_equal(f.path + strlen(f.path) - 6, ".cubin");
    expect_fault(&f, &f.key, CT_ENOTFOUND, "cannot open");
    store(&f);
    expect_code(&f);
    store(&f); /* over the old one */
    expect_code(&f);
    assert_int_equal(test_folder_count(&f.folder), 1);
    hash128 other = f.key;
    other.low ^= 1;
    expect_fault(&f, &other, CT_EFORMAT, "something else");
    close_fixture(&f);
}

static void refuses_damaged_files(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f);
    store(&f);
    size_t size;
    unsigned char *data = test_read_file(f.path, &size);
    for (size_t at = 0; at < size; at++) {
        data[at] ^= 0x10;
        test_write_file(f.path, data, size);
        data[at] ^= 0x10;
        expect_fault(&f, &f.key, CT_EFORMAT, f.path);
    }
    for (size_t cut = 0; cut < size; cut += cut < 80 ? 1 : 97) {
        test_write_file(f.path, data, cut);
        expect_fault(&f, &f.key, CT_EFORMAT, f.path);
    }
    test_write_file(f.path, data, size);
    expect_code(&f);
    free(data);
    store(&f);
    expect_code(&f);
    close_fixture(&f);
}

static void makes_folders(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    ct_error error;
    char deep[600];
    snprintf(deep, sizeof deep, "%s//a/b///c/file", folder.path);
    test_ok(folder_create_parents(deep, &error), &error);
    test_ok(folder_create_parents(deep, &error), &error);
    *strrchr(deep, '/') = 0;
    assert_true(file_is_directory(deep));
    test_ok(folder_create_parents("file", &error), &error);
    test_ok(folder_create_parents("/file", &error), &error);
    /* A file stands in the way; so nobody, not even root, can make a folder of it. */
    test_write_file(test_path(&folder, "plain"), "x", 1);
    test_error(folder_create_parents(test_path(&folder, "plain/a/b"), &error), CT_EIO, &error,
               "plain");
    hash128 key = hash_begin();
    test_error(cuda_cache_write(test_path(&folder, "plain/a/b"), &key, 0, "code", 4, &error),
               CT_EIO, &error, "plain");
    folder_remove(&mem_default, folder.path);
}

static void *write_and_read(void *user)
{
    const fixture *f = user;
    for (int i = 0; i < 50; i++) {
        void *code = NULL;
        size_t bytes;
        if (cuda_cache_write(f->path, &f->key, 1, f->code, sizeof f->code, NULL) != CT_OK ||
            cuda_cache_read(&mem_default, f->path, &f->key, &code, &bytes, NULL) != CT_OK ||
            bytes != sizeof f->code || memcmp(code, f->code, bytes) != 0)
            return user; /* something was seen that was not whole */
        mem_free(&mem_default, code);
    }
    return NULL;
}

static void serves_two_at_once(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f);
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, write_and_read, &f), 0);
    void *here = write_and_read(&f), *there;
    pthread_join(other, &there);
    assert_null(here);
    assert_null(there);
    assert_int_equal(test_folder_count(&f.folder), 1);
    close_fixture(&f);
}

static ct_status read_once(const ct_allocator *a, void *user, ct_error *error)
{
    const fixture *f = user;
    char *path = cuda_cache_path(a, f->folder.path, "rows.cu", &f->key);
    if (!path)
        return error_memory(error, 1, "a path");
    void *code;
    size_t bytes;
    ct_status status = cuda_cache_read(a, path, &f->key, &code, &bytes, error);
    mem_free(a, code);
    mem_free(a, path);
    return status;
}

static void survives_short_memory(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f);
    store(&f);
    test_each_allocation(read_once, &f);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hashes_as_defined),     cmocka_unit_test(keeps_code),
        cmocka_unit_test(refuses_damaged_files), cmocka_unit_test(makes_folders),
        cmocka_unit_test(serves_two_at_once),    cmocka_unit_test(survives_short_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
