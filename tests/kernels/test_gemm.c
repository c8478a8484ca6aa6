/* Every product of matrices that this program has and this processor can run, against sums in
 * double (or int64), with guards around all that is read and written. With --bench: the speed of
 * tiles and packs on data in the caches.
 *
 * The seed is printed; give it as SEED in the environment to repeat a failure. */
#define _DEFAULT_SOURCE
#include "test_support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/dtype.h"
#include "nn/cpu/gemm.h"
#include "nn/cpu/peak.h"

#define ROUNDS 60
#define FILL 0xA5

static uint64_t seed = 1;

static uint32_t random32(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static int64_t random_between(int64_t low, int64_t high)
{
    return low + random32() % (high - low + 1);
}

/* ---- Memory between pages that cannot be touched --------------------------------------------- */

typedef struct fence {
    unsigned char *data; /* size bytes; filled with FILL */
    size_t size;
    unsigned char *pages; /* what may be touched: data and less than a page more */
    size_t length;
} fence;

/* The data ends where its last page ends, or begins where its first page begins. Either way it is
 * aligned to 4 bytes only when size is not a multiple of more. */
static fence fence_create(size_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    fence f = {.size = size, .length = (size + page - 1) / page * page};
    unsigned char *all =
        mmap(NULL, f.length + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(all != MAP_FAILED);
    f.pages = all + page;
    assert_int_equal(mprotect(f.pages, f.length, PROT_READ | PROT_WRITE), 0);
    memset(f.pages, FILL, f.length);
    f.data = random32() & 1 ? f.pages : f.pages + f.length - size;
    return f;
}

static void fence_free(fence f, const char *what)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < f.length; i++)
        if ((f.pages + i < f.data || f.pages + i >= f.data + f.size) && f.pages[i] != FILL)
            fail_msg("wrote %ld bytes from the start of %s of %zu bytes",
                     (long)(f.pages + i - f.data), what, f.size);
    munmap(f.pages - page, f.length + 2 * page);
}

/* ---- Operands -------------------------------------------------------------------------------- */

static int elements_of_word(const cpu_gemm *g)
{
    switch (g->element) {
    case GEMM_FLOAT32: return 1;
    case GEMM_INT8: return 4;
    default: return 2;
    }
}

typedef enum numbers {
    RANDOM,  /* of the whole range */
    EXTREME, /* the ends of the range alone */
    HIGHEST, /* all the largest, which sums up to the most */
    NUMBERS
} numbers;

/* Of -127..127, and -128 now and then, which no caller uses but which is just as exact. */
static int random_int8(numbers kind)
{
    if (kind == HIGHEST)
        return 127;
    if (kind == EXTREME)
        return random32() & 1 ? 127 : random32() & 7 ? -127 : -128;
    return (int)random_between(-127, 127);
}

/* count vectors of words each: as a caller hands them to a pack function, and as numbers. */
typedef struct operand {
    int count;
    int64_t words, length; /* length: elements */
    fence memory[GEMM_MAX_NR];
    const void *vectors[GEMM_MAX_NR];
    double *values; /* [count][length] */
} operand;

static void put(void *at, const cpu_gemm *g, bool offset, numbers kind, double *value)
{
    if (g->compute == CPU_INT8) {
        const int v = random_int8(kind);
        const int8_t byte = (int8_t)v;
        const uint8_t raised = (uint8_t)(v + 128);
        const int16_t wide = (int16_t)v;
        *value = v;
        if (g->element == GEMM_INT16)
            memcpy(at, &wide, 2);
        else
            memcpy(at, offset ? (const void *)&raised : &byte, 1);
        return;
    }
    /* -2..2, in steps that keep products far from denormal. */
    const float f = ((float)(random32() >> 8) - 8388608.0f) / 4194304.0f;
    const uint16_t half = bf16_from_float(f);
    *value = (double)(g->element == GEMM_BFLOAT16 ? bf16_to_float(half) : f);
    memcpy(at, g->element == GEMM_BFLOAT16 ? (const void *)&half : &f,
           g->element == GEMM_BFLOAT16 ? 2 : 4);
}

