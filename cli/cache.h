/* Where this user's programs keep what can be made again. */
#ifndef CLI_CACHE_H
#define CLI_CACHE_H

#include "app/options.h"

/* $CALOTYPE_CACHE, else $XDG_CACHE_HOME/calotype, else $HOME/.cache/calotype: out, or NULL where
 * none of them is set or CALOTYPE_CACHE is empty. Relative folders are not taken from the last two:
 * the XDG specification says that they count as unset. */
const char *cache_folder(char *out, size_t size);
/* That of --cache, else the same. */
const char *cache_from_options(char *out, size_t size, const options *o);

#endif
