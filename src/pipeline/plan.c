/* How much memory a job takes, and what of the weights stays in it.
 *
 * In every stage the process holds: what it held before (program, tokenizer, headers), the job's
 * buffers, the network's activations, and those weights that are not let go. The first is measured,
 * the others are known from a dry run. */
#include "core/mem.h"
#include "core/memory_info.h"
#include "pipeline/cache.h"
#include "pipeline/job.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What running adds to the program itself: code that was not touched before, the system's buffers
 * and libraries' memory; and the stack of a thread. Measured: docs/memory.md. */
#define PROGRAM_BYTES ((uint64_t)384 << 10)
#define STACK_BYTES ((uint64_t)32 << 10)
/* The same all at once, where the process cannot be measured. */
#define UNKNOWN_PROCESS_BYTES ((uint64_t)24 << 20)

/* ---- Measuring ------------------------------------------------------------------------------- */

ct_status plan_measure(ct_job *job, ct_error *error)
{
    nn_params params = job_network(job);
    params.dry = true;
    params.cancel = NULL;
    nn *dry = NULL;
    ct_status status = nn_create(&dry, &params, error);
    if (status != CT_OK)
        return status;
    if (job->schedule_gpu)
        cuda_schedule_clear(job->schedule_gpu);
    job_execute(job, dry, 0);
    status = nn_status(dry, error);
    nn_free(dry);
    if (status == CT_OK && job->schedule_gpu)
        status = cuda_schedule_finish(job->schedule_gpu, error);
    return status == CT_OK ? residency_finish(&job->residency, error) : status;
}

static bool is_weight(void *user, const void *address)
{
    const ct_model *m = user;
    size_t at;
    for (int i = 0; i < PART_COUNT; i++)
        if (weights_locate(m->parts.weights[i], address, &at))
            return true;
    return false;
}

static uint64_t process_bytes(const ct_job *job)
{
    uint64_t bytes = memory_resident(is_weight, job->model);
    if (bytes == 0)
        bytes = UNKNOWN_PROCESS_BYTES + (job->model->plan_only ? 0 : job->model->merged_bytes);
    if (job->model->plan_only)
        bytes += job->model->merged_bytes; /* has nothing in it yet */
    return bytes + PROGRAM_BYTES +
           STACK_BYTES * (uint64_t)pool_threads(job->model->context->threads);
}

static void describe_stages(const ct_job *job, ct_memory_plan *plan)
{
    const residency_list *list = job->residency.list;
    const uint64_t features = (uint64_t)(job_feature_count(job, &job->positive) +
                                         job_feature_count(job, &job->negative)) *
                              (uint64_t)job->model->parts.feature_width * sizeof(float);
    const uint64_t pixels = (uint64_t)job->info.width * (uint64_t)job->info.height;
    const uint64_t references = references_bytes(job);
    const uint64_t latents = 2 * (uint64_t)job->latent_count * sizeof(float);
    static const residency_section sections[3][2] = {
        [CT_STAGE_ENCODE] = {SECTION_ENCODE, SECTION_REFERENCES},
        [CT_STAGE_DENOISE] = {SECTION_SCHEDULE, SECTION_EVALUATE},
        [CT_STAGE_DECODE] = {SECTION_DECODE, SECTION_DECODE},
    };
    for (int i = 0; i < 3; i++) {
        ct_memory_stage *s = &plan->stage[i];
        residency_section first = sections[i][0], last = sections[i][1];
        if (list[last].count == 0)
            last = first; /* no references */
        if (i == CT_STAGE_ENCODE && list[SECTION_SEE].count)
            first = SECTION_SEE;
        s->file_bytes = job->model->components[i].bytes;
        if (last == SECTION_REFERENCES)
            s->file_bytes += job->model->components[PART_VAE].bytes;
        s->read_bytes = residency_read_bytes(&job->residency, first, last);
        if (s->read_bytes > s->file_bytes) /* whole pages */
            s->read_bytes = s->file_bytes;
        s->block_bytes = list[first].largest;
        for (int k = (int)first; k <= (int)last; k++)
            if (list[k].largest > s->block_bytes)
                s->block_bytes = list[k].largest;
        s->blocks = list[i == CT_STAGE_ENCODE ? SECTION_ENCODE : last].count;
        s->activation_bytes = job->arena[i];
        s->buffer_bytes = features + references + cache_stage_bytes(job, (ct_stage)i);
        if (i == CT_STAGE_ENCODE)
            s->buffer_bytes += references_encoding_bytes(job);
        if (i >= CT_STAGE_DENOISE)
            s->buffer_bytes += latents;
        if (i == CT_STAGE_DECODE) /* in float32, then in bytes */
            s->buffer_bytes += 3 * pixels * sizeof(float) + 3 * pixels;
    }
}

