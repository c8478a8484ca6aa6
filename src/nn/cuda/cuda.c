/* The CUDA device: its operation table, its memory, and the recording of calls that repeat. */
#include "core/mem.h"
#include "nn/cuda/cuda.h"

#include <string.h>

#define WRITES 4 /* nn_begin_write at once */
#define SLOTS 2
#define EVENTS (SLOTS + 4)
#define TIMED_EVENTS (SLOTS + 1) /* the first ones */
#define RECORDINGS 8

/* fp16 ends at 65504. What of a transformer is larger, or may be:
 *
 *   the residual stream    is float32 always.
 *   silu(w1 h) * (w3 h)    is beyond it in Z-Image, as programs that clamp it show. Stored
 *                          divided by 2^7 it may be 8.4e6. Then numbers below 2^-14 * 2^7 = 0.008
 *                          lie 7.6e-6 apart. Their rounding, 2.2e-6 in the root of the mean square,
 *                          is less than that of the others, 2.8e-4 of each, wherever a row's root
 *                          mean square is above 0.008; it is about 0.3 where h is a normed stream.
 *   attention.out, w2      likewise; sums of up to 10240 terms. A norm follows, which would divide
 *                          out any factor, but float32 needs no thought of its eps: nn_new_wide2.
 *                          Before a gate (FLUX.2) they are float32 in scratch memory.
 *   q, k, v, normed rows   are far below: products of rows with a root mean square near 1.
 *   scores of attention    are float32 in every way of computing them.
 *   the VAE                is computed in float32 (pipeline/run.c).
 *
 * bfloat16 reaches as far as float32 and needs none of it. */
#define HIDDEN_SHIFT 7

/* Calls that are the same every time: run, then recorded, then played back. */
typedef struct recording {
    uint64_t key; /* 0: free */
    enum { NEW, RAN, RECORDED } state;
    cu_graph_exec exec;
    int64_t generation; /* of the store, whose addresses are in it */
    int64_t loads;      /* cuda_ring_loads before it ran */
    int64_t used;       /* when, in order of use */
} recording;

/* A download under way. */
typedef struct slot {
    float *pinned;
    size_t bytes;
    cu_event done;
} slot;

struct cuda_private {
    struct {
        const float *tensor;
        float *host;
    } write[WRITES];
    slot slots[SLOTS];
    slot fetched; /* of cuda_fetch */
    slot sent;    /* of cuda_upload */
    cu_event now; /* of seconds_since */
    recording recordings[RECORDINGS];
    int64_t uses;
    recording *current; /* being recorded */
    struct {
        cu_stream stream;
        cu_event begun, done;
        bool under_way;
        cu_stream main; /* of the state, when it has this one */
        cu_address workspace;
    } beside; /* cuda_fork */
};

/* ---- Failures -------------------------------------------------------------------------------- */

void cuda_fail(nn *c, const ct_error *error)
{
    nn_fail(c, error->code, "%s", error->message);
}

/* True for success. */
static bool check(nn *c, cu_result result, const char *what)
{
    ct_error error;
    if (result == 0)
        return true;
    cuda_check(cuda_of(c)->driver, result, what, &error);
    cuda_fail(c, &error);
    return false;
}

bool cuda_idle(nn *c)
{
    return c->params.dry || c->error.code != CT_OK;
}

/* ---- The state of an nn ---------------------------------------------------------------------- */

static void list_events(struct cuda_private *p, cu_event *events[EVENTS])
{
    for (int i = 0; i < SLOTS; i++)
        events[i] = &p->slots[i].done;
    events[SLOTS] = &p->now;
    events[SLOTS + 1] = &p->sent.done;
    events[SLOTS + 2] = &p->beside.begun;
    events[SLOTS + 3] = &p->beside.done;
}

