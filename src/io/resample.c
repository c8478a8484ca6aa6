/* Separable: rows, then columns, or the other way round; rounded to bytes between. Weights are
 * fixed-point numbers with 22 bits behind the point, rounded half away from zero. */
#include "io/resample.h"

#include "core/mem.h"

#include <math.h>

#define LANCZOS_SUPPORT 3.0
#define BICUBIC_SUPPORT 2.0
#define BITS 22 /* 32 - 8 - 2 */

static double sinc(double x)
{
    const double pi = 3.14159265358979323846;
    return x == 0 ? 1 : sin(pi * x) / (pi * x);
}

static double lanczos(double x)
{
    return x >= -LANCZOS_SUPPORT && x < LANCZOS_SUPPORT ? sinc(x) * sinc(x / LANCZOS_SUPPORT) : 0;
}

static double bicubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < BICUBIC_SUPPORT ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

typedef struct shape {
    double support;
    double (*weight)(double x);
} shape;

/* What each new pixel along an axis is made of. */
typedef struct filter {
    int taps;       /* at most */
    int *first;     /* [new]: the first old pixel */
    int *count;     /* [new] */
    int32_t *taken; /* [new][taps]: weights */
} filter;

static void filter_free(const ct_allocator *a, filter *f)
{
    mem_free(a, f->first);
    mem_free(a, f->count);
    mem_free(a, f->taken);
}

static int32_t fixed(double weight)
{
    const double scaled = weight * (1 << BITS);
    return (int32_t)(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
}

/* What was taken before a failure is left for filter_free. */
static ct_status filter_create(filter *f, const ct_allocator *a, const shape *s, int old, int new,
                               ct_error *error)
{
    const double scale = (double)old / new, stretch = scale > 1 ? scale : 1;
    const double support = s->support * stretch;
    *f = (filter){.taps = (int)ceil(support) * 2 + 1};
    f->first = mem_array(a, (size_t) new, sizeof *f->first);
    f->count = mem_array(a, (size_t) new, sizeof *f->count);
    f->taken = mem_array(a, (size_t) new *(size_t)f->taps, sizeof *f->taken);
    double *weights = mem_array(a, (size_t)f->taps, sizeof *weights);
    if (!f->first || !f->count || !f->taken || !weights) {
        mem_free(a, weights);
        return error_memory(error, (size_t) new *(size_t)f->taps * sizeof *f->taken,
                            "the weights of a filter");
    }
    for (int i = 0; i < new; i++) {
        const double center = (i + 0.5) * scale;
        int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
        first = first > 0 ? first : 0;
        end = end < old ? end : old;
        double sum = 0;
        for (int k = 0; k < end - first; k++)
            sum += weights[k] = s->weight((k + first - center + 0.5) / stretch);
        for (int k = 0; k < end - first; k++)
            f->taken[i * f->taps + k] = fixed(sum != 0 ? weights[k] / sum : weights[k]);
        f->first[i] = first;
        f->count[i] = end - first;
    }
    mem_free(a, weights);
    return CT_OK;
}

static uint8_t to_byte(int64_t sum)
{
    const int64_t value = sum >> BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

/* One new pixel of each channel; the old ones are `step` bytes apart. */
static void mix(const filter *f, int at, uint8_t *out, const uint8_t *in, size_t step)
{
    const int32_t *weights = f->taken + (size_t)at * (size_t)f->taps;
    const uint8_t *from = in + (size_t)f->first[at] * step;
    int64_t sum[3];
    for (int c = 0; c < 3; c++)
        sum[c] = 1 << (BITS - 1);
    for (int k = 0; k < f->count[at]; k++, from += step)
        for (int c = 0; c < 3; c++)
            sum[c] += (int64_t)weights[k] * from[c];
    for (int c = 0; c < 3; c++)
        out[c] = to_byte(sum[c]);
}

/* out [height][new_width] of in [height][width]. */
static void resample_rows(const filter *f, uint8_t *out, const uint8_t *in, int width, int height,
                          int new_width)
{
    for (int y = 0; y < height; y++)
        for (int x = 0; x < new_width; x++)
            mix(f, x, out + 3 * ((size_t)y * (size_t)new_width + (size_t)x),
                in + 3 * (size_t)y * (size_t)width, 3);
}

/* out [new_height][width] of in [height][width]. */
static void resample_columns(const filter *f, uint8_t *out, const uint8_t *in, int width,
                             int new_height)
{
    const size_t row = 3 * (size_t)width;
    for (int y = 0; y < new_height; y++)
        for (int x = 0; x < width; x++)
            mix(f, y, out + (size_t)y * row + 3 * (size_t)x, in + 3 * (size_t)x, row);
}

static ct_status resample(const ct_allocator *a, const shape *s, const uint8_t *rgb, int width,
                          int height, int new_width, int new_height, uint8_t **out, ct_error *error)
{
    *out = NULL;
    /* Pillow 13 begins with the columns where they lose more than twice as much as the rows; older
     * ones never do. Bytes are rounded between, so the order can be seen in some of them. */
    const bool columns_first =
        height > new_height && height - new_height > 2 * (int64_t)(width - new_width);
    const size_t between = columns_first ? (size_t)new_height : (size_t)height;
    const size_t row = 3 * (size_t)(columns_first ? width : new_width);
    filter across = {0}, down = {0};
    uint8_t *half = mem_array(a, between, row);
    uint8_t *result = mem_array(a, (size_t)new_height, 3 * (size_t)new_width);
    ct_status status = half && result ? filter_create(&across, a, s, width, new_width, error)
                                      : error_memory(error, between * row, "a picture");
    if (status == CT_OK)
        status = filter_create(&down, a, s, height, new_height, error);
    if (status == CT_OK && columns_first) {
        resample_columns(&down, half, rgb, width, new_height);
        resample_rows(&across, result, half, width, new_height, new_width);
    } else if (status == CT_OK) {
        resample_rows(&across, half, rgb, width, height, new_width);
        resample_columns(&down, result, half, new_width, new_height);
    }
    filter_free(a, &across);
    filter_free(a, &down);
    mem_free(a, half);
    if (status != CT_OK) {
        mem_free(a, result);
        return status;
    }
    *out = result;
    return CT_OK;
}

ct_status resample_lanczos(const ct_allocator *a, const uint8_t *rgb, int width, int height,
                           int new_width, int new_height, uint8_t **out, ct_error *error)
{
    const shape w = {LANCZOS_SUPPORT, lanczos};
    return resample(a, &w, rgb, width, height, new_width, new_height, out, error);
}

ct_status resample_bicubic(const ct_allocator *a, const uint8_t *rgb, int width, int height,
                           int new_width, int new_height, uint8_t **out, ct_error *error)
{
    const shape w = {BICUBIC_SUPPORT, bicubic};
    return resample(a, &w, rgb, width, height, new_width, new_height, out, error);
}
