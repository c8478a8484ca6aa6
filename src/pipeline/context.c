/* ct_context: threads, kernels, callbacks, allocator. */
#include "core/mem.h"
#include "pipeline/internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <string.h>

#define STRING2(x) #x
#define STRING(x) STRING2(x)

const char *ct_version(void)
{
    return STRING(CT_VERSION_MAJOR) "." STRING(CT_VERSION_MINOR) "." STRING(CT_VERSION_PATCH);
}

void ct_context_params_init(ct_context_params *params)
{
    *params = (ct_context_params){.struct_size = sizeof *params,
                                  .cache_limit = CT_CACHE_LIMIT,
                                  .cache_memory = CT_CACHE_MEMORY};
}

/* "cuda" or "cuda:3". */
static bool parse_gpu(const char *device, int *ordinal)
{
    *ordinal = 0;
    if (strcmp(device, "cuda") == 0)
        return true;
    if (strncmp(device, "cuda:", 5) != 0 || !device[5])
        return false;
    for (const char *p = device + 5; *p; p++) {
        if (*p < '0' || *p > '9' || *ordinal > 1000)
            return false;
        *ordinal = *ordinal * 10 + (*p - '0');
    }
    return true;
}

static ct_status open_gpu(ct_context *c, const char *device, ct_error *error)
{
    const bool any = strcmp(device, "auto") == 0;
    cuda_gpu_params params = {
        .allocator = &c->allocator, .threads = c->threads, .folder = c->cache};
    if (strcmp(device, "cpu") == 0)
        return CT_OK;
    if (!any && !parse_gpu(device, &params.ordinal))
        return error_set(error, CT_EINVAL, "device is \"%s\"; it must be auto, cpu, cuda or cuda:N",
                         device);
    ct_error reason;
    if (cuda_gpu_open(&c->gpu, &params, &reason) == CT_OK) {
        log_message(&c->callbacks, CT_LOG_INFO, "device: %s, %s", cuda_gpu_name(c->gpu),
                    cuda_gpu_libraries(c->gpu));
        return CT_OK;
    }
    if (!any)
        return error_set(error, reason.code, "%s", reason.message);
    log_message(&c->callbacks, CT_LOG_DEBUG, "no GPU: %s", reason.message);
    return CT_OK;
}

ct_status ct_context_create(const ct_context_params *params, ct_context **out, ct_error *error)
{
    if (!out)
        return error_set(error, CT_EINVAL, "ct_context_create: out is NULL");
    *out = NULL;
    ct_context_params p;
    ct_context_params_init(&p);
    if (params) {
        if (params->struct_size != sizeof p)
            return error_set(error, CT_EINVAL,
                             "ct_context_create: call ct_context_params_init first");
        p = *params;
    }
    bool custom = p.allocator.alloc || p.allocator.free;
    if (custom && (!p.allocator.alloc || !p.allocator.free))
        return error_set(error, CT_EINVAL,
                         "ct_context_create: an allocator needs both alloc and free");
    ct_allocator allocator = custom ? p.allocator : mem_default;
    ct_context *c = mem_zero_array(&allocator, 1, sizeof *c);
    if (!c)
        return error_memory(error, sizeof *c, "the context");
    c->allocator = allocator;
    c->callbacks = p.callbacks;
    c->cache_limit = p.cache_limit;
    c->cache_memory = p.cache_memory;
    ct_status status = cpu_kernels_choose(&c->kernels, p.cpu, error);
    if (status == CT_OK && p.cache && *p.cache && !(c->cache = mem_strdup(&c->allocator, p.cache)))
        status = error_memory(error, strlen(p.cache), "the name of the cache");
    if (status == CT_OK)
        status = pool_create(&c->threads, &c->allocator, p.threads, error);
    if (status == CT_OK)
        status = open_gpu(c, p.device ? p.device : "auto", error);
    if (status != CT_OK) {
        ct_context_free(&c);
        return status;
    }
    *out = c;
    return CT_OK;
}

void ct_context_free(ct_context **context)
{
    if (!context || !*context)
        return;
    ct_allocator allocator = (*context)->allocator;
    cuda_gpu_close((*context)->gpu);
    pool_free((*context)->threads);
    mem_free(&allocator, (*context)->cache);
    mem_free(&allocator, *context);
    *context = NULL;
}

int ct_context_threads(const ct_context *context)
{
    return pool_threads(context->threads);
}

const char *ct_context_cpu(const ct_context *context)
{
    return context->kernels.name;
}

const char *ct_context_gpu(const ct_context *context)
{
    return context->gpu ? cuda_gpu_name(context->gpu) : NULL;
}

ct_status ct_context_gpu_memory(const ct_context *context, uint64_t *free_bytes,
                                uint64_t *total_bytes, ct_error *error)
{
    size_t free_now = 0, total = 0;
    if (!context || !free_bytes || !total_bytes)
        return error_set(error, CT_EINVAL, "ct_context_gpu_memory: an argument is NULL");
    *free_bytes = *total_bytes = 0;
    if (!context->gpu)
        return error_set(error, CT_EUNSUPPORTED, "networks run on the CPU here, not on a GPU");
    ct_status status = cuda_gpu_memory(context->gpu, &free_now, &total, error);
    *free_bytes = free_now;
    *total_bytes = total;
    return status;
}

void log_message(const ct_callbacks *callbacks, ct_log_level level, const char *format, ...)
{
    if (!callbacks->log)
        return;
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    callbacks->log(callbacks->user, level, text);
}
