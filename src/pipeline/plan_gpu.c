/* How much memory of the GPU a job takes, and what of the weights stays there.
 *
 * A dry run has told which weights each section of the job needs, and in which form. What the job
 * takes is the sum of: the weights that stay, the buffers of those that come and go, activations,
 * and what the device has besides. The first way that fits is taken; each needs less than those
 * before. */
#include "pipeline/job.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Left free where nobody says how much may be taken: code that the driver loads when it is first
 * used. */
#define RESERVE_BYTES ((uint64_t)256 << 20)

#define BIT(section) (1u << (section))

static const ct_stage stage_of[SECTION_COUNT] = {
    [SECTION_ENCODE] = CT_STAGE_ENCODE,    [SECTION_REFERENCES] = CT_STAGE_ENCODE,
    [SECTION_SCHEDULE] = CT_STAGE_DENOISE, [SECTION_PREPARE] = CT_STAGE_DENOISE,
    [SECTION_EVALUATE] = CT_STAGE_DENOISE, [SECTION_DECODE] = CT_STAGE_DECODE,
};

/* Whose weights stay when a section begins. */
static unsigned keeps(ct_gpu_way way, residency_section section)
{
    unsigned bits = 0;
    const ct_stage stage = stage_of[section];
    for (int i = 0; i < SECTION_COUNT; i++) {
        bool stays = i == (int)section || way == CT_GPU_ALL;
        if (way == CT_GPU_TWO)
            stays = (stage == CT_STAGE_ENCODE) == (stage_of[i] == CT_STAGE_ENCODE);
        /* Modulation, a third of Qwen-Image, has a turn of its own: the steps need its table. */
        if (way == CT_GPU_TURNS && stage == CT_STAGE_DENOISE)
            stays = stage_of[i] == CT_STAGE_DENOISE &&
                    (i == SECTION_SCHEDULE) == (section == SECTION_SCHEDULE);
        bits |= stays ? BIT(i) : 0;
    }
    return bits;
}

typedef struct planning {
    ct_job *job;
    ct_gpu_plan *plan;
    decode_ways ways;
} planning;

/* A way, and what it leaves open. */
typedef struct choice {
    ct_gpu_way way;
    int streamed[SECTION_COUNT]; /* blocks */
    int strips;                  /* of the ways to decode */
} choice;

/* ---- Choosing -------------------------------------------------------------------------------- */

static uint64_t section_bytes(const planning *p, const choice *c, residency_section section)
{
    const ct_job *job = p->job;
    size_t arena[3];
    memcpy(arena, job->arena, sizeof arena);
    arena[CT_STAGE_DECODE] = p->ways.way[c->strips].bytes;
    size_t most = arena[stage_of[section]];
    for (int i = 0; i < 3 && c->way < CT_GPU_TURNS; i++) /* one for all */
        most = arena[i] > most ? arena[i] : most;
    return p->plan->fixed_bytes + cuda_gpu_cost(most) +
           cuda_schedule_bytes(job->schedule_gpu, keeps(c->way, section)) +
           cuda_schedule_buffers(job->schedule_gpu, (int)section);
}

/* Sets what the job does, and says what it takes. */
static ct_gpu_choice choose(planning *p, const choice *c)
{
    ct_job *job = p->job;
    cuda_schedule *schedule = job->schedule_gpu;
    ct_gpu_choice out = {.way = c->way,
                         .encoder_blocks = c->streamed[SECTION_ENCODE],
                         .streamed_blocks = c->streamed[SECTION_EVALUATE],
                         .strip_height =
                             p->ways.way[c->strips].strip_rows * job->model->parts.factor};
    job->gpu_decode_bytes = p->ways.way[c->strips].bytes;
    for (int i = 0; i < SECTION_COUNT; i++)
        cuda_schedule_stream(schedule, i, c->streamed[i]);
    for (int i = 0; i < SECTION_COUNT; i++) {
        const uint64_t bytes = section_bytes(p, c, (residency_section)i);
        const bool runs = i != SECTION_REFERENCES || job->references;
        if (runs && bytes > out.stage_bytes[stage_of[i]])
            out.stage_bytes[stage_of[i]] = bytes;
        cuda_schedule_keep(schedule, i, keeps(c->way, (residency_section)i));
    }
    for (int i = 0; i < 3; i++)
        if (out.stage_bytes[i] > out.peak_bytes)
            out.peak_bytes = out.stage_bytes[i];
    if (job_passes(job) > 1)
        out.host_bytes = cuda_schedule_streamed(schedule, SECTION_EVALUATE);
    out.fits = out.peak_bytes <= p->plan->limit_bytes;
    return out;
}

