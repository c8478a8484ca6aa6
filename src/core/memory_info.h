/* How much memory the system could give, and how much this process has. */
#ifndef CORE_MEMORY_INFO_H
#define CORE_MEMORY_INFO_H

#include <stdbool.h>
#include <stdint.h>

/* Bytes that this process could take besides what it has, without swapping: what the machine has,
 * or less where a group of processes (a container) has a limit. UINT64_MAX where that is not
 * known. */
uint64_t memory_available(void);
/* The same read from other folders than /proc and /sys/fs/cgroup. */
uint64_t memory_available_in(const char *proc, const char *groups);

/* Bytes of this process that are in memory now, without the mappings that begin at addresses for
 * which skip (may be NULL) says so. 0 where that is not known. */
uint64_t memory_resident(bool (*skip)(void *user, const void *address), void *user);

#endif
