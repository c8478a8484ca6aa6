#define _DEFAULT_SOURCE
#include "core/file.h"
#include "core/mem.h"
#include "core/strbuf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

char *path_join(const ct_allocator *a, const char *directory, const char *name)
{
    strbuf s;
    strbuf_init(&s, a, 1 << 16);
    strbuf_puts(&s, directory);
    if (s.length && s.data[s.length - 1] != '/')
        strbuf_puts(&s, "/");
    strbuf_puts(&s, name);
    return strbuf_take(&s);
}

bool file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

bool file_is_directory(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Opens a regular file for reading and tells its size. */
static ct_status open_regular(const char *path, int *fd, size_t *size, ct_error *error)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return error_set(error, errno == ENOENT ? CT_ENOTFOUND : CT_EIO, "cannot open %s: %s", path,
                         strerror(errno));
    struct stat st;
    if (fstat(*fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(*fd);
        return error_set(error, CT_EIO, "%s is not a regular file", path);
    }
    *size = (size_t)st.st_size;
    return CT_OK;
}

ct_status file_map_open(file_map *map, const char *path, ct_error *error)
{
    *map = (file_map){0};
    int fd;
    size_t size;
    ct_status status = open_regular(path, &fd, &size, error);
    if (status != CT_OK)
        return status;
    void *data = NULL;
    if (size) {
        data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            int reason = errno;
            close(fd);
            return error_set(error, reason == ENOMEM ? CT_ENOMEM : CT_EIO,
                             "cannot map %s (%zu bytes): %s", path, size, strerror(reason));
        }
    }
    close(fd);
    map->data = data;
    map->size = size;
    return CT_OK;
}

void file_map_close(file_map *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->size);
    *map = (file_map){0};
}

static void advise(const file_map *map, size_t at, size_t bytes, int advice)
{
    if (!map->data || at >= map->size || bytes == 0)
        return;
    /* A mapping begins at a page, but not at a window. */
    const uintptr_t data = (uintptr_t)map->data, mask = FILE_WINDOW - 1;
    uintptr_t first = (data + at) & ~mask, end = map->size;
    if (bytes < map->size - at)
        end = ((data + at + bytes + mask) & ~mask) - data;
    if (first < data)
        first = data;
    if (end > map->size)
        end = map->size;
    madvise((void *)first, data + end - first, advice);
}

void file_map_expect(const file_map *map, size_t at, size_t bytes)
{
    advise(map, at, bytes, MADV_WILLNEED);
}

void file_map_let_go(const file_map *map, size_t at, size_t bytes)
{
    advise(map, at, bytes, MADV_DONTNEED);
}

ct_status file_read(const ct_allocator *a, const char *path, size_t maximum, char **data,
                    size_t *size, ct_error *error)
{
    *data = NULL;
    *size = 0;
    int fd;
    size_t length;
    ct_status status = open_regular(path, &fd, &length, error);
    if (status != CT_OK)
        return status;
    if (length > maximum) {
        close(fd);
        return error_set(error, CT_EFORMAT, "%s has %zu bytes, more than the %zu allowed", path,
                         length, maximum);
    }
    char *buffer = mem_alloc(a, length + 1);
    if (!buffer) {
        close(fd);
        return error_memory(error, length + 1, path);
    }
    size_t done = 0;
    while (done < length) {
        ssize_t n = read(fd, buffer + done, length - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int reason = n < 0 ? errno : EIO;
            close(fd);
            mem_free(a, buffer);
            return error_set(error, CT_EIO, "cannot read %s: %s", path, strerror(reason));
        }
        done += (size_t)n;
    }
    close(fd);
    buffer[length] = 0;
    *data = buffer;
    *size = length;
    return CT_OK;
}

static ct_status write_error(const char *path, int reason, ct_error *error)
{
    return error_set(error, CT_EIO, "cannot write %s: %s", path, strerror(reason));
}