/* ---- The VAE in strips ----------------------------------------------------------------------- */

/* Rows of latents in the highest strips that are considered; then half of that, and so on. The time
 * hardly depends on the height (docs/memory.md), the memory does. */
#define HIGHEST_STRIP 128

ct_status plan_decode_ways(const ct_job *job, decode_ways *ways, ct_error *error)
{
    nn_params params = job_network(job);
    params.trace = NULL;
    params.residency = NULL; /* has recorded already, and the weights are the same */
    params.cancel = NULL;
    params.gpu_schedule = NULL;
    params.precision = job_decode_precision(job);
    const family_model *parts = &job->model->parts;
    vae_decoding d = job_decoding(job);
    ways->count = 1;
    ways->way[0].strip_rows = 0;
    ways->way[0].bytes = job->arena[CT_STAGE_DECODE];
    for (d.strip_rows = HIGHEST_STRIP; d.strip_rows > 0; d.strip_rows /= 2) {
        size_t bytes;
        ct_status status = parts->family->decode_peak(parts, &d, &params, &bytes, error);
        if (status != CT_OK)
            return status;
        if (bytes >= ways->way[ways->count - 1].bytes)
            continue;
        ways->way[ways->count].strip_rows = d.strip_rows;
        ways->way[ways->count++].bytes = bytes;
    }
    return CT_OK;
}

/* ---- Choosing -------------------------------------------------------------------------------- */

/* A plan in the making. */
typedef struct planning {
    ct_job *job;
    ct_memory_plan *plan;
    decode_ways ways;
} planning;

static ct_status measure(planning *p, ct_error *error)
{
    p->job->strip_rows = 0;
    ct_status status = plan_measure(p->job, error);
    /* With a GPU activations are there: plan_gpu.c. */
    p->ways = (decode_ways){1, {{0, p->job->arena[CT_STAGE_DECODE]}}};
    if (status == CT_OK && !p->job->model->context->gpu)
        status = plan_decode_ways(p->job, &p->ways, error);
    if (status == CT_OK)
        describe_stages(p->job, p->plan);
    return status;
}

/* Memory of a stage that is not weights. */
static uint64_t working_bytes(const planning *p, int stage, int way)
{
    const ct_memory_stage *s = &p->plan->stage[stage];
    if (p->job->model->context->gpu) /* activations are there */
        return s->buffer_bytes + (stage == CT_STAGE_DENOISE ? p->plan->gpu.chosen.host_bytes : 0);
    return s->buffer_bytes +
           (stage == CT_STAGE_DECODE ? p->ways.way[way].bytes : s->activation_bytes);
}

/* Sets what the job does, and says what it takes. */
static ct_memory_choice choose(planning *p, int streamed, int way)
{
    residency *r = &p->job->residency;
    p->job->strip_rows = p->ways.way[way].strip_rows;
    p->job->arena[CT_STAGE_DECODE] = p->ways.way[way].bytes;
    ct_memory_choice c = {.streamed_blocks = streamed,
                          .strip_height = p->job->strip_rows * p->job->model->parts.factor};
    residency_stream(r, SECTION_EVALUATE, streamed);
    uint64_t held[3] = {residency_bytes(r, SECTION_ENCODE), residency_bytes(r, SECTION_EVALUATE),
                        residency_bytes(r, SECTION_DECODE)};
    const uint64_t schedule = residency_bytes(r, SECTION_SCHEDULE);
    const uint64_t prepare = residency_bytes(r, SECTION_PREPARE);
    const uint64_t references = residency_bytes(r, SECTION_REFERENCES);
    const uint64_t see = residency_bytes(r, SECTION_SEE);
    if (references > held[CT_STAGE_ENCODE])
        held[CT_STAGE_ENCODE] = references;
    if (see > held[CT_STAGE_ENCODE])
        held[CT_STAGE_ENCODE] = see;
    if (schedule > held[CT_STAGE_DENOISE])
        held[CT_STAGE_DENOISE] = schedule;
    if (prepare > held[CT_STAGE_DENOISE])
        held[CT_STAGE_DENOISE] = prepare;
    for (int i = 0; i < 3; i++) {
        c.stage_bytes[i] = p->plan->process_bytes + working_bytes(p, i, way) + held[i];
        if (c.stage_bytes[i] > c.peak_bytes)
            c.peak_bytes = c.stage_bytes[i];
    }
    c.fits = c.peak_bytes <= p->plan->limit_bytes;
    return c;
}

