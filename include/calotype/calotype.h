/* calotype: pictures from text with diffusion transformers, on the machine you already have.
 *
 * This header is the manual of the library. It is all that is installed; everything else is
 * private.
 *
 * THE EASY WAY
 *
 *     ct_context *context = NULL;
 *     ct_model *model = NULL;
 *     ct_image *image = NULL;
 *     ct_error error;
 *     ct_generate_params params;
 *     ct_generate_params_init(&params);
 *     params.prompt = "a red apple on a light blue background";
 *     if (ct_context_create(NULL, &context, &error) == CT_OK &&
 *         ct_model_load(context, "models/emoji-256", &model, &error) == CT_OK &&
 *         ct_generate(model, &params, &image, &error) == CT_OK &&
 *         ct_image_save(image, "apple.png", &error) == CT_OK)
 *         puts("developed");
 *     else
 *         fprintf(stderr, "%s\n", error.message);
 *     ct_image_free(&image);
 *     ct_model_free(&model);
 *     ct_context_free(&context);
 *
 * RULES THAT HOLD EVERYWHERE
 *
 * Errors. A function that can fail returns a ct_status (CT_OK is 0, all failures are negative) and
 *     takes a ct_error last, which may be NULL. On failure the error holds the same code and a
 *     message in English that names the file, tensor or option, and says what to do. On success it
 *     is left alone. Output pointers are set to NULL on failure. The library never aborts, never
 *     exits, never prints, and never reads the environment.
 * Ownership. What a _create, _load, _generate or _run function hands out belongs to the caller and
 *     is released by the _free function of its type. _free takes the address of the pointer, sets
 *     it to NULL, and does nothing when it already is. Strings and arrays reached through an object
 *     live as long as that object. Strings that are passed in are copied.
 * Order. A model must be freed before its context, a job before its model. Images stand alone, but
 *     must be saved and freed before the context that they come from: it has the allocator and the
 *     threads.
 * Threads. A context and a model may be used from several threads. A job, an image and a ct_error
 *     belong to one thread at a time. There is no global state.
 * Strings. UTF-8, ended by a zero byte.
 * Sizes. Parameter structs begin with struct_size, which their _init function fills in, so that a
 *     program keeps working with a later library whose structs have grown.
 */
#ifndef CALOTYPE_H
#define CALOTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32) && defined(CT_BUILD_SHARED)
#define CT_API __declspec(dllexport)
#elif defined(__GNUC__)
#define CT_API __attribute__((visibility("default")))
#else
#define CT_API
#endif

/* ---- Version -------------------------------------------------------------------------------- */

#define CT_VERSION_MAJOR 0
#define CT_VERSION_MINOR 1
#define CT_VERSION_PATCH 0

/* The version of the library at run time, such as "0.1.0". Never NULL. */
CT_API const char *ct_version(void);

/* ---- Errors --------------------------------------------------------------------------------- */

typedef enum ct_status {
    CT_OK = 0,
    CT_EINVAL = -1,       /* an argument or option is out of its range */
    CT_ENOMEM = -2,       /* memory could not be had */
    CT_ENOTFOUND = -3,    /* a file or a tensor is not there */
    CT_EFORMAT = -4,      /* a file is damaged, or contradicts another one */
    CT_EUNSUPPORTED = -5, /* well formed, but not something this version can do */
    CT_EIO = -6,          /* the operating system refused to read or write */
    CT_ECANCELLED = -7,   /* the cancel callback said so */
    CT_EINTERNAL = -8,    /* a bug in calotype: please report it with the message */
    CT_EDEVICE = -9       /* a GPU, its driver or its libraries refused, or are too old */
} ct_status;

typedef struct ct_error {
    ct_status code;
    char message[1024]; /* one line, no newline at the end; shortened if it does not fit */
} ct_error;

/* A short name such as "invalid argument". Never NULL. */
CT_API const char *ct_status_name(ct_status status);

/* ---- Callbacks and memory -------------------------------------------------------------------- */

typedef enum ct_log_level {
    CT_LOG_WARNING = 0, /* something the person should know */
    CT_LOG_INFO = 1,    /* what is being done */
    CT_LOG_DEBUG = 2    /* for those who look for a fault */
} ct_log_level;

typedef enum ct_stage {
    CT_STAGE_ENCODE = 0,  /* the prompt goes through the text encoder; steps are layers */
    CT_STAGE_DENOISE = 1, /* steps of the sampler */
    CT_STAGE_DECODE = 2,  /* latents to pixels; steps are blocks of the VAE */
    CT_STAGE_QUANTIZE = 3 /* ct_quantize; steps are tensors */
} ct_stage;

