/* ct_model: opens a directory in the layout of diffusers, mflux or MLX-z-image and checks that its
 * parts belong together. */
#include "core/file.h"
#include "core/mem.h"
#include "core/strbuf.h"
#include "families/registry.h"
#include "io/fingerprint.h"
#include "io/json.h"
#include "io/names.h"
#include "pipeline/internal.h"

#include <inttypes.h>
#include <string.h>

/* ---- Loading --------------------------------------------------------------------------------- */

/* Programs around MLX save no model_index.json: the names of the tensors tell the family. */
static ct_status recognize(family_model *out, const ct_allocator *a, const char *directory,
                           ct_error *error)
{
    char *folder = path_join(a, directory, "transformer");
    char *text_folder = path_join(a, directory, "text_encoder");
    weights *w = NULL, *text = NULL;
    ct_status status = CT_OK;
    if (!folder || !text_folder)
        status = error_memory(error, strlen(directory), "a path");
    else if (!file_is_directory(folder))
        status = error_set(error, CT_ENOTFOUND,
                           "%s has neither model_index.json nor a folder transformer; give the "
                           "folder of a model in the layout of diffusers or mflux",
                           directory);
    if (status == CT_OK)
        status = weights_open_directory(&w, a, folder, "diffusion_pytorch_model", error);
    if (status == CT_OK && file_is_directory(text_folder))
        status = weights_open_directory(&text, a, text_folder, "model", error);
    if (status == CT_OK)
        status = registry_recognize(out, w, text, error);
    weights_close(text);
    weights_close(w);
    mem_free(a, folder);
    mem_free(a, text_folder);
    return status;
}

/* model_index.json in *index, whose root is NULL where there is none, and the family. */
static ct_status read_index(const ct_allocator *a, const char *directory, config *index,
                            family_model *out, ct_error *error)
{
    *index = (config){0};
    if (!file_is_directory(directory))
        return error_set(error, CT_ENOTFOUND,
                         "%s is not a directory; give the folder that holds model_index.json",
                         directory);
    char *path = path_join(a, directory, "model_index.json");
    if (!path)
        return error_memory(error, strlen(directory), "a path");
    const bool indexed = file_exists(path);
    ct_status status =
        indexed ? config_open(index, a, path, error) : recognize(out, a, directory, error);
    mem_free(a, path);
    if (status != CT_OK || !indexed)
        return status;
    const char *name = NULL;
    status = config_string(index, "_class_name", true, &name, error);
    if (status == CT_OK)
        status = registry_find(out, name, index->path, error);
    if (status != CT_OK)
        config_close(index);
    return status;
}

static char *join(ct_model *m, const char *name)
{
    return path_join(m->allocator, m->directory, name);
}

/* Without a configuration variants cannot be told apart; the usual one is assumed. */
static ct_status load_scheduler(ct_model *m, const char *folder, bool infer, ct_error *error)
{
    if (!infer || file_is_directory(folder))
        return flow_match_read(&m->scheduler, m->allocator, folder, error);
    const family *f = m->parts.family;
    flow_match_init(&m->scheduler, f->usual_shift);
    if (f->most_shift > 0) {
        m->scheduler.dynamic = true;
        m->scheduler.max_shift = f->most_shift;
        m->scheduler.max_length = f->most_tokens;
        m->scheduler.shift_terminal = f->terminal;
    }
    ct_model_info usual = {0};
    f->choose_defaults(&m->parts, m->scheduler.shift, &usual);
    log_message(&m->context->callbacks, CT_LOG_INFO,
                "%s has no scheduler: steps, guidance and shift are those of %s %s", m->directory,
                f->name, usual.variant);
    return CT_OK;
}

static ct_status load_parts(ct_model *m, const load_options *options, const config *index,
                            ct_error *error)
{
    const ct_allocator *a = m->allocator;
    char *folders[] = {join(m, "text_encoder"), join(m, "transformer"), join(m, "vae"),
                       join(m, "tokenizer"),    join(m, "scheduler"),   join(m, "processor")};
    ct_status status = CT_OK;
    for (int i = 0; i < FOLDER_COUNT; i++)
        if (!folders[i])
            status = error_memory(error, strlen(m->directory), "a path");
    if (status == CT_OK)
        status = tokenizer_load(&m->tokenizer, a, folders[FOLDER_TOKENIZER], error);
    if (status == CT_OK)
        status =
            m->parts.family->load(&m->parts, options, (const char *const *)folders, index, error);
    if (status == CT_OK)
        status = load_scheduler(m, folders[FOLDER_SCHEDULER], options->infer, error);
    for (int i = 0; i < FOLDER_COUNT; i++)
        mem_free(a, folders[i]);
    return status;
}

