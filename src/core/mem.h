/* Memory through the caller's allocator. Nothing in the library calls malloc but mem.c. */
#ifndef CORE_MEM_H
#define CORE_MEM_H

#include "calotype/calotype.h"

/* Kernels may read (never use) up to this many bytes past the end of a tensor. */
#define MEM_PAD 128
#define MEM_ALIGN 64

/* malloc and free, for a context that brings no allocator. */
extern const ct_allocator mem_default;

/* All return NULL when memory cannot be had, or when count * size does not fit in a size_t.
 * Size 0 gives a valid pointer. */
void *mem_alloc(const ct_allocator *a, size_t size);
void *mem_array(const ct_allocator *a, size_t count, size_t size);
void *mem_zero_array(const ct_allocator *a, size_t count, size_t size);
/* A larger copy of old_size bytes; the old block is freed, or kept when NULL is returned. */
void *mem_grow(const ct_allocator *a, void *old, size_t old_size, size_t new_size);
char *mem_strdup(const ct_allocator *a, const char *text);
char *mem_strndup(const ct_allocator *a, const char *text, size_t length);
void mem_free(const ct_allocator *a, const void *pointer);

/* MEM_ALIGN-aligned, with MEM_PAD readable bytes behind. Freed by mem_free_aligned. */
void *mem_alloc_aligned(const ct_allocator *a, size_t size);
void mem_free_aligned(const ct_allocator *a, void *pointer);

/* Under AddressSanitizer: memory that must not be touched for now, and what may be again. Else
 * nothing. */
void mem_poison(void *pointer, size_t size);
void mem_unpoison(void *pointer, size_t size);

/* Gives whole pages inside a block back to the system; what was in them is lost, and the next use
 * takes new ones. Where the system cannot, nothing happens. */
void mem_discard(void *at, size_t size);

/* a * b and a + b into *out; false when they overflow. */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

#endif
