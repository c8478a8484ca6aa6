/* Deflating takes most of the time that a PNG takes. As in pigz, the data are cut into bands that
 * are deflated independently: each is given the 32 KiB before it as dictionary, so that it finds
 * the matches that one stream would, and ends on a byte with an empty block (Z_SYNC_FLUSH), so that
 * the bands can be put one behind the other. Adler-32 of all follows from those of the parts.
 *
 * Filters of a row depend on pixels alone, so a task filters the rows of its dictionary once more
 * instead of waiting for its neighbour: half as much again of a small part of the work. */

#include <zlib.h>

#include "core/mem.h"
#include "io/png_stream.h"

#include <stdatomic.h>
#include <string.h>

/* The cut is by size alone, or else the bytes would depend on the number of threads. 1024 x 1024
 * pixels are 49 bands. */
#define BAND_BYTES ((size_t)64 << 10)
#define DICTIONARY_BYTES ((size_t)32 << 10) /* what deflate looks back */

/* A picture is made once and looked at often, but its file must not take as long as a step. Level 4
 * is the lowest that compares matches (lazy evaluation), which pays for short ones of a photograph.
 * 1024 x 1024 pixels on one thread of Zen 3, with bytes in parts of libpng's at level 6:
 *
 *                              libpng 6    level 6       4            3            1
 *     illustration, smooth      95 ms       70 ms 1.00    37 ms 1.05   30 ms 1.18   23 ms 1.27
 *     the same with texture    490 ms      460 ms 1.00   190 ms 1.00  130 ms 1.10   55 ms 1.13
 *     photograph               370 ms      380 ms 1.00   140 ms 1.01  110 ms 1.07   53 ms 1.11
 *     the same in grey         240 ms      200 ms 1.00    63 ms 1.15   63 ms 0.99   38 ms 1.16
 *     noise                    110 ms       79 ms 1.00    88 ms 1.00   95 ms 1.00   79 ms 1.00 */
#define LEVEL 4

#define HEADER_BYTES 2  /* of a zlib stream (RFC 1950) */
#define TRAILER_BYTES 4 /* its Adler-32 */
#define FLUSH_BYTES 16  /* an empty block takes 5; deflateBound leaves it out */
#define PIXEL 3

/* Memory: a lane takes 268 KB of zlib's, 96 KiB of filtered data and a row, a piece 64 KiB. That is
 * 0.7 MB for one thread and 21 MB for MAX_LANES. Where a row has more than 64 KiB, a lane takes
 * three of them and a piece one. */
#define MAX_LANES 32
#define PIECES_PER_LANE 4 /* so that lanes whose bands are easy take another one */

/* What one thread at a time works with. */
typedef struct lane {
    z_stream z;
    bool initialised;
    uint8_t *filtered;  /* rows of the dictionary, then of the band */
    uint8_t *candidate; /* a row: the filter being tried */
} lane;

typedef struct piece {
    uint8_t *data;
    size_t size;
    uLong adler;   /* of the filtered data */
    size_t length; /* of the filtered data */
    bool failed;
} piece;

struct png_stream {
    const ct_allocator *allocator;
    pool *threads;
    const uint8_t *rgb;
    uint8_t *zeros; /* what is above the first row */
    size_t height;
    size_t row_bytes;             /* of pixels; a filtered row has one more, its filter */
    size_t band_rows, above_rows; /* above: those which hold the dictionary */
    size_t bands;
    size_t capacity; /* of a piece */
    int lane_count;
    lane *lanes;
    size_t piece_count;
    piece *pieces;
    size_t first, end; /* the bands that are in the pieces */
    size_t given;      /* bands that the caller has got */
    uLong adler;       /* of those before given */
    atomic_size_t next;
};

/* ---- Filters (PNG specification, 9.2) ---- */

enum { FILTER_SUB = 1, FILTER_UP, FILTER_AVERAGE, FILTER_PAETH };

static void filter_sub(uint8_t *restrict out, const uint8_t *restrict row, size_t n)
{
    memcpy(out, row, PIXEL);
    for (size_t i = PIXEL; i < n; i++)
        out[i] = (uint8_t)(row[i] - row[i - PIXEL]);
}

static void filter_up(uint8_t *restrict out, const uint8_t *restrict row,
                      const uint8_t *restrict above, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)(row[i] - above[i]);
}

static void filter_average(uint8_t *restrict out, const uint8_t *restrict row,
                           const uint8_t *restrict above, size_t n)
{
    for (size_t i = 0; i < PIXEL; i++)
        out[i] = (uint8_t)(row[i] - above[i] / 2);
    for (size_t i = PIXEL; i < n; i++)
        out[i] = (uint8_t)(row[i] - (uint8_t)((row[i - PIXEL] + above[i]) >> 1));
}

/* With p = a + b - c: the one of a, b, c that is nearest to p; of equals the first. 16 bits hold
 * all of it, and make vectors of twice as many. */
