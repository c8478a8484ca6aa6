/* FLUX.2-klein: Qwen3, the FLUX.2 transformer, FLUX.2's VAE. It also edits: the pictures it is
 * given become tokens beside those of the new one. */
#include "families/family.h"
#include "models/flux2.h"
#include "models/qwen3.h"
#include "models/vae_kl.h"

#include <inttypes.h>
#include <string.h>

/* The same networks, trained for references that see nothing but one another. */
#define KV_PIPELINE "Flux2KleinKVPipeline"

#define PROMPT_TOKENS 512 /* that the reference pads every prompt to */
#define SAMPLE_SIDE 1024  /* of a picture, whatever the VAE's configuration says */
#define MAX_SIDE 4096     /* latent pixels; positions have no table that ends */
#define MAX_REFERENCES 10

static ct_status load(family_model *m, const load_options *options,
                      const char *const folders[PART_COUNT], const config *index, ct_error *error)
{
    static const qwen3_taps taps = {3, {9, 18, 27}};
    qwen3 *text_encoder = NULL;
    flux2 *transformer = NULL;
    vae_kl *vae = NULL;
    /* Programs around MLX do not say which it is. Nearly all files are distilled; but guidance that
     * is asked for is given. */
    bool distilled = true;
    ct_status status =
        index ? config_boolean(index, "is_distilled", false, &distilled, error) : CT_OK;
    if (status == CT_OK)
        status = qwen3_load(&text_encoder, options, folders[PART_TEXT_ENCODER], &taps, error);
    if (status == CT_OK)
        status = flux2_load(&transformer, options, folders[PART_TRANSFORMER], error);
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
    m->patch = 1;
    m->feature_width = qwen3_width(text_encoder);
    m->vocab = text_encoder->vocab;
    m->max_prompt_tokens = text_encoder->max_positions;
    m->max_side[0] = m->max_side[1] = MAX_SIDE;
    m->sample_side = SAMPLE_SIDE;
    m->encode_units = text_encoder->used_layers;
    m->heads = transformer->heads;
    if (transformer->singles > 0)
        m->typical = &transformer->single_block[0].gate;
    else if (transformer->doubles > 0)
        m->typical = &transformer->double_block[0].image.gate;
    transformer->references_apart = !strcmp(m->pipeline, KV_PIPELINE);
    /* The pipeline of these weights is distilled, whatever the index says. */
    m->distilled = distilled || transformer->references_apart;
    m->guidance_ignored = m->distilled && index;
    return CT_OK;
}

static void free_parts(family_model *m)
{
    qwen3_free(m->text_encoder);
    flux2_free(m->transformer);
    vae_kl_free(m->vae);
}

static ct_status check(const family_model *m, const char *directory, ct_error *error)
{
    const flux2 *transformer = m->transformer;
    const vae_kl *vae = m->vae;
    if (transformer->text_dim != m->feature_width)
        return error_set(
            error, CT_EFORMAT,
            "%s: transformer/config.json has joint_attention_dim %" PRId64
            ", but three times the hidden_size of text_encoder/config.json is %" PRId64,
            directory, transformer->text_dim, m->feature_width);
    if (transformer->channels != vae_kl_channels(vae))
        return error_set(error, CT_EFORMAT,
                         "%s: transformer/config.json has in_channels %" PRId64
                         ", but the latents of vae/config.json have %" PRId64,
                         directory, transformer->channels, vae_kl_channels(vae));
    if (vae->patch == 1)
        return error_set(error, CT_EFORMAT, "%s: vae/config.json is not an AutoencoderKLFlux2",
                         directory);
    if (m->max_prompt_tokens < PROMPT_TOKENS)
        return error_set(error, CT_EFORMAT,
                         "%s: text_encoder/config.json has max_position_embeddings %" PRId64
                         ", but prompts have %d tokens",
                         directory, m->max_prompt_tokens, PROMPT_TOKENS);
    return CT_OK;
}

static void describe(const family_model *m, int part, strbuf *out)
{
    const flux2 *f = m->transformer;
    if (part == PART_TEXT_ENCODER)
        qwen3_describe(m->text_encoder, out);
    else if (part == PART_VAE)
        vae_kl_describe(m->vae, out);
    else
        strbuf_printf(out,
                      "%d double and %d single blocks, dim %" PRId64 ", %d heads, head dim %" PRId64
                      ", %" PRId64 " latent channels",
                      f->doubles, f->singles, f->dim, f->heads, f->head_dim, f->channels);
}

