/* ct_quantize: a model's directory to one with matrices in affine groups, tensor by tensor.
 *
 * All sizes follow from the shapes, so the shards are laid out and the disk is asked for room
 * before anything is written; then each tensor goes from its mapped file to its place in the new
 * one. */
#include "pipeline/quantize.h"

#include "core/affine.h"
#include "core/clock.h"
#include "core/file.h"
#include "core/mem.h"
#include "core/strbuf.h"
#include "io/jsonwrite.h"

#include <math.h>
#include <string.h>

#define SHARD_MAXIMUM ((uint64_t)2 << 30) /* of mflux */
#define FILE_MAXIMUM ((size_t)64 << 20)   /* of a configuration file or tokenizer */
#define HEADER_MAXIMUM ((size_t)64 << 20)
#define DISK_RESERVE ((uint64_t)64 << 20) /* for headers and small files */
#define MFLUX_GROUP 64
#define ERRORS_KEY "relative_l2"

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
static quantize_action choose_action(const quantize_work *w, const quantize_part *p,
                                     const weight_view *v)
{
    const bool vae = p->source == w->model->parts.weights[PART_VAE];
    if (vae && (!w->mflux || w->model->parts.family->keeps_names))
        return QUANTIZE_COPY;
    if (vae && v->rank == 4 && !names_channels_last(p->source))
        return QUANTIZE_CHANNELS_LAST;
    if (v->rank != 2 || !ends_with(v->name, ".weight") || !can_encode(v->type))
        return QUANTIZE_COPY;
    return v->shape[1] > 0 && v->shape[1] % w->group == 0 ? QUANTIZE_CODES : QUANTIZE_COPY;
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

static ct_status plan_part(quantize_work *w, quantize_part *p, ct_error *error)
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
        quantize_item *t = &p->items[i];
        t->source = p->source;
        t->from = weights_at(p->source, i);
        ct_status status = check_source(p->source, t->from, error);
        if (status != CT_OK)
            return status;
        t->action = choose_action(w, p, t->from);
        t->target = lora_find(w->model->loras, t->from);
        w->result.merged += t->target != NULL;
        names_spell(t->name, layout, t->from->name);
        const uint64_t bytes = quantize_item_bytes(w, t);
        if (w->mflux && shard_bytes > 0 && shard_bytes + bytes > SHARD_MAXIMUM) {
            p->shards++;
            shard_bytes = 0;
        }
        t->shard = p->shards - 1;
        shard_bytes += bytes;
        w->result.bytes_before += t->from->bytes;
        w->result.bytes_after += bytes;
        w->result.quantized += t->action == QUANTIZE_CODES;
    }
    w->result.tensors += (int)p->count;
    return CT_OK;
}

static ct_status plan(quantize_work *w, ct_error *error)
{
    const ct_model *m = w->model;
    const quantize_part parts[QUANTIZE_PARTS] = {
        {.folder = "text_encoder", .source = m->parts.weights[PART_TEXT_ENCODER]},
        {.folder = "transformer", .source = m->parts.weights[PART_TRANSFORMER]},
        {.folder = "vae", .source = m->parts.weights[PART_VAE]}};
    ct_status status = CT_OK;
    for (int i = 0; status == CT_OK && i < QUANTIZE_PARTS; i++) {
        w->parts[i] = parts[i];
        status = plan_part(w, &w->parts[i], error);
    }
    return status;
}

static ct_status check_disk(const quantize_work *w, ct_error *error)
{
    const uint64_t needed = w->result.bytes_after + DISK_RESERVE;
    const uint64_t free = folder_free_bytes(w->out.parent);
    if (needed <= free)
        return CT_OK;
    return error_set(error, CT_EIO, "%s needs %.1f MiB, but its disk has only %.1f MiB left",
                     w->out.path, (double)needed / 1048576, (double)free / 1048576);
}

/* ---- A file -------------------------------------------------------------------------------- */

/* {"module":0.01234567,...} of the matrices in a shard. Each number has ten characters, so that the
 * header keeps its length when they become known. */
