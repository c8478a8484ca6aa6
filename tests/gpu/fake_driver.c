/* A library with the name and the functions of the CUDA driver, for machines without one. It counts
 * and describes GPUs. What it says comes from the environment: FAKE_CUDA_INIT, the result of
 * cuInit; FAKE_CUDA_VERSION; FAKE_CUDA_GPUS, a number of them; FAKE_CUDA_ARCH, 10 * major + minor.
 *
 * With FAKE_CUDA_WORKS it also has memory and streams, for one thread. Kernels do nothing. Streams
 * are as unkind as they may be: the first one works only when somebody waits for it, others as soon
 * as the events allow that they wait for. So a copy that does not wait for what it must is seen. */
#define _DEFAULT_SOURCE
#include "fake_driver.h"
#include "nn/cuda/driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define POISON ((size_t)1 << 20) /* of new memory; more would take long */

#define EXPORT __attribute__((visibility("default")))

static int setting(const char *name, int otherwise)
{
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

EXPORT cu_result cuInit(unsigned flags);
cu_result cuInit(unsigned flags)
{
    return flags ? 1 : setting("FAKE_CUDA_INIT", 0);
}

EXPORT cu_result cuDriverGetVersion(int *version);
cu_result cuDriverGetVersion(int *version)
{
    *version = setting("FAKE_CUDA_VERSION", 13000);
    return 0;
}

EXPORT cu_result cuGetErrorName(cu_result result, const char **name);
cu_result cuGetErrorName(cu_result result, const char **name)
{
    *name = "CUDA_ERROR_FAKE";
    return result == 12345; /* an error that has no name */
}

EXPORT cu_result cuGetErrorString(cu_result result, const char **text);
cu_result cuGetErrorString(cu_result result, const char **text)
{
    *text = "a fake error";
    return result == 12345;
}

EXPORT cu_result cuDeviceGetCount(int *count);
cu_result cuDeviceGetCount(int *count)
{
    *count = setting("FAKE_CUDA_GPUS", 1);
    return 0;
}

EXPORT cu_result cuDeviceGet(cu_device *device, int ordinal);
cu_result cuDeviceGet(cu_device *device, int ordinal)
{
    *device = 100 + ordinal;
    return 0;
}

EXPORT cu_result cuDeviceGetName(char *name, int size, cu_device device);
cu_result cuDeviceGetName(char *name, int size, cu_device device)
{
    snprintf(name, (size_t)size, "Fake GPU %d", device - 100);
    return 0;
}

EXPORT cu_result cuDeviceGetAttribute(int *value, int attribute, cu_device device);
cu_result cuDeviceGetAttribute(int *value, int attribute, cu_device device)
{
    const int arch = setting("FAKE_CUDA_ARCH", 90);
    switch (attribute) {
    case CU_ATTRIBUTE_MULTIPROCESSORS: *value = 132; break;
    case CU_ATTRIBUTE_MAJOR: *value = arch / 10; break;
    case CU_ATTRIBUTE_MINOR: *value = arch % 10; break;
    case CU_ATTRIBUTE_SHARED_OPTIN: *value = 232448; break;
    default: return 1;
    }
    return device < 100 ? 101 : 0;
}

EXPORT cu_result cuDeviceTotalMem_v2(size_t *bytes, cu_device device);
cu_result cuDeviceTotalMem_v2(size_t *bytes, cu_device device)
{
    *bytes = (size_t)141 << 30;
    return device < 100 ? 101 : 0;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

EXPORT fake_cuda_state fake_cuda;
fake_cuda_state fake_cuda;

typedef struct block {
    struct block *next;
    char *at, *raw;
    size_t bytes;
    bool host;
} block;

typedef enum op_kind { OP_COPY, OP_FILL, OP_RECORD, OP_WAIT } op_kind;

typedef struct op {
    struct op *next;
    op_kind kind;
    char *to;
    const char *from;
    size_t bytes;
    int value;
    struct cu_event_object *event;
    long version;
} op;

struct cu_stream_object {
    struct cu_stream_object *next;
    op *first, **last;
    bool lazy;
};

struct cu_event_object {
    long target, done; /* records that were asked for, and that have happened */
    struct cu_stream_object *stream;
};

static block *blocks;
static struct cu_stream_object *streams;
static bool capturing;

/* What a driver does not allow while it records. */
static void not_recorded(void)
{
    fake_cuda.misuse += capturing;
}

static bool works(void)
{
    return setting("FAKE_CUDA_WORKS", 0) != 0;
}

static size_t cost(size_t bytes)
{
    const size_t unit = bytes >= (size_t)1 << 20 ? (size_t)2 << 20 : 512;
    return (bytes + unit - 1) / unit * unit;
}

static size_t limit(void)
{
    return fake_cuda.limit ? fake_cuda.limit : (size_t)141 << 30;
}

static cu_result take(void **at, size_t bytes, bool host)
{
    *at = NULL;
    not_recorded();
    if (bytes == 0)
        return 1;
    if (++fake_cuda.allocations == fake_cuda.fail_at)
        return CU_OUT_OF_MEMORY;
    if (!host && fake_cuda.used + cost(bytes) > limit())
        return CU_OUT_OF_MEMORY;
    block *b = calloc(1, sizeof *b);
    /* Not by malloc, which may be told to fill what it gives: most of it is never touched. */
    char *raw = mmap(NULL, bytes + 512, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!b || raw == MAP_FAILED) {
        free(b);
        return CU_OUT_OF_MEMORY;
    }
    /* What was never written shows. */
    memset(raw, 0xcd, bytes + 512 < POISON ? bytes + 512 : POISON);
    *b = (block){.next = blocks, .raw = raw, .bytes = bytes, .host = host};
    b->at = raw + (512 - (size_t)raw % 512);
    blocks = b;
    *at = b->at;
    fake_cuda.objects++;
    if (host)
        fake_cuda.pinned += bytes;
    else
        fake_cuda.used += cost(bytes);
    if (fake_cuda.used > fake_cuda.peak)
        fake_cuda.peak = fake_cuda.used;
    return 0;
}

static bool touches(const block *b, const char *at, size_t bytes)
{
    return at && at < b->at + b->bytes && at + bytes > b->at;
}

static cu_result give(const void *at, bool host)
{
    block **link = &blocks;
    while (*link && ((*link)->at != at || (*link)->host != host))
        link = &(*link)->next;
    block *b = *link;
    if (!b)
        return 1;
    for (struct cu_stream_object *s = streams; s; s = s->next)
        for (op *o = s->first; o; o = o->next)
            if (touches(b, o->to, o->bytes) || touches(b, o->from, o->bytes))
                fake_cuda.misuse++;
    *link = b->next;
    if (host)
        fake_cuda.pinned -= b->bytes;
    else
        fake_cuda.used -= cost(b->bytes);
    munmap(b->raw, b->bytes + 512);
    free(b);
    fake_cuda.objects--;
    return 0;
}

static bool is_known(const void *at)
{
    for (const block *b = blocks; b; b = b->next)
        if (touches(b, at, 1))
            return true;
    return false;
}

EXPORT cu_result cuMemGetInfo_v2(size_t *free_bytes, size_t *total);
cu_result cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    *total = (size_t)141 << 30;
    *free_bytes = limit() - fake_cuda.used;
    return works() ? 0 : 801;
}

EXPORT cu_result cuMemAlloc_v2(cu_address *address, size_t bytes);
cu_result cuMemAlloc_v2(cu_address *address, size_t bytes)
{
    void *at;
    const cu_result r = works() ? take(&at, bytes, false) : 801;
    if (r == 0)
        *address = (cu_address)(size_t)at;
    return r;
}

EXPORT cu_result cuMemFree_v2(cu_address address);
cu_result cuMemFree_v2(cu_address address)
{
    return give((void *)(size_t)address, false);
}

EXPORT cu_result cuMemHostAlloc(void **memory, size_t bytes, unsigned flags);
cu_result cuMemHostAlloc(void **memory, size_t bytes, unsigned flags)
{
    (void)flags;
    return works() ? take(memory, bytes, true) : 801;
}

EXPORT cu_result cuMemFreeHost(void *memory);
cu_result cuMemFreeHost(void *memory)
{
    return give(memory, true);
}

/* ---- Streams --------------------------------------------------------------------------------- */

static void run(struct cu_stream_object *s, const struct cu_event_object *until, long version,
                bool force);

/* True when it has happened. */
static bool run_op(const op *o, bool force)
{
    if (o->kind == OP_COPY)
        memmove(o->to, o->from, o->bytes);
    else if (o->kind == OP_FILL)
        memset(o->to, o->value, o->bytes);
    else if (o->kind == OP_RECORD)
        o->event->done = o->version;
    else if (o->event->done < o->version && force)
        run(o->event->stream, o->event, o->version, true);
    return o->kind != OP_WAIT || o->event->done >= o->version;
}

/* Until an event, or to the end; stops at events that have not happened, unless it is forced. */
static void run(struct cu_stream_object *s, const struct cu_event_object *until, long version,
                bool force)
{
    while (s->first && !(until && until->done >= version)) {
        op *o = s->first;
        if (!run_op(o, force))
            return;
        s->first = o->next;
        if (!s->first)
            s->last = &s->first;
        free(o);
    }
}

static void run_eager(void)
{
    for (struct cu_stream_object *s = streams; s; s = s->next)
        if (!s->lazy)
            run(s, NULL, 0, false);
}

static cu_result add(cu_stream s, op o)
{
    op *copy = malloc(sizeof *copy);
    if (!works() || !copy)
        return 801;
    *copy = o;
    copy->next = NULL;
    *s->last = copy;
    s->last = &copy->next;
    run_eager();
    return 0;
}

/* The driver takes a copy of memory that it does not know. */
static cu_result add_copy(cu_stream s, void *to, const void *from, size_t bytes)
{
    const bool now = !is_known(to) || !is_known(from);
    const cu_result r = add(s, (op){.kind = OP_COPY, .to = to, .from = from, .bytes = bytes});
    if (now)
        not_recorded();
    if (now && r == 0)
        run(s, NULL, 0, true);
    return r;
}

EXPORT cu_result cuMemcpyHtoDAsync_v2(cu_address to, const void *from, size_t bytes, cu_stream s);
cu_result cuMemcpyHtoDAsync_v2(cu_address to, const void *from, size_t bytes, cu_stream s)
{
    fake_cuda.loads++;
    return add_copy(s, (void *)(size_t)to, from, bytes);
}

EXPORT cu_result cuMemcpyDtoHAsync_v2(void *to, cu_address from, size_t bytes, cu_stream s);
cu_result cuMemcpyDtoHAsync_v2(void *to, cu_address from, size_t bytes, cu_stream s)
{
    if (fake_cuda.blank)
        return add(s, (op){.kind = OP_FILL, .to = to, .bytes = bytes});
    return add_copy(s, to, (void *)(size_t)from, bytes);
}

EXPORT cu_result cuMemcpyDtoDAsync_v2(cu_address to, cu_address from, size_t bytes, cu_stream s);
cu_result cuMemcpyDtoDAsync_v2(cu_address to, cu_address from, size_t bytes, cu_stream s)
{
    return add_copy(s, (void *)(size_t)to, (void *)(size_t)from, bytes);
}

EXPORT cu_result cuMemcpy2DAsync_v2(const cu_copy_2d *copy, cu_stream s);
cu_result cuMemcpy2DAsync_v2(const cu_copy_2d *copy, cu_stream s)
{
    for (size_t i = 0; i < copy->height; i++)
        add_copy(s, (char *)(size_t)copy->to_device + i * copy->to_pitch,
                 (char *)(size_t)copy->from_device + i * copy->from_pitch, copy->width_bytes);
    return works() ? 0 : 801;
}

EXPORT cu_result cuMemsetD8Async(cu_address to, unsigned char value, size_t bytes, cu_stream s);
cu_result cuMemsetD8Async(cu_address to, unsigned char value, size_t bytes, cu_stream s)
{
    return add(s, (op){.kind = OP_FILL, .to = (char *)(size_t)to, .bytes = bytes, .value = value});
}

EXPORT cu_result cuStreamCreate(cu_stream *stream, unsigned flags);
cu_result cuStreamCreate(cu_stream *stream, unsigned flags)
{
    (void)flags;
    cu_stream s = works() ? calloc(1, sizeof *s) : NULL;
    if (!s)
        return 801;
    s->lazy = !streams;
    s->last = &s->first;
    s->next = streams;
    streams = s;
    *stream = s;
    fake_cuda.objects++;
    return 0;
}

EXPORT cu_result cuStreamDestroy_v2(cu_stream s);
cu_result cuStreamDestroy_v2(cu_stream s)
{
    run(s, NULL, 0, true);
    struct cu_stream_object **link = &streams;
    while (*link != s)
        link = &(*link)->next;
    *link = s->next;
    free(s);
    fake_cuda.objects--;
    return 0;
}

EXPORT cu_result cuStreamSynchronize(cu_stream s);
cu_result cuStreamSynchronize(cu_stream s)
{
    not_recorded();
    run(s, NULL, 0, true);
    run_eager();
    return works() ? 0 : 801;
}

EXPORT cu_result cuStreamWaitEvent(cu_stream s, cu_event event, unsigned flags);
cu_result cuStreamWaitEvent(cu_stream s, cu_event event, unsigned flags)
{
    (void)flags;
    return add(s, (op){.kind = OP_WAIT, .event = event, .version = event->target});
}

EXPORT cu_result cuEventCreate(cu_event *event, unsigned flags);
cu_result cuEventCreate(cu_event *event, unsigned flags)
{
    (void)flags;
    *event = works() ? calloc(1, sizeof **event) : NULL;
    fake_cuda.objects += *event != NULL;
    return *event ? 0 : 801;
}

EXPORT cu_result cuEventDestroy_v2(cu_event event);
cu_result cuEventDestroy_v2(cu_event event)
{
    if (event->stream && event->done < event->target)
        run(event->stream, event, event->target, true);
    free(event);
    fake_cuda.objects--;
    return 0;
}

EXPORT cu_result cuEventRecord(cu_event event, cu_stream s);
cu_result cuEventRecord(cu_event event, cu_stream s)
{
    event->stream = s;
    return add(s, (op){.kind = OP_RECORD, .event = event, .version = ++event->target});
}

EXPORT cu_result cuEventSynchronize(cu_event event);
cu_result cuEventSynchronize(cu_event event)
{
    not_recorded();
    if (event->stream && event->done < event->target)
        run(event->stream, event, event->target, true);
    run_eager();
    return 0;
}

/* ---- What else works, and does nothing ------------------------------------------------------- */

EXPORT cu_result cuDevicePrimaryCtxRetain(cu_context *context, cu_device device);
cu_result cuDevicePrimaryCtxRetain(cu_context *context, cu_device device)
{
    static int one;
    *context = (cu_context)(void *)&one;
    return works() && device >= 100 ? 0 : 801;
}

#define NOTHING(name)                                                                              \
    EXPORT cu_result name(void);                                                                   \
    cu_result name(void)                                                                           \
    {                                                                                              \
        return works() ? 0 : 801;                                                                  \
    }
NOTHING(cuDevicePrimaryCtxRelease_v2)
NOTHING(cuCtxSetCurrent)
NOTHING(cuFuncSetAttribute)
NOTHING(cuGraphDestroy)

EXPORT cu_result cuLaunchKernel(void);
cu_result cuLaunchKernel(void)
{
    if (++fake_cuda.launches == fake_cuda.fail_launch)
        return 700;
    return works() ? 0 : 801;
}

EXPORT cu_result cuStreamBeginCapture_v2(void);
cu_result cuStreamBeginCapture_v2(void)
{
    not_recorded();
    capturing = works();
    return capturing ? 0 : 801;
}

EXPORT cu_result cuGraphLaunch(void);
cu_result cuGraphLaunch(void)
{
    fake_cuda.played++;
    return works() ? 0 : 801;
}

EXPORT cu_result cuStreamEndCapture(cu_stream s, cu_graph *graph);
cu_result cuStreamEndCapture(cu_stream s, cu_graph *graph)
{
    *graph = (cu_graph)(void *)s;
    fake_cuda.misuse += !capturing;
    capturing = false;
    fake_cuda.captures++;
    return works() ? 0 : 801;
}

EXPORT cu_result cuGraphInstantiateWithFlags(cu_graph_exec *exec, cu_graph graph,
                                             unsigned long long flags);
cu_result cuGraphInstantiateWithFlags(cu_graph_exec *exec, cu_graph graph, unsigned long long flags)
{
    *exec = works() && !flags ? calloc(1, 1) : NULL;
    fake_cuda.objects += *exec != NULL;
    return *exec && graph ? 0 : 801;
}

EXPORT cu_result cuGraphExecDestroy(cu_graph_exec exec);
cu_result cuGraphExecDestroy(cu_graph_exec exec)
{
    free(exec);
    fake_cuda.objects--;
    return 0;
}

/* The others are there, so that the driver is whole, and fail. */
#define REST(name)                                                                                 \
    EXPORT cu_result name(void);                                                                   \
    cu_result name(void)                                                                           \
    {                                                                                              \
        return 801;                                                                                \
    }
REST(cuEventElapsedTime)
REST(cuModuleLoadData)
REST(cuModuleUnload)
REST(cuModuleGetFunction)