static bool is_streamed(int section)
{
    return section == SECTION_ENCODE || section == SECTION_SCHEDULE || section == SECTION_PREPARE ||
           section == SECTION_EVALUATE;
}

/* The least memory. */
static ct_gpu_choice choose_least(planning *p)
{
    choice c = {.way = CT_GPU_STREAMED, .strips = p->ways.count - 1};
    for (int i = 0; i < SECTION_COUNT; i++)
        if (is_streamed(i))
            c.streamed[i] = cuda_schedule_blocks(p->job->schedule_gpu, i);
    return choose(p, &c);
}

/* The fewest blocks that must be streamed so that a section fits; all where it never does. */
static void stream_section(planning *p, choice *c, int section)
{
    const int blocks = cuda_schedule_blocks(p->job->schedule_gpu, section);
    while (c->streamed[section] < blocks &&
           section_bytes(p, c, (residency_section)section) > p->plan->limit_bytes)
        cuda_schedule_stream(p->job->schedule_gpu, section, ++c->streamed[section]);
}

static ct_gpu_choice choose_fitting(planning *p)
{
    choice c = {.way = CT_GPU_ALL};
    for (; c.way < CT_GPU_STREAMED; c.way++) {
        const ct_gpu_choice out = choose(p, &c);
        if (!out.fits)
            continue;
        /* Copies that other jobs of the model have made may stay, too. */
        if (c.way == CT_GPU_ALL &&
            out.peak_bytes + cuda_store_bytes(p->job->model->gpu_weights) <= p->plan->limit_bytes)
            for (int i = 0; i < SECTION_COUNT; i++)
                cuda_schedule_keep(p->job->schedule_gpu, i, UINT_MAX);
        return out;
    }
    choose(p, &c); /* with nothing streamed */
    for (int i = 0; i < SECTION_COUNT; i++)
        if (is_streamed(i))
            stream_section(p, &c, i);
    while (c.strips + 1 < p->ways.count &&
           section_bytes(p, &c, SECTION_DECODE) > p->plan->limit_bytes)
        c.strips++;
    return choose(p, &c);
}

/* ---- Measuring ------------------------------------------------------------------------------- */

static ct_status find_limit(const ct_job *job, ct_gpu_plan *plan, ct_error *error)
{
    size_t free_bytes = 0, total = 0;
    ct_status status = cuda_gpu_memory(job->model->context->gpu, &free_bytes, &total, error);
    if (status != CT_OK)
        return status;
    plan->total_bytes = total;
    plan->available_bytes =
        free_bytes + cuda_store_bytes(job->model->gpu_weights) + nn_arena_bytes(job->network);
    plan->limit_bytes =
        plan->available_bytes > RESERVE_BYTES ? plan->available_bytes - RESERVE_BYTES : 0;
    if (job->max_vram && job->max_vram < plan->available_bytes)
        plan->limit_bytes = job->max_vram;
    return CT_OK;
}

static void describe(const ct_job *job, ct_gpu_plan *plan)
{
    const cuda_schedule *schedule = job->schedule_gpu;
    static const residency_section counted[3] = {SECTION_ENCODE, SECTION_EVALUATE, SECTION_DECODE};
    plan->fixed_bytes =
        cuda_gpu_fixed_bytes(job->model->context->gpu) + cuda_schedule_temporary(schedule);
    for (int i = 0; i < 3; i++) {
        ct_gpu_stage *s = &plan->stage[i];
        unsigned bits = 0;
        for (int k = 0; k < SECTION_COUNT; k++) {
            const uint64_t largest = cuda_schedule_largest(schedule, k);
            if ((int)stage_of[k] != i)
                continue;
            bits |= BIT(k);
            s->block_bytes = largest > s->block_bytes ? largest : s->block_bytes;
        }
        s->weight_bytes = cuda_schedule_bytes(schedule, bits);
        s->blocks = cuda_schedule_blocks(schedule, (int)counted[i]);
        s->activation_bytes = job->arena[i];
    }
}

static ct_status measure(planning *p, ct_error *error)
{
    p->job->strip_rows = 0;
    ct_status status = plan_decode_ways(p->job, &p->ways, error);
    if (status == CT_OK)
        describe(p->job, p->plan);
    return status;
}