static operand operand_create(const cpu_gemm *g, bool columns, int64_t words, numbers kind)
{
    const int per_word = elements_of_word(g);
    operand o = {.count = columns ? g->nr : g->mr, .words = words, .length = words * per_word};
    o.values = malloc((size_t)(o.count * o.length) * sizeof(double));
    assert_non_null(o.values);
    for (int i = 0; i < o.count; i++) {
        o.memory[i] = fence_create((size_t)words * 4);
        o.vectors[i] = o.memory[i].data;
        for (int64_t k = 0; k < o.length; k++)
            put(o.memory[i].data + k * 4 / per_word, g, columns && g->offset_columns, kind,
                o.values + i * o.length + k);
    }
    return o;
}

static void operand_free(operand *o)
{
    for (int i = 0; i < o->count; i++)
        fence_free(o->memory[i], "a source");
    free(o->values);
}

static fence pack(const cpu_gemm *g, const operand *o, bool columns)
{
    fence panel = fence_create((size_t)(o->words * o->count) * 4);
    (columns ? g->pack_columns : g->pack_rows)(panel.data, o->vectors, o->words);
    return panel;
}

/* What the tile gives: exact sums, in double. With offset_columns those of the columns as stored,
 * which the caller corrects. */
static void exact_sums(const cpu_gemm *g, const operand *a, const operand *b, double *sums)
{
    for (int m = 0; m < g->mr; m++)
        for (int n = 0; n < g->nr; n++) {
            const double *x = a->values + m * a->length, *y = b->values + n * b->length;
            double sum = 0;
            for (int64_t k = 0; k < a->length; k++)
                sum += x[k] * (y[k] + (g->offset_columns ? 128 : 0));
            sums[m * g->nr + n] = sum;
        }
}

/* ---- Checks ---------------------------------------------------------------------------------- */

static int64_t random_words(const cpu_gemm *g)
{
    switch (random32() % 4) {
    case 0: return g->step;
    case 1: return g->step * random_between(1, 8);
    case 2: return g->step * random_between(1, 40 / g->step + 8);
    default: return g->step * random_between(1, 480 / g->step);
    }
}

/* Sums of c [mr][ldc], numbers between the rows included, with what was there before. */
typedef struct tile_c {
    fence memory;
    int64_t ldc;
} tile_c;

static tile_c c_create(const cpu_gemm *g, int64_t ldc)
{
    /* The last row ends with its last column: nothing behind it may be touched. */
    return (tile_c){fence_create((size_t)((g->mr - 1) * ldc + g->nr) * 4), ldc};
}

static double c_value(const cpu_gemm *g, const tile_c *c, int m, int n)
{
    const unsigned char *at = c->memory.data + 4 * (m * c->ldc + n);
    float f;
    int32_t i;
    memcpy(&f, at, 4);
    memcpy(&i, at, 4);
    return g->compute == CPU_INT8 ? (double)i : (double)f;
}

static void c_set(const cpu_gemm *g, tile_c *c, int m, int n, int value)
{
    const float f = (float)value;
    const int32_t i = value;
    memcpy(c->memory.data + 4 * (m * c->ldc + n), g->compute == CPU_INT8 ? (const void *)&i : &f,
           4);
}

static void c_free(const cpu_gemm *g, tile_c *c)
{
    for (int m = 0; m + 1 < g->mr; m++)
        for (int64_t i = 4 * (m * c->ldc + g->nr); i < 4 * (m + 1) * c->ldc; i++)
            if (c->memory.data[i] != FILL)
                fail_msg("%s wrote between the rows of c", g->name);
    fence_free(c->memory, "c");
}

static void compare(const cpu_gemm *g, const tile_c *c, const double *want, int64_t words)
{
    double error = 0, norm = 0;
    for (int m = 0; m < g->mr; m++)
        for (int n = 0; n < g->nr; n++) {
            const double d = c_value(g, c, m, n) - want[m * g->nr + n];
            error += d * d;
            norm += want[m * g->nr + n] * want[m * g->nr + n];
            if (g->compute == CPU_INT8 && d != 0)
                fail_msg("%s: c[%d][%d] of %lld words is %.0f, not %.0f", g->name, m, n,
                         (long long)words, c_value(g, c, m, n), want[m * g->nr + n]);
        }
    if (!(sqrt(error) <= 1e-6 * sqrt(norm)))
        fail_msg("%s: relative L2 %.2e, %lld words", g->name, sqrt(error / norm), (long long)words);
}

