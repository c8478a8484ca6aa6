/* ct_quantize: a model's directory to one with matrices in affine groups, tensor by tensor.
 *
 * All sizes follow from the shapes, so the shards are laid out and the disk is asked for room
 * before anything is written; then each tensor goes from its mapped file to its place in the new
 * one. */
#include "core/affine.h"
#include "core/clock.h"
#include "core/file.h"
#include "core/folder.h"
#include "core/mem.h"
#include "core/strbuf.h"
#include "io/jsonwrite.h"
#include "io/names.h"
#include "io/safetensors.h"
#include "pipeline/internal.h"
#include "pipeline/merging.h"

#include <math.h>
#include <string.h>

#define SHARD_MAXIMUM ((uint64_t)2 << 30) /* of mflux */
#define BLOCK_BYTES ((size_t)4 << 20)     /* of a tensor that are in memory at once, about */
#define FILE_MAXIMUM ((size_t)64 << 20)   /* of a configuration file or tokenizer */
#define HEADER_MAXIMUM ((size_t)64 << 20)
#define DISK_RESERVE ((uint64_t)64 << 20) /* for headers and small files */
#define MFLUX_GROUP 64
#define ERRORS_KEY "relative_l2"

typedef enum action {
    ACTION_COPY,
    ACTION_CHANNELS_LAST, /* a convolution [out, in, h, w] becomes [out, h, w, in] */
    ACTION_CODES
} action;

typedef struct item {
    const weights *source; /* which holds from */
    const weight_view *from;
    action action;
    int shard;
    const lora_target *target; /* what LoRAs add to it; NULL: nothing */
    double relative_l2;
    char name[NAMES_LENGTH]; /* in the new file */
} item;

typedef struct part {
    const char *folder;
    const weights *source;
    item *items;
    size_t count;
    int shards;
} part;

#define PARTS 3

typedef struct work {
    ct_context *context;
    const ct_allocator *allocator;
    const ct_quantize_params *params;
    ct_model *model;
    int bits;
    int64_t group;
    bool mflux; /* the layout; otherwise that of MLX-z-image */
    part parts[PARTS];
    folder_output out;
    int done;
    double began;
    double error_sum, norm_sum; /* of squares, over all matrices */
    ct_quantize_result result;
} work;

static ct_status check_cancel(const work *w, ct_error *error)
{
    const ct_callbacks *c = &w->context->callbacks;
    return c->cancel && c->cancel(c->user) ? error_set(error, CT_ECANCELLED, "cancelled") : CT_OK;
}

/* ---- What becomes of each tensor ----------------------------------------------------------- */

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && !strcmp(text + length - tail, end);
}

static bool can_encode(dtype type)
{
    return type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16;
}

/* Linear layers and embedding tables are what has a .weight of two dimensions. MLX-z-image leaves
 * the VAE as diffusers has it. */
static action choose_action(const work *w, const part *p, const weight_view *v)
{
    const bool vae = p->source == w->model->parts.weights[PART_VAE];
    if (vae && (!w->mflux || w->model->parts.family->keeps_names))
        return ACTION_COPY;
    if (vae && v->rank == 4 && !names_channels_last(p->source))
        return ACTION_CHANNELS_LAST;
    if (v->rank != 2 || !ends_with(v->name, ".weight") || !can_encode(v->type))
        return ACTION_COPY;
    return v->shape[1] > 0 && v->shape[1] % w->group == 0 ? ACTION_CODES : ACTION_COPY;
}

static uint64_t bytes_after(const work *w, const item *i)
{
    const weight_view *v = i->from;
    if (i->action != ACTION_CODES)
        return v->bytes;
    const uint64_t rows = (uint64_t)v->shape[0], columns = (uint64_t)v->shape[1];
    return rows * columns * (uint64_t)w->bits / 8 +
           2 * rows * (columns / (uint64_t)w->group) * dtype_size(v->type);
}

static ct_status check_source(const weights *source, const weight_view *v, ct_error *error)
{
    const char *what = v->bits                                               ? "quantized already"
                       : dtype_is_float(v->type) && dtype_size(v->type) == 1 ? "FP8"
                                                                             : NULL;
    if (!what)
        return CT_OK;
    return error_set(error, CT_EUNSUPPORTED,
                     "%s: tensor %s is %s; quantize the original model in BF16, F16 or F32",
                     weights_source(source), v->name, what);
}

