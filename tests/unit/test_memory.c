/* Memory: pages that come and go, limits of the system, and which weights stay. */
#define _XOPEN_SOURCE 700
#include "core/file.h"
#include "core/mem.h"
#include "core/memory_info.h"
#include "core/readahead.h"
#include "io/safetensors.h"
#include "pipeline/residency.h"
#include "test_support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
/* A system may map, and let go, the pages of a file in pieces of this size where it wants to. */
#define PIECE (2 * MIB)

/* ---- Pages ----------------------------------------------------------------------------------- */

static const unsigned char *watched;

static bool is_other(void *user, const void *address)
{
    (void)user;
    return address != watched;
}

/* Bytes in memory of the mapping at watched. */
static size_t resident(void)
{
    return (size_t)memory_resident(is_other, NULL);
}

static void open_numbers(file_map *map, test_folder *folder, size_t size)
{
    test_folder_create(folder);
    unsigned char *data = malloc(size);
    assert_non_null(data);
    for (size_t i = 0; i < size; i++)
        data[i] = (unsigned char)(i * 7 + i / 4096);
    test_write_file(test_path(folder, "numbers"), data, size);
    free(data);
    ct_error error;
    test_ok(file_map_open(map, test_path(folder, "numbers"), &error), &error);
    watched = map->data;
}

static void check_numbers(const file_map *map)
{
    for (size_t i = 0; i < map->size; i++)
        if (map->data[i] != (unsigned char)(i * 7 + i / 4096))
            fail_msg("byte %zu has changed", i);
}

static void lets_pages_go(void **state)
{
    (void)state;
    file_map map;
    test_folder folder;
    open_numbers(&map, &folder, 16 * MIB + 123);
    check_numbers(&map);
    if (!resident())
        skip();
    assert_true(resident() >= 16 * MIB);
    file_map_let_go(&map, MIB + 1, 8 * MIB);
    const size_t left = resident();
    assert_true(left <= 8 * MIB + 8192 && left >= 8 * MIB - 2 * PIECE);
    file_map_let_go(&map, 0, map.size);
    assert_int_equal(resident(), 0);
    file_map_expect(&map, 0, map.size);
    check_numbers(&map);
    /* Beyond the end, or nothing: no effect. */
    file_map_let_go(&map, map.size, 1);
    file_map_let_go(&map, 0, 0);
    assert_true(resident() >= 16 * MIB);
    file_map_let_go(&map, 16 * MIB, SIZE_MAX);
    check_numbers(&map);
    file_map_close(&map);
    file_map_let_go(&map, 0, 1);
    test_folder_remove(&folder);
}

static void discards_only_inside(void **state)
{
    (void)state;
    const size_t size = 3 * MIB + 77;
    unsigned char *block = malloc(size);
    assert_non_null(block);
    memset(block, 0xa5, size);
    mem_discard(block + 5000, 2 * MIB);
    for (size_t i = 0; i < size; i++)
        if (i < 5000 || i >= 5000 + 2 * MIB)
            assert_int_equal(block[i], 0xa5);
    memset(block, 0x5a, size);
    mem_discard(block + 1, 4000); /* no whole page */
    for (size_t i = 0; i < size; i++)
        assert_int_equal(block[i], 0x5a);
    free(block);
}

static void reads_ahead(void **state)
{
    (void)state;
    file_map map;
    test_folder folder;
    ct_error error;
    readahead *r = NULL;
    open_numbers(&map, &folder, 20 * MIB);
    const file_range ranges[] = {{&map, 0, 9 * MIB}, {&map, 10 * MIB, 10 * MIB}, {&map, 5, 7}};
    test_ok(readahead_create(&r, &mem_default, &error), &error);
    for (int i = 0; i < 1000; i++)
        readahead_ask(r, ranges + i % 3, (size_t)(3 - i % 3));
    check_numbers(&map);
    readahead_free(r); /* in the middle of it, or not */
    readahead_ask(NULL, ranges, 3);
    readahead_free(NULL);
    file_map_close(&map);
    test_folder_remove(&folder);
}

