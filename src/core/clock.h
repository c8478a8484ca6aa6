/* Time for progress reports. */
#ifndef CORE_CLOCK_H
#define CORE_CLOCK_H

/* Seconds since some fixed moment; never goes back. */
double clock_seconds(void);

#endif
