/* ct_job_run: the way of the data. prompt -> features -> noise -> steps -> latents -> picture */
#include "core/clock.h"
#include "core/mem.h"
#include "pipeline/cache.h"
#include "pipeline/job.h"
#include "pipeline/noise.h"
#include "pipeline/recipe.h"
#include "sampling/rng.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* ---- Progress -------------------------------------------------------------------------------- */

/* ago: seconds since it happened, where that is only seen now. */
static void report_late(ct_job *job, const nn *c, ct_stage stage, int step, int steps,
                        const ct_latents *preview, double ago)
{
    if (nn_is_dry(c) || !job->callbacks.progress)
        return;
    double now = clock_seconds() - ago;
    if (step == 0)
        job->stage_began = now;
    ct_progress p = {stage, step, steps, now - job->stage_began, now - job->began, preview};
    job->callbacks.progress(job->callbacks.user, &p);
}

static void report(ct_job *job, const nn *c, ct_stage stage, int step, int steps,
                   const ct_latents *preview)
{
    report_late(job, c, stage, step, steps, preview, 0);
}

typedef struct unit_counter {
    ct_job *job;
    nn *network;
    ct_stage stage;
    int done, all;
} unit_counter;

static void unit_done(void *user, int unit)
{
    (void)unit;
    unit_counter *u = user;
    if (!nn_stopped(u->network))
        report(u->job, u->network, u->stage, ++u->done, u->all, NULL);
}

/* ---- Stages ---------------------------------------------------------------------------------- */

void job_begin_section(ct_job *job, nn *c, residency_section section)
{
    static const ct_stage stages[SECTION_COUNT] = {
        [SECTION_SEE] = CT_STAGE_ENCODE,        [SECTION_ENCODE] = CT_STAGE_ENCODE,
        [SECTION_REFERENCES] = CT_STAGE_ENCODE, [SECTION_SCHEDULE] = CT_STAGE_DENOISE,
        [SECTION_PREPARE] = CT_STAGE_DENOISE,   [SECTION_EVALUATE] = CT_STAGE_DENOISE,
        [SECTION_DECODE] = CT_STAGE_DECODE,
    };
    residency_begin(&job->residency, section);
    nn_section(c, (int)section, job->arena[stages[section]]);
}

/* Memory that other stages had, and this one does not need, goes back to the system. */
static void begin_stage(ct_job *job, nn *c, ct_stage stage)
{
    if (nn_is_dry(c))
        nn_restart_peak(c);
    else
        nn_trim(c, job->arena[stage]);
}

/* The part that has done its work is let go. */
static void end_stage(ct_job *job, const nn *c, ct_stage stage, const weights *part)
{
    if (nn_is_dry(c))
        job->arena[stage] = nn_peak(c);
    residency_let_go(&job->residency, part);
}

/* ---- Numbers that are not finite -------------------------------------------------------------
 * Results are looked at where they come to the host anyway: a prompt's features, the latents behind
 * each step, the picture. Where they are bad the same is computed once more, every operation's
 * results are looked at, and the job fails with the name of the first that is bad. */

static void not_again(nn *c, const char *what)
{
    nn_fail(c, CT_EINTERNAL,
            "%s made numbers that are not finite, and not when it was computed again", what);
}

/* ---- Prompt to features ---------------------------------------------------------------------- */

/* With what was seen of the references, where the text encoder sees. */
static nn_tensor encode(const ct_job *job, nn *c, const prompt *p, void (*done)(void *, int),
                        void *user)
{
    const family_model *m = &job->model->parts;
    if (!m->family->encode_sights)
        return m->family->encode(c, m, p->ids, p->count, p->words, done, user);
    family_sight sights[MAX_REFERENCES];
    references_sights(job, sights);
    const family_words words = {p->ids, p->count, sights, job->references};
    return m->family->encode_sights(c, m, &words, done, user);
}

/* The same again, to find out which operation made numbers that are not finite. */
static void look_into_prompt(ct_job *job, nn *c, prompt *p)
{
    nn_check_numbers(c, "text encoder");
    job_begin_section(job, c, SECTION_ENCODE);
    encode(job, c, p, NULL, NULL);
    not_again(c, "the text encoder");
    mem_free(job->allocator, p->features);
    p->features = NULL;
}

static int64_t feature_size(const ct_job *job, const prompt *p)
{
    return job_feature_count(job, p) * job->model->parts.feature_width;
}