/* A view of the latents of a running job, [channels, height, width] in float32. Valid only during
 * the callback. */
typedef struct ct_latents {
    const float *data;
    int channels, height, width;
} ct_latents;

typedef struct ct_progress {
    ct_stage stage;
    int step;                  /* units of this stage that are done, 0..steps */
    int steps;                 /* units of this stage in all */
    double stage_seconds;      /* since the stage began */
    double total_seconds;      /* since the run began */
    const ct_latents *preview; /* after a denoising step: the current latents; otherwise NULL */
} ct_progress;

/* Every member may be NULL. All are called on the thread that called into the library, never two
 * at once for one job. */
typedef struct ct_callbacks {
    void *user; /* handed back to each of them */
    void (*log)(void *user, ct_log_level level, const char *message);
    void (*progress)(void *user, const ct_progress *progress);
    /* Return true to stop. Asked between any two layers; the call then fails with CT_ECANCELLED. */
    bool (*cancel)(void *user);
} ct_callbacks;

/* Replaces malloc and free for all of the library's own memory (the JSON library keeps malloc).
 * alloc returns NULL when there is none, and memory aligned for any standard type otherwise.
 * Both may be called from several threads at once. */
typedef struct ct_allocator {
    void *user;
    void *(*alloc)(void *user, size_t size);
    void (*free)(void *user, void *pointer); /* pointer may be NULL */
} ct_allocator;

/* ---- Context: threads, kernels, callbacks ---------------------------------------------------- */

typedef struct ct_context ct_context;

typedef struct ct_context_params {
    size_t struct_size;
    int threads;     /* 0: one for each processor that this process may use; at most 1024 */
    const char *cpu; /* NULL: the best kernels for this processor; or force a set by name:
                             * "baseline", "avx2", "avx512" (x86-64), "baseline" (others) */
    /* Where networks run: "cpu", "cuda" or "cuda:0" (a GPU, see ct_devices; a failure where it
     * cannot be used), or "auto", which is what NULL means: the first GPU that can be used, else
     * the CPU. */
    const char *device;
    ct_callbacks callbacks; /* used by everything made from this context */
    ct_allocator allocator; /* all NULL: malloc and free */
    /* A folder for what is worth keeping from run to run: kernels compiled for a GPU, what was
     * measured there, and results (see CACHE). Made when it is needed; one that cannot be written
     * to is no failure. NULL: nothing is kept. */
    const char *cache;
    /* The most bytes of results in the folder, and in the memory of each model. 0: none are kept
     * there, and those that are there are not used. */
    uint64_t cache_limit;
    uint64_t cache_memory;
} ct_context_params;

/* What ct_context_params_init sets. */
#define CT_CACHE_LIMIT ((uint64_t)2 << 30)
#define CT_CACHE_MEMORY ((uint64_t)512 << 20)

CT_API void ct_context_params_init(ct_context_params *params);

/* params may be NULL for the defaults. Fails with CT_EINVAL, CT_EUNSUPPORTED (kernels that this
 * processor does not have) or CT_ENOMEM. */
CT_API ct_status ct_context_create(const ct_context_params *params, ct_context **out,
                                   ct_error *error);
CT_API void ct_context_free(ct_context **context);

/* The number of threads in use. */
CT_API int ct_context_threads(const ct_context *context);
/* The name of the kernels in use, such as "avx2". */
CT_API const char *ct_context_cpu(const ct_context *context);
/* The name of the GPU that networks run on, such as "NVIDIA H200"; NULL where that is the CPU. */
CT_API const char *ct_context_gpu(const ct_context *context);

/* Bytes of the GPU that nobody has taken, and all that it has, now. Fails with CT_EUNSUPPORTED
 * where networks run on the CPU, and with CT_EDEVICE. */
CT_API ct_status ct_context_gpu_memory(const ct_context *context, uint64_t *free_bytes,
                                       uint64_t *total_bytes, ct_error *error);

/* ---- Devices --------------------------------------------------------------------------------- */

typedef struct ct_device_info {
    const char *id;        /* "cpu", "cuda:0"; "cuda" where CUDA as a whole cannot be used */
    const char *name;      /* "NVIDIA H200" */
    const char *summary;   /* what it is in one line; an empty string where nothing is known */
    uint64_t memory_bytes; /* that it has; 0 where that is not known */
    const char *problem;   /* why it cannot be used, and what helps; NULL: it can */
    const char *note;      /* what it has to do without; NULL: nothing */
} ct_device_info;

typedef struct ct_device_list {
    int count;
    const ct_device_info *device;
} ct_device_list;

