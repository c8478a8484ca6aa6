/* Weights on the GPU. The file stays mapped in the host's memory; a weight is read from there when
 * an operation first needs it, through pinned memory that all threads fill, and changed into the
 * form that kernels read while it lies on the GPU.
 *
 * A weight is known by its address in the host's memory and the form of the copy. */
#include "core/mem.h"
#include "nn/cuda/schedule.h"

#include <limits.h>
#include <pthread.h>
#include <string.h>

#define STAGE ((size_t)32 << 20) /* bytes of a piece of a weight on its way */
#define STAGES 3
#define CUDNN_BYTES ((uint64_t)256 << 20) /* left for its workspaces */
#define PIECE ((size_t)512 << 10)         /* what one thread copies at a time */

typedef struct entry {
    const void *key; /* NULL: free */
    int count, form;
    dtype type;
    cuda_weight at;
    size_t bytes;   /* of the GPU's memory, as the driver hands it out */
    int64_t upload; /* number of its upload */
    /* Where its next part goes, and where they must end; 0: to memory of its own. */
    cu_address place, end;
} entry;

/* Pinned memory of the host, and the same on the GPU for what must be changed there. */
typedef struct stage {
    char *host;
    cu_address device;
    cu_event done;
    bool used;
} stage;

struct cuda_store {
    cuda_gpu *gpu;
    pthread_mutex_t lock;
    entry *entries; /* open addressing; capacity is a power of two */
    size_t capacity, used, bytes;
    stage stages[STAGES];
    int next;
    cu_event uploaded; /* behind the last upload */
    int64_t uploads, generation;
    int runs; /* under way */
};

/* ---- Life ------------------------------------------------------------------------------------ */

ct_status cuda_store_create(cuda_store **out, cuda_gpu *g, ct_error *error)
{
    *out = NULL;
    cuda_store *s = mem_zero_array(g->allocator, 1, sizeof *s);
    if (!s)
        return error_memory(error, sizeof *s, "the weights on the GPU");
    if (pthread_mutex_init(&s->lock, NULL) != 0) {
        mem_free(g->allocator, s);
        return error_set(error, CT_EINTERNAL, "a lock could not be made");
    }
    s->gpu = g;
    *out = s;
    return CT_OK;
}

static void free_entry(cuda_store *s, entry *e)
{
    const cuda_driver *d = &s->gpu->driver;
    const cu_address parts[] = {e->at.data, e->at.scales, e->at.biases};
    for (int i = 0; i < 3; i++)
        if (parts[i])
            d->mem_free(parts[i]);
    s->bytes -= e->bytes;
}

void cuda_store_free(cuda_store *s)
{
    if (!s)
        return;
    const cuda_driver *d = &s->gpu->driver;
    d->context_set(s->gpu->context);
    for (size_t i = 0; i < s->capacity; i++)
        if (s->entries[i].key)
            free_entry(s, &s->entries[i]);
    for (int i = 0; i < STAGES; i++) {
        if (s->stages[i].host)
            d->host_free(s->stages[i].host);
        if (s->stages[i].device)
            d->mem_free(s->stages[i].device);
        if (s->stages[i].done)
            d->event_destroy(s->stages[i].done);
    }
    if (s->uploaded)
        d->event_destroy(s->uploaded);
    pthread_mutex_destroy(&s->lock);
    mem_free(s->gpu->allocator, s->entries);
    mem_free(s->gpu->allocator, s);
}

/* ---- The table ------------------------------------------------------------------------------- */

static bool is_entry(const entry *e, const cuda_request *r)
{
    return e->key == r->w[0]->data && e->count == r->count && e->form == (int)r->form &&
           e->type == r->type;
}

/* The entry, or the free place for it; the table is never full. */
static entry *find(const cuda_store *s, const cuda_request *r)
{
    uint64_t h = (uint64_t)(uintptr_t)r->w[0]->data * 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
    for (size_t i = (size_t)h;; i++) {
        entry *e = &s->entries[i & (s->capacity - 1)];
        if (!e->key || is_entry(e, r))
            return e;
    }
}

