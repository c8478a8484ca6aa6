#include "pipeline/merging.h"

#include "core/mem.h"

#define AT_ONCE 32 /* rows, by one thread */

ct_status merging_open(merging *m, const ct_allocator *a, const weight_view *from,
                       const lora_target *target, size_t rows, ct_error *error)
{
    *m = (merging){.from = from, .product.allocator = a};
    if (!target)
        return CT_OK;
    const size_t row = (size_t)from->shape[1] * sizeof(float);
    m->numbers = mem_array(a, rows, row);
    if (!m->numbers)
        return error_memory(error, row, "the rows of a matrix");
    return lora_product_open(&m->product, a, target, error);
}

void merging_close(merging *m)
{
    mem_free(m->product.allocator, m->numbers);
    lora_product_close(&m->product);
    m->numbers = NULL;
}

static void merge_rows(void *user, int64_t index, int worker)
{
    (void)worker;
    const merging *m = user;
    const int64_t columns = m->from->shape[1], at = index * AT_ONCE, left = m->count - at;
    const int64_t count = left < AT_ONCE ? left : AT_ONCE;
    const size_t row = (size_t)columns * dtype_size(m->from->type);
    float *numbers = m->numbers + at * columns;
    dtype_to_float(numbers, m->from->data + (size_t)(m->first + at) * row, m->from->type,
                   (size_t)(count * columns));
    lora_product_add(&m->product, m->first + at, count, numbers);
}

void merging_run(merging *m, pool *threads, int64_t first, int64_t count)
{
    m->first = first;
    m->count = count;
    pool_run(threads, (count + AT_ONCE - 1) / AT_ONCE, merge_rows, m);
}
