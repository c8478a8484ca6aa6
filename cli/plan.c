/* calotype plan: how much memory a picture takes, and what of it could be spared. */
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/members.h"
#include "cli/params.h"
#include "cli/progress.h"
#include "core/mem.h"

#include <stdlib.h>
#include <string.h>

static const char *const part_names[] = {"text encoder", "transformer", "VAE"};

/* ---- JSON ---------------------------------------------------------------------------------- */

static void member_bytes(json_writer *w, const char *key, uint64_t bytes)
{
    if (bytes == UINT64_MAX)
        member_raw(w, key, NULL);
    else
        member_unsigned(w, key, bytes);
}

static void stage_json(json_writer *w, ct_stage stage, const ct_memory_stage *s)
{
    json_write_object(w);
    member_string(w, "stage", progress_stage_name(stage));
    member_unsigned(w, "file_bytes", s->file_bytes);
    member_unsigned(w, "read_bytes", s->read_bytes);
    member_unsigned(w, "block_bytes", s->block_bytes);
    member_integer(w, "blocks", s->blocks);
    member_unsigned(w, "activation_bytes", s->activation_bytes);
    member_unsigned(w, "buffer_bytes", s->buffer_bytes);
    json_write_object_end(w);
}

static void choice_json(json_writer *w, const char *name, const ct_memory_choice *c)
{
    json_write_key(w, name);
    json_write_object(w);
    member_integer(w, "streamed_blocks", c->streamed_blocks);
    member_integer(w, "strip_height", c->strip_height);
    for (int i = 0; i < 3; i++) {
        char key[32];
        snprintf(key, sizeof key, "%s_bytes", progress_stage_name((ct_stage)i));
        member_unsigned(w, key, c->stage_bytes[i]);
    }
    member_unsigned(w, "peak_bytes", c->peak_bytes);
    member_boolean(w, "fits", c->fits);
    json_write_object_end(w);
}

static void plan_json(const ct_model_info *model, const ct_memory_plan *plan)
{
    strbuf s;
    json_writer w;
    members_open(&w, &s);
    member_string(&w, "kind", "plan");
    member_string(&w, "model", model->name);
    member_integer(&w, "width", plan->width);
    member_integer(&w, "height", plan->height);
    member_integer(&w, "steps", plan->steps);
    member_string(&w, "precision", ct_precision_name(plan->precision));
    member_integer(&w, "prompt_tokens", plan->prompt_tokens);
    member_boolean(&w, "prompt_assumed", plan->prompt_assumed);
    member_bytes(&w, "available_bytes", plan->available_bytes);
    member_bytes(&w, "limit_bytes", plan->limit_bytes);
    member_unsigned(&w, "process_bytes", plan->process_bytes);
    json_write_key(&w, "stages");
    json_write_array(&w);
    for (int i = 0; i < 3; i++)
        stage_json(&w, (ct_stage)i, &plan->stage[i]);
    json_write_array_end(&w);
    choice_json(&w, "resident", &plan->resident);
    choice_json(&w, "streamed", &plan->streamed);
    choice_json(&w, "strips", &plan->strips);
    choice_json(&w, "chosen", &plan->chosen);
    json_write_key(&w, "smaller_size");
    if (plan->smaller_width) {
        json_write_array(&w);
        json_write_integer(&w, plan->smaller_width);
        json_write_integer(&w, plan->smaller_height);
        json_write_array_end(&w);
    } else {
        json_write_null(&w);
    }
    members_close(stdout, &w, &s);
}

/* ---- For people ---------------------------------------------------------------------------- */

#define PART_COLUMNS 20
#define WAY_COLUMNS 30
#define CELL_COLUMNS 12

/* A plan on its way to the screen. */
typedef struct page {
    const terminal *t;
    const ct_memory_plan *plan;
} page;

static void cell(const terminal *t, uint64_t bytes)
{
    char text[FORMAT_SIZE];
    fprintf(t->stream, "%*s", CELL_COLUMNS, format_bytes(text, bytes));
}

