/* Weights that do not fit: blocks that come and go while the network runs.
 *
 * Two buffers on the GPU take turns. When a block begins, its weights are put into the next buffer
 * by a stream of their own, which waits for the block that was there before; the stream that
 * computes waits for the copy alone. The host is ahead of both, so that a block is copied while the
 * one before it computes. A block is read from the file, and changed into the form that the GPU
 * needs, when it comes for the first time; if there is pinned memory for it, it is kept there and
 * later comes as it is, without work for the host. */
#include "core/mem.h"
#include "nn/cuda/schedule.h"

#include <limits.h>
#include <string.h>

typedef struct slot {
    cu_address at;
    cu_event loaded, freed;
    bool used; /* freed was recorded */
} slot;

struct cuda_ring {
    cu_stream stream; /* of the copies; NULL until a block is streamed */
    cu_address memory;
    size_t bytes;
    slot slots[CUDA_SLOTS];
    void **images; /* of blocks, pinned; NULL: none */
    size_t image_count;
    int section;   /* that runs; -1: none */
    int64_t block; /* of the schedule, that runs; -1: none */
    int64_t loads; /* of blocks, so far */
};

/* ---- Life ------------------------------------------------------------------------------------ */

static bool check(nn *c, cu_result result, const char *what)
{
    ct_error error;
    if (result == 0)
        return true;
    cuda_check(cuda_of(c)->driver, result, what, &error);
    cuda_fail(c, &error);
    return false;
}

static cuda_ring *open_ring(nn *c)
{
    cuda_state *s = cuda_of(c);
    if (s->ring)
        return s->ring;
    s->ring = mem_zero_array(c->params.allocator, 1, sizeof *s->ring);
    if (s->ring)
        s->ring->section = -1, s->ring->block = -1;
    else
        nn_fail(c, CT_ENOMEM, "out of memory: the buffers of streamed weights");
    return s->ring;
}

static bool open_stream(nn *c, cuda_ring *g)
{
    const cuda_driver *d = cuda_of(c)->driver;
    if (g->stream)
        return true;
    for (int i = 0; i < CUDA_SLOTS; i++) {
        cu_event *events[] = {&g->slots[i].loaded, &g->slots[i].freed};
        for (int k = 0; k < 2; k++)
            if (!*events[k] &&
                !check(c, d->event_create(events[k], CU_EVENT_DISABLE_TIMING), "an event"))
                return false;
    }
    return check(c, d->stream_create(&g->stream, CU_STREAM_NON_BLOCKING), "a stream");
}

/* Both streams have done their work. */
static void wait_all(const nn *c)
{
    const cuda_state *s = c->device_state;
    s->driver->stream_wait(s->stream);
    if (s->ring->stream)
        s->driver->stream_wait(s->ring->stream);
}

static void free_buffers(const cuda_state *s)
{
    if (s->ring->memory)
        s->driver->mem_free(s->ring->memory);
    s->ring->memory = 0;
    s->ring->bytes = 0;
}

void cuda_ring_free(nn *c)
{
    cuda_state *s = cuda_of(c);
    cuda_ring *g = s->ring;
    if (!g)
        return;
    wait_all(c);
    free_buffers(s);
    for (size_t i = 0; i < g->image_count; i++)
        if (g->images[i])
            s->driver->host_free(g->images[i]);
    mem_free(c->params.allocator, g->images);
    for (int i = 0; i < CUDA_SLOTS; i++) {
        if (g->slots[i].loaded)
            s->driver->event_destroy(g->slots[i].loaded);
        if (g->slots[i].freed)
            s->driver->event_destroy(g->slots[i].freed);
    }
    if (g->stream)
        s->driver->stream_destroy(g->stream);
    mem_free(c->params.allocator, g);
    s->ring = NULL;
}

/* ---- A block --------------------------------------------------------------------------------- */

static const schedule_block *block_of(const nn *c)
{
    const cuda_state *s = c->device_state;
    const cuda_schedule *p = c->params.gpu_schedule;
    return p && s && s->ring && s->ring->block >= 0 ? &p->blocks[s->ring->block] : NULL;
}

static cuda_request request_of(const schedule_item *item, const nn_weight *list[CUDA_JOINED])
{
    for (int i = 0; i < item->count; i++)
        list[i] = &item->w[i];
    return (cuda_request){list, item->count, (cuda_form)item->form, item->type};
}

/* From the files, in the stream of the copies. */
static bool read_block(nn *c, const schedule_block *b, cu_address to)
{
    cuda_state *s = cuda_of(c);
    const cuda_schedule *p = c->params.gpu_schedule;
    const cu_stream compute = s->stream;
    ct_error error;
    ct_status status = CT_OK;
    s->stream = s->ring->stream;
    for (size_t i = 0; i < b->count && status == CT_OK; i++) {
        const schedule_use *use = &p->uses[b->first + i];
        const nn_weight *list[CUDA_JOINED];
        const cuda_request r = request_of(&p->items[use->item], list);
        status = cuda_store_put(c, &r, to + use->offset, &error);
    }
    s->stream = compute;
    if (status != CT_OK)
        cuda_fail(c, &error);
    return status == CT_OK && c->error.code == CT_OK;
}

/* The place for an image of the block that begins; NULL where there is to be none. */
static void **image_of(nn *c)
{
    cuda_ring *g = cuda_of(c)->ring;
    const cuda_schedule *p = c->params.gpu_schedule;
    const bool wanted = g->section == p->image_section;
    if (!g->images && wanted) {
        g->images = mem_zero_array(c->params.allocator, p->block_count, sizeof *g->images);
        g->image_count = g->images ? p->block_count : 0;
    }
    return wanted && (size_t)g->block < g->image_count ? &g->images[g->block] : NULL;
}

