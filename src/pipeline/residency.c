#include "pipeline/residency.h"

#include "core/mem.h"

#include <stdlib.h>

/* ---- Recording ------------------------------------------------------------------------------- */

static void *grow(residency *r, void *old, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity)
        return old;
    const size_t more = *capacity ? *capacity * 2 : 64;
    void *larger = mem_grow(r->allocator, old, count * size, more * size);
    if (larger)
        *capacity = more;
    return larger;
}

static void on_read(void *user, const void *data, size_t bytes)
{
    residency *r = user;
    if (!r->recording || r->lost)
        return;
    size_t at = 0;
    const file_map *map = NULL;
    for (int i = 0; !map && i < RESIDENCY_FILES && r->files[i]; i++)
        map = weights_locate(r->files[i], data, &at);
    if (!map)
        return; /* not in a file, so it cannot be let go */
    file_range *ranges = grow(r, r->ranges, r->range_count, &r->range_capacity, sizeof *r->ranges);
    r->lost = !ranges;
    if (r->lost)
        return;
    r->ranges = ranges;
    /* In whole windows of the address space, as the system maps and unmaps pages. */
    const size_t shift = (uintptr_t)map->data & (FILE_WINDOW - 1);
    const size_t first = (at + shift) & ~(FILE_WINDOW - 1);
    const size_t end = (at + bytes + shift + FILE_WINDOW - 1) & ~(FILE_WINDOW - 1);
    const size_t begin = first > shift ? first - shift : 0;
    const size_t stop = end - shift < map->size ? end - shift : map->size;
    r->ranges[r->range_count++] = (file_range){map, begin, stop - begin};
}

static int compare_ranges(const void *left, const void *right)
{
    const file_range *a = left, *b = right;
    if (a->map != b->map)
        return (uintptr_t)a->map < (uintptr_t)b->map ? -1 : 1;
    return (a->at > b->at) - (a->at < b->at);
}

/* Sorts and joins ranges; returns how many are left, and their bytes. */
static size_t join_ranges(file_range *ranges, size_t count, uint64_t *bytes)
{
    size_t kept = 0;
    *bytes = 0;
    if (count)
        qsort(ranges, count, sizeof *ranges, compare_ranges);
    for (size_t i = 0; i < count; i++) {
        file_range *last = kept ? &ranges[kept - 1] : NULL;
        if (last && last->map == ranges[i].map && ranges[i].at <= last->at + last->bytes) {
            const size_t end = ranges[i].at + ranges[i].bytes;
            if (end > last->at + last->bytes)
                last->bytes = end - last->at;
        } else {
            ranges[kept++] = ranges[i];
        }
    }
    for (size_t i = 0; i < kept; i++)
        *bytes += ranges[i].bytes;
    return kept;
}

static void close_block(residency *r)
{
    if (!r->recording || r->lost)
        return;
    residency_list *list = &r->list[r->section];
    residency_block *b = &r->blocks[r->block_count - 1];
    b->count = join_ranges(r->ranges + b->first, r->range_count - b->first, &b->bytes);
    r->range_count = b->first + b->count;
    if (b->bytes > list->largest)
        list->largest = b->bytes;
}

static void open_block(residency *r)
{
    if (!r->recording || r->lost)
        return;
    residency_block *blocks =
        grow(r, r->blocks, r->block_count, &r->block_capacity, sizeof *r->blocks);
    r->lost = !blocks;
    if (r->lost)
        return;
    r->blocks = blocks;
    r->blocks[r->block_count++] = (residency_block){.first = r->range_count};
    r->list[r->section].count++;
}

/* Bytes of consecutive blocks, those that stay or all; neighbours share pages. */
static uint64_t joint_bytes(const residency *r, size_t first, int blocks, bool all)
{
    uint64_t bytes = 0;
    size_t count = 0;
    const residency_block *b = r->blocks + first;
    for (int i = 0; i < blocks; i++)
        count += all || b[i].stays ? b[i].count : 0;
    file_range *ranges = mem_array(r->allocator, count, sizeof *ranges);
    if (!ranges) { /* then shared pages count twice */
        for (int i = 0; i < blocks; i++)
            bytes += all || b[i].stays ? b[i].bytes : 0;
        return bytes;
    }
    count = 0;
    for (int i = 0; i < blocks; i++)
        for (size_t k = 0; (all || b[i].stays) && k < b[i].count; k++)
            ranges[count++] = r->ranges[b[i].first + k];
    join_ranges(ranges, count, &bytes);
    mem_free(r->allocator, ranges);
    return bytes;
}