static ct_status plan_part(work *w, part *p, ct_error *error)
{
    uint64_t shard_bytes = 0;
    /* What was renamed already is only copied. */
    const family *f = w->model->parts.family;
    const bool keeps_names = f->keeps_names || !names_are_hf(p->source);
    const name_layout layout = keeps_names ? NAMES_HF
                               : w->mflux  ? f->mflux_names
                                           : NAMES_MLX_Z_IMAGE;
    p->count = weights_count(p->source);
    p->shards = 1;
    p->items = mem_zero_array(w->allocator, p->count, sizeof *p->items);
    if (!p->items)
        return error_memory(error, p->count * sizeof *p->items, "the list of tensors");
    for (size_t i = 0; i < p->count; i++) {
        item *t = &p->items[i];
        t->source = p->source;
        t->from = weights_at(p->source, i);
        ct_status status = check_source(p->source, t->from, error);
        if (status != CT_OK)
            return status;
        t->action = choose_action(w, p, t->from);
        t->target = lora_find(w->model->loras, t->from);
        w->result.merged += t->target != NULL;
        names_spell(t->name, layout, t->from->name);
        const uint64_t bytes = bytes_after(w, t);
        if (w->mflux && shard_bytes > 0 && shard_bytes + bytes > SHARD_MAXIMUM) {
            p->shards++;
            shard_bytes = 0;
        }
        t->shard = p->shards - 1;
        shard_bytes += bytes;
        w->result.bytes_before += t->from->bytes;
        w->result.bytes_after += bytes;
        w->result.quantized += t->action == ACTION_CODES;
    }
    w->result.tensors += (int)p->count;
    return CT_OK;
}

static ct_status plan(work *w, ct_error *error)
{
    const ct_model *m = w->model;
    const part parts[PARTS] = {
        {.folder = "text_encoder", .source = m->parts.weights[PART_TEXT_ENCODER]},
        {.folder = "transformer", .source = m->parts.weights[PART_TRANSFORMER]},
        {.folder = "vae", .source = m->parts.weights[PART_VAE]}};
    ct_status status = CT_OK;
    for (int i = 0; status == CT_OK && i < PARTS; i++) {
        w->parts[i] = parts[i];
        status = plan_part(w, &w->parts[i], error);
    }
    return status;
}

static ct_status check_disk(const work *w, ct_error *error)
{
    const uint64_t needed = w->result.bytes_after + DISK_RESERVE;
    const uint64_t free = folder_free_bytes(w->out.parent);
    if (needed <= free)
        return CT_OK;
    return error_set(error, CT_EIO, "%s needs %.1f MiB, but its disk has only %.1f MiB left",
                     w->out.path, (double)needed / 1048576, (double)free / 1048576);
}

/* ---- A matrix ------------------------------------------------------------------------------ */

/* Rows first .. of a matrix; [rows] or one for each worker. */
typedef struct encoding {
    const weight_view *from;
    merging merging; /* numbers NULL: nothing is added */
    int64_t first, columns, group;
    int bits;
    size_t row_bytes, scale_bytes; /* of codes, and of scales or biases, in a row */
    unsigned char *codes, *scales, *biases;
    float *numbers;       /* two rows for each worker */
    double *error, *norm; /* sums of squares of each row */
} encoding;

static void encode_row(void *user, int64_t index, int worker)
{
    const encoding *e = user;
    const weight_view *v = e->from;
    const size_t columns = (size_t)e->columns, row = (size_t)index;
    float *in = e->numbers + 2 * columns * (size_t)worker, *back = in + columns;
    unsigned char *codes = e->codes + row * e->row_bytes;
    unsigned char *scales = e->scales + row * e->scale_bytes;
    unsigned char *biases = e->biases + row * e->scale_bytes;
    if (e->merging.numbers)
        memcpy(in, e->merging.numbers + row * columns, columns * sizeof *in);
    else
        dtype_to_float(in, v->data + (size_t)(e->first + index) * columns * dtype_size(v->type),
                       v->type, columns);
    affine_encode(codes, scales, biases, v->type, in, e->columns, e->bits, e->group);
    affine_decode(back, codes, e->bits, e->group, scales, biases, v->type, 0, e->columns);
    double error = 0, norm = 0;
    for (size_t i = 0; i < columns; i++) {
        const double difference = (double)back[i] - (double)in[i];
        error += difference * difference;
        norm += (double)in[i] * (double)in[i];
    }
    e->error[index] = error;
    e->norm[index] = norm;
}