/* Without pinned memory the block is read from the file each time. What was kept may be recorded
 * while it is copied: the next use is in the same stream. */
static void keep_image(nn *c, void **image, const schedule_block *b, cu_address from)
{
    const cuda_driver *d = cuda_of(c)->driver;
    void *memory = NULL;
    if (d->host_alloc(&memory, b->bytes, 0) != 0)
        return;
    if (check(c, d->copy_to_host(memory, from, b->bytes, cuda_of(c)->ring->stream), "a copy"))
        *image = memory;
    else
        d->host_free(memory);
}

static void load_block(nn *c, const schedule_block *b)
{
    const cuda_state *s = cuda_of(c);
    const cuda_driver *d = s->driver;
    cuda_ring *g = s->ring;
    slot *to = &g->slots[b->slot];
    g->loads++;
    void **image = image_of(c);
    if (to->used && !check(c, d->stream_wait_event(g->stream, to->freed, 0), "an event"))
        return;
    if (image && *image) {
        if (!check(c, d->copy_to_device(to->at, *image, b->bytes, g->stream), "weights"))
            return;
    } else if (!read_block(c, b, to->at)) {
        return;
    } else if (image) {
        keep_image(c, image, b, to->at);
    }
    if (check(c, d->event_record(to->loaded, g->stream), "an event"))
        check(c, d->stream_wait_event(s->stream, to->loaded, 0), "an event");
}

static void leave_block(nn *c)
{
    cuda_ring *g = cuda_of(c)->ring;
    const schedule_block *b = block_of(c);
    g->block = -1;
    if (!b || b->slot < 0)
        return;
    slot *from = &g->slots[b->slot];
    from->used =
        check(c, cuda_of(c)->driver->event_record(from->freed, cuda_of(c)->stream), "an event");
}

static void enter_block(nn *c, int64_t block)
{
    cuda_of(c)->ring->block = block;
    const schedule_block *b = block_of(c);
    if (b && b->slot >= 0 && c->error.code == CT_OK)
        load_block(c, b);
}

void cuda_block(nn *c)
{
    cuda_schedule *p = c->params.gpu_schedule;
    if (p && c->params.dry)
        schedule_next(p);
    if (!p || c->params.dry || cuda_of(c)->capturing || !cuda_of(c)->ring)
        return;
    const cuda_ring *g = cuda_of(c)->ring;
    const int64_t next = g->block + 1;
    const bool inside = g->block >= 0 && g->section >= 0 &&
                        (size_t)next < p->list[g->section].first + p->list[g->section].count;
    leave_block(c);
    if (inside)
        enter_block(c, next);
}

bool cuda_ring_find(const nn *c, const cuda_request *r, cuda_weight *out)
{
    const schedule_block *b = block_of(c);
    const cuda_schedule *p = c->params.gpu_schedule;
    if (!b || b->slot < 0)
        return false;
    const cuda_state *s = c->device_state;
    for (size_t i = 0; i < b->count; i++) {
        const schedule_use *use = &p->uses[b->first + i];
        const schedule_item *item = &p->items[use->item];
        if (!schedule_is_item(item, r->w[0]->data, r->count, (int)r->form, r->type))
            continue;
        cu_address at = s->ring->slots[b->slot].at + use->offset;
        cu_address *const parts[CUDA_PARTS] = {&out->data, &out->scales, &out->biases};
        for (int k = 0; k < CUDA_PARTS; k++) {
            *parts[k] = item->part[k] ? at : 0;
            at += cuda_aligned(item->part[k]);
        }
        return true;
    }
    return false;
}

int64_t cuda_ring_loads(const nn *c)
{
    const cuda_state *s = c->device_state;
    return s->ring ? s->ring->loads : 0;
}

/* ---- A section ------------------------------------------------------------------------------- */

/* Makes the buffers of a section, when everything else has its memory. */
static void open_buffers(nn *c, const schedule_list *list, size_t bytes)
{
    const cuda_state *s = cuda_of(c);
    cuda_ring *g = s->ring;
    ct_error error;
    if (bytes != g->bytes) {
        if (!open_stream(c, g))
            return;
        if (cuda_gpu_alloc(s->gpu, &g->memory, bytes, "streamed weights", &error) != CT_OK) {
            cuda_fail(c, &error);
            return;
        }
        g->bytes = bytes;
    }
    cu_address at = g->memory;
    for (int i = 0; i < CUDA_SLOTS; i++) {
        g->slots[i].at = at;
        at += list->slot_bytes[i];
    }
}

void cuda_section(nn *c, int section, size_t arena_bytes)
{
    cuda_schedule *p = c->params.gpu_schedule;
    if (p && c->params.dry)
        schedule_begin(p, section);
    if (!p || c->params.dry || cuda_of(c)->capturing)
        return;
    cuda_state *s = cuda_of(c);
    cuda_ring *g = open_ring(c);
    if (!g)
        return;
    const schedule_list *list = &p->list[section];
    const size_t bytes = (size_t)cuda_schedule_buffers(p, section);
    leave_block(c);
    if (section != g->section) {
        g->section = section;
        if (bytes != g->bytes || list->keeps != UINT_MAX)
            wait_all(c);
        if (bytes != g->bytes)
            free_buffers(s);
        if (list->keeps != UINT_MAX)
            cuda_store_retain(s->store, p, list->keeps, 1);
    }
    if (p->trims)
        cuda_resize_arena(c, arena_bytes);
    if (bytes && c->error.code == CT_OK)
        open_buffers(c, list, bytes);
    if (list->count)
        enter_block(c, (int64_t)list->first);
}
