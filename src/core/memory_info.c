#include "core/memory_info.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#ifdef __linux__

#define PATH_SIZE 4096
#define UNLIMITED (UINT64_C(1) << 60) /* the old hierarchy writes "none" as a number near 2^63 */

static FILE *open_in(const char *folder, const char *name)
{
    char path[PATH_SIZE];
    int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    return n > 0 && n < PATH_SIZE ? fopen(path, "re") : NULL;
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The sum of the lines "name NUMBER" of a file for the given names, times unit. False: there is no
 * such line, or no file. */
static bool read_fields(const char *folder, const char *file, const char *const *names, int count,
                        uint64_t unit, uint64_t *sum)
{
    FILE *f = open_in(folder, file);
    char line[512], name[64];
    uint64_t value;
    bool found = false;
    *sum = 0;
    while (f && fgets(line, sizeof line, f))
        for (int i = 0; i < count; i++)
            if (sscanf(line, "%63s %" SCNu64, name, &value) == 2 && !strcmp(name, names[i]) &&
                value < UNLIMITED / unit) {
                *sum += value * unit;
                found = true;
            }
    if (f)
        fclose(f);
    return found;
}

static bool read_number(const char *folder, const char *file, uint64_t *value)
{
    FILE *f = open_in(folder, file);
    bool found = f && fscanf(f, "%" SCNu64, value) == 1;
    if (f)
        fclose(f);
    return found;
}

/* What a group leaves: its limit less what its processes use. Cached files do not count, because
 * the system drops them when it needs room. */
static uint64_t group_leaves(const char *folder, bool unified)
{
    static const char *const cached[][2] = {{"total_inactive_file", "total_active_file"},
                                            {"inactive_file", "active_file"}};
    uint64_t limit, used, files;
    if (!read_number(folder, unified ? "memory.max" : "memory.limit_in_bytes", &limit) ||
        limit >= UNLIMITED)
        return UINT64_MAX;
    if (!read_number(folder, unified ? "memory.current" : "memory.usage_in_bytes", &used))
        return limit;
    if (read_fields(folder, "memory.stat", cached[unified], 2, 1, &files))
        used -= less(used, files);
    return limit - less(limit, used);
}

/* The group and those above it. Inside a container only its own may be visible, as the root. */
static uint64_t groups_leave(const char *root, char *path, bool unified)
{
    uint64_t least = UINT64_MAX;
    char folder[PATH_SIZE];
    path[strcspn(path, "\n")] = 0;
    for (;;) {
        int n = snprintf(folder, sizeof folder, "%s%s", root, path);
        if (n > 0 && n < PATH_SIZE)
            least = less(least, group_leaves(folder, unified));
        char *slash = strrchr(path, '/');
        if (!slash)
            return least;
        *slash = 0;
    }
}

uint64_t memory_available_in(const char *proc, const char *groups)
{
    static const char *const names[] = {"MemAvailable:"};
    uint64_t bytes;
    if (!read_fields(proc, "meminfo", names, 1, 1024, &bytes))
        bytes = UINT64_MAX;
    /* Lines of "number:controllers:/path"; without controllers it is the unified hierarchy. */
    FILE *f = open_in(proc, "self/cgroup");
    char line[PATH_SIZE], root[PATH_SIZE];
    while (f && fgets(line, sizeof line, f)) {
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = 0;
        if (!controllers[1]) {
            bytes = less(bytes, groups_leave(groups, path, true));
        } else if (!strcmp(controllers + 1, "memory")) {
            int n = snprintf(root, sizeof root, "%s/memory", groups);
            if (n > 0 && n < PATH_SIZE)
                bytes = less(bytes, groups_leave(root, path, false));
        }
    }
    if (f)
        fclose(f);
    return bytes;
}

uint64_t memory_available(void)
{
    return memory_available_in("/proc", "/sys/fs/cgroup");
}

uint64_t memory_resident(bool (*skip)(void *user, const void *address), void *user)
{
    FILE *f = fopen("/proc/self/smaps", "re");
    char line[PATH_SIZE];
    uint64_t bytes = 0, first, kib;
    bool skipped = false;
    while (f && fgets(line, sizeof line, f)) {
        char dash = 0;
        if (sscanf(line, "%" SCNx64 "%c", &first, &dash) == 2 && dash == '-')
            skipped = skip && skip(user, (const void *)(uintptr_t)first);
        else if (!skipped && sscanf(line, "Rss: %" SCNu64, &kib) == 1)
            bytes += kib * 1024;
    }
    if (f)
        fclose(f);
    return bytes;
}

#else

uint64_t memory_available_in(const char *proc, const char *groups)
{
    (void)proc;
    (void)groups;
    return UINT64_MAX;
}

uint64_t memory_available(void)
{
    return UINT64_MAX;
}

uint64_t memory_resident(bool (*skip)(void *user, const void *address), void *user)
{
    (void)skip;
    (void)user;
    return 0;
}

#endif
