/* Results that are kept: in memory, and as files of a folder that others write to and damage. */
#define _DEFAULT_SOURCE
#include "test_support.h"

#include "core/file.h"
#include "core/folder.h"
#include "core/mem.h"
#include "io/blob.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- Payloads that a name decides ------------------------------------------------------------ */

static blob_name name_of(const char *kind, unsigned number)
{
    blob_name n = {{0}, {0}};
    snprintf(n.kind, sizeof n.kind, "%s", kind);
    snprintf(n.hash, sizeof n.hash, "%032x", number);
    return n;
}

static unsigned char byte_of(unsigned number, size_t at)
{
    return (unsigned char)(at * 7 + at / 251 + number * 31);
}

typedef struct payload {
    unsigned number;
    size_t next;  /* where the next piece must begin */
    size_t stops; /* ends there; 0: never */
    size_t wrong; /* bytes that are not those of the number */
} payload;

static bool give(void *user, size_t at, void *data, size_t bytes)
{
    payload *p = user;
    assert_int_equal(at, p->next);
    assert_in_range(bytes, 1, BLOB_PIECE);
    for (size_t i = 0; i < bytes; i++)
        ((unsigned char *)data)[i] = byte_of(p->number, at + i);
    p->next += bytes;
    return !p->stops || p->next < p->stops;
}

static bool take(void *user, size_t at, const void *data, size_t bytes)
{
    payload *p = user;
    assert_int_equal(at, p->next);
    assert_in_range(bytes, 1, BLOB_PIECE);
    for (size_t i = 0; i < bytes; i++)
        p->wrong += ((const unsigned char *)data)[i] != byte_of(p->number, at + i);
    p->next += bytes;
    return !p->stops || p->next < p->stops;
}

static bool remember(blob_memory *m, unsigned number, size_t bytes)
{
    payload p = {.number = number};
    const blob_source source = {&p, give};
    const blob_name name = name_of("prompt", number);
    const bool kept = blob_memory_write(m, &name, bytes, &source);
    assert_true(blob_memory_bytes(m) <= blob_memory_limit(m));
    return kept;
}

static bool recall(blob_memory *m, unsigned number, size_t bytes)
{
    payload p = {.number = number};
    const blob_sink sink = {&p, take};
    const blob_name name = name_of("prompt", number);
    const bool found = blob_memory_read(m, &name, bytes, &sink);
    assert_int_equal(p.wrong, 0);
    assert_true(!found || p.next == bytes);
    return found;
}

static ct_status store(const blob_folder *f, unsigned number, size_t bytes, ct_error *error)
{
    payload p = {.number = number};
    const blob_source source = {&p, give};
    const blob_name name = name_of("prompt", number);
    return blob_folder_write(f, &name, bytes, &source, error);
}

static ct_status fetch(const blob_folder *f, unsigned number, size_t bytes, ct_error *error)
{
    payload p = {.number = number};
    const blob_sink sink = {&p, take};
    const blob_name name = name_of("prompt", number);
    const ct_status status = blob_folder_read(f, &name, bytes, &sink, error);
    if (status == CT_OK) {
        assert_int_equal(p.wrong, 0);
        assert_int_equal(p.next, bytes);
    }
    return status;
}

/* ---- In memory ------------------------------------------------------------------------------- */

static const size_t lengths[] = {1, BLOB_PIECE - 1, BLOB_PIECE, BLOB_PIECE + 1, 3 * BLOB_PIECE + 5};

static void test_memory(void **state)
{
    (void)state;
    test_heap heap;
    test_heap_init(&heap, 0);
    blob_memory *m = NULL;
    ct_error error;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        test_ok(blob_memory_create(&m, &heap.allocator, 1 << 20, &error), &error);
        assert_false(recall(m, 1, lengths[i]));
        assert_true(remember(m, 1, lengths[i]));
        assert_true(recall(m, 1, lengths[i]));
        assert_false(recall(m, 2, lengths[i]));
        assert_false(recall(m, 1, lengths[i] + 1)); /* of another size */
        assert_int_equal(blob_memory_bytes(m), lengths[i]);
        assert_true(remember(m, 1, 10)); /* takes its place */
        assert_int_equal(blob_memory_bytes(m), 10);
        blob_memory_free(m);
    }
    assert_int_equal(heap.live, 0);
}

