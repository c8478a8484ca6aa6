/* What a stream of output can show, and one line that is redrawn in place. */
#ifndef CLI_TERMINAL_H
#define CLI_TERMINAL_H

#include <stdbool.h>
#include <stdio.h>

typedef struct terminal {
    FILE *stream;
    bool live;  /* a terminal that can redraw a line */
    bool color; /* live, and the person did not set NO_COLOR */
    bool utf8;  /* live, and the locale says UTF-8: box characters are safe */
    bool drawn; /* a line that must go before anything else is printed */
} terminal;

typedef enum terminal_style {
    STYLE_PLAIN,
    STYLE_BOLD,
    STYLE_DIM,
    STYLE_RED,
    STYLE_YELLOW,
    STYLE_GREEN
} terminal_style;

/* Reads the environment (TERM, NO_COLOR) and the locale, which main has set. */
void terminal_init(terminal *t, FILE *stream);
/* Columns; 80 where that is not known. */
int terminal_width(const terminal *t);
/* The escape sequence that switches to a style, or "" where there is no colour. */
const char *terminal_escape(const terminal *t, terminal_style style);
/* Replaces the line that is redrawn. It must be shorter than the width. Nothing unless live. */
void terminal_draw(terminal *t, const char *line);
/* Removes it. Call before printing to any stream that may be the same terminal. */
void terminal_clear(terminal *t);

/* Prints text from a file or a person with its control characters replaced, so that it cannot move
 * the cursor or change colours; line ends too, unless lines is true. At most columns wide, where
 * columns is not 0. */
void terminal_clean(const terminal *t, const char *text, bool lines, int columns);

#endif