static char *errors_text(const quantize_work *w, const quantize_part *p, int shard)
{
    strbuf s;
    strbuf_init(&s, w->allocator, HEADER_MAXIMUM);
    strbuf_puts(&s, "{");
    for (size_t i = 0; i < p->count; i++) {
        const quantize_item *t = &p->items[i];
        if (t->action != QUANTIZE_CODES || t->shard != shard)
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

static ct_status put_metadata(const quantize_work *w, const quantize_part *p, int shard,
                              safetensors_writer *out, ct_error *error)
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

static ct_status fill_shard(quantize_work *w, quantize_part *p, int shard, safetensors_writer *out,
                            ct_error *error)
{
    ct_status status = CT_OK;
    for (size_t i = 0; status == CT_OK && i < p->count; i++)
        if (p->items[i].shard == shard)
            status = quantize_declare(w, &p->items[i], out, error);
    if (status == CT_OK)
        status = put_metadata(w, p, shard, out, error);
    if (status == CT_OK)
        status = safetensors_writer_begin(out, error);
    for (size_t i = 0; status == CT_OK && i < p->count; i++)
        if (p->items[i].shard == shard)
            status = quantize_write(w, p, &p->items[i], out, error);
    if (status != CT_OK)
        return status;
    char *errors = errors_text(w, p, shard);
    status = errors ? safetensors_writer_replace(out, ERRORS_KEY, errors, error)
                    : error_memory(error, 1, "the metadata");
    mem_free(w->allocator, errors);
    return status;
}

static void shard_name(char out[40], const quantize_work *w, const quantize_part *p, int shard)
{
    if (w->mflux)
        snprintf(out, 40, "%d.safetensors", shard);
    else
        snprintf(out, 40, "%s.safetensors",
                 p->source == w->model->parts.weights[PART_VAE] ? "diffusion_pytorch_model"
                                                                : "model");
}

static ct_status write_shard(quantize_work *w, quantize_part *p, const char *folder, int shard,
                             ct_error *error)
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

static void write_index_text(const quantize_work *w, const quantize_part *p, strbuf *text)
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
        total += quantize_item_bytes(w, &p->items[i]);
    json_write_key(&json, "total_size");
    json_write_unsigned(&json, total);
    json_write_object_end(&json);
    json_write_key(&json, "weight_map");
    json_write_object(&json);
    for (size_t i = 0; i < p->count; i++) {
        const quantize_item *t = &p->items[i];
        shard_name(file, w, p, t->shard);
        index_entry(&json, t->name, file);
        if (t->action != QUANTIZE_CODES)
            continue;
        quantize_beside(name, t->name, "scales");
        index_entry(&json, name, file);
        quantize_beside(name, t->name, "biases");
        index_entry(&json, name, file);
    }
    json_write_object_end(&json);
    json_write_object_end(&json);
    strbuf_puts(text, "\n");
}

static ct_status write_file(const quantize_work *w, const char *folder, const char *name,
                            const char *data, size_t size, ct_error *error)
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

static ct_status write_index(const quantize_work *w, const quantize_part *p, const char *folder,
                             ct_error *error)
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
    const quantize_work *w;
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
static ct_status copy_folder(const quantize_work *w, const char *folder,
                             bool (*wanted)(const char *), ct_error *error)
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

static ct_status write_part(quantize_work *w, quantize_part *p, ct_error *error)
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
    const quantize_work *w = user;
    if (folder_output_is_stale(&w->out, name))
        log_message(&w->context->callbacks, CT_LOG_WARNING,
                    "%s/%s was left by a run that was killed; it can be deleted", w->out.parent,
                    name);
    return CT_OK;
}

static ct_status write_model(quantize_work *w, const char *output, ct_error *error)
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
    for (int i = 0; status == CT_OK && i < QUANTIZE_PARTS; i++)
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
    quantize_work w = {.context = context,
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
    for (int i = 0; i < QUANTIZE_PARTS; i++)
        mem_free(w.allocator, w.parts[i].items);
    ct_model_free(&w.model);
    return status;
}
