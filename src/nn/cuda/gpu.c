/* A GPU: driver, context, libraries, and our kernels for it. */
#include "core/mem.h"
#include "nn/cuda/cuda.h"

#include <pthread.h>
#include <stdio.h>

/* Kernels by storage type, loaded when they are first needed. */
struct cuda_gpu_shared {
    pthread_mutex_t lock;
    cuda_kernels kernels[3];
    bool loaded[3];
};

static ct_status open_device(cuda_gpu *g, int ordinal, ct_error *error)
{
    int count = 0;
    ct_status status = cuda_driver_open(&g->driver, error);
    if (status == CT_OK)
        status = cuda_device_count(&g->driver, &count, error);
    if (status != CT_OK)
        return status;
    if (ordinal < 0 || ordinal >= count)
        return error_set(error, CT_ENOTFOUND, "cuda:%d: this machine has %d CUDA device%s", ordinal,
                         count, count == 1 ? "" : "s");
    status = cuda_device_query(&g->driver, ordinal, &g->info, error);
    cu_device device = 0;
    if (status == CT_OK)
        status = cuda_check(&g->driver, g->driver.device_get(&device, ordinal), "the GPU", error);
    if (status == CT_OK)
        status = cuda_check(&g->driver, g->driver.context_retain(&g->context, device),
                            "the GPU's context", error);
    if (status == CT_OK)
        status =
            cuda_check(&g->driver, g->driver.context_set(g->context), "the GPU's context", error);
    return status;
}

/* cuDNN is looked for here, to be named; each nn opens it. */
static void describe_libraries(cuda_gpu *g)
{
    const int version = g->driver.version;
    char dnn_name[DNN_VERSION_BYTES];
    g->has_dnn = dnn_find(dnn_name);
    snprintf(g->libraries, sizeof g->libraries, "CUDA %d.%d, %s, %s", version / 1000,
             version % 1000 / 10, blas_version(g->blas), g->has_dnn ? dnn_name : "no cuDNN");
}

ct_status cuda_gpu_open(cuda_gpu **out, const cuda_gpu_params *params, ct_error *error)
{
    const ct_allocator *a = params->allocator;
    *out = NULL;
    cuda_gpu *g = mem_zero_array(a, 1, sizeof *g);
    if (!g)
        return error_memory(error, sizeof *g, "the GPU");
    g->allocator = a;
    g->threads = params->threads;
    g->shared = mem_zero_array(a, 1, sizeof *g->shared);
    if (g->shared && pthread_mutex_init(&g->shared->lock, NULL) != 0) {
        mem_free(a, g->shared);
        g->shared = NULL;
    }
    if (params->folder)
        g->folder = mem_strdup(a, params->folder);
    ct_status status = g->shared && (g->folder || !params->folder)
                           ? open_device(g, params->ordinal, error)
                           : error_memory(error, sizeof *g->shared, "the GPU");
    const blas_params for_blas = {.allocator = a,
                                  .driver = &g->driver,
                                  .device = &g->info,
                                  .folder = g->folder,
                                  .workspace = CUDA_WORKSPACE};
    if (status == CT_OK)
        status = blas_open(&g->blas, &for_blas, error);
    if (status != CT_OK) {
        cuda_gpu_close(g);
        return status;
    }
    g->half = params->half == DTYPE_F16 || g->info.major < 8 ? DTYPE_F16 : DTYPE_BF16;
    describe_libraries(g);
    *out = g;
    return CT_OK;
}

void cuda_gpu_close(cuda_gpu *g)
{
    if (!g)
        return;
    if (g->context) {
        g->driver.context_set(g->context);
        blas_close(g->blas);
        for (int i = 0; i < 3; i++)
            cuda_kernels_unload(&g->shared->kernels[i], &g->driver);
        cu_device device = 0;
        if (g->driver.device_get(&device, g->info.ordinal) == 0)
            g->driver.context_release(device);
    }
    cuda_driver_close(&g->driver);
    if (g->shared)
        pthread_mutex_destroy(&g->shared->lock);
    mem_free(g->allocator, g->shared);
    mem_free(g->allocator, g->folder);
    mem_free(g->allocator, g);
}

const char *cuda_gpu_name(const cuda_gpu *g)
{
    return g->info.name;
}

const char *cuda_gpu_libraries(const cuda_gpu *g)
{
    return g->libraries;
}

dtype cuda_gpu_half(const cuda_gpu *g)
{
    return g->half;
}

bool cuda_gpu_has_bf16(const cuda_gpu *g)
{
    return g->half == DTYPE_BF16;
}

bool cuda_gpu_can(const cuda_gpu *g, nn_precision precision)
{
    if (precision == NN_F32 || precision == NN_BF16 || precision == NN_FP16)
        return true;
    const bool fp8 = precision == NN_FP8;
    const blas_product p = {.m = 256,
                            .n = 256,
                            .k = 256,
                            .x_stride = 256,
                            .w_stride = 256,
                            .out_stride = 256,
                            .type = fp8 ? DTYPE_F8_E4M3 : DTYPE_I8,
                            .out_type = fp8 ? g->half : DTYPE_I32,
                            .scaled = fp8};
    return blas_can(g->blas, &p);
}

ct_status cuda_gpu_memory(cuda_gpu *g, size_t *free_bytes, size_t *total_bytes, ct_error *error)
{
    ct_status status =
        cuda_check(&g->driver, g->driver.context_set(g->context), "the GPU's context", error);
    if (status == CT_OK)
        status = cuda_check(&g->driver, g->driver.memory_info(free_bytes, total_bytes),
                            "the GPU's memory", error);
    return status;
}

/* Large allocations are whole pages of 2 MiB; small ones share pages. */
size_t cuda_gpu_cost(size_t bytes)
{
    const size_t page = (size_t)2 << 20, unit = bytes >= page / 2 ? page : 512;
    return bytes ? (bytes + unit - 1) / unit * unit : unit;
}

ct_status cuda_gpu_alloc(cuda_gpu *g, cu_address *out, size_t bytes, const char *what,
                         ct_error *error)
{
    cu_result result = g->driver.mem_alloc(out, bytes ? bytes : 1);
    if (result == 0)
        return CT_OK;
    *out = 0;
    if (result != CU_OUT_OF_MEMORY)
        return cuda_check(&g->driver, result, what, error);
    size_t free_bytes = 0, total = 0;
    g->driver.memory_info(&free_bytes, &total);
    return error_set(error, CT_ENOMEM,
                     "the GPU is out of memory: %.1f MiB for %s, %.1f of %.1f MiB are free (8- or "
                     "4-bit weights, --precision fp8 or a smaller picture need less)",
                     (double)bytes / 1048576, what, (double)free_bytes / 1048576,
                     (double)total / 1048576);
}

const cuda_kernels *cuda_gpu_kernels(cuda_gpu *g, dtype type, ct_error *error)
{
    struct cuda_gpu_shared *s = g->shared;
    const cuda_target target = {g->info.major, g->info.minor, type};
    pthread_mutex_lock(&s->lock);
    if (!s->loaded[type] && cuda_kernels_load(&s->kernels[type], &g->driver, &target, g->folder,
                                              g->allocator, error) == CT_OK)
        s->loaded[type] = true;
    const cuda_kernels *k = s->loaded[type] ? &s->kernels[type] : NULL;
    pthread_mutex_unlock(&s->lock);
    return k;
}
