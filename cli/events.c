#include "cli/events.h"
#include "cli/members.h"

#include <math.h>

/* Digits below a microsecond mean nothing. */
static void member_seconds(json_writer *w, const char *key, double seconds)
{
    member_number(w, key, round(seconds * 1e6) / 1e6);
}

static void open_event(json_writer *w, strbuf *s, const char *event)
{
    members_open(w, s);
    member_string(w, "event", event);
}

static void add_model(json_writer *w, const ct_model_info *model)
{
    json_write_key(w, "model");
    json_write_object(w);
    member_string(w, "name", model->name);
    member_string(w, "directory", model->directory);
    member_string(w, "family", model->family);
    member_string(w, "variant", model->variant);
    member_string(w, "class", model->class_name);
    member_string(w, "hash", model->hash);
    member_unsigned(w, "parameters", model->parameters);
    json_write_object_end(w);
}

static void add_job(json_writer *w, const ct_job_info *job)
{
    member_integer(w, "width", job->width);
    member_integer(w, "height", job->height);
    if (job->references) {
        member_integer(w, "references", job->references);
        member_integer(w, "picture_width", job->picture_width);
        member_integer(w, "picture_height", job->picture_height);
    }
    member_integer(w, "steps", job->steps);
    member_number(w, "guidance", job->guidance);
    member_number(w, "cfg_scale", job->cfg_scale);
    member_number(w, "shift", job->shift);
    member_string(w, "scheduler", job->scheduler);
    member_integer(w, "evaluations", job->evaluations);
    member_integer(w, "guided_steps", job->guided_steps);
    member_boolean(w, "cfg_batch", job->cfg_batch);
    member_integer(w, "prompt_tokens", job->prompt_tokens);
    member_boolean(w, "prompt_truncated", job->prompt_truncated);
    member_integer(w, "negative_tokens", job->negative_tokens);
    member_boolean(w, "negative_truncated", job->negative_truncated);
    member_string(w, "precision", ct_precision_name(job->precision));
    member_unsigned(w, "activation_bytes", job->activation_bytes);
    member_unsigned(w, "peak_bytes", job->peak_bytes);
    member_integer(w, "streamed_blocks", job->streamed_blocks);
    member_integer(w, "blocks", job->blocks);
    member_integer(w, "strip_height", job->strip_height);
    if (job->gpu_peak_bytes)
        member_unsigned(w, "gpu_peak_bytes", job->gpu_peak_bytes);
}

void events_start(FILE *out, const work_plan *plan)
{
    strbuf s;
    json_writer w;
    open_event(&w, &s, "start");
    member_string(&w, "version", ct_version());
    add_model(&w, plan->model);
    if (plan->model->loras)
        member_loras(&w, plan->model);
    member_string(&w, "prompt", plan->params->prompt);
    member_string(&w, "negative_prompt",
                  plan->params->negative_prompt ? plan->params->negative_prompt : "");
    add_job(&w, plan->job);
    member_boolean(&w, "cfg_normalization", plan->params->cfg_normalization);
    member_number(&w, "cfg_truncation", plan->params->cfg_truncation);
    json_write_key(&w, "guidance_interval");
    json_write_array(&w);
    json_write_number(&w, plan->params->guidance_start);
    json_write_number(&w, plan->params->guidance_end);
    json_write_array_end(&w);
    member_string(&w, "rng", "torch");
    member_string(&w, "noise", plan->params->noise_path);
    member_string(&w, "trace", plan->params->trace_path);
    member_integer(&w, "threads", ct_context_threads(plan->context));
    member_string(&w, "cpu", ct_context_cpu(plan->context));
    member_seed(&w, "seed", plan->seed);
    member_boolean(&w, "seed_random", plan->seed_random);
    member_integer(&w, "images", plan->pictures);
    json_write_key(&w, "paths");
    json_write_array(&w);
    for (int i = 0; i < plan->pictures; i++)
        json_write_string(&w, plan->paths[i]);
    json_write_array_end(&w);
    members_close(out, &w, &s);
}

void events_progress(FILE *out, int picture, const ct_progress *news)
{
    strbuf s;
    json_writer w;
    open_event(&w, &s, "progress");
    member_integer(&w, "image", picture);
    member_string(&w, "stage", progress_stage_name(news->stage));
    member_integer(&w, "step", news->step);
    member_integer(&w, "steps", news->steps);
    member_seconds(&w, "stage_seconds", news->stage_seconds);
    member_seconds(&w, "seconds", news->total_seconds);
    members_close(out, &w, &s);
}

void events_message(FILE *out, const char *event, const char *level, const char *message)
{
    strbuf s;
    json_writer w;
    open_event(&w, &s, event);
    if (level)
        member_string(&w, "level", level);
    member_string(&w, "message", message);
    members_close(out, &w, &s);
}

void events_image(FILE *out, const finished *done)
{
    strbuf s;
    json_writer w;
    open_event(&w, &s, "image");
    member_integer(&w, "image", done->number);
    member_string(&w, "path", done->path);
    member_seed(&w, "seed", ct_image_seed(done->image));
    member_integer(&w, "width", ct_image_width(done->image));
    member_integer(&w, "height", ct_image_height(done->image));
    json_write_key(&w, "seconds");
    json_write_object(&w);
    for (int stage = 0; stage < PROGRESS_STAGES; stage++)
        member_seconds(&w, progress_stage_name((ct_stage)stage), done->progress->seconds[stage]);
    member_seconds(&w, "total", done->seconds);
    json_write_object_end(&w);
    member_raw(&w, "recipe", ct_image_recipe_json(done->image));
    members_close(out, &w, &s);
}

void events_error(FILE *out, const ct_error *error)
{
    strbuf s;
    json_writer w;
    open_event(&w, &s, "error");
    member_integer(&w, "code", error->code);
    member_string(&w, "name", ct_status_name(error->code));
    member_string(&w, "message", error->message);
    members_close(out, &w, &s);
}

void events_done(FILE *out, int pictures, double seconds)
{
    strbuf s;
    json_writer w;
    open_event(&w, &s, "done");
    member_integer(&w, "images", pictures);
    member_seconds(&w, "seconds", seconds);
    members_close(out, &w, &s);
}