static void test_memory_limit(void **state)
{
    (void)state;
    blob_memory *m = NULL;
    ct_error error;
    test_ok(blob_memory_create(&m, &mem_default, 1000, &error), &error);
    assert_false(remember(m, 9, 1001));
    assert_false(remember(m, 9, 0));
    for (unsigned i = 0; i < 4; i++)
        assert_true(remember(m, i, 250));
    assert_true(recall(m, 0, 250)); /* now 1 was used before all others */
    assert_true(remember(m, 4, 250));
    assert_false(recall(m, 1, 250));
    assert_true(recall(m, 2, 250) && recall(m, 3, 250) && recall(m, 4, 250) && recall(m, 0, 250));
    assert_true(remember(m, 5, 500)); /* two go, 2 and 3 */
    assert_false(recall(m, 2, 250) || recall(m, 3, 250));
    assert_true(recall(m, 0, 250) && recall(m, 4, 250) && recall(m, 5, 500));
    assert_true(remember(m, 6, 1000));
    assert_int_equal(blob_memory_bytes(m), 1000);
    /* Who does not come to the end has kept, and has read, nothing. */
    payload p = {.number = 7, .stops = 10};
    const blob_name seven = name_of("prompt", 7), six = name_of("prompt", 6);
    assert_false(blob_memory_write(m, &seven, 20, &(blob_source){&p, give}));
    assert_false(blob_memory_has(m, &seven, 20));
    assert_true(remember(m, 6, 1000));
    p = (payload){.number = 6, .stops = 10};
    assert_false(blob_memory_read(m, &six, 1000, &(blob_sink){&p, take}));
    blob_memory_free(m);
}

static ct_status work_in_memory(const ct_allocator *a, void *user, ct_error *error)
{
    (void)user;
    blob_memory *m = NULL;
    ct_status status = blob_memory_create(&m, a, 1000, error);
    if (status == CT_OK && !(remember(m, 1, 100) && recall(m, 1, 100)))
        status = error_memory(error, 100, "a result");
    blob_memory_free(m);
    return status;
}

static void *work_in_thread(void *user)
{
    for (unsigned i = 0; i < 2000; i++) {
        const size_t bytes = 100 + i % 7;
        if (!recall(user, i % 7, bytes))
            remember(user, i % 7, bytes);
    }
    return NULL;
}

static void test_memory_threads(void **state)
{
    (void)state;
    blob_memory *m = NULL;
    ct_error error;
    test_ok(blob_memory_create(&m, &mem_default, 400, &error), &error);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, work_in_thread, m), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    blob_memory_free(m);
    test_each_allocation(work_in_memory, NULL);
}

/* ---- In a folder ----------------------------------------------------------------------------- */

typedef struct fixture {
    test_folder outer;
    char path[600];
    blob_folder folder;
} fixture;

static void open_fixture(fixture *f, uint64_t limit)
{
    test_folder_create(&f->outer);
    snprintf(f->path, sizeof f->path, "%s/a/cache", f->outer.path);
    f->folder = (blob_folder){&mem_default, f->path, limit};
}

static void close_fixture(fixture *f)
{
    folder_remove(&mem_default, f->outer.path);
}

static char *file_of(const fixture *f, unsigned number)
{
    static char path[700];
    snprintf(path, sizeof path, "%s/prompt-%032x.blob", f->path, number);
    return path;
}

static ct_status count_file(void *user, const char *name, ct_error *error)
{
    (void)name;
    (void)error;
    ++*(int *)user;
    return CT_OK;
}

static int count_files(const fixture *f)
{
    int count = 0;
    folder_each(f->path, count_file, &count, NULL);
    return count;
}