/* The least memory. */
static ct_memory_choice choose_least(planning *p)
{
    return choose(p, p->plan->stage[CT_STAGE_DENOISE].blocks, p->ways.count - 1);
}

/* Stages do not overlap, so each gives away as little as its own memory demands: the transformer
 * streams the fewest blocks, the VAE decodes in the highest strips; or all blocks and the lowest
 * strips, where nothing else fits. */
static ct_memory_choice choose_fitting(planning *p)
{
    const uint64_t limit = p->plan->limit_bytes;
    const int blocks = p->plan->stage[CT_STAGE_DENOISE].blocks;
    /* What a GPU has read is not needed any more. */
    int streamed = p->job->model->context->gpu ? blocks : 0, way = 0;
    ct_memory_choice c = choose(p, streamed, way);
    while (c.stage_bytes[CT_STAGE_DENOISE] > limit && streamed < blocks)
        c = choose(p, ++streamed, way);
    while (c.stage_bytes[CT_STAGE_DECODE] > limit && way + 1 < p->ways.count)
        c = choose(p, streamed, ++way);
    return c;
}

/* ---- Refusing -------------------------------------------------------------------------------- */

/* Memory that cannot be let go and read again. */
static uint64_t least_working_bytes(const planning *p)
{
    uint64_t most = 0;
    for (int i = 0; i < 3; i++) {
        const uint64_t bytes = working_bytes(p, i, p->ways.count - 1);
        if (bytes > most)
            most = bytes;
    }
    return p->plan->process_bytes + most;
}

/* The least memory that the same job takes at another size; 0 where that is not known. */
static uint64_t bytes_at_size(const planning *p, int width, int height)
{
    ct_job job = *p->job;
    ct_memory_plan plan = *p->plan;
    planning trial = {.job = &job, .plan = &plan};
    residency_init(&job.residency, job.allocator);
    job.schedule_gpu = NULL;
    memcpy(job.residency.files, p->job->residency.files, sizeof job.residency.files);
    job_set_size(&job, width, height);
    uint64_t bytes = 0;
    if (measure(&trial, NULL) == CT_OK)
        bytes = choose_least(&trial).peak_bytes;
    residency_free(&job.residency);
    return bytes;
}

/* The largest size of about the same shape that fits, in steps of an eighth, for the plan. */
static bool find_size(planning *p)
{
    const int multiple = p->job->model->info.size_multiple;
    for (int eighths = 7; eighths > 0; eighths--) {
        const int width = p->job->info.width * eighths / 8 / multiple * multiple;
        const int height = p->job->info.height * eighths / 8 / multiple * multiple;
        if (width < multiple || height < multiple)
            return false;
        const uint64_t bytes = bytes_at_size(p, width, height);
        if (bytes && bytes <= p->plan->limit_bytes) {
            p->plan->smaller_width = width;
            p->plan->smaller_height = height;
            return true;
        }
    }
    return false;
}

static const char *amount(char out[32], uint64_t bytes)
{
    const double mib = (double)bytes / (1 << 20);
    snprintf(out, 32, mib < 1000 ? "%.0f MiB" : "%.2f GiB", mib < 1000 ? ceil(mib) : mib / 1024);
    return out;
}

