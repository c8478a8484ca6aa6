/* Which matrices of a model LoRA files change, and the changes. */
#include "io/lora.h"

#include "core/mem.h"
#include "io/lora_names.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MATCHED_AT_LEAST 0.9
#define NAMED 3 /* modules that an error names */
#define F16_BEYOND 65520.0f

/* ---- Matching -------------------------------------------------------------------------------- */

static int compare_name(const void *name, const void *pair)
{
    return strcmp(name, ((const lora_pair *)pair)->name);
}

static lora_pair *find_pair(const lora_file *f, const char *name)
{
    return f->count ? bsearch(name, f->pairs, f->count, sizeof *f->pairs, compare_name) : NULL;
}

/* The rows of the matrix that the pair changes; false where the pair has another number of rows
 * than they need. */
static bool place(lora_piece pieces[2], int *count, const lora_name *name, const lora_pair *p,
                  int64_t rows, int64_t columns)
{
    int64_t needed = rows;
    *count = 1;
    pieces[0] = (lora_piece){.pair = p, .count = rows};
    if (name->rows == LORA_ROWS_PART) {
        /* At most three matrices that the memory holds. */
        needed = rows * name->parts;
        pieces[0].up_first = rows * name->part;
    } else if (name->rows == LORA_ROWS_BLOCK || name->rows == LORA_ROWS_REST) {
        pieces[0].first = columns * name->part;
        needed = name->rows == LORA_ROWS_BLOCK ? columns : rows - pieces[0].first;
        pieces[0].count = needed;
        if (needed < 1 || pieces[0].first > rows - needed)
            return false;
    } else if (name->rows == LORA_ROWS_SWAP) {
        const int64_t half = rows / 2;
        pieces[0] = (lora_piece){.pair = p, .count = half, .up_first = rows - half};
        pieces[1] = (lora_piece){.pair = p, .first = half, .count = rows - half};
        *count = 2;
    }
    return p->rows == needed && p->columns == columns && rows % *count == 0;
}

static ct_status add_pieces(lora_set *s, lora_target *t, const lora_piece *pieces, int count,
                            ct_error *error)
{
    const size_t size = sizeof *t->pieces, old = (size_t)t->count * size;
    lora_piece *more = mem_grow(s->allocator, t->pieces, old, old + (size_t)count * size);
    if (!more)
        return error_memory(error, old + (size_t)count * size, "the LoRAs");
    t->pieces = more;
    memcpy(more + t->count, pieces, (size_t)count * size);
    t->count += count;
    return CT_OK;
}

static ct_status refuse_shape(const lora_file *f, const lora_pair *p, const char *name,
                              const lora_target *t, ct_error *error)
{
    return error_set(error, CT_EFORMAT,
                     "%s: tensor \"%.160s\" and its counterpart make a change of [%" PRId64
                     ", %" PRId64 "], which does not fit the model's %s of [%" PRId64 ", %" PRId64
                     "]; it is a LoRA of another model",
                     f->path, p->down->name, p->rows, p->columns, name, t->rows, t->columns);
}

/* What one file adds. The first name that it has counts; modules under further names, which some
 * trainers write besides, are the same once more. */
static ct_status match_file(lora_set *s, lora_file *f, lora_target *t, const lora_name *names,
                            int name_count, const char *name, ct_error *error)
{
    bool whole = false, parts = false;
    for (int i = 0; i < name_count; i++) {
        lora_pair *p = find_pair(f, names[i].text);
        const bool part = names[i].rows == LORA_ROWS_BLOCK || names[i].rows == LORA_ROWS_REST;
        if (!p)
            continue;
        f->matched += !p->matched;
        p->matched = true;
        if (whole || (parts && !part))
            continue;
        lora_piece pieces[2];
        int count;
        if (!place(pieces, &count, &names[i], p, t->rows, t->columns))
            return refuse_shape(f, p, name, t, error);
        for (int k = 0; k < count; k++)
            pieces[k].factor = (float)(f->scale * p->factor);
        ct_status status = f->scale != 0 ? add_pieces(s, t, pieces, count, error) : CT_OK;
        if (status != CT_OK)
            return status;
        parts = parts || part;
        whole = whole || !part;
    }
    return CT_OK;
}

