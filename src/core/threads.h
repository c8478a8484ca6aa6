/* A pool of threads that runs numbered tasks. Which thread runs which task is left open, so a task
 * must depend on its index alone: that is how results become the same for any number of threads. */
#ifndef CORE_THREADS_H
#define CORE_THREADS_H

#include "core/error.h"

typedef struct pool pool;

#define POOL_MAX_THREADS 1024

/* threads counts the caller; 0 takes one for each processor that this process may use. */
ct_status pool_create(pool **out, const ct_allocator *a, int threads, ct_error *error);
void pool_free(pool *p); /* NULL is allowed */
int pool_threads(const pool *p);

/* Runs task(user, index, worker) for index in 0..count-1 and returns when all are done. worker is
 * in 0..threads-1, and no two tasks run at once with the same worker. Several threads may call at
 * the same time: their runs follow one another. */
void pool_run(pool *p, int64_t count, void (*task)(void *user, int64_t index, int worker),
              void *user);

#endif