/* "module.weight" -> "module.last" */
static void beside(char out[NAMES_LENGTH], const char *weight, const char *last)
{
    snprintf(out, NAMES_LENGTH, "%.*s%s", (int)(strlen(weight) - strlen("weight")), weight, last);
}

/* rows of codes, scales and biases to their places. */
static ct_status put_rows(safetensors_writer *out, const item *t, const encoding *e, size_t rows,
                          ct_error *error)
{
    char scales[NAMES_LENGTH], biases[NAMES_LENGTH];
    const size_t first = (size_t)e->first;
    beside(scales, t->name, "scales");
    beside(biases, t->name, "biases");
    ct_status status = safetensors_writer_put(out, t->name, first * e->row_bytes, e->codes,
                                              rows * e->row_bytes, error);
    if (status == CT_OK)
        status = safetensors_writer_put(out, scales, first * e->scale_bytes, e->scales,
                                        rows * e->scale_bytes, error);
    if (status == CT_OK)
        status = safetensors_writer_put(out, biases, first * e->scale_bytes, e->biases,
                                        rows * e->scale_bytes, error);
    return status;
}

static ct_status encode_blocks(work *w, encoding *e, item *t, int64_t block,
                               safetensors_writer *out, ct_error *error)
{
    const int64_t rows = t->from->shape[0];
    double error_sum = 0, norm_sum = 0;
    for (e->first = 0; e->first < rows; e->first += block) {
        const int64_t count = rows - e->first < block ? rows - e->first : block;
        ct_status status = check_cancel(w, error);
        if (status != CT_OK)
            return status;
        if (t->target)
            merging_run(&e->merging, w->context->threads, e->first, count);
        pool_run(w->context->threads, count, encode_row, e);
        for (int64_t i = 0; i < count; i++) {
            error_sum += e->error[i];
            norm_sum += e->norm[i];
        }
        if (!isfinite(error_sum) || !isfinite(norm_sum))
            return error_set(error, CT_EFORMAT,
                             "tensor %s holds NaN or infinity and cannot be quantized",
                             t->from->name);
        status = put_rows(out, t, e, (size_t)count, error);
        if (status != CT_OK)
            return status;
        const size_t row = (size_t)e->columns * dtype_size(t->from->type);
        weights_drop(t->source, t->from->data + (size_t)e->first * row, (size_t)count * row);
    }
    t->relative_l2 = norm_sum > 0 ? sqrt(error_sum / norm_sum) : 0;
    w->error_sum += error_sum;
    w->norm_sum += norm_sum;
    return CT_OK;
}

static ct_status write_codes(work *w, item *t, safetensors_writer *out, ct_error *error)
{
    const weight_view *v = t->from;
    const ct_allocator *a = w->allocator;
    encoding e = {.from = v,
                  .merging.product.allocator = a,
                  .columns = v->shape[1],
                  .group = w->group,
                  .bits = w->bits};
    const size_t columns = (size_t)e.columns, row = columns * sizeof(float);
    const size_t rows = row < BLOCK_BYTES ? BLOCK_BYTES / row : 1;
    const size_t workers = (size_t)pool_threads(w->context->threads);
    e.row_bytes = columns * (size_t)w->bits / 8;
    e.scale_bytes = columns / (size_t)w->group * dtype_size(v->type);
    e.codes = mem_array(a, rows, e.row_bytes);
    e.scales = mem_array(a, rows, e.scale_bytes);
    e.biases = mem_array(a, rows, e.scale_bytes);
    e.numbers = mem_array(a, workers, 2 * row);
    e.error = mem_array(a, rows, sizeof *e.error);
    e.norm = mem_array(a, rows, sizeof *e.norm);
    ct_status status = e.codes && e.scales && e.biases && e.numbers && e.error && e.norm
                           ? merging_open(&e.merging, a, v, t->target, rows, error)
                           : error_memory(error, BLOCK_BYTES, "a part of a matrix");
    if (status == CT_OK)
        status = encode_blocks(w, &e, t, (int64_t)rows, out, error);
    merging_close(&e.merging);
    mem_free(a, e.codes);
    mem_free(a, e.scales);
    mem_free(a, e.biases);
    mem_free(a, e.numbers);
    mem_free(a, e.error);
    mem_free(a, e.norm);
    return status;
}

