/* What is said about the driver and the GPUs of a machine. Runs with the driver of fake_driver.c,
 * which LD_LIBRARY_PATH must lead to. */
#define _POSIX_C_SOURCE 200809L
#include "test_support.h"

#include "nn/cuda/driver.h"

#include <stdlib.h>
#include <string.h>

static void set(const char *name, const char *value)
{
    if (value)
        setenv(name, value, 1);
    else
        unsetenv(name);
}

static void opens(void **state)
{
    (void)state;
    cuda_driver d;
    cuda_device_info gpu;
    ct_error error;
    int count;
    test_ok(cuda_driver_open(&d, &error), &error);
    assert_int_equal(d.version, 13000);
    set("FAKE_CUDA_GPUS", "2");
    test_ok(cuda_device_count(&d, &count, &error), &error);
    assert_int_equal(count, 2);
    test_ok(cuda_device_query(&d, 1, &gpu, &error), &error);
    assert_string_equal(gpu.name, "Fake GPU 1");
    assert_int_equal(gpu.ordinal, 1);
    assert_int_equal(gpu.major, 9);
    assert_int_equal(gpu.minor, 0);
    assert_int_equal(gpu.multiprocessors, 132);
    assert_int_equal(gpu.shared_bytes, 232448);
    assert_true(gpu.memory == (size_t)141 << 30 && gpu.free_bytes == 0);
    test_error(cuda_device_query(&d, 2, &gpu, &error), CT_ENOTFOUND, &error,
               "no cuda:2; this machine has 2 GPUs");
    test_error(cuda_device_query(&d, -1, &gpu, &error), CT_ENOTFOUND, &error, "no cuda:-1");
    set("FAKE_CUDA_GPUS", NULL);
    test_ok(cuda_check(&d, 0, "nothing", &error), &error);
    test_error(cuda_check(&d, 700, "a launch", &error), CT_EDEVICE, &error,
               "a launch: a fake error (CUDA_ERROR_FAKE, 700)");
    test_error(cuda_check(&d, CU_OUT_OF_MEMORY, "10 MiB", &error), CT_ENOMEM, &error, "10 MiB: ");
    test_error(cuda_check(&d, 12345, "a launch", &error), CT_EDEVICE, &error, "12345");
    cuda_driver_close(&d);
    assert_null(d.library);
    cuda_driver_close(&d);
}

static void says_why_not(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"34", "stub"},     {"100", "finds no GPU"}, {"803", "restart the machine"},
        {"804", "too old"}, {"999", "nvidia-smi"},   {"700", "cuInit: a fake error"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cuda_driver d;
        ct_error error;
        set("FAKE_CUDA_INIT", cases[i][0]);
        test_error(cuda_driver_open(&d, &error), CT_EDEVICE, &error, cases[i][1]);
        assert_null(d.library);
    }
    set("FAKE_CUDA_INIT", NULL);
}

/* "ID PROBLEM" of the only device besides the CPU; empty where it has none. */
static const char *problem(ct_context *context, char out[1024 + 32])
{
    ct_device_list *list;
    ct_error error;
    test_ok(ct_devices(context, &list, &error), &error);
    assert_int_equal(list->count, 2);
    assert_string_equal(list->device[0].id, "cpu");
    assert_null(list->device[0].problem);
    *out = 0;
    if (list->device[1].problem)
        strcat(strcat(strcpy(out, list->device[1].id), " "), list->device[1].problem);
    ct_devices_free(&list);
    assert_null(list);
    return out;
}

static ct_context *new_context(test_heap *heap)
{
    ct_context_params params;
    ct_context *context;
    ct_error error;
    test_heap_init(heap, 0);
    ct_context_params_init(&params);
    params.threads = 1;
    params.allocator = heap->allocator;
    params.cache = "/dev/null/nowhere";
    test_ok(ct_context_create(&params, &context, &error), &error);
    return context;
}

static void lists_devices(void **state)
{
    (void)state;
    test_heap heap;
    ct_context *context = new_context(&heap);
    ct_device_list *list;
    ct_error error;
    set("FAKE_CUDA_GPUS", "2");
    test_ok(ct_devices(context, &list, &error), &error);
    assert_int_equal(list->count, 3);
    const ct_device_info *gpu = &list->device[2];
    assert_string_equal(gpu->id, "cuda:1");
    assert_string_equal(gpu->name, "Fake GPU 1");
    assert_non_null(strstr(gpu->summary, "compute capability 9.0"));
    assert_true(gpu->memory_bytes == (uint64_t)141 << 30);
    ct_devices_free(&list);
    set("FAKE_CUDA_GPUS", NULL);

    char text[1024 + 32];
    set("FAKE_CUDA_GPUS", "0");
    assert_string_equal(problem(context, text), "cuda the NVIDIA driver finds no GPU");
    set("FAKE_CUDA_GPUS", NULL);
    set("FAKE_CUDA_INIT", "803");
    assert_non_null(strstr(problem(context, text), "cuda libcuda.so.1 and the kernel"));
    set("FAKE_CUDA_INIT", NULL);
    set("FAKE_CUDA_ARCH", "61");
    assert_non_null(strstr(problem(context, text), "cuda:0 its compute capability, 6.1"));
    set("FAKE_CUDA_ARCH", NULL);
    set("FAKE_CUDA_VERSION", "12040"); /* CUDA 13 would not do */
    const char *old = problem(context, text);
    assert_true(!*old || strstr(old, "libcublasLt.so.12") || strstr(old, "libnvrtc.so.12"));
    set("FAKE_CUDA_VERSION", NULL);
    test_error(ct_devices(context, NULL, &error), CT_EINVAL, &error, "out is NULL");
    test_error(ct_devices(NULL, &list, &error), CT_EINVAL, &error, "context is NULL");
    ct_context_free(&context);
    assert_int_equal(heap.live, 0);
}

static void survives_short_memory(void **state)
{
    (void)state;
    test_heap heap;
    ct_context *context = new_context(&heap);
    const long before = heap.live;
    ct_status status = CT_ENOMEM;
    set("FAKE_CUDA_ARCH", "61"); /* what follows is not asked: no libraries, no compiler */
    for (long n = 1; status == CT_ENOMEM && n < 100; n++) {
        ct_device_list *list;
        ct_error error;
        heap.calls = 0;
        heap.fail_at = n;
        status = ct_devices(context, &list, &error);
        ct_devices_free(&list);
        assert_int_equal(heap.live, before);
    }
    assert_int_equal(status, CT_OK);
    set("FAKE_CUDA_ARCH", NULL);
    ct_context_free(&context);
    assert_int_equal(heap.live, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens),
        cmocka_unit_test(says_why_not),
        cmocka_unit_test(lists_devices),
        cmocka_unit_test(survives_short_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
