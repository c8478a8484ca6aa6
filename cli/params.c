#include "cli/params.h"
#include "app/number.h"
#include "cli/cache.h"
#include "core/file.h"
#include "core/mem.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define PROMPT_MAXIMUM ((size_t)1 << 20)

ct_status context_from_options(ct_context **out, const options *o, report *r, ct_error *error)
{
    ct_context_params params;
    ct_context_params_init(&params);
    params.threads = (int)o->value[OPTION_THREADS].integer;
    params.cpu = o->value[OPTION_CPU].text;
    params.device = o->value[OPTION_DEVICE].text;
    char cache[4096];
    params.cache = cache_from_options(cache, sizeof cache, o);
    if (o->value[OPTION_CACHE_LIMIT].given)
        params.cache_limit = o->value[OPTION_CACHE_LIMIT].bytes;
    if (o->value[OPTION_NO_CACHE].given)
        params.cache_limit = params.cache_memory = 0;
    params.callbacks = report_callbacks(r);
    return ct_context_create(&params, out, error);
}

static ct_precision parse_precision(const option_value *value)
{
    static const ct_precision in_order_of_words[] = {CT_PRECISION_AUTO, CT_PRECISION_FP32,
                                                     CT_PRECISION_BF16, CT_PRECISION_INT8,
                                                     CT_PRECISION_FP8,  CT_PRECISION_FP16};
    return value->given ? in_order_of_words[value->integer] : CT_PRECISION_AUTO;
}

static ct_cfg_batch parse_cfg_batch(const option_value *value)
{
    static const ct_cfg_batch in_order_of_words[] = {CT_CFG_BATCH_AUTO, CT_CFG_BATCH_ON,
                                                     CT_CFG_BATCH_OFF};
    return value->given ? in_order_of_words[value->integer] : CT_CFG_BATCH_AUTO;
}

void params_from_options(ct_generate_params *p, const options *o)
{
    const option_value *value = o->value;
    ct_generate_params_init(p);
    p->prompt = value[OPTION_PROMPT].text;
    p->negative_prompt = value[OPTION_NEGATIVE_PROMPT].text;
    p->width = (int)value[OPTION_WIDTH].integer;
    p->height = (int)value[OPTION_HEIGHT].integer;
    p->steps = (int)value[OPTION_STEPS].integer;
    if (value[OPTION_GUIDANCE].given)
        p->guidance = value[OPTION_GUIDANCE].number;
    if (value[OPTION_CFG_SCALE].given)
        p->cfg_scale = value[OPTION_CFG_SCALE].number;
    if (value[OPTION_CFG_TRUNCATION].given)
        p->cfg_truncation = value[OPTION_CFG_TRUNCATION].number;
    if (value[OPTION_GUIDANCE_INTERVAL].given) {
        p->guidance_start = value[OPTION_GUIDANCE_INTERVAL].number;
        p->guidance_end = value[OPTION_GUIDANCE_INTERVAL].end;
    }
    p->cfg_batch = parse_cfg_batch(&value[OPTION_CFG_BATCH]);
    p->cfg_normalization = value[OPTION_CFG_NORMALIZATION].given;
    p->shift = value[OPTION_SHIFT].number;
    if (value[OPTION_SHIFT_TERMINAL].given) /* 0 means "the model's own" to the library */
        p->shift_terminal =
            value[OPTION_SHIFT_TERMINAL].number > 0 ? value[OPTION_SHIFT_TERMINAL].number : -1;
    p->precision = parse_precision(&value[OPTION_PRECISION]);
    p->max_memory = value[OPTION_MAX_MEMORY].bytes;
    p->max_vram = value[OPTION_MAX_VRAM].bytes;
}

ct_status references_open(ct_image *references[OPTIONS_REFERENCES], ct_generate_params *p,
                          ct_context *context, const options *o, ct_error *error)
{
    ct_status status = CT_OK;
    for (int i = 0; status == CT_OK && i < o->references; i++)
        status = ct_image_load(context, o->reference[i], &references[i], error);
    p->references = (const ct_image *const *)references;
    p->reference_count = o->references;
    p->keep_size = o->value[OPTION_KEEP_SIZE].given;
    return status;
}

