/* ct_job_create: every parameter is checked, every default filled in, the prompt tokenized and the
 * memory taken, before any work starts. */
#include "pipeline/job.h"

#include "core/file.h"
#include "core/mem.h"
#include "core/strbuf.h"
#include "pipeline/noise.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_STEPS 1000
#define MAX_GUIDANCE 1000.0
#define MAX_PROMPT_BYTES (1 << 20)

void ct_generate_params_init(ct_generate_params *params)
{
    *params = (ct_generate_params){.struct_size = sizeof *params,
                                   .guidance = CT_GUIDANCE_DEFAULT,
                                   .cfg_truncation = 1,
                                   .guidance_end = 1};
}

/* ---- Size, steps, guidance ------------------------------------------------------------------- */

static ct_status check_side(const ct_model *m, const char *name, int value, int64_t most,
                            ct_error *error)
{
    int multiple = m->info.size_multiple;
    if (value < multiple || value > most) {
        return error_set(error, CT_EINVAL,
                         "%s %d is out of range: this model makes %d to %" PRId64 " pixels", name,
                         value, multiple, most);
    }
    int below = value / multiple * multiple, above = below + multiple;
    if (value != below)
        return error_set(error, CT_EINVAL,
                         "%s %d is not a multiple of %d; near sizes are %d and %d", name, value,
                         multiple, below, above <= most ? above : below);
    return CT_OK;
}

void job_set_size(ct_job *job, int width, int height)
{
    const ct_model *m = job->model;
    const int factor = m->parts.factor;
    job->info.width = width;
    job->info.height = height;
    job->info.picture_width = job->keep_width ? job->keep_width : width;
    job->info.picture_height = job->keep_height ? job->keep_height : height;
    job->info.references = job->references;
    job->latent_height = height / factor;
    job->latent_width = width / factor;
    job->latent_count = m->parts.channels * job->latent_height * job->latent_width;
}

static ct_status resolve_size(ct_job *job, const ct_generate_params *p, ct_error *error)
{
    const ct_model *m = job->model;
    int64_t most[2];
    for (int i = 0; i < 2; i++) {
        most[i] = m->parts.max_side[i] * m->parts.factor;
        if (most[i] > 32768)
            most[i] = 32768;
    }
    const int which = m->parts.family->size_of_last ? job->references - 1 : 0;
    const reference *first = job->references ? &job->reference[which] : NULL;
    const int width = first ? first->width : m->info.default_width;
    const int height = first ? first->height : m->info.default_height;
    job_set_size(job, p->width ? p->width : width, p->height ? p->height : height);
    ct_status status = check_side(m, "width", job->info.width, most[1], error);
    if (status == CT_OK)
        status = check_side(m, "height", job->info.height, most[0], error);
    return status;
}

/* In the model's own convention guidance may be the usual scale, or that minus one. */
static ct_status resolve_guidance(ct_job *job, const ct_generate_params *p, ct_error *error)
{
    const bool given = p->guidance != CT_GUIDANCE_DEFAULT, scale_given = p->cfg_scale != 0;
    const double off = job->model->parts.family->guidance_off;
    ct_job_info *j = &job->info;
    if (given && scale_given)
        return error_set(error, CT_EINVAL,
                         "guidance and cfg_scale are two ways to say the same; give one of them");
    if (given && !(p->guidance >= 0 && p->guidance <= MAX_GUIDANCE))
        return error_set(error, CT_EINVAL, "guidance is %g; it must be 0 (off) to %g", p->guidance,
                         MAX_GUIDANCE);
    if (scale_given && !(p->cfg_scale >= 1 && p->cfg_scale <= MAX_GUIDANCE + 1))
        return error_set(error, CT_EINVAL, "cfg_scale is %g; it must be 1 (off) to %g",
                         p->cfg_scale, MAX_GUIDANCE + 1);
    j->guidance = given ? p->guidance : job->model->info.default_guidance;
    /* A scale of 4.1 is a guidance of 3.1, not of the 3.0999999999999996 that doubles give. */
    if (scale_given)
        j->guidance = round((p->cfg_scale - 1 + off) * 1e12) / 1e12;
    if (job->model->parts.guidance_ignored && j->guidance > off) {
        log_message(&job->callbacks, CT_LOG_WARNING,
                    "%s %s is made to be used without guidance; it is ignored",
                    job->model->info.family, job->model->info.variant);
        j->guidance = off;
    }
    if (j->guidance < off)
        j->guidance = off;
    job->guides = j->guidance > off;
    j->cfg_scale =
        scale_given && job->guides ? p->cfg_scale : round((j->guidance + 1 - off) * 1e12) / 1e12;
    return CT_OK;
}