static void filter_paeth(uint8_t *restrict out, const uint8_t *restrict row,
                         const uint8_t *restrict above, size_t n)
{
    filter_up(out, row, above, PIXEL);
    for (size_t i = PIXEL; i < n; i++) {
        int16_t a = row[i - PIXEL], b = above[i], c = above[i - PIXEL];
        int16_t pa = (int16_t)(b - c), pb = (int16_t)(a - c), pc = (int16_t)(pa + pb);
        pa = (int16_t)(pa < 0 ? -pa : pa);
        pb = (int16_t)(pb < 0 ? -pb : pb);
        pc = (int16_t)(pc < 0 ? -pc : pc);
        int16_t best = pb <= pc ? b : c;
        int16_t least = pb <= pc ? pb : pc;
        best = pa <= least ? a : best;
        out[i] = (uint8_t)(row[i] - best);
    }
}

/* The sum of the bytes' absolute values as signed numbers: the usual guess at how well a filtered
 * row deflates (PNG specification, 12.7). */
static uint64_t row_cost(const uint8_t *p, size_t n)
{
    uint64_t total = 0;
    while (n) {
        size_t part = n < 1 << 16 ? n : 1 << 16;
        uint32_t sum = 0;
        for (size_t i = 0; i < part; i++) {
            uint8_t minus = (uint8_t)-p[i];
            sum += p[i] < minus ? p[i] : minus;
        }
        total += sum;
        p += part;
        n -= part;
    }
    return total;
}

/* A filtered row into out, its filter first. candidate is a row for what is tried. */
static void filter_row(uint8_t *out, uint8_t *candidate, const uint8_t *row, const uint8_t *above,
                       size_t n)
{
    uint64_t least = UINT64_MAX;
    for (int filter = FILTER_SUB; filter <= FILTER_PAETH; filter++) {
        if (filter == FILTER_SUB)
            filter_sub(candidate, row, n);
        else if (filter == FILTER_UP)
            filter_up(candidate, row, above, n);
        else if (filter == FILTER_AVERAGE)
            filter_average(candidate, row, above, n);
        else
            filter_paeth(candidate, row, above, n);
        uint64_t cost = row_cost(candidate, n);
        if (cost >= least)
            continue;
        least = cost;
        out[0] = (uint8_t)filter;
        memcpy(out + 1, candidate, n);
    }
}

/* ---- Bands ---- */

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Raw deflate of in, with the dictionary before it. false if zlib fails. */
static bool deflate_band(z_stream *z, piece *p, uint8_t *in, size_t dictionary, size_t capacity,
                         bool last)
{
    if (deflateReset(z) != Z_OK ||
        (dictionary && deflateSetDictionary(z, in - dictionary, (uInt)dictionary) != Z_OK))
        return false;
    z->next_in = in;
    z->avail_in = (uInt)p->length;
    z->next_out = p->data + p->size;
    z->avail_out = (uInt)(capacity - p->size);
    int status = deflate(z, last ? Z_FINISH : Z_SYNC_FLUSH);
    /* A full buffer would mean that there is more to come. */
    if (status != (last ? Z_STREAM_END : Z_OK) || z->avail_in || !z->avail_out)
        return false;
    p->size = capacity - z->avail_out;
    return true;
}

static void make_band(const png_stream *s, lane *l, piece *p, size_t band)
{
    size_t n = s->row_bytes, first = band * s->band_rows;
    size_t start = first < s->above_rows ? 0 : first - s->above_rows;
    size_t end = smaller(first + s->band_rows, s->height);
    uint8_t *out = l->filtered;
    for (size_t y = start; y < end; y++, out += n + 1) {
        const uint8_t *row = s->rgb + y * n;
        filter_row(out, l->candidate, row, y ? row - n : s->zeros, n);
    }
    size_t before = (first - start) * (n + 1);
    uint8_t *in = l->filtered + before;
    p->length = (end - first) * (n + 1);
    p->adler = adler32_z(adler32_z(0, NULL, 0), in, p->length);
    p->size = band ? 0 : HEADER_BYTES;
    p->failed = !deflate_band(&l->z, p, in, smaller(before, DICTIONARY_BYTES),
                              s->capacity - TRAILER_BYTES, band + 1 == s->bands);
}

static void run_lane(void *user, int64_t index, int worker)
{
    (void)worker;
    png_stream *s = user;
    for (;;) {
        size_t band = atomic_fetch_add_explicit(&s->next, 1, memory_order_relaxed);
        if (band >= s->end)
            return;
        make_band(s, &s->lanes[index], &s->pieces[band - s->first], band);
    }
}

/* The next bands into the pieces. */
static void make_pieces(png_stream *s)
{
    s->first = s->end;
    s->end = smaller(s->first + s->piece_count, s->bands);
    atomic_store(&s->next, s->first);
    if (s->threads)
        pool_run(s->threads, s->lane_count, run_lane, s);
    else
        run_lane(s, 0, 0);
}

