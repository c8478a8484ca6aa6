/* Finding the CUDA driver and the libraries beside it, and what the driver says about GPUs. */
#define _GNU_SOURCE
#include "nn/cuda/driver.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <string.h>

/* ---- Libraries ----------------------------------------------------------------------------- */

/* Where CUDA's own installers and Python's wheels put libraries that the system's linker need not
 * know. */
static const char *const usual_folders[] = {
    "/usr/local/cuda/lib64",
#if defined(__aarch64__)
    "/usr/local/cuda/targets/sbsa-linux/lib",
#else
    "/usr/local/cuda/targets/x86_64-linux/lib",
#endif
    "/usr/local/lib/python3*/dist-packages/nvidia/*/lib",
    "/usr/local/lib/python3*/site-packages/nvidia/*/lib",
    "/usr/lib/python3*/dist-packages/nvidia/*/lib",
    "/usr/lib/python3*/site-packages/nvidia/*/lib",
    NULL,
};

/* RTLD_NODELETE: closing forgets the library but leaves its code where it is, because the driver
 * and cuBLAS have threads and handlers of their own that may still run. */
static void *open_path(const char *path)
{
    return dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

static void *open_in(const char *folder, const char *name)
{
    char path[4096];
    const int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    if (length < 0 || (size_t)length >= sizeof path)
        return NULL;
    if (!strchr(folder, '*'))
        return open_path(path);
    glob_t found;
    void *library = NULL;
    if (glob(path, 0, NULL, &found) != 0)
        return NULL;
    for (size_t i = 0; i < found.gl_pathc && !library; i++)
        library = open_path(found.gl_pathv[i]);
    globfree(&found);
    return library;
}

void *cuda_library_open(const char *const *names, const char *const *folders)
{
    for (; *names; names++) {
        void *library = open_path(*names);
        for (const char *const *f = folders; !library && f && *f; f++)
            library = open_in(*f, *names);
        for (const char *const *f = usual_folders; !library && *f; f++)
            library = open_in(*f, *names);
        if (library)
            return library;
    }
    return NULL;
}

void *cuda_library_symbol(void *library, const char *name)
{
    return dlsym(library, name);
}

void cuda_library_close(void *library)
{
    if (library)
        dlclose(library);
}

/* ---- The driver ---------------------------------------------------------------------------- */

/* The system's places first; then where WSL and NixOS keep the driver. */
static const char *const driver_names[] = {
    "libcuda.so.1",
    "/usr/lib/wsl/lib/libcuda.so.1",
    "/run/opengl-driver/lib/libcuda.so.1",
    NULL,
};

static ct_status open_library(cuda_driver *d, ct_error *error)
{
    char reason[256] = "";
    for (const char *const *name = driver_names; *name && !d->library; name++) {
        d->library = open_path(*name);
        /* A file that is there but cannot be loaded says why; the others are merely not there. */
        const char *text = d->library ? NULL : dlerror();
        if (text && !strstr(text, "cannot open shared object file: No such file"))
            snprintf(reason, sizeof reason, "%s", text);
    }
    if (d->library)
        return CT_OK;
    if (*reason)
        return error_set(error, CT_EDEVICE, "the NVIDIA driver cannot be loaded: %s", reason);
    return error_set(error, CT_ENOTFOUND, "no NVIDIA driver: libcuda.so.1 was not found");
}

static ct_status load_functions(cuda_driver *d, ct_error *error)
{
    /* A pointer to a function is copied bytewise: C has no conversion from void *. */
#define LOAD(member, symbol, parameters)                                                           \
    do {                                                                                           \
        void *address = cuda_library_symbol(d->library, symbol);                                   \
        if (!address)                                                                              \
            return error_set(error, CT_EDEVICE,                                                    \
                             "the driver is too old: it has no %s; install a newer NVIDIA "        \
                             "driver",                                                             \
                             symbol);                                                              \
        memcpy(&d->member, &address, sizeof address);                                              \
    } while (0);
    CUDA_DRIVER_FUNCTIONS(LOAD)
#undef LOAD
    return CT_OK;
}

/* Results of cuInit, as cuda.h numbers them, in words that tell what to do. */
static const struct {
    cu_result result;
    const char *text;
} init_failures[] = {
    {34, "libcuda.so.1 is the stub that comes with the CUDA toolkit; install the NVIDIA driver, or "
         "take the folder of stubs out of LD_LIBRARY_PATH"},
    {46, "the GPU is in use by another process that keeps it for itself"},
    {100, "the NVIDIA driver finds no GPU; in a container, start it with access to the GPU"},
    {101, "CUDA_VISIBLE_DEVICES names a GPU that is not there"},
    {304, "the NVIDIA driver was refused by the operating system; check that this user may open "
          "/dev/nvidia*, and that the kernel module is loaded (nvidia-smi)"},
    {800, "this user may not use the GPU; check the permissions of /dev/nvidia*"},
    {802, "the GPUs are not ready yet; where they are linked by NVSwitch, start "
          "nvidia-fabricmanager"},
    {803, "libcuda.so.1 and the kernel module are of different versions; after an update of the "
          "driver, restart the machine"},
    {804, "the driver is too old for this libcuda.so.1 on this GPU; update the driver"},
    {999, "the NVIDIA driver does not answer; check nvidia-smi and that this user may open "
          "/dev/nvidia*; after a suspend, reload the module nvidia_uvm"},
};

static ct_status initialize(cuda_driver *d, ct_error *error)
{
    const cu_result result = d->init(0);
    if (result != 0) {
        for (size_t i = 0; i < sizeof init_failures / sizeof *init_failures; i++)
            if (init_failures[i].result == result)
                return error_set(error, CT_EDEVICE, "%s", init_failures[i].text);
        return cuda_check(d, result, "cuInit", error);
    }
    return cuda_check(d, d->driver_version(&d->version), "cuDriverGetVersion", error);
}

ct_status cuda_driver_open(cuda_driver *d, ct_error *error)
{
    *d = (cuda_driver){0};
    ct_status status = open_library(d, error);
    if (status == CT_OK)
        status = load_functions(d, error);
    if (status == CT_OK)
        status = initialize(d, error);
    if (status != CT_OK)
        cuda_driver_close(d);
    return status;
}

void cuda_driver_close(cuda_driver *d)
{
    cuda_library_close(d->library);
    *d = (cuda_driver){0};
}

ct_status cuda_check(const cuda_driver *d, cu_result result, const char *what, ct_error *error)
{
    if (result == 0)
        return CT_OK;
    const char *name = NULL, *text = NULL;
    if (d->error_name(result, &name) != 0 || !name)
        name = "unknown";
    if (d->error_text(result, &text) != 0 || !text)
        text = "an error without a name";
    return error_set(error, result == CU_OUT_OF_MEMORY ? CT_ENOMEM : CT_EDEVICE, "%s: %s (%s, %d)",
                     what, text, name, result);
}

/* ---- GPUs ---------------------------------------------------------------------------------- */

ct_status cuda_device_count(const cuda_driver *d, int *count, ct_error *error)
{
    *count = 0;
    return cuda_check(d, d->device_count(count), "counting the GPUs", error);
}

ct_status cuda_device_query(const cuda_driver *d, int ordinal, cuda_device_info *info,
                            ct_error *error)
{
    *info = (cuda_device_info){.ordinal = ordinal};
    int count;
    ct_status status = cuda_device_count(d, &count, error);
    if (status != CT_OK)
        return status;
    if (ordinal < 0 || ordinal >= count)
        return error_set(error, CT_ENOTFOUND, "there is no cuda:%d; this machine has %d GPU%s",
                         ordinal, count, count == 1 ? "" : "s");
    cu_device device;
    const struct {
        int attribute, *value;
    } attributes[] = {
        {CU_ATTRIBUTE_MAJOR, &info->major},
        {CU_ATTRIBUTE_MINOR, &info->minor},
        {CU_ATTRIBUTE_MULTIPROCESSORS, &info->multiprocessors},
        {CU_ATTRIBUTE_SHARED_OPTIN, &info->shared_bytes},
    };
    cu_result result = d->device_get(&device, ordinal);
    if (result == 0)
        result = d->device_name(info->name, (int)sizeof info->name, device);
    for (size_t i = 0; result == 0 && i < sizeof attributes / sizeof *attributes; i++)
        result = d->device_attribute(attributes[i].value, attributes[i].attribute, device);
    if (result == 0)
        result = d->device_memory(&info->memory, device);
    char what[64];
    snprintf(what, sizeof what, "asking for the properties of cuda:%d", ordinal);
    return cuda_check(d, result, what, error);
}