/* What there is to compute on: the CPU, with the threads and kernels of the context, then the GPUs.
 * A GPU that cannot be used is no failure, but a problem in the list. */
CT_API ct_status ct_devices(ct_context *context, ct_device_list **out, ct_error *error);
CT_API void ct_devices_free(ct_device_list **list);

/* ---- Model ----------------------------------------------------------------------------------- */

typedef struct ct_model ct_model;

/* Opens a directory in diffusers layout (model_index.json and a folder for each part), or as mflux
 * and MLX-z-image save models. Reads the configuration and the headers of the weight files, checks
 * every tensor for presence, dtype and shape, and maps the files; weights are read when they are
 * first used, and quantized ones stay quantized. The files must not change while the model is
 * open. */
CT_API ct_status ct_model_load(ct_context *context, const char *directory, ct_model **out,
                               ct_error *error);

/* A LoRA: a safetensors file of small matrices A and B for modules of the transformer. W becomes
 * W + scale * (alpha / rank) * B A, where alpha is the file's, or else rank. docs/lora.md has the
 * formats that are understood. */
typedef struct ct_lora {
    const char *path;
    double scale; /* -100 to 100, usually 1. 0: the file is checked, and changes nothing */
} ct_lora;

typedef struct ct_model_params {
    size_t struct_size;
    /* Decode quantized and FP8 matrices to bfloat16 while loading: as much memory as a bfloat16
     * model needs, for the speed of one. */
    bool dequantize;
    /* Added to the weights while loading, in this order. Matrices that they change are kept in
     * memory: in the type that they have, but FP8 in BF16, and quantized ones in groups of 8 bits.
     * A file that fits less than 90 % is refused (CT_EFORMAT). */
    const ct_lora *lora;
    int loras; /* at most CT_LORAS */
    /* For ct_model_get_info and ct_model_plan alone: nothing is decoded or merged, and jobs are
     * refused. */
    bool plan_only;
} ct_model_params;

#define CT_LORAS 32

CT_API void ct_model_params_init(ct_model_params *params);

/* ct_model_load with choices; params may be NULL for the defaults. */
CT_API ct_status ct_model_load_with(ct_context *context, const char *directory,
                                    const ct_model_params *params, ct_model **out, ct_error *error);
CT_API void ct_model_free(ct_model **model);

/* One part of a model: text encoder, transformer, VAE. */
typedef struct ct_component_info {
    const char *name;       /* the folder: "transformer" */
    const char *class_name; /* as its configuration has it: "ZImageTransformer2DModel" */
    uint64_t parameters;    /* numbers in all tensors of its files */
    uint64_t bytes;         /* of the tensors in its files */
    const char *dtypes;     /* for example "BF16" or "F32 (12), BF16 (400)" */
    int files;              /* how many weight files */
    const char *const *paths;
    const char *summary;      /* its dimensions in one line */
    const char *quantization; /* "4-bit, groups of 64"; an empty string when nothing is */
    uint64_t decoded_bytes;   /* of matrices that were decoded into memory, or have LoRAs */
} ct_component_info;

/* A LoRA of a model. */
typedef struct ct_lora_info {
    const char *path, *name; /* name: the last part of path */
    const char *hash;        /* 32 hex digits: XXH3-128 of the file */
    double scale;
    int64_t least_rank, most_rank;
    size_t modules, matched; /* that the file has, and how many of them the model has too */
    size_t ignored;          /* further modules, of a text encoder: they change nothing */
    size_t unmatched;        /* tensors and modules that the model does not have: their names */
    const char *const *unmatched_name;
} ct_lora_info;

typedef struct ct_model_info {
    const char *directory;
    const char *name;       /* last part of the directory's name */
    const char *class_name; /* of the pipeline: "ZImagePipeline" */
    const char *family;     /* "Z-Image" */
    const char *variant;    /* "Turbo", "base" */
    const char *hash;       /* 32 hex digits: XXH3-128 over the configuration files, the headers of
                             * the weight files, a sample of every tensor, and LoRAs
                             * (docs/formats.md) */
    uint64_t parameters;    /* sum over the components */
    uint64_t bytes;
    int components;
    const ct_component_info *component;
    /* What a job uses where the caller gives no value. */
    int default_width, default_height, default_steps;
    double default_guidance;
    double default_shift; /* 0: it depends on size and steps */
    int size_multiple;    /* width and height must be multiples of this */
    int max_prompt_tokens;
    int max_references;       /* pictures that a new one can be made from */
    double default_cfg_scale; /* default_guidance in the usual convention; 1: off */
    int loras;
    const ct_lora_info *lora;
} ct_model_info;

