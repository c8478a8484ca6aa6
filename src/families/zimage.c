/* Z-Image: Qwen3, the Z-Image transformer, FLUX.1's VAE. */
#include "families/family.h"
#include "models/qwen3.h"
#include "models/vae_kl.h"
#include "models/zimage.h"

#include <inttypes.h>

#define MAX_PROMPT_TOKENS 512 /* max_sequence_length of the reference pipeline */
#define TURBO_SHIFT 3
#define PATCH 2

static ct_status load(family_model *m, const load_options *options,
                      const char *const folders[PART_COUNT], const config *index, ct_error *error)
{
    static const qwen3_taps taps = {1, {-1}};
    (void)index;
    qwen3 *text_encoder = NULL;
    zimage *transformer = NULL;
    vae_kl *vae = NULL;
    ct_status status = qwen3_load(&text_encoder, options, folders[PART_TEXT_ENCODER], &taps, error);
    if (status == CT_OK)
        status = zimage_load(&transformer, options, folders[PART_TRANSFORMER], error);
    if (status == CT_OK)
        status = vae_kl_load(&vae, options, folders[PART_VAE], error);
    m->text_encoder = text_encoder;
    m->transformer = transformer;
    m->vae = vae;
    if (status != CT_OK)
        return status;
    m->weights[PART_TEXT_ENCODER] = text_encoder->weights;
    m->weights[PART_TRANSFORMER] = transformer->weights;
    m->weights[PART_VAE] = vae->weights;
    m->channels = transformer->channels;
    m->factor = vae_kl_factor(vae);
    m->patch = PATCH;
    m->feature_width = qwen3_width(text_encoder);
    m->vocab = text_encoder->vocab;
    m->max_prompt_tokens = zimage_max_caption(transformer);
    if (m->max_prompt_tokens > text_encoder->max_positions)
        m->max_prompt_tokens = text_encoder->max_positions;
    for (int axis = 0; axis < 2; axis++)
        m->max_side[axis] = zimage_max_side(transformer, axis);
    m->sample_side = vae->sample_size;
    m->encode_units = text_encoder->used_layers;
    m->heads = transformer->heads;
    m->typical = transformer->layers > 0 ? &transformer->layer[0].w1 : NULL;
    return CT_OK;
}

static void free_parts(family_model *m)
{
    qwen3_free(m->text_encoder);
    zimage_free(m->transformer);
    vae_kl_free(m->vae);
}

static ct_status check(const family_model *m, const char *directory, ct_error *error)
{
    const qwen3 *text_encoder = m->text_encoder;
    const zimage *transformer = m->transformer;
    const vae_kl *vae = m->vae;
    if (transformer->caption_dim != text_encoder->hidden)
        return error_set(error, CT_EFORMAT,
                         "%s: transformer/config.json has cap_feat_dim %" PRId64
                         ", but text_encoder/config.json has hidden_size %" PRId64,
                         directory, transformer->caption_dim, text_encoder->hidden);
    if (transformer->channels != vae_kl_channels(vae))
        return error_set(error, CT_EFORMAT,
                         "%s: transformer/config.json has in_channels %" PRId64
                         ", but vae/config.json has latent_channels %" PRId64,
                         directory, transformer->channels, vae_kl_channels(vae));
    if (zimage_max_caption(transformer) < 1)
        return error_set(error, CT_EFORMAT,
                         "%s: axes_lens in transformer/config.json leaves no room for a caption",
                         directory);
    return CT_OK;
}

static void describe(const family_model *m, int part, strbuf *out)
{
    const zimage *z = m->transformer;
    if (part == PART_TEXT_ENCODER)
        qwen3_describe(m->text_encoder, out);
    else if (part == PART_VAE)
        vae_kl_describe(m->vae, out);
    else
        strbuf_printf(out,
                      "%d layers and 2 x %d refiners, dim %" PRId64 ", %d heads, head dim %" PRId64
                      ", %" PRId64 " latent channels",
                      z->layers, z->refiners, z->dim, z->heads, z->head_dim, z->channels);
}

