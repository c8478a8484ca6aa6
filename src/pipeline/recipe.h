/* The recipe of a picture: all that is needed to make it again, as it is kept in the file. */
#ifndef PIPELINE_RECIPE_H
#define PIPELINE_RECIPE_H

#include "core/error.h"

#define RECIPE_MAX_REFERENCES 10

typedef struct recipe {
    const char *prompt;
    const char *negative; /* NULL when guidance is off */
    uint64_t seed;
    int width, height, steps;
    int references; /* pictures that it was made from */
    struct {
        const char *name; /* of the file; NULL: none */
        const char *hash; /* XXH3-128 of the pixels that were seen */
    } reference[RECIPE_MAX_REFERENCES];
    bool keep_size;
    int evaluations;  /* of the transformer */
    double guidance;  /* the model's own convention */
    double cfg_scale; /* the usual one; 1: off */
    bool cfg_normalization;
    double cfg_truncation;               /* 1: none */
    double guidance_start, guidance_end; /* shares of the steps; 0 and 1: all */
    double shift;
    double shift_terminal; /* 0: none */
    const char *scheduler; /* class: "FlowMatchEulerDiscreteScheduler" */
    const char *precision; /* "fp32", "bf16", "int8" */
    const char *rng;       /* "torch" */
    const char *model_name;
    const char *model_hash;  /* 32 hex digits */
    const char *model_class; /* "ZImagePipeline" */
    const char *version;     /* of calotype: "0.1.0" */
    const char *cpu;         /* the kernels: "avx2" */
    bool dequantized;        /* quantized weights were decoded first, which rounds otherwise */
    const ct_lora_info *lora;
    int loras; /* those with scale 0 changed nothing and are left out */
} recipe;

/* One line of JSON. A seed above 2^53 is a string, because many readers keep numbers as doubles.
 * Freed with mem_free; NULL when memory is short. */
char *recipe_json(const ct_allocator *a, const recipe *r);

/* The "parameters" text of stable-diffusion-webui, which many tools read: the prompt, "Negative
 * prompt: ...", and a line of "Key: value, ..." in that program's quoting. Freed with mem_free;
 * NULL when memory is short. */
char *recipe_text(const ct_allocator *a, const recipe *r);

#endif