/* ---- The system's limits --------------------------------------------------------------------- */

typedef struct machine {
    char root[512];
} machine;

static void machine_put(const machine *m, const char *name, const char *text)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", m->root, name);
    for (char *slash = path + strlen(m->root); (slash = strchr(slash + 1, '/')) != NULL;) {
        *slash = 0;
        mkdir(path, 0777);
        *slash = '/';
    }
    test_write_file(path, text, strlen(text));
}

static uint64_t machine_available(const machine *m)
{
    char proc[1024], groups[1024];
    snprintf(proc, sizeof proc, "%s/proc", m->root);
    snprintf(groups, sizeof groups, "%s/cgroup", m->root);
    return memory_available_in(proc, groups);
}

static void machine_create(machine *m)
{
    const char *base = getenv("TMPDIR");
    snprintf(m->root, sizeof m->root, "%s/calotype-machine-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(m->root));
}

static void machine_remove(const machine *m)
{
    char command[600];
    snprintf(command, sizeof command, "rm -r '%s'", m->root);
    assert_int_equal(system(command), 0);
}

static void knows_limits_of_groups(void **state)
{
    (void)state;
    machine m;
    machine_create(&m);
    assert_true(machine_available(&m) == UINT64_MAX);
    machine_put(&m, "proc/meminfo",
                "MemTotal:       24684092 kB\nMemFree:         1000 kB\n"
                "MemAvailable:   8388608 kB\n");
    assert_true(machine_available(&m) == (uint64_t)8 << 30);
    machine_put(&m, "proc/self/cgroup", "9:name=systemd:/x\n4:memory:/\n0::/a/b\n");
    assert_true(machine_available(&m) == (uint64_t)8 << 30);
    /* The unified hierarchy: the group itself has none, the one above leaves 3 - (2 - 1) GiB. */
    machine_put(&m, "cgroup/a/b/memory.max", "max\n");
    machine_put(&m, "cgroup/a/memory.max", "3221225472\n");
    machine_put(&m, "cgroup/a/memory.current", "2147483648\n");
    machine_put(&m, "cgroup/a/memory.stat",
                "anon 1073741824\nfile 1073741824\ninactive_file 1000000000\n"
                "active_file 73741824\n");
    assert_true(machine_available(&m) == (uint64_t)2 << 30);
    /* A container sees its own group as the root. */
    machine_put(&m, "cgroup/memory.max", "1073741824\n");
    assert_true(machine_available(&m) == (uint64_t)1 << 30);
    /* More is used than is allowed: nothing is left. */
    machine_put(&m, "cgroup/memory.current", "1073741825\n");
    assert_true(machine_available(&m) == 0);
    machine_remove(&m);

    machine_create(&m);
    machine_put(&m, "proc/meminfo", "MemAvailable:   8388608 kB\n");
    machine_put(&m, "proc/self/cgroup", "4:memory:/x\n0::/\n");
    machine_put(&m, "cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n");
    machine_put(&m, "cgroup/memory/x/memory.usage_in_bytes", "500\n");
    assert_true(machine_available(&m) == (uint64_t)8 << 30);
    machine_put(&m, "cgroup/memory/x/memory.limit_in_bytes", "1000000\n");
    machine_put(&m, "cgroup/memory/x/memory.usage_in_bytes", "600000\n");
    machine_put(&m, "cgroup/memory/x/memory.stat",
                "cache 1\ntotal_inactive_file 100000\ntotal_active_file 200000\n");
    assert_int_equal(machine_available(&m), 700000);
    machine_remove(&m);
}

/* ---- Which weights stay ---------------------------------------------------------------------- */

#define BLOCKS 9
#define BLOCK_BYTES (6 * MIB + 4096) /* no multiple of a window */

/* A file with a tensor for each block. */
static weights *open_blocks(test_folder *folder)
{
    ct_error error;
    safetensors_writer *writer = NULL;
    weights *w = NULL;
    test_folder_create(folder);
    unsigned char *data = malloc(BLOCK_BYTES);
    assert_non_null(data);
    const char *path = test_path(folder, "blocks.safetensors");
    test_ok(safetensors_writer_open(&writer, &mem_default, path, &error), &error);
    for (int i = 0; i < BLOCKS; i++) {
        char name[16];
        snprintf(name, sizeof name, "b%d", i);
        memset(data, i, BLOCK_BYTES);
        const int64_t shape[] = {BLOCK_BYTES / 4};
        test_ok(safetensors_writer_add(writer, name, DTYPE_F32, 1, shape, data, &error), &error);
    }
    free(data);
    test_ok(safetensors_writer_commit(writer, &error), &error);
    test_ok(weights_open_file(&w, &mem_default, path, &error), &error);
    size_t at;
    watched = weights_locate(w, weights_find(w, "b0")->data, &at)->data;
    assert_null(weights_locate(w, &at, &at));
    return w;
}

/* What a network of a head and BLOCKS - 1 blocks does; returns the most that was resident. */
static size_t run_network(residency *r, const weights *w, bool dry)
{
    size_t most = 0;
    residency_begin(r, SECTION_EVALUATE);
    for (int i = 0; i < BLOCKS; i++) {
        char name[16];
        snprintf(name, sizeof name, "b%d", i);
        const weight_view *v = weights_find(w, name);
        if (i > 0)
            r->hook.block(r->hook.user);
        if (dry) {
            int somewhere;
            r->hook.reads(r->hook.user, v->data, v->bytes);
            r->hook.reads(r->hook.user, v->data + 64, 128); /* again a part of it */
            r->hook.reads(r->hook.user, &somewhere, sizeof somewhere);
            continue;
        }
        for (size_t k = 0; k < v->bytes; k += 2048)
            if (v->data[k] != i)
                fail_msg("block %d has changed", i);
        if (resident() > most)
            most = resident();
    }
    return most;
}

static void streams_blocks(void **state)
{
    (void)state;
    test_folder folder;
    ct_error error;
    weights *w = open_blocks(&folder);
    residency r;
    residency_init(&r, &mem_default);
    residency_watch(&r, w);
    residency_start(&r, true);
    for (int i = 0; i < 3; i++) /* only the first is recorded */
        run_network(&r, w, true);
    test_ok(residency_finish(&r, &error), &error);
    assert_int_equal(r.list[SECTION_EVALUATE].count, BLOCKS);
    const uint64_t all = residency_read_bytes(&r, SECTION_EVALUATE, SECTION_EVALUATE);
    assert_true(all >= BLOCKS * BLOCK_BYTES && all <= BLOCKS * BLOCK_BYTES + 2 * FILE_WINDOW);
    residency_read_ahead(&r);
    for (int streamed = 0; streamed <= BLOCKS; streamed++) {
        residency_stream(&r, SECTION_EVALUATE, streamed);
        int gone = 0, since = 0;
        for (int i = 0; i < BLOCKS; i++) {
            const bool stays = r.blocks[i].stays;
            gone += !stays;
            since = stays ? 0 : since + 1;
            /* Spread evenly: never two in a row while half of them or more stay. */
            assert_true(since <= 1 || 2 * streamed > BLOCKS);
        }
        assert_int_equal(gone, streamed);
        const uint64_t expected = residency_bytes(&r, SECTION_EVALUATE);
        if (streamed == 0)
            assert_true(expected == all);
        weights_let_go(w);
        residency_start(&r, false);
        size_t most = 0;
        for (int i = 0; i < 3; i++) {
            const size_t now = run_network(&r, w, false);
            most = now > most ? now : most;
        }
        if (!most)
            continue; /* not known on this system */
        if (most > expected + PIECE || most + PIECE < expected)
            fail_msg("%d streamed: %zu bytes instead of %zu", streamed, most, (size_t)expected);
        residency_let_go(&r, w);
        assert_int_equal(resident(), 0);
    }
    residency_free(&r);
    weights_close(w);
    test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lets_pages_go),  cmocka_unit_test(discards_only_inside),
        cmocka_unit_test(reads_ahead),    cmocka_unit_test(knows_limits_of_groups),
        cmocka_unit_test(streams_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