/* A tile of both packs, overwriting or adding to c. */
static void check_tile(const cpu_gemm *g)
{
    const int64_t words = random_words(g);
    const numbers kind = (numbers)(random32() % NUMBERS);
    const bool accumulate = random32() & 1;
    operand a = operand_create(g, false, words, kind), b = operand_create(g, true, words, kind);
    fence rows = pack(g, &a, false), columns = pack(g, &b, true);
    double *want = malloc((size_t)(g->mr * g->nr) * sizeof(double));
    assert_non_null(want);
    exact_sums(g, &a, &b, want);
    tile_c c = c_create(g, g->nr + random_between(0, 20));
    for (int m = 0; accumulate && m < g->mr; m++)
        for (int n = 0; n < g->nr; n++) {
            const int before = (int)random_between(-1000, 1000);
            c_set(g, &c, m, n, before);
            want[m * g->nr + n] += before;
        }
    /* What is asked for need not be memory: here it begins in a panel and ends far behind it. */
    if (random32() & 1)
        gemm_tile(g, words, rows.data, columns.data, c.memory.data, c.ldc, accumulate,
                  (const char *)rows.data, random_between(0, 1 << 20), 0, 1);
    else
        g->tile(words, rows.data, columns.data, c.memory.data, c.ldc, accumulate);
    compare(g, &c, want, words);
    c_free(g, &c);
    free(want);
    fence_free(rows, "a panel of rows");
    fence_free(columns, "a panel of columns");
    operand_free(&a);
    operand_free(&b);
}

/* In parts, added up, as at once; parts packed alone as packed together. */
static void check_parts(const cpu_gemm *g)
{
    const int64_t words = random_words(g);
    operand a = operand_create(g, false, words, RANDOM), b = operand_create(g, true, words, RANDOM);
    fence rows = pack(g, &a, false), columns = pack(g, &b, true);
    fence rows_of_parts = fence_create(rows.size), columns_of_parts = fence_create(columns.size);
    tile_c once = c_create(g, g->nr), parts = c_create(g, g->nr);
    g->tile(words, rows.data, columns.data, once.memory.data, once.ldc, false);
    for (int64_t w = 0, n; w < words; w += n) {
        n = g->step * random_between(1, (words - w) / g->step);
        const void *row_parts[GEMM_MAX_NR], *column_parts[GEMM_MAX_NR];
        for (int i = 0; i < a.count; i++)
            row_parts[i] = (const char *)a.vectors[i] + 4 * w;
        for (int i = 0; i < b.count; i++)
            column_parts[i] = (const char *)b.vectors[i] + 4 * w;
        g->pack_rows(rows_of_parts.data + 4 * w * g->mr, row_parts, n);
        g->pack_columns(columns_of_parts.data + 4 * w * g->nr, column_parts, n);
        g->tile(n, rows.data + 4 * w * g->mr, columns.data + 4 * w * g->nr, parts.memory.data,
                parts.ldc, w > 0);
    }
    test_bytes_equal(rows_of_parts.data, rows.data, rows.size);
    test_bytes_equal(columns_of_parts.data, columns.data, columns.size);
    test_bytes_equal(parts.memory.data, once.memory.data, once.memory.size);
    c_free(g, &once);
    c_free(g, &parts);
    fence_free(rows, "a panel of rows");
    fence_free(columns, "a panel of columns");
    fence_free(rows_of_parts, "a panel of rows");
    fence_free(columns_of_parts, "a panel of columns");
    operand_free(&a);
    operand_free(&b);
}

