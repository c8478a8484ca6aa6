#include "app/options.h"
#include "app/number.h"
#include "app/suggest.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- The table ----------------------------------------------------------------------------- */

#define GENERATE (OPTION_FOR_GENERATE | OPTION_FOR_EDIT)
#define QUANTIZE OPTION_FOR_QUANTIZE
#define PLAN OPTION_FOR_PLAN
#define BENCH OPTION_FOR_BENCH
#define DEVICES OPTION_FOR_DEVICES
#define SIDE_MAXIMUM 16384

/* clang-format off */
const option_info option_table[OPTION_COUNT] = {
    [OPTION_MODEL] = {
        .name = "model", .letter = 'm', .kind = OPTION_KIND_DIRECTORY, .metavar = "DIR",
        .group = OPTION_GROUP_MAIN, .commands = GENERATE | QUANTIZE | PLAN | BENCH,
        .required = GENERATE | PLAN,
        .help = "the model: a directory in the layout of diffusers, mflux or MLX-z-image",
        .elsewhere = "diffusion-model model-path pretrained-model-name-or-path",
    },
    [OPTION_PROMPT] = {
        .name = "prompt", .letter = 'p', .kind = OPTION_KIND_TEXT, .metavar = "TEXT",
        .group = OPTION_GROUP_MAIN, .commands = GENERATE | PLAN, .required = GENERATE,
        .help = "what the picture shows; - reads it from standard input",
    },
    [OPTION_NEGATIVE_PROMPT] = {
        .name = "negative-prompt", .letter = 'n', .kind = OPTION_KIND_TEXT, .metavar = "TEXT",
        .group = OPTION_GROUP_MAIN, .commands = GENERATE | PLAN,
        .help = "what it should not show; counts only where guidance is on",
        .elsewhere = "negative neg-prompt",
    },
    [OPTION_REFERENCE] = {
        .name = "reference", .letter = 'r', .kind = OPTION_KIND_FILE, .metavar = "FILE",
        .group = OPTION_GROUP_MAIN, .commands = GENERATE | PLAN | BENCH,
        .required = OPTION_FOR_EDIT,
        .help = "a picture to start from (PNG, JPEG or WebP), where the model can edit: "
                "FLUX.2-klein (up to 10), Qwen-Image-Edit (one; -2509 and -2511 up to 10). Without "
                "a size the new picture has that of the first (-2509 and -2511: the last)",
        .elsewhere = "image input input-image init-img ref ref-image",
    },
    [OPTION_LORA] = {
        .name = "lora", .kind = OPTION_KIND_FILE, .metavar = "FILE[:SCALE]",
        .group = OPTION_GROUP_MAIN,
        .commands = GENERATE | QUANTIZE | PLAN | BENCH | OPTION_FOR_INFO,
        .help = "a LoRA (safetensors) that is added to the weights, with this factor; may be given "
                "several times",
        .fallback = "scale 1",
        .elsewhere = "lora-path lora-paths lora-style lora-model-dir adapter",
    },
    [OPTION_KEEP_SIZE] = {
        .name = "keep-size", .kind = OPTION_KIND_FLAG,
        .group = OPTION_GROUP_PICTURE, .commands = GENERATE | PLAN | BENCH,
        .help = "references keep every pixel, and the new picture lines up with the first",
    },
    [OPTION_OUTPUT] = {
        .name = "output", .letter = 'o', .kind = OPTION_KIND_FILE, .metavar = "FILE.png",
        .group = OPTION_GROUP_MAIN, .commands = GENERATE, .required = GENERATE,
        .help = "where the picture goes, with its recipe inside; further pictures of a batch go "
                "to FILE_2.png, FILE_3.png and so on",
        .elsewhere = "out output-path",
    },

    [OPTION_WIDTH] = {
        .name = "width", .letter = 'W', .kind = OPTION_KIND_INTEGER, .metavar = "N",
        .group = OPTION_GROUP_PICTURE, .commands = GENERATE | PLAN | BENCH,
        .min = 1, .max = SIDE_MAXIMUM,
        .help = "width in pixels",
        .fallback = "the model's own",
    },
    [OPTION_HEIGHT] = {
        .name = "height", .letter = 'H', .kind = OPTION_KIND_INTEGER, .metavar = "N",
        .group = OPTION_GROUP_PICTURE, .commands = GENERATE | PLAN | BENCH,
        .min = 1, .max = SIDE_MAXIMUM,
        .help = "height in pixels",
        .fallback = "the model's own",
    },
    [OPTION_SIZE] = {
        .name = "size", .kind = OPTION_KIND_SIZE, .metavar = "WxH",
        .group = OPTION_GROUP_PICTURE, .commands = GENERATE | PLAN | BENCH,
        .min = 1, .max = SIDE_MAXIMUM,
        .help = "both at once, such as 1024x768",
        .elsewhere = "resolution",
    },
    [OPTION_STEPS] = {
        .name = "steps", .kind = OPTION_KIND_INTEGER, .metavar = "N",
        .group = OPTION_GROUP_PICTURE, .commands = GENERATE | PLAN | BENCH,
        .min = 1, .max = 1000,
        .help = "steps of the sampler",
        .fallback = "the model's own",
        .elsewhere = "num-inference-steps sampling-steps sample-steps",
    },
    [OPTION_SEED] = {
        .name = "seed", .letter = 's', .kind = OPTION_KIND_SEED, .metavar = "N",
        .group = OPTION_GROUP_PICTURE, .commands = GENERATE,
        .help = "the same seed makes the same picture; 0 to 2^64-1, or -1 for a random one. The "
                "seed is always printed",
        .fallback = "random",
    },
    [OPTION_BATCH_COUNT] = {
        .name = "batch-count", .letter = 'b', .kind = OPTION_KIND_INTEGER, .metavar = "N",
        .group = OPTION_GROUP_PICTURE, .commands = GENERATE | BENCH,
        .min = 1, .max = 100000,
        .help = "so many pictures, with seeds SEED, SEED+1 and so on (bench: runs, whose median, "
                "fastest and slowest count)",
        .fallback = "1; bench: 3",
        .elsewhere = "batch batch-size count num-images num-images-per-prompt",
    },
    [OPTION_SHIFT] = {
        .name = "shift", .kind = OPTION_KIND_NUMBER, .metavar = "X",
        .group = OPTION_GROUP_PICTURE, .commands = GENERATE,
        .min = 0.01, .max = 100,
        .help = "time shift of the schedule",
        .fallback = "the model's own",
        .elsewhere = "flow-shift time-shift timestep-shift",
    },
    [OPTION_SHIFT_TERMINAL] = {
        .name = "shift-terminal", .kind = OPTION_KIND_NUMBER, .metavar = "S",
        .group = OPTION_GROUP_PICTURE, .commands = GENERATE,
        .min = 0, .max = 0.999,
        .help = "stretch the schedule so that the last step begins at this noise level; 0: do not "
                "(Qwen-Image-Lightning)",
        .fallback = "the model's own",
    },

    [OPTION_GUIDANCE] = {
        .name = "guidance", .kind = OPTION_KIND_NUMBER, .metavar = "G",
        .group = OPTION_GROUP_GUIDANCE, .commands = GENERATE | PLAN | BENCH,
        .conflict = OPTION_CFG_SCALE,
        .min = 0, .max = 100,
        .help = "strength of the prompt as the model's own card and diffusers give it. Z-Image: "
                "pos + G * (pos - neg); 0 is off. FLUX.2-klein and Qwen-Image: neg + G * (pos - "
                "neg); 1 is off",
        .fallback = "the model's own",
        .elsewhere = "guidance-scale",
    },
    [OPTION_CFG_SCALE] = {
        .name = "cfg-scale", .kind = OPTION_KIND_NUMBER, .metavar = "S",
        .group = OPTION_GROUP_GUIDANCE, .commands = GENERATE | PLAN | BENCH,
        .conflict = OPTION_GUIDANCE,
        .min = 1, .max = 101,
        .help = "the same as the usual scale of every model: neg + S * (pos - neg); 1 is off. "
                "For Z-Image S = G + 1, for FLUX.2-klein and Qwen-Image S = G",
        .elsewhere = "cfg",
    },
    [OPTION_CFG_NORMALIZATION] = {
        .name = "cfg-normalization", .kind = OPTION_KIND_FLAG,
        .group = OPTION_GROUP_GUIDANCE, .commands = GENERATE | BENCH,
        .help = "keep the norm of the guided prediction at or under that of the positive one",
        .elsewhere = "cfg-norm cfg-normalisation",
    },
    [OPTION_CFG_TRUNCATION] = {
        .name = "cfg-truncation", .kind = OPTION_KIND_NUMBER, .metavar = "T",
        .group = OPTION_GROUP_GUIDANCE, .commands = GENERATE | BENCH,
        .min = 0, .max = 1,
        .help = "steps whose time (1 - sigma) is above T go without guidance",
        .fallback = "1",
    },
    [OPTION_GUIDANCE_INTERVAL] = {
        .name = "guidance-interval", .kind = OPTION_KIND_INTERVAL, .metavar = "A:B",
        .group = OPTION_GROUP_GUIDANCE, .commands = GENERATE | PLAN | BENCH,
        .min = 0, .max = 1,
        .help = "guide only from this share of the steps to that: 0:0.6 leaves out the last 4 of "
                "10. Steps that are left out evaluate the prompt alone and take half the time",
        .fallback = "0:1, all steps",
        .elsewhere = "cfg-interval guidance-range cfg-range guidance-start guidance-end",
    },
    [OPTION_CFG_BATCH] = {
        .name = "cfg-batch", .kind = OPTION_KIND_CHOICE, .metavar = "WHEN",
        .group = OPTION_GROUP_GUIDANCE, .commands = GENERATE | PLAN | BENCH,
        .help = "whether both prompts go through the transformer in one pass, which reads every "
                "weight once but takes more memory; auto: where that is faster",
        .fallback = "auto",
        .words = "auto on off",
        .elsewhere = "batch-cfg",
    },

    [OPTION_THREADS] = {
        .name = "threads", .letter = 't', .kind = OPTION_KIND_INTEGER, .metavar = "N",
        .group = OPTION_GROUP_MACHINE, .commands = GENERATE | QUANTIZE | PLAN | BENCH | DEVICES,
        .min = 1, .max = 1024,
        .help = "how many; the result does not depend on it",
        .fallback = "all processors",
        .elsewhere = "jobs",
    },
    [OPTION_PRECISION] = {
        .name = "precision", .kind = OPTION_KIND_CHOICE, .metavar = "P",
        .group = OPTION_GROUP_MACHINE, .commands = GENERATE | PLAN | BENCH,
        .help = "how the transformer multiplies: fp32 is the reference to rounding; bf16 and int8 "
                "are faster where the processor has such instructions; fp8 and fp16 on GPUs "
                "that have them; "
                "auto: bf16 where that is fast",
        .fallback = "auto",
        .words = "auto fp32 bf16 int8 fp8 fp16",
        .elsewhere = "dtype torch-dtype type",
    },
    [OPTION_DEVICE] = {
        .name = "device", .kind = OPTION_KIND_TEXT, .metavar = "D",
        .group = OPTION_GROUP_MACHINE, .commands = GENERATE | PLAN | BENCH,
        .help = "where to compute: cpu, cuda or cuda:N (calotype devices lists them); auto: the "
                "first GPU that can be used, else the CPU",
        .fallback = "auto",
        .words = "auto cpu cuda",
        .environment = "CALOTYPE_DEVICE",
        .elsewhere = "backend gpu cuda",
    },
    [OPTION_CPU] = {
        .name = "cpu", .kind = OPTION_KIND_TEXT, .metavar = "TIER",
        .group = OPTION_GROUP_MACHINE, .commands = GENERATE | PLAN | BENCH | DEVICES,
        .help = "force the kernels for a kind of processor: baseline, avx2, avxvnni, avx512, "
                "avx512vnni, avx512bf16, amx; on Arm baseline, dotprod, i8mm, bf16",
        .fallback = "the best for this one",
        .words = "baseline avx2 avxvnni avx512 avx512vnni avx512bf16 amx dotprod i8mm bf16",
        .environment = "CALOTYPE_CPU",
    },

    [OPTION_MAX_MEMORY] = {
        .name = "max-memory", .kind = OPTION_KIND_BYTES, .metavar = "SIZE",
        .group = OPTION_GROUP_MACHINE, .commands = GENERATE | PLAN | BENCH,
        .min = 1 << 20, .max = 0x1p60,
        .help = "the most memory that may be taken, such as 6G or 700M (powers of 1024); weights "
                "come and go block by block where they do not fit",
        .fallback = "what the machine has",
        .elsewhere = "memory max-ram memory-limit low-ram",
    },

    [OPTION_MAX_VRAM] = {
        .name = "max-vram", .kind = OPTION_KIND_BYTES, .metavar = "SIZE",
        .group = OPTION_GROUP_MACHINE, .commands = GENERATE | PLAN | BENCH,
        .min = 1 << 20, .max = 0x1p60,
        .help = "the most memory of the GPU that may be taken, such as 8G (powers of 1024); parts "
                "of the model take turns there, and blocks come and go, where they do not fit",
        .fallback = "what is free",
        .elsewhere = "vram gpu-memory max-gpu-memory vram-limit lowvram low-vram medvram "
                     "offload-to-cpu cpu-offload",
    },

    [OPTION_CACHE] = {
        .name = "cache", .kind = OPTION_KIND_DIRECTORY, .metavar = "DIR",
        .group = OPTION_GROUP_MACHINE, .commands = GENERATE | PLAN | OPTION_FOR_CACHE,
        .help = "where results and compiled kernels are kept for the next run",
        .fallback = "$CALOTYPE_CACHE, or ~/.cache/calotype",
        .elsewhere = "cache-dir cache-folder",
    },
    [OPTION_CACHE_LIMIT] = {
        .name = "cache-limit", .kind = OPTION_KIND_BYTES, .metavar = "SIZE",
        .group = OPTION_GROUP_MACHINE, .commands = GENERATE | PLAN,
        .min = 1 << 20, .max = 0x1p60,
        .help = "the most that results may take there, such as 500M; those go that were not used "
                "for longest",
        .fallback = "2G",
        .conflict = OPTION_NO_CACHE,
        .elsewhere = "cache-size max-cache",
    },
    [OPTION_NO_CACHE] = {
        .name = "no-cache", .kind = OPTION_KIND_FLAG,
        .group = OPTION_GROUP_MACHINE, .commands = GENERATE | PLAN, .conflict = OPTION_CACHE_LIMIT,
        .help = "compute everything: no result is kept, on disk or in memory, and none is used "
                "that was",
        .elsewhere = "disable-cache",
    },

    [OPTION_RNG] = {
        .name = "rng", .kind = OPTION_KIND_CHOICE, .metavar = "R",
        .group = OPTION_GROUP_REFERENCE, .commands = GENERATE,
        .help = "where noise comes from: torch draws the numbers of torch.randn with a CPU "
                "generator",
        .fallback = "torch",
        .words = "torch",
    },
    [OPTION_NOISE] = {
        .name = "noise", .kind = OPTION_KIND_FILE, .metavar = "FILE",
        .group = OPTION_GROUP_REFERENCE, .commands = GENERATE,
        .help = "take the tensor \"noise\" of this safetensors file instead of drawing it",
        .elsewhere = "latents init-noise",
    },
    [OPTION_TRACE] = {
        .name = "trace", .kind = OPTION_KIND_FILE, .metavar = "FILE",
        .group = OPTION_GROUP_REFERENCE, .commands = GENERATE,
        .help = "write the result of every stage to this safetensors file",
    },
    [OPTION_TRACE_MODULES] = {
        .name = "trace-modules", .kind = OPTION_KIND_FLAG,
        .group = OPTION_GROUP_REFERENCE, .commands = GENERATE,
        .help = "the output of every block too; needs --trace",
    },

    [OPTION_OUTPUT_DIRECTORY] = {
        .name = "output", .letter = 'o', .kind = OPTION_KIND_DIRECTORY, .metavar = "DIR",
        .group = OPTION_GROUP_MAIN, .commands = QUANTIZE, .required = QUANTIZE,
        .help = "the folder to be made; it must not exist",
        .elsewhere = "out output-path mlx-path path",
    },
    [OPTION_BITS] = {
        .name = "bits", .letter = 'b', .kind = OPTION_KIND_CHOICE, .metavar = "N",
        .group = OPTION_GROUP_MAIN, .commands = QUANTIZE, .required = QUANTIZE,
        .help = "bits for each number of a matrix",
        .words = "8 6 5 4 3 2",
        .elsewhere = "q-bits quantize",
    },
    [OPTION_GROUP_SIZE] = {
        .name = "group-size", .letter = 'g', .kind = OPTION_KIND_CHOICE, .metavar = "N",
        .group = OPTION_GROUP_MAIN, .commands = QUANTIZE,
        .help = "so many numbers share a scale and a bias. 64 is what mflux reads, 32 (with 4 "
                "bits) what MLX-z-image reads",
        .fallback = "64",
        .words = "32 64 128",
        .elsewhere = "q-group-size",
    },
    [OPTION_DEQUANTIZE] = {
        .name = "dequantize", .kind = OPTION_KIND_FLAG,
        .group = OPTION_GROUP_MACHINE, .commands = GENERATE | BENCH,
        .help = "decode a quantized model to bfloat16 while it is opened: more memory",
    },

    [OPTION_WHAT] = {
        .name = "what", .kind = OPTION_KIND_CHOICE, .metavar = "WORK",
        .group = OPTION_GROUP_BENCH, .commands = BENCH,
        .help = "kernels: one kind of operation alone. What the machine can do at most, linear "
                "layers, attention, convolutions of the VAE, or passes over rows",
        .fallback = "all",
        .words = "all peak gemm attention conv rows",
    },
    [OPTION_SHAPES] = {
        .name = "shapes", .kind = OPTION_KIND_TEXT, .metavar = "MODEL,...",
        .group = OPTION_GROUP_BENCH, .commands = BENCH,
        .help = "kernels: whose layers; several are separated by commas",
        .fallback = "z-image",
        .words = "z-image klein-4b klein-9b qwen-image all",
        .elsewhere = "shape family models",
    },
    [OPTION_SIZES] = {
        .name = "sizes", .kind = OPTION_KIND_TEXT, .metavar = "N,...",
        .group = OPTION_GROUP_BENCH, .commands = BENCH,
        .help = "kernels: for square pictures of this side in pixels; several are separated by "
                "commas, and all is 256,512,1024",
        .fallback = "512",
        .words = "256 512 1024 all",
    },
    [OPTION_ROWS] = {
        .name = "rows", .kind = OPTION_KIND_INTEGER, .metavar = "M",
        .group = OPTION_GROUP_BENCH, .commands = BENCH,
        .min = 1, .max = 65536,
        .help = "kernels: rows that linear layers and passes work on, instead of a picture's "
                "patches and tokens",
        .fallback = "what the size gives",
    },
    [OPTION_SECONDS] = {
        .name = "seconds", .kind = OPTION_KIND_NUMBER, .metavar = "S",
        .group = OPTION_GROUP_BENCH, .commands = BENCH,
        .min = 0.01, .max = 3600,
        .help = "kernels: how long each line is measured, at least three runs",
        .fallback = "0.5",
    },
    [OPTION_OUTPUT_PLOT] = {
        .name = "output", .letter = 'o', .kind = OPTION_KIND_FILE, .metavar = "FILE.svg",
        .group = OPTION_GROUP_BENCH, .commands = BENCH,
        .help = "plot: the picture to be made",
        .elsewhere = "out output-path",
    },

    [OPTION_QUIET] = {
        .name = "quiet", .letter = 'q', .kind = OPTION_KIND_FLAG,
        .group = OPTION_GROUP_REPORT, .commands = GENERATE | QUANTIZE, .conflict = OPTION_VERBOSE,
        .help = "print one line for each result (a picture: FILE seed N) and errors; with --json: "
                "no progress",
        .elsewhere = "silent",
    },
    [OPTION_VERBOSE] = {
        .name = "verbose", .letter = 'v', .kind = OPTION_KIND_FLAG,
        .group = OPTION_GROUP_REPORT, .commands = GENERATE | QUANTIZE | PLAN,
        .conflict = OPTION_QUIET,
        .help = "say more; twice: say everything",
        .elsewhere = "debug",
    },
    [OPTION_JSON] = {
        .name = "json", .kind = OPTION_KIND_FLAG,
        .group = OPTION_GROUP_REPORT,
        .commands = GENERATE | QUANTIZE | PLAN | BENCH | OPTION_FOR_INFO | DEVICES |
                    OPTION_FOR_CACHE,
        .help = "print JSON, one object on a line, and nothing else",
    },
    [OPTION_HELP] = {
        .name = "help", .letter = 'h', .kind = OPTION_KIND_FLAG,
        .group = OPTION_GROUP_REPORT, .commands = OPTION_FOR_ALL,
        .help = "show this help",
    },
};
/* clang-format on */