static void test_folder_holds(void **state)
{
    (void)state;
    fixture f;
    ct_error error;
    open_fixture(&f, 1 << 20);
    const blob_name one = name_of("prompt", 1);
    assert_false(blob_folder_has(&f.folder, &one));
    test_error(fetch(&f.folder, 1, 10, &error), CT_ENOTFOUND, &error, "");
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        test_ok(store(&f.folder, 1, lengths[i], &error), &error);
        assert_true(blob_folder_has(&f.folder, &one));
        test_ok(fetch(&f.folder, 1, lengths[i], &error), &error);
        struct stat st;
        assert_int_equal(stat(file_of(&f, 1), &st), 0);
        assert_int_equal(st.st_size, BLOB_HEADER + lengths[i]);
        assert_int_equal(st.st_mode & 0777, 0600);
    }
    assert_int_equal(count_files(&f), 1); /* no temporary ones */
    /* Who does not come to the end leaves nothing, and deletes nothing. */
    payload p = {.number = 2, .stops = 5};
    const blob_name two = name_of("prompt", 2);
    test_error(blob_folder_write(&f.folder, &two, 10, &(blob_source){&p, give}, &error),
               CT_ECANCELLED, &error, "");
    assert_int_equal(count_files(&f), 1);
    p = (payload){.number = 1, .stops = 5};
    test_error(blob_folder_read(&f.folder, &one, lengths[4], &(blob_sink){&p, take}, &error),
               CT_ECANCELLED, &error, "");
    test_ok(fetch(&f.folder, 1, lengths[4], &error), &error);
    close_fixture(&f);
}

/* Every bit counts, and so does the length. */
static void test_damage(void **state)
{
    (void)state;
    fixture f;
    ct_error error;
    open_fixture(&f, 1 << 20);
    const size_t bytes = 40, all = BLOB_HEADER + bytes;
    test_ok(store(&f.folder, 1, bytes, &error), &error);
    size_t size;
    unsigned char *good = test_read_file(file_of(&f, 1), &size);
    assert_int_equal(size, all);
    for (size_t bit = 0; bit < 8 * all; bit++) {
        good[bit / 8] ^= (unsigned char)(1u << bit % 8);
        test_write_file(file_of(&f, 1), good, all);
        good[bit / 8] ^= (unsigned char)(1u << bit % 8);
        test_error(fetch(&f.folder, 1, bytes, &error), CT_EFORMAT, &error, ".blob");
        test_error(fetch(&f.folder, 1, bytes, &error), CT_ENOTFOUND, &error, "");
    }
    for (size_t length = 0; length < all; length++) {
        test_write_file(file_of(&f, 1), good, length);
        test_error(fetch(&f.folder, 1, bytes, &error), CT_EFORMAT, &error, ".blob");
        assert_int_equal(count_files(&f), 0);
    }
    unsigned char more[BLOB_HEADER + 41] = {0};
    memcpy(more, good, all);
    test_write_file(file_of(&f, 1), more, sizeof more);
    test_error(fetch(&f.folder, 1, bytes, &error), CT_EFORMAT, &error, "cut off");
    /* Whole, but not what was asked for: of another name, of another size. */
    test_write_file(file_of(&f, 2), good, all);
    test_error(fetch(&f.folder, 2, bytes, &error), CT_EFORMAT, &error, "something else");
    test_write_file(file_of(&f, 1), good, all);
    test_error(fetch(&f.folder, 1, bytes - 1, &error), CT_EFORMAT, &error, "something else");
    test_write_file(file_of(&f, 1), good, all);
    test_ok(fetch(&f.folder, 1, bytes, &error), &error);
    free(good);
    close_fixture(&f);
}

