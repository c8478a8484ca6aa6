#include "pipeline/recipe.h"
#include "io/jsonwrite.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MAXIMUM ((size_t)8 << 20)
#define HASH_DIGITS 10 /* how much of a model's hash stable-diffusion-webui shows */

static void write_seed(json_writer *w, uint64_t seed)
{
    if (seed <= (uint64_t)1 << 53) {
        json_write_unsigned(w, seed);
        return;
    }
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, seed);
    json_write_string(w, digits);
}

static void member_string(json_writer *w, const char *key, const char *value)
{
    json_write_key(w, key);
    json_write_string(w, value);
}

static void member_integer(json_writer *w, const char *key, int value)
{
    json_write_key(w, key);
    json_write_integer(w, value);
}

static void member_number(json_writer *w, const char *key, double value)
{
    json_write_key(w, key);
    json_write_number(w, value);
}

/* Not all steps are guided. */
static bool has_interval(const recipe *r)
{
    return r->guidance_start > 0 || r->guidance_end < 1;
}

/* Whether any LoRA had an effect. */
static bool has_loras(const recipe *r)
{
    bool any = false;
    for (int i = 0; i < r->loras; i++)
        any = any || r->lora[i].scale != 0;
    return any;
}

static void write_loras(json_writer *w, const recipe *r)
{
    json_write_key(w, "loras");
    json_write_array(w);
    for (int i = 0; i < r->loras; i++) {
        if (r->lora[i].scale == 0)
            continue;
        json_write_object(w);
        member_string(w, "name", r->lora[i].name);
        member_string(w, "hash", r->lora[i].hash);
        member_number(w, "scale", r->lora[i].scale);
        json_write_object_end(w);
    }
    json_write_array_end(w);
}

char *recipe_json(const ct_allocator *a, const recipe *r)
{
    strbuf s;
    strbuf_init(&s, a, MAXIMUM);
    json_writer w;
    json_write_init(&w, &s);
    json_write_object(&w);
    member_string(&w, "calotype", r->version);
    member_string(&w, "prompt", r->prompt);
    member_string(&w, "negative_prompt", r->negative);
    json_write_key(&w, "seed");
    write_seed(&w, r->seed);
    member_integer(&w, "width", r->width);
    member_integer(&w, "height", r->height);
    if (r->references) {
        json_write_key(&w, "references");
        json_write_array(&w);
        for (int i = 0; i < r->references; i++) {
            json_write_object(&w);
            member_string(&w, "name", r->reference[i].name);
            member_string(&w, "hash", r->reference[i].hash);
            json_write_object_end(&w);
        }
        json_write_array_end(&w);
        json_write_key(&w, "keep_size");
        json_write_boolean(&w, r->keep_size);
    }
    member_integer(&w, "steps", r->steps);
    member_integer(&w, "evaluations", r->evaluations);
    member_number(&w, "guidance", r->guidance);
    member_number(&w, "cfg_scale", r->cfg_scale);
    json_write_key(&w, "cfg_normalization");
    json_write_boolean(&w, r->cfg_normalization);
    member_number(&w, "cfg_truncation", r->cfg_truncation);
    if (has_interval(r)) {
        json_write_key(&w, "guidance_interval");
        json_write_array(&w);
        json_write_number(&w, r->guidance_start);
        json_write_number(&w, r->guidance_end);
        json_write_array_end(&w);
    }
    member_number(&w, "shift", r->shift);
    if (r->shift_terminal > 0)
        member_number(&w, "shift_terminal", r->shift_terminal);
    member_string(&w, "scheduler", r->scheduler);
    member_string(&w, "precision", r->precision);
    member_string(&w, "rng", r->rng);
    member_string(&w, "model", r->model_name);
    member_string(&w, "model_hash", r->model_hash);
    member_string(&w, "model_class", r->model_class);
    if (has_loras(r))
        write_loras(&w, r);
    if (r->dequantized) {
        json_write_key(&w, "dequantize");
        json_write_boolean(&w, true);
    }
    member_string(&w, "cpu", r->cpu);
    json_write_object_end(&w);
    return strbuf_take(&s);
}

/* ---- The text form ---- */

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* stable-diffusion-webui quotes values that hold a comma, a colon or a newline, and reads
 *     \s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)
 * Quotes around a value and spaces at its ends would be lost on the way: they are quoted, too. */
static bool needs_quotes(const char *value)
{
    size_t length = strlen(value);
    return strpbrk(value, ",:\n\r\"") || is_space(value[0]) || is_space(value[length - 1]);
}

/* An empty value would stop that program's parser, so its key is left out. */
static void add_field(strbuf *s, const char *key, const char *value)
{
    if (!value || !*value)
        return;
    if (s->length && s->data[s->length - 1] != '\n')
        strbuf_puts(s, ", ");
    strbuf_puts(s, key);
    strbuf_puts(s, ": ");
    if (needs_quotes(value))
        json_quote(s, value, strlen(value));
    else
        strbuf_puts(s, value);
}