option_id option_id_of(const option_info *info)
{
    return (option_id)(info - option_table);
}

const char *option_group_title(option_group group)
{
    switch (group) {
    case OPTION_GROUP_MAIN: return "What to make";
    case OPTION_GROUP_PICTURE: return "The picture";
    case OPTION_GROUP_GUIDANCE: return "Guidance";
    case OPTION_GROUP_MACHINE: return "This machine";
    case OPTION_GROUP_REFERENCE: return "Comparing with the reference";
    case OPTION_GROUP_BENCH: return "What is measured";
    case OPTION_GROUP_REPORT: return "What is printed";
    case OPTION_GROUP_COUNT: break;
    }
    return "";
}

void option_each_word(const char *words, bool (*visit)(void *user, const char *word, size_t length),
                      void *user)
{
    while (words && *words) {
        size_t length = strcspn(words, " ");
        if (length && !visit(user, words, length))
            return;
        words += length;
        words += strspn(words, " ");
    }
}

const option_info *options_find(unsigned commands, const char *name, size_t length)
{
    for (int id = 1; id < OPTION_COUNT; id++) {
        const option_info *info = &option_table[id];
        if ((info->commands & commands) && strlen(info->name) == length &&
            !memcmp(info->name, name, length))
            return info;
    }
    return NULL;
}