ct_status lora_match(lora_set *s, const char *name, const weight_view *view, int64_t rows,
                     int64_t columns, const lora_target **out, ct_error *error)
{
    lora_name names[LORA_NAMES_MAXIMUM];
    *out = NULL;
    const int count = lora_names_list(names, name);
    lora_target t = {.view = view, .rows = rows, .columns = columns, .next = s->targets};
    ct_status status = CT_OK;
    for (int i = 0; status == CT_OK && i < s->count; i++)
        status = match_file(s, &s->files[i], &t, names, count, name, error);
    if (status == CT_OK && t.count == 0)
        return CT_OK;
    lora_target *kept = status == CT_OK ? mem_alloc(s->allocator, sizeof *kept) : NULL;
    if (!kept) {
        mem_free(s->allocator, t.pieces);
        return status == CT_OK ? error_memory(error, sizeof t, "the LoRAs") : status;
    }
    *kept = t;
    s->targets = kept;
    *out = kept;
    return CT_OK;
}

const lora_target *lora_find(const lora_set *s, const weight_view *view)
{
    for (const lora_target *t = s ? s->targets : NULL; t; t = t->next)
        if (t->view == view)
            return t;
    return NULL;
}

/* "a, b, c and 17 more" */
static void name_some(char *out, size_t size, const char *const *names, size_t count)
{
    size_t at = 0;
    out[0] = 0;
    for (size_t i = 0; i < count && i < NAMED && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%.100s", i ? ", " : "", names[i]);
    if (count > NAMED && at < size)
        snprintf(out + at, size - at, " and %zu more", count - NAMED);
}

ct_status lora_check(lora_set *s, const char *model, ct_error *error)
{
    for (int i = 0; i < s->count; i++) {
        lora_file *f = &s->files[i];
        f->unknown_count = f->stray_count;
        for (size_t k = 0; k < f->count; k++)
            if (!f->pairs[k].matched)
                f->unknown[f->unknown_count++] = f->pairs[k].down->name;
        const size_t all = f->count + f->stray_count;
        if (f->matched > 0 && (double)f->matched >= MATCHED_AT_LEAST * (double)all)
            continue;
        char some[400];
        name_some(some, sizeof some, f->unknown, f->unknown_count);
        if (!f->count)
            return error_set(error, CT_EUNSUPPORTED,
                             "%s changes the text encoder alone, which is not supported", f->path);
        return error_set(error, CT_EFORMAT,
                         "%s is a LoRA of another model: %s has matrices for only %zu of its %zu "
                         "modules; not for %s",
                         f->path, model, f->matched, all, some);
    }
    return CT_OK;
}

/* ---- Products -------------------------------------------------------------------------------- */

/* A tile of so many rows and columns has its sums in registers. */
#define LANES 4
#define TILE_ROWS 4
#define TILE_COLUMNS (2 * LANES)

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));

