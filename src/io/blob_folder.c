/* Results as files "KIND-HASH.blob": a header and the payload. The numbers are this machine's own:
 * a cache is not carried about. A file's time of change is that of its last use. */
#define _POSIX_C_SOURCE 200809L
#include "core/file.h"
#include "core/folder.h"
#include "core/mem.h"
#include "core/strbuf.h"
#include "io/blob.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SUFFIX ".blob"
#define NAME_BYTES (BLOB_KIND + FINGERPRINT_DIGITS + 16)
/* A temporary file that nobody wrote to for so long was left behind. */
#define STALE_SECONDS 3600

typedef struct blob_header {
    char magic[8]; /* with the version of this layout */
    char kind[BLOB_KIND + 1], hash[FINGERPRINT_DIGITS];
    uint64_t bytes;               /* of the payload */
    char sum[FINGERPRINT_DIGITS]; /* over what is above, and the payload */
} blob_header;

_Static_assert(sizeof(blob_header) == BLOB_HEADER, "the header has gaps");

static const char magic[8] = "CTBLOB01";

/* ---- Names ----------------------------------------------------------------------------------- */

bool blob_is_file(const char *file, char kind[BLOB_KIND + 1], bool *temporary)
{
    const size_t letters = strspn(file, "abcdefghijklmnopqrstuvwxyz");
    const char *hash = file + letters + 1;
    *temporary = false;
    if (letters == 0 || letters > BLOB_KIND || file[letters] != '-' ||
        strspn(hash, "0123456789abcdef") != FINGERPRINT_DIGITS ||
        strncmp(hash + FINGERPRINT_DIGITS, SUFFIX, strlen(SUFFIX)) != 0)
        return false;
    memcpy(kind, file, letters);
    kind[letters] = 0;
    const size_t length = letters + 1 + FINGERPRINT_DIGITS + strlen(SUFFIX);
    *temporary = file[length] != 0;
    return file_output_stem(file) == length;
}

static char *path_of(const blob_folder *f, const blob_name *name)
{
    char file[NAME_BYTES];
    snprintf(file, sizeof file, "%s-%s" SUFFIX, name->kind, name->hash);
    return path_join(f->allocator, f->path, file);
}

static ct_status no_path(ct_error *error)
{
    return error_memory(error, 4096, "the path of a cached result");
}

bool blob_folder_has(const blob_folder *f, const blob_name *name)
{
    char *path = path_of(f, name);
    const bool found = path && file_exists(path);
    mem_free(f->allocator, path);
    return found;
}

/* ---- Room ------------------------------------------------------------------------------------ */

typedef struct found_file {
    char name[NAME_BYTES];
    uint64_t bytes;
    struct timespec used;
} found_file;

typedef struct listing {
    const blob_folder *folder;
    found_file *files;
    size_t count, capacity;
    uint64_t bytes;
} listing;

static ct_status add_file(listing *l, const char *name, const struct stat *st, ct_error *error)
{
    if (l->count == l->capacity) {
        const size_t more = l->capacity ? 2 * l->capacity : 64, size = sizeof *l->files;
        found_file *larger = mem_grow(l->folder->allocator, l->files, l->count * size, more * size);
        if (!larger)
            return error_memory(error, more * size, "the list of cached results");
        l->files = larger;
        l->capacity = more;
    }
    found_file *file = &l->files[l->count++];
    *file = (found_file){.bytes = (uint64_t)st->st_size, .used = st->st_mtim};
    snprintf(file->name, sizeof file->name, "%s", name);
    l->bytes += file->bytes;
    return CT_OK;
}

static ct_status visit_file(void *user, const char *name, ct_error *error)
{
    listing *l = user;
    char kind[BLOB_KIND + 1];
    bool temporary;
    struct stat st;
    if (!blob_is_file(name, kind, &temporary))
        return CT_OK;
    char *path = path_join(l->folder->allocator, l->folder->path, name);
    if (!path)
        return no_path(error);
    ct_status status = CT_OK;
    if (lstat(path, &st) == 0 && S_ISREG(st.st_mode)) {
        if (!temporary)
            status = add_file(l, name, &st, error);
        else if (st.st_mtim.tv_sec < time(NULL) - STALE_SECONDS)
            unlink(path);
    }
    mem_free(l->folder->allocator, path);
    return status;
}

