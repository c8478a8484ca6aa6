/* Qwen-Image: Qwen2.5-VL, the Qwen-Image transformer, Qwen-Image's VAE. In three kinds: from text;
 * Edit, from a picture; Edit-Plus, from several. Where pictures are edited, the text encoder sees
 * them among the words, and the transformer has their latents as tokens beside those of the new
 * one. */
#include "families/family.h"
#include "models/qwen25vl.h"
#include "models/qwen_image.h"
#include "models/qwen_vision.h"
#include "models/vae_qwen.h"

#include "core/file.h"
#include "core/mem.h"

#include <inttypes.h>
#include <string.h>

/* The frame of a prompt begins with a task, whose features the transformer is not given. */
#define DROPPED_TOKENS 34
#define PROMPT_TOKENS 1024 /* at the most, behind those */
#define SAMPLE_SIDE 1024   /* of the reference pipeline's usual picture */
#define MAX_SIDE 4096      /* latent pixels; positions have no table that ends */
#define PATCH 2
#define EDIT_DROPPED_TOKENS 64
#define MAX_REFERENCES 10
#define REFERENCE_AREA (1024 * 1024)
#define PLUS_SEE_AREA (384 * 384) /* what Edit-Plus shows to the text encoder */

/* Of the processor's configuration: pixels that the vision tower is given. Newer files say it in
 * "size". */
static ct_status read_pixels(family_model *m, const config *c, ct_error *error)
{
    config size = *c;
    ct_status s = CT_OK;
    if (config_has(c, "size")) {
        size.root = (json_value *)json_get(c->root, "size");
        s = config_integer(&size, "shortest_edge", 1, INT32_MAX, false, m->see_least, &m->see_least,
                           error);
        if (s == CT_OK)
            s = config_integer(&size, "longest_edge", m->see_least, INT32_MAX, false, m->see_most,
                               &m->see_most, error);
    }
    if (s == CT_OK)
        s = config_integer(c, "min_pixels", 1, INT32_MAX, false, m->see_least, &m->see_least,
                           error);
    if (s == CT_OK)
        s = config_integer(c, "max_pixels", m->see_least, INT32_MAX, false, m->see_most,
                           &m->see_most, error);
    return s;
}

static ct_status read_processor(family_model *m, const load_options *options, const char *folder,
                                ct_error *error)
{
    m->see_least = 56 * 56;
    m->see_most = 12845056;
    char *path = path_join(options->allocator, folder, "preprocessor_config.json");
    if (!path)
        return error_memory(error, strlen(folder), "a path");
    ct_status status = CT_OK;
    if (file_exists(path)) {
        config c;
        status = config_open(&c, options->allocator, path, error);
        if (status == CT_OK) {
            status = read_pixels(m, &c, error);
            config_close(&c);
        }
    }
    mem_free(options->allocator, path);
    return status;
}

static ct_status load(family_model *m, const load_options *options,
                      const char *const folders[FOLDER_COUNT], const config *index, ct_error *error)
{
    const bool sees = m->family->see_area > 0;
    (void)index;
    qwen25vl *text_encoder = NULL;
    qwen_image *transformer = NULL;
    vae_qwen *vae = NULL;
    qwen_vision *vision = NULL;
    ct_status status = qwen25vl_load(&text_encoder, options, folders[PART_TEXT_ENCODER], error);
    if (status == CT_OK && sees)
        status = qwen_vision_load(&vision, text_encoder->weights, options,
                                  folders[PART_TEXT_ENCODER], error);
    if (status == CT_OK)
        status = qwen_image_load(&transformer, options, folders[PART_TRANSFORMER], error);
    if (status == CT_OK)
        status = vae_qwen_load(&vae, options, folders[PART_VAE], error);
    m->text_encoder = text_encoder;
    m->transformer = transformer;
    m->vae = vae;
    m->vision = vision;
    if (status != CT_OK)
        return status;
    m->weights[PART_TEXT_ENCODER] = text_encoder->weights;
    m->weights[PART_TRANSFORMER] = transformer->weights;
    m->weights[PART_VAE] = vae->weights;
    m->channels = transformer->channels;
    m->factor = vae_qwen_factor(vae);
    m->patch = PATCH;
    m->feature_width = text_encoder->hidden;
    m->vocab = text_encoder->vocab;
    m->max_prompt_tokens = text_encoder->max_positions;
    m->max_side[0] = m->max_side[1] = MAX_SIDE;
    m->sample_side = SAMPLE_SIDE;
    m->encode_units = text_encoder->layers;
    m->heads = transformer->heads;
    m->typical = transformer->blocks > 0 ? &transformer->block[0].image.up : NULL;
    if (!sees)
        return CT_OK;
    m->see_multiple = qwen_vision_multiple(vision);
    return read_processor(m, options, folders[FOLDER_PROCESSOR], error);
}

