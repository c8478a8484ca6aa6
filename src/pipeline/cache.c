#include "pipeline/cache.h"

#include "pipeline/job.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

/* To be changed with every change of a network, a kernel or a precision that changes results: what
 * was kept before is then not found. */
#define RESULTS "calotype results 1"

/* ---- Names ----------------------------------------------------------------------------------- */

static void add_text(fingerprint *f, const char *text)
{
    fingerprint_add(f, text, strlen(text) + 1);
}

static void add_number(fingerprint *f, int64_t number)
{
    fingerprint_add(f, &number, sizeof number);
}

/* What all results of a part depend on. Processors and GPUs differ in the last digits. */
static void begin_name(fingerprint *f, const ct_job *job, const char *kind, int part, int precision)
{
    const ct_context *context = job->model->context;
    const family_model *m = &job->model->parts;
    fingerprint_begin(f);
    add_text(f, RESULTS);
    add_text(f, ct_version());
    add_text(f, kind);
    add_text(f, context->gpu ? cuda_gpu_name(context->gpu) : "cpu");
    add_text(f, context->gpu ? cuda_gpu_libraries(context->gpu) : context->kernels.name);
    add_text(f, m->family->name);
    add_text(f, m->pipeline);
    add_text(f, job->model->part_hash[part]);
    add_number(f, precision);
}

static blob_name end_name(const fingerprint *f, const char *kind)
{
    blob_name name = {{0}, {0}};
    memcpy(name.kind, kind, strlen(kind));
    fingerprint_hex(f, name.hash);
    return name;
}

static void add_picture(fingerprint *f, const uint8_t *rgb, int width, int height)
{
    add_number(f, width);
    add_number(f, height);
    fingerprint_add(f, rgb, 3 * (size_t)width * (size_t)height);
}

blob_name cache_prompt_name(const ct_job *job, const prompt *p)
{
    fingerprint f;
    begin_name(&f, job, "prompt", PART_TEXT_ENCODER, (int)job_encode_precision(job));
    add_number(&f, job->model->parts.feature_width);
    add_number(&f, job->model->parts.family->dropped_tokens);
    add_number(&f, p->words);
    add_number(&f, p->count);
    fingerprint_add(&f, p->ids, (size_t)p->count * sizeof *p->ids);
    for (int i = 0; i < job->references; i++) {
        const reference *r = &job->reference[i];
        if (r->seen)
            add_picture(&f, r->seen, r->seen_width, r->seen_height);
    }
    return end_name(&f, "prompt");
}

blob_name cache_sight_name(const ct_job *job, const reference *r)
{
    fingerprint f;
    begin_name(&f, job, "vision", PART_TEXT_ENCODER, (int)job_encode_precision(job));
    add_picture(&f, r->seen, r->seen_width, r->seen_height);
    return end_name(&f, "vision");
}

blob_name cache_latents_name(const ct_job *job, const reference *r)
{
    fingerprint f;
    begin_name(&f, job, "latents", PART_VAE, (int)job_decode_precision(job));
    add_picture(&f, r->pixels, r->width, r->height);
    return end_name(&f, "latents");
}

blob_name cache_schedule_name(const ct_job *job)
{
    fingerprint f;
    const size_t steps = (size_t)job->info.steps;
    begin_name(&f, job, "schedule", PART_TRANSFORMER, (int)job->info.precision);
    add_number(&f, job->info.steps);
    fingerprint_add(&f, job->sigmas, (steps + 1) * sizeof *job->sigmas);
    fingerprint_add(&f, job->times, steps * sizeof *job->times);
    return end_name(&f, "schedule");
}

/* ---- Both places ----------------------------------------------------------------------------- */

static bool is_used(const ct_job *job)
{
    return !job->trace_path;
}

static bool has_folder(const ct_job *job)
{
    const ct_context *c = job->model->context;
    return is_used(job) && c->cache && c->cache_limit > 0;
}

/* Where memory was promised to be little, nothing is added to it. */
static bool has_memory(const ct_job *job)
{
    return is_used(job) && job->model->kept && !job->max_memory;
}

