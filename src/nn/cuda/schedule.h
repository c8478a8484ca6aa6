/* What a job's weights take on the GPU, and when: found by a dry run, followed by the real one. The
 * pipeline's side of it is in gpu.h. */
#ifndef NN_CUDA_SCHEDULE_H
#define NN_CUDA_SCHEDULE_H

#include "nn/cuda/cuda.h"

#define CUDA_JOINED 4 /* most weights below each other in a request */
#define CUDA_SLOTS 2  /* buffers that streamed blocks take turns in */

/* A copy of weights that the GPU needs. */
typedef struct schedule_item {
    nn_weight w[CUDA_JOINED];
    int count, form;
    dtype type;
    size_t part[CUDA_PARTS]; /* bytes of the allocations */
    size_t temporary;        /* bytes more, while it is uploaded */
    unsigned sections;       /* bits: where a block that stays needs it */
} schedule_item;

/* In a block of a section. */
typedef struct schedule_use {
    size_t item, offset; /* offset: in the block's buffer, if it is streamed */
} schedule_use;

typedef struct schedule_block {
    size_t first, count; /* of the uses */
    size_t bytes;        /* of all of them, in one buffer */
    int slot;            /* -1: it stays */
} schedule_block;

typedef struct schedule_list {
    size_t first, count; /* of the blocks */
    size_t slot_bytes[CUDA_SLOTS];
    /* Bits: weights of these sections stay on the GPU when this one begins; UINT_MAX: all that are
     * there, whosever they are. */
    unsigned keeps;
} schedule_list;

struct cuda_schedule {
    const ct_allocator *allocator;
    schedule_item *items;
    schedule_use *uses;
    schedule_block *blocks;
    size_t item_count, item_capacity, use_count, use_capacity, block_count, block_capacity;
    schedule_list list[CUDA_SECTIONS];
    int section; /* that is recorded; -1: none */
    bool lost;   /* memory was short while recording */
    bool trims;  /* the arena has the size that each section needs */
    /* Its streamed blocks are kept in pinned memory, in the GPU's form; -1: none. */
    int image_section;
};

/* In a dry run. */
void schedule_begin(cuda_schedule *p, int section);
void schedule_next(cuda_schedule *p);
void schedule_note(cuda_schedule *p, const cuda_request *r);

bool schedule_is_item(const schedule_item *item, const void *key, int count, int form, dtype type);
/* Whether a copy is needed by blocks that stay in any of these sections. */
bool schedule_keeps(const cuda_schedule *p, unsigned sections, const void *key, int count, int form,
                    dtype type);

#endif