static void insert(cuda_store *s, const entry *e)
{
    const nn_weight w = {.data = e->key}, *const list[] = {&w};
    const cuda_request r = {list, e->count, (cuda_form)e->form, e->type};
    *find(s, &r) = *e;
}

static ct_status rebuild(cuda_store *s, size_t capacity, ct_error *error)
{
    const ct_allocator *a = s->gpu->allocator;
    entry *old = s->entries, *fresh = mem_zero_array(a, capacity, sizeof *fresh);
    const size_t count = s->capacity;
    if (!fresh)
        return error_memory(error, capacity * sizeof *fresh, "the weights on the GPU");
    s->entries = fresh;
    s->capacity = capacity;
    for (size_t i = 0; i < count; i++)
        if (old[i].key)
            insert(s, &old[i]);
    mem_free(a, old);
    return CT_OK;
}

/* Closes the gap at place i: an entry behind it that would no longer be found moves there, and
 * leaves a gap of its own. */
static void close_gap(cuda_store *s, size_t i)
{
    const size_t mask = s->capacity - 1;
    for (size_t k = (i + 1) & mask; s->entries[k].key; k = (k + 1) & mask) {
        const entry e = s->entries[k];
        s->entries[k].key = NULL;
        insert(s, &e);
    }
}

static void drop_entries(cuda_store *s, bool (*goes)(const void *user, const entry *e),
                         const void *user)
{
    s->gpu->driver.context_set(s->gpu->context);
    for (size_t i = 0; i < s->capacity;) {
        entry *e = &s->entries[i];
        if (!e->key || !goes(user, e)) {
            i++;
            continue;
        }
        free_entry(s, e);
        e->key = NULL;
        s->used--;
        s->generation++;
        close_gap(s, i); /* something else may stand here now */
    }
}

typedef struct byte_range {
    const char *begin;
    size_t bytes;
} byte_range;

static bool is_inside(const void *user, const entry *e)
{
    const byte_range *r = user;
    return (const char *)e->key >= r->begin && (const char *)e->key < r->begin + r->bytes;
}

void cuda_store_drop(cuda_store *s, const void *begin, size_t bytes)
{
    const byte_range range = {begin, bytes};
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    drop_entries(s, is_inside, &range);
    pthread_mutex_unlock(&s->lock);
}

typedef struct kept {
    const cuda_schedule *schedule;
    unsigned sections;
} kept;

static bool is_not_kept(const void *user, const entry *e)
{
    const kept *k = user;
    return !schedule_keeps(k->schedule, k->sections, e->key, e->count, e->form, e->type);
}

void cuda_store_retain(cuda_store *s, const cuda_schedule *p, unsigned sections, int runs)
{
    const kept k = {p, sections};
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    if (s->runs <= runs)
        drop_entries(s, is_not_kept, &k);
    pthread_mutex_unlock(&s->lock);
}

void cuda_store_prepare(cuda_store *s, const cuda_schedule *p, int section)
{
    if (p->list[section].keeps != UINT_MAX)
        cuda_store_retain(s, p, p->list[section].keeps, 0);
}

void cuda_store_enter(cuda_store *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->runs++;
    pthread_mutex_unlock(&s->lock);
}

void cuda_store_leave(cuda_store *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->runs--;
    pthread_mutex_unlock(&s->lock);
}

int64_t cuda_store_generation(cuda_store *s)
{
    if (!s)
        return 0;
    pthread_mutex_lock(&s->lock);
    const int64_t generation = s->generation;
    pthread_mutex_unlock(&s->lock);
    return generation;
}

size_t cuda_store_bytes(cuda_store *s)
{
    pthread_mutex_lock(&s->lock);
    size_t bytes = s->bytes;
    pthread_mutex_unlock(&s->lock);
    return bytes;
}

