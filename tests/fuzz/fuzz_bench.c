/* Arbitrary text as what "calotype bench --json" printed, drawn alone and beside itself: a document
 * without a control character, or an error in words. */
#include "app/bench_plot.h"
#include "core/mem.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void draw(const bench_file *files, int count)
{
    strbuf text;
    ct_error error = {0};
    strbuf_init(&text, &mem_default, (size_t)64 << 20);
    if (bench_plot_draw(&text, files, count, &error) == CT_OK) {
        require(!strncmp(text.data, "<svg ", 5) && strlen(text.data) == text.length);
        for (size_t i = 0; i < text.length; i++)
            require(text.data[i] == '\n' || (unsigned char)text.data[i] >= ' ');
    } else {
        require(error.code != CT_OK && error.message[0]);
    }
    strbuf_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bench_file files[2];
    ct_error error = {0};
    if (bench_file_parse(&files[0], (const char *)data, size, "a.json", &error) != CT_OK) {
        require(error.code != CT_OK && error.message[0]);
        return 0;
    }
    files[1] = files[0];
    draw(files, 1);
    draw(files, 2);
    bench_file_close(&files[0]);
    return 0;
}
