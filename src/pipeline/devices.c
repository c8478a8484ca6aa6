/* ct_devices: what there is to compute on, and why something cannot be used. */
#include "core/mem.h"
#include "core/processor.h"
#include "nn/cuda/module.h"
#include "nn/cuda/nvrtc.h"
#include "pipeline/internal.h"

#include <stdio.h>
#include <string.h>

#define OLDEST_GPU 70 /* 10 * major + minor: the first with tensor cores, which attention needs */

/* A device with its strings. */
typedef struct entry {
    char id[24], name[128], summary[160], note[256];
    ct_error problem;
} entry;

typedef struct device_list {
    ct_device_list list; /* what the caller sees */
    ct_allocator allocator;
    ct_device_info *info;
    entry *entry;
} device_list;

/* What the machine has of CUDA besides GPUs. */
typedef struct libraries {
    cuda_driver driver;
    bool blas, dnn;
} libraries;

static bool can_open(const char *const *names)
{
    void *library = cuda_library_open(names, NULL);
    cuda_library_close(library);
    return library != NULL;
}

/* Libraries of CUDA 13 need a driver of CUDA 13. */
static void find_libraries(libraries *l)
{
    static const char *const blas[] = {"libcublasLt.so.13", "libcublasLt.so.12", NULL};
    static const char *const dnn[] = {"libcudnn.so.9", NULL};
    l->blas = can_open(blas + (l->driver.version < 13000 ? 1 : 0));
    l->dnn = can_open(dnn);
}

static void describe_cpu(const ct_context *c, entry *e, ct_device_info *info)
{
    snprintf(e->id, sizeof e->id, "cpu");
    processor_name(e->name, sizeof e->name);
    const int threads = ct_context_threads(c);
    snprintf(e->summary, sizeof e->summary, "%d thread%s, kernels for %s", threads,
             threads == 1 ? "" : "s", c->kernels.name);
    info->memory_bytes = processor_memory();
}

static ct_status check_gpu(const ct_context *c, const libraries *l, const cuda_device_info *gpu,
                           ct_error *error)
{
    if (10 * gpu->major + gpu->minor < OLDEST_GPU)
        return error_set(error, CT_EUNSUPPORTED,
                         "its compute capability, %d.%d, is below %d.%d, where support begins",
                         gpu->major, gpu->minor, OLDEST_GPU / 10, OLDEST_GPU % 10);
    if (!l->blas)
        return error_set(error, CT_ENOTFOUND,
                         "cuBLASLt was not found (libcublasLt.so.%d); install it with the CUDA "
                         "toolkit, or put the folder of Python's nvidia-cublas into "
                         "LD_LIBRARY_PATH",
                         l->driver.version < 13000 ? 12 : 13);
    const cuda_target target = {gpu->major, gpu->minor, gpu->major >= 8 ? DTYPE_BF16 : DTYPE_F16};
    if (cuda_kernels_cached(&l->driver, &target, c->cache, &c->allocator))
        return CT_OK;
    cuda_compiler *compiler;
    ct_status status = nvrtc_open(&compiler, l->driver.version, &target, &c->allocator, error);
    cuda_compiler_close(compiler);
    return status;
}

static void describe_gpu(const ct_context *c, const libraries *l, int ordinal, entry *e,
                         ct_device_info *info)
{
    snprintf(e->id, sizeof e->id, "cuda:%d", ordinal);
    cuda_device_info gpu;
    if (cuda_device_query(&l->driver, ordinal, &gpu, &e->problem) != CT_OK)
        return;
    snprintf(e->name, sizeof e->name, "%s", gpu.name);
    snprintf(e->summary, sizeof e->summary,
             "compute capability %d.%d, %d multiprocessors, driver for CUDA %d.%d", gpu.major,
             gpu.minor, gpu.multiprocessors, l->driver.version / 1000,
             l->driver.version % 1000 / 10);
    info->memory_bytes = gpu.memory;
    if (!l->dnn)
        snprintf(e->note, sizeof e->note,
                 "cuDNN 9 was not found (libcudnn.so.9): kernels of calotype do its work, slower");
    e->problem.code = CT_OK;
    check_gpu(c, l, &gpu, &e->problem);
}

/* Room for the CPU and so many others. */
static device_list *create_list(const ct_allocator *a, int others)
{
    const size_t count = 1 + (size_t)others;
    device_list *l = mem_zero_array(a, 1, sizeof *l);
    if (!l)
        return NULL;
    l->allocator = *a;
    l->info = mem_zero_array(a, count, sizeof *l->info);
    l->entry = mem_zero_array(a, count, sizeof *l->entry);
    l->list = (ct_device_list){(int)count, l->info};
    if (l->info && l->entry)
        return l;
    ct_device_list *list = &l->list;
    ct_devices_free(&list);
    return NULL;
}

static void set_pointers(device_list *l)
{
    for (int i = 0; i < l->list.count; i++) {
        const entry *e = &l->entry[i];
        l->info[i].id = e->id;
        l->info[i].name = e->name;
        l->info[i].summary = e->summary;
        l->info[i].problem = e->problem.code != CT_OK ? e->problem.message : NULL;
        l->info[i].note = *e->note ? e->note : NULL;
    }
}

ct_status ct_devices(ct_context *context, ct_device_list **out, ct_error *error)
{
    if (!out)
        return error_set(error, CT_EINVAL, "ct_devices: out is NULL");
    *out = NULL;
    if (!context)
        return error_set(error, CT_EINVAL, "ct_devices: the context is NULL");
    libraries l = {0};
    ct_error none = {.code = CT_OK};
    int gpus = 0;
    if (cuda_driver_open(&l.driver, &none) == CT_OK &&
        cuda_device_count(&l.driver, &gpus, &none) == CT_OK && gpus == 0)
        error_set(&none, CT_ENOTFOUND, "the NVIDIA driver finds no GPU");
    device_list *list = create_list(&context->allocator, gpus > 0 ? gpus : 1);
    if (!list) {
        cuda_driver_close(&l.driver);
        return error_memory(error, (size_t)(1 + gpus) * sizeof(entry), "the list of devices");
    }
    describe_cpu(context, &list->entry[0], &list->info[0]);
    if (none.code != CT_OK) {
        snprintf(list->entry[1].id, sizeof list->entry[1].id, "cuda");
        snprintf(list->entry[1].name, sizeof list->entry[1].name, "CUDA");
        list->entry[1].problem = none;
    } else {
        find_libraries(&l);
        for (int i = 0; i < gpus; i++)
            describe_gpu(context, &l, i, &list->entry[1 + i], &list->info[1 + i]);
    }
    set_pointers(list);
    cuda_driver_close(&l.driver);
    *out = &list->list;
    return CT_OK;
}

void ct_devices_free(ct_device_list **list)
{
    if (!list || !*list)
        return;
    device_list *l = (device_list *)*list; /* the list is its first member */
    const ct_allocator allocator = l->allocator;
    mem_free(&allocator, l->info);
    mem_free(&allocator, l->entry);
    mem_free(&allocator, l);
    *list = NULL;
}