/* Which steps are guided, and how. */
static ct_status resolve_guided_steps(ct_job *job, const ct_generate_params *p, ct_error *error)
{
    if (!(p->cfg_truncation >= 0 && p->cfg_truncation <= 1))
        return error_set(error, CT_EINVAL, "cfg_truncation is %g; it must be 0 to 1",
                         p->cfg_truncation);
    if (!(p->guidance_start >= 0 && p->guidance_start < p->guidance_end && p->guidance_end <= 1))
        return error_set(error, CT_EINVAL,
                         "the guidance interval is %g:%g; it must begin at 0 or above, end at 1 or "
                         "below, and begin before it ends",
                         p->guidance_start, p->guidance_end);
    if (p->cfg_batch < CT_CFG_BATCH_AUTO || p->cfg_batch > CT_CFG_BATCH_OFF)
        return error_set(error, CT_EINVAL, "cfg_batch has the unknown value %d", (int)p->cfg_batch);
    job->cfg_normalization = p->cfg_normalization;
    job->cfg_truncation = p->cfg_truncation;
    job->guidance_start = p->guidance_start;
    job->guidance_end = p->guidance_end;
    job->cfg_batch_wanted = p->cfg_batch;
    return CT_OK;
}

const char *ct_precision_name(ct_precision precision)
{
    static const char *const names[] = {"auto", "fp32", "bf16", "int8", "fp8", "fp16"};
    return precision >= CT_PRECISION_AUTO && precision <= CT_PRECISION_FP16 ? names[precision]
                                                                            : NULL;
}

/* On a GPU bfloat16, as the reference, or halves where it has none; else bfloat16 where it is
 * faster and the weights have no more digits. */
static ct_precision natural_precision(const ct_model *m)
{
    if (m->context->gpu)
        return cuda_gpu_has_bf16(m->context->gpu) ? CT_PRECISION_BF16 : CT_PRECISION_FP16;
    const nn_weight *typical = m->parts.typical;
    bool fast = m->context->kernels.gemm[CPU_BF16] != NULL;
    bool short_weights = typical && (typical->bits || typical->type != DTYPE_F32);
    return fast && short_weights ? CT_PRECISION_BF16 : CT_PRECISION_FP32;
}

static ct_status check_precision(const ct_context *c, ct_precision precision, ct_error *error)
{
    const bool fp8 = precision == CT_PRECISION_FP8, eight = fp8 || precision == CT_PRECISION_INT8;
    if (fp8 && !c->gpu)
        return error_set(error, CT_EUNSUPPORTED,
                         "precision fp8 needs a GPU; on the CPU choose int8, bf16 or fp32");
    if (precision == CT_PRECISION_FP16 && !c->gpu)
        return error_set(error, CT_EUNSUPPORTED,
                         "precision fp16 needs a GPU; on the CPU choose bf16 or fp32");
    if (precision == CT_PRECISION_BF16 && c->gpu && !cuda_gpu_has_bf16(c->gpu))
        return error_set(error, CT_EUNSUPPORTED, "%s has no bfloat16; choose fp16 or fp32",
                         cuda_gpu_name(c->gpu));
    if (c->gpu && eight && !cuda_gpu_can(c->gpu, fp8 ? NN_FP8 : NN_INT8))
        return error_set(error, CT_EUNSUPPORTED,
                         "%s cannot multiply matrices in %s, or its cuBLASLt is too old for it; "
                         "choose %s or bf16",
                         cuda_gpu_name(c->gpu), ct_precision_name(precision), fp8 ? "int8" : "fp8");
    return CT_OK;
}

