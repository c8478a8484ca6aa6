#include "core/error.h"
#include "core/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Messages quote names from files. What is not UTF-8, and what moves a terminal (C0, DEL, C1),
 * becomes question marks. */
static void make_printable(char *text, size_t length)
{
    for (size_t at = 0; at < length;) {
        size_t start = at;
        uint32_t point = utf8_next(text, length, &at);
        if (point == UTF8_INVALID || point < 32 || (point >= 127 && point < 160))
            memset(text + start, '?', at - start);
    }
}

/* Puts dots at the end of a message that was cut, behind a whole character. */
static void mark_cut(char *message, size_t size)
{
    size_t at = size - 4;
    while (at && ((unsigned char)message[at] & 0xc0) == 0x80)
        at--;
    memcpy(message + at, "...", 4);
}

ct_status error_set(ct_error *error, ct_status code, const char *format, ...)
{
    if (!error)
        return code;
    va_list args;
    va_start(args, format);
    int length = vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    error->code = code;
    if (length < 0)
        error->message[0] = 0;
    else if ((size_t)length >= sizeof error->message)
        mark_cut(error->message, sizeof error->message);
    make_printable(error->message, strlen(error->message));
    return code;
}

ct_status error_memory(ct_error *error, size_t bytes, const char *what)
{
    return error_set(error, CT_ENOMEM, "out of memory: %.1f MiB for %s could not be had",
                     (double)bytes / 1048576.0, what);
}

const char *ct_status_name(ct_status status)
{
    switch (status) {
    case CT_OK: return "ok";
    case CT_EINVAL: return "invalid argument";
    case CT_ENOMEM: return "out of memory";
    case CT_ENOTFOUND: return "not found";
    case CT_EFORMAT: return "bad format";
    case CT_EUNSUPPORTED: return "unsupported";
    case CT_EIO: return "input/output error";
    case CT_ECANCELLED: return "cancelled";
    case CT_EINTERNAL: return "internal error";
    case CT_EDEVICE: return "device error";
    }
    return "unknown status";
}