bool png_stream_next(png_stream *s, const uint8_t **data, size_t *size)
{
    *data = NULL;
    *size = 0;
    if (s->given == s->bands)
        return true;
    if (s->given == s->end)
        make_pieces(s);
    piece *p = &s->pieces[s->given - s->first];
    if (p->failed)
        return false;
    s->adler = adler32_combine(s->adler, p->adler, (z_off_t)p->length);
    if (s->given == 0) {
        /* Deflate with a window of 32 KiB at LEVEL; the 16 bits are a multiple of 31. */
        unsigned header = 0x7800 | (LEVEL < 2 ? 0 : LEVEL < 6 ? 1 : LEVEL == 6 ? 2 : 3) << 6;
        header += 31 - header % 31;
        p->data[0] = (uint8_t)(header >> 8);
        p->data[1] = (uint8_t)header;
    }
    s->given++;
    if (s->given == s->bands)
        for (int i = 0; i < TRAILER_BYTES; i++)
            p->data[p->size++] = (uint8_t)(s->adler >> (24 - 8 * i));
    *data = p->data;
    *size = p->size;
    return true;
}

/* ---- Memory ---- */

static voidpf on_alloc(voidpf user, uInt count, uInt size)
{
    return mem_array(user, count, size);
}

static void on_free(voidpf user, voidpf pointer)
{
    mem_free(user, pointer);
}

static bool lane_init(lane *l, const png_stream *s)
{
    size_t rows = smaller(s->above_rows + s->band_rows, s->height);
    l->z.zalloc = on_alloc;
    l->z.zfree = on_free;
    l->z.opaque = (voidpf)(uintptr_t)s->allocator;
    /* Negative bits: no header and trailer, which are those of the whole. */
    l->initialised = deflateInit2(&l->z, LEVEL, Z_DEFLATED, -15, 8, Z_FILTERED) == Z_OK;
    l->filtered = mem_array(s->allocator, rows, s->row_bytes + 1);
    l->candidate = mem_alloc(s->allocator, s->row_bytes);
    return l->initialised && l->filtered && l->candidate;
}

/* The sizes: rows of 3 bytes for a pixel are in memory, so nothing here overflows. */
static void cut(png_stream *s)
{
    size_t bytes = s->row_bytes + 1;
    s->band_rows = BAND_BYTES < bytes ? 1 : BAND_BYTES / bytes;
    s->above_rows = (DICTIONARY_BYTES + bytes - 1) / bytes;
    s->bands = (s->height + s->band_rows - 1) / s->band_rows;
    int threads = s->threads ? pool_threads(s->threads) : 1;
    s->lane_count = threads < MAX_LANES ? threads : MAX_LANES;
    if (s->bands < (size_t)s->lane_count)
        s->lane_count = (int)s->bands;
    s->piece_count = smaller(s->bands, (size_t)s->lane_count * PIECES_PER_LANE);
}

static bool prepare(png_stream *s)
{
    const ct_allocator *a = s->allocator;
    cut(s);
    s->zeros = mem_zero_array(a, s->row_bytes, 1);
    s->lanes = mem_zero_array(a, (size_t)s->lane_count, sizeof *s->lanes);
    s->pieces = mem_zero_array(a, s->piece_count, sizeof *s->pieces);
    if (!s->zeros || !s->lanes || !s->pieces)
        return false;
    for (int i = 0; i < s->lane_count; i++)
        if (!lane_init(&s->lanes[i], s))
            return false;
    size_t rows = smaller(s->band_rows, s->height);
    s->capacity = deflateBound(&s->lanes[0].z, (uLong)(rows * (s->row_bytes + 1))) + FLUSH_BYTES +
                  HEADER_BYTES + TRAILER_BYTES;
    for (size_t i = 0; i < s->piece_count; i++)
        if (!(s->pieces[i].data = mem_alloc(a, s->capacity)))
            return false;
    return true;
}

png_stream *png_stream_create(const ct_allocator *a, pool *threads, const uint8_t *rgb,
                              size_t width, size_t height)
{
    png_stream *s = mem_zero_array(a, 1, sizeof *s);
    if (!s)
        return NULL;
    s->allocator = a;
    s->threads = threads;
    s->rgb = rgb;
    s->height = height;
    s->row_bytes = width * PIXEL;
    s->adler = adler32(0, NULL, 0);
    atomic_init(&s->next, 0);
    if (prepare(s))
        return s;
    png_stream_free(s);
    return NULL;
}

void png_stream_free(png_stream *s)
{
    if (!s)
        return;
    const ct_allocator *a = s->allocator;
    for (int i = 0; s->lanes && i < s->lane_count; i++) {
        if (s->lanes[i].initialised)
            deflateEnd(&s->lanes[i].z);
        mem_free(a, s->lanes[i].filtered);
        mem_free(a, s->lanes[i].candidate);
    }
    for (size_t i = 0; s->pieces && i < s->piece_count; i++)
        mem_free(a, s->pieces[i].data);
    mem_free(a, s->lanes);
    mem_free(a, s->pieces);
    mem_free(a, s->zeros);
    mem_free(a, s);
}