static void heading(const terminal *t, const char *name, int name_columns,
                    const char *const *columns, int count)
{
    fprintf(t->stream, "\n%s%-*s", terminal_escape(t, STYLE_DIM), name_columns, name);
    for (int i = 0; i < count; i++)
        fprintf(t->stream, "%*s", CELL_COLUMNS, columns[i]);
    fprintf(t->stream, "%s\n", terminal_escape(t, STYLE_PLAIN));
}

static void print_title(const terminal *t, const ct_model_info *model, const ct_memory_plan *plan)
{
    fputs(terminal_escape(t, STYLE_BOLD), t->stream);
    terminal_clean(t, model->name, false, 0);
    fprintf(t->stream, "%s  %d%s%d, %s, %s%d tokens\n", terminal_escape(t, STYLE_PLAIN),
            plan->width, t->utf8 ? "×" : "x", plan->height, ct_precision_name(plan->precision),
            plan->prompt_assumed ? "a prompt of at most " : "a prompt of ", plan->prompt_tokens);
}

static void print_parts(const terminal *t, const ct_memory_plan *plan)
{
    static const char *const columns[] = {"in files", "read", "one block", "activations",
                                          "buffers"};
    heading(t, "", PART_COLUMNS, columns, 5);
    for (int i = 0; i < 3; i++) {
        const ct_memory_stage *s = &plan->stage[i];
        fprintf(t->stream, "%-*s", PART_COLUMNS, part_names[i]);
        cell(t, s->file_bytes);
        cell(t, s->read_bytes);
        cell(t, s->block_bytes);
        cell(t, s->activation_bytes);
        cell(t, s->buffer_bytes);
        fputs("\n", t->stream);
    }
    fprintf(t->stream, "%-*s", PART_COLUMNS, "program, tokenizer");
    cell(t, plan->process_bytes);
    fputs("\n", t->stream);
}

/* A way to do a stage: what the process takes in it, and whether that fits. */
static void print_way(const page *p, const char *name, ct_stage stage, const ct_memory_choice *c,
                      bool chosen)
{
    const terminal *t = p->t;
    const uint64_t bytes = c->stage_bytes[stage];
    fprintf(t->stream, "%s%-*s", terminal_escape(t, chosen ? STYLE_BOLD : STYLE_PLAIN), WAY_COLUMNS,
            name);
    cell(t, bytes);
    fprintf(t->stream, "%s%s%s\n", bytes <= p->plan->limit_bytes ? "  fits" : "  does not fit",
            chosen ? (t->utf8 ? "  ← chosen" : "  <- chosen") : "",
            terminal_escape(t, STYLE_PLAIN));
}

static void print_encoding(const page *p)
{
    print_way(p, "text encoder, by layers", CT_STAGE_ENCODE, &p->plan->chosen, false);
}

static void print_denoising(const page *p)
{
    const ct_memory_plan *plan = p->plan;
    const int blocks = plan->stage[CT_STAGE_DENOISE].blocks;
    const int streamed = plan->chosen.streamed_blocks;
    char name[FORMAT_SIZE + 32];
    print_way(p, "transformer stays", CT_STAGE_DENOISE, &plan->resident,
              plan->chosen.fits && streamed == 0);
    if (streamed > 0 && streamed < blocks) {
        snprintf(name, sizeof name, "  %d of %d blocks streamed", streamed, blocks);
        print_way(p, name, CT_STAGE_DENOISE, &plan->chosen, plan->chosen.fits);
    }
    snprintf(name, sizeof name, "  all %d blocks streamed", blocks);
    print_way(p, name, CT_STAGE_DENOISE, &plan->streamed, plan->chosen.fits && streamed == blocks);
}

static void print_decoding(const page *p)
{
    const ct_memory_plan *plan = p->plan;
    const int lowest = plan->strips.strip_height, chosen = plan->chosen.strip_height;
    char name[FORMAT_SIZE + 32];
    print_way(p, "VAE, whole picture", CT_STAGE_DECODE, &plan->resident,
              plan->chosen.fits && chosen == 0);
    if (chosen && chosen != lowest) {
        snprintf(name, sizeof name, "  in strips of %d rows", chosen);
        print_way(p, name, CT_STAGE_DECODE, &plan->chosen, plan->chosen.fits);
    }
    if (lowest) {
        snprintf(name, sizeof name, "  in strips of %d rows", lowest);
        print_way(p, name, CT_STAGE_DECODE, &plan->strips, plan->chosen.fits && chosen == lowest);
    }
}

