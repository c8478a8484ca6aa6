/* Everything that a command tells the person or the program that started it. Progress, warnings
 * and errors go to standard error, results to standard output; with --json there are only events,
 * on standard output. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include "app/options.h"
#include "cli/events.h"
#include "cli/progress.h"
#include "cli/terminal.h"
#include "core/strbuf.h"

enum { EXIT_OK = 0, EXIT_WORK_FAILED = 1, EXIT_USAGE = 2, EXIT_CANCELLED = 130 };

typedef enum report_mode { REPORT_HUMAN, REPORT_QUIET, REPORT_JSON } report_mode;

typedef struct report {
    report_mode mode;
    bool progress_events; /* with REPORT_JSON */
    int verbosity;        /* 0: warnings, 1: also information, 2: everything */
    const char *command;  /* whose help is named after a mistake; NULL: that of all */
    bool silent;          /* nothing is said but errors: work that is done again is only tried */
    bool holding;         /* warnings wait in held, one after another, each ended by a zero byte */
    strbuf held;
    terminal out, err;
    progress progress;
} report;

void report_init(report *r);
/* Takes --quiet, --verbose and --json from the options. */
void report_configure(report *r, const options *o);
/* Callbacks for a context: they report and listen for Ctrl-C. r must outlive the context. */
ct_callbacks report_callbacks(report *r);

/* A passing remark on a terminal, gone with the next line. */
void report_busy(report *r, const char *verb, const char *name);
/* Warnings from here on are shown behind the plan (or before the error, if there is no plan). */
void report_hold(report *r);
void report_plan(report *r, const work_plan *plan);
void report_warning(report *r, const char *message);
void report_image(report *r, const finished *done);
void report_done(report *r, int pictures, double seconds);
/* Prints the error and returns the exit status that belongs to it. */
int report_error(report *r, const ct_error *error);

#endif
