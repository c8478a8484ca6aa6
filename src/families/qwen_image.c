/* Qwen-Image: the language model of Qwen2.5-VL, the Qwen-Image transformer, Qwen-Image's VAE. */
#include "families/family.h"
#include "models/qwen25vl.h"
#include "models/qwen_image.h"
#include "models/vae_qwen.h"

#include <inttypes.h>

/* The frame of a prompt begins with a task, whose features the transformer is not given. */
#define DROPPED_TOKENS 34
#define PROMPT_TOKENS 1024 /* at the most, behind those */
#define SAMPLE_SIDE 1024   /* of the reference pipeline's usual picture */
#define MAX_SIDE 4096      /* latent pixels; positions have no table that ends */
#define PATCH 2

static ct_status load(family_model *m, const load_options *options,
                      const char *const folders[PART_COUNT], const config *index, ct_error *error)
{
    (void)index;
    qwen25vl *text_encoder = NULL;
    qwen_image *transformer = NULL;
    vae_qwen *vae = NULL;
    ct_status status = qwen25vl_load(&text_encoder, options, folders[PART_TEXT_ENCODER], error);
    if (status == CT_OK)
        status = qwen_image_load(&transformer, options, folders[PART_TRANSFORMER], error);
    if (status == CT_OK)
        status = vae_qwen_load(&vae, options, folders[PART_VAE], error);
    m->text_encoder = text_encoder;
    m->transformer = transformer;
    m->vae = vae;
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
    return CT_OK;
}

static void free_parts(family_model *m)
{
    qwen25vl_free(m->text_encoder);
    qwen_image_free(m->transformer);
    vae_qwen_free(m->vae);
}

static ct_status check(const family_model *m, const char *directory, ct_error *error)
{
    const qwen_image *transformer = m->transformer;
    const vae_qwen *vae = m->vae;
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
    (void)m;
    (void)shift;
    info->variant = "base";
    info->default_steps = 50;
    info->default_guidance = 4.0;
    info->default_shift = 0; /* depends on the size */
}

static nn_tensor encode(nn *c, const family_model *m, const int32_t *ids, int64_t count,
                        int64_t words, void (*unit_done)(void *, int), void *user)
{
    (void)words;
    return qwen25vl_forward(c, m->text_encoder, ids, count, DROPPED_TOKENS, unit_done, user);
}

static void prepare_schedule(nn *c, const family_model *m, void *schedule, const float *sigmas,
                             const float *times, int64_t steps)
{
    (void)times;
    qwen_image_schedule *s = schedule;
    *s = qwen_image_prepare_schedule(c, m->transformer, sigmas, steps);
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
                                      input->height, input->width, NULL, 0);
}

static void forward(nn *c, const family_model *m, const void *schedule, const void *condition,
                    const nn_tensor *latents, const nn_tensor *output)
{
    qwen_image_forward(c, m->transformer, schedule, condition, latents, output);
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

const family family_qwen_image = {
    .name = "Qwen-Image",
    .pipeline = "QwenImagePipeline",
    .classes = {"Qwen2_5_VLForConditionalGeneration", "QwenImageTransformer2DModel",
                "AutoencoderKLQwenImage"},
    .evidence = (const char *const[]){"txt_norm.weight", NULL},
    .before = "<|im_start|>system\nDescribe the image by detailing the color, shape, size, "
              "texture, quantity, text, spatial relationships of the objects and "
              "background:<|im_end|>\n<|im_start|>user\n",
    .after = "<|im_end|>\n<|im_start|>assistant\n",
    .max_prompt_tokens = DROPPED_TOKENS + PROMPT_TOKENS,
    .dropped_tokens = DROPPED_TOKENS,
    .negative = " ",
    .keeps_names = true,
    .added_tokens = (const char *const[]){"<|im_start|>", "<|im_end|>", NULL},
    .usual_shift = 1,
    .guidance_off = 1,
    .guides_tokens = true,
    .load = load,
    .free = free_parts,
    .check = check,
    .describe = describe,
    .choose_defaults = choose_defaults,
    .encode = encode,
    .schedule_bytes = sizeof(qwen_image_schedule),
    .condition_bytes = sizeof(qwen_image_condition),
    .prepare_schedule = prepare_schedule,
    .set_step = set_step,
    .prepare_condition = prepare_condition,
    .forward = forward,
    .decode = decode,
    .decode_units = decode_units,
    .decode_peak = decode_peak,
};
