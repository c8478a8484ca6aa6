/* What is in the folder of a cache, and how to empty it. */
#define _POSIX_C_SOURCE 200809L
#include "core/file.h"
#include "core/folder.h"
#include "core/mem.h"
#include "io/blob.h"
#include "nn/cuda/cache.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const ct_cache_kind all_kinds[CT_CACHE_KINDS] = {
    {"prompt", "features of prompts", 0, 0},
    {"vision", "what text encoders saw of pictures", 0, 0},
    {"latents", "latents of pictures", 0, 0},
    {"schedule", "modulation of schedules", 0, 0},
    {"kernel", "compiled GPU kernels, and what was measured", 0, 0},
};

typedef struct visit {
    const char *folder;
    ct_cache_kind *kinds;
    bool deletes;
} visit;

static int kind_of(const char *file)
{
    char kind[BLOB_KIND + 1];
    bool temporary;
    if (cuda_cache_is_file(file))
        return CT_CACHE_KINDS - 1;
    for (int i = 0; i < CT_CACHE_KINDS - 1 && blob_is_file(file, kind, &temporary); i++)
        if (strcmp(kind, all_kinds[i].name) == 0)
            return i;
    return -1;
}

static ct_status visit_file(void *user, const char *name, ct_error *error)
{
    const visit *v = user;
    struct stat st;
    const int kind = kind_of(name);
    if (kind < 0)
        return CT_OK;
    char *path = path_join(&mem_default, v->folder, name);
    if (!path)
        return error_memory(error, 4096, "a path");
    ct_status status = CT_OK;
    if (lstat(path, &st) == 0 && S_ISREG(st.st_mode)) {
        if (v->deletes && unlink(path) != 0 && errno != ENOENT)
            status = error_set(error, CT_EIO, "cannot delete %s: %s", path, strerror(errno));
        v->kinds[kind].files++;
        v->kinds[kind].bytes += (uint64_t)st.st_size;
    }
    mem_free(&mem_default, path);
    return status;
}

static ct_status visit_all(const char *folder, bool deletes, ct_cache_kind kinds[CT_CACHE_KINDS],
                           ct_error *error)
{
    if (!folder || !*folder)
        return error_set(error, CT_EINVAL, "the folder of the cache is not given");
    visit v = {folder, kinds, deletes};
    memcpy(kinds, all_kinds, sizeof all_kinds);
    ct_error reason;
    const ct_status status = folder_each(folder, visit_file, &v, &reason);
    return status == CT_OK || (status == CT_ENOTFOUND && !file_exists(folder))
               ? CT_OK
               : error_set(error, status, "%s", reason.message);
}

ct_status ct_cache_usage(const char *folder, ct_cache_kind kinds[CT_CACHE_KINDS], ct_error *error)
{
    if (!kinds)
        return error_set(error, CT_EINVAL, "ct_cache_usage: kinds is NULL");
    return visit_all(folder, false, kinds, error);
}

ct_status ct_cache_clear(const char *folder, ct_cache_kind kinds[CT_CACHE_KINDS], ct_error *error)
{
    ct_cache_kind own[CT_CACHE_KINDS];
    return visit_all(folder, true, kinds ? kinds : own, error);
}
