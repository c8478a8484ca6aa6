#define _POSIX_C_SOURCE 200809L
#include "test_support.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *heap_alloc(void *user, size_t size)
{
    test_heap *heap = user;
    if (++heap->calls == heap->fail_at)
        return NULL;
    void *p = malloc(size);
    if (p) {
        memset(p, 0xa5, size < 4096 ? size : 4096);
        heap->live++;
    }
    return p;
}

static void heap_free(void *user, void *pointer)
{
    test_heap *heap = user;
    if (pointer)
        heap->live--;
    free(pointer);
}

void test_heap_init(test_heap *heap, long fail_at)
{
    *heap = (test_heap){.allocator = {heap, heap_alloc, heap_free}, .fail_at = fail_at};
}

void test_each_allocation(ct_status (*work)(const ct_allocator *a, void *user, ct_error *error),
                          void *user)
{
    for (long n = 1; n < 100000; n++) {
        test_heap heap;
        test_heap_init(&heap, n);
        ct_error error = {0};
        ct_status status = work(&heap.allocator, user, &error);
        if (heap.live)
            fail_msg("%ld blocks left when allocation %ld failed", heap.live, n);
        if (heap.calls < n) {
            test_ok(status, &error);
            return;
        }
        if (status != CT_ENOMEM)
            fail_msg("allocation %ld failed and gave status %d: %s", n, status, error.message);
        test_error(status, CT_ENOMEM, &error, "memory");
    }
    fail_msg("never succeeds");
}

void test_folder_create(test_folder *folder)
{
    const char *base = getenv("TMPDIR");
    int n = snprintf(folder->path, sizeof folder->path, "%s/calotype-test-XXXXXX",
                     base && *base ? base : "/tmp");
    assert_true(n > 0 && (size_t)n < sizeof folder->path);
    assert_non_null(mkdtemp(folder->path));
}

static int visit_files(const test_folder *folder, bool delete)
{
    DIR *dir = opendir(folder->path);
    assert_non_null(dir);
    int count = 0;
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        count++;
        if (delete)
            remove(test_path(folder, e->d_name));
    }
    closedir(dir);
    return count;
}

void test_folder_remove(test_folder *folder)
{
    visit_files(folder, true);
    assert_int_equal(rmdir(folder->path), 0);
}

int test_folder_count(const test_folder *folder)
{
    return visit_files(folder, false);
}

static const char *join(const char *folder, const char *name)
{
    static _Thread_local char buffers[16][1024];
    static _Thread_local unsigned next;
    char *buffer = buffers[next++ % 16];
    int n = snprintf(buffer, sizeof buffers[0], "%s/%s", folder, name);
    assert_true(n > 0 && (size_t)n < sizeof buffers[0]);
    return buffer;
}

const char *test_path(const test_folder *folder, const char *name)
{
    return join(folder->path, name);
}

const char *test_fixture(const char *name)
{
    const char *base = getenv("CT_FIXTURES");
    if (!base)
        fail_msg("the environment variable CT_FIXTURES must name tests/fixtures");
    return join(base, name);
}

void test_write_file(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!f)
        fail_msg("cannot write %s: %s", path, strerror(errno));
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

unsigned char *test_read_file(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("cannot read %s: %s", path, strerror(errno));
    fseek(f, 0, SEEK_END);
    long length = ftell(f);
    assert_true(length >= 0);
    rewind(f);
    unsigned char *data = malloc((size_t)length + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)length, f), length);
    data[length] = 0;
    fclose(f);
    *size = (size_t)length;
    return data;
}

void test_error(ct_status status, ct_status expected, const ct_error *error, const char *part)
{
    if (status != expected || error->code != expected || !strstr(error->message, part))
        fail_msg("status %d (expected %d), message \"%s\" (expected \"%s\")", status, expected,
                 status == CT_OK ? "" : error->message, part);
}

void test_ok(ct_status status, const ct_error *error)
{
    if (status != CT_OK)
        fail_msg("%s: %s", ct_status_name(status), error->message);
}

static void dump(const char *label, const unsigned char *data, size_t from, size_t to)
{
    fprintf(stderr, "%-9s", label);
    for (size_t i = from; i < to; i++)
        fprintf(stderr, " %02x", data[i]);
    fputc('\n', stderr);
}

void test_bytes_equal(const void *actual, const void *expected, size_t size)
{
    const unsigned char *a = actual, *b = expected;
    for (size_t i = 0; i < size; i++) {
        if (a[i] == b[i])
            continue;
        size_t from = i < 8 ? 0 : i - 8, to = size - i < 8 ? size : i + 8;
        dump("actual", a, from, to);
        dump("expected", b, from, to);
        fail_msg("byte %zu of %zu differs", i, size);
    }
}
