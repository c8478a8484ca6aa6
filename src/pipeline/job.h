/* A job between its two files: job.c checks and prepares, run.c runs. */
#ifndef PIPELINE_JOB_H
#define PIPELINE_JOB_H

#include "pipeline/internal.h"
#include "pipeline/trace.h"

/* A prompt on its way: text to ids to features. */
typedef struct prompt {
    char *text;
    int32_t *ids;
    int64_t count; /* of ids, after truncation */
    bool truncated;
    float *features; /* [count, hidden]; NULL until the first run has encoded it */
} prompt;

struct ct_job {
    ct_model *model;
    const ct_allocator *allocator;
    ct_callbacks callbacks;
    ct_job_info info;
    bool cfg_normalization, trace_modules;
    double cfg_truncation;
    uint64_t seed; /* of the parameters, for ct_generate */
    char *noise_path, *trace_path;
    prompt positive, negative;
    int64_t latent_height, latent_width, latent_count;
    float *sigmas, *times;           /* [steps + 1], [steps]: 1 - sigma */
    float *latents, *guided, *other; /* each [latent_count] */
    float *picture;                  /* [3, height, width] */
    nn *network;                     /* with the memory that the dry run asked for */
    trace trace;
    double began, stage_began; /* of the current run, for progress */
};

/* Whether a step runs the negative prompt as well. */
bool job_guides(const ct_job *job, int step);
/* Prompts, noise, steps, picture, on a network that may be dry: then the same calls find the memory
 * without touching data. The outcome is nn_status. */
void job_execute(ct_job *job, nn *c, uint64_t seed);

#endif
