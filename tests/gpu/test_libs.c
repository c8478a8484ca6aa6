/* Matrix products, attention and convolutions of NVIDIA's libraries against plain loops in double,
 * and their speed. Needs a GPU but for the files; without one the rest is skipped. A list of cases
 * goes on after a failure, so one run tells everything.
 *
 * usage: test_cuda_libs [TEST]      TEST may hold * */
#include "gpu_support.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "libs.h"
#include "nn/cuda/blas_file.h"
#include "nn/cuda/dnn_file.h"

static blas_choice choice(int64_t m, uint64_t algorithm)
{
    return (blas_choice){.key = {.m = m, .n = 2, .k = 3}, .algo = {{algorithm}}};
}

static void test_choice_file(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const char *path = test_path(&folder, "choices.bin");
    blas_choice *read;
    size_t count, size;
    ct_error error;
    blas_file_read(&mem_default, path, &read, &count);
    assert_int_equal(count, 0);
    const blas_choice first[] = {choice(1, 10), choice(2, 20)};
    test_ok(blas_file_add(&mem_default, path, first, 2, &error), &error);
    /* What another process wrote stays, and wins. */
    const blas_choice second[] = {choice(2, 21), choice(3, 30)};
    test_ok(blas_file_add(&mem_default, path, second, 2, &error), &error);
    blas_file_read(&mem_default, path, &read, &count);
    assert_int_equal(count, 3);
    for (uint64_t i = 0; i < 3; i++) {
        assert_int_equal(read[i].key.m, i + 1);
        assert_int_equal(read[i].algo.data[0], (i + 1) * 10);
    }
    mem_free(&mem_default, read);
    /* Any byte that differs, and any length, makes it no file. */
    unsigned char *bytes = test_read_file(path, &size);
    for (size_t at = 0; at < size; at += 7) {
        bytes[at] ^= 4;
        test_write_file(path, bytes, size);
        blas_file_read(&mem_default, path, &read, &count);
        assert_int_equal(count, 0);
        assert_null(read);
        bytes[at] ^= 4;
    }
    for (size_t shorter = 0; shorter < size; shorter += 13) {
        test_write_file(path, bytes, shorter);
        blas_file_read(&mem_default, path, &read, &count);
        assert_int_equal(count, 0);
    }
    free(bytes);
    test_ok(blas_file_add(&mem_default, path, first, 1, &error), &error);
    blas_file_read(&mem_default, path, &read, &count);
    assert_int_equal(count, 1);
    mem_free(&mem_default, read);
    assert_int_equal(test_folder_count(&folder), 1);
    test_folder_remove(&folder);
}

static void test_plan_file(void **state)
{
    (void)state;
    test_folder folder;
    test_folder_create(&folder);
    const int64_t key[] = {1, 2, 3}, other[] = {1, 2, 4};
    char *path = dnn_file_path(&mem_default, folder.path, "a GPU", key, sizeof key);
    char *different = dnn_file_path(&mem_default, folder.path, "another", key, sizeof key);
    assert_string_not_equal(path, different);
    mem_free(&mem_default, different);
    char plan[] = "a plan";
    const dnn_text text = {512, plan, sizeof plan};
    dnn_text read;
    ct_error error;
    size_t size;
    assert_false(dnn_file_read(&mem_default, path, key, sizeof key, &read));
    test_ok(dnn_file_write(path, key, sizeof key, &text, &error), &error);
    assert_true(dnn_file_read(&mem_default, path, key, sizeof key, &read));
    assert_int_equal(read.scratch, 512);
    assert_int_equal(read.bytes, sizeof plan);
    assert_memory_equal(read.text, plan, sizeof plan);
    mem_free(&mem_default, read.text);
    assert_false(dnn_file_read(&mem_default, path, other, sizeof other, &read));
    unsigned char *bytes = test_read_file(path, &size);
    for (size_t at = 0; at < size; at++) {
        bytes[at] ^= 4;
        test_write_file(path, bytes, size);
        assert_false(dnn_file_read(&mem_default, path, key, sizeof key, &read));
        bytes[at] ^= 4;
        test_write_file(path, bytes, at);
        assert_false(dnn_file_read(&mem_default, path, key, sizeof key, &read));
    }
    free(bytes);
    mem_free(&mem_default, path);
    test_folder_remove(&folder);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice_file),    cmocka_unit_test(test_plan_file),
        cmocka_unit_test(test_products),       cmocka_unit_test(test_attention),
        cmocka_unit_test(test_convolution),    cmocka_unit_test(test_choices_are_kept),
        cmocka_unit_test(test_plans_are_kept), cmocka_unit_test(test_product_speed),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, open_gpu, close_gpu);
}
