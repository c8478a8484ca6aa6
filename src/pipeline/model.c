/* ct_model: opens a directory in the layout of diffusers, mflux or MLX-z-image and checks that its
 * parts belong together. */
#include "core/file.h"
#include "core/mem.h"
#include "core/strbuf.h"
#include "io/fingerprint.h"
#include "io/json.h"
#include "io/names.h"
#include "pipeline/internal.h"

#include <inttypes.h>
#include <string.h>

#define TURBO_SHIFT 3
#define MAX_PROMPT_TOKENS 512 /* max_sequence_length of the reference pipeline */

/* Pipelines of diffusers that this version cannot run but knows. */
static const char *const planned[] = {
    "Flux2KleinPipeline",        "Flux2Pipeline", "QwenImagePipeline", "QwenImageEditPipeline",
    "QwenImageEditPlusPipeline",
};

/* ---- Loading --------------------------------------------------------------------------------- */

/* file says where the name of the pipeline comes from. */
static ct_status check_pipeline(const char *name, const char *file, ct_error *error)
{
    if (!strcmp(name, "ZImagePipeline"))
        return CT_OK;
    for (size_t i = 0; i < sizeof planned / sizeof *planned; i++)
        if (!strcmp(name, planned[i]))
            return error_set(error, CT_EUNSUPPORTED,
                             "%s: %s is not supported yet; this version runs ZImagePipeline", file,
                             name);
    return error_set(error, CT_EUNSUPPORTED,
                     "%s: the pipeline %s is unknown; this version runs ZImagePipeline", file,
                     name);
}

/* Programs around MLX save no model_index.json: the names of the tensors tell the family. */
static ct_status recognize(const ct_allocator *a, const char *directory, ct_error *error)
{
    char *folder = path_join(a, directory, "transformer");
    if (!folder)
        return error_memory(error, strlen(directory), "a path");
    weights *w = NULL;
    ct_status status = CT_OK;
    if (!file_is_directory(folder))
        status = error_set(error, CT_ENOTFOUND,
                           "%s has neither model_index.json nor a folder transformer; give the "
                           "folder of a model in the layout of diffusers or mflux",
                           directory);
    if (status == CT_OK)
        status = weights_open_directory(&w, a, folder, "diffusion_pytorch_model", error);
    const char *name = w ? names_pipeline(w) : NULL;
    if (status == CT_OK && !name)
        status = error_set(error, CT_EUNSUPPORTED,
                           "%s has no model_index.json, and the names of its tensors belong to no "
                           "model that is known",
                           directory);
    if (status == CT_OK)
        status = check_pipeline(name, folder, error);
    weights_close(w);
    mem_free(a, folder);
    return status;
}

/* *indexed tells whether there is a model_index.json. */
static ct_status read_index(const ct_allocator *a, const char *directory, bool *indexed,
                            ct_error *error)
{
    if (!file_is_directory(directory))
        return error_set(error, CT_ENOTFOUND,
                         "%s is not a directory; give the folder that holds model_index.json",
                         directory);
    char *path = path_join(a, directory, "model_index.json");
    if (!path)
        return error_memory(error, strlen(directory), "a path");
    *indexed = file_exists(path);
    config index;
    ct_status status =
        *indexed ? config_open(&index, a, path, error) : recognize(a, directory, error);
    mem_free(a, path);
    if (status != CT_OK || !*indexed)
        return status;
    const char *name = NULL;
    status = config_string(&index, "_class_name", true, &name, error);
    if (status == CT_OK)
        status = check_pipeline(name, index.path, error);
    config_close(&index);
    return status;
}

static char *join(ct_model *m, const char *name)
{
    return path_join(m->allocator, m->directory, name);
}

/* Without a configuration base and Turbo cannot be told apart; nearly all files are Turbo. */
static ct_status load_scheduler(ct_model *m, const char *folder, bool infer, ct_error *error)
{
    if (!infer || file_is_directory(folder))
        return flow_match_read(&m->scheduler, m->allocator, folder, error);
    flow_match_init(&m->scheduler, TURBO_SHIFT);
    log_message(&m->context->callbacks, CT_LOG_INFO,
                "%s has no scheduler: steps, guidance and shift are those of Z-Image-Turbo",
                m->directory);
    return CT_OK;
}

