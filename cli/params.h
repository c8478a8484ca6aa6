/* From the options that several commands share to the library's parameters. */
#ifndef CLI_PARAMS_H
#define CLI_PARAMS_H

#include "app/options.h"
#include "cli/report.h"

/* Threads, kernels, and the callbacks of the report. */
ct_status context_from_options(ct_context **out, const options *o, report *r, ct_error *error);
/* Everything about the picture and the machine; strings stay those of the options. */
void params_from_options(ct_generate_params *p, const options *o);
/* Reads the reference pictures and gives them to the parameters; they are freed by
 * references_close, after a failure too. */
ct_status references_open(ct_image *references[OPTIONS_REFERENCES], ct_generate_params *p,
                          ct_context *context, const options *o, ct_error *error);
void references_close(ct_image *references[OPTIONS_REFERENCES]);
/* The LoRAs of the options, their paths cut off from the scales; freed by loras_close, after a
 * failure too. */
typedef struct loras {
    ct_lora list[OPTIONS_LORAS];
    char *path[OPTIONS_LORAS];
    int count;
} loras;
ct_status loras_open(loras *l, const options *o, ct_error *error);
void loras_close(loras *l);
/* The directory of a model that may be given as argument number `at` or as --model: exactly one of
 * them, else CT_EINVAL. command is for messages: "bench model". */
ct_status model_argument(const char **directory, const options *o, int at, const char *command,
                         ct_error *error);
/* Opens a model with what the options say of it. */
ct_status model_from_options(ct_model **out, ct_context *context, const char *directory,
                             const options *o, bool plan_only, ct_error *error);
/* Where the prompt is "-": all of standard input, without the line end that editors and echo put
 * behind it, to be freed with mem_free. Otherwise NULL. */
ct_status read_prompt(char **out, const options *o, ct_error *error);

#endif
