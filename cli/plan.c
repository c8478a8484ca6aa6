/* calotype plan: how much memory a picture takes, and what of it could be spared. */
#include "cli/commands.h"
#include "app/format.h"
#include "cli/members.h"
#include "cli/params.h"
#include "cli/progress.h"
#include "core/mem.h"

#include <stdlib.h>
#include <string.h>

static const char *const part_names[] = {"text encoder", "transformer", "VAE"};

/* By ct_gpu_way: in JSON, and for people. */
static const char *const way_keys[] = {"all", "two", "turns", "streamed"};
static const char *const way_names[] = {"all weights stay", "text encoder / others in turns",
                                        "all three parts in turns",
                                        "blocks streamed, VAE in strips"};

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

static void gpu_choice_json(json_writer *w, const char *name, const ct_gpu_choice *c)
{
    if (name)
        json_write_key(w, name);
    json_write_object(w);
    member_string(w, "way", way_keys[c->way]);
    member_integer(w, "encoder_blocks", c->encoder_blocks);
    member_integer(w, "streamed_blocks", c->streamed_blocks);
    member_integer(w, "strip_height", c->strip_height);
    member_unsigned(w, "host_bytes", c->host_bytes);
    for (int i = 0; i < 3; i++) {
        char key[32];
        snprintf(key, sizeof key, "%s_bytes", progress_stage_name((ct_stage)i));
        member_unsigned(w, key, c->stage_bytes[i]);
    }
    member_unsigned(w, "peak_bytes", c->peak_bytes);
    member_boolean(w, "fits", c->fits);
    json_write_object_end(w);
}

