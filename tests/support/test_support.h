/* What the unit tests share: an allocator that counts and fails on demand, temporary folders,
 * files. */
#ifndef TEST_SUPPORT_H
#define TEST_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "calotype/calotype.h"

/* An allocator that fails the n-th call (1: the first; 0: none) and counts what is not yet freed.
 * New memory is filled with a pattern, so that reading it before writing shows. */
typedef struct test_heap {
    ct_allocator allocator; /* hand out &heap.allocator */
    long calls, fail_at;
    long live; /* blocks */
} test_heap;

void test_heap_init(test_heap *heap, long fail_at);

/* Runs work with allocation 1, 2, 3 ... failing until it succeeds with none failing. Each failure
 * must be CT_ENOMEM, and nothing may be left allocated. work gets user. */
void test_each_allocation(ct_status (*work)(const ct_allocator *a, void *user, ct_error *error),
                          void *user);

/* A new empty folder below TMPDIR or /tmp; the path is kept until test_folder_remove, which deletes
 * it with all files in it (no folders within folders). */
typedef struct test_folder {
    char path[512];
} test_folder;

void test_folder_create(test_folder *folder);
void test_folder_remove(test_folder *folder);
/* "folder/name" in a buffer that the next sixteen calls leave alone. */
const char *test_path(const test_folder *folder, const char *name);
int test_folder_count(const test_folder *folder); /* of files */

/* A path below the folder that the environment variable CT_FIXTURES names; fails without it. The
 * same buffers as test_path. */
const char *test_fixture(const char *name);

void test_write_file(const char *path, const void *data, size_t size);
/* With a zero byte behind; to be freed with free. Fails the test when it cannot be read. */
unsigned char *test_read_file(const char *path, size_t *size);

/* Fails unless status is expected and the message holds part. */
void test_error(ct_status status, ct_status expected, const ct_error *error, const char *part);
/* Fails with the message unless status is CT_OK. */
void test_ok(ct_status status, const ct_error *error);
/* As assert_memory_equal, but shows both around the first difference. */
void test_bytes_equal(const void *actual, const void *expected, size_t size);

#endif