/* ---- Other tensors ------------------------------------------------------------------------- */

static ct_status write_copy(work *w, const item *t, safetensors_writer *out, ct_error *error)
{
    const weight_view *v = t->from;
    for (size_t at = 0; at < v->bytes; at += BLOCK_BYTES) {
        size_t bytes = v->bytes - at < BLOCK_BYTES ? v->bytes - at : BLOCK_BYTES;
        ct_status status = check_cancel(w, error);
        if (status == CT_OK)
            status = safetensors_writer_put(out, t->name, at, v->data + at, bytes, error);
        if (status != CT_OK)
            return status;
        weights_drop(t->source, v->data + at, bytes);
    }
    return CT_OK;
}

static ct_status put_merged(work *w, const item *t, merging *m, size_t rows, void *numbers,
                            safetensors_writer *out, ct_error *error)
{
    const weight_view *v = t->from;
    const size_t row = (size_t)v->shape[1] * dtype_size(v->type), all = (size_t)v->shape[0];
    ct_status status = CT_OK;
    for (size_t first = 0, count; status == CT_OK && first < all; first += count) {
        count = all - first < rows ? all - first : rows;
        status = check_cancel(w, error);
        if (status != CT_OK)
            break;
        merging_run(m, w->context->threads, (int64_t)first, (int64_t)count);
        if (!lora_in_range(m->numbers, (int64_t)count * v->shape[1], v->type))
            return error_set(error, CT_EFORMAT,
                             "with the LoRA tensor %s has numbers beyond the range of %s; choose a "
                             "smaller scale",
                             v->name, dtype_name(v->type));
        dtype_from_float(numbers, m->numbers, v->type, count * (size_t)v->shape[1]);
        status = safetensors_writer_put(out, t->name, first * row, numbers, count * row, error);
        weights_drop(t->source, v->data + first * row, count * row);
    }
    return status;
}

/* A matrix with LoRAs that keeps its type. */
static ct_status write_merged(work *w, const item *t, safetensors_writer *out, ct_error *error)
{
    const size_t row = (size_t)t->from->shape[1] * sizeof(float);
    const size_t rows = row < BLOCK_BYTES ? BLOCK_BYTES / row : 1;
    merging m;
    ct_status status = merging_open(&m, w->allocator, t->from, t->target, rows, error);
    void *numbers = status == CT_OK ? mem_array(w->allocator, rows, row) : NULL;
    if (status == CT_OK)
        status = numbers ? put_merged(w, t, &m, rows, numbers, out, error)
                         : error_memory(error, rows * row, "a part of a matrix");
    mem_free(w->allocator, numbers);
    merging_close(&m);
    return status;
}

static ct_status write_channels_last(work *w, const item *t, safetensors_writer *out,
                                     ct_error *error)
{
    const weight_view *v = t->from;
    const size_t size = dtype_size(v->type), outputs = (size_t)v->shape[0];
    const size_t in = (size_t)v->shape[1], pixels = (size_t)v->shape[2] * (size_t)v->shape[3];
    const size_t bytes = in * pixels * size; /* of one output */
    unsigned char *turned = mem_alloc(w->allocator, bytes);
    if (!turned)
        return error_memory(error, bytes, v->name);
    ct_status status = check_cancel(w, error);
    for (size_t o = 0; status == CT_OK && o < outputs; o++) {
        unsigned char *to = turned;
        for (size_t p = 0; p < pixels; p++)
            for (size_t i = 0; i < in; i++, to += size)
                memcpy(to, v->data + o * bytes + (i * pixels + p) * size, size);
        status = safetensors_writer_put(out, t->name, o * bytes, turned, bytes, error);
    }
    mem_free(w->allocator, turned);
    return status;
}

