/* NVRTC, the compiler of CUDA C++ that is a library: found at run time, as the driver is. */
#include "nn/cuda/nvrtc.h"
#include "core/mem.h"
#include "core/strbuf.h"

#include <stdio.h>
#include <string.h>

typedef struct nvrtc_program_object *nvrtc_program;

enum { NVRTC_OK = 0, NVRTC_OUT_OF_MEMORY = 1, NVRTC_INVALID_OPTION = 5, NVRTC_COMPILATION = 6 };

/* F(member, symbol, parameters), as nvrtc.h of CUDA declares them; each returns an nvrtcResult, but
 * for the text of one. */
#define NVRTC_FUNCTIONS(F)                                                                         \
    F(version, "nvrtcVersion", (int *major, int *minor))                                           \
    F(arch_count, "nvrtcGetNumSupportedArchs", (int *count))                                       \
    F(archs, "nvrtcGetSupportedArchs", (int *archs))                                               \
    F(create, "nvrtcCreateProgram",                                                                \
      (nvrtc_program * program, const char *text, const char *name, int header_count,              \
       const char *const *headers, const char *const *header_names))                               \
    F(destroy, "nvrtcDestroyProgram", (nvrtc_program * program))                                   \
    F(compile, "nvrtcCompileProgram",                                                              \
      (nvrtc_program program, int option_count, const char *const *options))                       \
    F(log_size, "nvrtcGetProgramLogSize", (nvrtc_program program, size_t * bytes))                 \
    F(log, "nvrtcGetProgramLog", (nvrtc_program program, char *log))                               \
    F(cubin_size, "nvrtcGetCUBINSize", (nvrtc_program program, size_t * bytes))                    \
    F(cubin, "nvrtcGetCUBIN", (nvrtc_program program, char *code))                                 \
    F(ptx_size, "nvrtcGetPTXSize", (nvrtc_program program, size_t * bytes))                        \
    F(ptx, "nvrtcGetPTX", (nvrtc_program program, char *code))

#define MAX_ARCHS 64

struct cuda_compiler {
    const ct_allocator *allocator;
    void *library;
#define MEMBER(member, symbol, parameters) int(*member) parameters;
    NVRTC_FUNCTIONS(MEMBER)
#undef MEMBER
    const char *(*error_text)(int result);
    int major, minor;
    int arch_total;
    int arch[MAX_ARCHS]; /* 90 for compute capability 9.0 */
    int header_count;
    const char **headers, **header_names; /* of the embedded .cuh files */
};

/* ---- Opening -------------------------------------------------------------------------------- */

static ct_status load_functions(cuda_compiler *c, ct_error *error)
{
    const char *missing = NULL;
    void *address;
#define LOAD(member, symbol, parameters)                                                           \
    address = cuda_library_symbol(c->library, symbol);                                             \
    memcpy(&c->member, &address, sizeof address);                                                  \
    if (!address)                                                                                  \
        missing = symbol;
    NVRTC_FUNCTIONS(LOAD)
#undef LOAD
    address = cuda_library_symbol(c->library, "nvrtcGetErrorString");
    memcpy(&c->error_text, &address, sizeof address);
    if (!address)
        missing = "nvrtcGetErrorString";
    if (missing)
        return error_set(error, CT_EDEVICE,
                         "NVRTC is too old: it has no %s; install that of CUDA 12 or newer",
                         missing);
    return CT_OK;
}

static ct_status check(const cuda_compiler *c, int result, const char *what, ct_error *error)
{
    if (result == NVRTC_OK)
        return CT_OK;
    return error_set(error, result == NVRTC_OUT_OF_MEMORY ? CT_ENOMEM : CT_EDEVICE,
                     "NVRTC %d.%d, %s: %s", c->major, c->minor, what, c->error_text(result));
}

static ct_status ask_architectures(cuda_compiler *c, ct_error *error)
{
    ct_status status = check(c, c->version(&c->major, &c->minor), "asking for the version", error);
    if (status == CT_OK)
        status = check(c, c->arch_count(&c->arch_total), "asking for architectures", error);
    if (status != CT_OK)
        return status;
    if (c->arch_total < 1 || c->arch_total > MAX_ARCHS)
        return error_set(error, CT_EDEVICE, "NVRTC %d.%d says that it knows %d architectures",
                         c->major, c->minor, c->arch_total);
    return check(c, c->archs(c->arch), "asking for architectures", error);
}

static bool is_header(const char *name)
{
    const size_t length = strlen(name);
    return length > 4 && !strcmp(name + length - 4, ".cuh");
}

