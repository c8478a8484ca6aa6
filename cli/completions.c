/* calotype completions: what a shell needs to complete a command line, made from the tables. */
#include "cli/commands.h"

#include <string.h>

/* Text inside single quotes: quote stands for a single quote, and a backslash goes before each of
 * the characters in escaped. */
static void put_quoted(const char *text, const char *quote, const char *escaped)
{
    for (; *text; text++) {
        if (*text == '\'')
            fputs(quote, stdout);
        else if (strchr(escaped, *text))
            printf("\\%c", *text);
        else
            putchar(*text);
    }
}

static bool takes_value(const option_info *info)
{
    return info->kind != OPTION_KIND_FLAG;
}

/* The options of a command, one after another: NULL at the end. Begins with OPTION_NONE. */
static const option_info *next_option(const command *c, option_id *id)
{
    for (int next = (int)*id + 1; next < OPTION_COUNT; next++) {
        if (option_table[next].commands & c->bit) {
            *id = (option_id)next;
            return &option_table[next];
        }
    }
    return NULL;
}

/* ---- bash ---------------------------------------------------------------------------------- */

static void bash_pattern(const option_info *info)
{
    if (info->letter)
        printf("-%c|", info->letter);
    printf("--%s", info->name);
}

static void bash_value(const option_info *info)
{
    fputs("        ", stdout);
    bash_pattern(info);
    fputs(") ", stdout);
    if (info->kind == OPTION_KIND_DIRECTORY)
        fputs("_calotype_paths -d; ", stdout);
    else if (info->kind == OPTION_KIND_FILE)
        fputs("_calotype_paths -f; ", stdout);
    else if (info->words)
        printf("_calotype_words \"%s\"; ", info->words);
    puts("return ;;");
}

static void bash_command(const command *c)
{
    printf("    %s)\n        case $prev in\n", c->name);
    option_id id = OPTION_NONE;
    for (const option_info *info; (info = next_option(c, &id));)
        if (takes_value(info))
            bash_value(info);
    puts("        esac");
    printf("        if [[ $cur == -*%s ]]; then\n", c->max_arguments ? "" : " || -z $cur");
    fputs("            _calotype_words \"", stdout);
    id = OPTION_NONE;
    for (const option_info *info; (info = next_option(c, &id));) {
        if (info->letter)
            printf("-%c ", info->letter);
        printf("--%s ", info->name);
    }
    puts("\"");
    if (c->words && c->max_arguments > 1)
        printf("        elif (( COMP_CWORD == 2 )); then\n            _calotype_words \"%s\"\n",
               c->words);
    else if (c->words)
        printf("        else\n            _calotype_words \"%s\"\n", c->words);
    if (c->max_arguments > (c->words ? 1 : 0))
        puts("        else\n            _calotype_paths -f");
    puts("        fi ;;");
}

static void print_bash(void)
{
    puts("# bash completion of calotype. Made by: calotype completions bash\n"
         "\n"
         "_calotype_words()\n"
         "{\n"
         "    COMPREPLY=( $(compgen -W \"$1\" -- \"$cur\") )\n"
         "}\n"
         "\n"
         "_calotype_paths()\n"
         "{\n"
         "    local IFS=$'\\n'\n"
         "    compopt -o filenames 2>/dev/null\n"
         "    COMPREPLY=( $(compgen \"$1\" -- \"$cur\") )\n"
         "}\n"
         "\n"
         "_calotype()\n"
         "{\n"
         "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
         "    COMPREPLY=()\n"
         "    # bash makes three words of --name=value.\n"
         "    if [[ $cur == \"=\" ]]; then\n"
         "        cur=\n"
         "    elif [[ $prev == \"=\" ]] && (( COMP_CWORD > 2 )); then\n"
         "        prev=${COMP_WORDS[COMP_CWORD-2]}\n"
         "    fi\n"
         "    if (( COMP_CWORD == 1 )); then");
    fputs("        _calotype_words \"", stdout);
    for (const command *c = command_table; c->name; c++)
        printf("%s ", c->name);
    puts("--help --version\"\n"
         "        return\n"
         "    fi\n"
         "    case ${COMP_WORDS[1]} in");
    for (const command *c = command_table; c->name; c++)
        bash_command(c);
    puts("    esac\n"
         "}\n"
         "\n"
         "complete -F _calotype calotype");
}

/* ---- zsh ----------------------------------------------------------------------------------- */

static void zsh_names(const option_info *info)
{
    if (info->letter)
        printf("-%c ", info->letter);
    printf("--%s", info->name);
}

