/* What the machine calls its processor. */
#ifndef CORE_PROCESSOR_H
#define CORE_PROCESSOR_H

#include <stddef.h>
#include <stdint.h>

/* "AMD EPYC 7763 64-Core Processor"; where that is not known, the kind of machine: "aarch64". */
void processor_name(char *out, size_t size);
/* Bytes of memory that the machine has; 0 where that is not known. */
uint64_t processor_memory(void);

#endif