/* Values of the cards. */
static void choose_defaults(const family_model *m, double shift, ct_model_info *info)
{
    (void)shift;
    const flux2 *transformer = m->transformer;
    info->variant = transformer->references_apart ? "KV" : m->distilled ? "distilled" : "base";
    info->default_steps = m->distilled ? 4 : 50;
    info->default_guidance = m->distilled ? 1.0 : 4.0;
    info->default_shift = 0; /* depends on the size */
}

/* compute_empirical_mu of the reference: lines through what was found best for 10 and for 200
 * steps, and between those by the number of steps. */
static double mu(int64_t tokens, int steps)
{
    const double at10 = 8.73809524e-05 * (double)tokens + 1.89833333;
    const double at200 = 0.00016927 * (double)tokens + 0.45666666;
    if (tokens > 4300)
        return at200;
    const double slope = (at200 - at10) / 190.0;
    return slope * steps + (at200 - 200.0 * slope);
}

static nn_tensor encode(nn *c, const family_model *m, const int32_t *ids, int64_t count,
                        int64_t words, void (*unit_done)(void *, int), void *user)
{
    return qwen3_forward(c, m->text_encoder, ids, count, words, unit_done, user);
}

static nn_tensor begin_schedule(nn *c, const family_model *m, void *schedule, int64_t steps)
{
    flux2_schedule *s = schedule;
    *s = flux2_begin_schedule(c, m->transformer, steps);
    return s->values;
}

static void fill_schedule(nn *c, const family_model *m, const void *schedule, const float *sigmas,
                          const float *times)
{
    (void)times;
    flux2_fill_schedule(c, m->transformer, schedule, sigmas);
}

static void set_step(nn *c, const family_model *m, const void *schedule, int64_t step)
{
    (void)m;
    flux2_set_step(c, schedule, step);
}

static void prepare_condition(nn *c, const family_model *m, void *condition,
                              const family_input *input)
{
    flux2_condition *p = condition;
    *p = flux2_prepare_condition(c, m->transformer, input->features, input->count, input->height,
                                 input->width, input->references, input->reference_count,
                                 input->index, input->tables);
}

static void forward(nn *c, const family_model *m, const void *schedule,
                    const void *const *conditions, int count, const nn_tensor *latents,
                    const nn_tensor *outputs)
{
    const flux2_condition *each[BATCH_MAX];
    for (int i = 0; i < count; i++)
        each[i] = conditions[i];
    flux2_forward(c, m->transformer, schedule, each, count, latents, outputs);
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

static void encode_picture(nn *c, const family_model *m, const float *picture, int64_t height,
                           int64_t width, float *scratch, float *latents)
{
    vae_kl_encode_mean(c, m->vae, picture, height, width, scratch, latents);
}

const family family_flux2_klein = {
    .name = "FLUX.2-klein",
    .pipelines = (const char *const[]){"Flux2KleinPipeline", KV_PIPELINE, NULL},
    .classes = {"Qwen3ForCausalLM", "Flux2Transformer2DModel", "AutoencoderKLFlux2"},
    .evidence = (const char *const[]){"double_stream_modulation_img.linear.weight", NULL},
    .mflux_names = NAMES_MFLUX_FLUX2,
    .before = "<|im_start|>user\n",
    .after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    .max_prompt_tokens = PROMPT_TOKENS,
    .padded = true,
    .pad_token = "<|endoftext|>",
    .added_tokens = (const char *const[]){"<|im_start|>", "<|im_end|>", "<think>", "</think>",
                                          "<|endoftext|>", NULL},
    .usual_shift = 3,
    .guidance_off = 1,
    .max_references = MAX_REFERENCES,
    .min_reference_side = 64,
    .max_reference_aspect = 8,
    .reference_area = 1024 * 1024,
    .load = load,
    .free = free_parts,
    .check = check,
    .describe = describe,
    .choose_defaults = choose_defaults,
    .mu = mu,
    .encode = encode,
    .schedule_bytes = sizeof(flux2_schedule),
    .condition_bytes = sizeof(flux2_condition),
    .begin_schedule = begin_schedule,
    .fill_schedule = fill_schedule,
    .set_step = set_step,
    .prepare_condition = prepare_condition,
    .forward = forward,
    .decode = decode,
    .decode_units = decode_units,
    .decode_peak = decode_peak,
    .encode_picture = encode_picture,
};
