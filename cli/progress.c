#include "cli/progress.h"
#include "app/format.h"
#include "core/clock.h"
#include "core/mem.h"
#include "core/strbuf.h"

#include <string.h>

#define REDRAW_SECONDS 0.05 /* between two frames of the bar */
#define PLAIN_SECONDS 30.0  /* between two lines of a slow stage, where nothing can be redrawn */
#define BAR_MAXIMUM 32
#define BAR_MINIMUM 8

const char *progress_stage_name(ct_stage stage)
{
    switch (stage) {
    case CT_STAGE_ENCODE: return "encode";
    case CT_STAGE_DENOISE: return "denoise";
    case CT_STAGE_DECODE: return "decode";
    case CT_STAGE_QUANTIZE: return "quantize";
    }
    return "work";
}

void progress_init(progress *p, terminal *t)
{
    *p = (progress){.terminal = t};
}

void progress_begin(progress *p, int picture, int pictures)
{
    *p = (progress){.terminal = p->terminal, .picture = picture, .pictures = pictures};
}

/* Eighths of a character are drawn where the terminal knows them. */
static void add_bar(strbuf *s, const progress *p, int width)
{
    static const char *const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    double part = p->steps > 0 ? (double)p->step / p->steps : 0;
    int filled = (int)(part * width * 8 + 0.5);
    int full = p->terminal->utf8 ? filled / 8 : (int)(part * width + 0.5);
    bool partial = p->terminal->utf8 && filled % 8;
    strbuf_puts(s, p->terminal->utf8 ? "│" : "[");
    strbuf_puts(s, terminal_escape(p->terminal, STYLE_GREEN));
    for (int i = 0; i < full; i++)
        strbuf_puts(s, p->terminal->utf8 ? "█" : "#");
    if (partial)
        strbuf_puts(s, eighths[filled % 8]);
    strbuf_puts(s, terminal_escape(p->terminal, STYLE_PLAIN));
    for (int i = full + partial; i < width; i++)
        strbuf_puts(s, p->terminal->utf8 ? " " : "-");
    strbuf_puts(s, p->terminal->utf8 ? "│" : "]");
}

/* "12/36  0.31 s", or "3/8  0.51 s/step  2.54 s left" once a step of the sampler was timed. */
static void add_numbers(strbuf *s, const progress *p, double now)
{
    char text[FORMAT_SIZE];
    strbuf_printf(s, "%d/%d", p->step, p->steps);
    if (p->stage != CT_STAGE_DENOISE || p->step == 0) {
        strbuf_printf(s, "  %s", format_duration(text, now - p->stage_began));
        return;
    }
    if (p->step >= p->steps)
        strbuf_printf(s, "  %s", format_duration(text, p->step_ended - p->stage_began));
    double each = (p->step_ended - p->stage_began) / p->step;
    double left = each * (p->steps - p->step) - (now - p->step_ended);
    strbuf_printf(s, "  %s/step", format_duration(text, each));
    if (p->step < p->steps)
        strbuf_printf(s, "  %s left", format_duration(text, left));
}

static void draw(progress *p, double now)
{
    strbuf left, right, line;
    strbuf_init(&left, &mem_default, 256);
    strbuf_init(&right, &mem_default, 256);
    strbuf_init(&line, &mem_default, 2048);
    strbuf_puts(&left, "  ");
    if (p->pictures > 1)
        strbuf_printf(&left, "%d/%d  ", p->picture, p->pictures);
    strbuf_printf(&left, "%-7s  ", progress_stage_name(p->stage));
    add_numbers(&right, p, now);
    if (strbuf_ok(&left) && strbuf_ok(&right)) {
        int columns = terminal_width(p->terminal) - 1;
        int bar = columns - (int)left.length - (int)right.length - 4;
        if (bar >= BAR_MINIMUM) {
            strbuf_puts(&line, left.data);
            add_bar(&line, p, bar > BAR_MAXIMUM ? BAR_MAXIMUM : bar);
            strbuf_printf(&line, "  %s", right.data);
        } else {
            strbuf_printf(&line, "%.*s", columns, left.data);
            strbuf_printf(&line, "%.*s", columns - (int)line.length, right.data);
        }
        if (strbuf_ok(&line))
            terminal_draw(p->terminal, line.data);
    }
    strbuf_free(&left);
    strbuf_free(&right);
    strbuf_free(&line);
}

/* One line without a bar, for files and pipes. */
static void say(const progress *p, double now)
{
    FILE *out = p->terminal->stream;
    strbuf numbers;
    strbuf_init(&numbers, &mem_default, 256);
    add_numbers(&numbers, p, now);
    if (strbuf_ok(&numbers)) {
        if (p->pictures > 1)
            fprintf(out, "  %d/%d", p->picture, p->pictures);
        fprintf(out, "  %-7s  %s\n", progress_stage_name(p->stage), numbers.data);
        fflush(out);
    }
    strbuf_free(&numbers);
}

static void show(progress *p, bool now_or_never)
{
    if (!p->terminal || !p->running)
        return;
    double now = clock_seconds();
    double pause = p->terminal->live ? REDRAW_SECONDS : PLAIN_SECONDS;
    if (!now_or_never && now - p->last_shown < pause)
        return;
    p->last_shown = now;
    if (p->terminal->live)
        draw(p, now);
    else
        say(p, now);
}

void progress_update(progress *p, const ct_progress *news)
{
    double now = clock_seconds();
    bool begins = !p->running || p->stage != news->stage;
    bool stepped = begins || news->step != p->step;
    p->running = true;
    p->stage = news->stage;
    p->step = news->step;
    p->steps = news->steps;
    p->stage_began = now - news->stage_seconds;
    if (stepped)
        p->step_ended = now;
    if (begins)
        p->last_shown = p->terminal && p->terminal->live ? 0 : now;
    if (news->stage >= 0 && (int)news->stage < PROGRESS_STAGES) {
        p->seconds[news->stage] = news->stage_seconds;
        p->units[news->stage] = news->steps;
    }
    bool complete = stepped && news->step >= news->steps;
    bool live = p->terminal && p->terminal->live;
    show(p, complete || (live && begins));
}

void progress_tick(progress *p)
{
    show(p, false);
}

void progress_end(progress *p)
{
    p->running = false;
    if (p->terminal)
        terminal_clear(p->terminal);
}
