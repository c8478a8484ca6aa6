/* Files: mapping, whole reads with a limit, and output that appears only when it is whole. */
#ifndef CORE_FILE_H
#define CORE_FILE_H

#include "core/error.h"

#include <stdio.h>

/* "directory/name", to be freed with mem_free; NULL when memory is short. */
char *path_join(const ct_allocator *a, const char *directory, const char *name);
bool file_exists(const char *path);
bool file_is_directory(const char *path);

typedef struct file_map {
    const unsigned char *data; /* NULL for an empty file */
    size_t size;
} file_map;

/* Maps a regular file for reading. */
ct_status file_map_open(file_map *map, const char *path, ct_error *error);
void file_map_close(file_map *map);

/* Systems map the pages of a file in windows of so many bytes around the one that is touched. */
#define FILE_WINDOW ((size_t)64 << 10)

/* Advice about a range of a mapping. It is rounded outward to whole windows: a page that goes
 * although a neighbour uses it comes back when it is touched. */
/* The range will be read soon: asks the system to fetch what is not in its cache. May wait for the
 * disk. */
void file_map_expect(const file_map *map, size_t at, size_t bytes);
/* The range is done with: its pages leave this process. The system keeps them in its cache for as
 * long as it likes. */
void file_map_let_go(const file_map *map, size_t at, size_t bytes);

/* The whole file with a zero byte behind it, refused above maximum bytes. Freed with mem_free. */
ct_status file_read(const ct_allocator *a, const char *path, size_t maximum, char **data,
                    size_t *size, ct_error *error);

/* An output file: written beside path under a temporary name, renamed by file_output_commit.
 * file_output_abort removes it; it may be called at any time, and after commit does nothing.
 * Devices and pipes (/dev/null, /dev/stdout) are written directly: a rename would replace them. */
typedef struct file_output {
    FILE *stream; /* write here */
    char path[4096];
    char temporary[4128]; /* empty when path is written directly */
    /* Set for what can be made again and is checked when it is read: commit does not wait for the
     * disk. */
    bool unsynced;
} file_output;

ct_status file_output_open(file_output *out, const char *path, ct_error *error);
ct_status file_output_commit(file_output *out, ct_error *error);
void file_output_abort(file_output *out);
/* Characters of a name in front of what file_output_open adds to it; all of them where it is no
 * temporary name. */
size_t file_output_stem(const char *name);

#endif