static ct_status check_parts(const ct_model *m, ct_error *error)
{
    const family_model *parts = &m->parts;
    ct_status status = parts->family->check(parts, m->directory, error);
    if (status != CT_OK)
        return status;
    if (tokenizer_size(m->tokenizer) > parts->vocab)
        return error_set(error, CT_EFORMAT,
                         "%s: tokenizer/ has ids up to %" PRId32
                         ", but text_encoder/config.json has vocab_size %" PRId64,
                         m->directory, tokenizer_size(m->tokenizer) - 1, parts->vocab);
    for (const char *const *token = parts->family->added_tokens; *token; token++)
        if (tokenizer_added(m->tokenizer, *token) < 0)
            return error_set(error, CT_EFORMAT, "%s: tokenizer/ does not have the token %s",
                             m->directory, *token);
    return CT_OK;
}

/* ---- Information ----------------------------------------------------------------------------- */

/* "BF16", or "BF16 (400), F32 (12)" with the number of tensors of each. */
static char *dtypes_text(const ct_allocator *a, const weights *w)
{
    size_t counts[DTYPE_COUNT] = {0};
    int kinds = 0;
    for (size_t i = 0; i < weights_count(w); i++)
        kinds += counts[weights_at(w, i)->type]++ == 0;
    strbuf s;
    strbuf_init(&s, a, 1024);
    for (int i = 0; i < DTYPE_COUNT; i++) {
        if (!counts[i])
            continue;
        strbuf_printf(&s, "%s%s", s.length ? ", " : "", dtype_name((dtype)i));
        if (kinds > 1)
            strbuf_printf(&s, " (%zu)", counts[i]);
    }
    return strbuf_take(&s);
}

/* ---- Quantized tensors --------------------------------------------------------------------- */

#define MAX_CODES 16 /* kinds of codes that are listed */

typedef struct codes_count {
    int bits;
    int64_t group;
    size_t tensors;
} codes_count;

static void count_codes(codes_count kinds[MAX_CODES], const weight_view *v)
{
    int k = 0;
    while (k < MAX_CODES - 1 && kinds[k].tensors &&
           (kinds[k].bits != v->bits || kinds[k].group != v->group))
        k++;
    kinds[k].bits = v->bits;
    kinds[k].group = v->group;
    kinds[k].tensors++;
}

/* "4-bit, groups of 64", or "4-bit, groups of 64 (200); 8-bit, groups of 32 (3)". An empty text
 * when nothing is quantized. */
static char *codes_text(const ct_allocator *a, const weights *w)
{
    codes_count kinds[MAX_CODES] = {{0}};
    for (size_t i = 0; i < weights_count(w); i++)
        if (weights_at(w, i)->bits)
            count_codes(kinds, weights_at(w, i));
    strbuf s;
    strbuf_init(&s, a, 1024);
    strbuf_puts(&s, "");
    for (int k = 0; k < MAX_CODES && kinds[k].tensors; k++) {
        strbuf_printf(&s, "%s%d-bit, groups of %" PRId64, k ? "; " : "", kinds[k].bits,
                      kinds[k].group);
        if (kinds[1].tensors)
            strbuf_printf(&s, " (%zu)", kinds[k].tensors);
    }
    return strbuf_take(&s);
}

/* The tensor beside module.weight that is called module.part, or the other way round. */
static const weight_view *sibling(const weights *w, const weight_view *v, const char *part)
{
    char name[NAMES_LENGTH];
    const char *dot = strrchr(v->name, '.');
    if (!dot)
        return NULL;
    snprintf(name, sizeof name, "%.*s.%s", (int)(dot - v->name), v->name, part);
    return weights_find(w, name);
}

/* Numbers of the network in a tensor: those behind codes; none in scales and biases. A matrix of
 * codes that is not used (the last layer of the text encoder) was not bound: it counts as the used
 * ones with as many bits in a group. */
