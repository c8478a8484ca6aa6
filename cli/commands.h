/* The commands of calotype. */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

#include "app/options.h"
#include "cli/report.h"

typedef struct command {
    const char *name;
    unsigned bit;          /* OPTION_FOR_... */
    const char *arguments; /* as the help shows them; NULL: none */
    int min_arguments, max_arguments;
    const char *words; /* what the first argument can be, separated by blanks; NULL: a path. Others
                        * are paths */
    const char *summary;                     /* one line */
    const char *details;                     /* the end of its help: examples; may be NULL */
    int (*run)(const options *o, report *r); /* returns the exit status */
} command;

extern const command command_table[]; /* ends with a command whose name is NULL */

/* NULL when there is none of this name. */
const command *command_find(const char *name);

int generate_run(const options *o, report *r);
int quantize_run(const options *o, report *r);
int plan_run(const options *o, report *r);
int bench_run(const options *o, report *r);
int info_run(const options *o, report *r);
int cache_run(const options *o, report *r);
int devices_run(const options *o, report *r);
int completions_run(const options *o, report *r);
int help_run(const options *o, report *r);

#endif
