/* The tensors of a model that is quantized, from their mapped files to their places in the new
 * ones. */
#include "pipeline/quantize.h"

#include "core/affine.h"
#include "core/clock.h"
#include "core/mem.h"
#include "pipeline/merging.h"

#include <math.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)4 << 20) /* of a tensor that are in memory at once, about */

static ct_status check_cancel(const quantize_work *w, ct_error *error)
{
    const ct_callbacks *c = &w->context->callbacks;
    return c->cancel && c->cancel(c->user) ? error_set(error, CT_ECANCELLED, "cancelled") : CT_OK;
}

uint64_t quantize_item_bytes(const quantize_work *w, const quantize_item *i)
{
    const weight_view *v = i->from;
    if (i->action != QUANTIZE_CODES)
        return v->bytes;
    const uint64_t rows = (uint64_t)v->shape[0], columns = (uint64_t)v->shape[1];
    return rows * columns * (uint64_t)w->bits / 8 +
           2 * rows * (columns / (uint64_t)w->group) * dtype_size(v->type);
}

/* ---- A matrix ------------------------------------------------------------------------------ */

/* Rows first .. of a matrix; [rows] or one for each worker. */
typedef struct encoding {
    const weight_view *from;
    merging merging; /* numbers NULL: nothing is added */
    int64_t first, columns, group;
    int bits;
    size_t row_bytes, scale_bytes; /* of codes, and of scales or biases, in a row */
    unsigned char *codes, *scales, *biases;
    float *numbers;       /* two rows for each worker */
    double *error, *norm; /* sums of squares of each row */
} encoding;

static void encode_row(void *user, int64_t index, int worker)
{
    const encoding *e = user;
    const weight_view *v = e->from;
    const size_t columns = (size_t)e->columns, row = (size_t)index;
    float *in = e->numbers + 2 * columns * (size_t)worker, *back = in + columns;
    unsigned char *codes = e->codes + row * e->row_bytes;
    unsigned char *scales = e->scales + row * e->scale_bytes;
    unsigned char *biases = e->biases + row * e->scale_bytes;
    if (e->merging.numbers)
        memcpy(in, e->merging.numbers + row * columns, columns * sizeof *in);
    else
        dtype_to_float(in, v->data + (size_t)(e->first + index) * columns * dtype_size(v->type),
                       v->type, columns);
    affine_encode(codes, scales, biases, v->type, in, e->columns, e->bits, e->group);
    affine_decode(back, codes, e->bits, e->group, scales, biases, v->type, 0, e->columns);
    double error = 0, norm = 0;
    for (size_t i = 0; i < columns; i++) {
        const double difference = (double)back[i] - (double)in[i];
        error += difference * difference;
        norm += (double)in[i] * (double)in[i];
    }
    e->error[index] = error;
    e->norm[index] = norm;
}

void quantize_beside(char out[NAMES_LENGTH], const char *weight, const char *last)
{
    snprintf(out, NAMES_LENGTH, "%.*s%s", (int)(strlen(weight) - strlen("weight")), weight, last);
}

/* rows of codes, scales and biases to their places. */
static ct_status put_rows(safetensors_writer *out, const quantize_item *t, const encoding *e,
                          size_t rows, ct_error *error)
{
    char scales[NAMES_LENGTH], biases[NAMES_LENGTH];
    const size_t first = (size_t)e->first;
    quantize_beside(scales, t->name, "scales");
    quantize_beside(biases, t->name, "biases");
    ct_status status = safetensors_writer_put(out, t->name, first * e->row_bytes, e->codes,
                                              rows * e->row_bytes, error);
    if (status == CT_OK)
        status = safetensors_writer_put(out, scales, first * e->scale_bytes, e->scales,
                                        rows * e->scale_bytes, error);
    if (status == CT_OK)
        status = safetensors_writer_put(out, biases, first * e->scale_bytes, e->biases,
                                        rows * e->scale_bytes, error);
    return status;
}