static uint64_t count_parameters(const weights *w, const weight_view *v)
{
    const char *part = strrchr(v->name, '.');
    const weight_view *weight = sibling(w, v, "weight");
    if (part && weight && weight->type == DTYPE_U32 &&
        (!strcmp(part, ".scales") || !strcmp(part, ".biases")))
        return 0;
    const weight_view *scales = v->type == DTYPE_U32 ? sibling(w, v, "scales") : NULL;
    if (!scales || v->rank != 2 || scales->rank != 2)
        return v->bytes / dtype_size(v->type);
    if (v->bits)
        return v->bytes * 8 / (uint64_t)v->bits;
    for (size_t i = 0; i < weights_count(w); i++) {
        const weight_view *used = weights_at(w, i);
        if (used->bits && (double)used->bits * (double)used->group * (double)scales->shape[1] ==
                              32.0 * (double)v->shape[1])
            return v->bytes * 8 / (uint64_t)used->bits;
    }
    return v->bytes / dtype_size(v->type);
}

static ct_status describe(ct_model *m, ct_component_info *c, const char *name,
                          const char *class_name, const weights *w, char *summary, ct_error *error)
{
    const ct_allocator *a = m->allocator;
    *c = (ct_component_info){.name = name, .class_name = class_name, .summary = summary};
    for (size_t i = 0; i < weights_count(w); i++) {
        const weight_view *v = weights_at(w, i);
        c->bytes += v->bytes;
        c->parameters += count_parameters(w, v);
    }
    c->files = weights_files(w);
    c->dtypes = dtypes_text(a, w);
    c->quantization = codes_text(a, w);
    c->decoded_bytes = weights_allocated(w);
    const char **paths = mem_array(a, (size_t)c->files, sizeof *paths);
    c->paths = paths;
    if (!paths || !c->dtypes || !c->quantization || !summary)
        return error_memory(error, 1024, "the model's description");
    for (int i = 0; i < c->files; i++)
        paths[i] = weights_path(w, i);
    m->info.parameters += c->parameters;
    m->info.bytes += c->bytes;
    return CT_OK;
}

static ct_status describe_parts(ct_model *m, ct_error *error)
{
    static const char *const names[PART_COUNT] = {[PART_TEXT_ENCODER] = "text_encoder",
                                                  [PART_TRANSFORMER] = "transformer",
                                                  [PART_VAE] = "vae"};
    const family_model *parts = &m->parts;
    ct_status worst = CT_OK;
    for (int i = 0; i < PART_COUNT; i++) {
        strbuf s;
        strbuf_init(&s, m->allocator, 1024);
        parts->family->describe(parts, i, &s);
        ct_status status = describe(m, &m->components[i], names[i], parts->family->classes[i],
                                    parts->weights[i], strbuf_take(&s), error);
        if (status != CT_OK)
            worst = status;
    }
    return worst;
}

/* The last part of a path, without slashes at its end. */
static char *last_part(const ct_allocator *a, const char *path)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/')
        start--;
    return mem_strndup(a, path + start, end - start);
}

static ct_status hash_model(ct_model *m, ct_error *error)
{
    static const char *const files[] = {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "text_encoder/config.json",
        "transformer/config.json",
        "vae/config.json",
        "processor/preprocessor_config.json",
    };
    fingerprint f;
    fingerprint_begin(&f);
    ct_status status = CT_OK;
    for (size_t i = 0; status == CT_OK && i < sizeof files / sizeof *files; i++) {
        char *path = join(m, files[i]);
        if (!path)
            status = error_memory(error, strlen(m->directory), "a path");
        else if (file_exists(path))
            status = fingerprint_add_file(&f, path, error);
        mem_free(m->allocator, path);
    }
    if (status == CT_OK) {
        for (int i = 0; i < PART_COUNT; i++)
            fingerprint_add_weights(&f, m->parts.weights[i]);
        for (int i = 0; m->loras && i < m->loras->count; i++)
            if (m->loras->files[i].scale != 0)
                fingerprint_add_lora(&f, m->loras->files[i].hash, m->loras->files[i].scale);
        fingerprint_hex(&f, m->hash);
    }
    return status;
}

