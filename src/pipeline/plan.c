/* How much memory a job takes, and what of the weights stays in it.
 *
 * In every stage the process holds: what it held before (program, tokenizer, headers), the job's
 * buffers, the network's activations, and those weights that are not let go. The first is measured,
 * the others are known from a dry run. */
#include "core/mem.h"
#include "core/memory_info.h"
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
    job_execute(job, dry, 0);
    status = nn_status(dry, error);
    nn_free(dry);
    return status == CT_OK ? residency_finish(&job->residency, error) : status;
}

static bool is_weight(void *user, const void *address)
{
    const ct_model *m = user;
    size_t at;
    return weights_locate(m->text_encoder->weights, address, &at) ||
           weights_locate(m->transformer->weights, address, &at) ||
           weights_locate(m->vae->weights, address, &at);
}

static uint64_t process_bytes(const ct_job *job)
{
    uint64_t bytes = memory_resident(is_weight, job->model);
    if (bytes == 0)
        bytes = UNKNOWN_PROCESS_BYTES;
    return bytes + PROGRAM_BYTES +
           STACK_BYTES * (uint64_t)pool_threads(job->model->context->threads);
}

static void describe_stages(const ct_job *job, ct_memory_plan *plan)
{
    const residency_list *list = job->residency.list;
    const uint64_t features = (uint64_t)(job->positive.count + job->negative.count) *
                              (uint64_t)job->model->text_encoder->hidden * sizeof(float);
    const uint64_t pixels = (uint64_t)job->info.width * (uint64_t)job->info.height;
    const uint64_t latents = 3 * (uint64_t)job->latent_count * sizeof(float);
    static const residency_section sections[3][2] = {
        [CT_STAGE_ENCODE] = {SECTION_ENCODE, SECTION_ENCODE},
        [CT_STAGE_DENOISE] = {SECTION_PREPARE, SECTION_EVALUATE},
        [CT_STAGE_DECODE] = {SECTION_DECODE, SECTION_DECODE},
    };
    for (int i = 0; i < 3; i++) {
        ct_memory_stage *s = &plan->stage[i];
        const residency_section first = sections[i][0], last = sections[i][1];
        s->file_bytes = job->model->components[i].bytes;
        s->read_bytes = residency_read_bytes(&job->residency, first, last);
        if (s->read_bytes > s->file_bytes) /* whole pages */
            s->read_bytes = s->file_bytes;
        s->block_bytes = list[first].largest;
        if (list[last].largest > s->block_bytes)
            s->block_bytes = list[last].largest;
        s->blocks = list[last].count;
        s->activation_bytes = job->arena[i];
        s->buffer_bytes = features;
        if (i >= CT_STAGE_DENOISE)
            s->buffer_bytes += latents;
        if (i == CT_STAGE_DECODE) /* in float32, then in bytes */
            s->buffer_bytes += 3 * pixels * sizeof(float) + 3 * pixels;
    }
}

/* ---- Choosing -------------------------------------------------------------------------------- */

/* Sets the residency, and what it takes. */
static ct_memory_choice choose(ct_job *job, const ct_memory_plan *plan, int streamed)
{
    residency *r = &job->residency;
    ct_memory_choice c = {.streamed_blocks = streamed};
    residency_stream(r, SECTION_EVALUATE, streamed);
    uint64_t held[3] = {residency_bytes(r, SECTION_ENCODE), residency_bytes(r, SECTION_EVALUATE),
                        residency_bytes(r, SECTION_DECODE)};
    const uint64_t prepare = residency_bytes(r, SECTION_PREPARE);
    if (prepare > held[CT_STAGE_DENOISE])
        held[CT_STAGE_DENOISE] = prepare;
    for (int i = 0; i < 3; i++) {
        c.stage_bytes[i] = plan->process_bytes + plan->stage[i].activation_bytes +
                           plan->stage[i].buffer_bytes + held[i];
        if (c.stage_bytes[i] > c.peak_bytes)
            c.peak_bytes = c.stage_bytes[i];
    }
    c.fits = c.peak_bytes <= plan->limit_bytes;
    return c;
}

/* The fewest blocks with which the transformer fits, all of them where it does not. Other stages do
 * not depend on it. */
static ct_memory_choice choose_fitting(ct_job *job, const ct_memory_plan *plan)
{
    const int blocks = job->residency.list[SECTION_EVALUATE].count;
    int streamed = 0;
    ct_memory_choice c = choose(job, plan, streamed);
    while (c.stage_bytes[CT_STAGE_DENOISE] > plan->limit_bytes && streamed < blocks)
        c = choose(job, plan, ++streamed);
    return c;
}

/* ---- Refusing -------------------------------------------------------------------------------- */