static ct_status resolve_numbers(ct_job *job, const ct_generate_params *p, ct_error *error)
{
    const ct_model_info *info = &job->model->info;
    ct_job_info *j = &job->info;
    if (p->steps < 0 || p->steps > MAX_STEPS)
        return error_set(error, CT_EINVAL,
                         "steps is %d; it must be 1 to %d, or 0 for the model's own", p->steps,
                         MAX_STEPS);
    if (resolve_guidance(job, p, error) != CT_OK)
        return CT_EINVAL;
    if (resolve_guided_steps(job, p, error) != CT_OK)
        return CT_EINVAL;
    if (p->shift != 0 && !(p->shift >= 0.01 && p->shift <= 100))
        return error_set(error, CT_EINVAL,
                         "shift is %g; it must be 0.01 to 100, or 0 for the model's "
                         "own",
                         p->shift);
    if (!(p->shift_terminal < 1))
        return error_set(error, CT_EINVAL,
                         "shift_terminal is %g; it must be less than 1, or 0 for the model's own",
                         p->shift_terminal);
    if (p->precision < CT_PRECISION_AUTO || p->precision > CT_PRECISION_FP16)
        return error_set(error, CT_EINVAL, "precision has the unknown value %d", (int)p->precision);
    if (check_precision(job->model->context, p->precision, error) != CT_OK)
        return CT_EUNSUPPORTED;
    if (p->rng != CT_RNG_TORCH)
        return error_set(error, CT_EINVAL, "rng has the unknown value %d", (int)p->rng);
    j->steps = p->steps ? p->steps : info->default_steps;
    j->shift = p->shift != 0 ? p->shift : info->default_shift;
    j->shift_terminal = p->shift_terminal > 0    ? p->shift_terminal
                        : p->shift_terminal == 0 ? job->model->scheduler.shift_terminal
                                                 : 0;
    j->scheduler = "FlowMatchEulerDiscreteScheduler";
    j->precision = p->precision == CT_PRECISION_AUTO ? natural_precision(job->model) : p->precision;
    job->trace_modules = p->trace_modules;
    job->seed = p->seed;
    return CT_OK;
}

/* ---- Prompts --------------------------------------------------------------------------------- */

int64_t job_feature_count(const ct_job *job, const prompt *p)
{
    const int64_t dropped = job->model->parts.family->dropped_tokens;
    return p->count > dropped ? p->count - dropped : 0;
}

/* Fills a prompt up to the length that its model was trained with. */
static ct_status pad_prompt(const ct_job *job, prompt *p, ct_error *error)
{
    const ct_model *m = job->model;
    const int64_t count = m->info.max_prompt_tokens;
    const int32_t pad = tokenizer_added(m->tokenizer, m->parts.family->pad_token);
    int32_t *ids = mem_array(job->allocator, (size_t)count, sizeof *ids);
    if (!ids)
        return error_memory(error, (size_t)count * sizeof *ids, "the prompt");
    for (int64_t i = 0; i < count; i++)
        ids[i] = i < p->words ? p->ids[i] : pad;
    mem_free(job->allocator, p->ids);
    p->ids = ids;
    p->count = count;
    return CT_OK;
}

/* What stands for the references, before the prompt. */
static void add_pictures(const ct_job *job, strbuf *out)
{
    for (int i = 0; job->model->parts.family->picture && i < job->references; i++)
        for (const char *at = job->model->parts.family->picture; *at; at++) {
            if (*at == '#')
                strbuf_printf(out, "%d", i + 1);
            else
                strbuf_printf(out, "%c", *at);
        }
}

/* Each token that stands for a picture becomes as many as its cells. */
static ct_status expand_pictures(const ct_job *job, prompt *p, const char *name, ct_error *error)
{
    const ct_model *m = job->model;
    const char *text = m->parts.family->picture_token;
    const int32_t token = tokenizer_added(m->tokenizer, text);
    int64_t count = p->count, at = 0;
    int found = 0;
    for (int64_t i = 0; i < p->count; i++)
        found += p->ids[i] == token;
    if (found != job->references)
        return error_set(error, CT_EINVAL,
                         "the %s contains %s, which stands for a picture; leave it out", name,
                         text);
    for (int i = 0; i < job->references; i++)
        count += reference_tokens(job, &job->reference[i]) - 1;
    int32_t *ids = mem_array(job->allocator, (size_t)count, sizeof *ids);
    if (!ids)
        return error_memory(error, (size_t)count * sizeof *ids, "the prompt");
    found = 0;
    for (int64_t i = 0; i < p->count; i++) {
        int64_t times = 1;
        if (p->ids[i] == token)
            times = reference_tokens(job, &job->reference[found++]);
        while (times-- > 0)
            ids[at++] = p->ids[i];
    }
    mem_free(job->allocator, p->ids);
    p->ids = ids;
    p->count = p->words = count;
    return CT_OK;
}

