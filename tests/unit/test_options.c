/* The table of options and its parser. */
#include "test_support.h"

#include "app/number.h"
#include "app/options.h"
#include "app/suggest.h"

#include <string.h>

#define MAXIMUM_ARGUMENTS 16

/* Splits at blanks; "_" stands for an argument that is empty. */
static ct_status parse(options *o, unsigned commands, const char *line, ct_error *error)
{
    static char words[512];
    static const char *argv[MAXIMUM_ARGUMENTS];
    options_request request = {.command = "generate",
                               .commands = commands,
                               .max_arguments = commands == OPTION_FOR_INFO ? 1 : 0,
                               .argv = argv};
    assert_true(strlen(line) < sizeof words);
    strcpy(words, line);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " ")) {
        assert_true(request.argc < MAXIMUM_ARGUMENTS);
        argv[request.argc++] = strcmp(word, "_") ? word : "";
    }
    options_init(o);
    return options_parse(o, &request, error);
}

#define NEEDED "-m model -p prompt -o out.png "

static void accepts(options *o, const char *line)
{
    char whole[512] = NEEDED;
    ct_error error = {0};
    strncat(whole, line, sizeof whole - sizeof NEEDED);
    if (parse(o, OPTION_FOR_GENERATE, whole, &error) != CT_OK)
        fail_msg("%s: %s", line, error.message);
}

static void refuses(const char *line, const char *part)
{
    char whole[512] = NEEDED;
    options o;
    ct_error error = {0};
    strncat(whole, line, sizeof whole - sizeof NEEDED);
    assert_int_equal(parse(&o, OPTION_FOR_GENERATE, whole, &error), CT_EINVAL);
    assert_int_equal(error.code, CT_EINVAL);
    if (!strstr(error.message, part))
        fail_msg("%s: \"%s\" does not say \"%s\"", line, error.message, part);
}

/* ---- The table ----------------------------------------------------------------------------- */

static void table_is_complete(void **state)
{
    (void)state;
    for (int id = 1; id < OPTION_COUNT; id++) {
        const option_info *info = &option_table[id];
        assert_non_null(info->name);
        assert_non_null(info->help);
        assert_true(info->commands != 0);
        assert_int_equal(option_id_of(info), id);
        assert_int_equal(info->kind == OPTION_KIND_FLAG, info->metavar == NULL);
        assert_int_equal(info->required & ~info->commands, 0);
        assert_true(info->help[strlen(info->help) - 1] != '.');
        if (info->kind == OPTION_KIND_INTEGER || info->kind == OPTION_KIND_NUMBER)
            assert_true(info->min < info->max);
        if (info->kind == OPTION_KIND_CHOICE)
            assert_non_null(info->words);
        if (info->required)
            assert_true(info->letter != 0); /* the usage line shows it */
        if (info->conflict)
            assert_int_equal(option_table[info->conflict].conflict, id);
    }
}

static void names_are_unique(void **state)
{
    (void)state;
    for (int id = 1; id < OPTION_COUNT; id++) {
        const option_info *info = &option_table[id];
        for (unsigned command = 1; command < OPTION_FOR_ALL; command <<= 1) {
            if (!(info->commands & command))
                continue;
            assert_ptr_equal(options_find(command, info->name, strlen(info->name)), info);
            if (info->letter)
                assert_ptr_equal(options_find_letter(command, info->letter), info);
        }
    }
    assert_null(options_find(OPTION_FOR_ALL, "nothing", 7));
    assert_null(options_find_letter(OPTION_FOR_ALL, 0));
}

static bool is_no_option(void *user, const char *word, size_t length)
{
    (void)user;
    assert_null(options_find(OPTION_FOR_ALL, word, length));
    return true;
}

static void other_names_are_not_options(void **state)
{
    (void)state;
    for (int id = 1; id < OPTION_COUNT; id++)
        option_each_word(option_table[id].elsewhere, is_no_option, NULL);
}

/* ---- The command line ---------------------------------------------------------------------- */

