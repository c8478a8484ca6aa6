/* Tables of rotary positions: against their definition, and what tells them apart. */
#include "test_support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/threads.h"
#include "models/rope.h"
#include "nn/cpu/kernels.h"

static const int64_t dims[] = {4, 8, 6};
enum { HALF = 9 };

/* A picture, words on one axis, words on all, the same position again, and nothing. */
static rope_layout sample(rope_rounding rounding)
{
    rope_layout l = {.axes = 3, .dims = dims, .theta = 10000, .rounding = rounding};
    rope_add(
        &l, &(rope_run){
                .first = {7, -3, -2}, .down = {0, 1}, .right = {0, 0, 1}, .rows = 5, .columns = 4});
    rope_add(&l, &(rope_run){.first = {1}, .right = {1}, .rows = 1, .columns = 6});
    rope_add(&l, &(rope_run){.rows = 1, .columns = 3});
    rope_add(&l, &(rope_run){.rows = 1, .columns = 0});
    rope_add(&l,
             &(rope_run){.first = {900, 900, 900}, .right = {1, 1, 1}, .rows = 1, .columns = 5});
    return l;
}

/* One token after the other, every function by itself. */
static void expect_definition(const rope_layout *l, const float *cosine, const float *sine)
{
    for (int i = 0; i < l->runs; i++)
        for (int64_t token = 0; token < l->run[i].rows * l->run[i].columns; token++)
            for (int axis = 0; axis < l->axes; axis++) {
                const rope_run *r = &l->run[i];
                const int64_t position = r->first[axis] + token / r->columns * r->down[axis] +
                                         token % r->columns * r->right[axis];
                for (int64_t k = 0; k < dims[axis]; k += 2, cosine++, sine++) {
                    const double angle =
                        (double)position * pow(l->theta, -(double)k / (double)dims[axis]);
                    /* An angle of 900 in float32 is off by 3e-5, twice where its frequency is
                     * rounded, too. */
                    const double bound = l->rounding == ROPE_RESULTS ? 1e-7 : 1.5e-4;
                    assert_true(fabs((double)*cosine - cos(angle)) <= bound);
                    assert_true(fabs((double)*sine - sin(angle)) <= bound);
                }
            }
}

static void test_definition(void **state)
{
    (void)state;
    for (int rounding = ROPE_FLOAT; rounding <= ROPE_RESULTS; rounding++) {
        const rope_layout l = sample((rope_rounding)rounding);
        float cosine[34 * HALF], sine[34 * HALF];
        assert_int_equal(l.runs, 4); /* nothing is left out */
        assert_int_equal(rope_tokens(&l), 34);
        rope_fill(&l, cosine, sine);
        expect_definition(&l, cosine, sine);
    }
}

static void expect_other(const rope_layout *a, const rope_layout *b)
{
    const blob_name x = rope_name(a), y = rope_name(b);
    assert_string_equal(x.kind, "rope");
    assert_string_not_equal(x.hash, y.hash);
}

static void test_names(void **state)
{
    (void)state;
    static const int64_t others[] = {6, 6, 6};
    const rope_layout l = sample(ROPE_FLOAT), same = sample(ROPE_FLOAT);
    const blob_name a = rope_name(&l), b = rope_name(&same);
    assert_string_equal(a.hash, b.hash);
    for (int rounding = ROPE_ANGLES; rounding <= ROPE_RESULTS; rounding++) {
        const rope_layout other = sample((rope_rounding)rounding);
        expect_other(&l, &other);
    }
    rope_layout other = l;
    other.dims = others;
    expect_other(&l, &other);
    other = l;
    other.axes = 2;
    expect_other(&l, &other);
    other = l;
    other.theta = 256;
    expect_other(&l, &other);
    other = l;
    other.runs--;
    expect_other(&l, &other);
    other = l; /* another order */
    other.run[0] = l.run[1];
    other.run[1] = l.run[0];
    expect_other(&l, &other);
    other = l; /* as many tokens */
    other.run[0].rows = 4;
    other.run[0].columns = 5;
    expect_other(&l, &other);
    for (int i = 0; i < l.runs; i++)
        for (int axis = 0; axis < 3; axis++)
            for (int field = 0; field < 3; field++) {
                other = l;
                rope_run *r = &other.run[i];
                (field == 0 ? r->first : field == 1 ? r->down : r->right)[axis] += 1;
                expect_other(&l, &other);
            }
}