static void test_gemms(void **state)
{
    void (*check)(const cpu_gemm *) = (void (*)(const cpu_gemm *)) * state;
    const uint32_t features = cpu_features();
    for (int i = 0; cpu_gemms[i]; i++) {
        const cpu_gemm *g = cpu_gemms[i];
        if (g->features & ~features)
            continue;
        for (int round = 0; round < ROUNDS; round++) {
            if (g->begin)
                g->begin();
            check(g);
            if (g->end)
                g->end();
        }
    }
}

static bool is_definition(const cpu_gemm *g)
{
    return !strcmp(g->name, "reference");
}

/* What callers rely on without asking. */
static void test_list(void **state)
{
    (void)state;
    bool defined[CPU_COMPUTES] = {false};
    for (int i = 0; cpu_gemms[i]; i++) {
        const cpu_gemm *g = cpu_gemms[i];
        assert_true(g->mr > 0 && g->mr <= GEMM_MAX_MR && g->nr > 0 && g->nr <= GEMM_MAX_NR);
        assert_true(g->step > 0 && g->block_words > 0 && g->block_words % g->step == 0);
        assert_true(g->block_columns > 0 && g->block_columns % g->nr == 0);
        assert_true(g->block_rows > 0 && g->block_rows % g->mr == 0);
        assert_true(!g->offset_columns || g->element == GEMM_INT8);
        assert_true(!g->begin == !g->end);
        /* The definition comes first. */
        assert_true(defined[g->compute] || (!g->features && is_definition(g)));
        defined[g->compute] = true;
        /* The fastest that needs no more than this one needs just as much, but for the definition
         * of bfloat16 products; so its peak is the one that --bench compares with. */
        const cpu_gemm *best = cpu_gemm_choose(g->compute, g->features);
        if (g->compute == CPU_BF16 && !g->features)
            assert_null(best);
        else
            assert_int_equal(best->features, g->features);
    }
    for (int i = 0; i < CPU_COMPUTES; i++)
        assert_true(defined[i]);
}

/* Where a test knows which processor it runs on (an emulated one), it says what is to be chosen. */
static void test_chosen(void **state)
{
    (void)state;
    const char *expected = getenv("CT_GEMMS");
    if (!expected)
        skip();
    char chosen[128] = "";
    for (int i = 0; i < CPU_COMPUTES; i++) {
        const cpu_gemm *g = cpu_gemm_choose((cpu_compute)i, cpu_features());
        strcat(strcat(chosen, i ? " " : ""), g ? g->name : "-");
    }
    assert_string_equal(chosen, expected);
}

/* A loop belongs to every product but the definitions. */
static void test_peak(void **state)
{
    (void)state;
    const uint32_t features = cpu_features();
    for (int i = 0; cpu_gemms[i]; i++)
        if (!is_definition(cpu_gemms[i]) && !(cpu_gemms[i]->features & ~features)) {
            const double peak =
                cpu_peak_gflops(cpu_gemms[i]->compute, cpu_gemms[i]->features, 0.02);
            assert_true(peak > 0.01 && peak < 1e5); /* an emulator is slow */
        }
    assert_true(cpu_peak_gflops(CPU_BF16, 0, 0.01) == 0);
}

/* ---- Speed ----------------------------------------------------------------------------------- */

static const char *const compute_names[CPU_COMPUTES] = {"f32", "bf16", "int8"};

static void *bench_memory(size_t size)
{
    void *p = aligned_alloc(64, (size + 63) / 64 * 64);
    assert_non_null(p);
    memset(p, 0, size);
    return p;
}

/* The best of many: seconds of one call. */
static double bench_best(void (*work)(void *), void *data)
{
    double best = 1e9;
    for (double end = clock_seconds() + 0.5; clock_seconds() < end;) {
        const double start = clock_seconds();
        work(data);
        const double seconds = clock_seconds() - start;
        best = seconds < best ? seconds : best;
    }
    return best;
}

typedef struct bench {
    const cpu_gemm *g;
    int64_t words, rows, columns; /* of a block's slice */
    char *a, *b, *c;
    const void *sources[GEMM_MAX_NR];
} bench;

