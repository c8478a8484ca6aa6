/* calotype bench: what its sub-commands share. */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H

#include "cli/commands.h"
#include "cli/members.h"

/* The context for measuring: no result of a run is kept for the next. The JSON object, if one was
 * asked for, has been opened and says what was measured where and when. */
typedef struct measuring {
    const options *o;
    report *report;
    ct_context *context;
    char processor[128];
    strbuf text; /* of the JSON object */
    json_writer json;
} measuring;

/* "AMD EPYC 9554, 2 threads, avx512bf16, calotype 0.1.0", and the GPU on a line of its own. */
void measuring_print_machine(const measuring *m);

ct_status bench_kernels(measuring *m, ct_error *error);
ct_status bench_model(measuring *m, const char *directory, ct_error *error);
ct_status bench_plot(report *r, const options *o, ct_error *error);

#endif
