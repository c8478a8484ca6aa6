/* A family of models: which networks it is made of, and how they work together on a prompt. The
 * pipeline knows models only through this table; registry.c lists its rows.
 *
 * To add a family: the networks in models/, a file here that ends in one `const family`, and a line
 * in registry.c. Functions get the family_model that load has filled, and run on an nn like the
 * networks themselves: the first failure sticks there, and they must do the same calls in a dry
 * run. */
#ifndef FAMILIES_FAMILY_H
#define FAMILIES_FAMILY_H

#include "core/strbuf.h"
#include "io/json.h"
#include "io/names.h"
#include "io/weights.h"
#include "models/batch.h"
#include "models/bind.h"
#include "models/rope.h"
#include "models/vae.h"
#include "nn/nn.h"

enum { PART_TEXT_ENCODER, PART_TRANSFORMER, PART_VAE, PART_COUNT };
/* Further folders of a model. */
enum { FOLDER_TOKENIZER = PART_COUNT, FOLDER_SCHEDULER, FOLDER_PROCESSOR, FOLDER_COUNT };

typedef struct family family;

/* The networks of an open model, and what the pipeline must know about them. Filled by load. */
typedef struct family_model {
    const family *family;                   /* set before load, as the next */
    const char *pipeline;                   /* one of the family's */
    void *text_encoder, *transformer, *vae; /* of the types that the family knows */
    void *vision;                           /* with which the text encoder sees; or NULL */
    const weights *weights[PART_COUNT];

    int64_t channels;          /* of latents */
    int factor;                /* pixels of the picture on a side of a latent pixel */
    int patch;                 /* latent pixels on a side of an image token */
    int64_t feature_width;     /* numbers for each token of a prompt */
    int64_t vocab;             /* of the text encoder */
    int64_t max_prompt_tokens; /* that all networks have room for */
    int64_t max_side[2];       /* latent pixels: rows, columns */
    int64_t sample_side;       /* pixels of the usual picture, which is a square */
    int encode_units;          /* that encode reports */
    int heads;                 /* of the transformer */
    const nn_weight *typical;  /* of the transformer's large weights; NULL: there is none */
    bool distilled;            /* made for few steps without guidance */
    bool guidance_ignored;     /* guidance has no effect with these weights */
    /* Where the text encoder sees pictures: their sides are multiples of this, a token for each
     * square; and pixels of the smallest and largest. */
    int see_multiple;
    int64_t see_least, see_most;
} family_model;

/* A picture as the text encoder sees it: features [rows * columns, feature_width]. */
typedef struct family_sight {
    const float *features;
    int64_t rows, columns;
} family_sight;

/* A prompt with pictures, for each of which picture_token stands among the ids as often as it has
 * rows and columns. */
typedef struct family_words {
    const int32_t *ids;
    int64_t count;
    const family_sight *sights;
    int sight_count;
} family_words;

/* What the transformer is given besides the latents. */
typedef struct family_input {
    const float *features; /* [count, feature_width] */
    int64_t count;
    int64_t height, width; /* of the latents */
    const vae_latents *references;
    int reference_count;
    int index; /* among the conditions that are evaluated together: 0 is the prompt */
    const rope_memory *tables; /* of positions, that stay from picture to picture; NULL: none do */
} family_input;

struct family {
    const char *name;                /* "Z-Image" */
    const char *const *pipelines;    /* _class_name in model_index.json, the usual one first; NULL
                                      * ends the list */
    const char *classes[PART_COUNT]; /* of the parts, as their configurations have them */
    const char *const *evidence;     /* names of tensors that only this transformer has, one for
                                          * each layout of names; NULL ends the list */
    const char *sight_evidence;      /* besides those, a tensor of the text encoder; NULL: none is
                                 * needed */

    name_layout mflux_names; /* those that mflux gives the tensors */

    /* What stands around a prompt. Prompts have at most max_prompt_tokens tokens with it, their
     * tail is cut off; padded: shorter ones are filled up with pad_token. */
    const char *before, *after;
    int max_prompt_tokens;
    bool padded;
    const char *pad_token;
    int dropped_tokens;   /* at the beginning, whose features encode leaves out */
    const char *negative; /* prompt, where none is given; NULL: "" */
    bool keeps_names;     /* files in MLX's format have the tensors' usual names, and a whole VAE */
    const char *const *added_tokens; /* that before and after are made of; NULL ends the list */