/* What is no file at all. */
static void test_strange_entries(void **state)
{
    (void)state;
    fixture f;
    ct_error error;
    open_fixture(&f, 1000);
    test_ok(store(&f.folder, 3, 40, &error), &error);
    assert_int_equal(mkdir(file_of(&f, 1), 0777), 0);
    assert_int_equal(fetch(&f.folder, 1, 40, &error), CT_EFORMAT);
    test_error(store(&f.folder, 1, 40, &error), CT_EIO, &error, "directory");
    char target[700];
    snprintf(target, sizeof target, "%s", file_of(&f, 3));
    assert_int_equal(symlink(target, file_of(&f, 2)), 0);
    assert_int_equal(fetch(&f.folder, 2, 40, &error), CT_EIO);
    assert_int_equal(mkfifo(file_of(&f, 4), 0666), 0);
    assert_int_equal(fetch(&f.folder, 4, 40, &error), CT_EFORMAT); /* and does not wait */
    test_ok(fetch(&f.folder, 3, 40, &error), &error);
    close_fixture(&f);
}

static void set_used(const fixture *f, unsigned number, int seconds)
{
    const struct timespec times[2] = {{1700000000 + seconds, 0}, {1700000000 + seconds, 0}};
    assert_int_equal(utimensat(AT_FDCWD, file_of(f, number), times, 0), 0);
}

static void test_folder_limit(void **state)
{
    (void)state;
    fixture f;
    ct_error error;
    const size_t bytes = 500 - BLOB_HEADER;
    open_fixture(&f, 2000); /* four of them */
    for (unsigned i = 0; i < 4; i++) {
        test_ok(store(&f.folder, i, bytes, &error), &error);
        set_used(&f, i, (int)i);
    }
    test_write_file(test_path(&f.outer, "a/cache/rows-00.cubin"), "x", 1);
    test_write_file(test_path(&f.outer, "a/cache/notes.txt"), "x", 1);
    test_ok(fetch(&f.folder, 0, bytes, &error), &error); /* now 1 was used before all others */
    test_ok(store(&f.folder, 4, bytes, &error), &error);
    test_error(fetch(&f.folder, 1, bytes, &error), CT_ENOTFOUND, &error, "");
    test_ok(fetch(&f.folder, 0, bytes, &error), &error);
    assert_int_equal(count_files(&f), 4 + 2);
    test_ok(store(&f.folder, 5, 1000 - BLOB_HEADER, &error), &error); /* 2 and 3 go */
    test_error(fetch(&f.folder, 2, bytes, &error), CT_ENOTFOUND, &error, "");
    test_error(fetch(&f.folder, 3, bytes, &error), CT_ENOTFOUND, &error, "");
    test_ok(fetch(&f.folder, 4, bytes, &error), &error);
    /* Larger than all of it: nothing goes for that. */
    test_error(store(&f.folder, 6, 2001 - BLOB_HEADER, &error), CT_ENOMEM, &error, "limit");
    assert_int_equal(count_files(&f), 3 + 2);
    test_ok(store(&f.folder, 6, 2000 - BLOB_HEADER, &error), &error);
    assert_int_equal(count_files(&f), 1 + 2);
    close_fixture(&f);
}

/* Of a run that was killed, and of one that is at work. */
static void test_temporary_files(void **state)
{
    (void)state;
    fixture f;
    ct_error error;
    char path[800];
    open_fixture(&f, 2000);
    test_ok(store(&f.folder, 1, 40, &error), &error);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s.%d-0.part", file_of(&f, 7), 100 + i);
        test_write_file(path, "x", 1);
    }
    const struct timespec times[2] = {{1700000000, 0}, {1700000000, 0}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    test_ok(store(&f.folder, 2, 40, &error), &error);
    assert_false(file_exists(path));
    assert_int_equal(count_files(&f), 2 + 1);
    close_fixture(&f);
}

static void test_unwritable(void **state)
{
    (void)state;
    fixture f;
    ct_error error;
    open_fixture(&f, 2000);
    test_write_file(test_path(&f.outer, "a"), "x", 1); /* where a folder should be */
    test_error(store(&f.folder, 1, 40, &error), CT_EIO, &error, "/a");
    assert_int_equal(fetch(&f.folder, 1, 40, &error), CT_ENOTFOUND);
    close_fixture(&f);
}