/* ---- On the way ------------------------------------------------------------------------------ */

typedef struct copying {
    char *to;
    const char *from;
    size_t bytes;
} copying;

static void copy_task(void *user, int64_t index, int worker)
{
    (void)worker;
    const copying *k = user;
    const size_t at = (size_t)index * PIECE;
    memcpy(k->to + at, k->from + at, k->bytes - at < PIECE ? k->bytes - at : PIECE);
}

void cuda_copy_bytes(const cuda_gpu *g, void *to, const void *from, size_t bytes)
{
    copying k = {to, from, bytes};
    pool_run(g->threads, (int64_t)((bytes + PIECE - 1) / PIECE), copy_task, &k);
}

static ct_status open_stages(cuda_store *s, ct_error *error)
{
    const cuda_driver *d = &s->gpu->driver;
    ct_status status = CT_OK;
    /* What is there from an attempt that failed is not made again. */
    for (int i = 0; i < STAGES && status == CT_OK; i++) {
        stage *g = &s->stages[i];
        void *memory = NULL;
        if (!g->done)
            status = cuda_check(d, d->event_create(&g->done, CU_EVENT_DISABLE_TIMING), "an event",
                                error);
        if (status == CT_OK && !g->device)
            status = cuda_gpu_alloc(s->gpu, &g->device, STAGE, "weights on their way", error);
        if (status == CT_OK && !g->host) {
            status = cuda_check(d, d->host_alloc(&memory, STAGE, 0), "pinned memory", error);
            g->host = status == CT_OK ? memory : NULL;
        }
    }
    if (status == CT_OK && !s->uploaded)
        status = cuda_check(d, d->event_create(&s->uploaded, CU_EVENT_DISABLE_TIMING), "an event",
                            error);
    return status;
}

/* Bytes of the host into pinned memory, and from there to `to`, or to the stage's memory on the GPU
 * where `to` is 0. The stage is in use until release_stage. */
static ct_status send(cuda_store *s, cu_stream stream, const void *from, size_t bytes,
                      cu_address to, stage **out, ct_error *error)
{
    const cuda_driver *d = &s->gpu->driver;
    stage *g = &s->stages[s->next];
    s->next = (s->next + 1) % STAGES;
    ct_status status = CT_OK;
    if (g->used)
        status = cuda_check(d, d->event_wait(g->done), "the GPU", error);
    g->used = false;
    if (status != CT_OK)
        return status;
    cuda_copy_bytes(s->gpu, g->host, from, bytes);
    *out = g;
    return cuda_check(d, d->copy_to_device(to ? to : g->device, g->host, bytes, stream),
                      "uploading weights", error);
}

static ct_status release_stage(cuda_store *s, cu_stream stream, stage *g, ct_error *error)
{
    g->used = true;
    return cuda_check(&s->gpu->driver, s->gpu->driver.event_record(g->done, stream), "an event",
                      error);
}

/* Bytes as they are. */
static ct_status send_all(cuda_store *s, cu_stream stream, const void *from, size_t bytes,
                          cu_address to, ct_error *error)
{
    ct_status status = CT_OK;
    for (size_t at = 0; at < bytes && status == CT_OK; at += STAGE) {
        stage *g = NULL;
        size_t n = bytes - at < STAGE ? bytes - at : STAGE;
        status = send(s, stream, (const char *)from + at, n, to + at, &g, error);
        if (status == CT_OK)
            status = release_stage(s, stream, g, error);
    }
    return status;
}

static int64_t row_bytes(const nn_weight *w, int64_t k)
{
    return w->bits ? k * w->bits / 8 : k * (int64_t)dtype_size(w->type);
}

/* Numbers of F32, F16, BF16 or FP8 in pieces of whole rows of k, changed by `change`, which takes
 * rows first .. first+count-1 from the stage to the copy. */