static ct_status write_item(work *w, const part *p, item *t, safetensors_writer *out,
                            ct_error *error)
{
    ct_status status = t->action == ACTION_CODES           ? write_codes(w, t, out, error)
                       : t->action == ACTION_CHANNELS_LAST ? write_channels_last(w, t, out, error)
                       : t->target                         ? write_merged(w, t, out, error)
                                                           : write_copy(w, t, out, error);
    if (status != CT_OK)
        return status;
    w->done++;
    const ct_callbacks *c = &w->context->callbacks;
    const double seconds = clock_seconds() - w->began;
    if (c->progress)
        c->progress(c->user, &(ct_progress){.stage = CT_STAGE_QUANTIZE,
                                            .step = w->done,
                                            .steps = w->result.tensors,
                                            .stage_seconds = seconds,
                                            .total_seconds = seconds});
    if (!w->params->tensor)
        return CT_OK;
    const bool codes = t->action == ACTION_CODES;
    char module[NAMES_LENGTH];
    snprintf(module, sizeof module, "%s", t->name);
    if (codes)
        module[strlen(module) - strlen(".weight")] = 0;
    w->params->tensor(w->params->user,
                      &(ct_quantized_tensor){.component = p->folder,
                                             .name = module,
                                             .quantized = codes,
                                             .rows = codes ? t->from->shape[0] : 0,
                                             .columns = codes ? t->from->shape[1] : 0,
                                             .bytes_before = t->from->bytes,
                                             .bytes_after = bytes_after(w, t),
                                             .relative_l2 = t->relative_l2});
    return CT_OK;
}

/* ---- A file -------------------------------------------------------------------------------- */

static ct_status declare_item(const work *w, const item *t, safetensors_writer *out,
                              ct_error *error)
{
    const weight_view *v = t->from;
    int64_t shape[WEIGHT_MAX_RANK];
    char name[NAMES_LENGTH];
    memcpy(shape, v->shape, sizeof shape);
    if (t->action == ACTION_CHANNELS_LAST) {
        shape[1] = v->shape[2];
        shape[2] = v->shape[3];
        shape[3] = v->shape[1];
    }
    if (t->action != ACTION_CODES)
        return safetensors_writer_declare(out, t->name, v->type, v->rank, shape, error);
    shape[1] = v->shape[1] * w->bits / 32;
    ct_status status = safetensors_writer_declare(out, t->name, DTYPE_U32, 2, shape, error);
    shape[1] = v->shape[1] / w->group;
    beside(name, t->name, "scales");
    if (status == CT_OK)
        status = safetensors_writer_declare(out, name, v->type, 2, shape, error);
    beside(name, t->name, "biases");
    if (status == CT_OK)
        status = safetensors_writer_declare(out, name, v->type, 2, shape, error);
    return status;
}

/* {"module":0.01234567,...} of the matrices in a shard. Each number has ten characters, so that the
 * header keeps its length when they become known. */
static char *errors_text(const work *w, const part *p, int shard)
{
    strbuf s;
    strbuf_init(&s, w->allocator, HEADER_MAXIMUM);
    strbuf_puts(&s, "{");
    for (size_t i = 0; i < p->count; i++) {
        const item *t = &p->items[i];
        if (t->action != ACTION_CODES || t->shard != shard)
            continue;
        const double most = 9.99999999, error = t->relative_l2 < most ? t->relative_l2 : most;
        const int64_t units = llround(error * 1e8);
        strbuf_puts(&s, s.length > 1 ? "," : "");
        json_quote(&s, t->name, strlen(t->name) - strlen(".weight"));
        strbuf_printf(&s, ":%d.%08d", (int)(units / 100000000), (int)(units % 100000000));
    }
    strbuf_puts(&s, "}");
    return strbuf_take(&s);
}