static void print_verdict(const terminal *t, const ct_memory_plan *plan, bool limited)
{
    const ct_memory_choice *c = &plan->chosen;
    char text[FORMAT_SIZE];
    fputs("\n", t->stream);
    if (plan->limit_bytes != UINT64_MAX)
        fprintf(t->stream, "%s: %s\n", limited ? "limit" : "available",
                format_bytes(text, plan->limit_bytes));
    fprintf(t->stream, "%s%s: %s%s", terminal_escape(t, STYLE_BOLD),
            c->fits ? "peak" : "at the least", format_bytes(text, c->peak_bytes),
            terminal_escape(t, STYLE_PLAIN));
    const int blocks = plan->stage[CT_STAGE_DENOISE].blocks;
    if (c->streamed_blocks == blocks)
        fprintf(t->stream, ", all %d blocks of the transformer streamed", blocks);
    else if (c->streamed_blocks)
        fprintf(t->stream, ", %d of %d blocks of the transformer streamed", c->streamed_blocks,
                blocks);
    if (c->strip_height)
        fprintf(t->stream, ", the VAE in strips of %d rows", c->strip_height);
    fputs("\n", t->stream);
    if (c->peak_bytes <= plan->limit_bytes)
        return;
    format_bytes(text, c->peak_bytes - plan->limit_bytes);
    if (c->fits) {
        fprintf(t->stream,
                "%s more than is available: the system will take weights away and read "
                "them again, which is slow\n",
                text);
        return;
    }
    fprintf(t->stream, "does not fit: %s more would be needed", text);
    if (plan->smaller_width)
        fprintf(t->stream, "; %d%s%d would fit", plan->smaller_width, t->utf8 ? "×" : "x",
                plan->smaller_height);
    else
        fputs("; no smaller size would fit", t->stream);
    fputs("\n", t->stream);
}

static void print_plan(const terminal *t, const ct_model_info *model, const ct_memory_plan *plan,
                       bool limited)
{
    static const char *const columns[] = {"in memory"};
    const page p = {t, plan};
    print_title(t, model, plan);
    print_parts(t, plan);
    heading(t, "one stage at a time", WAY_COLUMNS, columns, 1);
    print_encoding(&p);
    print_denoising(&p);
    print_decoding(&p);
    print_verdict(t, plan, limited);
}

int plan_run(const options *o, report *r)
{
    ct_error error;
    ct_context *context = NULL;
    ct_model *model = NULL;
    ct_generate_params params;
    ct_image *references[OPTIONS_REFERENCES] = {NULL};
    ct_memory_plan plan;
    params_from_options(&params, o);
    ct_memory_plan_init(&plan);
    char *prompt;
    ct_status status = read_prompt(&prompt, o, &error);
    if (prompt)
        params.prompt = prompt;
    if (status == CT_OK)
        status = context_from_options(&context, o, r, &error);
    if (status == CT_OK)
        status = references_open(references, &params, context, o, &error);
    if (status == CT_OK)
        status = ct_model_load(context, o->value[OPTION_MODEL].text, &model, &error);
    if (status == CT_OK)
        status = ct_model_plan(model, &params, &plan, &error);
    if (status == CT_OK && r->mode == REPORT_JSON)
        plan_json(ct_model_get_info(model), &plan);
    else if (status == CT_OK)
        print_plan(&r->out, ct_model_get_info(model), &plan, params.max_memory > 0);
    references_close(references);
    ct_model_free(&model);
    ct_context_free(&context);
    mem_free(&mem_default, prompt);
    if (status != CT_OK)
        return report_error(r, &error);
    return plan.chosen.fits ? EXIT_OK : EXIT_WORK_FAILED;
}