static ct_status list_headers(cuda_compiler *c, ct_error *error)
{
    size_t count = 0;
    for (const cuda_embedded *f = cuda_embedded_files; f->name; f++)
        count++;
    c->headers = mem_zero_array(c->allocator, count, sizeof *c->headers);
    c->header_names = mem_zero_array(c->allocator, count, sizeof *c->header_names);
    if (!c->headers || !c->header_names)
        return error_memory(error, count * sizeof *c->headers, "the headers of kernels");
    for (const cuda_embedded *f = cuda_embedded_files; f->name; f++)
        if (is_header(f->name)) {
            c->headers[c->header_count] = f->text;
            c->header_names[c->header_count++] = f->name;
        }
    return CT_OK;
}

ct_status nvrtc_open(cuda_compiler **out, int driver_version, const cuda_target *target,
                     const ct_allocator *a, ct_error *error)
{
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", NULL};
    static const char *const old_names[] = {"libnvrtc.so.12", NULL};
    *out = NULL;
    cuda_compiler *c = mem_zero_array(a, 1, sizeof *c);
    if (!c)
        return error_memory(error, sizeof *c, "the compiler");
    c->allocator = a;
    const bool old = (driver_version > 0 && driver_version < 13000) ||
                     (target && 10 * target->major + target->minor < 75);
    c->library = cuda_library_open(old ? old_names : names, NULL);
    ct_status status = CT_OK;
    if (!c->library)
        status =
            error_set(error, CT_ENOTFOUND,
                      "NVRTC, the compiler of CUDA, was not found (libnvrtc.so.%d); install it "
                      "with the CUDA toolkit or the package cuda-nvrtc, or put the folder of "
                      "Python's nvidia-cuda-nvrtc into LD_LIBRARY_PATH",
                      old ? 12 : 13);
    if (status == CT_OK)
        status = load_functions(c, error);
    if (status == CT_OK)
        status = ask_architectures(c, error);
    if (status == CT_OK)
        status = list_headers(c, error);
    if (status != CT_OK) {
        cuda_compiler_close(c);
        return status;
    }
    *out = c;
    return CT_OK;
}

ct_status cuda_compiler_open(cuda_compiler **out, const ct_allocator *a, ct_error *error)
{
    return nvrtc_open(out, 0, NULL, a, error);
}

void cuda_compiler_close(cuda_compiler *c)
{
    if (!c)
        return;
    cuda_library_close(c->library);
    mem_free(c->allocator, c->headers);
    mem_free(c->allocator, c->header_names);
    mem_free(c->allocator, c);
}

int nvrtc_version(const cuda_compiler *c)
{
    return 1000 * c->major + 10 * c->minor;
}

/* ---- Compiling ------------------------------------------------------------------------------ */

/* Macro for the type, or NULL. */
static const char *type_option(dtype type)
{
    switch (type) {
    case DTYPE_F32: return "-DT_F32";
    case DTYPE_F16: return "-DT_F16";
    case DTYPE_BF16: return "-DT_BF16";
    default: return NULL;
    }
}

bool nvrtc_target_valid(const cuda_target *target)
{
    return type_option(target->type) && target->major > 0 && target->major < 1000 &&
           target->minor >= 0 && target->minor < 10;
}

/* What is the same for every target. Kernels take no exceptions from IEEE arithmetic but those that
 * they write themselves, so there is no fast math. */
static const char *const common_options[] = {"--std=c++17", "-default-device"};
#define COMMON_OPTIONS (sizeof common_options / sizeof *common_options)

typedef struct option_list {
    const char *option[COMMON_OPTIONS + 3];
    int count;
    char target[48], arch[24];
} option_list;

/* kind: "sm" or "compute"; feature: "a" for what only this very architecture has, or "". */
static void set_options(option_list *o, const char *kind, int arch, const char *feature, dtype type)
{
    o->count = 0;
    for (size_t i = 0; i < COMMON_OPTIONS; i++)
        o->option[o->count++] = common_options[i];
    snprintf(o->target, sizeof o->target, "--gpu-architecture=%s_%d%s", kind, arch, feature);
    snprintf(o->arch, sizeof o->arch, "-DARCH=%d", arch);
    o->option[o->count++] = o->target;
    o->option[o->count++] = o->arch;
    o->option[o->count++] = type_option(type);
}

void nvrtc_hash_options(hash128 *h, const cuda_target *target)
{
    option_list o;
    set_options(&o, "sm", 10 * target->major + target->minor, target->major >= 9 ? "a" : "",
                target->type);
    for (int i = 0; i < o.count; i++)
        hash_add_string(h, o.option[i]);
}