static ct_status open_stream(cuda_state *s, const nn_params *params, ct_error *error)
{
    const cuda_driver *d = s->driver;
    ct_status status = cuda_check(d, d->context_set(s->gpu->context), "the GPU's context", error);
    if (status == CT_OK)
        status =
            cuda_check(d, d->stream_create(&s->stream, CU_STREAM_NON_BLOCKING), "a stream", error);
    if (status == CT_OK)
        status =
            cuda_gpu_alloc(s->gpu, &s->workspace, CUDA_WORKSPACE, "cuBLASLt's workspace", error);
    struct cuda_private *p = s->private;
    if (status == CT_OK)
        status = cuda_check(d, d->stream_create(&p->beside.stream, CU_STREAM_NON_BLOCKING),
                            "a stream", error);
    cu_event *events[EVENTS];
    list_events(p, events);
    for (int i = 0; i < EVENTS && status == CT_OK; i++)
        status = cuda_check(
            d, d->event_create(events[i], i < TIMED_EVENTS ? 0 : CU_EVENT_DISABLE_TIMING),
            "an event", error);
    const dnn_params for_dnn = {.allocator = params->allocator,
                                .driver = d,
                                .device = &s->gpu->info,
                                .stream = s->stream,
                                .folder = s->gpu->folder};
    if (status == CT_OK && s->gpu->has_dnn)
        dnn_open(&s->dnn, &for_dnn, NULL); /* else our own kernels do it */
    return status;
}

static ct_status cuda_open(nn *c, ct_error *error)
{
    const ct_allocator *a = c->params.allocator;
    cuda_state *s = mem_zero_array(a, 1, sizeof *s);
    c->device_state = s;
    if (s)
        s->private = mem_zero_array(a, 1, sizeof *s->private);
    if (!s || !s->private)
        return error_memory(error, sizeof *s, "the GPU");
    s->gpu = c->params.gpu;
    s->driver = &s->gpu->driver;
    s->store = c->params.gpu_weights;
    return c->params.dry ? CT_OK : open_stream(s, &c->params, error);
}

static void cuda_close(nn *c)
{
    const ct_allocator *a = c->params.allocator;
    cuda_state *s = c->device_state;
    if (s && s->private && s->gpu) {
        const cuda_driver *d = s->driver;
        struct cuda_private *p = s->private;
        d->context_set(s->gpu->context);
        if (s->stream)
            d->stream_wait(s->stream);
        for (int i = 0; i < RECORDINGS; i++)
            if (p->recordings[i].exec)
                d->graph_exec_destroy(p->recordings[i].exec);
        cu_event *events[EVENTS];
        list_events(p, events);
        for (int i = 0; i < EVENTS; i++)
            if (*events[i])
                d->event_destroy(*events[i]);
        for (int i = 0; i < SLOTS; i++)
            if (p->slots[i].pinned)
                d->host_free(p->slots[i].pinned);
        if (p->fetched.pinned)
            d->host_free(p->fetched.pinned);
        if (p->sent.pinned)
            d->host_free(p->sent.pinned);
        if (p->beside.stream)
            d->stream_destroy(p->beside.stream);
        for (int i = 0; i < WRITES; i++)
            mem_free(a, p->write[i].host);
        cuda_ring_free(c);
        dnn_close(s->dnn);
        if (s->workspace)
            d->mem_free(s->workspace);
        if (s->stream)
            d->stream_destroy(s->stream);
    }
    if (s)
        mem_free(a, s->private);
    mem_free(a, s);
}

static void cuda_reset(nn *c)
{
    cuda_state *s = cuda_of(c);
    check(c, s->driver->context_set(s->gpu->context), "the GPU's context");
}

static char *cuda_arena_alloc(nn *c, size_t bytes, ct_error *error)
{
    cu_address at = 0;
    if (cuda_gpu_alloc(cuda_of(c)->gpu, &at, bytes, "activations", error) != CT_OK)
        return NULL;
    return (char *)(uintptr_t)at;
}

static void cuda_arena_free(nn *c)
{
    cuda_state *s = cuda_of(c);
    s->driver->context_set(s->gpu->context);
    if (s->stream)
        s->driver->stream_wait(s->stream);
    s->driver->mem_free((cu_address)(uintptr_t)c->arena);
}