const option_info *options_find_letter(unsigned commands, char letter)
{
    for (int id = 1; id < OPTION_COUNT; id++) {
        const option_info *info = &option_table[id];
        if ((info->commands & commands) && letter && info->letter == letter)
            return info;
    }
    return NULL;
}

/* ---- Values -------------------------------------------------------------------------------- */

void options_init(options *o)
{
    *o = (options){0};
}

static ct_status out_of_range(const option_info *info, const char *label, const char *text,
                              ct_error *error)
{
    return error_set(error, CT_EINVAL, "%s %s is out of range: %.10g to %.10g are allowed", label,
                     text, info->min, info->max);
}

static ct_status set_integer(option_value *value, const option_info *info, const char *label,
                             const char *text, ct_error *error)
{
    int64_t integer = 0;
    number_result result = number_integer(text, &integer);
    if (result == NUMBER_MALFORMED)
        return error_set(error, CT_EINVAL, "%s: \"%s\" is not a whole number", label, text);
    if (result == NUMBER_TOO_LARGE || (double)integer < info->min || (double)integer > info->max)
        return out_of_range(info, label, text, error);
    value->integer = integer;
    return CT_OK;
}

static ct_status set_number(option_value *value, const option_info *info, const char *label,
                            const char *text, ct_error *error)
{
    double number = 0;
    number_result result = number_real(text, &number);
    if (result == NUMBER_MALFORMED)
        return error_set(error, CT_EINVAL, "%s: \"%s\" is not a number", label, text);
    if (result == NUMBER_TOO_LARGE || number < info->min || number > info->max)
        return out_of_range(info, label, text, error);
    value->number = number;
    return CT_OK;
}

