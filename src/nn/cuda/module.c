/* Which kernels there are, and how their code is had: from the cache, or from the compiler. */
#include "nn/cuda/module.h"
#include "core/hash.h"
#include "core/mem.h"
#include "core/threads.h"
#include "nn/cuda/cache.h"
#include "nn/cuda/nvrtc.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *file;
} kernel_table[KERNEL_COUNT] = {
#define KERNEL(name, file) {#name, file},
#include "nn/cuda/kernels/kernels.inc"
#undef KERNEL
};

const char *cuda_kernel_name(cuda_kernel kernel)
{
    return kernel_table[kernel].name;
}

/* Files are numbered in the order in which kernels.inc first names them. */
static int first_of_file(int kernel)
{
    int first = 0;
    while (strcmp(kernel_table[first].file, kernel_table[kernel].file) != 0)
        first++;
    return first;
}

static int file_of_kernel(int kernel)
{
    int file = 0;
    const int first = first_of_file(kernel);
    for (int i = 0; i < first; i++)
        file += first_of_file(i) == i;
    return file;
}

const char *cuda_source_name(int file)
{
    for (int i = 0; i < KERNEL_COUNT; i++)
        if (first_of_file(i) == i && file-- == 0)
            return kernel_table[i].file;
    return NULL;
}

static ct_status find_text(int file, const char **text, ct_error *error)
{
    *text = NULL;
    const char *name = cuda_source_name(file);
    if (!name)
        return error_set(error, CT_EINVAL, "there is no file %d of kernels", file);
    for (const cuda_embedded *f = cuda_embedded_files; f->name && !*text; f++)
        if (!strcmp(f->name, name))
            *text = f->text;
    return *text ? CT_OK : error_set(error, CT_EINTERNAL, "%s is not in the program", name);
}

ct_status cuda_compile(cuda_compiler *c, int file, const cuda_target *target, void **code,
                       size_t *bytes, ct_error *error)
{
    *code = NULL;
    *bytes = 0;
    const char *text;
    ct_status status = find_text(file, &text, error);
    if (status != CT_OK)
        return status;
    return nvrtc_compile(c, cuda_source_name(file), text, target, code, bytes, error);
}

/* ---- Loading -------------------------------------------------------------------------------- */

/* The code of one file on its way. */
typedef struct file_job {
    int file;
    hash128 key;
    char *path; /* in the cache; NULL: there is none */
    void *code;
    size_t bytes;
    ct_status status;
    ct_error error;
} file_job;

typedef struct loading {
    const ct_allocator *allocator;
    const cuda_target *target;
    cuda_compiler *compiler;
    file_job job[CUDA_MODULES];
    int missing[CUDA_MODULES], missing_count; /* jobs without code in the cache */
} loading;

/* All that decides about the code and is known without opening the compiler: the texts, the
 * options, and the driver, whose version decides which compiler is taken. */
static ct_status make_key(file_job *job, const cuda_driver *d, const cuda_target *target,
                          ct_error *error)
{
    const char *text;
    ct_status status = find_text(job->file, &text, error);
    if (status != CT_OK)
        return status;
    job->key = hash_begin();
    hash_add_string(&job->key, "calotype kernels 1");
    hash_add(&job->key, &d->version, sizeof d->version);
    nvrtc_hash_options(&job->key, target);
    hash_add_string(&job->key, text);
    for (const cuda_embedded *f = cuda_embedded_files; f->name; f++)
        if (strstr(f->name, ".cuh")) {
            hash_add_string(&job->key, f->name);
            hash_add_string(&job->key, f->text);
        }
    return CT_OK;
}

static ct_status look_up(loading *l, const cuda_driver *d, const char *folder, ct_error *error)
{
    for (int i = 0; i < CUDA_MODULES; i++) {
        file_job *job = &l->job[i];
        job->file = i;
        ct_status status = make_key(job, d, l->target, error);
        if (status != CT_OK)
            return status;
        if (folder) {
            job->path = cuda_cache_path(l->allocator, folder, cuda_source_name(i), &job->key);
            if (!job->path)
                return error_memory(error, strlen(folder), "the path of the kernel cache");
        }
        /* Whatever keeps it from being read: it is made again. */
        if (!folder || cuda_cache_read(l->allocator, job->path, &job->key, &job->code, &job->bytes,
                                       NULL) != CT_OK)
            l->missing[l->missing_count++] = i;
    }
    return CT_OK;
}

