/* Matrices that cannot be used as the file has them: their numbers are decoded, LoRAs are added,
 * and the result is kept in memory of the weights. */
#include "models/bind.h"

#include "core/affine.h"
#include "core/mem.h"
#include "core/memory_info.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define ROWS_AT_ONCE 32 /* of a matrix, by one thread */
#define CODE_BITS 8     /* of a quantized matrix with LoRAs; docs/lora.md */

/* ---- Rows ------------------------------------------------------------------------------------ */

static size_t row_bytes(const nn_weight *w)
{
    return w->bits ? (size_t)w->n[1] * (size_t)w->bits / 8 : (size_t)w->n[1] * dtype_size(w->type);
}

static size_t scale_bytes(const nn_weight *w)
{
    return w->bits ? (size_t)(w->n[1] / w->group) * dtype_size(w->type) : 0;
}

static void decode_row(float *out, const nn_weight *w, int64_t row)
{
    const size_t columns = (size_t)w->n[1], at = (size_t)row * scale_bytes(w);
    const char *data = (const char *)w->data + (size_t)row * row_bytes(w);
    if (w->bits) {
        affine_decode(out, data, w->bits, w->group, (const char *)w->scales + at,
                      (const char *)w->biases + at, w->type, 0, w->n[1]);
        return;
    }
    dtype_to_float(out, data, w->type, columns);
    for (size_t i = 0; w->factor != 0 && i < columns; i++)
        out[i] *= w->factor;
}

/* data, scales and biases of w are memory of ours. */
static void encode_row(const nn_weight *w, int64_t row, const float *in)
{
    const size_t at = (size_t)row * scale_bytes(w);
    char *data = (char *)w->data + (size_t)row * row_bytes(w);
    if (w->bits)
        affine_encode(data, (char *)w->scales + at, (char *)w->biases + at, w->type, in, w->n[1],
                      w->bits, w->group);
    else
        dtype_from_float(data, in, w->type, (size_t)w->n[1]);
}

/* ---- A matrix -------------------------------------------------------------------------------- */

typedef struct filling {
    const bound_matrix *m;
    const lora_product *product; /* NULL: nothing is added */
    float *numbers;              /* ROWS_AT_ONCE rows for each worker */
    atomic_bool overflow;
} filling;

static void fill_rows(void *user, int64_t index, int worker)
{
    filling *f = user;
    const nn_weight *from = &f->m->from, *to = &f->m->to;
    const int64_t columns = from->n[1], first = index * ROWS_AT_ONCE, left = from->n[0] - first;
    const int64_t count = left < ROWS_AT_ONCE ? left : ROWS_AT_ONCE;
    float *numbers = f->numbers + (int64_t)worker * ROWS_AT_ONCE * columns;
    for (int64_t i = 0; i < count; i++)
        decode_row(numbers + i * columns, from, first + i);
    if (f->product) {
        lora_product_add(f->product, first, count, numbers);
        if (!lora_in_range(numbers, count * columns, to->type))
            atomic_store(&f->overflow, true);
    }
    for (int64_t i = 0; i < count; i++)
        encode_row(to, first + i, numbers + i * columns);
}