/* Lives as long as the model. Never NULL. */
CT_API const ct_model_info *ct_model_get_info(const ct_model *model);

/* ---- Quantizing ------------------------------------------------------------------------------ */

/* A tensor that was written. Strings live until the callback returns. */
typedef struct ct_quantized_tensor {
    const char *component; /* the folder: "transformer" */
    const char *name;      /* of the module or tensor in the new files */
    bool quantized;        /* otherwise it is a copy */
    int64_t rows, columns; /* of a quantized matrix */
    uint64_t bytes_before, bytes_after;
    /* |w - w'| / |w| of a quantized matrix, where w' is what the new file decodes to. */
    double relative_l2;
} ct_quantized_tensor;

typedef struct ct_quantize_params {
    size_t struct_size;
    const char *output; /* required: the folder to be made. It must not exist */
    int bits;           /* required: 2, 3, 4, 5, 6 or 8 */
    int group_size;     /* 32, 64 or 128 numbers share scale and bias; 0: 64 */
    /* Added to the weights before they are rounded; as in ct_model_params. */
    const ct_lora *lora;
    int loras;
    /* Called after each tensor; may be NULL. */
    void (*tensor)(void *user, const ct_quantized_tensor *tensor);
    void *user;
} ct_quantize_params;

CT_API void ct_quantize_params_init(ct_quantize_params *params);

typedef struct ct_quantize_result {
    int tensors, quantized;             /* how many, and how many of them were quantized */
    uint64_t bytes_before, bytes_after; /* of all tensors */
    double relative_l2;                 /* of all quantized matrices together */
    int merged;                         /* tensors that LoRAs changed */
} ct_quantize_result;

/* Writes a copy of a model whose matrices are quantized in MLX affine groups: those of all linear
 * layers and embedding tables whose rows are multiples of the group. With groups of 64 the files
 * are those that mflux saves, otherwise those of MLX-z-image (docs/formats.md). One tensor at a
 * time is in memory. The folder is written under the name "OUTPUT.PID.part" and renamed when it is
 * whole. Uses the callbacks of the context; result may be NULL. */
CT_API ct_status ct_quantize(ct_context *context, const char *directory,
                             const ct_quantize_params *params, ct_quantize_result *result,
                             ct_error *error);

/* ---- Generation ------------------------------------------------------------------------------ */

typedef enum ct_precision {
    CT_PRECISION_AUTO = 0, /* bf16 where the processor multiplies bfloat16 and the transformer's
                            * weights have no more digits than that; else fp32 */
    CT_PRECISION_FP32 = 1, /* the reference in float32, to rounding */
    CT_PRECISION_BF16 = 2, /* operands of the matrix products and of attention in text encoder and
                            * transformer are rounded to bfloat16; sums and everything else, and
                            * the VAE, stay float32 */
    CT_PRECISION_INT8 = 3, /* matrix products of the transformer's blocks in 8-bit integers: a scale
                            * for each token and for each row of a weight (the down projections
                            * rotated by a Hadamard matrix first); the rest as bf16 */
    CT_PRECISION_FP8 = 4,  /* likewise in 8-bit floats (e4m3): GPUs that have them */
    CT_PRECISION_FP16 =
        5 /* as bf16 in IEEE halves, with the VAE in float32: GPUs; for those without
                            * bfloat16 */
} ct_precision;

/* "auto", "fp32", "bf16", "int8", "fp8", "fp16"; NULL for other values. */
CT_API const char *ct_precision_name(ct_precision precision);

typedef enum ct_rng {
    CT_RNG_TORCH = 0 /* the numbers of torch.randn with a CPU generator of the same seed */
} ct_rng;

#define CT_GUIDANCE_DEFAULT (-1.0) /* the model's own */

/* Whether prompt and negative prompt go through the transformer in one pass, in which each weight
 * is read once. On the CPU the picture is the same, bit for bit; on a GPU to rounding. */
typedef enum ct_cfg_batch {
    CT_CFG_BATCH_AUTO = 0, /* where that is faster and its memory, for the activations of both,
                            * does not cost more than it gains */
    CT_CFG_BATCH_ON = 1,
    CT_CFG_BATCH_OFF = 2
} ct_cfg_batch;

