#define _GNU_SOURCE
#include "core/threads.h"
#include "core/mem.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

struct pool {
    const ct_allocator *allocator;
    int threads;
    int started; /* helpers that run, for freeing a pool whose creation failed half-way */
    pthread_t *helpers;
    struct helper *arguments;

    pthread_mutex_t caller; /* one run at a time */
    pthread_mutex_t lock;   /* guards what follows */
    pthread_cond_t wake, finished;
    uint64_t run; /* counts runs, so that a helper knows a new one */
    int busy;     /* helpers that have not finished the current run */
    bool stop;

    void (*task)(void *, int64_t, int);
    void *user;
    int64_t count;
    atomic_int_least64_t next;
};

struct helper {
    pool *pool;
    int worker;
};

static void work(pool *p, int worker)
{
    for (;;) {
        int64_t index = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (index >= p->count)
            return;
        p->task(p->user, index, worker);
    }
}

static void *helper_main(void *argument)
{
    struct helper *h = argument;
    pool *p = h->pool;
    uint64_t seen = 0;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->stop && p->run == seen)
            pthread_cond_wait(&p->wake, &p->lock);
        if (p->stop)
            break;
        seen = p->run;
        pthread_mutex_unlock(&p->lock);
        work(p, h->worker);
        pthread_mutex_lock(&p->lock);
        if (--p->busy == 0)
            pthread_cond_signal(&p->finished);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static int usable_processors(void)
{
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : (int)n;
}

ct_status pool_create(pool **out, const ct_allocator *a, int threads, ct_error *error)
{
    *out = NULL;
    if (threads < 0 || threads > POOL_MAX_THREADS)
        return error_set(error, CT_EINVAL, "threads is %d; it must be 0 (automatic) to %d", threads,
                         POOL_MAX_THREADS);
    if (threads == 0)
        threads = usable_processors();
    if (threads > POOL_MAX_THREADS)
        threads = POOL_MAX_THREADS;
    pool *p = mem_zero_array(a, 1, sizeof *p);
    if (!p)
        return error_memory(error, sizeof *p, "the threads");
    p->allocator = a;
    p->threads = threads;
    p->helpers = mem_zero_array(a, (size_t)threads, sizeof *p->helpers);
    p->arguments = mem_zero_array(a, (size_t)threads, sizeof *p->arguments);
    pthread_mutex_init(&p->caller, NULL);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->finished, NULL);
    atomic_init(&p->next, 0);
    ct_status status = CT_OK;
    if (!p->helpers || !p->arguments)
        status = error_memory(error, (size_t)threads * sizeof *p->helpers, "the threads");
    for (int i = 1; status == CT_OK && i < threads; i++) {
        p->arguments[i] = (struct helper){p, i};
        if (pthread_create(&p->helpers[i], NULL, helper_main, &p->arguments[i]) != 0)
            status = error_set(error, CT_ENOMEM,
                               "thread %d of %d could not be started; ask for fewer threads", i,
                               threads);
        else
            p->started++;
    }
    if (status != CT_OK) {
        pool_free(p);
        return status;
    }
    *out = p;
    return CT_OK;
}

void pool_free(pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 1; i <= p->started; i++)
        pthread_join(p->helpers[i], NULL);
    pthread_cond_destroy(&p->finished);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->caller);
    mem_free(p->allocator, p->arguments);
    mem_free(p->allocator, p->helpers);
    mem_free(p->allocator, p);
}

int pool_threads(const pool *p)
{
    return p->threads;
}

void pool_run(pool *p, int64_t count, void (*task)(void *, int64_t, int), void *user)
{
    if (count <= 0)
        return;
    pthread_mutex_lock(&p->caller);
    p->task = task;
    p->user = user;
    p->count = count;
    atomic_store(&p->next, 0);
    bool alone = p->threads == 1 || count == 1;
    if (!alone) {
        pthread_mutex_lock(&p->lock);
        p->busy = p->threads - 1;
        p->run++;
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
    work(p, 0);
    if (!alone) {
        pthread_mutex_lock(&p->lock);
        while (p->busy)
            pthread_cond_wait(&p->finished, &p->lock);
        pthread_mutex_unlock(&p->lock);
    }
    pthread_mutex_unlock(&p->caller);
}