typedef struct conversion {
    nn *c;
    const nn_weight *w;
    int64_t rows, k;
    dtype type;
    cu_address to;
    void (*change)(const struct conversion *v, int64_t first, int64_t count, cu_address from);
} conversion;

static ct_status convert_rows(cuda_store *s, const conversion *v, ct_error *error)
{
    const cu_stream stream = cuda_of(v->c)->stream;
    const int64_t bytes = row_bytes(v->w, v->k);
    int64_t step = (int64_t)STAGE / bytes;
    if (step < 1)
        return error_set(error, CT_EUNSUPPORTED, "%s: rows of %lld bytes are too long", v->w->name,
                         (long long)bytes);
    ct_status status = CT_OK;
    for (int64_t row = 0; row < v->rows && status == CT_OK; row += step) {
        stage *g = NULL;
        const int64_t n = v->rows - row < step ? v->rows - row : step;
        status = send(s, stream, (const char *)v->w->data + row * bytes, (size_t)(n * bytes), 0, &g,
                      error);
        if (status != CT_OK)
            break;
        v->change(v, row, n, g->device);
        status = release_stage(s, stream, g, error);
    }
    return status;
}

static cuda_grid flat_grid(int64_t count)
{
    const int64_t blocks = (count + 1023) / 1024;
    return (cuda_grid){.x = blocks < 4096 ? blocks : 4096, .threads = 256};
}

/* The variant of a kernel that writes `type`. */
static int out_kind(dtype type)
{
    return type == DTYPE_F32 ? CUDA_FLOAT : CUDA_WORK;
}

static dtype variant(nn *c, dtype type)
{
    return type == DTYPE_F32 ? cuda_half_type(c) : type;
}

static float factor_of(const nn_weight *w)
{
    return w->factor != 0 ? w->factor : 1;
}

static void change_plain(const conversion *v, int64_t first, int64_t count, cu_address from)
{
    cu_address out = v->to + (uint64_t)(first * v->k) * dtype_size(v->type);
    int kind = out_kind(v->type), in = (int)v->w->type;
    float factor = factor_of(v->w);
    long long n = count * v->k;
    CUDA_LAUNCH(v->c, weight_convert, variant(v->c, v->type), flat_grid(n), &out, &kind, &from, &in,
                &factor, &n);
}

static void change_conv(const conversion *v, int64_t first, int64_t count, cu_address from)
{
    cu_address out = v->to + (uint64_t)(first * v->k) * dtype_size(v->type);
    int in = (int)v->w->type, kernel = (int)v->w->n[2];
    long long o = count, i = v->w->n[1];
    CUDA_LAUNCH(v->c, weight_conv, v->type, flat_grid(count * v->k), &out, &from, &in, &o, &i,
                &kernel);
}

/* Rows of k numbers of the file become 4 * 4 * I numbers each. */
static void change_conv_folded(const conversion *v, int64_t first, int64_t count, cu_address from)
{
    cu_address out = v->to;
    int in = (int)v->w->type;
    long long o = v->w->n[0], i = v->w->n[1], row = first, rows = count;
    CUDA_LAUNCH(v->c, weight_conv_folded, v->type, flat_grid(count * 16 * i), &out, &from, &in, &o,
                &i, &row, &rows);
}

/* ---- Forms ----------------------------------------------------------------------------------- */

static size_t count_of(const nn_weight *w)
{
    size_t count = 1;
    for (int i = 0; i < w->rank; i++)
        count *= (size_t)w->n[i];
    return count;
}

static size_t copied_numbers(const cuda_request *r, const nn_weight *w)
{
    return r->form == STORE_CONV_FOLDED ? (size_t)(16 * w->n[0] * w->n[1]) : count_of(w);
}

