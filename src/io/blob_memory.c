/* Results in memory: a few large blocks, so a list is searched from its beginning. */
#include "core/mem.h"
#include "io/blob.h"

#include <pthread.h>
#include <string.h>

typedef struct entry {
    struct entry *next; /* used before this one */
    blob_name name;
    size_t bytes;
    char *data;
} entry;

struct blob_memory {
    const ct_allocator *allocator;
    uint64_t limit, bytes;
    pthread_mutex_t lock;
    entry *first; /* the one that was used last */
};

static void free_entry(const blob_memory *m, entry *e)
{
    if (e)
        mem_free(m->allocator, e->data);
    mem_free(m->allocator, e);
}

ct_status blob_memory_create(blob_memory **out, const ct_allocator *a, uint64_t limit,
                             ct_error *error)
{
    blob_memory *m = *out = mem_zero_array(a, 1, sizeof *m);
    if (!m)
        return error_memory(error, sizeof *m, "the cache");
    m->allocator = a;
    m->limit = limit;
    if (pthread_mutex_init(&m->lock, NULL) == 0)
        return CT_OK;
    mem_free(a, m);
    *out = NULL;
    return error_set(error, CT_EIO, "the system has no more locks");
}

void blob_memory_free(blob_memory *m)
{
    if (!m)
        return;
    for (entry *e = m->first, *next; e; e = next) {
        next = e->next;
        free_entry(m, e);
    }
    pthread_mutex_destroy(&m->lock);
    mem_free(m->allocator, m);
}

static bool same(const blob_name *a, const blob_name *b)
{
    return strcmp(a->hash, b->hash) == 0 && strcmp(a->kind, b->kind) == 0;
}

/* Takes it out of the list; NULL where there is none. */
static entry *take_out(blob_memory *m, const blob_name *name)
{
    for (entry **at = &m->first; *at; at = &(*at)->next) {
        entry *e = *at;
        if (!same(&e->name, name))
            continue;
        *at = e->next;
        m->bytes -= e->bytes;
        return e;
    }
    return NULL;
}

static void put_first(blob_memory *m, entry *e)
{
    e->next = m->first;
    m->first = e;
    m->bytes += e->bytes;
}

/* The last ones go until so many bytes have room. */
static void make_room(blob_memory *m, uint64_t bytes)
{
    while (m->first && m->bytes + bytes > m->limit) {
        entry **at = &m->first;
        while ((*at)->next)
            at = &(*at)->next;
        m->bytes -= (*at)->bytes;
        free_entry(m, *at);
        *at = NULL;
    }
}

bool blob_memory_has(blob_memory *m, const blob_name *name, size_t bytes)
{
    pthread_mutex_lock(&m->lock);
    bool found = false;
    for (const entry *e = m->first; e && !found; e = e->next)
        found = same(&e->name, name) && e->bytes == bytes;
    pthread_mutex_unlock(&m->lock);
    return found;
}

/* A piece is copied under the lock and handed on without it, so that a sink that waits for a device
 * holds nobody up. */
static bool copy_piece(blob_memory *m, const blob_name *name, size_t bytes, size_t at, char *piece,
                       size_t count)
{
    pthread_mutex_lock(&m->lock);
    entry *e = take_out(m, name);
    const bool whole = e && e->bytes == bytes;
    if (e)
        put_first(m, e);
    if (whole)
        memcpy(piece, e->data + at, count);
    pthread_mutex_unlock(&m->lock);
    return whole;
}

static size_t piece_bytes(size_t bytes, size_t at)
{
    return bytes - at < BLOB_PIECE ? bytes - at : BLOB_PIECE;
}

bool blob_memory_read(blob_memory *m, const blob_name *name, size_t bytes, const blob_sink *sink)
{
    if (!blob_memory_has(m, name, bytes))
        return false;
    char *piece = mem_alloc(m->allocator, piece_bytes(bytes, 0));
    bool good = piece != NULL;
    for (size_t at = 0; good && at < bytes; at += BLOB_PIECE) {
        const size_t count = piece_bytes(bytes, at);
        good = copy_piece(m, name, bytes, at, piece, count) &&
               sink->take(sink->user, at, piece, count);
    }
    mem_free(m->allocator, piece);
    return good;
}

bool blob_memory_write(blob_memory *m, const blob_name *name, size_t bytes,
                       const blob_source *source)
{
    if (bytes == 0 || bytes > m->limit)
        return false;
    pthread_mutex_lock(&m->lock);
    free_entry(m, take_out(m, name));
    make_room(m, bytes);
    pthread_mutex_unlock(&m->lock);
    entry *e = mem_zero_array(m->allocator, 1, sizeof *e);
    if (e)
        *e = (entry){.name = *name, .bytes = bytes, .data = mem_alloc(m->allocator, bytes)};
    bool good = e && e->data;
    for (size_t at = 0; good && at < bytes; at += BLOB_PIECE)
        good = source->give(source->user, at, e->data + at, piece_bytes(bytes, at));
    if (!good) {
        free_entry(m, e);
        return false;
    }
    pthread_mutex_lock(&m->lock);
    free_entry(m, take_out(m, name)); /* another thread was as quick */
    make_room(m, bytes);
    put_first(m, e);
    pthread_mutex_unlock(&m->lock);
    return true;
}

uint64_t blob_memory_bytes(blob_memory *m)
{
    pthread_mutex_lock(&m->lock);
    const uint64_t bytes = m->bytes;
    pthread_mutex_unlock(&m->lock);
    return bytes;
}

uint64_t blob_memory_limit(const blob_memory *m)
{
    return m->limit;
}
