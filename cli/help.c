#include "cli/help.h"
#include "app/suggest.h"

#include <string.h>

#define TEXT_COLUMN 30
#define MINIMUM_WIDTH 60
#define MAXIMUM_WIDTH 100

static void heading(const terminal *t, const char *text)
{
    fprintf(t->stream, "\n%s%s%s\n", terminal_escape(t, STYLE_BOLD), text,
            terminal_escape(t, STYLE_PLAIN));
}

void help_overview(const terminal *t)
{
    FILE *out = t->stream;
    fputs("calotype makes pictures from text with diffusion transformers, on this machine.\n", out);
    heading(t, "Usage");
    fputs("  calotype COMMAND [OPTION]...\n", out);
    heading(t, "Commands");
    for (const command *c = command_table; c->name; c++)
        fprintf(out, "  %-13s %s\n", c->name, c->summary);
    heading(t, "Options");
    fputs("  -h, --help    show this help, or that of a command\n"
          "  -V, --version show the version\n"
          "\n"
          "\"calotype help generate\" shows all options of a command.\n",
          out);
}

/* Words are put on lines that end before width; lines after the first begin at TEXT_COLUMN. */
typedef struct paragraph {
    FILE *out;
    int column, width;
    bool empty; /* no word on this line yet */
} paragraph;

static void add_word(paragraph *p, const char *word, size_t length)
{
    if (!p->empty && p->column + 1 + (int)length > p->width) {
        fprintf(p->out, "\n%*s", TEXT_COLUMN, "");
        p->column = TEXT_COLUMN;
        p->empty = true;
    }
    if (!p->empty)
        fputc(' ', p->out);
    fwrite(word, 1, length, p->out);
    p->column += (int)length + !p->empty;
    p->empty = false;
}

static void add_text(paragraph *p, const char *text)
{
    while (*text) {
        size_t length = strcspn(text, " ");
        if (length)
            add_word(p, text, length);
        text += length;
        text += strspn(text, " ");
    }
}

/* "auto, fp32, bf16" */
static void join_words(char *out, size_t size, const char *words)
{
    size_t at = 0;
    for (; *words && at + 2 < size; words++) {
        if (*words == ' ')
            out[at++] = ',';
        out[at++] = *words;
    }
    out[at] = 0;
}

/* "1 to 1000; default: the model's own", or nothing. */
static void limits_text(char *out, size_t size, const option_info *info)
{
    char range[64] = "", fallback[96] = "", environment[96] = "";
    if (info->kind == OPTION_KIND_INTEGER || info->kind == OPTION_KIND_NUMBER)
        snprintf(range, sizeof range, "%.10g to %.10g", info->min, info->max);
    else if (info->kind == OPTION_KIND_CHOICE)
        join_words(range, sizeof range, info->words);
    if (info->fallback)
        snprintf(fallback, sizeof fallback, "default: %s", info->fallback);
    if (info->environment)
        snprintf(environment, sizeof environment, "environment: %s", info->environment);
    snprintf(out, size, "%s%s%s%s%s", range, *range && *fallback ? "; " : "", fallback,
             (*range || *fallback) && *environment ? "; " : "", environment);
}

static void print_option(const terminal *t, const option_info *info, int width)
{
    char names[80], limits[300];
    if (info->letter)
        snprintf(names, sizeof names, "  -%c, --%s", info->letter, info->name);
    else
        snprintf(names, sizeof names, "      --%s", info->name);
    int column = fprintf(t->stream, info->metavar ? "%s %s" : "%s%s", names,
                         info->metavar ? info->metavar : "");
    if (column > TEXT_COLUMN - 2) {
        fputs("\n", t->stream);
        column = 0;
    }
    fprintf(t->stream, "%*s", TEXT_COLUMN - column, "");
    paragraph p = {.out = t->stream, .column = TEXT_COLUMN, .width = width, .empty = true};
    add_text(&p, info->help);
    limits_text(limits, sizeof limits, info);
    if (*limits) {
        char bracketed[310];
        snprintf(bracketed, sizeof bracketed, "[%s]", limits);
        add_text(&p, bracketed);
    }
    fputs("\n", t->stream);
}

static void print_usage(const terminal *t, const command *c)
{
    fprintf(t->stream, "  calotype %s", c->name);
    for (int id = 1; id < OPTION_COUNT; id++) {
        const option_info *info = &option_table[id];
        if (info->required & c->bit)
            fprintf(t->stream, " -%c %s", info->letter, info->metavar);
    }
    if (c->arguments)
        fprintf(t->stream, " %s", c->arguments);
    fputs(" [OPTION]...\n", t->stream);
}

void help_command(const terminal *t, const command *c)
{
    int width = terminal_width(t);
    if (width > MAXIMUM_WIDTH)
        width = MAXIMUM_WIDTH;
    if (width < MINIMUM_WIDTH)
        width = MINIMUM_WIDTH;
    fprintf(t->stream, "calotype %s: %s\n", c->name, c->summary);
    heading(t, "Usage");
    print_usage(t, c);
    for (int group = 0; group < OPTION_GROUP_COUNT; group++) {
        bool empty = true;
        for (int id = 1; id < OPTION_COUNT; id++) {
            const option_info *info = &option_table[id];
            if (info->group != (option_group)group || !(info->commands & c->bit))
                continue;
            if (empty)
                heading(t, option_group_title((option_group)group));
            empty = false;
            print_option(t, info, width);
        }
    }
    if (c->details)
        fprintf(t->stream, "\n%s", c->details);
}

ct_status help_unknown_command(const char *name, ct_error *error)
{
    suggestion near;
    suggest_init(&near, name, strlen(name));
    for (const command *c = command_table; c->name; c++)
        suggest_try(&near, c->name, strlen(c->name));
    if (near.best)
        return error_set(error, CT_EINVAL, "unknown command \"%.60s\"; did you mean %s?", name,
                         near.best);
    if (name[0] == '-')
        return error_set(error, CT_EINVAL,
                         "a command comes first, as in: calotype generate %.60s ...", name);
    return error_set(error, CT_EINVAL, "unknown command \"%.60s\"", name);
}

int help_run(const options *o, report *r)
{
    if (o->arguments == 0) {
        help_overview(&r->out);
        return EXIT_OK;
    }
    const command *c = command_find(o->argument[0]);
    if (!c) {
        ct_error error;
        help_unknown_command(o->argument[0], &error);
        return report_error(r, &error);
    }
    help_command(&r->out, c);
    return EXIT_OK;
}