static ct_status set_prompt(ct_job *job, prompt *out, const char *text, const char *name,
                            ct_error *error)
{
    const ct_model *m = job->model;
    const ct_allocator *a = job->allocator;
    size_t length = strlen(text);
    if (length > MAX_PROMPT_BYTES)
        return error_set(error, CT_EINVAL, "the %s has %zu bytes; at most %d are read", name,
                         length, MAX_PROMPT_BYTES);
    size_t valid = utf8_valid_length(text, length);
    if (valid != length)
        return error_set(error, CT_EINVAL,
                         "the %s is not valid UTF-8 at byte %zu; save or type it as UTF-8", name,
                         valid);
    strbuf framed;
    strbuf_init(&framed, a, SIZE_MAX / 4);
    strbuf_puts(&framed, m->parts.family->before);
    add_pictures(job, &framed);
    strbuf_puts(&framed, text);
    strbuf_puts(&framed, m->parts.family->after);
    out->text = mem_strdup(a, text);
    size_t count = 0;
    ct_status status =
        strbuf_ok(&framed) && out->text
            ? tokenizer_encode(m->tokenizer, framed.data, framed.length, &out->ids, &count, error)
            : error_memory(error, length, "the prompt");
    strbuf_free(&framed);
    if (status != CT_OK)
        return status;
    /* As the reference: the tail goes, with the end of the frame. */
    out->truncated = count > (size_t)m->info.max_prompt_tokens;
    out->count = out->truncated ? m->info.max_prompt_tokens : (int64_t)count;
    out->words = out->count;
    if (out->truncated)
        log_message(&job->callbacks, CT_LOG_WARNING,
                    "the %s has %zu tokens; only the first %d are used", name, count,
                    m->info.max_prompt_tokens);
    if (job_feature_count(job, out) == 0)
        return error_set(error, CT_EFORMAT,
                         "%s: the frame around a prompt has only %" PRId64
                         " tokens, but features begin behind %d; tokenizer/ is of another model",
                         m->directory, out->count, m->parts.family->dropped_tokens);
    if (m->parts.family->picture_token)
        status = expand_pictures(job, out, name, error);
    return m->parts.family->padded ? pad_prompt(job, out, error) : status;
}

static ct_status resolve_prompts(ct_job *job, const ct_generate_params *p, ct_error *error)
{
    if (!p->prompt)
        return error_set(error, CT_EINVAL, "a prompt is required");
    ct_status status = set_prompt(job, &job->positive, p->prompt, "prompt", error);
    const bool guided = job->guides;
    const char *usual = job->model->parts.family->negative;
    if (status == CT_OK && guided)
        status = set_prompt(job, &job->negative,
                            p->negative_prompt ? p->negative_prompt
                            : usual            ? usual
                                               : "",
                            "negative prompt", error);
    if (status == CT_OK && !guided && p->negative_prompt && p->negative_prompt[0])
        log_message(&job->callbacks, CT_LOG_WARNING,
                    "guidance is off, so the negative prompt has no effect");
    job->info.prompt_tokens = (int)job->positive.words;
    job->info.caption_tokens = (int)job_feature_count(job, &job->positive);
    job->info.negative_tokens = (int)job->negative.words;
    job->info.prompt_truncated = job->positive.truncated;
    job->info.negative_truncated = job->negative.truncated;
    return status;
}

/* For planning: the longest prompts, whose tokens lie as far apart in the table as they can. */
static ct_status assume_prompts(ct_job *job, ct_error *error)
{
    prompt *prompts[] = {&job->positive, &job->negative};
    const ct_model *m = job->model;
    int64_t count = m->info.max_prompt_tokens;
    for (int i = 0; i < job->references; i++)
        count += reference_tokens(job, &job->reference[i]);
    for (int i = 0; i < (job->guides ? 2 : 1); i++) {
        prompts[i]->ids = mem_array(job->allocator, (size_t)count, sizeof *prompts[i]->ids);
        if (!prompts[i]->ids)
            return error_memory(error, (size_t)count * sizeof *prompts[i]->ids, "the prompt");
        prompts[i]->count = prompts[i]->words = count;
        for (int64_t k = 0; k < count; k++)
            prompts[i]->ids[k] = (int32_t)(k * m->parts.vocab / count);
    }
    job->info.prompt_tokens = (int)job->positive.words;
    job->info.negative_tokens = (int)job->negative.words;
    return CT_OK;
}

