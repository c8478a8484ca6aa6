/* Which weights a job needs on the GPU, block by block, and which of them stay there. */
#include "nn/cuda/schedule.h"

#include "core/mem.h"

#include <limits.h>

/* ---- Life ------------------------------------------------------------------------------------ */

ct_status cuda_schedule_create(cuda_schedule **out, const ct_allocator *a, ct_error *error)
{
    cuda_schedule *p = *out = mem_zero_array(a, 1, sizeof *p);
    if (!p)
        return error_memory(error, sizeof *p, "the plan of the GPU's memory");
    p->allocator = a;
    cuda_schedule_clear(p);
    return CT_OK;
}

void cuda_schedule_free(cuda_schedule *p)
{
    if (!p)
        return;
    mem_free(p->allocator, p->items);
    mem_free(p->allocator, p->uses);
    mem_free(p->allocator, p->blocks);
    mem_free(p->allocator, p);
}

void cuda_schedule_clear(cuda_schedule *p)
{
    p->item_count = p->use_count = p->block_count = 0;
    for (int i = 0; i < CUDA_SECTIONS; i++)
        p->list[i] = (schedule_list){.keeps = UINT_MAX};
    p->section = -1;
    p->image_section = -1;
    p->lost = p->trims = false;
}

ct_status cuda_schedule_finish(cuda_schedule *p, ct_error *error)
{
    p->section = -1;
    if (p->lost)
        return error_memory(error, p->item_capacity * sizeof *p->items,
                            "the plan of the GPU's memory");
    for (int i = 0; i < CUDA_SECTIONS; i++)
        cuda_schedule_stream(p, i, 0);
    return CT_OK;
}

/* ---- Recording ------------------------------------------------------------------------------- */

/* Room for one more; NULL, and lost, where there is none. */
static void *grow(cuda_schedule *p, void *old, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity)
        return old;
    const size_t more = *capacity ? 2 * *capacity : 64;
    void *larger = mem_grow(p->allocator, old, count * size, more * size);
    if (larger)
        *capacity = more;
    else
        p->lost = true;
    return larger;
}

static bool recording(const cuda_schedule *p)
{
    return p->section >= 0 && !p->lost;
}

void schedule_next(cuda_schedule *p)
{
    if (!recording(p))
        return;
    schedule_block *blocks =
        grow(p, p->blocks, p->block_count, &p->block_capacity, sizeof *p->blocks);
    if (!blocks)
        return;
    p->blocks = blocks;
    p->blocks[p->block_count++] = (schedule_block){.first = p->use_count, .slot = -1};
    p->list[p->section].count++;
}

void schedule_begin(cuda_schedule *p, int section)
{
    schedule_list *list = &p->list[section];
    p->section = list->count == 0 ? section : -1; /* later times are like the first */
    if (p->section >= 0)
        list->first = p->block_count;
    schedule_next(p);
}

bool schedule_is_item(const schedule_item *item, const void *key, int count, int form, dtype type)
{
    return item->w[0].data == key && item->count == count && item->form == form &&
           item->type == type;
}

static size_t find(const cuda_schedule *p, const cuda_request *r)
{
    size_t i = 0;
    while (i < p->item_count &&
           !schedule_is_item(&p->items[i], r->w[0]->data, r->count, (int)r->form, r->type))
        i++;
    return i;
}

static bool add_item(cuda_schedule *p, const cuda_request *r)
{
    schedule_item *items = grow(p, p->items, p->item_count, &p->item_capacity, sizeof *p->items);
    if (!items)
        return false;
    p->items = items;
    schedule_item *item = &items[p->item_count++];
    *item = (schedule_item){.count = r->count, .form = (int)r->form, .type = r->type};
    for (int i = 0; i < r->count; i++)
        item->w[i] = *r->w[i];
    item->temporary = cuda_request_parts(r, item->part);
    return true;
}

void schedule_note(cuda_schedule *p, const cuda_request *r)
{
    if (!p || !recording(p) || r->count > CUDA_JOINED)
        return;
    schedule_block *block = &p->blocks[p->block_count - 1];
    const size_t at = find(p, r);
    for (size_t i = 0; i < block->count; i++)
        if (p->uses[block->first + i].item == at)
            return;
    if (at == p->item_count && !add_item(p, r))
        return;
    schedule_use *uses = grow(p, p->uses, p->use_count, &p->use_capacity, sizeof *p->uses);
    if (!uses)
        return;
    p->uses = uses;
    p->uses[p->use_count++] = (schedule_use){at, block->bytes};
    block->count++;
    for (int i = 0; i < CUDA_PARTS; i++)
        block->bytes += cuda_aligned(p->items[at].part[i]);
}