static ct_status set_seed(option_value *value, const char *label, const char *text, ct_error *error)
{
    value->random = !strcmp(text, "-1");
    if (value->random)
        return CT_OK;
    number_result result = number_unsigned(text, &value->seed);
    if (result == NUMBER_OK)
        return CT_OK;
    int64_t negative;
    if (result == NUMBER_MALFORMED && number_integer(text, &negative) == NUMBER_MALFORMED)
        return error_set(error, CT_EINVAL, "%s: \"%s\" is not a whole number", label, text);
    return error_set(error, CT_EINVAL,
                     "%s %s is out of range: 0 to %" PRIu64 " are allowed, or -1 for a random one",
                     label, text, UINT64_MAX);
}

static ct_status set_size(options *o, const option_info *info, const char *label, const char *text,
                          ct_error *error)
{
    char width_text[32];
    size_t at = strcspn(text, "xX");
    const char *height_text = text + at + 1;
    int64_t width, height;
    bool well_formed = text[at] && at < sizeof width_text;
    if (well_formed) {
        memcpy(width_text, text, at);
        width_text[at] = 0;
        number_result w = number_integer(width_text, &width);
        number_result h = number_integer(height_text, &height);
        if (w == NUMBER_TOO_LARGE || h == NUMBER_TOO_LARGE)
            return out_of_range(info, label, text, error);
        well_formed = w == NUMBER_OK && h == NUMBER_OK;
    }
    if (!well_formed)
        return error_set(error, CT_EINVAL, "%s: \"%s\" is not a size such as 1024x768", label,
                         text);
    if ((double)width < info->min || (double)height < info->min || (double)width > info->max ||
        (double)height > info->max)
        return out_of_range(info, label, text, error);
    o->value[OPTION_WIDTH].given++;
    o->value[OPTION_WIDTH].text = text;
    o->value[OPTION_WIDTH].integer = width;
    o->value[OPTION_HEIGHT].given++;
    o->value[OPTION_HEIGHT].text = text;
    o->value[OPTION_HEIGHT].integer = height;
    return CT_OK;
}