typedef struct ct_generate_params {
    size_t struct_size;
    const char *prompt;          /* required; an empty string is allowed */
    const char *negative_prompt; /* NULL: the model's own, which is empty, or a blank (Qwen-Image).
                                  * Used only where guidance is on */
    int width, height;           /* pixels; 0: the model's own */
    int steps;                   /* 1..1000; 0: the model's own */
    uint64_t seed;
    /* Guidance in the convention of the model's own card. Z-Image: pos + g * (pos - neg), so 0 is
     * off, and it is the usual scale minus one: cfg_scale = guidance + 1. FLUX.2-klein and
     * Qwen-Image: the usual scale, neg + g * (pos - neg), so 1 is off, and so is less. Models that
     * are made to be used without guidance ignore it. CT_GUIDANCE_DEFAULT: the model's own. */
    double guidance;
    /* The same in the usual convention of every model, neg + s * (pos - neg): 1 is off. 0: not
     * given. Give this or guidance, not both. */
    double cfg_scale;
    /* Keep the norm of the guided prediction at or under that of the positive one. */
    bool cfg_normalization;
    /* Steps whose time (1 - sigma) is above this go without guidance. 1, the default: none. */
    double cfg_truncation;
    /* Guidance only in steps of which this share of all is done before: start <= step / steps <
     * end, step counting from 0. Other steps evaluate the prompt alone. 0 and 1, the defaults: all
     * steps. */
    double guidance_start, guidance_end;
    ct_cfg_batch cfg_batch;
    double shift; /* time shift of the schedule; 0: the model's own */
    /* The noise level to which the schedule is stretched so that the last step begins there, below
     * 1; 0: the model's own (0.02 for Qwen-Image); negative: it is not stretched. */
    double shift_terminal;
    ct_precision precision;
    ct_rng rng;
    /* A safetensors file whose tensor "noise" replaces the draw: [channels, height, width] of the
     * latents (Z-Image and Qwen-Image: an eighth of the picture's sides, FLUX.2-klein: a
     * sixteenth). NULL: draw. */
    const char *noise_path;
    const char *trace_path;        /* write every stage to this safetensors file; NULL: do not */
    bool trace_modules;            /* also the output of every block, for finding a difference */
    const ct_callbacks *callbacks; /* NULL: the context's. Copied */
    /* The most resident memory, in bytes, that this process may take while the job runs, including
     * all that it holds already. The job picks by itself which weights stay between two uses and
     * which are let go, and whether the VAE works in strips, with the least slowdown, and is
     * refused where that does not suffice. 0: what the machine has; then only a job whose working
     * memory alone is too large is refused. See MEMORY. */
    uint64_t max_memory;
    /* Pictures that the new one is made from, in the order in which the prompt speaks of them,
     * where the model can do that (ct_model_info.max_references). They are copied. Without width or
     * height the new picture has the size of the first (Qwen-Image Edit-Plus: the last), as the
     * model sees it. FLUX.2-klein: pictures of more than 1024 x 1024 pixels are made smaller to
     * that area, and their edges are cut to a multiple of size_multiple. Qwen-Image: pictures are
     * made smaller or larger to about that area, with sides that are multiples of 32. */
    const struct ct_image *const *references;
    int reference_count;
    /* The most memory of the GPU, in bytes, that the job may take, with all that the model holds
     * there already; what the driver and its libraries take for themselves is not counted. The job
     * picks by itself what stays there, and is refused where nothing suffices. 0: what is free.
     * Without a GPU it has no meaning. See MEMORY. */
    uint64_t max_vram;
    /* Instead, references keep every pixel, and the new picture has exactly the size of the first
     * and lines up with it. Not together with width or height. */
    bool keep_size;
} ct_generate_params;

/* Fills in the defaults (seed 0, everything else the model's own). */
CT_API void ct_generate_params_init(ct_generate_params *params);

typedef struct ct_image ct_image;
typedef struct ct_job ct_job;

/* One picture: ct_job_create, ct_job_run with params->seed, ct_job_free. */
CT_API ct_status ct_generate(ct_model *model, const ct_generate_params *params, ct_image **out,
                             ct_error *error);

/* A job holds what pictures of one prompt and one size share, so that several seeds cost one pass
 * of the text encoder. ct_job_create checks all parameters, tokenizes the prompts, and makes sure
 * that the memory which the run will need can be had and that the trace can be written, all before
 * any work starts. */
CT_API ct_status ct_job_create(ct_model *model, const ct_generate_params *params, ct_job **out,
                               ct_error *error);
CT_API ct_status ct_job_run(ct_job *job, uint64_t seed, ct_image **out, ct_error *error);
CT_API void ct_job_free(ct_job **job);