static ct_status refuse(planning *p, uint64_t needed, ct_error *error)
{
    const ct_memory_plan *plan = p->plan;
    char advice[128], need[32], more[32], limit[32];
    if (find_size(p))
        snprintf(advice, sizeof advice, "choose a smaller size (%d x %d fits)", plan->smaller_width,
                 plan->smaller_height);
    else if (p->job->model->info.loras)
        snprintf(advice, sizeof advice,
                 "write the LoRAs into a model with \"calotype quantize --lora\": its weights can "
                 "come and go");
    else
        snprintf(advice, sizeof advice,
                 "no smaller size fits; use a model with quantized weights, or fewer threads%s",
                 p->job->references ? ", or fewer or smaller reference pictures" : "");
    return error_set(error, CT_ENOMEM,
                     "a picture of %d x %d needs %s of memory at the least, with weights that come "
                     "and go block by block%s; that is %s more than the %s %s; %s",
                     plan->width, plan->height, amount(need, needed),
                     plan->strips.strip_height ? " and the VAE in strips" : "",
                     amount(more, needed - plan->limit_bytes), amount(limit, plan->limit_bytes),
                     p->job->max_memory ? "of the limit" : "that are available", advice);
}

/* ---- The plan -------------------------------------------------------------------------------- */

static void describe_job(const ct_job *job, ct_memory_plan *plan)
{
    const ct_job_info *info = &job->info;
    plan->width = info->width;
    plan->height = info->height;
    plan->steps = info->steps;
    plan->evaluations = info->evaluations;
    plan->cfg_batch = job->cfg_batch;
    plan->precision = info->precision;
    plan->prompt_tokens =
        info->prompt_tokens > info->negative_tokens ? info->prompt_tokens : info->negative_tokens;
    plan->prompt_assumed = !job->positive.text;
    plan->process_bytes = process_bytes(job);
    plan->merged_bytes = job->model->merged_bytes;
    plan->available_bytes = memory_available();
    /* The process has its own part already. */
    if (plan->available_bytes < UINT64_MAX - plan->process_bytes)
        plan->available_bytes += plan->process_bytes;
    plan->limit_bytes = job->max_memory ? job->max_memory : plan->available_bytes;
}

/* What the job says about the choice. */
static void note_choice(ct_job *job, const ct_memory_plan *plan)
{
    ct_job_info *info = &job->info;
    info->activation_bytes = 0;
    for (int i = 0; i < 3; i++) {
        const uint64_t bytes = job->arena[i] + plan->stage[i].buffer_bytes;
        if (bytes > info->activation_bytes)
            info->activation_bytes = bytes;
    }
    info->cfg_batch = job->cfg_batch;
    info->peak_bytes = plan->chosen.peak_bytes;
    info->streamed_blocks = plan->chosen.streamed_blocks;
    info->strip_height = plan->chosen.strip_height;
    info->blocks = plan->stage[CT_STAGE_DENOISE].blocks;
}

/* Chooses among the ways to keep weights, with both prompts in one pass or not. */
static ct_status choose_way(planning *p, bool together, ct_error *error)
{
    ct_job *job = p->job;
    ct_memory_plan *plan = p->plan;
    ct_memory_plan_init(plan);
    job->cfg_batch = together;
    ct_status status = measure(p, error);
    if (status != CT_OK)
        return status;
    describe_job(job, plan);
    status = plan_gpu(job, plan, error);
    if (status != CT_OK)
        return status;
    plan->resident = choose(p, 0, 0);
    plan->streamed = choose(p, plan->stage[CT_STAGE_DENOISE].blocks, 0);
    plan->strips = choose_least(p);
    plan->chosen = choose_fitting(p); /* the last word, so that the job keeps to it */
    if (!plan->chosen.fits && plan->gpu.chosen.host_bytes) {
        /* No room to keep streamed blocks: they are read from their files every time. */
        plan->gpu.chosen.host_bytes = 0;
        plan->chosen = choose_fitting(p);
    }
    note_choice(job, plan);
    plan_gpu_apply(job, plan);
    return CT_OK;
}

/* ---- Both prompts in one pass ---------------------------------------------------------------- */

/* Tokens of the pictures in a sequence up to which a GPU gains by twice as many rows: 1024 x 1024,
 * where an H200 gains 1 to 2 %; at 512 x 512 it gains 4 to 6 %. */
#define SHORT_TOKENS 4096