static ct_status put_metadata(const work *w, const part *p, int shard, safetensors_writer *out,
                              ct_error *error)
{
    char bits[8], group[8];
    snprintf(bits, sizeof bits, "%d", w->bits);
    snprintf(group, sizeof group, "%d", (int)w->group);
    char *errors = errors_text(w, p, shard);
    /* quantization_level is what mflux tells its own files by. */
    const char *const notes[][2] = {
        {"format", "mlx"},
        {w->mflux && !w->model->parts.family->keeps_names ? "quantization_level"
                                                          : "quantization_bits",
         bits},
        {"quantization_group_size", group},
        {"calotype_version", ct_version()},
        {ERRORS_KEY, errors},
    };
    ct_status status = errors ? CT_OK : error_memory(error, 1, "the metadata");
    for (size_t i = 0; status == CT_OK && i < sizeof notes / sizeof *notes; i++)
        status = safetensors_writer_metadata(out, notes[i][0], notes[i][1], error);
    mem_free(w->allocator, errors);
    return status;
}

static ct_status fill_shard(work *w, part *p, int shard, safetensors_writer *out, ct_error *error)
{
    ct_status status = CT_OK;
    for (size_t i = 0; status == CT_OK && i < p->count; i++)
        if (p->items[i].shard == shard)
            status = declare_item(w, &p->items[i], out, error);
    if (status == CT_OK)
        status = put_metadata(w, p, shard, out, error);
    if (status == CT_OK)
        status = safetensors_writer_begin(out, error);
    for (size_t i = 0; status == CT_OK && i < p->count; i++)
        if (p->items[i].shard == shard)
            status = write_item(w, p, &p->items[i], out, error);
    if (status != CT_OK)
        return status;
    char *errors = errors_text(w, p, shard);
    status = errors ? safetensors_writer_replace(out, ERRORS_KEY, errors, error)
                    : error_memory(error, 1, "the metadata");
    mem_free(w->allocator, errors);
    return status;
}

static void shard_name(char out[40], const work *w, const part *p, int shard)
{
    if (w->mflux)
        snprintf(out, 40, "%d.safetensors", shard);
    else
        snprintf(out, 40, "%s.safetensors",
                 p->source == w->model->parts.weights[PART_VAE] ? "diffusion_pytorch_model"
                                                                : "model");
}

static ct_status write_shard(work *w, part *p, const char *folder, int shard, ct_error *error)
{
    char name[40];
    shard_name(name, w, p, shard);
    char *path = path_join(w->allocator, folder, name);
    if (!path)
        return error_memory(error, strlen(folder), "a path");
    safetensors_writer *out = NULL;
    ct_status status = safetensors_writer_open(&out, w->allocator, path, error);
    if (status == CT_OK)
        status = fill_shard(w, p, shard, out, error);
    if (status == CT_OK)
        status = safetensors_writer_commit(out, error);
    else
        safetensors_writer_abort(out);
    mem_free(w->allocator, path);
    return status;
}

/* ---- The index ----------------------------------------------------------------------------- */

static void index_entry(json_writer *json, const char *name, const char *file)
{
    json_write_key(json, name);
    json_write_string(json, file);
}

static void write_index_text(const work *w, const part *p, strbuf *text)
{
    json_writer json;
    char name[NAMES_LENGTH], file[40];
    uint64_t total = 0;
    snprintf(name, sizeof name, "%d", w->bits);
    json_write_init(&json, text);
    json_write_object(&json);
    json_write_key(&json, "metadata");
    json_write_object(&json);
    index_entry(&json, "quantization_level", name);
    for (size_t i = 0; i < p->count; i++)
        total += bytes_after(w, &p->items[i]);
    json_write_key(&json, "total_size");
    json_write_unsigned(&json, total);
    json_write_object_end(&json);
    json_write_key(&json, "weight_map");
    json_write_object(&json);
    for (size_t i = 0; i < p->count; i++) {
        const item *t = &p->items[i];
        shard_name(file, w, p, t->shard);
        index_entry(&json, t->name, file);
        if (t->action != ACTION_CODES)
            continue;
        beside(name, t->name, "scales");
        index_entry(&json, name, file);
        beside(name, t->name, "biases");
        index_entry(&json, name, file);
    }
    json_write_object_end(&json);
    json_write_object_end(&json);
    strbuf_puts(text, "\n");
}