static float *new_features(const ct_job *job, nn *c, const prompt *p)
{
    const int64_t size = feature_size(job, p);
    float *features = mem_array(job->allocator, (size_t)size, sizeof *features);
    if (!features)
        nn_fail(c, CT_ENOMEM, "out of memory: %" PRId64 " bytes for the prompt's features",
                size * (int64_t)sizeof *features);
    return features;
}

/* Features that another job has computed. */
static void recall_prompt(ct_job *job, nn *c, prompt *p, const char *which)
{
    const size_t size = (size_t)feature_size(job, p);
    const blob_name name = cache_prompt_name(job, p);
    float *features = new_features(job, c, p);
    const char *place = features ? cache_load_floats(job, &name, features, size) : NULL;
    if (!place) {
        mem_free(job->allocator, features);
        return;
    }
    p->features = features;
    cache_keep_floats(job, &name, features, size, place);
    log_message(&job->callbacks, CT_LOG_INFO,
                "cache: features of the %s are in %s; the text encoder does not run", which, place);
}

static void encode_prompt(ct_job *job, nn *c, prompt *p, unit_counter *units)
{
    const family_model *m = &job->model->parts;
    const int64_t size = feature_size(job, p);
    size_t mark = nn_mark(c);
    job_begin_section(job, c, SECTION_ENCODE);
    /* Of a device that works later than it is told to, layers are done when the features are
     * here. */
    const bool later = nn_lag(c) > 0;
    nn_tensor features = encode(job, c, p, later ? NULL : unit_done, units);
    if (!nn_is_dry(c) && !nn_stopped(c) && (p->features = new_features(job, c, p)))
        nn_download(c, &features, p->features, size);
    for (int i = 0; later && i < m->encode_units; i++)
        unit_done(units, i);
    nn_release(c, mark);
    if (p->features && !nn_stopped(c) && !numbers_finite(p->features, size))
        look_into_prompt(job, c, p);
    if (p->features && !nn_stopped(c)) {
        const blob_name name = cache_prompt_name(job, p);
        cache_keep_floats(job, &name, p->features, (size_t)size, NULL);
    }
}

/* The text encoder is small work, so 8 bits would gain little there. */
nn_precision job_encode_precision(const ct_job *job)
{
    const ct_precision precision = job->info.precision;
    return precision == CT_PRECISION_FP32   ? NN_F32
           : precision == CT_PRECISION_FP16 ? NN_FP16
                                            : NN_BF16;
}

/* On the CPU the VAE is computed in float32 (its convolutions gain more from fewer products than
 * from shorter numbers), and where there is no bfloat16, because its pictures leave the range of
 * fp16. */
nn_precision job_decode_precision(const ct_job *job)
{
    const cuda_gpu *gpu = job->model->context->gpu;
    const ct_precision precision = job->info.precision;
    const bool shorter = precision != CT_PRECISION_FP32 && precision != CT_PRECISION_FP16;
    return gpu && cuda_gpu_has_bf16(gpu) && shorter ? NN_BF16 : NN_F32;
}

/* Whether nothing is left to encode, nor to be seen of the references. */
static bool recall_prompts(ct_job *job, nn *c, prompt *const *prompts, int count,
                           unit_counter *units)
{
    const family_model *m = &job->model->parts;
    bool all = true;
    for (int i = 0; i < count && !nn_is_dry(c); i++) {
        if (prompts[i]->features)
            continue;
        recall_prompt(job, c, prompts[i], i ? "negative prompt" : "prompt");
        all &= prompts[i]->features != NULL;
        units->done += prompts[i]->features ? m->encode_units : 0;
    }
    all &= !nn_is_dry(c);
    if (all && units->done && m->family->see)
        units->done += job->references;
    if (units->done)
        report(job, c, CT_STAGE_ENCODE, units->done, units->all, NULL);
    return all;
}