/* Reads are whole or fail, whoever else writes, reads and makes room. */
static void work_in_process(const blob_folder *folder, unsigned seed)
{
    ct_error error;
    unsigned found = 0;
    for (unsigned i = 0; i < 300; i++) {
        const unsigned number = (i * 5 + seed) % 8;
        const size_t bytes = 1000 + 100 * number;
        payload p = {.number = number};
        const blob_name name = name_of("prompt", number);
        const ct_status status =
            blob_folder_read(folder, &name, bytes, &(blob_sink){&p, take}, &error);
        if (status == CT_OK && (p.wrong || p.next != bytes))
            _exit(1);
        if (status != CT_OK && status != CT_ENOTFOUND)
            _exit(2);
        found += status == CT_OK;
        p = (payload){.number = number};
        if (status != CT_OK &&
            blob_folder_write(folder, &name, bytes, &(blob_source){&p, give}, &error) != CT_OK)
            _exit(3);
    }
    _exit(found ? 0 : 4);
}

static void test_processes(void **state)
{
    (void)state;
    fixture f;
    ct_error error;
    pid_t children[3];
    open_fixture(&f, 6000);
    for (unsigned i = 0; i < 3; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] == 0)
            work_in_process(&f.folder, i);
    }
    for (int i = 0; i < 3; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_int_equal(status, 0);
    }
    test_ok(store(&f.folder, 9, 1000, &error), &error);
    uint64_t bytes = 0;
    for (unsigned i = 0; i < 10; i++) {
        struct stat st;
        bytes += stat(file_of(&f, i), &st) == 0 ? (uint64_t)st.st_size : 0;
    }
    assert_in_range(bytes, 1000, 6000);
    close_fixture(&f);
}

static ct_status work_in_folder(const ct_allocator *a, void *user, ct_error *error)
{
    blob_folder folder = *(const blob_folder *)user;
    folder.allocator = a;
    ct_status status = store(&folder, 1, 40, error);
    if (status == CT_OK)
        status = fetch(&folder, 1, 40, error);
    return status;
}

static void test_folder_memory(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, 2000);
    test_each_allocation(work_in_folder, &f.folder);
    close_fixture(&f);
}

/* ---- Names ----------------------------------------------------------------------------------- */

#define DIGITS "0123456789abcdef0123456789abcdef"

static void test_names(void **state)
{
    (void)state;
    static const struct {
        const char *file, *kind;
        bool temporary;
    } cases[] = {
        {"prompt-" DIGITS ".blob", "prompt", false},
        {"schedule-" DIGITS ".blob.12-0.part", "schedule", true},
        {"abcdefghijklmno-" DIGITS ".blob", "abcdefghijklmno", false},
        {"abcdefghijklmnop-" DIGITS ".blob", NULL, false},
        {"-" DIGITS ".blob", NULL, false},
        {"prompt-" DIGITS "0.blob", NULL, false},
        {"prompt-" DIGITS ".blobs", NULL, false},
        {"prompt-" DIGITS ".blob.part", NULL, false},
        {"prompt-" DIGITS ".blob.old.12-0.part", NULL, false},
        {"prompt-0123.blob", NULL, false},
        {"prompt-" DIGITS, NULL, false},
        {"Prompt-" DIGITS ".blob", NULL, false},
        {"prompt", NULL, false},
        {"", NULL, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char kind[BLOB_KIND + 1];
        bool temporary;
        const bool is = blob_is_file(cases[i].file, kind, &temporary);
        assert_int_equal(is, cases[i].kind != NULL);
        if (!is)
            continue;
        assert_string_equal(kind, cases[i].kind);
        assert_int_equal(temporary, cases[i].temporary);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),          cmocka_unit_test(test_memory_limit),
        cmocka_unit_test(test_processes),       cmocka_unit_test(test_memory_threads),
        cmocka_unit_test(test_folder_holds),    cmocka_unit_test(test_damage),
        cmocka_unit_test(test_strange_entries), cmocka_unit_test(test_folder_limit),
        cmocka_unit_test(test_temporary_files), cmocka_unit_test(test_unwritable),
        cmocka_unit_test(test_folder_memory),   cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