static ct_status write_file(const work *w, const char *folder, const char *name, const char *data,
                            size_t size, ct_error *error)
{
    char *path = path_join(w->allocator, folder, name);
    if (!path)
        return error_memory(error, strlen(folder), "a path");
    file_output out;
    ct_status status = file_output_open(&out, path, error);
    if (status == CT_OK) {
        fwrite(data, 1, size, out.stream); /* a failure stays in the stream */
        status = file_output_commit(&out, error);
    }
    mem_free(w->allocator, path);
    return status;
}

static ct_status write_index(const work *w, const part *p, const char *folder, ct_error *error)
{
    strbuf text;
    strbuf_init(&text, w->allocator, HEADER_MAXIMUM);
    write_index_text(w, p, &text);
    ct_status status = strbuf_ok(&text) ? write_file(w, folder, "model.safetensors.index.json",
                                                     text.data, text.length, error)
                                        : error_memory(error, text.length, "an index");
    strbuf_free(&text);
    return status;
}

/* ---- Files that stay as they are ----------------------------------------------------------- */

typedef struct copying {
    const work *w;
    const char *from, *to;
    bool (*wanted)(const char *name);
} copying;

/* MLX-z-image reads the number of heads under another key, which goes before all others. */
static ct_status write_with_heads(const copying *c, const char *name, const char *text,
                                  ct_error *error)
{
    const char *rest = strchr(text, '{');
    strbuf s;
    strbuf_init(&s, c->w->allocator, FILE_MAXIMUM);
    strbuf_printf(&s, "{\n  \"nheads\": %d,", c->w->model->parts.heads);
    strbuf_puts(&s, rest ? rest + 1 : "");
    ct_status status = rest && strbuf_ok(&s)
                           ? write_file(c->w, c->to, name, s.data, s.length, error)
                           : error_memory(error, strlen(text), "a configuration");
    strbuf_free(&s);
    return status;
}

static bool wanted_of_model(const char *name)
{
    static const char *const beginnings[] = {"LICENSE", "LICENCE", "NOTICE", "COPYING"};
    for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++)
        if (!strncmp(name, beginnings[i], strlen(beginnings[i])))
            return true;
    return !strcmp(name, "model_index.json");
}

static bool wanted_of_part(const char *name)
{
    return ends_with(name, ".json") && !ends_with(name, ".index.json");
}

static bool wanted_all(const char *name)
{
    return name[0] != '.';
}

static ct_status copy_file(void *user, const char *name, ct_error *error)
{
    const copying *c = user;
    const ct_allocator *a = c->w->allocator;
    char *path = path_join(a, c->from, name), *data = NULL;
    size_t size = 0;
    ct_status status = CT_OK;
    if (!path)
        status = error_memory(error, strlen(c->from), "a path");
    else if (c->wanted(name) && !file_is_directory(path)) {
        status = file_read(a, path, FILE_MAXIMUM, &data, &size, error);
        const bool heads = status == CT_OK && !c->w->mflux && !strcmp(name, "config.json") &&
                           strstr(data, "\"n_heads\"") && !strstr(data, "\"nheads\"");
        if (heads)
            status = write_with_heads(c, name, data, error);
        else if (status == CT_OK)
            status = write_file(c->w, c->to, name, data, size, error);
    }
    mem_free(a, data);
    mem_free(a, path);
    return status;
}

/* The files of a folder of the model (NULL: its own) into the same folder of the new one, which is
 * made. A folder that the model lacks is left out. */
static ct_status copy_folder(const work *w, const char *folder, bool (*wanted)(const char *),
                             ct_error *error)
{
    const ct_allocator *a = w->allocator;
    char *from =
        folder ? path_join(a, w->model->directory, folder) : mem_strdup(a, w->model->directory);
    char *to = folder ? path_join(a, w->out.temporary, folder) : mem_strdup(a, w->out.temporary);
    copying c = {w, from, to, wanted};
    ct_status status = CT_OK;
    if (!from || !to)
        status = error_memory(error, strlen(w->model->directory), "a path");
    else if (file_is_directory(from)) {
        if (folder)
            status = folder_create(to, error);
        if (status == CT_OK)
            status = folder_each(from, copy_file, &c, error);
    }
    mem_free(a, from);
    mem_free(a, to);
    return status;
}

/* ---- The whole ----------------------------------------------------------------------------- */