/* The prompts through the text encoder, then the reference pictures through the VAE. */
static void encode_inputs(ct_job *job, nn *c)
{
    prompt *prompts[] = {&job->positive, &job->negative};
    static const char *const names[] = {"prompt", "negative"};
    const family_model *m = &job->model->parts;
    const int count = job->guides ? 2 : 1;
    unit_counter units = {job, c, CT_STAGE_ENCODE, 0, count * m->encode_units + job->references};
    units.all += m->family->see ? job->references : 0;
    if (!job->positive.features) {
        begin_stage(job, c, CT_STAGE_ENCODE);
        report(job, c, CT_STAGE_ENCODE, 0, units.all, NULL);
    }
    if (!recall_prompts(job, c, prompts, count, &units))
        references_see(job, c, unit_done, &units);
    for (int i = 0; i < count && !nn_stopped(c); i++) {
        prompt *p = prompts[i];
        job->trace.active = i == 0;
        if (!p->features) /* a job encodes once for all its seeds */
            encode_prompt(job, c, p, &units);
        if (!p->features)
            continue;
        char name[32];
        snprintf(name, sizeof name, "%s.ids", names[i]);
        trace_ids(&job->trace, name, p->ids, p->count);
        snprintf(name, sizeof name, "%s.features", names[i]);
        trace_floats(&job->trace, name, 2,
                     (const int64_t[]){job_feature_count(job, p), m->feature_width}, p->features);
    }
    job->trace.active = false;
    residency_let_go(&job->residency, m->weights[PART_TEXT_ENCODER]);
    const nn_precision precision = nn_set_precision(c, job_decode_precision(job));
    references_encode(job, c, unit_done, &units);
    nn_set_precision(c, precision);
    end_stage(job, c, CT_STAGE_ENCODE, m->weights[PART_VAE]);
}

/* ---- Noise ----------------------------------------------------------------------------------- */

static void trace_latents(ct_job *job, const char *name, const float *data)
{
    const int64_t shape[] = {job->model->parts.channels, job->latent_height, job->latent_width};
    trace_floats(&job->trace, name, 3, shape, data);
}

static void draw_noise(ct_job *job, nn *c, uint64_t seed)
{
    if (nn_is_dry(c) || nn_stopped(c))
        return;
    if (job->noise_path) {
        ct_error error;
        if (noise_read(job, job->latents, &error) != CT_OK)
            nn_fail(c, error.code, "%s", error.message);
    } else {
        torch_generator g;
        torch_seed(&g, seed);
        torch_randn(&g, job->latents, job->latent_count, job->model->context->threads);
    }
    trace_latents(job, "noise", job->latents);
    trace_floats(&job->trace, "sigmas", 1, (const int64_t[]){job->info.steps + 1}, job->sigmas);
}

/* ---- Steps ----------------------------------------------------------------------------------- */

/* What a loop over the steps needs; all of it in the network's memory. */
typedef struct denoising {
    nn_tensor latents;   /* [channels, height, width] */
    nn_tensor output[2]; /* likewise: of the prompt, and of the negative where guidance is on */
} denoising;

static void trace_output(ct_job *job, nn *c, const char *name, int step, const nn_tensor *output)
{
    if (nn_is_dry(c) || !job->trace.writer)
        return;
    char text[48];
    snprintf(text, sizeof text, "step.%02d.%s", step, name);
    nn_download(c, output, job->scratch, job->latent_count);
    if (!nn_stopped(c))
        trace_latents(job, text, job->scratch);
}

/* The network's estimates in d->output, in one pass or one after the other. A device may record
 * these calls: those with and those without guidance are different recordings. */
static void evaluate(ct_job *job, nn *c, const denoising *d, bool guided)
{
    const family_model *m = &job->model->parts;
    const void *const conditions[] = {job->positive.condition, job->negative.condition};
    const int count = guided ? 2 : 1, together = job->cfg_batch ? count : 1;
    for (int i = 0; i < count; i += together) {
        if (i > 0)
            job->trace.active = false;
        job_begin_section(job, c, SECTION_EVALUATE);
        m->family->forward(c, m, job->schedule, conditions + i, together, &d->latents,
                           d->output + i);
    }
}

/* All that the calls of an evaluation, and the memory in front of them, depend on. */
#define KEY (8 + 2 * MAX_REFERENCES)

static int evaluation_key(const ct_job *job, bool guided, int64_t *key)
{
    const int64_t own[8] = {NN_PLACE_EVALUATE,   guided ? 2 : job->guides, guided && job->cfg_batch,
                            job->latent_height,  job->latent_width,        job->positive.count,
                            job->negative.count, job->info.steps};
    memcpy(key, own, sizeof own);
    for (int i = 0; i < job->references; i++) {
        key[8 + 2 * i] = job->reference[i].height;
        key[9 + 2 * i] = job->reference[i].width;
    }
    return 8 + 2 * job->references;
}