size_t cuda_request_parts(const cuda_request *r, size_t part[CUDA_PARTS])
{
    size_t numbers = 0, rows = 0, most = 0, passing = 0;
    part[0] = part[1] = part[2] = 0;
    for (int i = 0; i < r->count; i++) {
        const nn_weight *w = r->w[i];
        const size_t count = copied_numbers(r, w);
        numbers += count;
        rows += (size_t)w->n[0];
        most = count > most ? count : most;
        if (w->bits == 0)
            continue;
        const size_t codes = count / 8 * (size_t)w->bits;
        const size_t groups = count / (size_t)w->group * dtype_size(w->type);
        const size_t all = cuda_gpu_cost(codes) + 2 * cuda_gpu_cost(groups);
        passing = all > passing ? all : passing;
        if (r->form == STORE_PACKED) {
            part[0] = codes;
            part[1] = part[2] = groups;
        }
    }
    if (r->form == STORE_PACKED)
        return 0;
    part[0] = numbers * dtype_size(r->type);
    if (r->type != DTYPE_F8_E4M3 && r->type != DTYPE_I8)
        return passing;
    part[1] = rows * sizeof(float);
    return passing + cuda_gpu_cost(2 * most);
}

static ct_status allocate(cuda_store *s, entry *e, cu_address *at, size_t bytes, ct_error *error)
{
    if (e->place) {
        if (cuda_aligned(bytes) > e->end - e->place)
            return error_set(error, CT_EINTERNAL, "weights are larger than planned");
        *at = e->place;
        e->place += cuda_aligned(bytes);
        return CT_OK;
    }
    ct_status status = cuda_gpu_alloc(s->gpu, at, bytes, "weights", error);
    if (status == CT_OK) {
        e->bytes += cuda_gpu_cost(bytes);
        s->bytes += cuda_gpu_cost(bytes);
    }
    return status;
}

/* Low-bit groups of a matrix, unpacked to `to`. */
void cuda_unpack(nn *c, const nn_weight *w, const cuda_weight *packed, dtype type, cu_address to)
{
    int kind = out_kind(type), in = (int)w->type, bits = w->bits, group = (int)w->group;
    long long rows = w->n[0], k = w->rank == 2 ? w->n[1] : 1;
    cu_address codes = packed->data, scales = packed->scales, biases = packed->biases;
    CUDA_LAUNCH(c, weight_affine, variant(c, type), flat_grid(rows * k), &to, &kind, &codes,
                &scales, &biases, &in, &bits, &group, &rows, &k);
}

/* Numbers of one weight as `type` (F32, F16 or BF16) at `to`. */
static ct_status put_numbers(cuda_store *s, nn *c, const nn_weight *w, dtype type, cu_address to,
                             ct_error *error)
{
    const int64_t k = w->n[w->rank - 1], rows = (int64_t)count_of(w) / k;
    if (w->bits == 0 && w->type == type)
        return send_all(s, cuda_of(c)->stream, w->data, count_of(w) * dtype_size(type), to, error);
    if (w->bits == 0) {
        const conversion v = {c, w, rows, k, type, to, change_plain};
        return convert_rows(s, &v, error);
    }
    /* A packed weight passes through memory of its own. */
    entry e = {0};
    const size_t groups = (size_t)(rows * (k / w->group)) * dtype_size(w->type);
    const size_t codes = (size_t)(rows * row_bytes(w, k));
    const cu_stream stream = cuda_of(c)->stream;
    ct_status status = allocate(s, &e, &e.at.data, codes, error);
    if (status == CT_OK)
        status = allocate(s, &e, &e.at.scales, groups, error);
    if (status == CT_OK)
        status = allocate(s, &e, &e.at.biases, groups, error);
    if (status == CT_OK)
        status = send_all(s, stream, w->data, codes, e.at.data, error);
    if (status == CT_OK)
        status = send_all(s, stream, w->scales, groups, e.at.scales, error);
    if (status == CT_OK)
        status = send_all(s, stream, w->biases, groups, e.at.biases, error);
    if (status == CT_OK)
        cuda_unpack(c, w, &e.at, type, to);
    s->gpu->driver.stream_wait(stream);
    free_entry(s, &e);
    return status;
}