/* One pass over a block's slice of k, as callers do it: rows outside, columns inside. */
static void bench_block(void *data)
{
    const bench *t = data;
    for (int64_t m = 0; m < t->rows; m += t->g->mr)
        for (int64_t n = 0; n < t->columns; n += t->g->nr)
            t->g->tile(t->words, t->a + 4 * m * t->words, t->b + 4 * n * t->words,
                       t->c + 4 * (m * t->columns + n), t->columns, true);
}

static void bench_pack_rows(void *data)
{
    const bench *t = data;
    for (int i = 0; i < 16; i++)
        t->g->pack_rows(t->a, t->sources, t->words);
}

static void bench_pack_columns(void *data)
{
    const bench *t = data;
    for (int i = 0; i < 16; i++)
        t->g->pack_columns(t->b, t->sources, t->words);
}

static double bench_share(bench *t, int64_t words, int64_t rows, int64_t columns, double peak)
{
    t->words = words;
    t->rows = rows;
    t->columns = columns;
    const double operations =
        2.0 * elements_of_word(t->g) * (double)words * (double)rows * (double)columns;
    const double rate = operations / bench_best(bench_block, t) * 1e-9;
    printf("  %7.1f (%3.0f %%)", rate, peak > 0 ? 100 * rate / peak : 0);
    return rate;
}

static void bench_gemm(const cpu_gemm *g)
{
    const int64_t words = g->block_words, most = g->mr > g->nr ? g->mr : g->nr;
    /* Packed with a stride as in a matrix of 3840 words. */
    const size_t stride = 3840 * 4;
    char *sources = bench_memory((size_t)most * stride);
    bench t = {.g = g,
               .a = bench_memory((size_t)(g->block_rows * words) * 4),
               .b = bench_memory((size_t)(g->block_columns * words) * 4),
               .c = bench_memory((size_t)(g->block_rows * g->block_columns) * 4)};
    for (int i = 0; i < most; i++)
        t.sources[i] = sources + (size_t)i * stride;
    const int64_t few = (words / 4 + g->step - 1) / g->step * g->step;
    const double peak = cpu_peak_gflops(g->compute, g->features, 0.3);
    if (g->begin)
        g->begin();
    printf("%-10s %-4s %2d x %2d  peak %8.1f  tile", g->name, compute_names[g->compute], g->mr,
           g->nr, peak);
    bench_share(&t, few, g->mr, g->nr, peak);
    printf("  slice");
    bench_share(&t, words, g->mr, g->block_columns, peak);
    printf("  block");
    bench_share(&t, words, g->block_rows, g->block_columns, peak);
    t.words = words;
    const double rows = bench_best(bench_pack_rows, &t),
                 columns = bench_best(bench_pack_columns, &t);
    printf("  packs %5.1f %5.1f GB/s\n", 16 * 4e-9 * (double)(words * g->mr) / rows,
           16 * 4e-9 * (double)(words * g->nr) / columns);
    if (g->end)
        g->end();
    free(sources);
    free(t.a);
    free(t.b);
    free(t.c);
}

int main(int argc, char **argv)
{
    const uint32_t features = cpu_features();
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        printf(
            "GFLOP/s of one thread (share of the peak). tile: one tile in the first-level cache; "
            "slice: all columns of\na block; block: all rows of a block too. Packs: words read "
            "from the second-level cache.\n");
        for (int i = 0; cpu_gemms[i]; i++)
            if (!(cpu_gemms[i]->features & ~features))
                bench_gemm(cpu_gemms[i]);
        return 0;
    }
    seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) : (uint64_t)(clock_seconds() * 1e6);
    fprintf(stderr, "# SEED=%llu\n", (unsigned long long)seed);
    for (int i = 0; cpu_gemms[i]; i++)
        fprintf(stderr, "# %-10s %-4s %s\n", cpu_gemms[i]->name,
                compute_names[cpu_gemms[i]->compute],
                cpu_gemms[i]->features & ~features ? "skipped: not on this processor" : "tested");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_chosen),
        {"tile", test_gemms, NULL, NULL, (void *)check_tile},
        {"parts", test_gemms, NULL, NULL, (void *)check_parts},
        cmocka_unit_test(test_peak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
