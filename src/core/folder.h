/* Folders: what one writes that shall appear as a whole, and where it goes. */
#ifndef CORE_FOLDER_H
#define CORE_FOLDER_H

#include "core/error.h"

ct_status folder_create(const char *path, ct_error *error);
/* Creates the folders on the way to the last part of path, where they are missing. */
ct_status folder_create_parents(const char *path, ct_error *error);
/* Deletes a folder, the files in it, and folders in it likewise. Follows no links. Does what it
 * can: there is nobody to tell. */
void folder_remove(const ct_allocator *a, const char *path);
/* Calls visit for each entry but . and .. in an unspecified order until it fails. */
ct_status folder_each(const char *path,
                      ct_status (*visit)(void *user, const char *name, ct_error *error), void *user,
                      ct_error *error);
/* Bytes that this user may still write to the disk of a folder; UINT64_MAX where that is not
 * known. */
uint64_t folder_free_bytes(const char *path);

/* An output folder: written beside path under a temporary name, "path.PID.part", and renamed by
 * folder_output_commit. folder_output_abort deletes it; it may be called at any time, and after
 * commit does nothing. */
typedef struct folder_output {
    char path[4096]; /* without slashes at its end */
    char temporary[4128];
    char parent[4096];
} folder_output;

/* Checks that path does not exist and that its parent does, and creates the temporary folder. */
ct_status folder_output_open(folder_output *out, const char *path, ct_error *error);
ct_status folder_output_commit(folder_output *out, ct_error *error);
void folder_output_abort(folder_output *out, const ct_allocator *a);
/* Whether name, an entry of the parent, is the temporary folder of a run that ended without
 * deleting it. */
bool folder_output_is_stale(const folder_output *out, const char *name);

#endif