/* Opens path itself when it is there and is neither a file nor a directory. */
static ct_status open_direct(file_output *out, ct_error *error)
{
    out->stream = fopen(out->path, "wb");
    return out->stream ? CT_OK : write_error(out->path, errno, error);
}

static bool is_special(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode));
}

static ct_status check_output_path(const char *path, ct_error *error)
{
    size_t length = strlen(path);
    if (length == 0)
        return error_set(error, CT_EINVAL, "the output path is empty");
    if (length >= sizeof((file_output *)0)->path)
        return error_set(error, CT_EINVAL, "the output path is longer than %zu bytes",
                         sizeof((file_output *)0)->path - 1);
    if (file_is_directory(path) || path[length - 1] == '/')
        return error_set(error, CT_EIO, "cannot write %s: it is a directory; give a file name",
                         path);
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !is_special(path))
        return error_set(error, CT_EIO, "cannot write %s: it is not a regular file", path);
    return CT_OK;
}

ct_status file_output_open(file_output *out, const char *path, ct_error *error)
{
    *out = (file_output){0};
    ct_status status = check_output_path(path, error);
    if (status != CT_OK)
        return status;
    memcpy(out->path, path, strlen(path) + 1);
    if (is_special(path))
        return open_direct(out, error);
    /* A suffix of our own choosing is opened exclusively, so that two processes never share it. */
    for (unsigned attempt = 0; attempt < 100; attempt++) {
        snprintf(out->temporary, sizeof out->temporary, "%s.%ld-%u.part", path, (long)getpid(),
                 attempt);
        int fd = open(out->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0) {
            out->stream = fdopen(fd, "wb");
            if (out->stream)
                return CT_OK;
            int reason = errno;
            close(fd);
            unlink(out->temporary);
            return write_error(path, reason, error);
        }
        if (errno != EEXIST)
            return write_error(path, errno, error);
    }
    return write_error(path, EEXIST, error);
}

ct_status file_output_commit(file_output *out, ct_error *error)
{
    FILE *stream = out->stream;
    out->stream = NULL;
    bool direct = !out->temporary[0];
    errno = 0; /* an error that the stream only remembers sets none */
    bool failed = fflush(stream) != 0 || ferror(stream);
    int reason = failed ? errno : 0;
    /* The data must be on disk before the name is: a crash leaves the old file or the new one. */
    if (!failed && !direct && !out->unsynced && fsync(fileno(stream)) != 0 && errno != EINVAL &&
        errno != EROFS) {
        failed = true;
        reason = errno;
    }
    if (fclose(stream) != 0 && !failed) {
        failed = true;
        reason = errno;
    }
    if (!failed && !direct && rename(out->temporary, out->path) != 0) {
        failed = true;
        reason = errno;
    }
    if (!failed)
        return CT_OK;
    if (!direct)
        unlink(out->temporary);
    return write_error(out->path, reason ? reason : EIO, error);
}

void file_output_abort(file_output *out)
{
    if (!out->stream)
        return;
    fclose(out->stream);
    out->stream = NULL;
    if (out->temporary[0])
        unlink(out->temporary);
}

size_t file_output_stem(const char *name)
{
    static const char part[] = ".part";
    const size_t length = strlen(name), end = sizeof part - 1;
    if (length <= end || strcmp(name + length - end, part) != 0)
        return length;
    size_t at = length - end;
    while (at > 0 && ((name[at - 1] >= '0' && name[at - 1] <= '9') || name[at - 1] == '-'))
        at--;
    return at > 1 && at < length - end && name[at - 1] == '.' ? at - 1 : length;
}

ct_status ct_output_check(const char *path, ct_error *error)
{
    if (!path)
        return error_set(error, CT_EINVAL, "ct_output_check: path is NULL");
    ct_status status = check_output_path(path, error);
    if (status != CT_OK)
        return status;
    /* Opening a pipe and closing it again would end it for its reader. */
    if (is_special(path))
        return access(path, W_OK) == 0 ? CT_OK : write_error(path, errno, error);
    file_output out;
    status = file_output_open(&out, path, error);
    file_output_abort(&out);
    return status;
}
