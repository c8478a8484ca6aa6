/* How much memory the system could give. */
#ifndef CORE_MEMORY_INFO_H
#define CORE_MEMORY_INFO_H

#include <stdint.h>

/* Bytes that a new program could use without swapping; UINT64_MAX where that is not known. */
uint64_t memory_available(void);

#endif