static void all_forms(void **state)
{
    static const char *const forms[] = {"-b 7", "-b7", "-b=7", "--batch-count 7",
                                        "--batch-count=7"};
    (void)state;
    options o;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        accepts(&o, forms[i]);
        assert_int_equal(o.value[OPTION_BATCH_COUNT].given, 1);
        assert_int_equal(o.value[OPTION_BATCH_COUNT].integer, 7);
    }
    accepts(&o, "-vvb3");
    assert_int_equal(o.value[OPTION_VERBOSE].given, 2);
    assert_int_equal(o.value[OPTION_BATCH_COUNT].integer, 3);
    accepts(&o, "-qs-1");
    assert_int_equal(o.value[OPTION_QUIET].given, 1);
    assert_true(o.value[OPTION_SEED].random);
}

static void last_one_wins(void **state)
{
    (void)state;
    options o;
    accepts(&o, "--steps 4 --steps 8 -p other");
    assert_int_equal(o.value[OPTION_STEPS].integer, 8);
    assert_string_equal(o.value[OPTION_PROMPT].text, "other");
    accepts(&o, "-s -1 -s 5");
    assert_false(o.value[OPTION_SEED].random);
    assert_int_equal(o.value[OPTION_SEED].seed, 5);
    accepts(&o, "--size 512x256 -H 768");
    assert_int_equal(o.value[OPTION_WIDTH].integer, 512);
    assert_int_equal(o.value[OPTION_HEIGHT].integer, 768);
    accepts(&o, "-W 640 --size 512X256");
    assert_int_equal(o.value[OPTION_WIDTH].integer, 512);
}

static void values_may_begin_with_a_dash(void **state)
{
    (void)state;
    options o;
    accepts(&o, "-p -");
    assert_string_equal(o.value[OPTION_PROMPT].text, "-");
    accepts(&o, "-n --ugly-");
    assert_string_equal(o.value[OPTION_NEGATIVE_PROMPT].text, "--ugly-");
    accepts(&o, "--prompt=-o");
    assert_string_equal(o.value[OPTION_PROMPT].text, "-o");
    accepts(&o, "-p _ --negative-prompt=");
    assert_string_equal(o.value[OPTION_PROMPT].text, "");
    assert_string_equal(o.value[OPTION_NEGATIVE_PROMPT].text, "");
    refuses("--prompt -o", "--prompt=-o");
    refuses("-n --steps=4", "needs a value");
}

static void arguments_and_dashes(void **state)
{
    (void)state;
    options o;
    ct_error error;
    assert_int_equal(parse(&o, OPTION_FOR_INFO, "--json -- --json", &error), CT_OK);
    assert_int_equal(o.value[OPTION_JSON].given, 1);
    assert_int_equal(o.arguments, 1);
    assert_string_equal(o.argument[0], "--json");
    assert_int_equal(parse(&o, OPTION_FOR_INFO, "-", &error), CT_OK);
    assert_string_equal(o.argument[0], "-");
    assert_int_equal(parse(&o, OPTION_FOR_INFO, "a b", &error), CT_EINVAL);
    refuses("fox", "unexpected argument \"fox\"");
}

static void help_needs_nothing_else(void **state)
{
    (void)state;
    options o;
    ct_error error;
    assert_int_equal(parse(&o, OPTION_FOR_GENERATE, "-h --nonsense", &error), CT_OK);
    assert_int_equal(o.value[OPTION_HELP].given, 1);
    assert_int_equal(parse(&o, OPTION_FOR_GENERATE, "-qhz", &error), CT_OK);
}

