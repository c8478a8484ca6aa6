/* calotype bench plot: draws what bench kernels or bench model measured. */
#include "app/bench_plot.h"
#include "cli/bench.h"
#include "core/file.h"
#include "core/mem.h"

#define MAXIMUM ((size_t)64 << 20)

static ct_status write_file(const char *path, const strbuf *text, ct_error *error)
{
    file_output out;
    ct_status status = file_output_open(&out, path, error);
    if (status != CT_OK)
        return status;
    if (fwrite(text->data, 1, text->length, out.stream) != text->length)
        status = error_set(error, CT_EIO, "%s: cannot be written", path);
    else
        status = file_output_commit(&out, error);
    file_output_abort(&out);
    return status;
}

ct_status bench_plot(report *r, const options *o, ct_error *error)
{
    const option_value *output = &o->value[OPTION_OUTPUT_PLOT];
    bench_file files[SVG_SERIES] = {0};
    const int count = o->arguments - 1; /* behind "plot" */
    int opened = 0;
    strbuf text;
    if (count < 1 || count > SVG_SERIES || !output->given)
        return error_set(error, CT_EINVAL,
                         "\"bench plot\" needs 1 to %d files of \"bench ... --json\" and --output "
                         "FILE.svg",
                         SVG_SERIES);
    ct_status status = CT_OK;
    strbuf_init(&text, &mem_default, MAXIMUM);
    while (opened < count && status == CT_OK) {
        status = bench_file_read(&files[opened], o->argument[1 + opened], error);
        opened += status == CT_OK;
    }
    if (status == CT_OK)
        status = bench_plot_draw(&text, files, count, error);
    if (status == CT_OK)
        status = write_file(output->text, &text, error);
    if (status == CT_OK) {
        terminal_clean(&r->out, output->text, false, 0);
        fputs("\n", r->out.stream);
    }
    strbuf_free(&text);
    while (opened > 0)
        bench_file_close(&files[--opened]);
    return status;
}