static ct_status encode_blocks(quantize_work *w, encoding *e, quantize_item *t, int64_t block,
                               safetensors_writer *out, ct_error *error)
{
    const int64_t rows = t->from->shape[0];
    double error_sum = 0, norm_sum = 0;
    for (e->first = 0; e->first < rows; e->first += block) {
        const int64_t count = rows - e->first < block ? rows - e->first : block;
        ct_status status = check_cancel(w, error);
        if (status != CT_OK)
            return status;
        if (t->target)
            merging_run(&e->merging, w->context->threads, e->first, count);
        pool_run(w->context->threads, count, encode_row, e);
        for (int64_t i = 0; i < count; i++) {
            error_sum += e->error[i];
            norm_sum += e->norm[i];
        }
        if (!isfinite(error_sum) || !isfinite(norm_sum))
            return error_set(error, CT_EFORMAT,
                             "tensor %s holds NaN or infinity and cannot be quantized",
                             t->from->name);
        status = put_rows(out, t, e, (size_t)count, error);
        if (status != CT_OK)
            return status;
        const size_t row = (size_t)e->columns * dtype_size(t->from->type);
        weights_drop(t->source, t->from->data + (size_t)e->first * row, (size_t)count * row);
    }
    t->relative_l2 = norm_sum > 0 ? sqrt(error_sum / norm_sum) : 0;
    w->error_sum += error_sum;
    w->norm_sum += norm_sum;
    return CT_OK;
}

static ct_status write_codes(quantize_work *w, quantize_item *t, safetensors_writer *out,
                             ct_error *error)
{
    const weight_view *v = t->from;
    const ct_allocator *a = w->allocator;
    encoding e = {.from = v,
                  .merging.product.allocator = a,
                  .columns = v->shape[1],
                  .group = w->group,
                  .bits = w->bits};
    const size_t columns = (size_t)e.columns, row = columns * sizeof(float);
    const size_t rows = row < BLOCK_BYTES ? BLOCK_BYTES / row : 1;
    const size_t workers = (size_t)pool_threads(w->context->threads);
    e.row_bytes = columns * (size_t)w->bits / 8;
    e.scale_bytes = columns / (size_t)w->group * dtype_size(v->type);
    e.codes = mem_array(a, rows, e.row_bytes);
    e.scales = mem_array(a, rows, e.scale_bytes);
    e.biases = mem_array(a, rows, e.scale_bytes);
    e.numbers = mem_array(a, workers, 2 * row);
    e.error = mem_array(a, rows, sizeof *e.error);
    e.norm = mem_array(a, rows, sizeof *e.norm);
    ct_status status = e.codes && e.scales && e.biases && e.numbers && e.error && e.norm
                           ? merging_open(&e.merging, a, v, t->target, rows, error)
                           : error_memory(error, BLOCK_BYTES, "a part of a matrix");
    if (status == CT_OK)
        status = encode_blocks(w, &e, t, (int64_t)rows, out, error);
    merging_close(&e.merging);
    mem_free(a, e.codes);
    mem_free(a, e.scales);
    mem_free(a, e.biases);
    mem_free(a, e.numbers);
    mem_free(a, e.error);
    mem_free(a, e.norm);
    return status;
}

/* ---- Other tensors ------------------------------------------------------------------------- */

static ct_status write_copy(quantize_work *w, const quantize_item *t, safetensors_writer *out,
                            ct_error *error)
{
    const weight_view *v = t->from;
    for (size_t at = 0; at < v->bytes; at += BLOCK_BYTES) {
        size_t bytes = v->bytes - at < BLOCK_BYTES ? v->bytes - at : BLOCK_BYTES;
        ct_status status = check_cancel(w, error);
        if (status == CT_OK)
            status = safetensors_writer_put(out, t->name, at, v->data + at, bytes, error);
        if (status != CT_OK)
            return status;
        weights_drop(t->source, v->data + at, bytes);
    }
    return CT_OK;
}

static ct_status put_merged(quantize_work *w, const quantize_item *t, merging *m, size_t rows,
                            void *numbers, safetensors_writer *out, ct_error *error)
{
    const weight_view *v = t->from;
    const size_t row = (size_t)v->shape[1] * dtype_size(v->type), all = (size_t)v->shape[0];
    ct_status status = CT_OK;
    for (size_t first = 0, count; status == CT_OK && first < all; first += count) {
        count = all - first < rows ? all - first : rows;
        status = check_cancel(w, error);
        if (status != CT_OK)
            break;
        merging_run(m, w->context->threads, (int64_t)first, (int64_t)count);
        if (!lora_in_range(m->numbers, (int64_t)count * v->shape[1], v->type))
            return error_set(error, CT_EFORMAT,
                             "with the LoRA tensor %s has numbers beyond the range of %s; choose a "
                             "smaller scale",
                             v->name, dtype_name(v->type));
        dtype_from_float(numbers, m->numbers, v->type, count * (size_t)v->shape[1]);
        status = safetensors_writer_put(out, t->name, first * row, numbers, count * row, error);
        weights_drop(t->source, v->data + first * row, count * row);
    }
    return status;
}

