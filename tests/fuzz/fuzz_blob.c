/* An arbitrary file in the place of a cached result: it is read as what was kept, or refused and
 * deleted. */
#define _DEFAULT_SOURCE
#include "core/mem.h"
#include "io/blob.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BYTES 24

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
    if (!condition)
        abort();
}

static bool take(void *user, size_t at, const void *piece, size_t bytes)
{
    size_t *taken = user;
    require(at == *taken && at + bytes <= BYTES);
    *taken += bytes;
    return piece != NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char folder[] = "/tmp/fuzz_blob_XXXXXX";
    static const blob_name name = {"prompt", "00000000000000000000000000000001"};
    if (strstr(folder, "XXXXXX"))
        require(mkdtemp(folder) != NULL);
    char path[200];
    snprintf(path, sizeof path, "%s/prompt-%s.blob", folder, name.hash);
    FILE *file = fopen(path, "wb");
    require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0);
    const blob_folder f = {&mem_default, folder, 1 << 20};
    size_t taken = 0;
    ct_error error = {0};
    const ct_status status = blob_folder_read(&f, &name, BYTES, &(blob_sink){&taken, take}, &error);
    require(status == error.code);
    require(status == CT_OK ? taken == BYTES : status == CT_EFORMAT);
    require(blob_folder_has(&f, &name) == (status == CT_OK));
    return 0;
}
