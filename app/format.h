/* Numbers as people read them. Each function writes into out, always ended by a zero byte, and
 * returns it. */
#ifndef APP_FORMAT_H
#define APP_FORMAT_H

#include <stdint.h>

#define FORMAT_SIZE 40

/* "53 ms", "0.31 s", "12.3 s", "2 min 05 s", "1 h 02 min" */
const char *format_duration(char out[FORMAT_SIZE], double seconds);
/* The same in three digits, for what was measured: "5.27 ms", "523 ms", "65.2 s" */
const char *format_measured(char out[FORMAT_SIZE], double seconds);
/* "812 bytes", "1.5 MiB" */
const char *format_bytes(char out[FORMAT_SIZE], uint64_t bytes);
/* "812", "1.23 million", "6.15 billion" */
const char *format_count(char out[FORMAT_SIZE], uint64_t count);

#endif