static void free_parts(family_model *m)
{
    qwen_vision_free(m->vision);
    qwen25vl_free(m->text_encoder);
    qwen_image_free(m->transformer);
    vae_qwen_free(m->vae);
}

static ct_status check(const family_model *m, const char *directory, ct_error *error)
{
    const qwen_image *transformer = m->transformer;
    const vae_qwen *vae = m->vae;
    const qwen_vision *vision = m->vision;
    if (vision && vision->out != m->feature_width)
        return error_set(error, CT_EFORMAT,
                         "%s: text_encoder/config.json has out_hidden_size %" PRId64
                         ", but hidden_size %" PRId64,
                         directory, vision->out, m->feature_width);
    if (transformer->text_dim != m->feature_width)
        return error_set(error, CT_EFORMAT,
                         "%s: transformer/config.json has joint_attention_dim %" PRId64
                         ", but text_encoder/config.json has hidden_size %" PRId64,
                         directory, transformer->text_dim, m->feature_width);
    if (transformer->channels != vae->latent_channels)
        return error_set(error, CT_EFORMAT,
                         "%s: transformer/config.json has out_channels %" PRId64
                         ", but vae/config.json has z_dim %" PRId64,
                         directory, transformer->channels, vae->latent_channels);
    return CT_OK;
}

static void describe(const family_model *m, int part, strbuf *out)
{
    if (part == PART_TEXT_ENCODER)
        qwen25vl_describe(m->text_encoder, out);
    else if (part == PART_VAE)
        vae_qwen_describe(m->vae, out);
    else
        qwen_image_describe(m->transformer, out);
}

/* Values of the card. */
static void choose_defaults(const family_model *m, double shift, ct_model_info *info)
{
    (void)shift;
    const bool plus = m->family->max_references > 1;
    info->variant = plus ? "Edit-Plus" : m->family->max_references ? "Edit" : "base";
    info->default_steps = plus ? 40 : 50;
    info->default_guidance = 4.0;
    info->default_shift = 0; /* depends on the size */
}

static nn_tensor encode(nn *c, const family_model *m, const int32_t *ids, int64_t count,
                        int64_t words, void (*unit_done)(void *, int), void *user)
{
    (void)words;
    return qwen25vl_forward(c, m->text_encoder, ids, count, DROPPED_TOKENS, NULL, 0, unit_done,
                            user);
}

static void see(nn *c, const family_model *m, const uint8_t *rgb, int64_t height, int64_t width,
                float *features)
{
    qwen_vision_forward(c, m->vision, rgb, height, width, features);
}

static nn_tensor encode_sights(nn *c, const family_model *m, const family_words *words,
                               void (*unit_done)(void *, int), void *user)
{
    qwen25vl_picture pictures[MAX_REFERENCES];
    const int count = words->sight_count < MAX_REFERENCES ? words->sight_count : MAX_REFERENCES;
    for (int i = 0; i < count; i++) {
        const family_sight *s = &words->sights[i];
        pictures[i] = (qwen25vl_picture){s->features, s->rows, s->columns};
    }
    return qwen25vl_forward(c, m->text_encoder, words->ids, words->count, EDIT_DROPPED_TOKENS,
                            pictures, count, unit_done, user);
}

static nn_tensor begin_schedule(nn *c, const family_model *m, void *schedule, int64_t steps)
{
    qwen_image_schedule *s = schedule;
    *s = qwen_image_begin_schedule(c, m->transformer, steps);
    return s->values;
}

static void fill_schedule(nn *c, const family_model *m, const void *schedule, const float *sigmas,
                          const float *times)
{
    (void)times;
    qwen_image_fill_schedule(c, m->transformer, schedule, sigmas);
}

static void set_step(nn *c, const family_model *m, const void *schedule, int64_t step)
{
    (void)m;
    qwen_image_set_step(c, schedule, step);
}

static void prepare_condition(nn *c, const family_model *m, void *condition,
                              const family_input *input)
{
    qwen_image_condition *p = condition;
    *p = qwen_image_prepare_condition(c, m->transformer, input->features, input->count,
                                      input->height, input->width, input->references,
                                      input->reference_count, input->index, input->tables);
}

static void forward(nn *c, const family_model *m, const void *schedule,
                    const void *const *conditions, int count, const nn_tensor *latents,
                    const nn_tensor *outputs)
{
    const qwen_image_condition *each[BATCH_MAX];
    for (int i = 0; i < count; i++)
        each[i] = conditions[i];
    qwen_image_forward(c, m->transformer, schedule, each, count, latents, outputs);
}

static void decode(nn *c, const family_model *m, const vae_decoding *d)
{
    vae_qwen_decode(c, m->vae, d);
}

