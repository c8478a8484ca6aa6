/* A small writer of SVG: rectangles, lines and texts, whose colours are classes of a style sheet
 * with a light and a dark half. Coordinates are pixels; numbers are written with one digit behind
 * the point. Failures stick in the buffer (strbuf_ok). */
#ifndef APP_SVG_H
#define APP_SVG_H

#include "core/strbuf.h"

typedef struct svg {
    strbuf body;
} svg;

#define SVG_SERIES 4 /* classes s0 to s3 */

typedef enum svg_anchor { SVG_START, SVG_MIDDLE, SVG_END } svg_anchor;

void svg_init(svg *s);
void svg_free(svg *s);
/* The whole document: head, style and body. title is for those who cannot see it. */
void svg_finish(svg *s, strbuf *out, double width, double height, const char *title);

/* class may be several words: "s0 faint". */
void svg_rect(svg *s, const char *class, double x, double y, double width, double height);
void svg_line(svg *s, const char *class, double x1, double y1, double x2, double y2);
/* At most columns characters of text, with an ellipsis where it is longer; control characters and
 * those that XML has not become U+FFFD. 0: all of it. */
void svg_text(svg *s, const char *class, svg_anchor anchor, double x, double y, int columns,
              const char *text);

#endif
