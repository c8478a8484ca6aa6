/* What a job computes from its input alone, and another job, or another run of the program, need
 * not compute again: features of prompts, what the text encoder sees of pictures and the latents of
 * those, the table of a schedule, the tables of positions. Each is known by a hash of all that its
 * numbers depend on; they come back bit for bit. In memory a model keeps them for its jobs, a
 * folder keeps them for all.
 *
 * A dry run takes nothing from here, so that plans are those of a job that computes everything. Nor
 * does a job with a trace, which must see the networks work. */
#ifndef PIPELINE_CACHE_H
#define PIPELINE_CACHE_H

#include "families/family.h"
#include "io/blob.h"
#include "nn/nn.h"

struct ct_job;
struct prompt;
struct reference;

/* Names for what this job would compute. */
blob_name cache_prompt_name(const struct ct_job *job, const struct prompt *p);
blob_name cache_sight_name(const struct ct_job *job, const struct reference *r);
blob_name cache_latents_name(const struct ct_job *job, const struct reference *r);
blob_name cache_schedule_name(const struct ct_job *job);

/* NULL where there is none, or the cache is not used; else where it was, for messages. A damaged
 * file counts as none and is told about. */
const char *cache_load_floats(const struct ct_job *job, const blob_name *name, float *to,
                              size_t count);
/* What was computed, or was found somewhere: to memory, and where it was computed to the folder.
 * That this does not work is no failure of the job; of a folder it is told once. found: what
 * cache_load_floats returned. */
void cache_keep_floats(const struct ct_job *job, const blob_name *name, const float *from,
                       size_t count, const char *found);

bool cache_has(const struct ct_job *job, const blob_name *name, uint64_t bytes);

/* The same with a tensor of float32 without gaps in the network's memory. A tensor that could not
 * be loaded may have any numbers afterwards; one with numbers that are not finite is not kept. */
const char *cache_load_tensor(const struct ct_job *job, nn *c, const blob_name *name,
                              const nn_tensor *t);
void cache_keep_tensor(const struct ct_job *job, nn *c, const blob_name *name, const nn_tensor *t,
                       const char *found);

/* Tables of positions, for a condition that is made of this prompt; the user must stay. They are
 * small and quickly made, so they stay in memory alone. */
typedef struct cache_user {
    const struct ct_job *job;
    struct prompt *prompt;
} cache_user;
rope_memory cache_tables(cache_user *user);

/* The most memory that a stage takes for what is kept: part of its plan. After a dry run. */
uint64_t cache_stage_bytes(const struct ct_job *job, ct_stage stage);

#endif