static int decode_units(const family_model *m, const vae_decoding *d)
{
    (void)d;
    return vae_qwen_decode_units(m->vae);
}

static ct_status decode_peak(const family_model *m, const vae_decoding *d, const nn_params *params,
                             size_t *bytes, ct_error *error)
{
    return vae_qwen_decode_peak(m->vae, d, params, bytes, error);
}

static void encode_picture(nn *c, const family_model *m, const float *picture, int64_t height,
                           int64_t width, float *scratch, float *latents)
{
    vae_qwen_encode_mean(c, m->vae, picture, height, width, scratch, latents);
}

#define CLASSES                                                                                    \
    {                                                                                              \
        "Qwen2_5_VLForConditionalGeneration", "QwenImageTransformer2DModel",                       \
            "AutoencoderKLQwenImage"                                                               \
    }
#define AFTER "<|im_end|>\n<|im_start|>assistant\n"
#define EDIT_BEFORE                                                                                \
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, "       \
    "texture, objects, background), then explain how the user's text instruction should alter or " \
    "modify the image. Generate a new image that meets the user's requirements while maintaining " \
    "consistency with the original input where appropriate.<|im_end|>\n<|im_start|>user\n"
#define IMAGE_TOKEN "<|image_pad|>"
#define PICTURE "<|vision_start|>" IMAGE_TOKEN "<|vision_end|>"

static const char *const edit_tokens[] = {"<|im_start|>", "<|im_end|>",     "<|vision_start|>",
                                          IMAGE_TOKEN,    "<|vision_end|>", NULL};

/* What the rows have in common. */
#define ALL_VARIANTS                                                                               \
    .name = "Qwen-Image", .classes = CLASSES, .after = AFTER, .negative = " ",                     \
    .mflux_names = NAMES_MFLUX_QWEN, .keeps_names = true, .usual_shift = 1, .most_shift = 0.9,     \
    .most_tokens = 8192, .terminal = 0.02, .guidance_off = 1, .guides_tokens = true, .load = load, \
    .free = free_parts, .check = check, .describe = describe, .choose_defaults = choose_defaults,  \
    .schedule_bytes = sizeof(qwen_image_schedule),                                                 \
    .condition_bytes = sizeof(qwen_image_condition), .begin_schedule = begin_schedule,             \
    .fill_schedule = fill_schedule, .set_step = set_step, .prepare_condition = prepare_condition,  \
    .forward = forward, .decode = decode, .decode_units = decode_units, .decode_peak = decode_peak
#define ALL_EDITORS                                                                                \
    .before = EDIT_BEFORE, .max_prompt_tokens = EDIT_DROPPED_TOKENS + PROMPT_TOKENS,               \
    .dropped_tokens = EDIT_DROPPED_TOKENS, .added_tokens = edit_tokens, .min_reference_side = 8,   \
    .max_reference_aspect = 16, .reference_area = REFERENCE_AREA, .needs_reference = true,         \
    .reference_multiple = 32, .picture_token = IMAGE_TOKEN, .see = see,                            \
    .encode_sights = encode_sights, .encode_picture = encode_picture

const family family_qwen_image = {
    ALL_VARIANTS,
    .pipelines = (const char *const[]){"QwenImagePipeline", NULL},
    .evidence = (const char *const[]){"txt_norm.weight", NULL},
    .before = "<|im_start|>system\nDescribe the image by detailing the color, shape, size, "
              "texture, quantity, text, spatial relationships of the objects and "
              "background:<|im_end|>\n<|im_start|>user\n",
    .max_prompt_tokens = DROPPED_TOKENS + PROMPT_TOKENS,
    .dropped_tokens = DROPPED_TOKENS,
    .added_tokens = (const char *const[]){"<|im_start|>", "<|im_end|>", NULL},
    .encode = encode,
};

const family family_qwen_edit = {
    ALL_VARIANTS,
    ALL_EDITORS,
    .pipelines = (const char *const[]){"QwenImageEditPipeline", NULL},
    .evidence = (const char *const[]){NULL},
    .max_references = 1,
    .see_area = REFERENCE_AREA,
    .picture = PICTURE,
};

const family family_qwen_edit_plus = {
    ALL_VARIANTS,
    ALL_EDITORS,
    .pipelines = (const char *const[]){"QwenImageEditPlusPipeline", NULL},
    .evidence = (const char *const[]){"txt_norm.weight", NULL},
    .sight_evidence = "encoder.visual.merger.ln_q.weight", /* as mflux saves it */
    .max_references = MAX_REFERENCES,
    .size_of_last = true,
    .see_area = PLUS_SEE_AREA,
    .picture = "Picture #: " PICTURE,
};