/* Turbo is distilled: few steps without guidance. Its scheduler has shift 3, that of the base model
 * 6; nothing else in the files tells them apart. Values of the base model: its card. */
static void choose_defaults(const family_model *m, double shift, ct_model_info *info)
{
    (void)m;
    const bool base = shift >= 4.5;
    info->variant = base ? "base" : "Turbo";
    info->default_steps = base ? 50 : 8;
    info->default_guidance = base ? 4.0 : 0.0;
}

static nn_tensor encode(nn *c, const family_model *m, const int32_t *ids, int64_t count,
                        int64_t words, void (*unit_done)(void *, int), void *user)
{
    return qwen3_forward(c, m->text_encoder, ids, count, words, unit_done, user);
}

static nn_tensor begin_schedule(nn *c, const family_model *m, void *schedule, int64_t steps)
{
    zimage_schedule *s = schedule;
    *s = zimage_begin_schedule(c, m->transformer, steps);
    return s->values;
}

static void fill_schedule(nn *c, const family_model *m, const void *schedule, const float *sigmas,
                          const float *times)
{
    (void)sigmas;
    zimage_fill_schedule(c, m->transformer, schedule, times);
}

static void set_step(nn *c, const family_model *m, const void *schedule, int64_t step)
{
    (void)m;
    zimage_set_step(c, schedule, step);
}

static void prepare_condition(nn *c, const family_model *m, void *condition,
                              const family_input *input)
{
    zimage_caption *caption = condition;
    *caption = zimage_prepare_caption(c, m->transformer, input->features, input->count,
                                      input->height, input->width, input->tables);
}

static void forward(nn *c, const family_model *m, const void *schedule,
                    const void *const *conditions, int count, const nn_tensor *latents,
                    const nn_tensor *outputs)
{
    const zimage_caption *each[BATCH_MAX];
    for (int i = 0; i < count; i++)
        each[i] = conditions[i];
    zimage_forward(c, m->transformer, schedule, each, count, latents, outputs);
}

static void decode(nn *c, const family_model *m, const vae_decoding *d)
{
    vae_kl_decode(c, m->vae, d);
}

static int decode_units(const family_model *m, const vae_decoding *d)
{
    return vae_kl_decode_units(m->vae, d);
}

static ct_status decode_peak(const family_model *m, const vae_decoding *d, const nn_params *params,
                             size_t *bytes, ct_error *error)
{
    return vae_kl_decode_peak(m->vae, d, params, bytes, error);
}

const family family_zimage = {
    .name = "Z-Image",
    .pipelines = (const char *const[]){"ZImagePipeline", NULL},
    .classes = {"Qwen3ForCausalLM", "ZImageTransformer2DModel", "AutoencoderKL"},
    .evidence = (const char *const[]){"cap_embedder.1.weight", NULL},
    .mflux_names = NAMES_MFLUX,
    .before = "<|im_start|>user\n",
    .after = "<|im_end|>\n<|im_start|>assistant\n",
    .max_prompt_tokens = MAX_PROMPT_TOKENS,
    .added_tokens = (const char *const[]){"<|im_start|>", "<|im_end|>", NULL},
    .usual_shift = TURBO_SHIFT,
    .negated = true,
    .load = load,
    .free = free_parts,
    .check = check,
    .describe = describe,
    .choose_defaults = choose_defaults,
    .encode = encode,
    .schedule_bytes = sizeof(zimage_schedule),
    .condition_bytes = sizeof(zimage_caption),
    .begin_schedule = begin_schedule,
    .fill_schedule = fill_schedule,
    .set_step = set_step,
    .prepare_condition = prepare_condition,
    .forward = forward,
    .decode = decode,
    .decode_units = decode_units,
    .decode_peak = decode_peak,
};