/* ---- A run ----------------------------------------------------------------------------------- */

static void ask(residency *r, int block)
{
    const residency_block *b = &r->blocks[r->list[r->section].first + (size_t)block];
    readahead_ask(r->ahead, r->ranges + b->first, b->count);
}

/* Asks for the next block that has to come. The transformer's last is followed by its first; in its
 * first evaluation those that stay have to come, too. */
static void ask_behind(residency *r, int block)
{
    const residency_list *list = &r->list[r->section];
    const bool loop = r->section == SECTION_EVALUATE;
    for (int i = block + 1; i < (loop ? block : 0) + list->count; i++) {
        const bool known = i >= list->count || r->evaluations > 1;
        if (loop && known && r->blocks[list->first + (size_t)(i % list->count)].stays)
            continue;
        ask(r, i % list->count);
        return;
    }
}

static void leave_block(const residency *r)
{
    if (r->cursor < 0)
        return;
    const residency_block *b = &r->blocks[r->list[r->section].first + (size_t)r->cursor];
    for (size_t i = 0; !b->stays && i < b->count; i++) {
        const file_range *range = &r->ranges[b->first + i];
        file_map_let_go(range->map, range->at, range->bytes);
    }
}

static void on_block(void *user)
{
    residency *r = user;
    if (r->dry) {
        close_block(r);
        open_block(r);
    } else if (r->cursor + 1 < r->list[r->section].count) {
        leave_block(r);
        ask_behind(r, ++r->cursor);
    }
}

void residency_init(residency *r, const ct_allocator *a)
{
    *r = (residency){.allocator = a};
    r->hook = (nn_residency){r, on_read, on_block};
}

void residency_free(residency *r)
{
    readahead_free(r->ahead);
    mem_free(r->allocator, r->ranges);
    mem_free(r->allocator, r->blocks);
    *r = (residency){.allocator = r->allocator};
}

void residency_watch(residency *r, const weights *w)
{
    for (int i = 0; i < RESIDENCY_FILES; i++)
        if (!r->files[i]) {
            r->files[i] = w;
            return;
        }
}

void residency_start(residency *r, bool dry)
{
    r->dry = dry;
    r->recording = false;
    r->cursor = -1;
    r->evaluations = 0;
    if (!dry)
        return;
    r->range_count = r->block_count = 0;
    for (int i = 0; i < SECTION_COUNT; i++)
        r->list[i] = (residency_list){0};
}

void residency_begin(residency *r, residency_section section)
{
    residency_list *list = &r->list[section];
    if (r->dry) {
        close_block(r);
        r->section = section;
        r->recording = list->count == 0;
        if (r->recording)
            list->first = r->block_count;
        open_block(r);
        return;
    }
    leave_block(r);
    r->section = section;
    r->cursor = list->count ? 0 : -1;
    r->evaluations += section == SECTION_EVALUATE;
    if (list->count)
        ask_behind(r, 0);
}

void residency_let_go(const residency *r, const weights *w)
{
    if (!r->dry)
        weights_let_go(w);
}

ct_status residency_finish(residency *r, ct_error *error)
{
    close_block(r);
    r->recording = false;
    if (r->lost)
        return error_memory(error, r->range_capacity * sizeof *r->ranges, "the plan of memory");
    return CT_OK;
}

/* ---- Choice ---------------------------------------------------------------------------------- */

void residency_stream(residency *r, residency_section section, int streamed)
{
    const residency_list *list = &r->list[section];
    const int n = list->count;
    for (int i = 0; i < n; i++)
        r->blocks[list->first + (size_t)i].stays = (i + 1) * streamed / n == i * streamed / n;
}

uint64_t residency_read_bytes(const residency *r, residency_section first, residency_section last)
{
    const size_t end = r->list[last].first + (size_t)r->list[last].count;
    return joint_bytes(r, r->list[first].first, (int)(end - r->list[first].first), true);
}

uint64_t residency_bytes(const residency *r, residency_section section)
{
    const residency_list *list = &r->list[section];
    uint64_t largest = 0;
    for (int i = 0; i < list->count; i++) {
        const residency_block *b = &r->blocks[list->first + (size_t)i];
        if (!b->stays && b->bytes > largest)
            largest = b->bytes;
    }
    return joint_bytes(r, list->first, list->count, false) + largest;
}

void residency_read_ahead(residency *r)
{
    if (!r->ahead && readahead_create(&r->ahead, r->allocator, NULL) != CT_OK)
        r->ahead = NULL;
}