static ct_status set_interval(option_value *value, const option_info *info, const char *label,
                              const char *text, ct_error *error)
{
    char begin_text[32];
    const size_t at = strcspn(text, ":");
    double begin, end;
    bool well_formed = text[at] && at < sizeof begin_text;
    if (well_formed) {
        memcpy(begin_text, text, at);
        begin_text[at] = 0;
        well_formed = number_real(begin_text, &begin) == NUMBER_OK &&
                      number_real(text + at + 1, &end) == NUMBER_OK;
    }
    if (!well_formed)
        return error_set(error, CT_EINVAL, "%s: \"%s\" is not an interval such as 0.2:0.8", label,
                         text);
    if (begin < info->min || end > info->max)
        return out_of_range(info, label, text, error);
    if (begin >= end)
        return error_set(error, CT_EINVAL, "%s %s is empty: the first number must be the smaller",
                         label, text);
    value->number = begin;
    value->end = end;
    return CT_OK;
}

static ct_status set_bytes(option_value *value, const option_info *info, const char *label,
                           const char *text, ct_error *error)
{
    uint64_t bytes = 0;
    number_result result = number_bytes(text, &bytes);
    if (result == NUMBER_MALFORMED)
        return error_set(error, CT_EINVAL,
                         "%s: \"%s\" is not an amount of memory such as 6G or 700M", label, text);
    if (result == NUMBER_TOO_LARGE || (double)bytes > info->max)
        return error_set(error, CT_EINVAL, "%s %s is more than any machine has", label, text);
    if ((double)bytes < info->min)
        return error_set(error, CT_EINVAL,
                         "%s %s is %" PRIu64 " bytes; write M or G behind the number", label, text,
                         bytes);
    value->bytes = bytes;
    return CT_OK;
}