static blob_folder folder_of(const ct_job *job)
{
    const ct_context *c = job->model->context;
    return (blob_folder){job->allocator, c->cache, c->cache_limit};
}

static bool in_memory(const ct_job *job, const blob_name *name, size_t bytes, const blob_sink *sink)
{
    return is_used(job) && job->model->kept &&
           blob_memory_read(job->model->kept, name, bytes, sink);
}

static void keep_in_memory(const ct_job *job, const blob_name *name, size_t bytes,
                           const blob_source *source)
{
    if (has_memory(job) && !blob_memory_has(job->model->kept, name, bytes))
        blob_memory_write(job->model->kept, name, bytes, source);
}

static const char *load(const ct_job *job, const blob_name *name, size_t bytes,
                        const blob_sink *sink)
{
    ct_error error;
    if (in_memory(job, name, bytes, sink))
        return "memory";
    if (!has_folder(job))
        return NULL;
    const blob_folder folder = folder_of(job);
    const ct_status status = blob_folder_read(&folder, name, bytes, sink, &error);
    if (status == CT_EFORMAT)
        log_message(&job->callbacks, CT_LOG_WARNING, "cache: %s, and made again", error.message);
    else if (status != CT_OK && status != CT_ENOTFOUND)
        log_message(&job->callbacks, CT_LOG_DEBUG, "cache: %s", error.message);
    return status == CT_OK ? folder.path : NULL;
}

static void keep(const ct_job *job, const blob_name *name, size_t bytes, const blob_source *source,
                 const char *found)
{
    ct_error error;
    keep_in_memory(job, name, bytes, source);
    if (found || !has_folder(job))
        return;
    const blob_folder folder = folder_of(job);
    const ct_status status = blob_folder_write(&folder, name, bytes, source, &error);
    if (status == CT_OK || status == CT_ECANCELLED)
        return;
    const bool first = status != CT_ENOMEM && !atomic_exchange(&job->model->cache_failed, true);
    log_message(&job->callbacks, first ? CT_LOG_WARNING : CT_LOG_DEBUG,
                "cache: nothing is kept on disk: %s", error.message);
}

bool cache_has(const ct_job *job, const blob_name *name, uint64_t bytes)
{
    if (is_used(job) && job->model->kept && blob_memory_has(job->model->kept, name, bytes))
        return true;
    const blob_folder folder = folder_of(job);
    return has_folder(job) && blob_folder_has(&folder, name);
}

/* ---- Floats ---------------------------------------------------------------------------------- */

static bool take_floats(void *user, size_t at, const void *data, size_t bytes)
{
    memcpy((char *)user + at, data, bytes);
    return true;
}

/* What is not finite is not kept: it shall be computed again, and found out. */
static bool all_finite(const float *x, size_t count)
{
    bool finite = true;
    for (size_t i = 0; i < count; i++)
        finite &= fabsf(x[i]) <= FLT_MAX;
    return finite;
}

typedef struct floats {
    const float *from;
} floats;

static bool give_floats(void *user, size_t at, void *data, size_t bytes)
{
    const floats *f = user;
    memcpy(data, (const char *)f->from + at, bytes);
    return all_finite(data, bytes / sizeof(float));
}

const char *cache_load_floats(const ct_job *job, const blob_name *name, float *to, size_t count)
{
    const blob_sink sink = {to, take_floats};
    return load(job, name, count * sizeof *to, &sink);
}

void cache_keep_floats(const ct_job *job, const blob_name *name, const float *from, size_t count,
                       const char *found)
{
    floats f = {from};
    const blob_source source = {&f, give_floats};
    keep(job, name, count * sizeof *from, &source, found);
}

/* ---- Tensors --------------------------------------------------------------------------------- */

typedef struct tensor_pieces {
    nn *c;
    nn_tensor row; /* all numbers in one */
} tensor_pieces;

static tensor_pieces pieces_of(nn *c, const nn_tensor *t)
{
    return (tensor_pieces){c, nn_as2(c, t, 1, nn_count(t))};
}

static nn_tensor piece_of(const tensor_pieces *p, size_t at, size_t bytes)
{
    const int64_t count = (int64_t)(bytes / sizeof(float));
    return nn_columns(&p->row, (int64_t)(at / sizeof(float)), count);
}

