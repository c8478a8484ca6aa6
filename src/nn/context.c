/* What a network runs in: its state, its memory, parts of tensors and weights, recordings and
 * traces. */
#include "nn/nn_internal.h"

#include "core/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* What an arena may have too much for a run, besides a quarter. */
#define SPARE_BYTES ((size_t)64 << 20)

/* ---- The context ---------------------------------------------------------------------------- */

/* Bytes of the arena that nobody may touch for now. */
static void poison(nn *c, size_t from, size_t to)
{
    if (c->arena && c->device->host_memory && from < to)
        mem_poison(c->arena + from, to - from);
}

ct_status nn_create(nn **out, const nn_params *params, ct_error *error)
{
    *out = NULL;
    nn *c = mem_zero_array(params->allocator, 1, sizeof *c);
    if (!c)
        return error_memory(error, sizeof *c, "the network context");
    c->params = *params;
    c->device = params->gpu ? &nn_cuda_device : &nn_cpu_device;
    c->capacity = params->dry ? SIZE_MAX : params->arena_bytes;
    ct_status status = c->device->open ? c->device->open(c, error) : CT_OK;
    if (status == CT_OK && !params->dry) {
        c->arena = c->device->host_memory ? mem_alloc_aligned(params->allocator, c->capacity)
                                          : c->device->arena_alloc(c, c->capacity, error);
        if (!c->arena)
            status =
                c->device->host_memory
                    ? error_memory(error, c->capacity, "activations (a smaller picture needs less)")
                    : CT_ENOMEM;
    }
    if (status != CT_OK) {
        nn_free(c);
        return status;
    }
    poison(c, 0, c->capacity);
    *out = c;
    return CT_OK;
}

void nn_free(nn *c)
{
    if (!c)
        return;
    if (c->device->host_memory) {
        if (c->arena)
            mem_unpoison(c->arena, c->capacity);
        mem_free_aligned(c->params.allocator, c->arena);
    } else if (c->arena) {
        c->device->arena_free(c);
    }
    if (c->device->close)
        c->device->close(c);
    mem_free(c->params.allocator, c);
}

bool nn_reuse(nn *c, const nn_params *params)
{
    const size_t wanted = params->arena_bytes;
    if (params->dry || !c->arena || params->gpu != c->params.gpu ||
        params->gpu_weights != c->params.gpu_weights || params->allocator != c->params.allocator ||
        wanted > c->capacity || c->capacity - wanted > wanted / 4 + SPARE_BYTES)
        return false;
    c->params = *params;
    nn_reset(c);
    c->peak = 0;
    return true;
}

size_t nn_arena_bytes(const nn *c)
{
    return c && c->arena ? c->capacity : 0;
}

void nn_reset(nn *c)
{
    c->error = (ct_error){0};
    nn_check_numbers(c, NULL);
    nn_release(c, 0);
    if (c->device->reset && !c->params.dry)
        c->device->reset(c);
}

ct_status nn_status(const nn *c, ct_error *error)
{
    if (c->error.code != CT_OK && error)
        *error = c->error;
    return c->error.code;
}

void nn_fail(nn *c, ct_status status, const char *format, ...)
{
    if (c->error.code != CT_OK)
        return;
    char text[sizeof c->error.message];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    error_set(&c->error, status, "%s", text);
}

bool nn_stopped(nn *c)
{
    if (c->error.code == CT_OK && c->params.cancel && c->params.cancel(c->params.cancel_user))
        nn_fail(c, CT_ECANCELLED, "cancelled");
    return c->error.code != CT_OK;
}

bool nn_is_dry(const nn *c)
{
    return c->params.dry;
}

size_t nn_peak(const nn *c)
{
    return c->peak;
}

void nn_restart_peak(nn *c)
{
    c->peak = c->used;
}

void nn_trim(nn *c, size_t bytes)
{
    if (c->arena && c->device->host_memory && bytes < c->capacity)
        mem_discard(c->arena + bytes, c->capacity - bytes);
}

void nn_block(nn *c)
{
    if (c->params.residency && c->params.residency->block && c->error.code == CT_OK)
        c->params.residency->block(c->params.residency->user);
    if (c->device->block && c->error.code == CT_OK)
        c->device->block(c);
}

void nn_section(nn *c, int section, size_t arena_bytes)
{
    if (c->device->section && c->error.code == CT_OK)
        c->device->section(c, section, arena_bytes);
}