    /* Of a model without a scheduler's configuration: the shift; or, where most_shift is not 0, the
     * shift depends on the size, that is the one of most_tokens, and the schedule ends at terminal.
     */
    double usual_shift, most_shift, most_tokens, terminal;
    double guidance_off; /* guidance that is off, where the usual scale is 1 */
    bool guides_tokens;  /* guidance keeps the length of each token: nn_guide_tokens */
    bool negated;        /* the transformer estimates the negative of the velocity */
    /* Pictures that a new one can be made from; 0: none. Their sides and shape; larger ones are
     * made smaller to this area, in pixels. */
    int max_references, min_reference_side, max_reference_aspect, reference_area;
    bool needs_reference;
    bool size_of_last; /* a picture without a size has that of the last reference, not the first */
    /* Not 0: smaller references grow to that area, too, and sides are rounded to multiples of this;
     * nothing is cut. */
    int reference_multiple;
    /* Where the text encoder sees the references: their area, in pixels; what stands before a
     * prompt for each, # being its number; and the token in it that stands for what is seen. */
    int see_area;
    const char *picture, *picture_token;

    /* Opens the parts. folders: of the parts, and further ones. index: model_index.json, NULL if
     * there is none. What was opened before a failure is left for free. */
    ct_status (*load)(family_model *m, const load_options *options,
                      const char *const folders[FOLDER_COUNT], const config *index,
                      ct_error *error);
    void (*free)(family_model *m);
    /* Whether the parts belong together; directory is for messages. */
    ct_status (*check)(const family_model *m, const char *directory, ct_error *error);
    /* The dimensions of a part in one line. */
    void (*describe)(const family_model *m, int part, strbuf *out);
    /* Variant and the defaults of steps and guidance. shift is that of the scheduler. */
    void (*choose_defaults)(const family_model *m, double shift, ct_model_info *info);
    /* The logarithm of the time shift for so many image tokens and steps. NULL: what the
     * scheduler's configuration says. */
    double (*mu)(int64_t tokens, int steps);

    /* Where the text encoder sees: a picture [height, width, 3], of sides that it can see, to
     * features. And a prompt with pictures, instead of encode. */
    void (*see)(nn *c, const family_model *m, const uint8_t *rgb, int64_t height, int64_t width,
                float *features);
    nn_tensor (*encode_sights)(nn *c, const family_model *m, const family_words *words,
                               void (*unit_done)(void *user, int unit), void *user);
    /* Tokens to features [count - dropped_tokens, feature_width], made in the arena. Behind the
     * first `words` tokens there is only padding. */
    nn_tensor (*encode)(nn *c, const family_model *m, const int32_t *ids, int64_t count,
                        int64_t words, void (*unit_done)(void *user, int unit), void *user);

    /* The transformer: once for a schedule, for each step, once for a prompt, for each evaluation.
     * schedule and condition are memory of these sizes, kept from call to call. sigmas and times
     * [steps]: 1 and 0 at pure noise. begin_schedule makes what a schedule needs in the arena and
     * returns its table: float32 without gaps, a function of sigmas, times and weights alone.
     * fill_schedule computes it; the pipeline leaves that out where it has the numbers already. */
    size_t schedule_bytes, condition_bytes;
    nn_tensor (*begin_schedule)(nn *c, const family_model *m, void *schedule, int64_t steps);
    void (*fill_schedule)(nn *c, const family_model *m, const void *schedule, const float *sigmas,
                          const float *times);
    void (*set_step)(nn *c, const family_model *m, const void *schedule, int64_t step);
    void (*prepare_condition)(nn *c, const family_model *m, void *condition,
                              const family_input *input);
    /* The latents under each of count conditions, 1 to BATCH_MAX: an output for each. */
    void (*forward)(nn *c, const family_model *m, const void *schedule,
                    const void *const *conditions, int count, const nn_tensor *latents,
                    const nn_tensor *outputs);

    void (*decode)(nn *c, const family_model *m, const vae_decoding *d);
    int (*decode_units)(const family_model *m, const vae_decoding *d);
    /* The bytes of activations that decode takes at most, under params. */
    ct_status (*decode_peak)(const family_model *m, const vae_decoding *d, const nn_params *params,
                             size_t *bytes, ct_error *error);
    /* A picture [3, height, width] in -1..1 to latents as the transformer has them; scratch: memory
     * for twice as many numbers. NULL without max_references. */
    void (*encode_picture)(nn *c, const family_model *m, const float *picture, int64_t height,
                           int64_t width, float *scratch, float *latents);
};

#endif
