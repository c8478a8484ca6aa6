#include "cli/cache.h"

#include <stdio.h>
#include <stdlib.h>

static const char *join(char *out, size_t size, const char *folder, const char *rest)
{
    const int length = snprintf(out, size, "%s%s", folder, rest);
    return length > 0 && (size_t)length < size ? out : NULL;
}

const char *cache_folder(char *out, size_t size)
{
    const char *folder = getenv("CALOTYPE_CACHE");
    if (folder)
        return join(out, size, folder, "");
    folder = getenv("XDG_CACHE_HOME");
    if (folder && *folder == '/')
        return join(out, size, folder, "/calotype");
    folder = getenv("HOME");
    if (folder && *folder == '/')
        return join(out, size, folder, "/.cache/calotype");
    return NULL;
}

const char *cache_from_options(char *out, size_t size, const options *o)
{
    const option_value *given = &o->value[OPTION_CACHE];
    return given->given ? join(out, size, given->text, "") : cache_folder(out, size);
}