static void unknown_options(void **state)
{
    (void)state;
    refuses("--stpes 4", "did you mean --steps?");
    refuses("--Steps 4", "did you mean --steps?");
    refuses("--batch_count=4", "did you mean --batch-count?");
    refuses("--num_inference_steps 4", "did you mean --steps?");
    refuses("--guidance-scale 4", "did you mean --guidance?");
    refuses("--flow-shift 3", "did you mean --shift?");
    refuses("-steps 4", "did you mean --steps?");
    refuses("--mask m.png", "no model here takes a mask");
    refuses("--Inpaint_Mask=m.png", "no model here takes a mask");
    refuses("--denoising-strength 0.6", "unknown option --denoising-strength: pictures are not");
    refuses("--controlnet x", "no ControlNet");
    refuses("--zzz", "unknown option --zzz");
    refuses("-z", "unknown option -z");
    refuses("-qz", "unknown option -z in -qz");
    options o;
    ct_error error;
    assert_int_equal(parse(&o, OPTION_FOR_INFO, "--steps 4", &error), CT_EINVAL);
    assert_non_null(strstr(error.message, "--steps"));
}

static void missing_and_surplus_values(void **state)
{
    (void)state;
    refuses("--steps", "--steps needs a value: --steps N");
    refuses("-b", "-b needs a value");
    refuses("--json=1", "--json takes no value");
    refuses("-o _", "the path is empty");
    options o;
    ct_error error;
    assert_int_equal(parse(&o, OPTION_FOR_GENERATE, "-p x", &error), CT_EINVAL);
    assert_non_null(strstr(error.message, "needs --model and --output"));
    assert_int_equal(parse(&o, OPTION_FOR_GENERATE, "", &error), CT_EINVAL);
    assert_non_null(strstr(error.message, "needs --model, --prompt and --output"));
}

static void conflicts(void **state)
{
    (void)state;
    refuses("--guidance 3 --cfg-scale 4", "--guidance and --cfg-scale");
    refuses("-qv", "--quiet and --verbose");
}

/* ---- Values -------------------------------------------------------------------------------- */

static void integers(void **state)
{
    (void)state;
    options o;
    accepts(&o, "--steps 1");
    accepts(&o, "--steps +1000");
    assert_int_equal(o.value[OPTION_STEPS].integer, 1000);
    accepts(&o, "--steps 0008");
    assert_int_equal(o.value[OPTION_STEPS].integer, 8);
    refuses("--steps 0", "--steps 0 is out of range: 1 to 1000");
    refuses("--steps 1001", "--steps 1001 is out of range: 1 to 1000");
    refuses("--steps -4", "out of range");
    refuses("--steps 99999999999999999999999", "out of range");
    refuses("--steps 8x", "\"8x\" is not a whole number");
    refuses("--steps 8.0", "not a whole number");
    refuses("--steps 0x10", "not a whole number");
    refuses("--steps=", "not a whole number");
    refuses("--steps=-", "not a whole number");
}

static void seeds(void **state)
{
    (void)state;
    options o;
    accepts(&o, "-s 18446744073709551615");
    assert_true(o.value[OPTION_SEED].seed == UINT64_MAX);
    accepts(&o, "-s 0");
    assert_true(o.value[OPTION_SEED].seed == 0 && !o.value[OPTION_SEED].random);
    accepts(&o, "-s -1");
    assert_true(o.value[OPTION_SEED].random);
    refuses("-s -2", "-1 for a random one");
    refuses("-s 18446744073709551616", "out of range");
    refuses("-s 1e3", "not a whole number");
    refuses("-s abc", "not a whole number");
}

static void numbers(void **state)
{
    (void)state;
    options o;
    accepts(&o, "--guidance 4.1");
    assert_true(o.value[OPTION_GUIDANCE].number == 4.1);
    accepts(&o, "--shift .5");
    assert_true(o.value[OPTION_SHIFT].number == .5);
    accepts(&o, "--shift 5e-1");
    assert_true(o.value[OPTION_SHIFT].number == .5);
    refuses("--guidance 4,1", "not a number");
    refuses("--guidance nan", "not a number");
    refuses("--guidance inf", "not a number");
    refuses("--guidance 0x1p3", "not a number");
    refuses("--guidance 1e999", "out of range");
    refuses("--guidance -0.5", "out of range: 0 to 100");
    refuses("--cfg-scale 0.5", "out of range: 1 to 101");
}