/* ---- Files, schedule, memory ----------------------------------------------------------------- */

static ct_status resolve_paths(ct_job *job, const ct_generate_params *p, bool planning,
                               ct_error *error)
{
    const char *from[] = {p->noise_path, p->trace_path};
    char **to[] = {&job->noise_path, &job->trace_path};
    for (int i = 0; i < 2; i++) {
        if (!from[i])
            continue;
        *to[i] = mem_strdup(job->allocator, from[i]);
        if (!*to[i])
            return error_memory(error, strlen(from[i]), "a path");
    }
    const bool traced = p->trace_path && !planning;
    const ct_status status = traced ? ct_output_check(p->trace_path, error) : CT_OK;
    return status == CT_OK && p->noise_path ? noise_check(job, error) : status;
}

static ct_status prepare_schedule(ct_job *job, ct_error *error)
{
    flow_match f = job->model->scheduler;
    const family_model *parts = &job->model->parts;
    const int64_t patch = parts->patch;
    const int64_t tokens = (job->latent_height / patch) * (job->latent_width / patch);
    const int steps = job->info.steps;
    job->sigmas = mem_array(job->allocator, (size_t)steps + 1, sizeof(float));
    job->times = mem_array(job->allocator, (size_t)steps, sizeof(float));
    if (!job->sigmas || !job->times)
        return error_memory(error, (size_t)steps * sizeof(float), "the schedule");
    if (parts->family->mu) {
        if (job->info.shift == 0)
            job->info.shift = exp(parts->family->mu(tokens, steps));
        f.dynamic = true;
        f.power = job->info.shift;
    } else if (job->model->info.default_shift == 0) { /* what the configuration says */
        if (job->info.shift == 0)
            job->info.shift = f.dynamic ? flow_match_power(&f, (double)tokens) : f.shift;
        f.power = job->info.shift;
    }
    f.shift = job->info.shift;
    f.shift_terminal = job->info.shift_terminal;
    flow_match_sigmas(&f, steps, (double)tokens, job->sigmas);
    const float scale = (float)f.train_timesteps;
    for (int i = 0; i < steps; i++)
        job->times[i] = (1000.0f - job->sigmas[i] * scale) / 1000.0f;
    for (int i = 0; i < steps; i++)
        job->info.guided_steps += job_guides(job, i);
    job->info.evaluations = steps + job->info.guided_steps;
    return CT_OK;
}

/* Two ways to leave steps out: cfg_truncation is Z-Image's own, by the noise that is gone; the
 * interval is that of every model, by the steps that are done. A step is guided where both allow
 * it. */
bool job_guides(const ct_job *job, int step)
{
    const double done = (double)step / (double)job->info.steps;
    return job->guides && (double)job->times[step] <= job->cfg_truncation &&
           done >= job->guidance_start && done < job->guidance_end;
}

int job_passes(const ct_job *job)
{
    return job->info.steps + (job->cfg_batch ? 0 : job->info.guided_steps);
}

/* Where no step is guided the negative prompt has no work to do. */
static void drop_guidance(ct_job *job)
{
    if (!job->guides || job->info.guided_steps > 0)
        return;
    log_message(&job->callbacks, CT_LOG_WARNING,
                "none of the %d steps lies in the guidance interval %g:%g, so guidance is off",
                job->info.steps, job->guidance_start, job->guidance_end);
    job->guides = false;
    job->negative.count = job->negative.words = 0;
    job->info.negative_tokens = 0;
}

nn_params job_network(const ct_job *job)
{
    const ct_context *context = job->model->context;
    return (nn_params){.allocator = job->allocator,
                       .threads = context->threads,
                       .kernels = &context->kernels,
                       .gpu = context->gpu,
                       .gpu_weights = job->model->gpu_weights,
                       .gpu_schedule = job->schedule_gpu,
                       .trace = job->trace_modules ? &job->trace.hook : NULL,
                       .residency = &job->residency.hook,
                       .cancel = job->callbacks.cancel,
                       .cancel_user = job->callbacks.user};
}

