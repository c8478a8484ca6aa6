/* calotype, the program: finds the command, reads its options, runs it. */
#include "cli/commands.h"
#include "cli/help.h"

#include <locale.h>
#include <stdlib.h>
#include <string.h>

/* Options that were not given take their value from the environment, where they have a variable. */
static ct_status read_environment(options *o, const command *c, ct_error *error)
{
    for (int id = 1; id < OPTION_COUNT; id++) {
        const option_info *info = &option_table[id];
        if (!info->environment || !(info->commands & c->bit) || o->value[id].given)
            continue;
        const char *value = getenv(info->environment);
        if (!value || !*value)
            continue;
        ct_status status = options_set(o, (option_id)id, info->environment, value, error);
        if (status != CT_OK)
            return status;
    }
    return CT_OK;
}

static ct_status read_options(options *o, const command *c, int argc, char **argv, ct_error *error)
{
    options_request request = {.command = c->name,
                               .commands = c->bit,
                               .max_arguments = c->max_arguments,
                               .argc = argc,
                               .argv = (const char *const *)argv};
    ct_status status = options_parse(o, &request, error);
    if (status != CT_OK || o->value[OPTION_HELP].given)
        return status;
    if (o->arguments < c->min_arguments)
        return error_set(error, CT_EINVAL, "\"calotype %s\" needs an argument: %s", c->name,
                         c->arguments);
    return read_environment(o, c, error);
}

/* A mistake may stand before --json, and must be told as JSON all the same. */
static bool wants_json(const command *c, int argc, char **argv)
{
    if (!(option_table[OPTION_JSON].commands & c->bit))
        return false;
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (!strcmp(argv[i], "--json"))
            return true;
    return false;
}

static int run_command(report *r, const command *c, int argc, char **argv)
{
    options o;
    ct_error error;
    options_init(&o);
    r->command = c->name;
    ct_status status = read_options(&o, c, argc, argv, &error);
    if (status != CT_OK) {
        r->mode = wants_json(c, argc, argv) ? REPORT_JSON : REPORT_HUMAN;
        return report_error(r, &error);
    }
    if (o.value[OPTION_HELP].given) {
        help_command(&r->out, c);
        return EXIT_OK;
    }
    report_configure(r, &o);
    return c->run(&o, r);
}

static int run(report *r, int argc, char **argv)
{
    if (argc < 2) {
        help_overview(&r->err);
        return EXIT_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--version") || !strcmp(name, "-V")) {
        printf("calotype %s\n", ct_version());
        return EXIT_OK;
    }
    if (!strcmp(name, "--help") || !strcmp(name, "-h"))
        name = "help";
    const command *c = command_find(name);
    if (c)
        return run_command(r, c, argc - 2, argv + 2);
    ct_error error;
    help_unknown_command(name, &error);
    return report_error(r, &error);
}

int main(int argc, char **argv)
{
    /* Characters only: numbers are read and written with a point everywhere. */
    setlocale(LC_CTYPE, "");
    report r;
    report_init(&r);
    int status = run(&r, argc, argv);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == EXIT_OK) {
        fputs("calotype: error: standard output cannot be written\n", stderr);
        status = EXIT_WORK_FAILED;
    }
    return status;
}
