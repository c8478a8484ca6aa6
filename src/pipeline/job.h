/* A job between its files: job.c checks and prepares, plan.c finds the memory, run.c runs. */
#ifndef PIPELINE_JOB_H
#define PIPELINE_JOB_H

#include "pipeline/internal.h"
#include "pipeline/reference.h"
#include "pipeline/residency.h"
#include "pipeline/trace.h"

/* A prompt on its way: text to ids to features. */
typedef struct prompt {
    char *text;
    int32_t *ids;
    int64_t count; /* of ids, after truncation, with padding */
    int64_t words; /* of ids that are no padding */
    bool truncated;
    float
        *features; /* [job_feature_count, feature_width]; NULL until the first run has encoded it */
    void *condition;          /* what the transformer was prepared with, of the family's type */
    blob_name positions;      /* the table of its tokens' positions, and its bytes: known after */
    uint64_t positions_bytes; /* a dry run */
} prompt;

struct ct_job {
    ct_model *model;
    const ct_allocator *allocator;
    ct_callbacks callbacks;
    ct_job_info info;
    bool guides; /* the negative prompt is used */
    bool cfg_normalization, trace_modules;
    double cfg_truncation, guidance_start, guidance_end;
    ct_cfg_batch cfg_batch_wanted;
    bool cfg_batch; /* both prompts go through the transformer in one pass; plan_memory decides */
    uint64_t seed;  /* of the parameters, for ct_generate */
    char *noise_path, *trace_path;
    prompt positive, negative;
    int64_t latent_height, latent_width, latent_count;
    reference reference[MAX_REFERENCES];
    int references;              /* of them */
    int keep_width, keep_height; /* of the picture, where it is less than the size; 0: all */
    void *schedule;              /* what the transformer was prepared with */
    float *sigmas, *times;       /* [steps + 1], [steps]: 1 - sigma */
    float *latents, *scratch;    /* each [latent_count] */
    float *picture;              /* [3, height, width] */
    nn *network;                 /* with the memory that the dry run asked for */
    residency residency;         /* of the weights */
    size_t arena[3];             /* memory of the network in each ct_stage */
    uint64_t table_bytes;        /* of the schedule's table */
    int strip_rows;              /* of latents, for the VAE; 0: the whole picture at once */
    uint64_t max_memory;         /* 0: none was given */
    uint64_t max_vram;           /* likewise */
    ct_gpu_way gpu_way;
    size_t gpu_decode_bytes;     /* activations of the VAE, as it was chosen for the GPU */
    cuda_schedule *schedule_gpu; /* of the weights there; NULL without a GPU */
    trace trace;
    double began, stage_began; /* of the current run, for progress */
};

/* A job without memory for its run. planning: a prompt is not required, and nothing is written: the
 * path of a trace is not checked. */
ct_status job_open(ct_job **out, ct_model *model, const ct_generate_params *params, bool planning,
                   ct_error *error);
/* Rows of a prompt's features. */
int64_t job_feature_count(const ct_job *job, const prompt *p);
/* Sizes in pixels, which must be multiples of the model's. */
void job_set_size(ct_job *job, int width, int height);
/* What the network of this job is made with. */
nn_params job_network(const ct_job *job);
/* What the VAE does, without somebody to report to. */
vae_decoding job_decoding(const ct_job *job);
/* Bytes of latents and picture, which job->latents holds. */
size_t job_plane_bytes(const ct_job *job);

/* A dry run: fills job->arena and the blocks of job->residency. */
ct_status plan_measure(ct_job *job, ct_error *error);
/* Chooses what stays in memory; fails with CT_ENOMEM where a job would have to be refused, with
 * everything in *plan all the same. */
ct_status plan_memory(ct_job *job, ct_memory_plan *plan, ct_error *error);

/* The ways to decode, each with less activations than those before; the first is the whole picture
 * at once. */
#define DECODE_WAYS 9

typedef struct decode_ways {
    int count;
    struct {
        int strip_rows; /* 0: all */
        size_t bytes;   /* of activations */
    } way[DECODE_WAYS];
} decode_ways;

/* After plan_measure, which has measured the first. */
ct_status plan_decode_ways(const ct_job *job, decode_ways *ways, ct_error *error);

/* Whether the GPU's memory suffices, and how: plan_gpu.c. After plan_measure, before the host's
 * memory is planned. CT_OK also where it does not; plan->gpu.chosen says it. */
ct_status plan_gpu(ct_job *job, ct_memory_plan *plan, ct_error *error);
/* Makes the choice the job's, once the host's is made. */
void plan_gpu_apply(ct_job *job, const ct_memory_plan *plan);
/* CT_ENOMEM with numbers and advice. */
ct_status plan_gpu_refuse(ct_job *job, ct_memory_plan *plan, ct_error *error);

/* How the text encoder computes, and the VAE. */
nn_precision job_encode_precision(const ct_job *job);
nn_precision job_decode_precision(const ct_job *job);
/* Tells the residency and the network. */
void job_begin_section(ct_job *job, nn *c, residency_section section);
/* Whether a step runs the negative prompt as well. */
bool job_guides(const ct_job *job, int step);
/* How often a picture needs all weights of the transformer. */
int job_passes(const ct_job *job);
/* Prompts, noise, steps, picture, on a network that may be dry: then the same calls find the memory
 * without touching data. The outcome is nn_status. */
void job_execute(ct_job *job, nn *c, uint64_t seed);

#endif