/* ---- Types and scratch ----------------------------------------------------------------------- */

dtype cuda_work_type(const nn *c)
{
    return c->params.precision == NN_F32 ? DTYPE_F32 : cuda_half_type(c);
}

dtype cuda_half_type(const nn *c)
{
    const cuda_state *s = c->device_state;
    return c->params.precision == NN_FP16 ? DTYPE_F16 : cuda_gpu_half(s->gpu);
}

dtype cuda_wide_type(const nn *c)
{
    const dtype type = cuda_work_type(c);
    return type == DTYPE_F16 ? DTYPE_F32 : type;
}

static int cuda_hidden_shift(const nn *c)
{
    return cuda_work_type(c) == DTYPE_F16 ? HIDDEN_SHIFT : 0;
}

cuda_kind cuda_kind_of(const nn *c, const nn_tensor *t)
{
    if (!t->operand)
        return t->type == DTYPE_F32 && cuda_work_type(c) != DTYPE_F32 ? CUDA_FLOAT : CUDA_WORK;
    if (t->n[1] % 16 == 0 && c->params.precision == NN_FP8)
        return CUDA_E4M3;
    if (t->n[1] % 16 == 0 && c->params.precision == NN_INT8)
        return CUDA_INT8;
    return CUDA_WORK;
}

