/* calotype info: what a model is, or how a picture was made. */
#define _POSIX_C_SOURCE 200809L
#include "cli/commands.h"
#include "app/format.h"
#include "cli/members.h"
#include "cli/params.h"
#include "core/file.h"

#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#define LABEL_COLUMNS 14 /* with the blanks in front */

static uint64_t file_bytes(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && st.st_size > 0 ? (uint64_t)st.st_size : 0;
}

/* ---- Models -------------------------------------------------------------------------------- */

static void component_json(json_writer *w, const ct_component_info *c)
{
    json_write_object(w);
    member_string(w, "name", c->name);
    member_string(w, "class", c->class_name);
    member_unsigned(w, "parameters", c->parameters);
    member_unsigned(w, "bytes", c->bytes);
    member_string(w, "dtypes", c->dtypes);
    member_string(w, "quantization", *c->quantization ? c->quantization : NULL);
    member_string(w, "summary", c->summary);
    json_write_key(w, "files");
    json_write_array(w);
    for (int i = 0; i < c->files; i++) {
        json_write_object(w);
        member_string(w, "path", c->paths[i]);
        member_unsigned(w, "bytes", file_bytes(c->paths[i]));
        json_write_object_end(w);
    }
    json_write_array_end(w);
    json_write_object_end(w);
}

static void model_json(const ct_model_info *m)
{
    strbuf s;
    json_writer w;
    members_open(&w, &s);
    member_string(&w, "kind", "model");
    member_string(&w, "directory", m->directory);
    member_string(&w, "name", m->name);
    member_string(&w, "family", m->family);
    member_string(&w, "variant", m->variant);
    member_string(&w, "class", m->class_name);
    member_string(&w, "hash", m->hash);
    member_unsigned(&w, "parameters", m->parameters);
    member_unsigned(&w, "bytes", m->bytes);
    json_write_key(&w, "defaults");
    json_write_object(&w);
    member_unsigned(&w, "width", (uint64_t)m->default_width);
    member_unsigned(&w, "height", (uint64_t)m->default_height);
    member_unsigned(&w, "steps", (uint64_t)m->default_steps);
    member_number(&w, "guidance", m->default_guidance);
    member_number(&w, "shift", m->default_shift);
    json_write_object_end(&w);
    member_unsigned(&w, "size_multiple", (uint64_t)m->size_multiple);
    member_unsigned(&w, "max_prompt_tokens", (uint64_t)m->max_prompt_tokens);
    json_write_key(&w, "components");
    json_write_array(&w);
    for (int i = 0; i < m->components; i++)
        component_json(&w, &m->component[i]);
    json_write_array_end(&w);
    member_loras(&w, m);
    members_close(stdout, &w, &s);
}

static void label(const terminal *t, const char *name)
{
    fprintf(t->stream, "  %s%-*s%s", terminal_escape(t, STYLE_DIM), LABEL_COLUMNS - 2, name,
            terminal_escape(t, STYLE_PLAIN));
}

/* A line whose value comes from a file. */
static void line(const terminal *t, const char *name, const char *value)
{
    label(t, name);
    terminal_clean(t, value, false, 0);
    fputs("\n", t->stream);
}

static void print_bold(const terminal *t, const char *text)
{
    fputs(terminal_escape(t, STYLE_BOLD), t->stream);
    terminal_clean(t, text, false, 0);
    fputs(terminal_escape(t, STYLE_PLAIN), t->stream);
}

static void print_component(const terminal *t, const ct_component_info *c)
{
    char count[FORMAT_SIZE], bytes[FORMAT_SIZE];
    fputs("\n", t->stream);
    print_bold(t, c->name);
    fputs("  ", t->stream);
    terminal_clean(t, c->class_name, false, 0);
    fputs("\n", t->stream);
    label(t, "parameters");
    fprintf(t->stream, "%s, %s, %s\n", format_count(count, c->parameters),
            format_bytes(bytes, c->bytes), c->dtypes);
    if (*c->quantization)
        line(t, "quantized", c->quantization);
    line(t, "dimensions", c->summary);
    for (int i = 0; i < c->files; i++) {
        const char *name = strrchr(c->paths[i], '/');
        label(t, i == 0 ? "files" : "");
        terminal_clean(t, name ? name + 1 : c->paths[i], false, 0);
        fprintf(t->stream, "  %s%s%s\n", terminal_escape(t, STYLE_DIM),
                format_bytes(bytes, file_bytes(c->paths[i])), terminal_escape(t, STYLE_PLAIN));
    }
}

