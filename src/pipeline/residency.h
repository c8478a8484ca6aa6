/* Which weights are in this process's memory, and when. Weights are pages of mapped files: those
 * that are let go stay in the system's cache, and cost little to touch again.
 *
 * A dry run records the blocks of the network in the order in which they run, and the ranges of
 * files that each reads. What a picture uses once (text encoder, modulation of the schedule,
 * caption, VAE) is always let go block by block, with the next block being read ahead. Of the
 * transformer's blocks, which run at every step, as many stay as memory allows. */
#ifndef PIPELINE_RESIDENCY_H
#define PIPELINE_RESIDENCY_H

#include "core/readahead.h"
#include "io/weights.h"
#include "nn/nn.h"

/* What runs between two calls of residency_begin. */
typedef enum residency_section {
    SECTION_SEE,        /* a reference picture through the text encoder's vision */
    SECTION_ENCODE,     /* a prompt through the text encoder */
    SECTION_REFERENCES, /* the reference pictures through the VAE */
    SECTION_SCHEDULE,   /* the transformer's work for the schedule, unless that is known */
    SECTION_PREPARE,    /* the transformer's work for the captions */
    SECTION_EVALUATE,   /* the transformer, once */
    SECTION_DECODE,     /* the VAE */
    SECTION_COUNT
} residency_section;

typedef struct residency_block {
    size_t first, count; /* of the ranges */
    uint64_t bytes;
    bool stays;
} residency_block;

typedef struct residency_list {
    size_t first; /* of the blocks */
    int count;
    uint64_t largest; /* of one block */
} residency_list;

#define RESIDENCY_FILES 3

typedef struct residency {
    const ct_allocator *allocator;
    const weights *files[RESIDENCY_FILES];
    file_range *ranges;
    residency_block *blocks;
    size_t range_count, range_capacity, block_count, block_capacity;
    residency_list list[SECTION_COUNT];

    residency_section section; /* that is running */
    int cursor;                /* its block; -1: none */
    int evaluations;           /* that have begun in this run */
    bool dry, recording, lost; /* lost: memory was short while recording */
    readahead *ahead;
    nn_residency hook; /* hand &hook to nn_create */
} residency;

void residency_init(residency *r, const ct_allocator *a);
void residency_free(residency *r);
/* Adds files whose pages are to be watched. */
void residency_watch(residency *r, const weights *w);

/* Before a run. A dry run records anew. */
void residency_start(residency *r, bool dry);
/* A section begins; it may begin several times in a run. */
void residency_begin(residency *r, residency_section section);
/* The files' pages go. In a dry run nothing happens. */
void residency_let_go(const residency *r, const weights *w);
/* Completes the recording of a dry run. */
ct_status residency_finish(residency *r, ct_error *error);

/* Chooses how many blocks of a section come and go, the others stay. Those that stay are spread
 * evenly, so that there is time to read ahead. */
void residency_stream(residency *r, residency_section section, int streamed);
/* The bytes that these sections read, each counted once. */
uint64_t residency_read_bytes(const residency *r, residency_section first, residency_section last);
/* The most bytes of the section that are in memory at once. */
uint64_t residency_bytes(const residency *r, residency_section section);
/* Starts the thread that reads ahead; without it the run works, too. */
void residency_read_ahead(residency *r);

#endif