/* The parameters of a job with every default filled in. */
typedef struct ct_job_info {
    int width, height, steps;
    double guidance;  /* the model's own convention */
    double cfg_scale; /* the usual one; 1: off */
    double shift;
    double shift_terminal; /* 0: the schedule is not stretched */
    int evaluations;       /* of the transformer, for one picture */
    int prompt_tokens;     /* with the chat template, after truncation */
    int negative_tokens;   /* 0 where guidance is off */
    int caption_tokens;    /* of the prompt's, those that the transformer is given */
    bool prompt_truncated, negative_truncated;
    const char *scheduler;     /* "FlowMatchEulerDiscreteScheduler" */
    ct_precision precision;    /* never AUTO */
    uint64_t activation_bytes; /* working memory, besides the weights */
    uint64_t peak_bytes;       /* the most resident memory of the process, see MEMORY */
    int streamed_blocks;       /* of the transformer, that come and go at every step: in the GPU's
                                * memory, where there is one */
    int blocks;                /* of the transformer */
    int strip_height;          /* rows of the picture that the VAE decodes at a time; 0: all */
    int references;            /* how many pictures it is made from */
    int picture_width, picture_height; /* less than width and height only with keep_size */
    uint64_t gpu_peak_bytes;           /* the most memory of the GPU; 0 without one */
    int guided_steps;                  /* steps that evaluate the negative prompt as well */
    bool cfg_batch;                    /* both prompts go through the transformer in one pass */
} ct_job_info;

CT_API const ct_job_info *ct_job_get_info(const ct_job *job);

/* ---- Memory ----------------------------------------------------------------------------------
 * Weights are pages of mapped files. They count as this process's memory from when they are read
 * until they are let go; the system keeps pages that were let go in its cache, as long as nobody
 * needs the room. Text encoder, VAE, and what the transformer computes once for a picture are read
 * block by block, and each block is let go when the next begins. The transformer's other blocks
 * stay from step to step, or some or all of them come and go as well ("streamed"), the next one
 * being read ahead while one computes; all are let go before the VAE runs. The VAE decodes the
 * whole picture at once, or, where that takes too much, strip by strip: the same picture, bit for
 * bit, in more time. Stages do not overlap, so each is chosen for itself. */

typedef struct ct_memory_stage {
    uint64_t file_bytes;  /* weights of the part in its files */
    uint64_t read_bytes;  /* weights that the stage reads: layers that are used; of the table of
                                * embeddings only the rows of the prompt's tokens */
    uint64_t block_bytes; /* the largest block of weights */
    int blocks;
    uint64_t activation_bytes; /* working memory, scratch of all kernels included; of the VAE for
                                * the whole picture at once */
    uint64_t buffer_bytes;     /* features, latents and pictures that are kept beside it */
} ct_memory_stage;

typedef struct ct_memory_choice {
    int streamed_blocks;     /* of the transformer */
    int strip_height;        /* rows of the picture that the VAE decodes at a time; 0: all */
    uint64_t stage_bytes[3]; /* resident memory of the process in each ct_stage */
    uint64_t peak_bytes;     /* the largest of them */
    bool fits;
} ct_memory_choice;

/* Memory of a GPU. Weights are copied there in the form in which they are computed with: as far as
 * they fit they stay, between the pictures of a job and between jobs. */
typedef struct ct_gpu_stage {
    uint64_t weight_bytes; /* that the stage uses, in the form that they have there */
    uint64_t block_bytes;  /* the largest block of them */
    int blocks;
    uint64_t activation_bytes;
} ct_gpu_stage;

typedef enum ct_gpu_way { /* each needs less than those before, and takes more time */
                          CT_GPU_ALL = 0,   /* all weights stay */
                          CT_GPU_TWO = 1,   /* the text encoder and the others take turns */
                          CT_GPU_TURNS = 2, /* text encoder, transformer and VAE take turns */
                          CT_GPU_STREAMED =
                              3 /* so, and blocks of them are copied while others compute */
} ct_gpu_way;

typedef struct ct_gpu_choice {
    ct_gpu_way way;
    int encoder_blocks;      /* of the text encoder, that are streamed */
    int streamed_blocks;     /* of the transformer, likewise, at every step */
    int strip_height;        /* rows of the picture that the VAE decodes at a time; 0: all */
    uint64_t host_bytes;     /* of pinned memory of the host, in which streamed blocks are kept */
    uint64_t stage_bytes[3]; /* in each ct_stage */
    uint64_t peak_bytes;     /* the largest of them */
    bool fits;
} ct_gpu_choice;

