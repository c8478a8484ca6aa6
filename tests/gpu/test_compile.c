/* Compiles all kernels for GPUs of every generation, and loads them into a driver that is not
 * there. Needs NVRTC but no GPU. usage: test_compile [--quick]   (one GPU only) */
#define _GNU_SOURCE
#include "test_support.h"

#include "core/folder.h"
#include "core/mem.h"
#include "core/threads.h"
#include "nn/cuda/module.h"
#include "nn/cuda/nvrtc.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static cuda_compiler *compiler;

/* ---- Every kernel for every GPU ---- */

typedef struct compilation {
    const cuda_target *target;
    void *code[CUDA_MODULES];
    size_t bytes[CUDA_MODULES];
    ct_error error[CUDA_MODULES];
} compilation;

static void compile_file(void *user, int64_t file, int worker)
{
    (void)worker;
    compilation *c = user;
    cuda_compile(compiler, (int)file, c->target, &c->code[file], &c->bytes[file], &c->error[file]);
}

static compilation compile_all(const cuda_target *target)
{
    compilation c = {.target = target};
    pool *threads;
    ct_error error;
    test_ok(pool_create(&threads, &mem_default, 0, &error), &error);
    pool_run(threads, CUDA_MODULES, compile_file, &c);
    pool_free(threads);
    for (int i = 0; i < CUDA_MODULES; i++)
        test_ok(c.error[i].code, &c.error[i]);
    return c;
}

static void free_code(compilation *c)
{
    for (int i = 0; i < CUDA_MODULES; i++)
        mem_free(&mem_default, c->code[i]);
}

static bool holds(const void *code, size_t bytes, const char *name)
{
    return memmem(code, bytes, name, strlen(name) + 1) != NULL;
}

/* The file of each kernel, from the list itself. */
static const char *const kernel_files[] = {
#define KERNEL(name, file) file,
#include "nn/cuda/kernels/kernels.inc"
#undef KERNEL
};

/* Each is in the code of its file: ".text.NAME" is the name of a section. */
static void expect_kernels(const compilation *c)
{
    for (int k = 0; k < KERNEL_COUNT; k++) {
        char section[128];
        snprintf(section, sizeof section, ".text.%s", cuda_kernel_name((cuda_kernel)k));
        int file = 0;
        while (strcmp(cuda_source_name(file), kernel_files[k]) != 0)
            file++;
        if (!holds(c->code[file], c->bytes[file], section))
            fail_msg("%s has no kernel %s", kernel_files[k], cuda_kernel_name((cuda_kernel)k));
    }
}

static void compiles(void **state)
{
    const cuda_target *target = *state;
    compilation c = compile_all(target);
    for (int i = 0; i < CUDA_MODULES; i++) {
        assert_true(c.bytes[i] > 64);
        assert_memory_equal(c.code[i], "\177ELF", 4);
    }
    expect_kernels(&c);
    free_code(&c);
}

static void lists_the_files(void **state)
{
    (void)state;
    for (int i = 0; i < CUDA_MODULES; i++)
        assert_non_null(cuda_source_name(i));
    assert_null(cuda_source_name(CUDA_MODULES));
}

/* ---- The compiler ---- */

static const cuda_target hopper = {9, 0, DTYPE_BF16};

static ct_status compile_text(const char *text, const cuda_target *target, char *start, size_t size,
                              ct_error *error)
{
    void *code;
    size_t bytes;
    ct_status status = nvrtc_compile(compiler, "some.cu", text, target, &code, &bytes, error);
    memset(start, 0, size);
    if (status == CT_OK)
        memcpy(start, code, bytes < size - 1 ? bytes : size - 1);
    else
        assert_null(code);
    mem_free(&mem_default, code);
    return status;
}

