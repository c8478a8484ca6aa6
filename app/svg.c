#include "app/svg.h"
#include "core/mem.h"

#include <string.h>

#define MAXIMUM ((size_t)64 << 20)

/* Colours twice: as they are, and for readers who like it dark. */
static const char style[] =
    "text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;"
    "font-size:12px;fill:#1f2328}\n"
    ".page{fill:#ffffff}.title{font-size:18px;font-weight:600}"
    ".head{font-size:14px;font-weight:600}.bold{font-weight:600}.dim{fill:#656d76}\n"
    ".grid{stroke:#d8dee4;stroke-width:1}.axis{stroke:#8c959f;stroke-width:1}"
    ".spread{stroke:#1f2328;stroke-width:1;opacity:.65}\n"
    ".s0{fill:#2f6db5}.s1{fill:#dd7a2c}.s2{fill:#3f9160}.s3{fill:#8257a8}\n"
    ".value{font-size:11px;stroke:#ffffff;stroke-width:3px;stroke-linejoin:round;"
    "paint-order:stroke}\n"
    ".faint{opacity:.45}.half{opacity:.72}\n"
    "@media (prefers-color-scheme:dark){\n"
    "text{fill:#e6edf3}.page{fill:#0d1117}.value{stroke:#0d1117}.dim{fill:#8d96a0}\n"
    ".grid{stroke:#262c36}.axis{stroke:#6e7681}.spread{stroke:#e6edf3}\n"
    ".s0{fill:#5b9be6}.s1{fill:#eb9350}.s2{fill:#5cb884}.s3{fill:#ab83d6}\n"
    "}\n";

void svg_init(svg *s)
{
    strbuf_init(&s->body, &mem_default, MAXIMUM);
}

void svg_free(svg *s)
{
    strbuf_free(&s->body);
}

/* Bytes of the character at text, whose number goes to *code: 1, and U+FFFD, for what is not UTF-8.
 */
static size_t character(const unsigned char *text, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const size_t length = text[0] < 0x80   ? 1
                          : text[0] < 0xc0 ? 0
                          : text[0] < 0xe0 ? 2
                          : text[0] < 0xf0 ? 3
                          : text[0] < 0xf8 ? 4
                                           : 0;
    *code = 0xfffd;
    if (length == 0)
        return 1;
    uint32_t value = length == 1 ? text[0] : text[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) /* the zero byte at the end, too */
            return 1;
        value = value << 6 | (text[i] & 0x3f);
    }
    if (value < least[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
        return 1;
    *code = value;
    return length;
}

static void add_character(strbuf *out, const char *bytes, size_t length, uint32_t code)
{
    switch (code) {
    case '&': strbuf_puts(out, "&amp;"); return;
    case '<': strbuf_puts(out, "&lt;"); return;
    case '>': strbuf_puts(out, "&gt;"); return;
    case '"': strbuf_puts(out, "&quot;"); return;
    default: break;
    }
    /* Characters that XML does not have, and those that turn the direction of a line. */
    const bool strange = code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0xfffd ||
                         (code & 0xfffe) == 0xfffe || (code >= 0x202a && code <= 0x202e) ||
                         (code >= 0x2066 && code <= 0x2069);
    if (strange)
        strbuf_puts(out, "\xef\xbf\xbd");
    else
        strbuf_add(out, bytes, length);
}

static void add_text(strbuf *out, const char *text, int columns)
{
    uint32_t code;
    int count = 0;
    for (const char *at = text; *at; count++)
        at += character((const unsigned char *)at, &code);
    const bool whole = columns == 0 || count <= columns;
    const int shown = whole ? count : columns - 1;
    for (int i = 0; i < shown; i++) {
        const size_t length = character((const unsigned char *)text, &code);
        add_character(out, text, length, code);
        text += length;
    }
    if (!whole)
        strbuf_puts(out, "\xe2\x80\xa6");
}

void svg_rect(svg *s, const char *class, double x, double y, double width, double height)
{
    strbuf_printf(&s->body,
                  "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>\n",
                  class, x, y, width, height);
}

void svg_line(svg *s, const char *class, double x1, double y1, double x2, double y2)
{
    strbuf_printf(&s->body,
                  "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", class,
                  x1, y1, x2, y2);
}

void svg_text(svg *s, const char *class, svg_anchor anchor, double x, double y, int columns,
              const char *text)
{
    static const char *const anchors[] = {"", " text-anchor=\"middle\"", " text-anchor=\"end\""};
    strbuf_puts(&s->body, "<text");
    if (*class)
        strbuf_printf(&s->body, " class=\"%s\"", class);
    strbuf_printf(&s->body, "%s x=\"%.1f\" y=\"%.1f\">", anchors[anchor], x, y);
    add_text(&s->body, text, columns);
    strbuf_puts(&s->body, "</text>\n");
}

void svg_finish(svg *s, strbuf *out, double width, double height, const char *title)
{
    strbuf_printf(out,
                  "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"%.0f\" "
                  "height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\">\n<title>",
                  width, height, width, height);
    add_text(out, title, 0);
    strbuf_printf(out, "</title>\n<style>\n%s</style>\n", style);
    strbuf_printf(out, "<rect class=\"page\" width=\"%.0f\" height=\"%.0f\" rx=\"8\"/>\n", width,
                  height);
    if (strbuf_ok(&s->body) && s->body.data)
        strbuf_add(out, s->body.data, s->body.length);
    else
        out->failed = true;
    strbuf_puts(out, "</svg>\n");
}