typedef struct ct_gpu_plan {
    uint64_t total_bytes;     /* that the GPU has; 0: there is no GPU, and the rest is 0 as well */
    uint64_t available_bytes; /* free, or held by this model */
    uint64_t limit_bytes;     /* max_vram, or else available_bytes less a reserve */
    uint64_t fixed_bytes;     /* workspaces of libraries, and memory that weights pass through */
    ct_gpu_stage stage[3];
    ct_gpu_choice way[4]; /* by ct_gpu_way; the last: all blocks streamed, the lowest strips */
    ct_gpu_choice chosen;
} ct_gpu_plan;

typedef struct ct_memory_plan {
    size_t struct_size;
    int width, height, steps;
    int evaluations; /* of the transformer, for one picture */
    bool cfg_batch;  /* both prompts go through the transformer in one pass */
    ct_precision precision;
    int prompt_tokens;        /* of the longer prompt */
    bool prompt_assumed;      /* no prompt was given: these are the most that are read */
    uint64_t available_bytes; /* what the machine, or the group of processes, could give; UINT64_MAX
                               * where that is not known */
    uint64_t limit_bytes;     /* max_memory, or else available_bytes */
    uint64_t process_bytes;   /* resident now: program, libraries, tokenizer, headers, whatever else
                               * the process holds, and what running adds to the program */
    uint64_t merged_bytes;    /* of them: matrices that were decoded or have LoRAs, which cannot be
                               * let go */
    ct_memory_stage stage[3]; /* by ct_stage */
    ct_memory_choice resident; /* the transformer stays from step to step, no strips */
    ct_memory_choice streamed; /* all of its blocks are streamed */
    ct_memory_choice strips;   /* so, and the VAE in its lowest strips: the least memory. Where they
                                * would take no less, strip_height is 0 */
    ct_memory_choice
        chosen; /* what a job will do; chosen.fits is false where it would be refused */
    /* Where it would be refused, a size of about the same shape that would not; 0: none. */
    int smaller_width, smaller_height;
    ct_gpu_plan gpu;
} ct_memory_plan;

CT_API void ct_memory_plan_init(ct_memory_plan *plan);

/* What a job of these parameters will take, found by a dry run on the headers of the files: no
 * weight is read. params->prompt may be NULL: then the longest prompt is assumed. Fails as
 * ct_job_create does, but not for want of memory: then it returns CT_OK, chosen.fits (of the host
 * or of the GPU) is false, and *error is what ct_job_create would say. */
CT_API ct_status ct_model_plan(ct_model *model, const ct_generate_params *params,
                               ct_memory_plan *plan, ct_error *error);

/* ---- Cache -----------------------------------------------------------------------------------
 * What a job computes from its input alone is kept by a hash of all that it depends on, weights and
 * machine included, and comes back bit for bit: the features of a prompt, so that the text encoder
 * is not even read for one that was seen before; what the text encoder saw of a picture, and the
 * latents of a picture; the modulation of a schedule, which is a third of Qwen-Image's weights; and
 * the rotary angles of a size. A model keeps results for its jobs in memory, unless a job has
 * max_memory, and a folder keeps all but the angles from run to run; both let go of what was not
 * used for longest where their limit is passed. A job with a trace neither looks there nor adds to
 * it, and a plan is that of a job that finds nothing.
 *
 * Damaged files are found by their checksum, deleted and made again; several processes may use one
 * folder. Neither prompts nor pictures are stored, but what a network made of them is, and tells
 * much about them to who has the model: files are readable for their user alone. */

typedef struct ct_cache_kind {
    const char *name; /* "prompt", "vision", "latents", "schedule", "kernel" */
    const char *summary;
    int files;
    uint64_t bytes;
} ct_cache_kind;

#define CT_CACHE_KINDS 5

/* What is in a folder of ct_context_params.cache; other files do not count. Nothing where there is
 * no such folder. Strings are constants. */
CT_API ct_status ct_cache_usage(const char *folder, ct_cache_kind kinds[CT_CACHE_KINDS],
                                ct_error *error);
/* Deletes those files; *kinds, unless it is NULL, is what was deleted. */
CT_API ct_status ct_cache_clear(const char *folder, ct_cache_kind kinds[CT_CACHE_KINDS],
                                ct_error *error);

/* ---- Images ---------------------------------------------------------------------------------- */

CT_API int ct_image_width(const ct_image *image);
CT_API int ct_image_height(const ct_image *image);
/* Rows from the top without gaps, three bytes R, G, B for a pixel. */
CT_API const uint8_t *ct_image_pixels(const ct_image *image);
CT_API uint64_t ct_image_seed(const ct_image *image);
/* The recipe: all that is needed to make this picture again, as one line of JSON, and in the text
 * form that users of stable-diffusion-webui know. Empty strings for a picture that was loaded from
 * a file without one. */