/* Of what a part computes with, for its results in the cache. */
static ct_status hash_part(ct_model *m, int part, ct_error *error)
{
    static const char *const configs[PART_COUNT] = {[PART_TEXT_ENCODER] =
                                                        "text_encoder/config.json",
                                                    [PART_TRANSFORMER] = "transformer/config.json",
                                                    [PART_VAE] = "vae/config.json"};
    fingerprint f;
    char *path = join(m, configs[part]);
    if (!path)
        return error_memory(error, strlen(m->directory), "a path");
    fingerprint_begin(&f);
    ct_status status = file_exists(path) ? fingerprint_add_file(&f, path, error) : CT_OK;
    mem_free(m->allocator, path);
    fingerprint_add(&f, &m->dequantized, sizeof m->dequantized);
    fingerprint_add_weights(&f, m->parts.weights[part]);
    for (int i = 0; part == PART_TRANSFORMER && m->loras && i < m->loras->count; i++)
        if (m->loras->files[i].scale != 0)
            fingerprint_add_lora(&f, m->loras->files[i].hash, m->loras->files[i].scale);
    fingerprint_hex(&f, m->part_hash[part]);
    return status;
}

/* What its jobs share. */
static ct_status open_cache(ct_model *m, ct_error *error)
{
    ct_status status = CT_OK;
    for (int i = 0; status == CT_OK && i < PART_COUNT; i++)
        status = hash_part(m, i, error);
    if (status == CT_OK && m->context->cache_memory)
        status = blob_memory_create(&m->kept, m->allocator, m->context->cache_memory, error);
    return status;
}

/* ---- LoRAs ----------------------------------------------------------------------------------- */

static ct_status check_loras(const ct_lora *list, int count, ct_error *error)
{
    if (count >= 0 && count <= CT_LORAS && (count == 0 || list))
        return CT_OK;
    return error_set(error, CT_EINVAL, "%d LoRAs are given; 0 to %d can be", count, CT_LORAS);
}

/* What the files are, and what of them the model has. */
static ct_status describe_loras(ct_model *m, ct_error *error)
{
    const int count = m->loras ? m->loras->count : 0;
    m->lora_infos = mem_zero_array(m->allocator, (size_t)count, sizeof *m->lora_infos);
    if (!m->lora_infos)
        return error_memory(error, (size_t)count * sizeof *m->lora_infos, "the LoRAs");
    m->info.loras = count;
    m->info.lora = m->lora_infos;
    for (int i = 0; i < count; i++) {
        const lora_file *f = &m->loras->files[i];
        m->lora_infos[i] = (ct_lora_info){.path = f->path,
                                          .name = f->name,
                                          .hash = f->hash,
                                          .scale = f->scale,
                                          .least_rank = f->least_rank,
                                          .most_rank = f->most_rank,
                                          .modules = f->count,
                                          .matched = f->matched,
                                          .ignored = f->ignored,
                                          .unmatched = f->unknown_count,
                                          .unmatched_name = f->unknown};
        const ct_callbacks *c = &m->context->callbacks;
        log_message(c, CT_LOG_INFO, "%s: %zu of %zu modules match, scale %g%s", f->path, f->matched,
                    f->count, f->scale, f->ignored ? "; those of a text encoder are ignored" : "");
        for (size_t k = 0; k < f->unknown_count; k++)
            log_message(c, CT_LOG_INFO, "%s: %s matches nothing", f->name, f->unknown[k]);
        if (f->unknown_count)
            log_message(c, CT_LOG_WARNING,
                        "%s: %zu of its keys match nothing in the model and change nothing, such "
                        "as %s; \"calotype info MODEL --lora FILE\" lists them",
                        f->path, f->unknown_count, f->unknown[0]);
    }
    return CT_OK;
}

/* Opens the parts with LoRAs in their weights. */
static ct_status load_merged(ct_model *m, load_options *options, const config *index,
                             const ct_model_params *params, ct_error *error)
{
    bind_memory memory = {0};
    const int loras = params ? params->loras : 0;
    ct_status status = CT_OK;
    if (loras)
        status = lora_open(&m->loras, m->allocator, options->threads, params->lora, loras, error);
    memory.lora = m->loras;
    options->memory = &memory;
    if (status == CT_OK)
        status = load_parts(m, options, index, error);
    if (status == CT_OK && m->loras)
        status = lora_check(m->loras, m->directory, error);
    if (status == CT_OK && !m->plan_only)
        status = bind_memory_fill(&memory, options, error);
    m->merged_bytes = memory.bytes;
    bind_memory_free(&memory, m->allocator);
    return status == CT_OK ? describe_loras(m, error) : status;
}

