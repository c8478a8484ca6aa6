#include "app/format.h"

#include <inttypes.h>
#include <stdio.h>

const char *format_duration(char out[FORMAT_SIZE], double seconds)
{
    if (!(seconds > 0)) /* also for a NaN */
        seconds = 0;
    /* The limits are those where rounding would show 100 ms, 10 s, 60 s or 60 minutes. */
    if (seconds < 0.0995)
        snprintf(out, FORMAT_SIZE, "%.0f ms", seconds * 1000);
    else if (seconds < 9.995)
        snprintf(out, FORMAT_SIZE, "%.2f s", seconds);
    else if (seconds < 59.95)
        snprintf(out, FORMAT_SIZE, "%.1f s", seconds);
    else if (seconds < 3599.5)
        snprintf(out, FORMAT_SIZE, "%d min %02d s", (int)(seconds + 0.5) / 60,
                 (int)(seconds + 0.5) % 60);
    else if (seconds < 3.6e8)
        snprintf(out, FORMAT_SIZE, "%d h %02d min", (int)(seconds / 60 + 0.5) / 60,
                 (int)(seconds / 60 + 0.5) % 60);
    else
        snprintf(out, FORMAT_SIZE, "very long");
    return out;
}

/* Three digits and a unit; the value is below 1000 in all units but the last. */
static const char *with_unit(char out[FORMAT_SIZE], double value, const char *unit)
{
    snprintf(out, FORMAT_SIZE,
             value < 9.995   ? "%.2f %s"
             : value < 99.95 ? "%.1f %s"
                             : "%.0f %s",
             value, unit);
    return out;
}

const char *format_measured(char out[FORMAT_SIZE], double seconds)
{
    if (!(seconds > 0))
        seconds = 0;
    return seconds < 0.9995 ? with_unit(out, seconds * 1000, "ms") : with_unit(out, seconds, "s");
}

const char *format_bytes(char out[FORMAT_SIZE], uint64_t bytes)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB"};
    if (bytes < 1024) {
        snprintf(out, FORMAT_SIZE, "%" PRIu64 " bytes", bytes);
        return out;
    }
    double value = (double)bytes / 1024;
    int unit = 0;
    while (value >= 1000 && unit < 3) {
        value /= 1024;
        unit++;
    }
    return with_unit(out, value, units[unit]);
}

const char *format_count(char out[FORMAT_SIZE], uint64_t count)
{
    double value = (double)count;
    if (count < 10000)
        snprintf(out, FORMAT_SIZE, "%" PRIu64, count);
    else if (value < 999500)
        with_unit(out, value / 1e3, "thousand");
    else if (value < 999.5e6)
        with_unit(out, value / 1e6, "million");
    else
        with_unit(out, value / 1e9, "billion");
    return out;
}