CT_API const char *ct_image_recipe_json(const ct_image *image);
CT_API const char *ct_image_recipe_text(const ct_image *image);

/* Writes a PNG with the recipe in text chunks ("calotype": JSON, "parameters": text). The picture
 * is written beside path under a temporary name and renamed when it is whole. */
CT_API ct_status ct_image_save(const ct_image *image, const char *path, ct_error *error);
/* Reads a PNG, JPEG or WebP as 8-bit RGB (alpha over white, upright as Exif data say), and its
 * recipe where it has one. Refuses animations. */
CT_API ct_status ct_image_load(ct_context *context, const char *path, ct_image **out,
                               ct_error *error);
/* A picture of the caller's pixels, [height][width] RGB, which are copied; for references. */
CT_API ct_status ct_image_from_pixels(ct_context *context, int width, int height,
                                      const uint8_t *pixels, ct_image **out, ct_error *error);
CT_API void ct_image_free(ct_image **image);

/* CT_OK if a file can be written at path: its folder exists and can be written to, and path is not
 * a folder. Leaves nothing behind. Call it before a long job. */
CT_API ct_status ct_output_check(const char *path, ct_error *error);

/* ---- Measuring ------------------------------------------------------------------------------- */

/* Kinds of work that ct_bench measures. The peak is always measured, for the shares. */
#define CT_BENCH_PEAK 1u        /* products on registers alone: what this machine can do at most */
#define CT_BENCH_GEMM 2u        /* linear layers, in every precision and with weights of few bits */
#define CT_BENCH_ATTENTION 4u   /* of image and text tokens */
#define CT_BENCH_CONVOLUTION 8u /* 3x3 convolutions of the VAE's decoder, counted as direct ones */
#define CT_BENCH_ROWS 16u       /* passes over rows of activations */
#define CT_BENCH_ALL 31u

/* Whose shapes: those of one forward pass, with 64 tokens of text (klein, which pads: 512), and of
 * decoding its result. */
#define CT_BENCH_Z_IMAGE 1u
#define CT_BENCH_KLEIN_4B 2u
#define CT_BENCH_KLEIN_9B 4u
#define CT_BENCH_QWEN_IMAGE 8u
#define CT_BENCH_ALL_MODELS 15u

typedef struct ct_bench_line {
    const char *operation; /* "peak", "gemm", "attention", "conv", "rows" */
    const char *model;     /* whose shape: "z-image", "klein-4b", "klein-9b", "qwen-image"; of a
                            * peak: NULL, as the next two */
    const char *layer;     /* what it is in the model */
    int side;              /* of the picture, in pixels */
    const char *compute;   /* "fp32", "bf16", "int8" */
    const char *weights;   /* of a linear layer, as they are stored: "bf16", "4 bits"; or NULL */
    const char *kernel;    /* what does the work: "avx512bf16" */
    int64_t m, n, k;       /* rows, columns and what is summed over, of a product; else 0 */
    int runs;
    double seconds;   /* of the fastest run */
    double rate;      /* of that, in unit */
    double peak;      /* of all threads, in unit: rate / peak is the share. 0: does not apply */
    const char *unit; /* "GFLOP/s", "GOP/s" (8-bit integers), "GB/s" */
} ct_bench_line;

typedef struct ct_bench_params {
    size_t struct_size;
    unsigned what;          /* CT_BENCH_PEAK and so on, added */
    unsigned models;        /* CT_BENCH_Z_IMAGE and so on, added; 0: CT_BENCH_Z_IMAGE */
    const int *sides;       /* of square pictures, in pixels: multiples of 16, 64 to 4096 */
    int side_count;         /* 0: one of 512 */
    int rows;               /* of linear layers and of passes over rows; 0: what the size gives */
    ct_precision precision; /* of linear layers and attention: AUTO (all), FP32, BF16, INT8 */
    double seconds;         /* for each line, at least; 0: 0.5 */
    void *user;
    void (*line)(void *user, const ct_bench_line *line); /* called for each; valid for that time */
} ct_bench_params;

CT_API void ct_bench_params_init(ct_bench_params *params);
/* Measures the operations of networks with the threads and kernels of the context, on random
 * numbers: first the peaks of every instruction set that the processor has, then what was asked
 * for, model by model. Takes 75 MiB for weights (klein-9b: 128), and activations. Stops at the
 * context's cancel callback. */
CT_API ct_status ct_bench(ct_context *context, const ct_bench_params *params, ct_error *error);

#ifdef __cplusplus
}
#endif

#endif /* CALOTYPE_H */