static void shows_the_errors(void **state)
{
    (void)state;
    char start[8];
    ct_error error;
    ct_status status = compile_text("\n__global__ void k() { no_such_thing(); }", &hopper, start,
                                    sizeof start, &error);
    test_error(status, CT_EINTERNAL, &error, "some.cu(2)");
    test_error(status, CT_EINTERNAL, &error, "no_such_thing");
    test_error(status, CT_EINTERNAL, &error, "sm_90a");
    /* More errors than fit into a message. */
    char text[20000] = "";
    for (int i = 0; i < 300; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "undefined_type_%d x%d;\n", i, i);
    status = compile_text(text, &hopper, start, sizeof start, &error);
    test_error(status, CT_EINTERNAL, &error, "undefined_type_0");
}

static void sets_the_macros(void **state)
{
    (void)state;
    char start[8];
    ct_error error;
    test_ok(compile_text("#if ARCH != 90 || !defined T_BF16 || defined T_F16 || defined T_F32\n"
                         "#error macros\n"
                         "#endif\n"
                         "#ifndef __CUDA_ARCH_FEAT_SM90_ALL\n"
                         "#error not for sm_90a\n"
                         "#endif\n"
                         "extern \"C\" __global__ void k(float *x) { *x = 1; }\n",
                         &hopper, start, sizeof start, &error),
            &error);
    assert_memory_equal(start, "\177ELF", 4);
}

static void makes_ptx_for_unknown_gpus(void **state)
{
    (void)state;
    const cuda_target future = {99, 0, DTYPE_F16};
    char ptx[1000];
    ct_error error;
    test_ok(compile_text("#if ARCH < 90 || ARCH >= 990\n"
                         "#error ARCH is not that of a GPU that the compiler knows\n"
                         "#endif\n"
                         "extern \"C\" __global__ void k(float *x) { *x = 1; }\n",
                         &future, ptx, sizeof ptx, &error),
            &error);
    assert_non_null(strstr(ptx, ".target sm_"));
}

static void refuses_what_it_cannot(void **state)
{
    (void)state;
    char start[8];
    ct_error error;
    const cuda_target kepler = {3, 0, DTYPE_F16}, bytes = {9, 0, DTYPE_I8},
                      none = {0, 0, DTYPE_F16};
    test_error(compile_text("", &kepler, start, sizeof start, &error), CT_EUNSUPPORTED, &error,
               "compute capability 3.0");
    test_error(compile_text("", &bytes, start, sizeof start, &error), CT_EINVAL, &error, "I8");
    test_error(compile_text("", &none, start, sizeof start, &error), CT_EINVAL, &error, "0.0");
    void *code;
    size_t size;
    test_error(cuda_compile(compiler, CUDA_MODULES, &hopper, &code, &size, &error), CT_EINVAL,
               &error, "there is no file");
}

/* ---- Loading, with a driver of our own ---- */

/* What it was asked for. Its modules are the addresses of their code, its functions those of their
 * module: they are compared, never used. */
typedef struct fake {
    pthread_mutex_t lock;
    int loaded, unloaded, functions;
    const char *missing; /* a kernel that is not there */
} fake;

/* Compiling takes its time, so these tests share a cache: the first fills it. */
static test_folder cache;

static fake world = {.lock = PTHREAD_MUTEX_INITIALIZER};

static cu_result fake_load(cu_module *module, const void *image)
{
    pthread_mutex_lock(&world.lock);
    world.loaded++;
    pthread_mutex_unlock(&world.lock);
    *module = (cu_module)(uintptr_t)image;
    return memcmp(image, "\177ELF", 4) == 0 ? 0 : 200;
}

static cu_result fake_unload(cu_module module)
{
    pthread_mutex_lock(&world.lock);
    world.unloaded += module != NULL;
    pthread_mutex_unlock(&world.lock);
    return 0;
}

static cu_result fake_function(cu_function *function, cu_module module, const char *name)
{
    if (world.missing && !strcmp(world.missing, name))
        return 500;
    pthread_mutex_lock(&world.lock);
    world.functions++;
    pthread_mutex_unlock(&world.lock);
    *function = (cu_function)module;
    return 0;
}