typedef struct word_search {
    const char *wanted;
    int64_t index;
    bool found;
    suggestion near;
} word_search;

static bool visit_word(void *user, const char *word, size_t length)
{
    word_search *search = user;
    if (strlen(search->wanted) == length && !memcmp(search->wanted, word, length)) {
        search->found = true;
        return false;
    }
    suggest_try(&search->near, word, length);
    search->index++;
    return true;
}

static ct_status set_choice(option_value *value, const option_info *info, const char *label,
                            const char *text, ct_error *error)
{
    word_search search = {.wanted = text};
    suggest_init(&search.near, text, strlen(text));
    option_each_word(info->words, visit_word, &search);
    if (search.found) {
        value->integer = search.index;
        return CT_OK;
    }
    if (search.near.best)
        return error_set(error, CT_EINVAL, "%s: \"%s\" is not one of: %s; did you mean %.*s?",
                         label, text, info->words, (int)search.near.best_length, search.near.best);
    return error_set(error, CT_EINVAL, "%s: \"%s\" is not one of: %s", label, text, info->words);
}

ct_status options_set(options *o, option_id id, const char *label, const char *text,
                      ct_error *error)
{
    const option_info *info = &option_table[id];
    option_value value = o->value[id];
    ct_status status = CT_OK;
    switch (info->kind) {
    case OPTION_KIND_FLAG:
    case OPTION_KIND_TEXT: break;
    case OPTION_KIND_FILE:
    case OPTION_KIND_DIRECTORY:
        if (!*text)
            status = error_set(error, CT_EINVAL, "%s: the path is empty", label);
        break;
    case OPTION_KIND_INTEGER: status = set_integer(&value, info, label, text, error); break;
    case OPTION_KIND_NUMBER: status = set_number(&value, info, label, text, error); break;
    case OPTION_KIND_SEED: status = set_seed(&value, label, text, error); break;
    case OPTION_KIND_BYTES: status = set_bytes(&value, info, label, text, error); break;
    case OPTION_KIND_INTERVAL: status = set_interval(&value, info, label, text, error); break;
    case OPTION_KIND_SIZE: status = set_size(o, info, label, text, error); break;
    case OPTION_KIND_CHOICE: status = set_choice(&value, info, label, text, error); break;
    }
    if (status != CT_OK)
        return status;
    if (id == OPTION_REFERENCE) {
        if (o->references == OPTIONS_REFERENCES)
            return error_set(error, CT_EINVAL, "%s: at most %d reference pictures can be given",
                             label, OPTIONS_REFERENCES);
        o->reference[o->references++] = text;
    }
    if (id == OPTION_LORA) {
        if (o->loras == OPTIONS_LORAS)
            return error_set(error, CT_EINVAL, "%s: at most %d LoRAs can be given", label,
                             OPTIONS_LORAS);
        o->lora[o->loras++] = text;
    }
    value.given++;
    value.text = text;
    o->value[id] = value;
    return CT_OK;
}