static ct_status write_part(work *w, part *p, ct_error *error)
{
    ct_status status = copy_folder(w, p->folder, wanted_of_part, error);
    if (status != CT_OK)
        return status;
    char *folder = path_join(w->allocator, w->out.temporary, p->folder);
    if (!folder)
        return error_memory(error, strlen(p->folder), "a path");
    for (int shard = 0; status == CT_OK && shard < p->shards; shard++)
        status = write_shard(w, p, folder, shard, error);
    if (status == CT_OK && w->mflux)
        status = write_index(w, p, folder, error);
    mem_free(w->allocator, folder);
    return status;
}

static ct_status note_stale(void *user, const char *name, ct_error *error)
{
    (void)error;
    const work *w = user;
    if (folder_output_is_stale(&w->out, name))
        log_message(&w->context->callbacks, CT_LOG_WARNING,
                    "%s/%s was left by a run that was killed; it can be deleted", w->out.parent,
                    name);
    return CT_OK;
}

static ct_status write_model(work *w, const char *output, ct_error *error)
{
    ct_status status = folder_output_open(&w->out, output, error);
    if (status == CT_OK)
        status = folder_each(w->out.parent, note_stale, w, error);
    if (status == CT_OK)
        status = check_disk(w, error);
    if (status == CT_OK)
        status = copy_folder(w, NULL, wanted_of_model, error);
    if (status == CT_OK)
        status = copy_folder(w, "scheduler", wanted_all, error);
    if (status == CT_OK)
        status = copy_folder(w, "tokenizer", wanted_all, error);
    if (status == CT_OK)
        status = copy_folder(w, "processor", wanted_all, error);
    for (int i = 0; status == CT_OK && i < PARTS; i++)
        status = write_part(w, &w->parts[i], error);
    if (status == CT_OK)
        status = folder_output_commit(&w->out, error);
    folder_output_abort(&w->out, w->allocator);
    return status;
}

void ct_quantize_params_init(ct_quantize_params *params)
{
    if (params)
        *params = (ct_quantize_params){.struct_size = sizeof *params};
}

static ct_status check_params(const ct_quantize_params *p, ct_error *error)
{
    if (p->struct_size != sizeof *p)
        return error_set(error, CT_EINVAL,
                         "ct_quantize: call ct_quantize_params_init on the parameters");
    if (!p->output)
        return error_set(error, CT_EINVAL, "ct_quantize: there is no output");
    if (!affine_bits(p->bits))
        return error_set(error, CT_EINVAL, "bits must be 2, 3, 4, 5, 6 or 8, not %d", p->bits);
    if (p->group_size != 0 && p->group_size != 32 && p->group_size != 64 && p->group_size != 128)
        return error_set(error, CT_EINVAL, "group_size must be 32, 64 or 128, not %d",
                         p->group_size);
    return CT_OK;
}

ct_status ct_quantize(ct_context *context, const char *directory, const ct_quantize_params *params,
                      ct_quantize_result *result, ct_error *error)
{
    if (!context || !directory || !params)
        return error_set(error, CT_EINVAL, "ct_quantize: an argument is NULL");
    ct_status status = check_params(params, error);
    if (status != CT_OK)
        return status;
    const int group = params->group_size ? params->group_size : MFLUX_GROUP;
    work w = {.context = context,
              .allocator = &context->allocator,
              .params = params,
              .bits = params->bits,
              .group = group,
              .mflux = group == MFLUX_GROUP,
              .began = clock_seconds()};
    ct_model_params model;
    ct_model_params_init(&model);
    model.lora = params->lora;
    model.loras = params->loras;
    model.plan_only = true;
    status = ct_model_load_with(context, directory, &model, &w.model, error);
    if (status == CT_OK)
        status = plan(&w, error);
    if (status == CT_OK)
        status = write_model(&w, params->output, error);
    w.result.relative_l2 = w.norm_sum > 0 ? sqrt(w.error_sum / w.norm_sum) : 0;
    if (status == CT_OK && result)
        *result = w.result;
    for (int i = 0; i < PARTS; i++)
        mem_free(w.allocator, w.parts[i].items);
    ct_model_free(&w.model);
    return status;
}