vae_decoding job_decoding(const ct_job *job)
{
    return (vae_decoding){.latents = job->latents,
                          .height = job->latent_height,
                          .width = job->latent_width,
                          .scratch = job->scratch,
                          .picture = job->picture,
                          .strip_rows = job->strip_rows};
}

size_t job_plane_bytes(const ct_job *job)
{
    size_t pixels = (size_t)job->info.width * (size_t)job->info.height;
    return (2 * (size_t)job->latent_count + 3 * pixels) * sizeof(float);
}

/* All memory that the run will need. */
static ct_status take_memory(ct_job *job, ct_error *error)
{
    job->latents = mem_alloc(job->allocator, job_plane_bytes(job));
    if (!job->latents)
        return error_memory(error, job_plane_bytes(job), "the latents and the picture");
    job->scratch = job->latents + job->latent_count;
    job->picture = job->scratch + job->latent_count;
    nn_params params = job_network(job);
    for (int i = 0; i < 3; i++)
        if (job->arena[i] > params.arena_bytes)
            params.arena_bytes = job->arena[i];
    if (params.gpu) {
        /* The arena of the first stage; the network changes it. */
        if (job->gpu_way >= CT_GPU_TURNS)
            params.arena_bytes = job->arena[CT_STAGE_ENCODE];
        cuda_store_prepare(params.gpu_weights, job->schedule_gpu, SECTION_ENCODE);
    }
    residency_read_ahead(&job->residency);
    if (job->network && job->gpu_way < CT_GPU_TURNS && nn_reuse(job->network, &params))
        return CT_OK;
    nn_free(job->network);
    job->network = NULL;
    return nn_create(&job->network, &params, error);
}

/* What the family keeps while the steps run. */
static ct_status make_room(ct_job *job, ct_error *error)
{
    const family *f = job->model->parts.family;
    const size_t bytes = f->schedule_bytes + 2 * f->condition_bytes;
    job->schedule = mem_zero_array(job->allocator, 1, f->schedule_bytes);
    job->positive.condition = mem_zero_array(job->allocator, 1, f->condition_bytes);
    job->negative.condition = mem_zero_array(job->allocator, 1, f->condition_bytes);
    return job->schedule && job->positive.condition && job->negative.condition
               ? CT_OK
               : error_memory(error, bytes, "the schedule");
}

ct_status job_open(ct_job **out, ct_model *model, const ct_generate_params *params, bool planning,
                   ct_error *error)
{
    *out = NULL;
    const ct_allocator *a = model->allocator;
    ct_job *job = mem_zero_array(a, 1, sizeof *job);
    if (!job)
        return error_memory(error, sizeof *job, "the job");
    job->model = model;
    job->allocator = a;
    job->callbacks = params->callbacks ? *params->callbacks : model->context->callbacks;
    job->max_memory = params->max_memory;
    job->max_vram = params->max_vram;
    residency_init(&job->residency, a);
    for (int i = 0; i < PART_COUNT; i++)
        residency_watch(&job->residency, model->parts.weights[i]);
    ct_status status = references_prepare(job, params, error);
    if (status == CT_OK)
        status = resolve_size(job, params, error);
    if (status == CT_OK)
        status = resolve_numbers(job, params, error);
    if (status == CT_OK)
        status = planning && !params->prompt ? assume_prompts(job, error)
                                             : resolve_prompts(job, params, error);
    if (status == CT_OK)
        status = resolve_paths(job, params, planning, error);
    if (status == CT_OK)
        status = prepare_schedule(job, error);
    if (status == CT_OK)
        drop_guidance(job);
    if (status == CT_OK)
        status = make_room(job, error);
    if (status == CT_OK && model->context->gpu)
        status = cuda_schedule_create(&job->schedule_gpu, a, error);
    if (status != CT_OK) {
        ct_job_free(&job);
        return status;
    }
    *out = job;
    return CT_OK;
}

