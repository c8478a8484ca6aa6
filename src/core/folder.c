#define _POSIX_C_SOURCE 200809L
#include "core/folder.h"
#include "core/file.h"
#include "core/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define PART ".part"

ct_status folder_create(const char *path, ct_error *error)
{
    if (mkdir(path, 0777) == 0)
        return CT_OK;
    return error_set(error, CT_EIO, "cannot create the folder %s: %s", path, strerror(errno));
}

ct_status folder_create_parents(const char *path, ct_error *error)
{
    char part[4096];
    const size_t length = strlen(path);
    if (length >= sizeof part)
        return error_set(error, CT_EINVAL, "a path of %zu bytes is too long", length);
    for (size_t at = 1; at < length; at++) {
        if (path[at] != '/' || path[at - 1] == '/')
            continue;
        memcpy(part, path, at);
        part[at] = 0;
        /* Asked first: a file system may name another reason than EEXIST. Asked again: another
         * process may have made it since. */
        if (!file_is_directory(part) && mkdir(part, 0777) != 0 && !file_is_directory(part))
            return error_set(error, CT_EIO, "cannot create the folder %s: %s", part,
                             strerror(errno));
    }
    return CT_OK;
}

ct_status folder_each(const char *path,
                      ct_status (*visit)(void *user, const char *name, ct_error *error), void *user,
                      ct_error *error)
{
    DIR *dir = opendir(path);
    if (!dir)
        return error_set(error, errno == ENOENT || errno == ENOTDIR ? CT_ENOTFOUND : CT_EIO,
                         "cannot open the folder %s: %s", path, strerror(errno));
    ct_status status = CT_OK;
    for (const struct dirent *e; status == CT_OK && (e = readdir(dir)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            status = visit(user, e->d_name, error);
    closedir(dir);
    return status;
}

typedef struct removal {
    const ct_allocator *allocator;
    const char *folder;
} removal;

static ct_status remove_entry(void *user, const char *name, ct_error *error)
{
    (void)error;
    const removal *r = user;
    char *path = path_join(r->allocator, r->folder, name);
    struct stat st;
    if (path && lstat(path, &st) == 0) {
        if (S_ISDIR(st.st_mode))
            folder_remove(r->allocator, path);
        else
            unlink(path);
    }
    mem_free(r->allocator, path);
    return CT_OK;
}

void folder_remove(const ct_allocator *a, const char *path)
{
    removal r = {a, path};
    folder_each(path, remove_entry, &r, NULL);
    rmdir(path);
}

uint64_t folder_free_bytes(const char *path)
{
    struct statvfs s;
    if (statvfs(path, &s) != 0)
        return UINT64_MAX;
    return (uint64_t)s.f_bavail * (uint64_t)s.f_frsize;
}

/* ---- Output -------------------------------------------------------------------------------- */

static ct_status check_output(const folder_output *out, ct_error *error)
{
    struct stat st;
    if (lstat(out->path, &st) == 0)
        return error_set(error, CT_EIO,
                         "%s exists already; choose another name, or delete it first", out->path);
    if (!file_is_directory(out->parent))
        return error_set(error, CT_ENOTFOUND, "cannot write %s: there is no folder %s", out->path,
                         out->parent);
    return CT_OK;
}

ct_status folder_output_open(folder_output *out, const char *path, ct_error *error)
{
    *out = (folder_output){0};
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    if (length == 0 || length >= sizeof out->path)
        return error_set(error, CT_EINVAL, "the name of the output folder is %s",
                         length ? "too long" : "empty");
    memcpy(out->path, path, length);
    const char *slash = strrchr(out->path, '/');
    if (slash)
        memcpy(out->parent, out->path, slash == out->path ? 1 : (size_t)(slash - out->path));
    else
        out->parent[0] = '.';
    ct_status status = check_output(out, error);
    if (status != CT_OK)
        return status;
    snprintf(out->temporary, sizeof out->temporary, "%s.%ld" PART, out->path, (long)getpid());
    status = folder_create(out->temporary, error);
    if (status != CT_OK)
        out->temporary[0] = 0;
    return status;
}

ct_status folder_output_commit(folder_output *out, ct_error *error)
{
    ct_status status = check_output(out, error);
    if (status != CT_OK)
        return status;
    if (rename(out->temporary, out->path) != 0)
        return error_set(error, CT_EIO, "cannot rename %s to %s: %s", out->temporary, out->path,
                         strerror(errno));
    out->temporary[0] = 0;
    /* The new name must be on disk, too. */
    int fd = open(out->parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    return CT_OK;
}

void folder_output_abort(folder_output *out, const ct_allocator *a)
{
    if (out->temporary[0])
        folder_remove(a, out->temporary);
    out->temporary[0] = 0;
}

bool folder_output_is_stale(const folder_output *out, const char *name)
{
    const char *slash = strrchr(out->path, '/');
    const char *own = slash ? slash + 1 : out->path;
    const size_t length = strlen(own);
    if (strncmp(name, own, length) != 0 || name[length] != '.')
        return false;
    const char *digits = name + length + 1;
    const size_t count = strspn(digits, "0123456789");
    if (count == 0 || count > 9 || strcmp(digits + count, PART) != 0)
        return false;
    const pid_t pid = (pid_t)strtol(digits, NULL, 10);
    return pid != getpid() && kill(pid, 0) != 0 && errno == ESRCH;
}