/* ---- In a network ---------------------------------------------------------------------------- */

typedef struct memory {
    int planned, asked, recalled, kept;
    size_t count;
    blob_name name;
    float *table;
} memory;

static void plan(void *user, const blob_name *name, size_t count)
{
    memory *m = user;
    m->planned++;
    m->count = count;
    m->name = *name;
}

static bool recall(void *user, const blob_name *name, float *table, size_t count)
{
    memory *m = user;
    m->asked++;
    assert_string_equal(name->hash, m->name.hash);
    assert_int_equal(count, m->count);
    if (!m->table)
        memset(table, 0xff, count * sizeof *table / 2); /* as much as was found of it */
    else
        memcpy(table, m->table, count * sizeof *table);
    m->recalled += m->table != NULL;
    return m->table != NULL;
}

static void keep(void *user, const blob_name *name, const float *table, size_t count)
{
    memory *m = user;
    m->kept++;
    assert_string_equal(name->hash, m->name.hash);
    assert_int_equal(count, m->count);
    m->table = malloc(count * sizeof *table);
    assert_non_null(m->table);
    memcpy(m->table, table, count * sizeof *table);
}

static void test_memory(void **state)
{
    (void)state;
    const rope_layout l = sample(ROPE_ANGLES);
    memory m = {0};
    const rope_memory tables = {&m, plan, recall, keep};
    float cosine[34 * HALF], sine[34 * HALF];
    rope_fill(&l, cosine, sine);
    ct_error error;
    pool *threads = NULL;
    cpu_kernels kernels;
    test_ok(pool_create(&threads, &mem_default, 1, &error), &error);
    test_ok(cpu_kernels_choose(&kernels, NULL, &error), &error);
    nn_params params = {.allocator = &mem_default, .threads = threads, .kernels = &kernels};
    /* A dry run, one that finds nothing, one that finds the table, one without memory for it. */
    for (int i = 0; i < 4; i++) {
        nn *c = NULL;
        nn_tensor x, y;
        params.dry = i == 0;
        test_ok(nn_create(&c, &params, &error), &error);
        rope_make(c, &l, i < 3 ? &tables : NULL, &x, &y);
        test_ok(nn_status(c, &error), &error);
        assert_int_equal(x.n[0], 34);
        assert_int_equal(y.n[1], HALF);
        if (i > 0) {
            assert_memory_equal(x.data, cosine, sizeof cosine);
            assert_memory_equal(y.data, sine, sizeof sine);
        }
        assert_int_equal(m.planned, 1);
        assert_int_equal(m.asked, i < 3 ? i : 2);
        assert_int_equal(m.kept, i > 0);
        assert_int_equal(m.recalled, i > 1);
        params.arena_bytes = nn_peak(c);
        nn_free(c);
    }
    assert_int_equal(m.count, 2 * 34 * HALF);
    free(m.table);
    pool_free(threads);
}

static void test_too_many_runs(void **state)
{
    (void)state;
    rope_layout l = {.axes = 3, .dims = dims, .theta = 10000};
    for (int i = 0; i <= ROPE_MAX_RUNS; i++)
        rope_add(&l, &(rope_run){.first = {i}, .rows = 1, .columns = 1});
    assert_int_equal(rope_tokens(&l), ROPE_MAX_RUNS);
    ct_error error;
    pool *threads = NULL;
    cpu_kernels kernels;
    test_ok(pool_create(&threads, &mem_default, 1, &error), &error);
    test_ok(cpu_kernels_choose(&kernels, NULL, &error), &error);
    const nn_params params = {
        .allocator = &mem_default, .threads = threads, .kernels = &kernels, .dry = true};
    nn *c = NULL;
    nn_tensor x, y;
    test_ok(nn_create(&c, &params, &error), &error);
    rope_make(c, &l, NULL, &x, &y);
    test_error(nn_status(c, &error), CT_EINTERNAL, &error, "runs of positions");
    nn_free(c);
    pool_free(threads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_definition),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_too_many_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
