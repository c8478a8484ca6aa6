/* Help, made from the tables of commands and options. */
#ifndef CLI_HELP_H
#define CLI_HELP_H

#include "cli/commands.h"

/* A few lines: what calotype is, and its commands. */
void help_overview(const terminal *t);
void help_command(const terminal *t, const command *c);
/* CT_EINVAL with a suggestion, for a command that does not exist. */
ct_status help_unknown_command(const char *name, ct_error *error);

#endif