static void sizes(void **state)
{
    (void)state;
    options o;
    accepts(&o, "--size 1024x768");
    assert_int_equal(o.value[OPTION_WIDTH].integer, 1024);
    assert_int_equal(o.value[OPTION_HEIGHT].integer, 768);
    assert_int_equal(o.value[OPTION_SIZE].given, 1);
    refuses("--size 1024", "not a size such as 1024x768");
    refuses("--size 1024x", "not a size");
    refuses("--size x768", "not a size");
    refuses("--size 1x2x3", "not a size");
    refuses("--size 0x16", "out of range");
    refuses("--size 16x99999999999999999999", "out of range");
    refuses("--size 0000000000000000000000000000000000000001x1", "not a size");
}

static void intervals(void **state)
{
    (void)state;
    options o;
    accepts(&o, "--guidance-interval 0.2:.75");
    assert_true(o.value[OPTION_GUIDANCE_INTERVAL].number == 0.2);
    assert_true(o.value[OPTION_GUIDANCE_INTERVAL].end == 0.75);
    accepts(&o, "--guidance-interval 0:1");
    refuses("--guidance-interval 0.5", "not an interval such as 0.2:0.8");
    refuses("--guidance-interval 0.5:", "not an interval");
    refuses("--guidance-interval :0.5", "not an interval");
    refuses("--guidance-interval 0:0.5:1", "not an interval");
    refuses("--guidance-interval 0:nan", "not an interval");
    refuses("--guidance-interval 00000000000000000000000000000000000000:1", "not an interval");
    refuses("--guidance-interval 0.5:0.5", "is empty");
    refuses("--guidance-interval 0.8:0.2", "is empty");
    refuses("--guidance-interval 0:1.5", "out of range: 0 to 1");
    refuses("--guidance-interval=-0.5:1", "out of range: 0 to 1");
}

static void choices(void **state)
{
    (void)state;
    options o;
    accepts(&o, "--precision bf16");
    assert_int_equal(o.value[OPTION_PRECISION].integer, 2);
    accepts(&o, "--precision auto");
    assert_int_equal(o.value[OPTION_PRECISION].integer, 0);
    refuses("--precision fp23", "did you mean fp32?");
    refuses("--precision double", "is not one of: auto fp32 bf16");
    refuses("--precision=", "is not one of");
    refuses("--precision=fp3", "is not one of");
}

static void set_leaves_the_old_value_on_failure(void **state)
{
    (void)state;
    options o;
    ct_error error;
    options_init(&o);
    assert_int_equal(options_set(&o, OPTION_STEPS, "VARIABLE", "12", NULL), CT_OK);
    assert_int_equal(options_set(&o, OPTION_STEPS, "VARIABLE", "0", &error), CT_EINVAL);
    assert_non_null(strstr(error.message, "VARIABLE 0 is out of range"));
    assert_int_equal(options_set(&o, OPTION_STEPS, "VARIABLE", "x", NULL), CT_EINVAL);
    assert_int_equal(o.value[OPTION_STEPS].integer, 12);
    assert_int_equal(o.value[OPTION_STEPS].given, 1);
}

static void strict_numbers(void **state)
{
    (void)state;
    int64_t integer;
    uint64_t natural;
    double real;
    assert_int_equal(number_integer("-9223372036854775807", &integer), NUMBER_OK);
    assert_true(integer == -INT64_MAX);
    assert_int_equal(number_integer("9223372036854775808", &integer), NUMBER_TOO_LARGE);
    assert_int_equal(number_integer("-+1", &integer), NUMBER_MALFORMED);
    assert_int_equal(number_integer(" 1", &integer), NUMBER_MALFORMED);
    assert_int_equal(number_integer("1 ", &integer), NUMBER_MALFORMED);
    assert_int_equal(number_unsigned("-0", &natural), NUMBER_MALFORMED);
    assert_int_equal(number_unsigned("", &natural), NUMBER_MALFORMED);
    assert_int_equal(number_real("1.", &real), NUMBER_OK);
    assert_int_equal(number_real("-1.5E+2", &real), NUMBER_OK);
    assert_true(real == -150);
    assert_int_equal(number_real(".", &real), NUMBER_MALFORMED);
    assert_int_equal(number_real("1e", &real), NUMBER_MALFORMED);
    assert_int_equal(number_real("1.2.3", &real), NUMBER_MALFORMED);
    assert_int_equal(number_real("", &real), NUMBER_MALFORMED);
    char digits[300];
    memset(digits, '1', sizeof digits - 1);
    digits[sizeof digits - 1] = 0;
    assert_int_equal(number_real(digits, &real), NUMBER_TOO_LARGE);
}