static void log_gpu_plan(const ct_job *job, const ct_memory_plan *plan)
{
    const ct_gpu_choice *g = &plan->gpu.chosen;
    static const char *const ways[] = {
        "all weights stay there", "the text encoder and the others take turns",
        "text encoder, transformer and VAE take turns", "so many blocks are streamed: "};
    char blocks[64] = "";
    if (g->way == CT_GPU_STREAMED)
        snprintf(blocks, sizeof blocks, "%d of the text encoder, %d of the transformer",
                 g->encoder_blocks, g->streamed_blocks);
    log_message(&job->callbacks, CT_LOG_INFO,
                "memory: %.0f MiB at the most of %.0f MiB; of the GPU %.0f MiB at the most of %.0f "
                "MiB; %s%s",
                (double)job->info.peak_bytes / 1048576.0, (double)plan->limit_bytes / 1048576.0,
                (double)g->peak_bytes / 1048576.0, (double)plan->gpu.limit_bytes / 1048576.0,
                ways[g->way], blocks);
}

static void log_plan(const ct_job *job, const ct_memory_plan *plan)
{
    const ct_job_info *info = &job->info;
    if (job->guides)
        log_message(&job->callbacks, CT_LOG_INFO,
                    "guidance: %d of %d steps, %d evaluations; both prompts in %s",
                    info->guided_steps, info->steps, info->evaluations,
                    info->cfg_batch ? "one pass" : "two passes");
    char decode[64] = "at once";
    if (info->strip_height)
        snprintf(decode, sizeof decode, "in strips of %d rows", info->strip_height);
    if (plan->gpu.total_bytes) {
        log_gpu_plan(job, plan);
        return;
    }
    log_message(&job->callbacks, CT_LOG_INFO,
                "memory: %.0f MiB at the most of %.0f MiB; %d of %d blocks of the transformer are "
                "streamed, the VAE decodes %s",
                (double)info->peak_bytes / 1048576.0, (double)plan->limit_bytes / 1048576.0,
                info->streamed_blocks, info->blocks, decode);
}

ct_status ct_job_create(ct_model *model, const ct_generate_params *params, ct_job **out,
                        ct_error *error)
{
    if (!model || !params || !out)
        return error_set(error, CT_EINVAL, "ct_job_create: an argument is NULL");
    *out = NULL;
    if (params->struct_size != sizeof *params)
        return error_set(error, CT_EINVAL, "ct_job_create: call ct_generate_params_init first");
    if (model->plan_only)
        return error_set(error, CT_EINVAL, "the model was opened for plans alone (plan_only)");
    ct_job *job = NULL;
    ct_status status = job_open(&job, model, params, false, error);
    if (status != CT_OK)
        return status;
    ct_memory_plan plan;
    job->network = atomic_exchange(&model->spare, NULL);
    status = plan_memory(job, &plan, error);
    if (status == CT_OK)
        status = take_memory(job, error);
    if (status != CT_OK) {
        ct_job_free(&job);
        return status;
    }
    log_plan(job, &plan);
    *out = job;
    return CT_OK;
}

/* On a GPU a network has memory, a stream and recordings that the next job can use. */
static void keep_network(ct_model *m, nn *network)
{
    if (!m->context->gpu || !network) {
        nn_free(network);
        return;
    }
    nn *before = atomic_exchange(&m->spare, network);
    nn_free(before);
}

static void free_prompt(const ct_allocator *a, prompt *p)
{
    mem_free(a, p->text);
    mem_free(a, p->ids);
    mem_free(a, p->features);
    mem_free(a, p->condition);
}

void ct_job_free(ct_job **job)
{
    if (!job || !*job)
        return;
    ct_job *j = *job;
    const ct_allocator *a = j->allocator;
    residency_free(&j->residency);
    references_free(j);
    if (j->gpu_way >= CT_GPU_TURNS) /* its memory comes and goes */
        nn_free(j->network);
    else
        keep_network(j->model, j->network);
    cuda_schedule_free(j->schedule_gpu);
    free_prompt(a, &j->positive);
    free_prompt(a, &j->negative);
    mem_free(a, j->schedule);
    mem_free(a, j->noise_path);
    mem_free(a, j->trace_path);
    mem_free(a, j->sigmas);
    mem_free(a, j->times);
    mem_free(a, j->latents);
    mem_free(a, j);
    *job = NULL;
}

const ct_job_info *ct_job_get_info(const ct_job *job)
{
    return &job->info;
}