/* ---- The command line ---------------------------------------------------------------------- */

typedef struct arguments {
    options *o;
    const options_request *request;
    int next; /* of argv */
} arguments;

static bool visit_elsewhere(void *user, const char *word, size_t length)
{
    word_search *search = user;
    search->found = suggest_distance(search->near.word, search->near.length, word, length) == 0;
    return !search->found;
}

/* The option that was probably meant by a long name that does not exist, or NULL. */
static const char *guess_option(unsigned commands, const char *name, size_t length)
{
    suggestion near;
    suggest_init(&near, name, length);
    for (int id = 1; id < OPTION_COUNT; id++) {
        const option_info *info = &option_table[id];
        if (!(info->commands & commands))
            continue;
        word_search search = {.near = near};
        option_each_word(info->elsewhere, visit_elsewhere, &search);
        if (search.found)
            return info->name;
        suggest_try(&near, info->name, strlen(info->name));
    }
    return near.best;
}

/* What other programs have and we have not, and what to do instead. */
static const struct {
    const char *names, *instead;
} absent_options[] = {
    {"mask mask-image mask-path mask-file inpaint-mask masked-image masked-image-path",
     "no model here takes a mask; give the picture with --reference and say in the prompt what is "
     "to change"},
    {"strength image-strength denoise denoising-strength img2img-strength init-image-strength",
     "pictures are not made from noise levels of others; models that edit take them with "
     "--reference"},
    {"controlnet control-net control-image control-strength controlnet-image-path",
     "there is no ControlNet; models that edit take pictures with --reference"},
};

static const char *instead_of(const char *name, size_t length)
{
    for (size_t i = 0; i < sizeof absent_options / sizeof *absent_options; i++) {
        word_search search = {0};
        suggest_init(&search.near, name, length);
        option_each_word(absent_options[i].names, visit_elsewhere, &search);
        if (search.found)
            return absent_options[i].instead;
    }
    return NULL;
}

static ct_status unknown_option(const options_request *request, const char *dashes,
                                const char *name, size_t length, ct_error *error)
{
    int shown = length > 60 ? 60 : (int)length;
    const char *instead =
        request->commands & (GENERATE | PLAN | BENCH) ? instead_of(name, length) : NULL;
    if (instead)
        return error_set(error, CT_EINVAL, "unknown option %s%.*s: %s", dashes, shown, name,
                         instead);
    const char *guess = guess_option(request->commands, name, length);
    if (guess)
        return error_set(error, CT_EINVAL, "unknown option %s%.*s; did you mean --%s?", dashes,
                         shown, name, guess);
    if (options_find(OPTION_FOR_ALL, name, length))
        return error_set(error, CT_EINVAL, "%s%.*s is not an option of \"calotype %s\"", dashes,
                         shown, name, request->command);
    return error_set(error, CT_EINVAL, "unknown option %s%.*s", dashes, shown, name);
}

/* True for an argument that is an option of this command, to be told from a value that happens to
 * begin with a dash, such as -1. */
static bool is_option(const options_request *request, const char *text)
{
    if (text[0] != '-' || !text[1])
        return false;
    if (text[1] != '-')
        return !text[2] && options_find_letter(request->commands, text[1]);
    return options_find(request->commands, text + 2, strcspn(text + 2, "="));
}