static void print_lora(const terminal *t, const ct_lora_info *l)
{
    fputs("\n", t->stream);
    print_bold(t, l->name);
    fprintf(t->stream, "  LoRA, scale %g, rank %" PRId64, l->scale, l->least_rank);
    if (l->most_rank != l->least_rank)
        fprintf(t->stream, " to %" PRId64, l->most_rank);
    fputs("\n", t->stream);
    line(t, "hash", l->hash);
    label(t, "matched");
    fprintf(t->stream, "%zu of %zu modules\n", l->matched, l->modules);
    if (l->ignored) {
        label(t, "ignored");
        fprintf(t->stream, "%zu modules of a text encoder\n", l->ignored);
    }
    for (size_t i = 0; i < l->unmatched; i++)
        line(t, i == 0 ? "unmatched" : "", l->unmatched_name[i]);
}

static void print_model(const terminal *t, const ct_model_info *m)
{
    char count[FORMAT_SIZE], bytes[FORMAT_SIZE];
    const char *times = t->utf8 ? "×" : "x";
    print_bold(t, m->name);
    fprintf(t->stream, "  %s %s\n", m->family, m->variant);
    line(t, "directory", m->directory);
    line(t, "class", m->class_name);
    label(t, "parameters");
    fprintf(t->stream, "%s, %s\n", format_count(count, m->parameters),
            format_bytes(bytes, m->bytes));
    line(t, "hash", m->hash);
    label(t, "defaults");
    fprintf(t->stream, "%d%s%d, %d steps, ", m->default_width, times, m->default_height,
            m->default_steps);
    if (m->default_shift > 0)
        fprintf(t->stream, "shift %g, ", m->default_shift);
    else
        fputs("shift by the size, ", t->stream);
    if (m->default_cfg_scale > 1)
        fprintf(t->stream, "guidance %g\n", m->default_guidance);
    else
        fputs("guidance off\n", t->stream);
    label(t, "limits");
    fprintf(t->stream, "sides in multiples of %d, prompts of %d tokens\n", m->size_multiple,
            m->max_prompt_tokens);
    for (int i = 0; i < m->components; i++)
        print_component(t, &m->component[i]);
    for (int i = 0; i < m->loras; i++)
        print_lora(t, &m->lora[i]);
}

static ct_status model_info(report *r, ct_context *context, const options *o, ct_error *error)
{
    ct_model *model = NULL;
    r->silent = true; /* what of a LoRA matches nothing is listed */
    ct_status status = model_from_options(&model, context, o->argument[0], o, true, error);
    if (status != CT_OK)
        return status;
    if (r->mode == REPORT_JSON)
        model_json(ct_model_get_info(model));
    else
        print_model(&r->out, ct_model_get_info(model));
    ct_model_free(&model);
    return CT_OK;
}

/* ---- Pictures ------------------------------------------------------------------------------ */

static void picture_json(const ct_image *image, const char *path)
{
    strbuf s;
    json_writer w;
    members_open(&w, &s);
    member_string(&w, "kind", "picture");
    member_string(&w, "path", path);
    member_unsigned(&w, "width", (uint64_t)ct_image_width(image));
    member_unsigned(&w, "height", (uint64_t)ct_image_height(image));
    member_raw(&w, "recipe", ct_image_recipe_json(image));
    const char *text = ct_image_recipe_text(image);
    member_string(&w, "parameters", *text ? text : NULL);
    members_close(stdout, &w, &s);
}

static void print_picture(const terminal *t, const ct_image *image, const char *path)
{
    print_bold(t, path);
    fprintf(t->stream, "  %d%s%d\n", ct_image_width(image), t->utf8 ? "×" : "x",
            ct_image_height(image));
    const char *text = ct_image_recipe_text(image);
    const char *json = ct_image_recipe_json(image);
    if (!*text && !*json) {
        fputs("no recipe in this file\n", t->stream);
        return;
    }
    terminal_clean(t, *text ? text : json, true, 0);
    fputs("\n", t->stream);
}

static ct_status picture_info(report *r, ct_context *context, const char *path, ct_error *error)
{
    ct_image *image = NULL;
    ct_status status = ct_image_load(context, path, &image, error);
    if (status != CT_OK)
        return status;
    if (r->mode == REPORT_JSON)
        picture_json(image, path);
    else
        print_picture(&r->out, image, path);
    ct_image_free(&image);
    return CT_OK;
}

int info_run(const options *o, report *r)
{
    const char *path = o->argument[0];
    ct_error error;
    ct_context *context = NULL;
    ct_context_params params;
    ct_context_params_init(&params);
    params.device = "cpu";
    params.threads = 1;
    params.callbacks = report_callbacks(r);
    ct_status status;
    if (!file_exists(path))
        status = error_set(&error, CT_ENOTFOUND, "%s does not exist", path);
    else if (o->loras && !file_is_directory(path))
        status = error_set(&error, CT_EINVAL, "--lora needs a model: a directory");
    else
        status = ct_context_create(&params, &context, &error);
    if (status == CT_OK)
        status = file_is_directory(path) ? model_info(r, context, o, &error)
                                         : picture_info(r, context, path, &error);
    ct_context_free(&context);
    return status == CT_OK ? EXIT_OK : report_error(r, &error);
}