static ct_status load_parts(ct_model *m, const load_options *options, ct_error *error)
{
    const ct_allocator *a = m->allocator;
    char *folders[] = {join(m, "scheduler"), join(m, "tokenizer"), join(m, "text_encoder"),
                       join(m, "transformer"), join(m, "vae")};
    ct_status status = CT_OK;
    for (int i = 0; i < 5; i++)
        if (!folders[i])
            status = error_memory(error, strlen(m->directory), "a path");
    if (status == CT_OK)
        status = load_scheduler(m, folders[0], options->infer, error);
    if (status == CT_OK)
        status = tokenizer_load(&m->tokenizer, a, folders[1], error);
    if (status == CT_OK)
        status = qwen3_load(&m->text_encoder, options, folders[2], 1, error);
    if (status == CT_OK)
        status = zimage_load(&m->transformer, options, folders[3], error);
    if (status == CT_OK)
        status = vae_kl_load(&m->vae, options, folders[4], error);
    for (int i = 0; i < 5; i++)
        mem_free(a, folders[i]);
    return status;
}

static ct_status check_parts(const ct_model *m, ct_error *error)
{
    if (m->transformer->caption_dim != m->text_encoder->hidden)
        return error_set(error, CT_EFORMAT,
                         "%s: transformer/config.json has cap_feat_dim %" PRId64
                         ", but text_encoder/config.json has hidden_size %" PRId64,
                         m->directory, m->transformer->caption_dim, m->text_encoder->hidden);
    if (m->transformer->channels != m->vae->latent_channels)
        return error_set(error, CT_EFORMAT,
                         "%s: transformer/config.json has in_channels %" PRId64
                         ", but vae/config.json has latent_channels %" PRId64,
                         m->directory, m->transformer->channels, m->vae->latent_channels);
    if (tokenizer_size(m->tokenizer) > m->text_encoder->vocab)
        return error_set(error, CT_EFORMAT,
                         "%s: tokenizer/ has ids up to %" PRId32
                         ", but text_encoder/config.json has vocab_size %" PRId64,
                         m->directory, tokenizer_size(m->tokenizer) - 1, m->text_encoder->vocab);
    if (zimage_max_caption(m->transformer) < 1)
        return error_set(error, CT_EFORMAT,
                         "%s: axes_lens in transformer/config.json leaves no room for a caption",
                         m->directory);
    if (tokenizer_added(m->tokenizer, "<|im_start|>") < 0 ||
        tokenizer_added(m->tokenizer, "<|im_end|>") < 0)
        return error_set(error, CT_EFORMAT,
                         "%s: tokenizer/ does not have the tokens <|im_start|> and <|im_end|>",
                         m->directory);
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
    const qwen3 *q = m->text_encoder;
    const zimage *z = m->transformer;
    const vae_kl *v = m->vae;
    strbuf s[3];
    for (int i = 0; i < 3; i++)
        strbuf_init(&s[i], m->allocator, 1024);
    strbuf_printf(&s[0],
                  "%d layers (%d used), hidden %" PRId64 ", %d heads, %d key heads, head dim "
                  "%" PRId64 ", vocabulary %" PRId64,
                  q->layers, q->used_layers, q->hidden, q->heads, q->kv_heads, q->head_dim,
                  q->vocab);
    strbuf_printf(&s[1],
                  "%d layers and 2 x %d refiners, dim %" PRId64 ", %d heads, head dim %" PRId64
                  ", %" PRId64 " latent channels",
                  z->layers, z->refiners, z->dim, z->heads, z->head_dim, z->channels);
    strbuf_printf(&s[2],
                  "%d levels, channels %" PRId64 " to %" PRId64 ", %" PRId64
                  " latent channels, factor %d",
                  v->blocks, v->channels[0], v->channels[v->blocks - 1], v->latent_channels,
                  vae_kl_factor(v));
    ct_status status = describe(m, &m->components[0], "text_encoder", "Qwen3ForCausalLM",
                                q->weights, strbuf_take(&s[0]), error);
    ct_status second = describe(m, &m->components[1], "transformer", "ZImageTransformer2DModel",
                                z->weights, strbuf_take(&s[1]), error);
    ct_status third = describe(m, &m->components[2], "vae", "AutoencoderKL", v->weights,
                               strbuf_take(&s[2]), error);
    return status != CT_OK ? status : second != CT_OK ? second : third;
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
        "model_index.json",         "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json", "tokenizer/vocab.json",
        "tokenizer/merges.txt",     "text_encoder/config.json",
        "transformer/config.json",  "vae/config.json",
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
        fingerprint_add_weights(&f, m->text_encoder->weights);
        fingerprint_add_weights(&f, m->transformer->weights);
        fingerprint_add_weights(&f, m->vae->weights);
        fingerprint_hex(&f, m->hash);
    }
    return status;
}