static ct_status fill(const bound_matrix *m, const load_options *options, ct_error *error)
{
    const ct_allocator *a = options->allocator;
    const size_t workers = options->threads ? (size_t)pool_threads(options->threads) : 1;
    const int64_t blocks = (m->from.n[0] + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    filling f = {.m = m};
    lora_product product = {.allocator = a};
    ct_status status = CT_OK;
    size_t row = 0;
    if (size_mul((size_t)m->from.n[1], ROWS_AT_ONCE * sizeof(float), &row))
        f.numbers = mem_array(a, workers, row);
    if (!f.numbers)
        return error_memory(error, row, "the rows of a matrix");
    if (m->target) {
        status = lora_product_open(&product, a, m->target, error);
        f.product = &product;
    }
    if (status == CT_OK) {
        if (options->threads)
            pool_run(options->threads, blocks, fill_rows, &f);
        for (int64_t i = 0; !options->threads && i < blocks; i++)
            fill_rows(&f, i, 0);
        if (atomic_load(&f.overflow))
            status = error_set(error, CT_EFORMAT,
                               "%s: with the LoRA tensor %s has numbers beyond the range of %s; "
                               "choose a smaller scale",
                               weights_source(m->source), m->from.name, dtype_name(m->to.type));
    }
    if (m->target)
        lora_product_close(&product);
    mem_free(a, f.numbers);
    weights_drop(m->source, m->from.data, (size_t)m->from.n[0] * row_bytes(&m->from));
    return status;
}

/* Memory for the matrix in the format that it will have. */
static ct_status allocate(bound_matrix *m, bool dequantize, size_t *bytes, ct_error *error)
{
    const nn_weight *from = &m->from;
    nn_weight *to = &m->to;
    const bool number = from->type == DTYPE_F32 || from->type == DTYPE_F16;
    const bool codes = from->bits && !dequantize;
    *to = *from;
    to->factor = 0;
    to->bits = codes ? CODE_BITS : 0;
    to->group = codes ? from->group : 0;
    to->type = codes || (number && !from->bits) ? from->type : DTYPE_BF16;
    to->scales = to->biases = NULL;
    size_t data, scales, all = 0;
    char *memory = NULL;
    if (size_mul((size_t)to->n[0], row_bytes(to), &data) &&
        size_mul((size_t)to->n[0], 2 * scale_bytes(to), &scales) && size_add(data, scales, &all))
        memory = weights_allocate(m->source, all);
    if (!memory)
        return error_memory(error, all, from->name);
    to->data = memory;
    if (codes) {
        to->scales = memory + data;
        to->biases = memory + data + scales / 2;
    }
    *bytes = all;
    return CT_OK;
}

static ct_status keep(bind_memory *memory, const bound_matrix *m, const load_options *options,
                      ct_error *error)
{
    if (memory->count == memory->capacity) {
        const size_t more = memory->capacity ? 2 * memory->capacity : 64;
        bound_matrix *list = mem_grow(options->allocator, memory->list,
                                      memory->count * sizeof *list, more * sizeof *list);
        if (!list)
            return error_memory(error, more * sizeof *list, "the list of matrices");
        memory->list = list;
        memory->capacity = more;
    }
    memory->list[memory->count++] = *m;
    return CT_OK;
}

ct_status bind_in_memory(const binder *b, const char *name, const weight_view *v, nn_weight *w)
{
    bind_memory *memory = b->options->memory;
    bound_matrix m = {.from = *w, .source = b->source};
    ct_status status = CT_OK;
    if (memory && memory->lora)
        status = lora_match(memory->lora, name, v, w->n[0], w->n[1], &m.target, b->error);
    const bool packed = w->bits || dtype_size(w->type) == 1;
    if (status != CT_OK || (!m.target && !(b->options->dequantize && packed)))
        return status;
    size_t bytes = 0;
    status = allocate(&m, b->options->dequantize, &bytes, b->error);
    if (status != CT_OK)
        return status;
    *w = m.to;
    if (!memory)
        return fill(&m, b->options, b->error);
    memory->bytes += bytes;
    return keep(memory, &m, b->options, b->error);
}

/* ---- All of them ----------------------------------------------------------------------------- */

ct_status bind_memory_fill(const bind_memory *memory, const load_options *options, ct_error *error)
{
    const uint64_t available = memory_available();
    ct_status status = CT_OK;
    if (memory->lora && memory->bytes > available)
        return error_set(error, CT_ENOMEM,
                         "the weights that the LoRAs change take %.2f GiB of memory, of which %.2f "
                         "GiB are available; \"calotype quantize --lora\" writes a model with the "
                         "LoRAs in it, whose weights can come and go block by block",
                         (double)memory->bytes / 1073741824, (double)available / 1073741824);
    for (size_t i = 0; status == CT_OK && i < memory->count; i++)
        status = fill(&memory->list[i], options, error);
    return status;
}

void bind_memory_free(bind_memory *memory, const ct_allocator *a)
{
    mem_free(a, memory->list);
    *memory = (bind_memory){0};
}