static void amounts_of_memory(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"4096", 4096},
                {"700M", 700 << 20},
                {"6G", (uint64_t)6 << 30},
                {"6g", (uint64_t)6 << 30},
                {"1.5GiB", (uint64_t)3 << 29},
                {"8GB", (uint64_t)8 << 30},
                {"2k", 2048},
                {"1T", (uint64_t)1 << 40}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        uint64_t bytes = 1;
        assert_int_equal(number_bytes(good[i].text, &bytes), NUMBER_OK);
        assert_true(bytes == good[i].bytes);
    }
    static const char *const bad[] = {"",   "G",   "-6G", "+6G",    "6 G", "6Gi", "6GBB",
                                      "6X", "6e3", ".",   "1.2.3G", "6G ", "0x6G"};
    uint64_t bytes;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(number_bytes(bad[i], &bytes), NUMBER_MALFORMED);
    assert_int_equal(number_bytes("99999999999T", &bytes), NUMBER_TOO_LARGE);

    options o;
    options_init(&o);
    ct_error error;
    test_ok(options_set(&o, OPTION_MAX_MEMORY, "--max-memory", "6G", &error), &error);
    assert_true(o.value[OPTION_MAX_MEMORY].bytes == (uint64_t)6 << 30);
    test_ok(options_set(&o, OPTION_MAX_VRAM, "--max-vram", "13.5G", &error), &error);
    assert_true(o.value[OPTION_MAX_VRAM].bytes == (uint64_t)27 << 29);
    test_error(options_set(&o, OPTION_MAX_MEMORY, "--max-memory", "6", &error), CT_EINVAL, &error,
               "write M or G");
    test_error(options_set(&o, OPTION_MAX_MEMORY, "--max-memory", "much", &error), CT_EINVAL,
               &error, "such as 6G");
    test_error(options_set(&o, OPTION_MAX_MEMORY, "--max-memory", "2000000T", &error), CT_EINVAL,
               &error, "any machine");
}

static void distances(void **state)
{
    (void)state;
    assert_int_equal(suggest_distance("steps", 5, "steps", 5), 0);
    assert_int_equal(suggest_distance("stpes", 5, "steps", 5), 1);
    assert_int_equal(suggest_distance("step", 4, "steps", 5), 1);
    assert_int_equal(suggest_distance("stops", 5, "steps", 5), 1);
    assert_int_equal(suggest_distance("", 0, "abc", 3), 3);
    assert_int_equal(suggest_distance("kitten", 6, "sitting", 7), 3);
    char word[64] = {0};
    assert_true(suggest_distance(word, sizeof word, "a", 1) == SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_is_complete),
        cmocka_unit_test(names_are_unique),
        cmocka_unit_test(other_names_are_not_options),
        cmocka_unit_test(all_forms),
        cmocka_unit_test(last_one_wins),
        cmocka_unit_test(values_may_begin_with_a_dash),
        cmocka_unit_test(arguments_and_dashes),
        cmocka_unit_test(help_needs_nothing_else),
        cmocka_unit_test(unknown_options),
        cmocka_unit_test(missing_and_surplus_values),
        cmocka_unit_test(conflicts),
        cmocka_unit_test(integers),
        cmocka_unit_test(seeds),
        cmocka_unit_test(numbers),
        cmocka_unit_test(sizes),
        cmocka_unit_test(intervals),
        cmocka_unit_test(choices),
        cmocka_unit_test(set_leaves_the_old_value_on_failure),
        cmocka_unit_test(strict_numbers),
        cmocka_unit_test(amounts_of_memory),
        cmocka_unit_test(distances),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