ct_status plan_gpu(ct_job *job, ct_memory_plan *plan, ct_error *error)
{
    planning p = {.job = job, .plan = &plan->gpu};
    if (!job->schedule_gpu)
        return CT_OK;
    ct_status status = find_limit(job, &plan->gpu, error);
    if (status == CT_OK)
        status = measure(&p, error);
    if (status != CT_OK)
        return status;
    for (int i = CT_GPU_ALL; i < CT_GPU_STREAMED; i++)
        plan->gpu.way[i] = choose(&p, &(choice){.way = (ct_gpu_way)i});
    plan->gpu.way[CT_GPU_STREAMED] = choose_least(&p);
    plan->gpu.chosen = choose_fitting(&p); /* the last word, so that the job keeps to it */
    return CT_OK;
}

void plan_gpu_apply(ct_job *job, const ct_memory_plan *plan)
{
    const ct_gpu_choice *c = &plan->gpu.chosen;
    if (!job->schedule_gpu)
        return;
    job->gpu_way = c->way;
    job->strip_rows = c->strip_height / job->model->parts.factor;
    job->arena[CT_STAGE_DECODE] = job->gpu_decode_bytes;
    job->info.strip_height = c->strip_height;
    job->info.gpu_peak_bytes = c->peak_bytes;
    job->info.streamed_blocks = c->streamed_blocks;
    job->info.blocks = plan->gpu.stage[CT_STAGE_DENOISE].blocks;
    cuda_schedule_set(job->schedule_gpu, c->way >= CT_GPU_TURNS,
                      c->host_bytes ? SECTION_EVALUATE : -1);
}

/* ---- Refusing -------------------------------------------------------------------------------- */

/* The least memory that the same job takes at another size; 0 where that is not known. */
static uint64_t bytes_at_size(const ct_job *original, const ct_gpu_plan *limits, int width,
                              int height)
{
    ct_job job = *original;
    ct_gpu_plan plan = *limits;
    planning trial = {.job = &job, .plan = &plan};
    residency_init(&job.residency, job.allocator);
    memcpy(job.residency.files, original->residency.files, sizeof job.residency.files);
    job_set_size(&job, width, height);
    uint64_t bytes = 0;
    memset(plan.stage, 0, sizeof plan.stage);
    if (cuda_schedule_create(&job.schedule_gpu, job.allocator, NULL) == CT_OK &&
        plan_measure(&job, NULL) == CT_OK && measure(&trial, NULL) == CT_OK)
        bytes = choose_least(&trial).peak_bytes;
    cuda_schedule_free(job.schedule_gpu);
    residency_free(&job.residency);
    return bytes;
}

/* The largest size of about the same shape that fits, in steps of an eighth, for the plan. */
static bool find_size(const ct_job *job, ct_memory_plan *plan)
{
    const int multiple = job->model->info.size_multiple;
    for (int eighths = 7; eighths > 0; eighths--) {
        const int width = job->info.width * eighths / 8 / multiple * multiple;
        const int height = job->info.height * eighths / 8 / multiple * multiple;
        if (width < multiple || height < multiple)
            return false;
        const uint64_t bytes = bytes_at_size(job, &plan->gpu, width, height);
        if (bytes && bytes <= plan->gpu.limit_bytes) {
            plan->smaller_width = width;
            plan->smaller_height = height;
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

ct_status plan_gpu_refuse(ct_job *job, ct_memory_plan *plan, ct_error *error)
{
    const ct_gpu_choice *c = &plan->gpu.chosen;
    const bool long_numbers =
        job->info.precision == CT_PRECISION_FP32 || job->info.precision == CT_PRECISION_BF16;
    char size[64] = "no smaller size fits; choose", need[32], more[32], limit[32];
    if (find_size(job, plan))
        snprintf(size, sizeof size, "choose a smaller size (%d x %d fits),", plan->smaller_width,
                 plan->smaller_height);
    return error_set(
        error, CT_ENOMEM,
        "a picture of %d x %d needs %s of the GPU's memory at the least, with weights "
        "that come and go block by block%s; that is %s more than the %s %s; %s "
        "%sa model with quantized weights, or --device cpu",
        plan->width, plan->height, amount(need, c->peak_bytes),
        c->strip_height ? " and the VAE in strips" : "",
        amount(more, c->peak_bytes - plan->gpu.limit_bytes), amount(limit, plan->gpu.limit_bytes),
        job->max_vram && job->max_vram == plan->gpu.limit_bytes ? "of the limit" : "that are free",
        size, long_numbers ? "--precision fp8, " : "");
}