static bool take_tensor(void *user, size_t at, const void *data, size_t bytes)
{
    const tensor_pieces *p = user;
    const nn_tensor piece = piece_of(p, at, bytes);
    nn_upload(p->c, &piece, data, nn_count(&piece));
    return !nn_stopped(p->c);
}

static bool give_tensor(void *user, size_t at, void *data, size_t bytes)
{
    const tensor_pieces *p = user;
    const nn_tensor piece = piece_of(p, at, bytes);
    nn_download(p->c, &piece, data, nn_count(&piece));
    return !nn_stopped(p->c) && all_finite(data, bytes / sizeof(float));
}

static size_t bytes_of(const nn_tensor *t)
{
    return (size_t)nn_count(t) * sizeof(float);
}

const char *cache_load_tensor(const ct_job *job, nn *c, const blob_name *name, const nn_tensor *t)
{
    tensor_pieces pieces = pieces_of(c, t);
    const blob_sink sink = {&pieces, take_tensor};
    return load(job, name, bytes_of(t), &sink);
}

void cache_keep_tensor(const ct_job *job, nn *c, const blob_name *name, const nn_tensor *t,
                       const char *found)
{
    tensor_pieces pieces = pieces_of(c, t);
    const blob_source source = {&pieces, give_tensor};
    if (!nn_stopped(c))
        keep(job, name, bytes_of(t), &source, found);
}

/* ---- Positions ------------------------------------------------------------------------------- */

static void plan_table(void *user, const blob_name *name, size_t count)
{
    const cache_user *u = user;
    u->prompt->positions = *name;
    u->prompt->positions_bytes = count * sizeof(float);
}

static bool recall_table(void *user, const blob_name *name, float *table, size_t count)
{
    const cache_user *u = user;
    const blob_sink sink = {table, take_floats};
    if (!in_memory(u->job, name, count * sizeof *table, &sink))
        return false;
    log_message(&u->job->callbacks, CT_LOG_INFO, "cache: the angles of the %s are in memory",
                u->prompt == &u->job->positive ? "prompt" : "negative prompt");
    return true;
}

static void keep_table(void *user, const blob_name *name, const float *table, size_t count)
{
    const cache_user *u = user;
    floats f = {table};
    const blob_source source = {&f, give_floats};
    keep_in_memory(u->job, name, count * sizeof *table, &source);
}

rope_memory cache_tables(cache_user *user)
{
    return (rope_memory){user, plan_table, recall_table, keep_table};
}

/* ---- The plan -------------------------------------------------------------------------------- */

static uint64_t counted(uint64_t bytes, uint64_t limit)
{
    return bytes <= limit ? bytes : 0; /* larger ones are not kept */
}

/* Prompts of one length have one table. */
static uint64_t positions_bytes(const ct_job *job, uint64_t limit)
{
    const prompt *a = &job->positive, *b = &job->negative;
    const bool one = strcmp(a->positions.hash, b->positions.hash) == 0;
    return counted(a->positions_bytes, limit) + (one ? 0 : counted(b->positions_bytes, limit));
}

uint64_t cache_stage_bytes(const ct_job *job, ct_stage stage)
{
    const family_model *m = &job->model->parts;
    const uint64_t piece = is_used(job) && stage <= CT_STAGE_DENOISE ? BLOB_PIECE : 0;
    if (!has_memory(job))
        return piece;
    const uint64_t limit = blob_memory_limit(job->model->kept);
    const uint64_t held = blob_memory_bytes(job->model->kept), width = (uint64_t)m->feature_width;
    uint64_t bytes = references_kept_bytes(job, limit);
    const prompt *prompts[] = {&job->positive, &job->negative};
    for (int i = 0; i < 2; i++)
        bytes +=
            counted((uint64_t)job_feature_count(job, prompts[i]) * width * sizeof(float), limit);
    if (stage >= CT_STAGE_DENOISE)
        bytes += counted(job->table_bytes, limit) + positions_bytes(job, limit);
    return piece + (bytes < limit - held ? bytes : limit - held);
}