static void run_step(ct_job *job, nn *c, const denoising *d, int step)
{
    const family_model *m = &job->model->parts;
    /* Every step takes the same memory, or less where it is not guided. */
    const bool guided = nn_is_dry(c) ? job->guides : job_guides(job, step);
    m->family->set_step(c, m, job->schedule, step);
    job->trace.active = step == 0;
    int64_t key[KEY];
    if (nn_repeat_begin(c, key, evaluation_key(job, guided, key))) {
        evaluate(job, c, d, guided);
        nn_repeat_end(c);
    }
    job->trace.active = false;
    const nn_tensor *output = &d->output[0], *negative = &d->output[1];
    trace_output(job, c, "model_output", step, output);
    if (guided) {
        trace_output(job, c, "negative_output", step, negative);
        const double guidance = job->info.guidance - m->family->guidance_off;
        if (m->family->guides_tokens)
            nn_guide_tokens(c, output, negative, guidance, m->patch);
        else
            nn_guide(c, output, negative, guidance, job->cfg_normalization);
    }
    /* x += (sigma' - sigma) * velocity */
    const float *sigma = &job->sigmas[step];
    nn_add_scaled(c, &d->latents, output,
                  m->family->negated ? sigma[0] - sigma[1] : sigma[1] - sigma[0]);
}

static void prepare_prompt(ct_job *job, nn *c, prompt *p, int index)
{
    const family_model *m = &job->model->parts;
    vae_latents references[MAX_REFERENCES];
    for (int i = 0; i < job->references; i++) {
        const reference *r = &job->reference[i];
        references[i] = (vae_latents){r->latents, r->height / m->factor, r->width / m->factor};
    }
    cache_user user = {job, p};
    const rope_memory tables = cache_tables(&user);
    const family_input input = {.features = p->features,
                                .count = job_feature_count(job, p),
                                .height = job->latent_height,
                                .width = job->latent_width,
                                .references = references,
                                .reference_count = job->references,
                                .index = index,
                                .tables = &tables};
    m->family->prepare_condition(c, m, p->condition, &input);
}

/* Whether the schedule's table is known is asked before a section begins, because that may bring
 * the section's weights. What turns out to be damaged is computed after all. */
static void prepare_schedule(ct_job *job, nn *c)
{
    const family_model *m = &job->model->parts;
    const blob_name name = cache_schedule_name(job);
    const bool known = !nn_is_dry(c) && job->table_bytes && cache_has(job, &name, job->table_bytes);
    job_begin_section(job, c, known ? SECTION_PREPARE : SECTION_SCHEDULE);
    const nn_tensor table = m->family->begin_schedule(c, m, job->schedule, job->info.steps);
    const char *place = known ? cache_load_tensor(job, c, &name, &table) : NULL;
    if (nn_is_dry(c))
        job->table_bytes = (uint64_t)nn_count(&table) * sizeof(float);
    if (place) {
        log_message(&job->callbacks, CT_LOG_INFO,
                    "cache: the modulation of the schedule is in %s; its weights are not read",
                    place);
    } else {
        if (known)
            job_begin_section(job, c, SECTION_SCHEDULE);
        m->family->fill_schedule(c, m, job->schedule, job->sigmas, job->times);
    }
    if (!nn_is_dry(c))
        cache_keep_tensor(job, c, &name, &table, place);
    if (!place)
        job_begin_section(job, c, SECTION_PREPARE);
}

static denoising prepare(ct_job *job, nn *c)
{
    const family_model *m = &job->model->parts;
    const int64_t height = job->latent_height, width = job->latent_width;
    denoising d;
    prepare_schedule(job, c);
    prepare_prompt(job, c, &job->positive, 0);
    job->trace.active = false;
    d.latents = nn_new3(c, m->channels, height, width);
    d.output[0] = d.output[1] = nn_new3(c, m->channels, height, width);
    if (job->guides) {
        prepare_prompt(job, c, &job->negative, 1);
        d.output[1] = nn_new3(c, m->channels, height, width);
    }
    nn_upload(c, &d.latents, job->latents, job->latent_count);
    return d;
}

/* job->latents is what the step began with. */
static void look_into_step(ct_job *job, nn *c, int step, size_t mark)
{
    char when[40];
    snprintf(when, sizeof when, "step %d of %d", step + 1, job->info.steps);
    nn_release(c, mark);
    nn_check_numbers(c, when);
    const denoising d = prepare(job, c);
    run_step(job, c, &d, step);
    not_again(c, when);
}

