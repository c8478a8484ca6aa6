/* Draws what "calotype bench" measured as SVG: files of one kind beside one another. */
#ifndef APP_BENCH_PLOT_H
#define APP_BENCH_PLOT_H

#include "app/bench_file.h"
#include "app/svg.h"

/* 1 to SVG_SERIES files. The document goes to out; fails with CT_EINVAL where the files are of two
 * kinds, and with CT_ENOMEM. */
ct_status bench_plot_draw(strbuf *out, const bench_file *files, int count, ct_error *error);

#endif
