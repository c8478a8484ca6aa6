#define _DEFAULT_SOURCE
#include "core/mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void *default_alloc(void *user, size_t size)
{
    (void)user;
    return malloc(size);
}

static void default_free(void *user, void *pointer)
{
    (void)user;
    free(pointer);
}

const ct_allocator mem_default = {NULL, default_alloc, default_free};

bool size_mul(size_t a, size_t b, size_t *out)
{
    if (b && a > SIZE_MAX / b)
        return false;
    *out = a * b;
    return true;
}

bool size_add(size_t a, size_t b, size_t *out)
{
    if (a > SIZE_MAX - b)
        return false;
    *out = a + b;
    return true;
}

void *mem_alloc(const ct_allocator *a, size_t size)
{
    return a->alloc(a->user, size ? size : 1);
}

void *mem_array(const ct_allocator *a, size_t count, size_t size)
{
    size_t bytes;
    return size_mul(count, size, &bytes) ? mem_alloc(a, bytes) : NULL;
}

void *mem_zero_array(const ct_allocator *a, size_t count, size_t size)
{
    void *p = mem_array(a, count, size);
    if (p)
        memset(p, 0, count * size);
    return p;
}

void *mem_grow(const ct_allocator *a, void *old, size_t old_size, size_t new_size)
{
    void *p = mem_alloc(a, new_size);
    if (!p)
        return NULL;
    if (old)
        memcpy(p, old, old_size < new_size ? old_size : new_size);
    mem_free(a, old);
    return p;
}

char *mem_strndup(const ct_allocator *a, const char *text, size_t length)
{
    size_t bytes;
    char *copy = size_add(length, 1, &bytes) ? mem_alloc(a, bytes) : NULL;
    if (!copy)
        return NULL;
    memcpy(copy, text, length);
    copy[length] = 0;
    return copy;
}

char *mem_strdup(const ct_allocator *a, const char *text)
{
    return mem_strndup(a, text, strlen(text));
}

void mem_free(const ct_allocator *a, const void *pointer)
{
    a->free(a->user, (void *)(uintptr_t)pointer);
}

/* The block that the allocator gave is remembered in the word before the aligned address. */
void *mem_alloc_aligned(const ct_allocator *a, size_t size)
{
    size_t total;
    if (!size_add(size, MEM_ALIGN + sizeof(void *) + MEM_PAD, &total))
        return NULL;
    char *block = mem_alloc(a, total);
    if (!block)
        return NULL;
    uintptr_t at = (uintptr_t)block + sizeof(void *);
    at = (at + MEM_ALIGN - 1) & ~(uintptr_t)(MEM_ALIGN - 1);
    memcpy((char *)at - sizeof(void *), &block, sizeof(void *));
    return (void *)at;
}

void mem_free_aligned(const ct_allocator *a, void *pointer)
{
    if (!pointer)
        return;
    char *block;
    memcpy(&block, (char *)pointer - sizeof(void *), sizeof(void *));
    mem_free(a, block);
}

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(pointer, size) ((void)(pointer), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(pointer, size) ((void)(pointer), (void)(size))
#endif

void mem_poison(void *pointer, size_t size)
{
    ASAN_POISON_MEMORY_REGION(pointer, size);
}

void mem_unpoison(void *pointer, size_t size)
{
    ASAN_UNPOISON_MEMORY_REGION(pointer, size);
}

void mem_discard(void *at, size_t size)
{
    const long page = sysconf(_SC_PAGESIZE);
    if (page <= 0)
        return;
    const uintptr_t mask = (uintptr_t)page - 1;
    uintptr_t first = ((uintptr_t)at + mask) & ~mask, end = ((uintptr_t)at + size) & ~mask;
    if (end > first)
        madvise((void *)first, end - first, MADV_DONTNEED);
}