/* ---- Work beside other work ------------------------------------------------------------------ */

void nn_fork(nn *c)
{
    if (!c->device->fork)
        return;
    c->fork.used = c->used;
    c->fork.peak = c->peak;
    c->peak = c->used;
    c->device->fork(c);
}

void nn_meanwhile(nn *c)
{
    if (!c->device->fork)
        return;
    c->device->meanwhile(c);
    c->used = c->peak; /* all that it works in stays its own */
    if (c->peak < c->fork.peak)
        c->peak = c->fork.peak;
}

void nn_join(nn *c)
{
    if (!c->device->fork)
        return;
    c->device->join(c);
    c->used = c->fork.used;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

size_t nn_mark(const nn *c)
{
    return c->used;
}

void nn_release(nn *c, size_t mark)
{
    poison(c, mark, c->used);
    c->used = mark;
}

void *nn_scratch(nn *c, size_t count, size_t size)
{
    if (c->error.code != CT_OK)
        return NULL;
    const size_t align = c->device->align;
    size_t bytes, end;
    if (!size_mul(count, size, &bytes) || !size_add(bytes, MEM_PAD + align - 1, &bytes) ||
        !size_add(c->used, bytes & ~(align - 1), &end)) {
        nn_fail(c, CT_ENOMEM, "a tensor of %zu times %zu bytes is too large", count, size);
        return NULL;
    }
    if (end > c->capacity) {
        nn_fail(c, CT_EINTERNAL, "the memory plan was too small: %zu of %zu bytes", end,
                c->capacity);
        return NULL;
    }
    char *at = c->arena ? c->arena + c->used : NULL;
    if (at && c->device->host_memory)
        mem_unpoison(at, count * size); /* what lies between two tensors stays forbidden */
    c->used = end;
    if (c->used > c->peak)
        c->peak = c->used;
    return at;
}

static nn_tensor new_tensor(nn *c, dtype type, int rank, int64_t n0, int64_t n1, int64_t n2)
{
    nn_tensor t = {.rank = rank, .n = {n0, n1, n2, 1}, .stride = n1, .type = type};
    size_t count = 1;
    for (int i = 0; i < rank; i++)
        if (t.n[i] < 1 || !size_mul(count, (size_t)t.n[i], &count)) {
            nn_fail(c, CT_EINTERNAL, "new tensor: size %" PRId64 " is not possible", t.n[i]);
            return t;
        }
    t.data = nn_scratch(c, count, nn_element(&t));
    return t;
}

static dtype work_type(const nn *c)
{
    return c->device->work_type ? c->device->work_type(c) : DTYPE_F32;
}

nn_tensor nn_new2(nn *c, int64_t n0, int64_t n1)
{
    return new_tensor(c, DTYPE_F32, 2, n0, n1, 1);
}

nn_tensor nn_new3(nn *c, int64_t n0, int64_t n1, int64_t n2)
{
    return new_tensor(c, DTYPE_F32, 3, n0, n1, n2);
}

nn_tensor nn_new_work2(nn *c, int64_t n0, int64_t n1)
{
    return new_tensor(c, work_type(c), 2, n0, n1, 1);
}

nn_tensor nn_new_work3(nn *c, int64_t n0, int64_t n1, int64_t n2)
{
    return new_tensor(c, work_type(c), 3, n0, n1, n2);
}

nn_tensor nn_new_wide2(nn *c, int64_t n0, int64_t n1)
{
    const nn_device *d = c->device;
    return new_tensor(c, d->wide_type ? d->wide_type(c) : work_type(c), 2, n0, n1, 1);
}

nn_tensor nn_keep(nn *c, size_t mark, const nn_tensor *t)
{
    const size_t end = c->used;
    c->used = mark;
    nn_tensor place = new_tensor(c, t->type, t->rank, t->n[0], t->n[1], t->n[2]);
    if (c->error.code != CT_OK || !c->arena)
        return place;
    if (place.data != t->data)
        c->device->move(c, place.data, t->data, (size_t)nn_count(t) * nn_element(t));
    poison(c, c->used, end);
    return place;
}

nn_tensor nn_new_sums(nn *c, int64_t rows, int groups)
{
    /* Two doubles for each group. */
    return new_tensor(c, DTYPE_F32, 2, rows, 4 * (int64_t)groups, 1);
}

nn_tensor nn_new_operand(nn *c, int64_t m, int64_t k)
{
    nn_tensor t = {.rank = 2, .n = {m, k, 1, 1}, .stride = k, .operand = true};
    t.type = work_type(c);
    t.data = nn_scratch(c, c->device->operand_bytes(c, m, k), 1);
    return t;
}

nn_tensor nn_new_input(nn *c, int64_t m, const nn_weight *w)
{
    const bool operand = c->device->writes_operand && c->device->writes_operand(c, w);
    if (operand)
        return nn_new_operand(c, m, w->n[1]);
    nn_tensor t = nn_new_work2(c, m, w->n[1]);
    t.shift = c->device->hidden_shift ? c->device->hidden_shift(c) : 0;
    return t;
}

nn_precision nn_set_precision(nn *c, nn_precision precision)
{
    nn_precision before = c->params.precision;
    c->params.precision = precision;
    return before;
}

int64_t nn_count(const nn_tensor *t)
{
    int64_t count = 1;
    for (int i = 0; i < t->rank; i++)
        count *= t->n[i];
    return count;
}

nn_tensor nn_rows(const nn_tensor *t, int64_t first, int64_t count)
{
    nn_tensor rows = *t;
    rows.n[0] = count;
    if (t->data)
        rows.data = nn_at(t, first * (t->rank == 2 ? t->stride : t->n[1] * t->n[2]));
    return rows;
}

nn_tensor nn_columns(const nn_tensor *t, int64_t first, int64_t count)
{
    nn_tensor columns = *t;
    columns.n[1] = count;
    columns.data = nn_at(t, first);
    return columns;
}

nn_tensor nn_as2(nn *c, const nn_tensor *t, int64_t n0, int64_t n1)
{
    if (n0 * n1 != nn_count(t))
        nn_fail(c, CT_EINTERNAL, "as2: %" PRId64 " x %" PRId64 " is not the size of the tensor", n0,
                n1);
    return (nn_tensor){
        .rank = 2, .n = {n0, n1, 1, 1}, .stride = n1, .type = t->type, .data = t->data};
}

nn_weight nn_weight_rows(const nn_weight *w, int64_t first, int64_t count)
{
    nn_weight part = *w;
    int64_t k = w->rank == 2 ? w->n[1] : 1, size = (int64_t)dtype_size(w->type);
    part.n[0] = count;
    if (!w->data)
        return part;
    part.data = (const char *)w->data + first * (w->bits ? k * w->bits / 8 : k * size);
    if (w->bits) {
        part.scales = (const char *)w->scales + first * (k / w->group) * size;
        part.biases = (const char *)w->biases + first * (k / w->group) * size;
    }
    return part;
}

/* ---- Recordings and traces ------------------------------------------------------------------- */

int nn_lag(const nn *c)
{
    return c->params.dry ? 0 : c->device->lag;
}

bool nn_repeat_begin(nn *c, const int64_t *key, int count)
{
    const nn_trace *trace = c->params.trace;
    if (!c->device->repeat_begin || c->params.dry || c->checking[0] || nn_stopped(c) ||
        (trace && trace->active(trace->user)))
        return true;
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a, a number at a time */
    for (int i = -2; i < count; i++) {
        hash ^= i == -2 ? c->used : i == -1 ? (uint64_t)c->params.precision : (uint64_t)key[i];
        hash *= 0x100000001b3u;
        hash ^= hash >> 29;
    }
    return c->device->repeat_begin(c, hash);
}

void nn_repeat_end(nn *c)
{
    if (c->device->repeat_end && !c->params.dry && !c->checking[0])
        c->device->repeat_end(c);
}

void nn_trace_tensor(nn *c, const nn_tensor *t, const char *format, ...)
{
    const nn_trace *trace = c->params.trace;
    if (!trace || c->params.dry || c->error.code != CT_OK || !trace->active(trace->user))
        return;
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (c->device->host_memory) {
        trace->tensor(trace->user, name, t);
        return;
    }
    nn_tensor copy = *t;
    copy.type = DTYPE_F32;
    copy.data = mem_array(c->params.allocator, (size_t)nn_count(t), sizeof(float));
    if (!copy.data) {
        nn_fail(c, CT_ENOMEM, "out of memory: a copy of %s", name);
        return;
    }
    nn_download(c, t, copy.data, nn_count(t));
    if (c->error.code == CT_OK)
        trace->tensor(trace->user, name, &copy);
    mem_free(c->params.allocator, copy.data);
}
