#include "nn/cpu/operand.h"

#include "core/mem.h"

#include <string.h>

/* Words of a row that are encoded at once, so that those of a panel stay in the first-level
 * cache. */
#define CHUNK 256
/* Larger blocks spread an outlier over more numbers and cost little more; 256 divides the widths of
 * all models. */
#define MAX_ROTATION 256
#define MIN_ROTATION 16

int64_t product_per_word(const product *p)
{
    return p->gemm->element == GEMM_FLOAT32 ? 1 : p->gemm->element == GEMM_INT8 ? 4 : 2;
}

/* The largest power of two, within limits, that divides k. */
static int64_t rotation_order(int64_t k)
{
    int64_t order = MAX_ROTATION;
    while (order > 1 && k % order)
        order /= 2;
    return order >= MIN_ROTATION ? order : 0;
}

product product_choose(const nn *c, int64_t k, const nn_weight *w)
{
    const cpu_kernels *kernels = c->params.kernels;
    product p = {.kernels = kernels, .k = k, .gemm = kernels->gemm[CPU_F32]};
    nn_precision precision = c->params.precision;
    if (precision == NN_INT8 && !(w && w->sensitive)) {
        p.gemm = kernels->gemm[CPU_INT8];
        p.rotation = w && w->outliers ? rotation_order(k) : 0;
    } else if (precision != NN_F32) {
        p.round = !kernels->gemm[CPU_BF16];
        if (!p.round)
            p.gemm = kernels->gemm[CPU_BF16];
    }
    p.words = round_up(ceil_div(k, product_per_word(&p)), p.gemm->step);
    p.slice = min64(p.gemm->block_words, p.words);
    return p;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static int64_t padded_rows(const product *p, int64_t m)
{
    return round_up(m, p->gemm->mr);
}

size_t operand_bytes(const product *p, int64_t m)
{
    size_t rows = (size_t)padded_rows(p, m);
    return rows * (size_t)p->words * 4 + (p->gemm->compute == CPU_INT8 ? rows * 8 : 0);
}

operand operand_at(const product *p, int64_t m, void *memory)
{
    size_t rows = (size_t)padded_rows(p, m);
    operand o = {.panels = memory, .rows = (int64_t)rows};
    if (memory && p->gemm->compute == CPU_INT8) {
        o.scales = (float *)(void *)(o.panels + rows * (size_t)p->words * 4);
        o.sums = (int32_t *)(void *)(o.scales + rows);
    }
    return o;
}

/* Encoded rows: whole ones for CPU_INT8, whose scale must be known first, else a chunk of each. */
static int64_t encoded_words(const product *p)
{
    return p->gemm->compute == CPU_INT8 ? p->words : min64(CHUNK, p->words);
}

size_t operand_scratch(const product *p)
{
    int64_t most = p->gemm->mr > p->gemm->nr ? p->gemm->mr : p->gemm->nr;
    size_t bytes = (size_t)(most * encoded_words(p) * 4) + (size_t)p->k * sizeof(float);
    return (bytes + MEM_PAD + 63) / 64 * 64;
}

/* ---- Encoding -------------------------------------------------------------------------------- */

/* n floats to words of out, zeros behind them. For CPU_INT8 times inverse, and returns the sum. */
static int32_t encode(const product *p, char *out, const float *x, int64_t n, int64_t words,
                      float inverse, bool columns)
{
    const cpu_kernels *kernels = p->kernels;
    int64_t size = 4 / product_per_word(p);
    int32_t sum = 0;
    switch (p->gemm->element) {
    case GEMM_FLOAT32:
        if (p->round)
            kernels->round_bf16((float *)(void *)out, x, n);
        else
            memcpy(out, x, (size_t)n * 4);
        break;
    case GEMM_BFLOAT16: kernels->encode_bf16((uint16_t *)(void *)out, x, n); break;
    case GEMM_INT8:
        sum = columns && p->gemm->offset_columns
                  ? kernels->encode_uint8((uint8_t *)out, x, n, inverse)
                  : kernels->encode_int8((int8_t *)out, x, n, inverse);
        break;
    case GEMM_INT16: sum = kernels->encode_int16((int16_t *)(void *)out, x, n, inverse); break;
    }
    memset(out + n * size, 0, (size_t)(words * 4 - n * size));
    return sum;
}

/* A whole row in 8 bits; x is changed. Returns its scale. */
static float encode_row(const product *p, char *out, float *x, int32_t *sum, bool columns)
{
    if (p->rotation)
        p->kernels->hadamard(x, p->k, p->rotation);
    float max = p->kernels->max_abs(x, p->k);
    /* Below the smallest normal number over 127 the inverse would overflow. */
    float inverse = max > 1e-35f ? 127 / max : 0;
    *sum = encode(p, out, x, p->k, p->words, inverse, columns);
    return max / 127;
}

/* A panel of an operand that is being written. */
typedef struct target {
    char *panels;
    int64_t total, panel;
    int width; /* rows or columns of the panel */
    void (*pack)(void *panel, const void *const *sources, int64_t words);
} target;

static target rows_target(const product *p, const operand *o, int64_t panel)
{
    return (target){o->panels, o->rows, panel, p->gemm->mr, p->gemm->pack_rows};
}

static target columns_target(const product *p, const column_panels *o, int64_t panel)
{
    return (target){o->panels, o->count, panel, p->gemm->nr, p->gemm->pack_columns};
}

/* Where word w of the panel is. */
static char *target_at(const product *p, const target *t, int64_t w)
{
    int64_t slice = w / p->slice * p->slice;
    return t->panels + product_part(p, t->total, t->panel, t->width, slice) +
           (w - slice) * t->width * 4;
}

/* Asks for the lines of a part that will be written soon. */
static void fetch_to_write(const product *p, const target *t, int64_t w, int64_t words)
{
    char *to = target_at(p, t, w);
    for (int64_t at = 0; at < words * t->width * 4; at += 64)
        __builtin_prefetch(to + at, 1, 3);
}

/* Whole encoded rows, which stand one behind the other. */
static void pack_encoded(const product *p, const target *t, const char *rows)
{
    const void *source[GEMM_MAX_NR > GEMM_MAX_MR ? GEMM_MAX_NR : GEMM_MAX_MR];
    for (int64_t w = 0; w < p->words; w += p->slice) {
        for (int i = 0; i < t->width; i++)
            source[i] = rows + (i * p->words + w) * 4;
        t->pack(target_at(p, t, w), source, min64(p->slice, p->words - w));
    }
}

/* The end of the chunk that starts at word w: within its slice. */
static int64_t chunk_end(const product *p, int64_t w)
{
    int64_t slice_end = min64((w / p->slice + 1) * p->slice, p->words);
    return min64(w + CHUNK, slice_end);
}

/* Rows that lie apart are asked for so many before they are read. */
#define ROWS_AHEAD 4

/* Rows of floats, encoded a chunk at a time, to a panel. */
static void pack_floats(const product *p, const target *t, const float *const *rows, char *scratch)
{
    const int64_t per_word = product_per_word(p), width = encoded_words(p) * 4;
    const void *encoded[GEMM_MAX_NR > GEMM_MAX_MR ? GEMM_MAX_NR : GEMM_MAX_MR];
    for (int64_t w = 0, end; w < p->words; w = end) {
        end = chunk_end(p, w);
        int64_t n = min64((end - w) * per_word, p->k - w * per_word);
        fetch_to_write(p, t, w, end - w);
        for (int i = 0; i < t->width; i++) {
            const float *from = rows[i] + w * per_word;
            cpu_fetch(rows[min64(i + ROWS_AHEAD, t->width - 1)] + w * per_word, n);
            encoded[i] = from;
            if (p->gemm->element == GEMM_FLOAT32 && !p->round && n == end - w)
                continue;
            encode(p, scratch + i * width, from, n, end - w, 1, false);
            encoded[i] = scratch + i * width;
        }
        t->pack(target_at(p, t, w), encoded, end - w);
    }
}

void operand_store_rows(const product *p, const operand *o, int64_t panel, const float *const *rows,
                        char *scratch)
{
    const int mr = p->gemm->mr;
    const target t = rows_target(p, o, panel);
    if (p->gemm->compute != CPU_INT8) {
        pack_floats(p, &t, rows, scratch);
        return;
    }
    float *row = (float *)(void *)(scratch + mr * p->words * 4);
    for (int i = 0; i < mr; i++) {
        memcpy(row, rows[i], (size_t)p->k * sizeof(float));
        o->scales[panel * mr + i] =
            encode_row(p, scratch + i * p->words * 4, row, &o->sums[panel * mr + i], false);
    }
    pack_encoded(p, &t, scratch);
}

void product_pack_floats(const product *p, const column_panels *o, int64_t panel,
                         const float *const *rows, char *scratch)
{
    const target t = columns_target(p, o, panel);
    pack_floats(p, &t, rows, scratch);
}

/* ---- Weights --------------------------------------------------------------------------------- */

/* Codes first .. first+count-1 of a row of `bits` bits each. */
static void unpack_codes(const cpu_kernels *kernels, uint8_t *codes, const unsigned char *row,
                         int bits, int64_t first, int64_t count)
{
    if (bits == 8) {
        memcpy(codes, row + first, (size_t)count);
        return;
    }
    if (bits == 4 && first % 2 == 0) {
        kernels->unpack4(codes, row + first / 2, count / 2 * 2);
        if (count % 2)
            codes[count - 1] = row[(first + count - 1) / 2] & 15;
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t bit = (first + i) * bits;
        unsigned value = row[bit / 8];
        if (bit % 8 + bits > 8)
            value |= (unsigned)row[bit / 8 + 1] << 8;
        codes[i] = (uint8_t)(value >> bit % 8 & ((1u << bits) - 1));
    }
}

static void decode_groups(const cpu_kernels *kernels, const nn_weight *w, int64_t row,
                          int64_t first, int64_t count, float *out)
{
    enum { PART = 1024 };
    uint8_t codes[PART];
    const int64_t k = w->n[1], groups = k / w->group, size = (int64_t)dtype_size(w->type);
    const unsigned char *packed = (const unsigned char *)w->data + row * (k * w->bits / 8);
    for (int64_t at = first; at < first + count;) {
        int64_t n = min64(PART, first + count - at);
        unpack_codes(kernels, codes, packed, w->bits, at, n);
        for (int64_t i = 0; i < n;) {
            int64_t group = (at + i) / w->group, end = min64(n, (group + 1) * w->group - at);
            int64_t offset = (row * groups + group) * size;
            float scale, bias;
            dtype_to_float(&scale, (const char *)w->scales + offset, w->type, 1);
            dtype_to_float(&bias, (const char *)w->biases + offset, w->type, 1);
            kernels->decode_codes(out + (at - first) + i, codes + i, end - i, scale, bias);
            i = end;
        }
        at += n;
    }
}

void weight_decode(const cpu_kernels *kernels, const nn_weight *w, int64_t row, int64_t first,
                   int64_t count, float *out)
{
    if (w->bits) {
        decode_groups(kernels, w, row, first, count, out);
        return;
    }
    int64_t width = 1;
    for (int i = 1; i < w->rank; i++)
        width *= w->n[i];
    const char *at = (const char *)w->data + (row * width + first) * (int64_t)dtype_size(w->type);
    kernels->decode(out, at, w->type, count, w->factor != 0 ? w->factor : 1);
}

/* Whether words of the row can be taken from the file as they are. */
static bool taken_as_it_is(const product *p, const nn_weight *w)
{
    if (w->bits || (w->factor != 0 && w->factor != 1) || (uintptr_t)w->data % 4)
        return false;
    if (p->gemm->element == GEMM_FLOAT32)
        return w->type == DTYPE_F32 && !p->round;
    return p->gemm->element == GEMM_BFLOAT16 && w->type == DTYPE_BF16 && p->k % 2 == 0;
}

void product_pack_int8(const product *p, const column_panels *o, int64_t panel, const nn_weight *w,
                       int64_t first, int64_t count, char *scratch)
{
    const int nr = p->gemm->nr;
    const int64_t width = p->words * 4;
    const target t = columns_target(p, o, panel);
    float *row = (float *)(void *)(scratch + nr * width), *scales = o->scales + panel * nr;
    for (int64_t i = 0; i < count; i++) {
        int32_t sum;
        weight_decode(p->kernels, w, first + i, 0, p->k, row);
        scales[i] = encode_row(p, scratch + i * width, row, &sum, true);
    }
    for (int64_t i = count; i < nr; i++)
        scales[i] = 0;
    memset(scratch + count * width, 0, (size_t)((nr - count) * width));
    pack_encoded(p, &t, scratch);
}

void product_fetch_slice(const product *p, const nn_weight *w, int64_t row, int64_t slice)
{
    const int64_t bits = w->bits ? w->bits : 8 * (int64_t)dtype_size(w->type);
    const int64_t first = slice * product_per_word(p);
    const int64_t count = min64(p->slice * product_per_word(p), p->k - first);
    const char *from = (const char *)w->data + (row * p->k + first) * bits / 8;
    for (int64_t byte = 0; byte < count * bits / 8; byte += 64)
        __builtin_prefetch(from + byte, 0, 2);
}

void product_pack_slice(const product *p, char *panel, const nn_weight *w, int64_t first,
                        int64_t count, int64_t slice, char *scratch)
{
    const int nr = p->gemm->nr;
    const int64_t per_word = product_per_word(p), width = encoded_words(p) * 4;
    const int64_t last = min64(slice + p->slice, p->words);
    const bool direct = taken_as_it_is(p, w);
    const void *encoded[GEMM_MAX_NR];
    float *row = (float *)(void *)(scratch + nr * width);
    for (int i = 0; i < nr; i++)
        encoded[i] = scratch + i * width;
    memset(scratch + count * width, 0, (size_t)((nr - count) * width));
    for (int64_t at = slice, end; at < last; at = end) {
        end = min64(at + CHUNK, last);
        int64_t n = min64((end - at) * per_word, p->k - at * per_word);
        for (int64_t i = 0; i < count; i++) {
            if (direct && n == (end - at) * per_word) {
                const char *from = (const char *)w->data + ((first + i) * p->k / per_word + at) * 4;
                encoded[i] = from;
                continue;
            }
            weight_decode(p->kernels, w, first + i, at * per_word, n, row);
            encode(p, scratch + i * width, row, n, end - at, 1, true);
            encoded[i] = scratch + i * width;
        }
        p->gemm->pack_columns(panel + (at - slice) * nr * 4, encoded, end - at);
    }
}