static ct_status upload_numbers(cuda_store *s, nn *c, const cuda_request *r, entry *e,
                                ct_error *error)
{
    size_t bytes = 0;
    for (int i = 0; i < r->count; i++)
        bytes += count_of(r->w[i]) * dtype_size(r->type);
    ct_status status = allocate(s, e, &e->at.data, bytes, error);
    cu_address to = e->at.data;
    for (int i = 0; i < r->count && status == CT_OK; i++) {
        status = put_numbers(s, c, r->w[i], r->type, to, error);
        to += count_of(r->w[i]) * dtype_size(r->type);
    }
    return status;
}

static ct_status upload_conv(cuda_store *s, nn *c, const cuda_request *r, entry *e, ct_error *error)
{
    const nn_weight *w = r->w[0];
    const bool folded = r->form == STORE_CONV_FOLDED;
    const size_t numbers = folded ? (size_t)(16 * w->n[0] * w->n[1]) : count_of(w);
    ct_status status = allocate(s, e, &e->at.data, numbers * dtype_size(r->type), error);
    const conversion v = {c,
                          w,
                          w->n[0],
                          (int64_t)count_of(w) / w->n[0],
                          r->type,
                          e->at.data,
                          folded ? change_conv_folded : change_conv};
    return status == CT_OK ? convert_rows(s, &v, error) : status;
}

/* Matrices in 8 bits: each in the work type first, then its rows get their factors. */
static ct_status upload_rows8(cuda_store *s, nn *c, const cuda_request *r, entry *e,
                              ct_error *error)
{
    const dtype half = cuda_half_type(c);
    const int64_t k = r->w[0]->n[1];
    int64_t rows = 0, most = 0;
    for (int i = 0; i < r->count; i++) {
        rows += r->w[i]->n[0];
        most = r->w[i]->n[0] > most ? r->w[i]->n[0] : most;
    }
    cu_address half_rows = 0;
    ct_status status = allocate(s, e, &e->at.data, (size_t)(rows * k), error);
    if (status == CT_OK)
        status = allocate(s, e, &e->at.scales, (size_t)rows * 4, error);
    if (status == CT_OK)
        status = cuda_gpu_alloc(s->gpu, &half_rows, (size_t)(most * k) * 2, "weights on their way",
                                error);
    cu_address codes = e->at.data, scales = e->at.scales;
    for (int i = 0; i < r->count && status == CT_OK; i++) {
        status = put_numbers(s, c, r->w[i], half, half_rows, error);
        long long n = r->w[i]->n[0], width = k;
        int kind = r->type == DTYPE_I8 ? CUDA_INT8 : CUDA_E4M3;
        CUDA_LAUNCH(c, weight_rows8, half, ((cuda_grid){.x = n, .threads = 256}), &codes, &scales,
                    &kind, &half_rows, &n, &width);
        codes += (uint64_t)(n * k);
        scales += (uint64_t)n * 4;
    }
    if (half_rows) {
        s->gpu->driver.stream_wait(cuda_of(c)->stream);
        s->gpu->driver.mem_free(half_rows);
    }
    return status;
}

/* As the file has it. */
static ct_status upload_packed(cuda_store *s, nn *c, const cuda_request *r, entry *e,
                               ct_error *error)
{
    const nn_weight *w = r->w[0];
    const cu_stream stream = cuda_of(c)->stream;
    const size_t codes = (size_t)(w->n[0] * row_bytes(w, w->n[1]));
    const size_t groups = (size_t)(w->n[0] * (w->n[1] / w->group)) * dtype_size(w->type);
    ct_status status = allocate(s, e, &e->at.data, codes, error);
    if (status == CT_OK)
        status = allocate(s, e, &e->at.scales, groups, error);
    if (status == CT_OK)
        status = allocate(s, e, &e->at.biases, groups, error);
    if (status == CT_OK)
        status = send_all(s, stream, w->data, codes, e->at.data, error);
    if (status == CT_OK)
        status = send_all(s, stream, w->scales, groups, e->at.scales, error);
    if (status == CT_OK)
        status = send_all(s, stream, w->biases, groups, e->at.biases, error);
    return status;
}