static int compare_files(const void *left, const void *right)
{
    const found_file *a = left, *b = right;
    if (a->used.tv_sec != b->used.tv_sec)
        return a->used.tv_sec < b->used.tv_sec ? -1 : 1;
    if (a->used.tv_nsec != b->used.tv_nsec)
        return a->used.tv_nsec < b->used.tv_nsec ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* Deletes what was not used for longest, until so many bytes have room. */
static ct_status make_room(const blob_folder *f, uint64_t bytes, ct_error *error)
{
    listing l = {.folder = f};
    ct_status status = folder_each(f->path, visit_file, &l, error);
    if (status == CT_OK && l.count && l.bytes + bytes > f->limit)
        qsort(l.files, l.count, sizeof *l.files, compare_files);
    for (size_t i = 0; status == CT_OK && i < l.count && l.bytes + bytes > f->limit; i++) {
        char *path = path_join(f->allocator, f->path, l.files[i].name);
        if (!path)
            status = no_path(error);
        else if (unlink(path) == 0 || errno == ENOENT)
            l.bytes -= l.files[i].bytes;
        mem_free(f->allocator, path);
    }
    if (status == CT_OK && l.bytes + bytes > f->limit)
        status = error_set(error, CT_EIO, "old results in %s cannot be deleted", f->path);
    mem_free(f->allocator, l.files);
    return status;
}

/* ---- Reading --------------------------------------------------------------------------------- */

static blob_header make_header(const blob_name *name, size_t bytes)
{
    blob_header h = {.bytes = bytes};
    memcpy(h.magic, magic, sizeof magic);
    memcpy(h.kind, name->kind, strlen(name->kind));
    memcpy(h.hash, name->hash, FINGERPRINT_DIGITS);
    return h;
}

static void begin_sum(fingerprint *f, const blob_header *h)
{
    fingerprint_begin(f);
    fingerprint_add(f, h, offsetof(blob_header, sum));
}

static void end_sum(const fingerprint *f, char sum[FINGERPRINT_DIGITS])
{
    char hex[FINGERPRINT_DIGITS + 1];
    fingerprint_hex(f, hex);
    memcpy(sum, hex, FINGERPRINT_DIGITS);
}

static bool read_all(int fd, void *to, size_t bytes)
{
    char *at = to;
    while (bytes) {
        const ssize_t n = read(fd, at, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

/* What is wrong with an open file; NULL: nothing. *ended: the sink ended it. */
static const char *read_payload(int fd, const blob_name *name, size_t bytes, char *piece,
                                const blob_sink *sink, bool *ended)
{
    const blob_header expected = make_header(name, bytes);
    blob_header h;
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || !read_all(fd, &h, sizeof h) ||
        memcmp(h.magic, magic, sizeof magic) != 0)
        return "is no file of the cache";
    if (memcmp(&h, &expected, offsetof(blob_header, sum)) != 0)
        return "was made from something else";
    if ((uint64_t)st.st_size != sizeof h + (uint64_t)bytes)
        return "is cut off";
    fingerprint sum;
    char digits[FINGERPRINT_DIGITS];
    begin_sum(&sum, &h);
    for (size_t at = 0; at < bytes && !*ended; at += BLOB_PIECE) {
        const size_t count = bytes - at < BLOB_PIECE ? bytes - at : BLOB_PIECE;
        if (!read_all(fd, piece, count))
            return "cannot be read to its end";
        fingerprint_add(&sum, piece, count);
        *ended = !sink->take(sink->user, at, piece, count);
    }
    end_sum(&sum, digits);
    return *ended || memcmp(digits, h.sum, sizeof digits) == 0 ? NULL : "is damaged";
}

static ct_status read_path(const blob_folder *f, const char *path, const blob_name *name,
                           size_t bytes, const blob_sink *sink, ct_error *error)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0)
        return error_set(error, errno == ENOENT || errno == ENOTDIR ? CT_ENOTFOUND : CT_EIO,
                         "cannot open %s: %s", path, strerror(errno));
    const size_t most = bytes < BLOB_PIECE ? bytes : BLOB_PIECE;
    char *piece = mem_alloc(f->allocator, most);
    ct_status status = piece ? CT_OK : error_memory(error, most, "a piece of a cached result");
    bool ended = false;
    const char *fault = piece ? read_payload(fd, name, bytes, piece, sink, &ended) : NULL;
    mem_free(f->allocator, piece);
    if (fault) {
        unlink(path);
        status = error_set(error, CT_EFORMAT, "%s %s; it is deleted", path, fault);
    } else if (ended) {
        status = error_set(error, CT_ECANCELLED, "%s is not read to its end", path);
    } else if (status == CT_OK) {
        futimens(fd, NULL); /* where it cannot be done, the file seems older than it is */
    }
    close(fd);
    return status;
}

ct_status blob_folder_read(const blob_folder *f, const blob_name *name, size_t bytes,
                           const blob_sink *sink, ct_error *error)
{
    char *path = path_of(f, name);
    if (!path)
        return no_path(error);
    const ct_status status = read_path(f, path, name, bytes, sink, error);
    mem_free(f->allocator, path);
    return status;
}

/* ---- Writing --------------------------------------------------------------------------------- */

/* False where the source ended it. What fails to be written is told by file_output_commit. */
static bool write_payload(FILE *stream, blob_header *h, char *piece, const blob_source *source)
{
    fingerprint sum;
    begin_sum(&sum, h);
    fwrite(h, 1, sizeof *h, stream); /* the sum follows */
    for (size_t at = 0; at < h->bytes && !ferror(stream); at += BLOB_PIECE) {
        const size_t count = h->bytes - at < BLOB_PIECE ? h->bytes - at : BLOB_PIECE;
        if (!source->give(source->user, at, piece, count))
            return false;
        fingerprint_add(&sum, piece, count);
        fwrite(piece, 1, count, stream);
    }
    end_sum(&sum, h->sum);
    if (fseek(stream, 0, SEEK_SET) == 0)
        fwrite(h, 1, sizeof *h, stream);
    return true;
}

static ct_status write_path(const blob_folder *f, const char *path, const blob_name *name,
                            size_t bytes, const blob_source *source, ct_error *error)
{
    file_output out;
    blob_header h = make_header(name, bytes);
    ct_status status = folder_create_parents(path, error);
    if (status == CT_OK)
        status = make_room(f, sizeof h + (uint64_t)bytes, error);
    /* The disk is not there for this alone. */
    if (status == CT_OK && folder_free_bytes(f->path) / 2 < bytes)
        status = error_set(error, CT_EIO, "the disk of %s is almost full", f->path);
    if (status != CT_OK)
        return status;
    const size_t most = bytes < BLOB_PIECE ? bytes : BLOB_PIECE;
    char *piece = mem_alloc(f->allocator, most);
    if (!piece)
        return error_memory(error, most, "a piece of a cached result");
    status = file_output_open(&out, path, error);
    if (status == CT_OK) {
        out.unsynced = true;
        fchmod(fileno(out.stream), S_IRUSR | S_IWUSR);
        if (write_payload(out.stream, &h, piece, source)) {
            status = file_output_commit(&out, error);
        } else {
            file_output_abort(&out);
            status = error_set(error, CT_ECANCELLED, "%s is not written to its end", path);
        }
    }
    mem_free(f->allocator, piece);
    return status;
}

ct_status blob_folder_write(const blob_folder *f, const blob_name *name, size_t bytes,
                            const blob_source *source, ct_error *error)
{
    if (bytes == 0 || bytes > f->limit || sizeof(blob_header) > f->limit - bytes)
        return error_set(error, CT_ENOMEM,
                         "a result of %zu bytes is larger than the limit of the cache", bytes);
    char *path = path_of(f, name);
    if (!path)
        return no_path(error);
    const ct_status status = write_path(f, path, name, bytes, source, error);
    mem_free(f->allocator, path);
    return status;
}