/* Turbo is distilled: few steps without guidance. Its scheduler has shift 3, that of the base model
 * 6; nothing else in the files tells them apart. Values of the base model: its card. */
static void choose_defaults(ct_model *m)
{
    ct_model_info *info = &m->info;
    bool base = m->scheduler.shift >= 4.5;
    info->variant = base ? "base" : "Turbo";
    info->default_steps = base ? 50 : 8;
    info->default_guidance = base ? 4.0 : 0.0;
    info->default_shift = m->scheduler.shift;
    info->size_multiple = 2 * vae_kl_factor(m->vae);
    int64_t side = m->vae->sample_size / info->size_multiple * info->size_multiple;
    if (side < info->size_multiple)
        side = info->size_multiple;
    info->default_width = info->default_height = (int)side;
    int64_t tokens = MAX_PROMPT_TOKENS;
    if (tokens > zimage_max_caption(m->transformer))
        tokens = zimage_max_caption(m->transformer);
    if (tokens > m->text_encoder->max_positions)
        tokens = m->text_encoder->max_positions;
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
    const ct_allocator *a = &context->allocator;
    load_options options = {
        .allocator = a, .threads = context->threads, .dequantize = params && params->dequantize};
    bool indexed = false;
    ct_status status = read_index(a, directory, &indexed, error);
    if (status != CT_OK)
        return status;
    options.infer = !indexed;
    ct_model *m = mem_zero_array(a, 1, sizeof *m);
    if (!m)
        return error_memory(error, sizeof *m, "the model");
    m->context = context;
    m->allocator = a;
    m->directory = mem_strdup(a, directory);
    m->info = (ct_model_info){.directory = m->directory,
                              .name = last_part(a, directory),
                              .class_name = "ZImagePipeline",
                              .family = "Z-Image",
                              .hash = m->hash,
                              .components = 3,
                              .component = m->components};
    if (!m->directory || !m->info.name)
        status = error_memory(error, strlen(directory), "a path");
    if (status == CT_OK)
        status = load_parts(m, &options, error);
    if (status == CT_OK)
        status = check_parts(m, error);
    if (status == CT_OK)
        status = describe_parts(m, error);
    if (status == CT_OK)
        status = hash_model(m, error);
    if (status == CT_OK && context->gpu)
        status = cuda_store_create(&m->gpu_weights, context->gpu, error);
    if (status != CT_OK) {
        ct_model_free(&m);
        return status;
    }
    choose_defaults(m);
    /* The pages of the samples that were hashed. */
    weights_let_go(m->text_encoder->weights);
    weights_let_go(m->transformer->weights);
    weights_let_go(m->vae->weights);
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
    for (int i = 0; i < 3; i++) {
        mem_free(a, m->components[i].dtypes);
        mem_free(a, m->components[i].quantization);
        mem_free(a, m->components[i].summary);
        mem_free(a, m->components[i].paths);
    }
    cuda_store_free(m->gpu_weights);
    tokenizer_free(m->tokenizer);
    qwen3_free(m->text_encoder);
    zimage_free(m->transformer);
    vae_kl_free(m->vae);
    mem_free(a, m->info.name);
    mem_free(a, m->directory);
    mem_free(a, m);
    *model = NULL;
}

const ct_model_info *ct_model_get_info(const ct_model *model)
{
    return &model->info;
}