/* The first errors of a log, on one line. */
static void summarize(const char *log, char *out, size_t size)
{
    size_t used = 0;
    *out = 0;
    for (size_t length; *log && used < size - 1; log += length + (log[length] == '\n')) {
        length = strcspn(log, "\n");
        char line[300];
        snprintf(line, sizeof line, "%.*s", (int)(length < sizeof line ? length : sizeof line),
                 log);
        if (!strstr(line, "error"))
            continue;
        const int n = snprintf(out + used, size - used, "%s%s", used ? "; " : "", line);
        used += n > 0 ? (size_t)n : 0;
    }
}

static ct_status compilation_failed(const cuda_compiler *c, nvrtc_program program, const char *name,
                                    const option_list *o, ct_error *error)
{
    size_t bytes = 0;
    char *log = NULL, errors[800] = "there is no log";
    if (c->log_size(program, &bytes) == NVRTC_OK && bytes > 0)
        log = mem_zero_array(c->allocator, bytes, 1);
    if (log && c->log(program, log) == NVRTC_OK) {
        log[bytes - 1] = 0;
        summarize(log, errors, sizeof errors);
    }
    mem_free(c->allocator, log);
    return error_set(error, CT_EINTERNAL, "NVRTC %d.%d cannot compile %s for %s: %s", c->major,
                     c->minor, name, o->target + strlen("--gpu-architecture="), errors);
}

typedef struct compilation {
    const char *name, *text;
    const option_list *options;
    bool ptx; /* instead of a cubin */
} compilation;

static ct_status take_code(cuda_compiler *c, nvrtc_program program, const compilation *job,
                           void **code, size_t *bytes, ct_error *error)
{
    size_t size = 0;
    int result = job->ptx ? c->ptx_size(program, &size) : c->cubin_size(program, &size);
    if (result != NVRTC_OK)
        return check(c, result, job->name, error);
    char *out = mem_alloc(c->allocator, size + 1);
    if (!out)
        return error_memory(error, size + 1, job->name);
    result = job->ptx ? c->ptx(program, out) : c->cubin(program, out);
    if (result != NVRTC_OK || size == 0) {
        mem_free(c->allocator, out);
        return result == NVRTC_OK ? error_set(error, CT_EDEVICE, "NVRTC %d.%d made no code of %s",
                                              c->major, c->minor, job->name)
                                  : check(c, result, job->name, error);
    }
    out[size] = 0;
    *code = out;
    *bytes = size;
    return CT_OK;
}

/* *refused: the compiler does not know one of the options; then the error is set, too. */
static ct_status compile(cuda_compiler *c, const compilation *job, void **code, size_t *bytes,
                         bool *refused, ct_error *error)
{
    *refused = false;
    nvrtc_program program = NULL;
    ct_status status = check(
        c, c->create(&program, job->text, job->name, c->header_count, c->headers, c->header_names),
        job->name, error);
    if (status != CT_OK)
        return status;
    const int result = c->compile(program, job->options->count, job->options->option);
    *refused = result == NVRTC_INVALID_OPTION;
    if (result == NVRTC_COMPILATION)
        status = compilation_failed(c, program, job->name, job->options, error);
    else
        status = check(c, result, job->options->target, error);
    if (status == CT_OK)
        status = take_code(c, program, job, code, bytes, error);
    c->destroy(&program);
    return status;
}

/* The architecture itself where the compiler knows it, else the newest older one; 0: none. */
static int choose_architecture(const cuda_compiler *c, int arch)
{
    int best = 0;
    for (int i = 0; i < c->arch_total; i++)
        if (c->arch[i] <= arch && c->arch[i] > best)
            best = c->arch[i];
    return best;
}

ct_status nvrtc_compile(cuda_compiler *c, const char *name, const char *text,
                        const cuda_target *target, void **code, size_t *bytes, ct_error *error)
{
    *code = NULL;
    *bytes = 0;
    if (!nvrtc_target_valid(target))
        return error_set(error, CT_EINVAL,
                         "no kernels are made for %s and compute capability %d.%d",
                         dtype_name(target->type), target->major, target->minor);
    const int wanted = 10 * target->major + target->minor, arch = choose_architecture(c, wanted);
    if (arch == 0)
        return error_set(error, CT_EUNSUPPORTED,
                         "NVRTC %d.%d does not know GPUs of compute capability %d.%d any more; "
                         "install an older NVRTC (libnvrtc.so.12 for 5.0 to 7.2)",
                         c->major, c->minor, target->major, target->minor);
    option_list options;
    compilation job = {.name = name, .text = text, .options = &options, .ptx = arch != wanted};
    bool refused = false;
    if (!job.ptx && target->major >= 9) {
        set_options(&options, "sm", arch, "a", target->type);
        ct_status status = compile(c, &job, code, bytes, &refused, error);
        if (!refused)
            return status;
    }
    set_options(&options, job.ptx ? "compute" : "sm", arch, "", target->type);
    return compile(c, &job, code, bytes, &refused, error);
}
