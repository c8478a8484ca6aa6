#include "cli/commands.h"

#include <string.h>

static const char generate_details[] =
    "Examples\n"
    "  calotype generate -m models/emoji-256 -p \"a red apple\" -o apple.png\n"
    "  calotype generate -m models/emoji-256 -p \"a sleeping fox\" -o fox.png --seed 42 -b 4\n"
    "  calotype generate -m models/Z-Image-Turbo -p - -o out.png --size 1024x768 < prompt.txt\n"
    "  calotype generate -m models/Z-Image -p \"a lighthouse\" -n \"blurry\" -o out.png --guidance "
    "4\n"
    "  calotype generate -m models/Qwen-Image --lora Lightning-8steps.safetensors --steps 8 \\\n"
    "      --cfg-scale 1 --shift 3 --shift-terminal 0 -p \"a shop window\" -o out.png\n"
    "\n"
    "A width or a height that is not given is the model's own, or that of a reference picture.\n"
    "Ctrl-C stops after the layer that is being computed; pictures that are finished are kept.\n"
    "\n"
    "Exit status: 0 done, 1 the work failed, 2 a mistake in the options, 130 cancelled.\n";

static const char edit_details[] =
    "Examples\n"
    "  calotype edit -m models/FLUX.2-klein-4B -p \"make it winter\" -r house.jpg -o winter.png\n"
    "  calotype edit -m models/FLUX.2-klein-4B -p \"the cat of the first picture on the chair of "
    "the\n"
    "      second\" -r cat.png -r chair.webp -o both.png\n"
    "\n"
    "The same as \"calotype generate\" with reference pictures. FLUX.2-klein makes larger ones\n"
    "than 1024 x 1024 smaller to that area and cuts them to multiples of 16 pixels;\n"
    "Qwen-Image-Edit makes all as large as that. Neither does so with --keep-size.\n"
    "\n"
    "Exit status: 0 done, 1 the work failed, 2 a mistake in the options, 130 cancelled.\n";

static const char quantize_details[] =
    "Examples\n"
    "  calotype quantize models/Z-Image-Turbo --bits 4 -o models/Z-Image-Turbo-4bit\n"
    "  calotype quantize -m models/emoji-256 --bits 8 -o emoji-8bit --json > errors.jsonl\n"
    "\n"
    "Each matrix is printed with the relative L2 error of its new numbers, which is also stored "
    "in\n"
    "the files. The folder appears under its name when it is complete; until then it is called\n"
    "DIR.PID.part.\n"
    "\n"
    "Exit status: 0 done, 1 the work failed, 2 a mistake in the options, 130 cancelled.\n";

static const char plan_details[] =
    "Examples\n"
    "  calotype plan -m models/Z-Image-Turbo                       the model's own size\n"
    "  calotype plan -m models/Z-Image-Turbo --size 1024x1024 --max-memory 8G\n"
    "\n"
    "Without --prompt the longest one is assumed. Only the headers of the files are read.\n"
    "\n"
    "Exit status: 0 it fits, 1 it does not or the model cannot be read, 2 a mistake in the "
    "options.\n";

static const char info_details[] =
    "Examples\n"
    "  calotype info models/emoji-256     what is in a model, and its defaults\n"
    "  calotype info models/Qwen-Image --lora style.safetensors       and what of a LoRA fits it\n"
    "  calotype info apple.png            how a picture was made\n";

static const char bench_details[] =
    "  bench kernels      the machine's own peak, for every instruction set, and operations as a\n"
    "                     share of it; the best of several runs counts\n"
    "  bench model DIR    the stages of a picture for a caption of 128 tokens: the median, the\n"
    "                     fastest and the slowest of several runs\n"
    "  bench plot FILE... draws what these printed with --json, up to 4 files beside one another\n"
    "\n"
    "Examples\n"
    "  calotype bench kernels                             layers of Z-Image for 512 x 512 pixels\n"
    "  calotype bench kernels --shapes all --sizes 256,512,1024 --json > kernels.json\n"
    "  calotype bench kernels --what attention --cpu avx2                 other kernels\n"
    "  calotype bench model models/Z-Image-Turbo --size 512x512 --precision int8 -b 5\n"
    "  calotype bench plot before.json after.json -o speed.svg\n"
    "\n"
    "\"calotype bench\" alone is \"bench kernels\", and with --model \"bench model\". Close other\n"
    "programs; threads that share a core do not add up.\n";