static ct_status upload(cuda_store *s, nn *c, const cuda_request *r, entry *e, ct_error *error)
{
    if (cuda_of(c)->capturing)
        return error_set(error, CT_EINTERNAL, "%s is first needed while calls are recorded",
                         r->w[0]->name);
    ct_status status = open_stages(s, error);
    if (status != CT_OK)
        return status;
    switch (r->form) {
    case STORE_CONV:
    case STORE_CONV_FOLDED: return upload_conv(s, c, r, e, error);
    case STORE_PACKED: return upload_packed(s, c, r, e, error);
    case STORE_FLOATS:
    case STORE_TABLE:
    case STORE_MATRIX: break;
    }
    return r->type == DTYPE_F8_E4M3 || r->type == DTYPE_I8 ? upload_rows8(s, c, r, e, error)
                                                           : upload_numbers(s, c, r, e, error);
}

ct_status cuda_store_put(nn *c, const cuda_request *r, cu_address to, ct_error *error)
{
    cuda_store *s = cuda_of(c)->store;
    entry placed = {.place = to, .end = to};
    size_t part[CUDA_PARTS];
    cuda_request_parts(r, part);
    for (int i = 0; i < CUDA_PARTS; i++)
        placed.end += cuda_aligned(part[i]);
    pthread_mutex_lock(&s->lock);
    ct_status status = upload(s, c, r, &placed, error);
    pthread_mutex_unlock(&s->lock);
    return status;
}

uint64_t cuda_gpu_fixed_bytes(const cuda_gpu *g)
{
    return CUDA_WORKSPACE + STAGES * STAGE + (g->has_dnn ? CUDNN_BYTES : 0);
}

ct_status cuda_store_get(nn *c, const cuda_request *r, cuda_weight *out, ct_error *error)
{
    *out = (cuda_weight){0};
    if (c->params.dry)
        schedule_note(c->params.gpu_schedule, r);
    if (c->params.dry || cuda_ring_find(c, r, out))
        return CT_OK;
    cuda_state *state = cuda_of(c);
    cuda_store *s = state->store;
    const cuda_driver *d = state->driver;
    if (!s)
        return error_set(error, CT_EINTERNAL, "there is no place for weights on the GPU");
    pthread_mutex_lock(&s->lock);
    ct_status status = CT_OK;
    if (2 * (s->used + 1) > s->capacity)
        status = rebuild(s, s->capacity ? 2 * s->capacity : 1024, error);
    entry *e = status == CT_OK ? find(s, r) : NULL;
    /* Other streams have put something there, perhaps just now. The event is behind all of that
     * only if it is waited for before it is recorded again. */
    if (e && (!e->key || e->upload > state->uploads) && s->uploads > state->uploads &&
        !state->capturing) {
        status =
            cuda_check(d, d->stream_wait_event(state->stream, s->uploaded, 0), "an event", error);
        state->uploads = s->uploads;
    }
    if (status == CT_OK && e && !e->key) {
        entry fresh = {
            .key = r->w[0]->data, .count = r->count, .form = (int)r->form, .type = r->type};
        status = upload(s, c, r, &fresh, error);
        if (status == CT_OK)
            status = nn_status(c, error); /* of a launch */
        if (status == CT_OK)
            status = cuda_check(d, d->event_record(s->uploaded, state->stream), "an event", error);
        if (status == CT_OK) {
            fresh.upload = state->uploads = ++s->uploads;
            *e = fresh;
            s->used++;
        } else {
            d->stream_wait(state->stream);
            free_entry(s, &fresh);
        }
    }
    if (status == CT_OK)
        *out = e->at;
    pthread_mutex_unlock(&s->lock);
    return status;
}
