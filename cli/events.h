/* The JSON lines of --json: one object on a line, each with a member "event":
 *
 *     start     all settings, with every default filled in; the first line but for "log"
 *     progress  image, stage ("encode", "denoise", "decode"), step, steps, stage_seconds, seconds
 *     warning   message
 *     log       level ("info", "debug"), message; only with --verbose
 *     image     image, path, seed, width, height, seconds {encode, denoise, decode, total}, recipe
 *     error     code, name, message; the last line when something failed
 *     done      images, seconds; the last line when all went well
 *
 * Members may be added later; programs that read them pass over what they do not know. */
#ifndef CLI_EVENTS_H
#define CLI_EVENTS_H

#include "calotype/calotype.h"
#include "cli/progress.h"

#include <stdio.h>

/* All that is settled before the work begins. */
typedef struct work_plan {
    const ct_context *context;
    const ct_model_info *model;
    const ct_job_info *job;
    const ct_generate_params *params;
    uint64_t seed; /* of the first picture; the next ones follow it */
    bool seed_random;
    int pictures;
    const char *const *paths; /* of each picture */
} work_plan;

/* A picture that was written. */
typedef struct finished {
    const ct_image *image;
    const char *path;
    int number;               /* 1..pictures */
    const progress *progress; /* the times of its stages */
    double seconds;           /* in all, with the writing of the file */
} finished;

void events_start(FILE *out, const work_plan *plan);
void events_progress(FILE *out, int picture, const ct_progress *news);
/* event is "warning" or "log"; level is for "log" and may be NULL. */
void events_message(FILE *out, const char *event, const char *level, const char *message);
void events_image(FILE *out, const finished *done);
void events_error(FILE *out, const ct_error *error);
void events_done(FILE *out, int pictures, double seconds);

#endif