static void zsh_option(const option_info *info)
{
    fputs(" \\\n            '(", stdout);
    zsh_names(info);
    if (info->conflict) {
        putchar(' ');
        zsh_names(&option_table[info->conflict]);
    }
    fputs(")'", stdout);
    /* -n+ takes its value in the same word or the next, --name= also behind the sign. */
    const char *value = takes_value(info) ? "=" : "";
    if (info->letter)
        printf("{-%c%s,--%s%s}", info->letter, *value ? "+" : "", info->name, value);
    else
        printf("--%s%s", info->name, value);
    fputs("'[", stdout);
    put_quoted(info->help, "'\\''", "[]:\\");
    putchar(']');
    if (takes_value(info)) {
        printf(":%s:", info->metavar);
        if (info->kind == OPTION_KIND_DIRECTORY)
            fputs("_files -/", stdout);
        else if (info->kind == OPTION_KIND_FILE)
            fputs("_files", stdout);
        else if (info->words)
            printf("(%s)", info->words);
        else
            putchar(' ');
    }
    putchar('\'');
}

static void print_zsh(void)
{
    puts("#compdef calotype\n"
         "# zsh completion of calotype. Made by: calotype completions zsh\n"
         "\n"
         "_calotype() {\n"
         "    if (( CURRENT == 2 )); then\n"
         "        local -a commands=(");
    for (const command *c = command_table; c->name; c++) {
        printf("            '%s:", c->name);
        put_quoted(c->summary, "'\\''", ":\\");
        puts("'");
    }
    puts("        )\n"
         "        _describe 'command' commands\n"
         "        return\n"
         "    fi\n"
         "    local command=$words[2]\n"
         "    shift words\n"
         "    (( CURRENT-- ))\n"
         "    case $command in");
    for (const command *c = command_table; c->name; c++) {
        printf("    %s)\n        _arguments -s -S", c->name);
        option_id id = OPTION_NONE;
        for (const option_info *info; (info = next_option(c, &id));)
            zsh_option(info);
        if (c->words)
            printf(" \\\n            '1:argument:(%s)'", c->words);
        if (c->max_arguments > (c->words ? 1 : 0))
            printf(" \\\n            '%s:argument:_files'", c->max_arguments > 1 ? "*" : "1");
        puts(" ;;");
    }
    puts("    esac\n"
         "}\n"
         "\n"
         "if [[ $funcstack[1] == _calotype ]]; then\n"
         "    _calotype \"$@\"\n"
         "else\n"
         "    compdef _calotype calotype\n"
         "fi");
}

/* ---- fish ---------------------------------------------------------------------------------- */

static void fish_option(const command *c, const option_info *info)
{
    printf("complete -c calotype -n '__fish_seen_subcommand_from %s'", c->name);
    if (info->letter)
        printf(" -s %c", info->letter);
    printf(" -l %s", info->name);
    if (info->kind == OPTION_KIND_DIRECTORY)
        fputs(" -x -a '(__fish_complete_directories)'", stdout);
    else if (info->kind == OPTION_KIND_FILE)
        fputs(" -r -F", stdout);
    else if (info->words)
        printf(" -x -a '%s'", info->words);
    else if (takes_value(info))
        fputs(" -x", stdout);
    fputs(" -d '", stdout);
    put_quoted(info->help, "\\'", "\\");
    puts("'");
}

static void print_fish(void)
{
    puts("# fish completion of calotype. Made by: calotype completions fish\n"
         "complete -c calotype -f\n"
         "complete -c calotype -n __fish_use_subcommand -s h -l help -d 'show the help'\n"
         "complete -c calotype -n __fish_use_subcommand -s V -l version -d 'show the version'");
    for (const command *c = command_table; c->name; c++) {
        printf("complete -c calotype -n __fish_use_subcommand -a %s -d '", c->name);
        put_quoted(c->summary, "\\'", "\\");
        puts("'");
        option_id id = OPTION_NONE;
        for (const option_info *info; (info = next_option(c, &id));)
            fish_option(c, info);
        if (c->words)
            printf("complete -c calotype -n '__fish_seen_subcommand_from %s' -a '%s'\n", c->name,
                   c->words);
        if (c->max_arguments > (c->words ? 1 : 0))
            printf("complete -c calotype -n '__fish_seen_subcommand_from %s' -F\n", c->name);
    }
}

int completions_run(const options *o, report *r)
{
    const char *shell = o->argument[0];
    if (!strcmp(shell, "bash"))
        print_bash();
    else if (!strcmp(shell, "zsh"))
        print_zsh();
    else if (!strcmp(shell, "fish"))
        print_fish();
    else {
        ct_error error;
        error_set(&error, CT_EINVAL,
                  "no completions for \"%.60s\"; there are some for bash, zsh "
                  "and fish",
                  shell);
        return report_error(r, &error);
    }
    return EXIT_OK;
}