static void compile_one(void *user, int64_t index, int worker)
{
    (void)worker;
    loading *l = user;
    file_job *job = &l->job[l->missing[index]];
    job->status =
        cuda_compile(l->compiler, job->file, l->target, &job->code, &job->bytes, &job->error);
    if (job->status == CT_OK && job->path) /* without a cache it works as well, only later */
        cuda_cache_write(job->path, &job->key, nvrtc_version(l->compiler), job->code, job->bytes,
                         NULL);
}

static ct_status compile_missing(loading *l, const cuda_driver *d, ct_error *error)
{
    if (l->missing_count == 0)
        return CT_OK;
    pool *threads = NULL;
    ct_status status = nvrtc_open(&l->compiler, d->version, l->target, l->allocator, error);
    if (status == CT_OK)
        status = pool_create(&threads, l->allocator, l->missing_count, error);
    if (status == CT_OK)
        pool_run(threads, l->missing_count, compile_one, l);
    for (int i = 0; status == CT_OK && i < l->missing_count; i++) {
        const file_job *job = &l->job[l->missing[i]];
        status = job->status;
        if (status != CT_OK && error)
            *error = job->error;
    }
    pool_free(threads);
    cuda_compiler_close(l->compiler);
    return status;
}

static ct_status load_modules(cuda_kernels *out, const cuda_driver *d, const loading *l,
                              ct_error *error)
{
    char what[128];
    for (int i = 0; i < CUDA_MODULES; i++) {
        snprintf(what, sizeof what, "loading the kernels of %s", cuda_source_name(i));
        ct_status status =
            cuda_check(d, d->module_load(&out->module[i], l->job[i].code), what, error);
        if (status != CT_OK)
            return status;
    }
    for (int i = 0; i < KERNEL_COUNT; i++) {
        snprintf(what, sizeof what, "finding the kernel %s in %s", kernel_table[i].name,
                 kernel_table[i].file);
        ct_status status =
            cuda_check(d,
                       d->module_function(&out->function[i], out->module[file_of_kernel(i)],
                                          kernel_table[i].name),
                       what, error);
        if (status != CT_OK)
            return status;
    }
    return CT_OK;
}

static void end_loading(loading *l)
{
    for (int i = 0; i < CUDA_MODULES; i++) {
        mem_free(l->allocator, l->job[i].code);
        mem_free(l->allocator, l->job[i].path);
    }
}

bool cuda_kernels_cached(const cuda_driver *d, const cuda_target *target, const char *folder,
                         const ct_allocator *a)
{
    if (!folder || !nvrtc_target_valid(target))
        return false;
    loading l = {.allocator = a, .target = target};
    const bool cached = look_up(&l, d, folder, NULL) == CT_OK && l.missing_count == 0;
    end_loading(&l);
    return cached;
}

ct_status cuda_kernels_load(cuda_kernels *out, const cuda_driver *d, const cuda_target *target,
                            const char *folder, const ct_allocator *a, ct_error *error)
{
    *out = (cuda_kernels){0};
    if (!nvrtc_target_valid(target))
        return error_set(error, CT_EINVAL,
                         "no kernels are made for %s and compute capability %d.%d",
                         dtype_name(target->type), target->major, target->minor);
    loading l = {.allocator = a, .target = target};
    ct_status status = look_up(&l, d, folder, error);
    if (status == CT_OK)
        status = compile_missing(&l, d, error);
    if (status == CT_OK)
        status = load_modules(out, d, &l, error);
    end_loading(&l);
    if (status != CT_OK)
        cuda_kernels_unload(out, d);
    return status;
}

void cuda_kernels_unload(cuda_kernels *k, const cuda_driver *d)
{
    for (int i = 0; i < CUDA_MODULES; i++)
        if (k->module[i])
            d->module_unload(k->module[i]);
    *k = (cuda_kernels){0};
}
