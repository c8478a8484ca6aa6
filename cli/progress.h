/* The progress of one picture: a bar on a terminal, a line for each stage elsewhere. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include "calotype/calotype.h"
#include "cli/terminal.h"

#define PROGRESS_STAGES 3

typedef struct progress {
    terminal *terminal; /* NULL: only the times are kept */
    int picture, pictures;
    bool running;
    ct_stage stage;
    int step, steps;
    double stage_began; /* on the clock of core/clock.h */
    double step_ended;  /* likewise: when the last finished step was */
    double last_shown;
    double seconds[PROGRESS_STAGES]; /* of each stage that ran, 0 for the others */
    int units[PROGRESS_STAGES];      /* steps that it had */
} progress;

/* "encode", "denoise", "decode" */
const char *progress_stage_name(ct_stage stage);

void progress_init(progress *p, terminal *t);
void progress_begin(progress *p, int picture, int pictures);
/* News from the library. */
void progress_update(progress *p, const ct_progress *news);
/* Nothing new, but time has passed. Cheap enough to be called often. */
void progress_tick(progress *p);
/* Takes the bar away. */
void progress_end(progress *p);

#endif