cu_address cuda_scales_of(const nn *c, const nn_tensor *operand)
{
    const cuda_kind kind = cuda_kind_of(c, operand);
    if (!operand->operand || !operand->data || (kind != CUDA_E4M3 && kind != CUDA_INT8))
        return 0;
    const uint64_t codes = (uint64_t)(operand->n[0] * operand->n[1]);
    return cuda_at(operand) + (codes + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
}

cu_address cuda_scratch(nn *c, size_t bytes)
{
    return (cu_address)(uintptr_t)nn_scratch(c, bytes, 1);
}

/* ---- Launches -------------------------------------------------------------------------------- */

static const cuda_kernels *kernels_for(nn *c, dtype type)
{
    cuda_state *s = cuda_of(c);
    ct_error error;
    if (!s->kernels[type]) {
        s->kernels[type] = cuda_gpu_kernels(s->gpu, type, &error);
        if (!s->kernels[type])
            cuda_fail(c, &error);
    }
    return s->kernels[type];
}

void cuda_launch(nn *c, cuda_kernel kernel, dtype type, cuda_grid grid, void **parameters)
{
    if (cuda_idle(c))
        return;
    const cuda_kernels *k = kernels_for(c, type);
    if (!k)
        return;
    const cuda_driver *d = cuda_of(c)->driver;
    const int64_t x = grid.x ? grid.x : 1, y = grid.y ? grid.y : 1, z = grid.z ? grid.z : 1;
    if (x > INT32_MAX || y > 65535 || z > 65535) {
        nn_fail(c, CT_EINTERNAL, "%s: a grid of %lld x %lld x %lld blocks",
                cuda_kernel_name(kernel), (long long)x, (long long)y, (long long)z);
        return;
    }
    cu_function f = k->function[kernel];
    if (grid.shared_bytes > 48 * 1024 &&
        !check(c, d->function_attribute(f, CU_FUNCTION_SHARED_BYTES, grid.shared_bytes),
               cuda_kernel_name(kernel)))
        return;
    check(c,
          d->launch(f, (unsigned)x, (unsigned)y, (unsigned)z, (unsigned)grid.threads, 1, 1,
                    (unsigned)grid.shared_bytes, cuda_of(c)->stream, parameters, NULL),
          cuda_kernel_name(kernel));
}

/* ---- Movement -------------------------------------------------------------------------------- */

/* The driver has taken a copy of pageable memory when this returns. */
cu_address cuda_upload_ints(nn *c, const int32_t *values, int64_t count)
{
    cu_address at = cuda_scratch(c, (size_t)count * 4);
    if (!cuda_idle(c))
        check(c,
              cuda_of(c)->driver->copy_to_device(at, values, (size_t)count * 4, cuda_of(c)->stream),
              "an upload");
    return at;
}

static float *cuda_begin_write(nn *c, const nn_tensor *t)
{
    struct cuda_private *p = cuda_of(c)->private;
    for (int i = 0; i < WRITES; i++) {
        if (p->write[i].host)
            continue;
        p->write[i].host = mem_array(c->params.allocator, (size_t)nn_count(t), sizeof(float));
        p->write[i].tensor = t->data;
        if (!p->write[i].host)
            nn_fail(c, CT_ENOMEM, "out of memory: a table of %lld numbers", (long long)nn_count(t));
        return p->write[i].host;
    }
    nn_fail(c, CT_EINTERNAL, "begin_write: more than %d at once", WRITES);
    return NULL;
}

static void cuda_end_write(nn *c, const nn_tensor *t)
{
    struct cuda_private *p = cuda_of(c)->private;
    for (int i = 0; i < WRITES; i++) {
        if (!p->write[i].host || p->write[i].tensor != t->data)
            continue;
        cuda_upload(c, t, p->write[i].host);
        mem_free(c->params.allocator, p->write[i].host);
        p->write[i].host = NULL;
    }
}

/* Makes sure that a slot has so many bytes of pinned memory. */
static bool pin_memory(nn *c, slot *to, size_t bytes)
{
    const cuda_state *s = cuda_of(c);
    if (bytes <= to->bytes)
        return true;
    if (to->pinned)
        s->driver->host_free(to->pinned);
    to->pinned = NULL;
    to->bytes = 0;
    void *memory = NULL;
    if (!check(c, s->driver->host_alloc(&memory, bytes, 0), "pinned memory"))
        return false;
    to->pinned = memory;
    to->bytes = bytes;
    return true;
}

const void *cuda_fetch(nn *c, cu_address from, size_t bytes)
{
    const cuda_state *s = cuda_of(c);
    slot *to = &s->private->fetched;
    if (cuda_idle(c) || !pin_memory(c, to, bytes) ||
        !check(c, s->driver->copy_to_host(to->pinned, from, bytes, s->stream), "a download") ||
        !check(c, s->driver->stream_wait(s->stream), "the GPU"))
        return NULL;
    return to->pinned;
}

void cuda_upload(nn *c, const nn_tensor *t, const float *data)
{
    const cuda_state *s = cuda_of(c);
    slot *by = &s->private->sent;
    const size_t bytes = (size_t)nn_count(t) * sizeof(float);
    if (cuda_idle(c))
        return;
    if (by->bytes && !check(c, s->driver->event_wait(by->done), "the GPU"))
        return;
    if (!pin_memory(c, by, bytes))
        return;
    cuda_copy_bytes(s->gpu, by->pinned, data, bytes);
    if (check(c, s->driver->copy_to_device(cuda_at(t), by->pinned, bytes, s->stream), "an upload"))
        check(c, s->driver->event_record(by->done, s->stream), "an event");
}

void cuda_download(nn *c, const nn_tensor *t, float *data)
{
    const size_t count = (size_t)nn_count(t);
    const void *from = cuda_fetch(c, cuda_at(t), count * nn_element(t));
    if (from && t->type == DTYPE_F32)
        cuda_copy_bytes(cuda_of(c)->gpu, data, from, count * sizeof(float));
    else if (from)
        dtype_to_float(data, from, t->type, count);
}

static void cuda_download_begin(nn *c, int index, const nn_tensor *t)
{
    const cuda_state *s = cuda_of(c);
    slot *to = &s->private->slots[index];
    const size_t bytes = (size_t)nn_count(t) * 4;
    if (!pin_memory(c, to, bytes))
        return;
    if (check(c, s->driver->copy_to_host(to->pinned, cuda_at(t), bytes, s->stream), "a download"))
        check(c, s->driver->event_record(to->done, s->stream), "an event");
}

/* By an event in a stream that has nothing to do. */
static double seconds_since(const cuda_state *s, cu_event then)
{
    const cuda_driver *d = s->driver;
    const cu_event now = s->private->now;
    float milliseconds = 0;
    const bool known = d->event_record(now, s->private->beside.stream) == 0 &&
                       d->event_wait(now) == 0 && d->event_elapsed(&milliseconds, then, now) == 0;
    return known && milliseconds > 0 ? milliseconds / 1e3 : 0;
}

static double cuda_download_end(nn *c, int index, float *data, int64_t count)
{
    const cuda_state *s = cuda_of(c);
    const slot *from = &s->private->slots[index];
    if (cuda_idle(c) || !check(c, s->driver->event_wait(from->done), "the GPU"))
        return 0;
    const double age = seconds_since(s, from->done);
    memcpy(data, from->pinned, (size_t)count * 4);
    return age;
}

/* Where the ranges overlap: in pieces that do not, one after the other. */
static void cuda_move(nn *c, void *to, const void *from, size_t bytes)
{
    const cuda_state *s = cuda_of(c);
    const cu_address a = (cu_address)(uintptr_t)to, b = (cu_address)(uintptr_t)from;
    const size_t gap = a < b ? (size_t)(b - a) : bytes, piece = gap < bytes ? gap : bytes;
    if (a > b && a - b < bytes) {
        nn_fail(c, CT_EINTERNAL, "move: up, onto itself");
        return;
    }
    for (size_t at = 0; at < bytes && !cuda_idle(c); at += piece) {
        size_t n = bytes - at < piece ? bytes - at : piece;
        check(c, s->driver->copy_on_device(a + at, b + at, n, s->stream), "a copy");
    }
}

static void cuda_move_rows(nn *c, void *to, size_t to_pitch, const void *from, size_t from_pitch,
                           size_t bytes, size_t rows)
{
    const cu_copy_2d copy = {.from_type = CU_MEMORY_DEVICE,
                             .from_device = (cu_address)(uintptr_t)from,
                             .from_pitch = from_pitch,
                             .to_type = CU_MEMORY_DEVICE,
                             .to_device = (cu_address)(uintptr_t)to,
                             .to_pitch = to_pitch,
                             .width_bytes = bytes,
                             .height = rows};
    check(c, cuda_of(c)->driver->copy_2d(&copy, cuda_of(c)->stream), "a copy");
}

static void cuda_take(nn *c, const nn_tensor *out, const nn_tensor *x, int64_t index)
{
    const size_t row = (size_t)x->n[2] * 4;
    const cu_copy_2d copy = {.from_type = CU_MEMORY_DEVICE,
                             .from_device = cuda_at(x) + (size_t)index * row,
                             .from_pitch = row * (size_t)x->n[1],
                             .to_type = CU_MEMORY_DEVICE,
                             .to_device = cuda_at(out),
                             .to_pitch = (size_t)out->stride * 4,
                             .width_bytes = row,
                             .height = (size_t)x->n[0]};
    check(c, cuda_of(c)->driver->copy_2d(&copy, cuda_of(c)->stream), "a copy");
}

/* ---- Calls that repeat ----------------------------------------------------------------------- */

static void forget(nn *c, recording *r)
{
    cuda_state *s = cuda_of(c);
    if (r->exec) {
        s->driver->stream_wait(s->stream);
        s->driver->graph_exec_destroy(r->exec);
    }
    *r = (recording){.key = 0};
}

void cuda_resize_arena(nn *c, size_t bytes)
{
    cuda_state *s = cuda_of(c);
    ct_error error;
    if (bytes == c->capacity || c->used)
        return;
    for (int i = 0; i < RECORDINGS; i++)
        forget(c, &s->private->recordings[i]);
    if (c->arena)
        cuda_arena_free(c);
    c->capacity = 0;
    c->arena = cuda_arena_alloc(c, bytes, &error);
    if (c->arena)
        c->capacity = bytes;
    else
        cuda_fail(c, &error);
}

/* The recording of a key, or the one whose last use is the longest ago, emptied. */
static recording *recording_of(nn *c, uint64_t key)
{
    cuda_state *s = cuda_of(c);
    const int64_t generation = cuda_store_generation(s->store);
    recording *all = s->private->recordings, *oldest = all;
    recording *r = NULL;
    for (int i = 0; i < RECORDINGS && !r; i++) {
        if (all[i].key == key)
            r = &all[i];
        if (all[i].used < oldest->used)
            oldest = &all[i];
    }
    if (r && r->generation != generation)
        forget(c, r);
    if (!r) {
        r = oldest;
        forget(c, r);
    }
    r->key = key;
    r->generation = generation;
    r->used = ++s->private->uses;
    return r;
}

static bool cuda_repeat_begin(nn *c, uint64_t key)
{
    cuda_state *s = cuda_of(c);
    if (!s->store)
        return true;
    recording *r = recording_of(c, key ? key : 1);
    if (r->state == RECORDED) {
        check(c, s->driver->graph_launch(r->exec, s->stream), "a recording");
        return false;
    }
    if (r->state == NEW) { /* uploads, choices of kernels and plans happen now */
        s->private->current = r;
        r->loads = cuda_ring_loads(c);
        return true;
    }
    s->private->current = r;
    s->capturing =
        check(c, s->driver->capture_begin(s->stream, CU_CAPTURE_THREAD_LOCAL), "a recording");
    return true;
}

static void cuda_repeat_end(nn *c)
{
    cuda_state *s = cuda_of(c);
    recording *r = s->private->current;
    s->private->current = NULL;
    if (!r)
        return;
    r->generation = cuda_store_generation(s->store);
    if (!s->capturing) { /* not all was met if it failed */
        r->state = c->error.code == CT_OK && cuda_ring_loads(c) == r->loads ? RAN : NEW;
        return;
    }
    cu_graph graph = NULL;
    s->capturing = false;
    cu_result result = s->driver->capture_end(s->stream, &graph);
    if (c->error.code == CT_OK && check(c, result, "a recording") &&
        check(c, s->driver->graph_instantiate(&r->exec, graph, 0), "a recording")) {
        r->state = RECORDED;
        check(c, s->driver->graph_launch(r->exec, s->stream), "a recording");
    }
    if (graph)
        s->driver->graph_destroy(graph);
}

/* ---- Work beside other work --------------------------------------------------------------------
 * A branch of what is recorded, in a stream and with a workspace of its own. What is not recorded
 * stays in line: the first runs choose algorithms by time. */

static void cuda_fork(nn *c)
{
    cuda_state *s = cuda_of(c);
    const cu_address workspace = cuda_scratch(c, CUDA_WORKSPACE);
    if (cuda_idle(c) || !s->capturing)
        return;
    struct cuda_private *p = s->private;
    if (!check(c, s->driver->event_record(p->beside.begun, s->stream), "an event") ||
        !check(c, s->driver->stream_wait_event(p->beside.stream, p->beside.begun, 0), "a stream"))
        return;
    p->beside.under_way = true;
    p->beside.main = s->stream;
    p->beside.workspace = s->workspace;
    s->stream = p->beside.stream;
    s->workspace = workspace;
}

static void cuda_meanwhile(nn *c)
{
    cuda_state *s = cuda_of(c);
    struct cuda_private *p = s->private;
    if (!p->beside.under_way)
        return;
    check(c, s->driver->event_record(p->beside.done, s->stream), "an event");
    s->stream = p->beside.main;
    s->workspace = p->beside.workspace;
}

static void cuda_join(nn *c)
{
    cuda_state *s = cuda_of(c);
    struct cuda_private *p = s->private;
    if (p->beside.under_way)
        check(c, s->driver->stream_wait_event(s->stream, p->beside.done, 0), "a stream");
    p->beside.under_way = false;
}

/* ---- Weights --------------------------------------------------------------------------------- */

static cu_address get_weight(nn *c, const nn_weight *w, const cuda_request *request,
                             cuda_weight *out)
{
    ct_error error;
    *out = (cuda_weight){0};
    if (c->error.code != CT_OK || !nn_has(w))
        return 0;
    if (cuda_store_get(c, request, out, &error) != CT_OK)
        cuda_fail(c, &error);
    return out->data;
}

cu_address cuda_floats(nn *c, const nn_weight *w)
{
    const cuda_request request = {&w, 1, STORE_FLOATS, DTYPE_F32};
    cuda_weight at;
    return get_weight(c, w, &request, &at);
}

cu_address cuda_vectors(nn *c, const nn_weight *const *w, int count, dtype type)
{
    const cuda_request request = {w, count, STORE_FLOATS, type};
    cuda_weight at;
    return get_weight(c, w[0], &request, &at);
}

cu_address cuda_table(nn *c, const nn_weight *w, dtype *type)
{
    const bool plain =
        w->bits == 0 && (w->type == DTYPE_F32 || w->type == DTYPE_F16 || w->type == DTYPE_BF16);
    *type = plain ? w->type : DTYPE_BF16;
    const cuda_request request = {&w, 1, STORE_TABLE, *type};
    cuda_weight at;
    return get_weight(c, w, &request, &at);
}

cu_address cuda_conv_weight(nn *c, const nn_weight *w)
{
    const cuda_request request = {&w, 1, STORE_CONV, cuda_work_type(c)};
    cuda_weight at;
    return get_weight(c, w, &request, &at);
}

cu_address cuda_folded_weight(nn *c, const nn_weight *w)
{
    const cuda_request request = {&w, 1, STORE_CONV_FOLDED, cuda_work_type(c)};
    cuda_weight at;
    return get_weight(c, w, &request, &at);
}

const nn_device nn_cuda_device = {
    .name = "cuda",
    .align = CUDA_ALIGN,
    .lag = 1,
    .conv_sums = true,
    .open = cuda_open,
    .close = cuda_close,
    .reset = cuda_reset,
    .arena_alloc = cuda_arena_alloc,
    .arena_free = cuda_arena_free,
    .work_type = cuda_work_type,
    .wide_type = cuda_wide_type,
    .hidden_shift = cuda_hidden_shift,
    .upload = cuda_upload,
    .download = cuda_download,
    .begin_write = cuda_begin_write,
    .end_write = cuda_end_write,
    .download_begin = cuda_download_begin,
    .download_end = cuda_download_end,
    .repeat_begin = cuda_repeat_begin,
    .repeat_end = cuda_repeat_end,
    .fork = cuda_fork,
    .meanwhile = cuda_meanwhile,
    .join = cuda_join,
    .count_broken = cuda_count_broken,
    .section = cuda_section,
    .block = cuda_block,
    .move = cuda_move,
    .move_rows = cuda_move_rows,
    .take = cuda_take,
    .embed = cuda_embed,
    .fill_rows = cuda_fill_rows,
    .operand_bytes = cuda_operand_bytes,
    .writes_operand = cuda_writes_operand,
    .prepare = cuda_prepare,
    .linear = cuda_linear,
    .linears = cuda_linears,
    .rms_norm = cuda_rms_norm,
    .add_rms_norm = cuda_add_rms_norm,
    .layer_norm = cuda_layer_norm,
    .head_norm_rope = cuda_head_norm_rope,
    .attention = cuda_attention,
    .attention_segments = cuda_attention_segments,
    .silu = cuda_silu,
    .gelu = cuda_gelu,
    .multiply = cuda_multiply,
    .tanh = cuda_tanh,
    .add_scalar = cuda_add_scalar,
    .add_scaled = cuda_add_scaled,
    .guide = cuda_guide,
    .guide_tokens = cuda_guide_tokens,
    .patches = cuda_patches,
    .upload_planes = cuda_upload_planes,
    .download_planes = cuda_download_planes,
    .conv2d = cuda_conv2d,
    .group_sums = cuda_group_sums,
    .group_factors = cuda_group_factors,
    .apply_norm = cuda_apply_norm,
};
