#define _XOPEN_SOURCE 700 /* wcwidth */
#define _DEFAULT_SOURCE   /* TIOCGWINSZ */
#include "cli/terminal.h"
#include "core/utf8.h"

#include <langinfo.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#define ERASE_LINE "\r\x1b[K"

void terminal_init(terminal *t, FILE *stream)
{
    const char *kind = getenv("TERM");
    const char *no_color = getenv("NO_COLOR");
    *t = (terminal){.stream = stream};
    t->live = isatty(fileno(stream)) && kind && *kind && strcmp(kind, "dumb") != 0;
    t->color = t->live && !(no_color && *no_color);
    t->utf8 = t->live && !strcmp(nl_langinfo(CODESET), "UTF-8");
}

int terminal_width(const terminal *t)
{
    struct winsize size;
    if (t->live && ioctl(fileno(t->stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    return 80;
}

const char *terminal_escape(const terminal *t, terminal_style style)
{
    if (!t->color)
        return "";
    switch (style) {
    case STYLE_PLAIN: return "\x1b[0m";
    case STYLE_BOLD: return "\x1b[1m";
    case STYLE_DIM: return "\x1b[2m";
    case STYLE_RED: return "\x1b[1;31m";
    case STYLE_YELLOW: return "\x1b[1;33m";
    case STYLE_GREEN: return "\x1b[32m";
    }
    return "";
}

void terminal_draw(terminal *t, const char *line)
{
    if (!t->live)
        return;
    /* One write, so that the line is never seen half drawn. */
    fprintf(t->stream, ERASE_LINE "%s", line);
    fflush(t->stream);
    t->drawn = true;
}

void terminal_clear(terminal *t)
{
    if (!t->drawn)
        return;
    fputs(ERASE_LINE, t->stream);
    fflush(t->stream);
    t->drawn = false;
}

static int point_columns(uint32_t point)
{
    int columns = wcwidth((wchar_t)point);
    return columns < 0 ? 1 : columns;
}

static int text_columns(const char *text, size_t length)
{
    int columns = 0;
    for (size_t at = 0; at < length;)
        columns += point_columns(utf8_next(text, length, &at));
    return columns;
}

void terminal_clean(const terminal *t, const char *text, bool lines, int columns)
{
    size_t length = strlen(text);
    bool shorten = columns > 0 && text_columns(text, length) > columns;
    int left = shorten ? columns - 3 : columns;
    for (size_t at = 0; at < length;) {
        size_t start = at;
        uint32_t point = utf8_next(text, length, &at);
        if (shorten && (left -= point_columns(point)) < 0) {
            fputs("...", t->stream);
            return;
        }
        bool control = point < 32 || (point >= 127 && point < 160) || point == UTF8_INVALID;
        if (control && !(lines && point == '\n'))
            fputc(lines ? '?' : point == '\n' ? ' ' : '?', t->stream);
        else
            fwrite(text + start, 1, at - start, t->stream);
    }
}