static void add_integer(strbuf *s, const char *key, int value)
{
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    add_field(s, key, text);
}

static void add_number(strbuf *s, const char *key, double value)
{
    char text[JSON_NUMBER_SIZE];
    json_number_text(text, value);
    add_field(s, key, text);
}

/* Sampler and schedule under the names of stable-diffusion-webui and ComfyUI. The sigmas of
 * FlowMatchEulerDiscreteScheduler are theirs of the schedule "Simple" with the same shift. */
static void add_sampler(strbuf *s, const char *scheduler)
{
    if (!strcmp(scheduler, "FlowMatchEulerDiscreteScheduler")) {
        add_field(s, "Sampler", "Euler");
        add_field(s, "Schedule type", "Simple");
    } else {
        add_field(s, "Sampler", scheduler);
    }
}

/* Lora hashes: "name: 0123456789, other: ...", as that program writes them, which has the scales in
 * the prompt; and a field of ours for those. Names go without their ending. */
static void add_loras(strbuf *s, const recipe *r)
{
    strbuf hashes, scales;
    char number[JSON_NUMBER_SIZE];
    strbuf_init(&hashes, s->allocator, MAXIMUM);
    strbuf_init(&scales, s->allocator, MAXIMUM);
    for (int i = 0; i < r->loras; i++) {
        const ct_lora_info *l = &r->lora[i];
        const char *dot = strrchr(l->name, '.');
        const int length = (int)(dot && dot > l->name ? (size_t)(dot - l->name) : strlen(l->name));
        if (l->scale == 0)
            continue;
        json_number_text(number, l->scale);
        strbuf_printf(&hashes, "%s%.*s: %.*s", hashes.length ? ", " : "", length, l->name,
                      HASH_DIGITS, l->hash);
        strbuf_printf(&scales, "%s%.*s: %s", scales.length ? ", " : "", length, l->name, number);
    }
    s->failed = s->failed || hashes.failed || scales.failed;
    add_field(s, "Lora hashes", hashes.data);
    add_field(s, "Lora scales", scales.data);
    strbuf_free(&hashes);
    strbuf_free(&scales);
}

/* Fields of ours: "cat.jpg: 0123456789, ..." */
static void add_references(strbuf *s, const recipe *r)
{
    strbuf list;
    strbuf_init(&list, s->allocator, MAXIMUM);
    for (int i = 0; i < r->references; i++)
        strbuf_printf(&list, "%s%s: %.*s", i ? ", " : "",
                      r->reference[i].name ? r->reference[i].name : "picture", HASH_DIGITS,
                      r->reference[i].hash);
    s->failed = s->failed || list.failed;
    add_field(s, "References", list.data);
    if (r->keep_size)
        add_field(s, "Keep size", "True");
    strbuf_free(&list);
}

static void add_fields(strbuf *s, const recipe *r)
{
    char text[64];
    add_integer(s, "Steps", r->steps);
    add_sampler(s, r->scheduler);
    add_number(s, "CFG scale", r->cfg_scale);
    snprintf(text, sizeof text, "%" PRIu64, r->seed);
    add_field(s, "Seed", text);
    snprintf(text, sizeof text, "%dx%d", r->width, r->height);
    add_field(s, "Size", text);
    snprintf(text, sizeof text, "%.*s", HASH_DIGITS, r->model_hash);
    add_field(s, "Model hash", text);
    add_field(s, "Model", r->model_name);
    add_loras(s, r);
    if (r->dequantized)
        add_field(s, "Dequantize", "True");
    if (r->references)
        add_references(s, r);
    add_number(s, "Shift", r->shift);
    if (r->shift_terminal > 0)
        add_number(s, "Shift terminal", r->shift_terminal);
    if (r->cfg_normalization)
        add_field(s, "CFG normalization", "True");
    if (r->cfg_truncation < 1)
        add_number(s, "CFG truncation", r->cfg_truncation);
    if (has_interval(r)) {
        add_number(s, "Guidance start", r->guidance_start);
        add_number(s, "Guidance end", r->guidance_end);
    }
    /* That program's name for torch.randn on the processor. */
    add_field(s, "RNG", !strcmp(r->rng, "torch") ? "CPU" : r->rng);
    add_field(s, "Precision", r->precision);
    snprintf(text, sizeof text, "calotype %.40s", r->version);
    add_field(s, "Version", text);
}

char *recipe_text(const ct_allocator *a, const recipe *r)
{
    strbuf s;
    strbuf_init(&s, a, MAXIMUM);
    strbuf_puts(&s, r->prompt);
    if (r->negative && *r->negative) {
        strbuf_puts(&s, "\nNegative prompt: ");
        strbuf_puts(&s, r->negative);
    }
    strbuf_puts(&s, "\n");
    add_fields(&s, r);
    /* The original strips the whole text: without a prompt it begins with "Steps". */
    if (strbuf_ok(&s) && s.data[0] == '\n')
        memmove(s.data, s.data + 1, s.length--);
    return strbuf_take(&s);
}
