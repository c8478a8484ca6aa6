#include "core/memory_info.h"

#include <inttypes.h>
#include <stdio.h>

uint64_t memory_available(void)
{
    uint64_t bytes = UINT64_MAX;
#ifdef __linux__
    FILE *f = fopen("/proc/meminfo", "re");
    if (!f)
        return bytes;
    char line[256];
    uint64_t kib;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1 && kib < UINT64_MAX / 1024)
            bytes = kib * 1024;
    fclose(f);
#endif
    return bytes;
}