/* mark: of the memory of all steps. */
static void end_step(ct_job *job, nn *c, int step, size_t mark)
{
    const double ago = nn_download_end(c, step & 1, job->scratch, job->latent_count);
    if (nn_is_dry(c) || nn_stopped(c))
        return;
    if (!numbers_finite(job->scratch, job->latent_count)) {
        look_into_step(job, c, step, mark);
        return;
    }
    memcpy(job->latents, job->scratch, (size_t)job->latent_count * sizeof(float));
    char name[48];
    snprintf(name, sizeof name, "step.%02d.latents", step);
    trace_latents(job, name, job->latents);
    const ct_latents preview = {job->latents, (int)job->model->parts.channels,
                                (int)job->latent_height, (int)job->latent_width};
    report_late(job, c, CT_STAGE_DENOISE, step + 1, job->info.steps, &preview, ago);
}

/* The end of a step is waited for when the next one is already with the device. */
static void denoise(ct_job *job, nn *c)
{
    const int steps = job->info.steps, lag = nn_lag(c);
    size_t mark = nn_mark(c);
    report(job, c, CT_STAGE_DENOISE, 0, steps, NULL);
    begin_stage(job, c, CT_STAGE_DENOISE);
    job->trace.active = true;
    denoising d = prepare(job, c);
    for (int step = 0; step < steps + lag && !nn_stopped(c); step++) {
        if (step < steps) {
            run_step(job, c, &d, step);
            nn_download_begin(c, step & 1, &d.latents);
        }
        if (step >= lag)
            end_step(job, c, step - lag, mark);
        if (nn_is_dry(c))
            break; /* the others take no more memory */
    }
    nn_release(c, mark);
    end_stage(job, c, CT_STAGE_DENOISE, job->model->parts.weights[PART_TRANSFORMER]);
}

/* ---- Picture --------------------------------------------------------------------------------- */

static void decode(ct_job *job, nn *c)
{
    const family_model *m = &job->model->parts;
    unit_counter units = {.job = job, .network = c, .stage = CT_STAGE_DECODE};
    vae_decoding d = job_decoding(job);
    /* Of a device that works later than it is told to, they are done when the picture is here. */
    const bool later = nn_lag(c) > 0;
    d.unit_done = later ? NULL : unit_done;
    d.user = &units;
    units.all = m->family->decode_units(m, &d);
    report(job, c, CT_STAGE_DECODE, 0, units.all, NULL);
    if (!nn_is_dry(c) && !nn_stopped(c))
        trace_latents(job, "latents", job->latents);
    begin_stage(job, c, CT_STAGE_DECODE);
    job_begin_section(job, c, SECTION_DECODE);
    job->trace.active = true;
    m->family->decode(c, m, &d);
    for (int i = 0; later && i < units.all; i++)
        unit_done(&units, i);
    job->trace.active = false;
    end_stage(job, c, CT_STAGE_DECODE, m->weights[PART_VAE]);
}

void job_execute(ct_job *job, nn *c, uint64_t seed)
{
    const ct_precision precision = job->info.precision;
    nn_set_precision(c, job_encode_precision(job));
    residency_start(&job->residency, nn_is_dry(c));
    encode_inputs(job, c);
    draw_noise(job, c, seed);
    if (precision == CT_PRECISION_INT8 || precision == CT_PRECISION_FP8)
        nn_set_precision(c, precision == CT_PRECISION_INT8 ? NN_INT8 : NN_FP8);
    denoise(job, c);
    nn_set_precision(c, job_decode_precision(job));
    decode(job, c);
}

static void look_into_picture(ct_job *job, nn *c)
{
    const family_model *m = &job->model->parts;
    const vae_decoding d = job_decoding(job);
    nn_check_numbers(c, "VAE");
    job_begin_section(job, c, SECTION_DECODE);
    m->family->decode(c, m, &d);
    not_again(c, "the VAE");
}

typedef struct finishing {
    const ct_job *job;
    ct_image *image;
    atomic_bool broken; /* there is a number that is not finite */
} finishing;

/* -1..1 to 0..1 in a row of job->picture, and to bytes as the reference rounds them: half to
 * even. */