/* Whether one pass is faster where all weights stay. On the CPU it is: the same products, and
 * weights are read and unpacked once. A GPU that is busy with one prompt alone gains nothing. */
static bool batch_is_faster(const ct_job *job)
{
    const family_model *m = &job->model->parts;
    const int64_t side = (int64_t)m->factor * m->patch;
    int64_t pixels = (int64_t)job->info.width * job->info.height;
    for (int i = 0; i < job->references; i++)
        pixels += (int64_t)job->reference[i].width * job->reference[i].height;
    return !job->model->context->gpu || pixels <= SHORT_TOKENS * side * side;
}

/* How often a block comes while a picture is made; UINT64_MAX: it does not fit. */
static uint64_t loads(const planning *p)
{
    const ct_memory_plan *plan = p->plan;
    const uint64_t passes = (uint64_t)job_passes(p->job);
    if (!plan->chosen.fits || (plan->gpu.total_bytes && !plan->gpu.chosen.fits))
        return UINT64_MAX;
    if (!plan->gpu.total_bytes)
        return passes * (uint64_t)plan->chosen.streamed_blocks;
    /* To take turns is less than to stream. */
    return (uint64_t)plan->gpu.chosen.way + passes * (uint64_t)plan->gpu.chosen.streamed_blocks;
}

/* One pass takes more memory for activations, so that fewer weights may stay, but each comes once
 * for both prompts: what loads less is chosen. */
static ct_status choose_batch(planning *p, ct_error *error)
{
    const bool faster = batch_is_faster(p->job);
    ct_status status = choose_way(p, faster, error);
    const uint64_t first = status == CT_OK ? loads(p) : 0;
    if (first == 0)
        return status;
    status = choose_way(p, !faster, error);
    const uint64_t second = status == CT_OK ? loads(p) : 0;
    const uint64_t on = faster ? first : second, off = faster ? second : first;
    const bool together = on < off || (on == off && faster && on < UINT64_MAX);
    if (status == CT_OK && together != p->job->cfg_batch)
        status = choose_way(p, together, error);
    return status;
}

/* ---- All of it ------------------------------------------------------------------------------- */

ct_status plan_memory(ct_job *job, ct_memory_plan *plan, ct_error *error)
{
    planning p = {.job = job, .plan = plan};
    const bool chosen = !job->guides || job->cfg_batch_wanted != CT_CFG_BATCH_AUTO;
    ct_status status =
        chosen ? choose_way(&p, job->guides && job->cfg_batch_wanted == CT_CFG_BATCH_ON, error)
               : choose_batch(&p, error);
    if (status != CT_OK)
        return status;
    if (plan->gpu.total_bytes && !plan->gpu.chosen.fits)
        return plan_gpu_refuse(job, plan, error);
    if (plan->chosen.fits)
        return CT_OK;
    if (job->max_memory)
        return refuse(&p, plan->chosen.peak_bytes, error);
    /* Nobody set a limit, and weights are only borrowed: it will be slow, but it will work. */
    const uint64_t working = least_working_bytes(&p);
    if (working > plan->limit_bytes)
        return refuse(&p, working, error);
    plan->chosen.fits = true;
    return CT_OK;
}

void ct_memory_plan_init(ct_memory_plan *plan)
{
    *plan = (ct_memory_plan){.struct_size = sizeof *plan};
}

ct_status ct_model_plan(ct_model *model, const ct_generate_params *params, ct_memory_plan *plan,
                        ct_error *error)
{
    if (!model || !params || !plan)
        return error_set(error, CT_EINVAL, "ct_model_plan: an argument is NULL");
    if (params->struct_size != sizeof *params)
        return error_set(error, CT_EINVAL, "ct_model_plan: call ct_generate_params_init first");
    if (plan->struct_size != sizeof *plan)
        return error_set(error, CT_EINVAL, "ct_model_plan: call ct_memory_plan_init first");
    ct_job *job = NULL;
    ct_status status = job_open(&job, model, params, true, error);
    if (status == CT_OK)
        status = plan_memory(job, plan, error);
    if (status == CT_ENOMEM && plan->chosen.peak_bytes)
        status = CT_OK; /* would be refused, which the plan says */
    ct_job_free(&job);
    return status;
}