static void choose_defaults(ct_model *m)
{
    ct_model_info *info = &m->info;
    const family_model *parts = &m->parts;
    info->default_shift = m->scheduler.shift;
    parts->family->choose_defaults(parts, m->scheduler.shift, info);
    info->default_cfg_scale = info->default_guidance + 1 - parts->family->guidance_off;
    info->max_references = parts->family->max_references;
    info->size_multiple = parts->factor * parts->patch;
    int64_t side = parts->sample_side / info->size_multiple * info->size_multiple;
    if (side < info->size_multiple)
        side = info->size_multiple;
    info->default_width = info->default_height = (int)side;
    int64_t tokens = parts->family->max_prompt_tokens;
    if (tokens > parts->max_prompt_tokens)
        tokens = parts->max_prompt_tokens;
    info->max_prompt_tokens = (int)tokens;
}

void ct_model_params_init(ct_model_params *params)
{
    if (params)
        *params = (ct_model_params){.struct_size = sizeof *params};
}

ct_status ct_model_load(ct_context *context, const char *directory, ct_model **out, ct_error *error)
{
    return ct_model_load_with(context, directory, NULL, out, error);
}

ct_status ct_model_load_with(ct_context *context, const char *directory,
                             const ct_model_params *params, ct_model **out, ct_error *error)
{
    if (!context || !directory || !out)
        return error_set(error, CT_EINVAL, "ct_model_load: an argument is NULL");
    *out = NULL;
    if (params && params->struct_size != sizeof *params)
        return error_set(error, CT_EINVAL,
                         "ct_model_load_with: call ct_model_params_init on the parameters");
    if (params && check_loras(params->lora, params->loras, error) != CT_OK)
        return CT_EINVAL;
    const ct_allocator *a = &context->allocator;
    load_options options = {
        .allocator = a, .threads = context->threads, .dequantize = params && params->dequantize};
    config index;
    family_model kind = {0};
    ct_status status = read_index(a, directory, &index, &kind, error);
    if (status != CT_OK)
        return status;
    options.infer = !index.root;
    ct_model *m = mem_zero_array(a, 1, sizeof *m);
    if (!m) {
        config_close(&index);
        return error_memory(error, sizeof *m, "the model");
    }
    m->parts = kind;
    m->context = context;
    m->allocator = a;
    m->plan_only = params && params->plan_only;
    m->dequantized = options.dequantize;
    m->directory = mem_strdup(a, directory);
    m->info = (ct_model_info){.directory = m->directory,
                              .name = last_part(a, directory),
                              .class_name = kind.pipeline,
                              .family = kind.family->name,
                              .hash = m->hash,
                              .components = PART_COUNT,
                              .component = m->components};
    if (!m->directory || !m->info.name)
        status = error_memory(error, strlen(directory), "a path");
    if (status == CT_OK)
        status = load_merged(m, &options, index.root ? &index : NULL, params, error);
    config_close(&index);
    if (status == CT_OK)
        status = check_parts(m, error);
    if (status == CT_OK)
        status = describe_parts(m, error);
    if (status == CT_OK)
        status = hash_model(m, error);
    if (status == CT_OK)
        status = open_cache(m, error);
    if (status == CT_OK && context->gpu)
        status = cuda_store_create(&m->gpu_weights, context->gpu, error);
    if (status != CT_OK) {
        ct_model_free(&m);
        return status;
    }
    choose_defaults(m);
    /* The pages of the samples that were hashed. */
    for (int i = 0; i < PART_COUNT; i++)
        weights_let_go(m->parts.weights[i]);
    log_message(&context->callbacks, CT_LOG_INFO, "%s: %s %s, %.1f million parameters", directory,
                m->info.family, m->info.variant, (double)m->info.parameters * 1e-6);
    *out = m;
    return CT_OK;
}

void ct_model_free(ct_model **model)
{
    if (!model || !*model)
        return;
    ct_model *m = *model;
    const ct_allocator *a = m->allocator;
    for (int i = 0; i < PART_COUNT; i++) {
        mem_free(a, m->components[i].dtypes);
        mem_free(a, m->components[i].quantization);
        mem_free(a, m->components[i].summary);
        mem_free(a, m->components[i].paths);
    }
    nn_free(m->spare);
    blob_memory_free(m->kept);
    cuda_store_free(m->gpu_weights);
    tokenizer_free(m->tokenizer);
    if (m->parts.family)
        m->parts.family->free(&m->parts);
    mem_free(a, m->lora_infos);
    lora_close(m->loras);
    mem_free(a, m->info.name);
    mem_free(a, m->directory);
    mem_free(a, m);
    *model = NULL;
}

const ct_model_info *ct_model_get_info(const ct_model *model)
{
    return &model->info;
}