static void gpu_json(json_writer *w, const ct_gpu_plan *gpu)
{
    json_write_key(w, "gpu");
    if (gpu->total_bytes == 0) {
        json_write_null(w);
        return;
    }
    json_write_object(w);
    member_unsigned(w, "total_bytes", gpu->total_bytes);
    member_unsigned(w, "available_bytes", gpu->available_bytes);
    member_unsigned(w, "limit_bytes", gpu->limit_bytes);
    member_unsigned(w, "fixed_bytes", gpu->fixed_bytes);
    json_write_key(w, "stages");
    json_write_array(w);
    for (int i = 0; i < 3; i++) {
        const ct_gpu_stage *s = &gpu->stage[i];
        json_write_object(w);
        member_string(w, "stage", progress_stage_name((ct_stage)i));
        member_unsigned(w, "weight_bytes", s->weight_bytes);
        member_unsigned(w, "block_bytes", s->block_bytes);
        member_integer(w, "blocks", s->blocks);
        member_unsigned(w, "activation_bytes", s->activation_bytes);
        json_write_object_end(w);
    }
    json_write_array_end(w);
    json_write_key(w, "ways");
    json_write_array(w);
    for (int i = 0; i <= CT_GPU_STREAMED; i++)
        gpu_choice_json(w, NULL, &gpu->way[i]);
    json_write_array_end(w);
    gpu_choice_json(w, "chosen", &gpu->chosen);
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
    member_integer(&w, "evaluations", plan->evaluations);
    member_boolean(&w, "cfg_batch", plan->cfg_batch);
    member_string(&w, "precision", ct_precision_name(plan->precision));
    member_integer(&w, "prompt_tokens", plan->prompt_tokens);
    member_boolean(&w, "prompt_assumed", plan->prompt_assumed);
    member_bytes(&w, "available_bytes", plan->available_bytes);
    member_bytes(&w, "limit_bytes", plan->limit_bytes);
    member_unsigned(&w, "process_bytes", plan->process_bytes);
    member_unsigned(&w, "merged_bytes", plan->merged_bytes);
    json_write_key(&w, "stages");
    json_write_array(&w);
    for (int i = 0; i < 3; i++)
        stage_json(&w, (ct_stage)i, &plan->stage[i]);
    json_write_array_end(&w);
    choice_json(&w, "resident", &plan->resident);
    choice_json(&w, "streamed", &plan->streamed);
    choice_json(&w, "strips", &plan->strips);
    choice_json(&w, "chosen", &plan->chosen);
    gpu_json(&w, &plan->gpu);
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
    fprintf(t->stream, "%d step%s, %d evaluation%s%s\n", plan->steps, plan->steps == 1 ? "" : "s",
            plan->evaluations, plan->evaluations == 1 ? "" : "s",
            plan->cfg_batch ? ", both prompts in one pass" : "");
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
    cell(t, plan->process_bytes - plan->merged_bytes);
    fputs("\n", t->stream);
    if (!plan->merged_bytes)
        return;
    fprintf(t->stream, "%-*s", PART_COLUMNS, "weights with LoRAs");
    cell(t, plan->merged_bytes);
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
    if (plan->gpu.total_bytes)
        fputs(" of the machine's memory", t->stream);
    else if (c->streamed_blocks == blocks)
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

static void print_gpu_way(const page *p, const char *name, const ct_gpu_choice *c, bool chosen)
{
    const terminal *t = p->t;
    fprintf(t->stream, "%s%-*s", terminal_escape(t, chosen ? STYLE_BOLD : STYLE_PLAIN), WAY_COLUMNS,
            name);
    for (int i = 0; i < 3; i++)
        cell(t, c->stage_bytes[i]);
    fprintf(t->stream, "%s%s%s\n", c->fits ? "  fits" : "  does not fit",
            chosen ? (t->utf8 ? "  ← chosen" : "  <- chosen") : "",
            terminal_escape(t, STYLE_PLAIN));
}

static void print_gpu(const page *p, bool limited)
{
    static const char *const columns[] = {"weights", "one block", "activations"};
    static const char *const stages[] = {"encode", "denoise", "decode"};
    const terminal *t = p->t;
    const ct_gpu_plan *gpu = &p->plan->gpu;
    const ct_gpu_choice *c = &gpu->chosen;
    char text[FORMAT_SIZE], name[64];
    if (gpu->total_bytes == 0)
        return;
    heading(t, "on the GPU", PART_COLUMNS, columns, 3);
    for (int i = 0; i < 3; i++) {
        fprintf(t->stream, "%-*s", PART_COLUMNS, part_names[i]);
        cell(t, gpu->stage[i].weight_bytes);
        cell(t, gpu->stage[i].block_bytes);
        cell(t, gpu->stage[i].activation_bytes);
        fputs("\n", t->stream);
    }
    fprintf(t->stream, "%-*s", PART_COLUMNS, "libraries, uploads");
    cell(t, gpu->fixed_bytes);
    fputs("\n", t->stream);
    heading(t, "together", WAY_COLUMNS, stages, 3);
    const bool between = c->way == CT_GPU_STREAMED && c->fits &&
                         c->peak_bytes != gpu->way[CT_GPU_STREAMED].peak_bytes;
    for (int i = 0; i <= CT_GPU_STREAMED; i++) {
        if (between && i == CT_GPU_STREAMED) {
            snprintf(name, sizeof name, "  %d of %d blocks streamed", c->streamed_blocks,
                     gpu->stage[CT_STAGE_DENOISE].blocks);
            print_gpu_way(p, name, c, true);
        }
        print_gpu_way(p, way_names[i], &gpu->way[i], c->fits && !between && (int)c->way == i);
    }
    fprintf(t->stream, "\n%s: %s\n", limited ? "limit on the GPU" : "free on the GPU",
            format_bytes(text, gpu->limit_bytes));
    fprintf(t->stream, "%s%s: %s%s\n", terminal_escape(t, STYLE_BOLD),
            c->fits ? "peak on the GPU" : "at the least", format_bytes(text, c->peak_bytes),
            terminal_escape(t, STYLE_PLAIN));
    if (c->fits)
        return;
    fprintf(t->stream, "does not fit: %s more would be needed",
            format_bytes(text, c->peak_bytes - gpu->limit_bytes));
    if (p->plan->smaller_width)
        fprintf(t->stream, "; %d%s%d would fit", p->plan->smaller_width, t->utf8 ? "×" : "x",
                p->plan->smaller_height);
    fputs("\n", t->stream);
}

static void print_plan(const terminal *t, const ct_model_info *model, const ct_memory_plan *plan,
                       const ct_generate_params *params)
{
    static const char *const columns[] = {"in memory"};
    const page p = {t, plan};
    print_title(t, model, plan);
    print_parts(t, plan);
    if (plan->gpu.total_bytes == 0) { /* else there is nothing to choose here */
        heading(t, "one stage at a time", WAY_COLUMNS, columns, 1);
        print_encoding(&p);
        print_denoising(&p);
        print_decoding(&p);
    }
    print_verdict(t, plan, params->max_memory > 0);
    print_gpu(&p, params->max_vram > 0);
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
        status = model_from_options(&model, context, o->value[OPTION_MODEL].text, o, true, &error);
    if (status == CT_OK)
        status = ct_model_plan(model, &params, &plan, &error);
    if (status == CT_OK && r->mode == REPORT_JSON)
        plan_json(ct_model_get_info(model), &plan);
    else if (status == CT_OK)
        print_plan(&r->out, ct_model_get_info(model), &plan, &params);
    references_close(references);
    ct_model_free(&model);
    ct_context_free(&context);
    mem_free(&mem_default, prompt);
    if (status != CT_OK)
        return report_error(r, &error);
    const bool there = plan.gpu.total_bytes == 0 || plan.gpu.chosen.fits;
    return plan.chosen.fits && there ? EXIT_OK : EXIT_WORK_FAILED;
}
