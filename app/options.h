/* The options of calotype: one table from which the parser, the bounds, the help and the shell
 * completions are made, so that none of them can disagree with another.
 *
 *     options o;
 *     options_init(&o);
 *     if (options_parse(&o, &request, &error) == CT_OK && o.value[OPTION_STEPS].given)
 *         steps = o.value[OPTION_STEPS].integer;
 */
#ifndef APP_OPTIONS_H
#define APP_OPTIONS_H

#include "core/error.h"

typedef enum option_id {
    OPTION_NONE = 0,
    OPTION_MODEL,
    OPTION_PROMPT,
    OPTION_NEGATIVE_PROMPT,
    OPTION_REFERENCE,
    OPTION_KEEP_SIZE,
    OPTION_LORA,
    OPTION_OUTPUT,
    OPTION_WIDTH,
    OPTION_HEIGHT,
    OPTION_SIZE,
    OPTION_STEPS,
    OPTION_SEED,
    OPTION_BATCH_COUNT,
    OPTION_GUIDANCE,
    OPTION_CFG_SCALE,
    OPTION_CFG_NORMALIZATION,
    OPTION_CFG_TRUNCATION,
    OPTION_GUIDANCE_INTERVAL,
    OPTION_CFG_BATCH,
    OPTION_SHIFT,
    OPTION_SHIFT_TERMINAL,
    OPTION_THREADS,
    OPTION_PRECISION,
    OPTION_DEVICE,
    OPTION_CPU,
    OPTION_MAX_MEMORY,
    OPTION_MAX_VRAM,
    OPTION_CACHE,
    OPTION_CACHE_LIMIT,
    OPTION_NO_CACHE,
    OPTION_RNG,
    OPTION_NOISE,
    OPTION_TRACE,
    OPTION_TRACE_MODULES,
    OPTION_OUTPUT_DIRECTORY,
    OPTION_BITS,
    OPTION_GROUP_SIZE,
    OPTION_DEQUANTIZE,
    OPTION_WHAT,
    OPTION_SHAPES,
    OPTION_SIZES,
    OPTION_ROWS,
    OPTION_SECONDS,
    OPTION_OUTPUT_PLOT,
    OPTION_QUIET,
    OPTION_VERBOSE,
    OPTION_JSON,
    OPTION_HELP,
    OPTION_COUNT
} option_id;

typedef enum option_kind {
    OPTION_KIND_FLAG,      /* no value */
    OPTION_KIND_TEXT,      /* any text; words, if there are any, are only proposals */
    OPTION_KIND_FILE,      /* a path */
    OPTION_KIND_DIRECTORY, /* a path */
    OPTION_KIND_INTEGER,   /* a whole number in min..max */
    OPTION_KIND_NUMBER,    /* a number in min..max */
    OPTION_KIND_SEED,      /* 0..2^64-1, or -1 for a random one */
    OPTION_KIND_SIZE,      /* 1024x768: sets OPTION_WIDTH and OPTION_HEIGHT */
    OPTION_KIND_INTERVAL,  /* 0.2:0.8: two numbers in min..max, the first the smaller one */
    OPTION_KIND_BYTES,     /* 6G, 512M: an amount of memory, in min..max */
    OPTION_KIND_CHOICE     /* one of the words */
} option_kind;

/* Groups of the help, in the order in which they are shown. */
typedef enum option_group {
    OPTION_GROUP_MAIN,
    OPTION_GROUP_PICTURE,
    OPTION_GROUP_GUIDANCE,
    OPTION_GROUP_MACHINE,
    OPTION_GROUP_REFERENCE,
    OPTION_GROUP_BENCH,
    OPTION_GROUP_REPORT,
    OPTION_GROUP_COUNT
} option_group;

/* Sets of commands that an option belongs to. */
#define OPTION_FOR_GENERATE 1u
#define OPTION_FOR_INFO 2u
#define OPTION_FOR_COMPLETIONS 4u
#define OPTION_FOR_HELP 8u
#define OPTION_FOR_QUANTIZE 16u
#define OPTION_FOR_PLAN 32u
#define OPTION_FOR_BENCH 64u
#define OPTION_FOR_DEVICES 128u
#define OPTION_FOR_EDIT 256u
#define OPTION_FOR_CACHE 512u
#define OPTION_FOR_ALL 1023u

typedef struct option_info {
    const char *name; /* of the long form, without the dashes */
    char letter;      /* of the short form, or 0 */
    option_kind kind;
    const char *metavar; /* what stands for the value in the help; NULL for a flag */
    option_group group;
    unsigned commands;    /* OPTION_FOR_... */
    unsigned required;    /* those of the commands that cannot do without it */
    const char *help;     /* without a full stop */
    const char *fallback; /* what happens when it is not given, in words; NULL: not worth a word */
    double min, max;      /* of INTEGER and NUMBER, and of the sides of a SIZE */
    const char *words;    /* separated by blanks; NULL: none */
    const char *environment; /* a variable that gives the value when the option does not; or NULL */
    const char *elsewhere; /* names that other programs have for it, separated by blanks; or NULL */
    option_id conflict;    /* an option that cannot be given together with this one */
} option_info;

/* Indexed by option_id; entry 0 is empty. */
extern const option_info option_table[OPTION_COUNT];
option_id option_id_of(const option_info *info);
const char *option_group_title(option_group group);

/* Calls visit for each word of a list separated by blanks, until it returns false. */
void option_each_word(const char *words, bool (*visit)(void *user, const char *word, size_t length),
                      void *user);

typedef struct option_value {
    int given;        /* how many times; the last one counts */
    const char *text; /* as it was written; belongs to whoever passed it in */
    int64_t integer;  /* INTEGER; CHOICE: the index of the word */
    double number;    /* NUMBER; INTERVAL: its beginning */
    double end;       /* INTERVAL */
    uint64_t seed;    /* SEED */
    uint64_t bytes;   /* BYTES */
    bool random;      /* SEED: -1 was given */
} option_value;

#define OPTIONS_ARGUMENTS 5
#define OPTIONS_REFERENCES 10
#define OPTIONS_LORAS 32

typedef struct options {
    option_value value[OPTION_COUNT];
    const char *argument[OPTIONS_ARGUMENTS]; /* what is not an option */
    int arguments;
    const char *reference[OPTIONS_REFERENCES]; /* all that were given, in their order */
    int references;
    const char *lora[OPTIONS_LORAS]; /* likewise: FILE or FILE:SCALE */
    int loras;
} options;

/* What options_parse reads, and for which command. */
typedef struct options_request {
    const char *command; /* its name, for messages */
    unsigned commands;   /* one of OPTION_FOR_... */
    int max_arguments;   /* 0..OPTIONS_ARGUMENTS */
    int argc;
    const char *const *argv; /* without the program and the command; strings are not copied */
} options_request;

void options_init(options *o);

/* Reads a command line: --name value, --name=value, -n value, -nvalue, -n=value, flags joined as
 * in -qv, and -- before arguments that begin with a dash. Checks conflicts and required options
 * too. Stops at --help. Fails with CT_EINVAL. */
ct_status options_parse(options *o, const options_request *request, ct_error *error);

/* Gives one option a value as text (ignored for a flag). label names the source in messages:
 * "--steps". Fails with CT_EINVAL and leaves the option as it was. */
ct_status options_set(options *o, option_id id, const char *label, const char *text,
                      ct_error *error);

/* The option of a set of commands with this long name or letter, or NULL. */
const option_info *options_find(unsigned commands, const char *name, size_t length);
const option_info *options_find_letter(unsigned commands, char letter);

#endif