static const char cache_details[] =
    "Examples\n"
    "  calotype cache                     what is kept, and where\n"
    "  calotype cache clear               delete it\n"
    "\n"
    "What is kept can be made again. Prompts and pictures are not stored, but what a network made "
    "of\n"
    "them is; --no-cache of the other commands keeps nothing. Without --cache the folder is "
    "that of\n"
    "the environment variable CALOTYPE_CACHE, or calotype in $XDG_CACHE_HOME or ~/.cache.\n";

static const char completions_details[] =
    "Examples\n"
    "  source <(calotype completions bash)\n"
    "  calotype completions bash > ~/.local/share/bash-completion/completions/calotype\n"
    "  calotype completions zsh > ~/.zfunc/_calotype       (a folder of $fpath)\n"
    "  calotype completions fish > ~/.config/fish/completions/calotype.fish\n";

const command command_table[] = {
    {.name = "generate",
     .bit = OPTION_FOR_GENERATE,
     .summary = "make pictures from a prompt",
     .details = generate_details,
     .run = generate_run},
    {.name = "edit",
     .bit = OPTION_FOR_EDIT,
     .summary = "make pictures from a prompt and other pictures",
     .details = edit_details,
     .run = generate_run},
    {.name = "quantize",
     .bit = OPTION_FOR_QUANTIZE,
     .arguments = "MODEL",
     .max_arguments = 1,
     .summary = "write a copy of a model with fewer bits",
     .details = quantize_details,
     .run = quantize_run},
    {.name = "plan",
     .bit = OPTION_FOR_PLAN,
     .summary = "tell how much memory a picture takes, before anything is loaded",
     .details = plan_details,
     .run = plan_run},
    {.name = "info",
     .bit = OPTION_FOR_INFO,
     .arguments = "PATH",
     .min_arguments = 1,
     .max_arguments = 1,
     .summary = "tell about a model (a directory) or a picture (a PNG file)",
     .details = info_details,
     .run = info_run},
    {.name = "devices",
     .bit = OPTION_FOR_DEVICES,
     .summary = "list what there is to compute on, and why something cannot be used",
     .run = devices_run},
    {.name = "bench",
     .bit = OPTION_FOR_BENCH,
     .arguments = "[kernels | model DIR | plot FILE...]",
     .max_arguments = 5,
     .words = "kernels model plot",
     .summary = "measure the speed of this machine, or of a model on it",
     .details = bench_details,
     .run = bench_run},
    {.name = "cache",
     .bit = OPTION_FOR_CACHE,
     .arguments = "[clear]",
     .max_arguments = 1,
     .words = "clear",
     .summary = "tell what is kept from run to run, or delete it",
     .details = cache_details,
     .run = cache_run},
    {.name = "completions",
     .bit = OPTION_FOR_COMPLETIONS,
     .arguments = "bash|zsh|fish",
     .min_arguments = 1,
     .max_arguments = 1,
     .words = "bash zsh fish",
     .summary = "print the completions for a shell",
     .details = completions_details,
     .run = completions_run},
    {.name = "help",
     .bit = OPTION_FOR_HELP,
     .arguments = "[COMMAND]",
     .max_arguments = 1,
     .words = "generate edit plan quantize info devices bench cache completions help",
     .summary = "show the help of a command",
     .run = help_run},
    {.name = NULL},
};

const command *command_find(const char *name)
{
    for (const command *c = command_table; c->name; c++)
        if (!strcmp(c->name, name))
            return c;
    return NULL;
}