/* ---- Choices --------------------------------------------------------------------------------- */

/* Marks what is needed by blocks that stay. */
static void mark_items(cuda_schedule *p, int section)
{
    const unsigned bit = 1u << section;
    const schedule_list *list = &p->list[section];
    for (size_t i = 0; i < p->item_count; i++)
        p->items[i].sections &= ~bit;
    for (size_t i = 0; i < list->count; i++) {
        const schedule_block *b = &p->blocks[list->first + i];
        for (size_t k = 0; b->slot < 0 && k < b->count; k++)
            p->items[p->uses[b->first + k].item].sections |= bit;
    }
}

void cuda_schedule_stream(cuda_schedule *p, int section, int streamed)
{
    schedule_list *list = &p->list[section];
    const int n = (int)list->count;
    int slot = 0;
    for (int i = 0; i < CUDA_SLOTS; i++)
        list->slot_bytes[i] = 0;
    for (int i = 0; i < n; i++) {
        schedule_block *b = &p->blocks[list->first + (size_t)i];
        const bool stays = (i + 1) * streamed / n == i * streamed / n || b->count == 0;
        b->slot = stays ? -1 : slot;
        if (stays)
            continue;
        if (b->bytes > list->slot_bytes[slot])
            list->slot_bytes[slot] = b->bytes;
        slot = (slot + 1) % CUDA_SLOTS;
    }
    mark_items(p, section);
}

void cuda_schedule_keep(cuda_schedule *p, int section, unsigned sections)
{
    p->list[section].keeps = sections;
}

void cuda_schedule_set(cuda_schedule *p, bool trims, int image_section)
{
    p->trims = trims;
    p->image_section = image_section;
}

bool schedule_keeps(const cuda_schedule *p, unsigned sections, const void *key, int count, int form,
                    dtype type)
{
    for (size_t i = 0; i < p->item_count; i++)
        if (schedule_is_item(&p->items[i], key, count, form, type))
            return (p->items[i].sections & sections) != 0;
    return false;
}

/* ---- Sums ------------------------------------------------------------------------------------ */

static uint64_t cost(const schedule_item *item)
{
    uint64_t bytes = 0;
    for (int i = 0; i < CUDA_PARTS; i++)
        bytes += item->part[i] ? cuda_gpu_cost(item->part[i]) : 0;
    return bytes;
}

uint64_t cuda_schedule_bytes(const cuda_schedule *p, unsigned sections)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < p->item_count; i++)
        bytes += p->items[i].sections & sections ? cost(&p->items[i]) : 0;
    return bytes;
}

uint64_t cuda_schedule_buffers(const cuda_schedule *p, int section)
{
    uint64_t bytes = 0;
    for (int i = 0; i < CUDA_SLOTS; i++)
        bytes += p->list[section].slot_bytes[i];
    return bytes ? cuda_gpu_cost((size_t)bytes) : 0;
}

uint64_t cuda_schedule_temporary(const cuda_schedule *p)
{
    uint64_t most = 0;
    for (size_t i = 0; i < p->item_count; i++)
        most = p->items[i].temporary > most ? p->items[i].temporary : most;
    return most;
}

int cuda_schedule_blocks(const cuda_schedule *p, int section)
{
    return (int)p->list[section].count;
}

uint64_t cuda_schedule_largest(const cuda_schedule *p, int section)
{
    uint64_t most = 0;
    const schedule_list *list = &p->list[section];
    for (size_t i = 0; i < list->count; i++)
        if (p->blocks[list->first + i].bytes > most)
            most = p->blocks[list->first + i].bytes;
    return most;
}

uint64_t cuda_schedule_streamed(const cuda_schedule *p, int section)
{
    uint64_t bytes = 0;
    const schedule_list *list = &p->list[section];
    for (size_t i = 0; i < list->count; i++)
        bytes += p->blocks[list->first + i].slot >= 0 ? p->blocks[list->first + i].bytes : 0;
    return bytes;
}