/* The value of an option that stands in the next argument. */
static ct_status take_value(arguments *a, const option_info *info, const char *label,
                            const char **value, ct_error *error)
{
    const options_request *r = a->request;
    if (a->next >= r->argc)
        return error_set(error, CT_EINVAL, "%s needs a value: %s %s", label, label, info->metavar);
    *value = r->argv[a->next];
    if (is_option(r, *value))
        return error_set(error, CT_EINVAL,
                         "%s needs a value, but \"%.60s\" behind it is an option; write "
                         "--%s=%.60s if it is meant as the value",
                         label, *value, info->name, *value);
    a->next++;
    return CT_OK;
}

static ct_status parse_long(arguments *a, const char *text, ct_error *error)
{
    const char *name = text + 2;
    size_t length = strcspn(name, "=");
    const option_info *info = options_find(a->request->commands, name, length);
    if (!info)
        return unknown_option(a->request, "--", name, length, error);
    char label[64] = "--";
    memcpy(label + 2, info->name, length);
    const char *value = name[length] == '=' ? name + length + 1 : NULL;
    if (info->kind == OPTION_KIND_FLAG && value)
        return error_set(error, CT_EINVAL, "%s takes no value", label);
    if (info->kind != OPTION_KIND_FLAG && !value) {
        ct_status status = take_value(a, info, label, &value, error);
        if (status != CT_OK)
            return status;
    }
    return options_set(a->o, option_id_of(info), label, value, error);
}

static ct_status parse_short(arguments *a, const char *text, ct_error *error)
{
    const options_request *r = a->request;
    /* -steps would be read as -s teps. */
    size_t length = strcspn(text + 1, "=");
    if (length > 1 && options_find(r->commands, text + 1, length))
        return unknown_option(r, "-", text + 1, length, error);
    for (const char *letter = text + 1; *letter; letter++) {
        char label[3] = {'-', *letter, 0};
        const option_info *info = options_find_letter(r->commands, *letter);
        if (!info)
            return text[2] ? error_set(error, CT_EINVAL, "unknown option %s in %.60s", label, text)
                           : error_set(error, CT_EINVAL, "unknown option %s", label);
        const char *value = NULL;
        if (info->kind != OPTION_KIND_FLAG) {
            value = letter[1] == '=' ? letter + 2 : letter + 1;
            ct_status status = letter[1] ? CT_OK : take_value(a, info, label, &value, error);
            if (status != CT_OK)
                return status;
        }
        ct_status status = options_set(a->o, option_id_of(info), label, value, error);
        if (status != CT_OK || value || info == &option_table[OPTION_HELP])
            return status;
    }
    return CT_OK;
}

static ct_status add_argument(arguments *a, const char *text, ct_error *error)
{
    if (a->o->arguments >= a->request->max_arguments)
        return error_set(error, CT_EINVAL,
                         "unexpected argument \"%.200s\"; text with blanks needs quotes", text);
    a->o->argument[a->o->arguments++] = text;
    return CT_OK;
}

static ct_status check_conflicts(const options *o, ct_error *error)
{
    for (int id = 1; id < OPTION_COUNT; id++) {
        const option_info *info = &option_table[id];
        if (info->conflict && o->value[id].given && o->value[info->conflict].given)
            return error_set(error, CT_EINVAL, "--%s and --%s cannot be given together", info->name,
                             option_table[info->conflict].name);
    }
    return CT_OK;
}

/* "--model, --prompt and --output": those that the command lacks. */
static ct_status check_required(const options *o, const options_request *request, ct_error *error)
{
    const char *missing[OPTION_COUNT];
    int count = 0;
    for (int id = 1; id < OPTION_COUNT; id++)
        if ((option_table[id].required & request->commands) && !o->value[id].given)
            missing[count++] = option_table[id].name;
    if (count == 0)
        return CT_OK;
    char list[256] = "";
    size_t at = 0;
    for (int i = 0; i < count && at < sizeof list; i++)
        at += (size_t)snprintf(list + at, sizeof list - at, "%s--%s",
                               i == 0          ? ""
                               : i + 1 < count ? ", "
                                               : " and ",
                               missing[i]);
    return error_set(error, CT_EINVAL, "\"calotype %s\" needs %s", request->command, list);
}

ct_status options_parse(options *o, const options_request *request, ct_error *error)
{
    arguments a = {.o = o, .request = request};
    bool only_arguments = false;
    while (a.next < request->argc) {
        const char *text = request->argv[a.next++];
        ct_status status;
        if (only_arguments || text[0] != '-' || !text[1])
            status = add_argument(&a, text, error);
        else if (text[1] != '-')
            status = parse_short(&a, text, error);
        else if (text[2])
            status = parse_long(&a, text, error);
        else {
            only_arguments = true;
            status = CT_OK;
        }
        if (status != CT_OK)
            return status;
        if (o->value[OPTION_HELP].given)
            return CT_OK;
    }
    ct_status status = check_conflicts(o, error);
    return status == CT_OK ? check_required(o, request, error) : status;
}