/* Memory that cannot be let go and read again. */
static uint64_t least_working_bytes(const ct_memory_plan *plan)
{
    uint64_t most = 0;
    for (int i = 0; i < 3; i++) {
        uint64_t bytes = plan->stage[i].activation_bytes + plan->stage[i].buffer_bytes;
        if (bytes > most)
            most = bytes;
    }
    return plan->process_bytes + most;
}

/* The least memory that the same job takes at another size; 0 where that is not known. */
static uint64_t bytes_at_size(const ct_job *job, const ct_memory_plan *plan, int width, int height)
{
    ct_job trial = *job;
    ct_memory_plan trial_plan = *plan;
    residency_init(&trial.residency, job->allocator);
    memcpy(trial.residency.files, job->residency.files, sizeof trial.residency.files);
    job_set_size(&trial, width, height);
    uint64_t bytes = 0;
    if (plan_measure(&trial, NULL) == CT_OK) {
        describe_stages(&trial, &trial_plan);
        bytes =
            choose(&trial, &trial_plan, trial.residency.list[SECTION_EVALUATE].count).peak_bytes;
    }
    residency_free(&trial.residency);
    return bytes;
}

/* The largest size of about the same shape that fits, in steps of an eighth. */
static bool find_size(const ct_job *job, const ct_memory_plan *plan, int *width, int *height)
{
    const int multiple = job->model->info.size_multiple;
    for (int eighths = 7; eighths > 0; eighths--) {
        *width = job->info.width * eighths / 8 / multiple * multiple;
        *height = job->info.height * eighths / 8 / multiple * multiple;
        if (*width < multiple || *height < multiple)
            return false;
        uint64_t bytes = bytes_at_size(job, plan, *width, *height);
        if (bytes && bytes <= plan->limit_bytes)
            return true;
    }
    return false;
}

static const char *amount(char out[32], uint64_t bytes)
{
    const double mib = (double)bytes / (1 << 20);
    snprintf(out, 32, mib < 1000 ? "%.0f MiB" : "%.2f GiB", mib < 1000 ? ceil(mib) : mib / 1024);
    return out;
}

static ct_status refuse(const ct_job *job, const ct_memory_plan *plan, uint64_t needed,
                        ct_error *error)
{
    char advice[128], need[32], more[32], limit[32];
    int width, height;
    if (find_size(job, plan, &width, &height))
        snprintf(advice, sizeof advice, "choose a smaller size (%d x %d fits)", width, height);
    else
        snprintf(advice, sizeof advice,
                 "no smaller size fits; use a model with quantized weights, or fewer threads");
    return error_set(
        error, CT_ENOMEM,
        "a picture of %d x %d needs %s of memory at the least, with weights that come and "
        "go block by block; that is %s more than the %s %s; %s",
        job->info.width, job->info.height, amount(need, needed),
        amount(more, needed - plan->limit_bytes), amount(limit, plan->limit_bytes),
        job->max_memory ? "of the limit" : "that are available", advice);
}

/* ---- The plan -------------------------------------------------------------------------------- */

ct_status plan_memory(ct_job *job, ct_memory_plan *plan, ct_error *error)
{
    ct_memory_plan_init(plan);
    ct_status status = plan_measure(job, error);
    if (status != CT_OK)
        return status;
    ct_job_info *info = &job->info;
    plan->width = info->width;
    plan->height = info->height;
    plan->steps = info->steps;
    plan->precision = info->precision;
    plan->prompt_tokens =
        info->prompt_tokens > info->negative_tokens ? info->prompt_tokens : info->negative_tokens;
    plan->prompt_assumed = !job->positive.text;
    plan->process_bytes = process_bytes(job);
    plan->available_bytes = memory_available();
    /* The process has its own part already. */
    if (plan->available_bytes < UINT64_MAX - plan->process_bytes)
        plan->available_bytes += plan->process_bytes;
    plan->limit_bytes = job->max_memory ? job->max_memory : plan->available_bytes;
    describe_stages(job, plan);
    plan->resident = choose(job, plan, 0);
    plan->streamed = choose(job, plan, plan->stage[CT_STAGE_DENOISE].blocks);
    plan->chosen = choose_fitting(job, plan);

    info->activation_bytes = 0;
    for (int i = 0; i < 3; i++) {
        uint64_t bytes = plan->stage[i].activation_bytes + plan->stage[i].buffer_bytes;
        if (bytes > info->activation_bytes)
            info->activation_bytes = bytes;
    }
    info->peak_bytes = plan->chosen.peak_bytes;
    info->streamed_blocks = plan->chosen.streamed_blocks;
    info->blocks = plan->stage[CT_STAGE_DENOISE].blocks;
    if (plan->chosen.fits)
        return CT_OK;
    if (job->max_memory)
        return refuse(job, plan, plan->chosen.peak_bytes, error);
    /* Nobody set a limit, and weights are only borrowed: it will be slow, but it will work. */
    const uint64_t working = least_working_bytes(plan);
    if (working > plan->limit_bytes)
        return refuse(job, plan, working, error);
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