static cu_result fake_text(cu_result result, const char **text)
{
    *text = result == 500 ? "named symbol not found" : "invalid kernel image";
    return 0;
}

static cuda_driver fake_functions(void)
{
    return (cuda_driver){.version = 13000,
                         .module_load = fake_load,
                         .module_unload = fake_unload,
                         .module_function = fake_function,
                         .error_name = fake_text,
                         .error_text = fake_text};
}

/* For a new test. */
static cuda_driver fake_driver(void)
{
    world.loaded = world.unloaded = world.functions = 0;
    world.missing = NULL;
    return fake_functions();
}

static void load(const cuda_driver *d, const char *folder)
{
    const int before = world.functions;
    cuda_kernels kernels;
    ct_error error;
    test_ok(cuda_kernels_load(&kernels, d, &hopper, folder, &mem_default, &error), &error);
    assert_int_equal(world.functions - before, KERNEL_COUNT);
    for (int i = 0; i < KERNEL_COUNT; i++) {
        int file = 0;
        while (strcmp(cuda_source_name(file), kernel_files[i]) != 0)
            file++;
        assert_ptr_equal((void *)kernels.function[i], (void *)kernels.module[file]);
    }
    cuda_kernels_unload(&kernels, d);
    assert_null(kernels.module[0]);
    assert_int_equal(world.unloaded, world.loaded);
}

static void *load_thread(void *folder)
{
    const cuda_driver d = fake_functions();
    cuda_kernels kernels;
    ct_error *error = calloc(1, sizeof *error);
    cuda_kernels_load(&kernels, &d, &hopper, folder, &mem_default, error);
    cuda_kernels_unload(&kernels, &d);
    return error;
}

static void serves_two_at_once(void **state)
{
    (void)state;
    const cuda_driver d = fake_driver();
    assert_false(cuda_kernels_cached(&d, &hopper, cache.path, &mem_default));
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, load_thread, cache.path), 0);
    ct_error *here = load_thread(cache.path), *there;
    pthread_join(other, (void **)&there);
    test_ok(here->code, here);
    test_ok(there->code, there);
    free(here);
    free(there);
    assert_int_equal(world.loaded, 2 * CUDA_MODULES);
    assert_int_equal(test_folder_count(&cache), CUDA_MODULES);
}

typedef struct cached {
    char name[256];
    ino_t inode;
} cached;

static ct_status take_name(void *user, const char *name, ct_error *error)
{
    (void)error;
    cached **next = user;
    snprintf((*next)->name, sizeof(*next)->name, "%s", name);
    (*next)++;
    return CT_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const cached *)a)->name, ((const cached *)b)->name);
}

/* The files of the cache. One that is written anew has another inode: the old one is still there
 * when the new one is made. */
static void look(const test_folder *folder, cached list[CUDA_MODULES])
{
    assert_int_equal(test_folder_count(folder), CUDA_MODULES);
    cached *next = list;
    ct_error error;
    test_ok(folder_each(folder->path, take_name, &next, &error), &error);
    qsort(list, CUDA_MODULES, sizeof *list, by_name);
    for (int i = 0; i < CUDA_MODULES; i++) {
        struct stat st;
        assert_int_equal(stat(test_path(folder, list[i].name), &st), 0);
        list[i].inode = st.st_ino;
    }
}