static int64_t panels(int64_t columns)
{
    return (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
}

/* A [rank, columns] in panels of TILE_COLUMNS columns, each [rank, TILE_COLUMNS], with zeros behind
 * the last: its rows would lie where they push each other out of the cache. */
static void pack(float *out, const weight_view *down, int64_t rank, int64_t columns)
{
    const size_t size = dtype_size(down->type);
    for (int64_t j = 0; j < columns; j += TILE_COLUMNS) {
        const int64_t width = columns - j < TILE_COLUMNS ? columns - j : TILE_COLUMNS;
        for (int64_t r = 0; r < rank; r++, out += TILE_COLUMNS) {
            dtype_to_float(out, down->data + (size_t)(r * columns + j) * size, down->type,
                           (size_t)width);
            for (int64_t k = width; k < TILE_COLUMNS; k++)
                out[k] = 0;
        }
    }
}

ct_status lora_product_open(lora_product *p, const ct_allocator *a, const lora_target *target,
                            ct_error *error)
{
    *p = (lora_product){.allocator = a, .target = target};
    size_t count = 0;
    bool fits = true;
    for (int i = 0; i < target->count; i++) {
        const lora_piece *k = &target->pieces[i];
        size_t sides, part;
        fits =
            fits &&
            size_add((size_t)panels(k->pair->columns) * TILE_COLUMNS, (size_t)k->count, &sides) &&
            size_mul(sides, (size_t)k->pair->rank, &part) && size_add(count, part, &count);
    }
    p->a = mem_zero_array(a, (size_t)target->count, sizeof *p->a);
    p->b = mem_zero_array(a, (size_t)target->count, sizeof *p->b);
    p->numbers = fits ? mem_array(a, count, sizeof *p->numbers) : NULL;
    if (!p->a || !p->b || !p->numbers) {
        lora_product_close(p);
        return error_memory(error, count * sizeof *p->numbers, "the matrices of a LoRA");
    }
    float *at = p->numbers;
    for (int i = 0; i < target->count; i++) {
        const lora_piece *k = &target->pieces[i];
        const weight_view *up = k->pair->up;
        const size_t rank = (size_t)k->pair->rank, b_count = rank * (size_t)k->count;
        p->a[i] = at;
        pack(at, k->pair->down, k->pair->rank, k->pair->columns);
        at += (size_t)panels(k->pair->columns) * TILE_COLUMNS * rank;
        p->b[i] = at;
        dtype_to_float(at, up->data + (size_t)k->up_first * rank * dtype_size(up->type), up->type,
                       b_count);
        at += b_count;
        weights_drop(k->pair->source, k->pair->down->data, k->pair->down->bytes);
        weights_drop(k->pair->source, up->data, up->bytes);
    }
    return CT_OK;
}

void lora_product_close(lora_product *p)
{
    mem_free(p->allocator, p->numbers);
    mem_free(p->allocator, p->a);
    mem_free(p->allocator, p->b);
    *p = (lora_product){.allocator = p->allocator};
}

/* out += factor * b a for rows x width numbers, at most a tile; a: a panel. At the edge rows are
 * computed twice and columns in vain, which are not added. */
static void add_tile(float *out, const float *a, const float *b, int64_t rank, int64_t columns,
                     float factor, int64_t rows, int64_t width)
{
    lanes left[TILE_ROWS] = {{0}}, right[TILE_ROWS] = {{0}};
    const float *row[TILE_ROWS];
    float sum[TILE_COLUMNS];
    for (int i = 0; i < TILE_ROWS; i++)
        row[i] = b + (i < rows ? i : rows - 1) * rank;
    for (int64_t r = 0; r < rank; r++, a += TILE_COLUMNS) {
        lanes first, second;
        memcpy(&first, a, sizeof first);
        memcpy(&second, a + LANES, sizeof second);
        for (int i = 0; i < TILE_ROWS; i++) {
            left[i] += first * row[i][r];
            right[i] += second * row[i][r];
        }
    }
    for (int64_t i = 0; i < rows; i++) {
        memcpy(sum, &left[i], sizeof left[i]);
        memcpy(sum + LANES, &right[i], sizeof right[i]);
        for (int64_t j = 0; j < width; j++)
            out[i * columns + j] += factor * sum[j];
    }
}

/* Columns outside, so that the panel of A stays in the first cache. */
static void add_piece(const lora_piece *k, const float *a, const float *b, int64_t rows,
                      float *numbers)
{
    const int64_t rank = k->pair->rank, columns = k->pair->columns;
    for (int64_t j = 0; j < columns; j += TILE_COLUMNS, a += rank * TILE_COLUMNS)
        for (int64_t i = 0; i < rows; i += TILE_ROWS)
            add_tile(numbers + i * columns + j, a, b + i * rank, rank, columns, k->factor,
                     rows - i < TILE_ROWS ? rows - i : TILE_ROWS,
                     columns - j < TILE_COLUMNS ? columns - j : TILE_COLUMNS);
}

void lora_product_add(const lora_product *p, int64_t first, int64_t count, float *numbers)
{
    for (int i = 0; i < p->target->count; i++) {
        const lora_piece *k = &p->target->pieces[i];
        const int64_t begin = k->first > first ? k->first : first;
        const int64_t stop = k->first + k->count, last = first + count;
        const int64_t end = stop < last ? stop : last;
        if (begin < end)
            add_piece(k, p->a[i], p->b[i] + (begin - k->first) * k->pair->rank, end - begin,
                      numbers + (begin - first) * p->target->columns);
    }
}

bool lora_in_range(const float *numbers, int64_t count, dtype type)
{
    const float beyond = type == DTYPE_F16 ? F16_BEYOND : INFINITY;
    bool good = true;
    for (int64_t i = 0; i < count; i++)
        good = good && fabsf(numbers[i]) < beyond;
    return good;
}
