#define _POSIX_C_SOURCE 200809L
#include "core/readahead.h"
#include "core/mem.h"

#include <pthread.h>

/* Bytes asked of the system at once: what a new request may have to wait for. */
#define PIECE ((size_t)8 << 20)

struct readahead {
    const ct_allocator *allocator;
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    const file_range *ranges;
    size_t count;
    size_t next, done; /* range that is being read, and how much of it */
    bool stop;
};

static void *readahead_main(void *argument)
{
    readahead *r = argument;
    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        if (r->next >= r->count) {
            pthread_cond_wait(&r->wake, &r->lock);
            continue;
        }
        file_range range = r->ranges[r->next];
        range.at += r->done;
        range.bytes -= r->done;
        if (range.bytes > PIECE) {
            range.bytes = PIECE;
            r->done += PIECE;
        } else {
            r->next++;
            r->done = 0;
        }
        pthread_mutex_unlock(&r->lock);
        file_map_expect(range.map, range.at, range.bytes);
        pthread_mutex_lock(&r->lock);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

ct_status readahead_create(readahead **out, const ct_allocator *a, ct_error *error)
{
    *out = NULL;
    readahead *r = mem_zero_array(a, 1, sizeof *r);
    if (!r)
        return error_memory(error, sizeof *r, "the read-ahead");
    r->allocator = a;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->wake, NULL);
    if (pthread_create(&r->thread, NULL, readahead_main, r) != 0) {
        pthread_cond_destroy(&r->wake);
        pthread_mutex_destroy(&r->lock);
        mem_free(a, r);
        return error_set(error, CT_ENOMEM, "the thread that reads ahead could not be started");
    }
    *out = r;
    return CT_OK;
}

void readahead_free(readahead *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->thread, NULL);
    pthread_cond_destroy(&r->wake);
    pthread_mutex_destroy(&r->lock);
    mem_free(r->allocator, r);
}

void readahead_ask(readahead *r, const file_range *ranges, size_t count)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->lock);
    r->ranges = ranges;
    r->count = count;
    r->next = r->done = 0;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
}