static void keeps_and_mends_the_cache(void **state)
{
    (void)state;
    const cuda_driver d = fake_driver();
    cached first[CUDA_MODULES], second[CUDA_MODULES];
    look(&cache, first);
    assert_true(cuda_kernels_cached(&d, &hopper, cache.path, &mem_default));
    /* Another GPU, type or driver is another matter. */
    const cuda_target others[] = {{9, 0, DTYPE_F16}, {8, 9, DTYPE_BF16}};
    for (int i = 0; i < 2; i++)
        assert_false(cuda_kernels_cached(&d, &others[i], cache.path, &mem_default));
    cuda_driver newer = d;
    newer.version++;
    assert_false(cuda_kernels_cached(&newer, &hopper, cache.path, &mem_default));
    load(&d, cache.path);
    look(&cache, second);
    for (int i = 0; i < CUDA_MODULES; i++) /* nothing was written */
        assert_true(first[i].inode == second[i].inode);

    const char *path = test_path(&cache, first[1].name);
    size_t size, mended;
    unsigned char *data = test_read_file(path, &size);
    data[size / 2] ^= 1;
    test_write_file(path, data, size);
    data[size / 2] ^= 1;
    load(&d, cache.path);
    unsigned char *again = test_read_file(path, &mended);
    assert_int_equal(mended, size);
    test_bytes_equal(again, data, size);
    free(again);
    free(data);
    assert_int_equal(test_folder_count(&cache), CUDA_MODULES);
}

static void works_where_nothing_can_be_kept(void **state)
{
    (void)state;
    const cuda_driver d = fake_driver();
    assert_false(cuda_kernels_cached(&d, &hopper, "/dev/null/not/a/folder", &mem_default));
    load(&d, "/dev/null/not/a/folder");
}

static void names_a_missing_kernel(void **state)
{
    (void)state;
    const cuda_driver d = fake_driver();
    world.missing = cuda_kernel_name((cuda_kernel)(KERNEL_COUNT - 1));
    cuda_kernels kernels;
    ct_error error;
    test_error(cuda_kernels_load(&kernels, &d, &hopper, cache.path, &mem_default, &error),
               CT_EDEVICE, &error, world.missing);
    assert_int_equal(world.unloaded, CUDA_MODULES);
    assert_null(kernels.module[0]);
}

/* ---- */

#define CASE(title, major, minor, type)                                                            \
    {                                                                                              \
        title, compiles, NULL, NULL, &(cuda_target)                                                \
        {                                                                                          \
            major, minor, type                                                                     \
        }                                                                                          \
    }

int main(int argc, char **argv)
{
    ct_error error;
    ct_status status = cuda_compiler_open(&compiler, &mem_default, &error);
    if (status == CT_ENOTFOUND) {
        printf("skipped: %s\n", error.message);
        return 77;
    }
    if (status != CT_OK) {
        printf("%s\n", error.message);
        return 1;
    }
    printf("NVRTC %d\n", nvrtc_version(compiler));
    const struct CMUnitTest others[] = {
        cmocka_unit_test(lists_the_files),
        cmocka_unit_test(shows_the_errors),
        cmocka_unit_test(sets_the_macros),
        cmocka_unit_test(makes_ptx_for_unknown_gpus),
        cmocka_unit_test(refuses_what_it_cannot),
        cmocka_unit_test(serves_two_at_once),
        cmocka_unit_test(keeps_and_mends_the_cache),
        cmocka_unit_test(works_where_nothing_can_be_kept),
        cmocka_unit_test(names_a_missing_kernel),
    };
    const struct CMUnitTest every_gpu[] = {
        CASE("sm_75 F16", 7, 5, DTYPE_F16),      CASE("sm_80 BF16", 8, 0, DTYPE_BF16),
        CASE("sm_89 BF16", 8, 9, DTYPE_BF16),    CASE("sm_90a BF16", 9, 0, DTYPE_BF16),
        CASE("sm_90a F32", 9, 0, DTYPE_F32),     CASE("sm_100a BF16", 10, 0, DTYPE_BF16),
        CASE("sm_120a BF16", 12, 0, DTYPE_BF16),
    };
    test_folder_create(&cache);
    int failed = cmocka_run_group_tests(others, NULL, NULL);
    test_folder_remove(&cache);
    if (argc < 2 || strcmp(argv[1], "--quick") != 0)
        failed += cmocka_run_group_tests(every_gpu, NULL, NULL);
    cuda_compiler_close(compiler);
    return failed;
}
