/* What the files of the pipeline share: the objects behind the handles of calotype.h. */
#ifndef PIPELINE_INTERNAL_H
#define PIPELINE_INTERNAL_H

#include "core/error.h"
#include "core/threads.h"
#include "families/family.h"
#include "io/blob.h"
#include "io/fingerprint.h"
#include "nn/cpu/kernels.h"
#include "nn/cuda/gpu.h"
#include "sampling/flow_match.h"
#include "text/tokenizer.h"

struct ct_context {
    ct_allocator allocator;
    ct_callbacks callbacks;
    pool *threads;
    cpu_kernels kernels;
    cuda_gpu *gpu; /* where networks run; NULL: on the CPU */
    char *cache;   /* a folder, or NULL */
    uint64_t cache_limit, cache_memory;
};

struct ct_model {
    ct_context *context;
    const ct_allocator *allocator;
    char *directory;
    tokenizer *tokenizer;
    family_model parts;
    flow_match scheduler;
    cuda_store *gpu_weights; /* where the context has a GPU */
    _Atomic(nn *) spare;     /* the network of a finished job, for the next; NULL: none */
    ct_model_info info;
    ct_component_info components[PART_COUNT];
    lora_set *loras; /* NULL: none */
    ct_lora_info *lora_infos;
    uint64_t merged_bytes; /* of matrices in memory of their own */
    bool plan_only;        /* that memory is not filled */
    bool dequantized;      /* matrices were decoded while the model was opened */
    char hash[FINGERPRINT_DIGITS + 1];
    /* Whatever changes what a part computes must change its hash. */
    char part_hash[PART_COUNT][FINGERPRINT_DIGITS + 1];
    blob_memory *kept;         /* results of its jobs; NULL: they are not kept in memory */
    _Atomic bool cache_failed; /* a person was told that nothing can be kept on disk */
};

struct ct_image {
    ct_allocator allocator;
    pool *threads; /* the context's, for saving */
    int width, height;
    uint8_t *pixels;
    uint64_t seed;
    char *recipe_json, *recipe_text;
    char *path; /* of the file that it was read from; NULL: none */
};

/* A new image with memory for its pixels. */
ct_status image_create(ct_image **out, ct_context *context, int width, int height, ct_error *error);

void log_message(const ct_callbacks *callbacks, ct_log_level level, const char *format, ...)
    CORE_PRINTF(3, 4);

#endif