void references_close(ct_image *references[OPTIONS_REFERENCES])
{
    for (int i = 0; i < OPTIONS_REFERENCES; i++)
        ct_image_free(&references[i]);
}

/* FILE, or FILE:SCALE where there is no file of that whole name. */
static ct_status split_lora(loras *l, const char *text, ct_error *error)
{
    const char *colon = strrchr(text, ':'), *slash = strrchr(text, '/');
    ct_lora *lora = &l->list[l->count];
    size_t length = strlen(text);
    *lora = (ct_lora){.scale = 1};
    if (colon && colon > text && !(slash && slash > colon) && !file_exists(text)) {
        if (number_real(colon + 1, &lora->scale) != NUMBER_OK)
            return error_set(error, CT_EINVAL, "--lora %s: \"%s\" is not a scale", text, colon + 1);
        length = (size_t)(colon - text);
    }
    l->path[l->count] = mem_strndup(&mem_default, text, length);
    lora->path = l->path[l->count];
    return l->path[l->count++] ? CT_OK : error_memory(error, length, "a path");
}

ct_status loras_open(loras *l, const options *o, ct_error *error)
{
    *l = (loras){.count = 0};
    ct_status status = CT_OK;
    for (int i = 0; status == CT_OK && i < o->loras; i++)
        status = split_lora(l, o->lora[i], error);
    return status;
}

void loras_close(loras *l)
{
    for (int i = 0; i < l->count; i++)
        mem_free(&mem_default, l->path[i]);
}

ct_status model_argument(const char **directory, const options *o, int at, const char *command,
                         ct_error *error)
{
    const option_value *given = &o->value[OPTION_MODEL];
    const int arguments = o->arguments - at;
    *directory = arguments > 0 ? o->argument[at] : given->text;
    if (arguments + (given->given > 0) > 1)
        return error_set(error, CT_EINVAL, "one model at a time: \"%.200s\" is another one",
                         arguments > 1 ? o->argument[at + 1] : given->text);
    if (!*directory || !**directory)
        return error_set(error, CT_EINVAL, "\"calotype %s\" needs a model: a directory", command);
    return CT_OK;
}

ct_status model_from_options(ct_model **out, ct_context *context, const char *directory,
                             const options *o, bool plan_only, ct_error *error)
{
    ct_model_params params;
    ct_model_params_init(&params);
    params.dequantize = o->value[OPTION_DEQUANTIZE].given;
    params.plan_only = plan_only;
    loras l;
    ct_status status = loras_open(&l, o, error);
    params.lora = l.list;
    params.loras = l.count;
    if (status == CT_OK)
        status = ct_model_load_with(context, directory, &params, out, error);
    loras_close(&l);
    return status;
}

ct_status read_prompt(char **out, const options *o, ct_error *error)
{
    *out = NULL;
    const char *given = o->value[OPTION_PROMPT].text;
    if (!given || strcmp(given, "-") != 0)
        return CT_OK;
    if (isatty(STDIN_FILENO))
        fputs("Type the prompt, then Ctrl-D on a line of its own.\n", stderr);
    strbuf s;
    strbuf_init(&s, &mem_default, PROMPT_MAXIMUM);
    char block[4096];
    size_t got;
    while ((got = fread(block, 1, sizeof block, stdin)) > 0)
        strbuf_add(&s, block, got);
    if (ferror(stdin)) {
        strbuf_free(&s);
        return error_set(error, CT_EIO, "the prompt cannot be read from standard input: %s",
                         strerror(errno));
    }
    if (!strbuf_ok(&s)) {
        strbuf_free(&s);
        return error_set(error, CT_EINVAL, "the prompt on standard input has more than %zu bytes",
                         PROMPT_MAXIMUM);
    }
    if (s.length && memchr(s.data, 0, s.length)) {
        strbuf_free(&s);
        return error_set(error, CT_EINVAL, "the prompt on standard input is not text");
    }
    size_t length = s.length;
    if (length && s.data[length - 1] == '\n')
        length--;
    if (length && length < s.length && s.data[length - 1] == '\r')
        length--;
    char *text = strbuf_take(&s);
    if (!text)
        return error_memory(error, 1, "the prompt");
    text[length] = 0;
    *out = text;
    return CT_OK;
}