/* A matrix with LoRAs that keeps its type. */
static ct_status write_merged(quantize_work *w, const quantize_item *t, safetensors_writer *out,
                              ct_error *error)
{
    const size_t row = (size_t)t->from->shape[1] * sizeof(float);
    const size_t rows = row < BLOCK_BYTES ? BLOCK_BYTES / row : 1;
    merging m;
    ct_status status = merging_open(&m, w->allocator, t->from, t->target, rows, error);
    void *numbers = status == CT_OK ? mem_array(w->allocator, rows, row) : NULL;
    if (status == CT_OK)
        status = numbers ? put_merged(w, t, &m, rows, numbers, out, error)
                         : error_memory(error, rows * row, "a part of a matrix");
    mem_free(w->allocator, numbers);
    merging_close(&m);
    return status;
}

static ct_status write_channels_last(quantize_work *w, const quantize_item *t,
                                     safetensors_writer *out, ct_error *error)
{
    const weight_view *v = t->from;
    const size_t size = dtype_size(v->type), outputs = (size_t)v->shape[0];
    const size_t in = (size_t)v->shape[1], pixels = (size_t)v->shape[2] * (size_t)v->shape[3];
    const size_t bytes = in * pixels * size; /* of one output */
    unsigned char *turned = mem_alloc(w->allocator, bytes);
    if (!turned)
        return error_memory(error, bytes, v->name);
    ct_status status = check_cancel(w, error);
    for (size_t o = 0; status == CT_OK && o < outputs; o++) {
        unsigned char *to = turned;
        for (size_t p = 0; p < pixels; p++)
            for (size_t i = 0; i < in; i++, to += size)
                memcpy(to, v->data + o * bytes + (i * pixels + p) * size, size);
        status = safetensors_writer_put(out, t->name, o * bytes, turned, bytes, error);
    }
    mem_free(w->allocator, turned);
    return status;
}

ct_status quantize_write(quantize_work *w, const quantize_part *p, quantize_item *t,
                         safetensors_writer *out, ct_error *error)
{
    ct_status status = t->action == QUANTIZE_CODES           ? write_codes(w, t, out, error)
                       : t->action == QUANTIZE_CHANNELS_LAST ? write_channels_last(w, t, out, error)
                       : t->target                           ? write_merged(w, t, out, error)
                                                             : write_copy(w, t, out, error);
    if (status != CT_OK)
        return status;
    w->done++;
    const ct_callbacks *c = &w->context->callbacks;
    const double seconds = clock_seconds() - w->began;
    if (c->progress)
        c->progress(c->user, &(ct_progress){.stage = CT_STAGE_QUANTIZE,
                                            .step = w->done,
                                            .steps = w->result.tensors,
                                            .stage_seconds = seconds,
                                            .total_seconds = seconds});
    if (!w->params->tensor)
        return CT_OK;
    const bool codes = t->action == QUANTIZE_CODES;
    char module[NAMES_LENGTH];
    snprintf(module, sizeof module, "%s", t->name);
    if (codes)
        module[strlen(module) - strlen(".weight")] = 0;
    w->params->tensor(w->params->user,
                      &(ct_quantized_tensor){.component = p->folder,
                                             .name = module,
                                             .quantized = codes,
                                             .rows = codes ? t->from->shape[0] : 0,
                                             .columns = codes ? t->from->shape[1] : 0,
                                             .bytes_before = t->from->bytes,
                                             .bytes_after = quantize_item_bytes(w, t),
                                             .relative_l2 = t->relative_l2});
    return CT_OK;
}

/* ---- What a file is told before ------------------------------------------------------------- */

ct_status quantize_declare(const quantize_work *w, const quantize_item *t, safetensors_writer *out,
                           ct_error *error)
{
    const weight_view *v = t->from;
    int64_t shape[WEIGHT_MAX_RANK];
    char name[NAMES_LENGTH];
    memcpy(shape, v->shape, sizeof shape);
    if (t->action == QUANTIZE_CHANNELS_LAST) {
        shape[1] = v->shape[2];
        shape[2] = v->shape[3];
        shape[3] = v->shape[1];
    }
    if (t->action != QUANTIZE_CODES)
        return safetensors_writer_declare(out, t->name, v->type, v->rank, shape, error);
    shape[1] = v->shape[1] * w->bits / 32;
    ct_status status = safetensors_writer_declare(out, t->name, DTYPE_U32, 2, shape, error);
    shape[1] = v->shape[1] / w->group;
    quantize_beside(name, t->name, "scales");
    if (status == CT_OK)
        status = safetensors_writer_declare(out, name, v->type, 2, shape, error);
    quantize_beside(name, t->name, "biases");
    if (status == CT_OK)
        status = safetensors_writer_declare(out, name, v->type, 2, shape, error);
    return status;
}