static void finish_row(void *user, int64_t y, int worker)
{
    finishing *f = user;
    const ct_image *image = f->image;
    const int64_t width = f->job->info.width, height = f->job->info.height;
    bool finite = true;
    (void)worker;
    for (int64_t channel = 0; channel < 3; channel++) {
        float *from = f->job->picture + (channel * height + y) * width;
        for (int64_t x = 0; x < width; x++) {
            float v = from[x] * 0.5f + 0.5f;
            finite &= fabsf(v) <= FLT_MAX;
            v = v >= 0 ? v : 0; /* also NaN */
            v = v <= 1 ? v : 1;
            from[x] = v;
        }
        for (int64_t x = 0; y < image->height && x < width && x < image->width; x++)
            image->pixels[(y * image->width + x) * 3 + channel] = (uint8_t)rintf(from[x] * 255.0f);
    }
    if (!finite)
        f->broken = true;
}

/* keep_size cuts off what was padded. */
static void finish_picture(ct_job *job, ct_image *image)
{
    finishing f = {.job = job, .image = image};
    pool_run(job->model->context->threads, job->info.height, finish_row, &f);
    if (f.broken) {
        look_into_picture(job, job->network);
        return;
    }
    const int64_t shape[] = {3, job->info.height, job->info.width};
    trace_floats(&job->trace, "image", 3, shape, job->picture);
}

static ct_status add_recipe(const ct_job *job, ct_image *image, ct_error *error)
{
    const ct_model_info *info = &job->model->info;
    const ct_job_info *j = &job->info;
    recipe r = {
        .prompt = job->positive.text,
        .negative = job->guides ? job->negative.text : NULL,
        .seed = image->seed,
        .width = j->picture_width,
        .height = j->picture_height,
        .references = j->references,
        .keep_size = job->keep_width > 0,
        .steps = j->steps,
        .evaluations = j->evaluations,
        .guidance = j->guidance,
        .cfg_scale = j->cfg_scale,
        .cfg_normalization = job->cfg_normalization,
        .cfg_truncation = job->cfg_truncation,
        .guidance_start = job->guidance_start,
        .guidance_end = job->guidance_end,
        .shift = j->shift,
        .shift_terminal = j->shift_terminal,
        .scheduler = j->scheduler,
        .precision = ct_precision_name(j->precision),
        .rng = job->noise_path ? "file" : "torch",
        .model_name = info->name,
        .model_hash = info->hash,
        .model_class = info->class_name,
        .lora = info->lora,
        .loras = info->loras,
        .dequantized = job->model->dequantized,
        .version = ct_version(),
        .cpu = job->model->context->gpu ? cuda_gpu_name(job->model->context->gpu)
                                        : job->model->context->kernels.name,
    };
    for (int i = 0; i < j->references; i++) {
        r.reference[i].name = job->reference[i].name;
        r.reference[i].hash = job->reference[i].hash;
    }
    image->recipe_json = recipe_json(job->allocator, &r);
    image->recipe_text = recipe_text(job->allocator, &r);
    if (!image->recipe_json || !image->recipe_text)
        return error_memory(error, 4096, "the recipe");
    return CT_OK;
}

ct_status ct_job_run(ct_job *job, uint64_t seed, ct_image **out, ct_error *error)
{
    if (!job || !out)
        return error_set(error, CT_EINVAL, "ct_job_run: an argument is NULL");
    *out = NULL;
    ct_status status =
        trace_open(&job->trace, job->allocator, job->trace_path, job->trace_modules, error);
    if (status != CT_OK)
        return status;
    nn_reset(job->network);
    job->began = clock_seconds();
    cuda_store_enter(job->model->gpu_weights);
    job_execute(job, job->network, seed);
    cuda_store_leave(job->model->gpu_weights);
    status = nn_status(job->network, error);
    ct_image *image = NULL;
    if (status == CT_OK)
        status = image_create(&image, job->model->context, job->info.picture_width,
                              job->info.picture_height, error);
    if (status == CT_OK) {
        image->seed = seed;
        finish_picture(job, image);
        status = nn_status(job->network, error);
    }
    if (status == CT_OK)
        status = add_recipe(job, image, error);
    if (status == CT_OK)
        status = trace_commit(&job->trace, error);
    if (status != CT_OK) {
        trace_abort(&job->trace);
        ct_image_free(&image);
        return status;
    }
    *out = image;
    return CT_OK;
}

ct_status ct_generate(ct_model *model, const ct_generate_params *params, ct_image **out,
                      ct_error *error)
{
    if (!out)
        return error_set(error, CT_EINVAL, "ct_generate: out is NULL");
    *out = NULL;
    ct_job *job = NULL;
    ct_status status = ct_job_create(model, params, &job, error);
    if (status == CT_OK)
        status = ct_job_run(job, job->seed, out, error);
    ct_job_free(&job);
    return status;
}
