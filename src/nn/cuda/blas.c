/* Matrix products by cuBLASLt.
 *
 * The library thinks in columns: it computes D = alpha op(A) op(B) + beta D with matrices stored
 * column after column. A row-major matrix is its transpose to the library, so out [m, n] = x w^T is
 * computed as D [n, m] = op(w) x, with op a transposition unless w is stored by rows of k. */
#include "nn/cuda/blas.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/mem.h"
#include "nn/cuda/blas_file.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define BUCKETS 256
#define MAX_CANDIDATES 16
#define FINALISTS 4
#define ROUNDS 3
#define SLOWER 1.3f     /* than the best after one round: not looked at again */
#define MEASURE_MS 0.2f /* short products are repeated for so long */
#define MAX_REPEATS 16
#define NO_BIAS 255
#define NO_TYPE 254

/* A product that was met, with the library's descriptions of it. */
typedef struct product {
    struct product *next;
    blas_key key;
    lt_desc desc;
    lt_layout w, x, out;
    lt_algo algo;
    bool described; /* the four above are made */
    bool possible;  /* algo can be used */
    bool known;     /* algo is the fastest: from the file, or measured */
    bool learnt;    /* measured, not in the file yet */
} product;

struct blas {
    const ct_allocator *allocator;
    const cuda_driver *driver;
    size_t workspace;
    cublaslt lt;
    char version[48];
    char *path;           /* of the file of choices; NULL: there is none */
    pthread_mutex_t lock; /* guards what follows; descriptions hold addresses until a launch */
    product *buckets[BUCKETS];
};

/* ---- The library ---------------------------------------------------------------------------- */

static bool load_functions(cublaslt *lt)
{
    bool all = true;
    void *symbol;
    /* A pointer to a function is a pointer to data to dlsym. */
#define LOAD(member, type, name, parameters)                                                       \
    symbol = cuda_library_symbol(lt->library, name);                                               \
    all = all && symbol;                                                                           \
    memcpy(&lt->member, &symbol, sizeof symbol);
    CUBLASLT_FUNCTIONS(LOAD)
#undef LOAD
    return all;
}

/* Tries each version that could be there: one that is newer than the driver opens, but does not
 * work. */
static ct_status open_library(cublaslt *lt, int driver_version, ct_error *error)
{
    static const char *const names[] = {"libcublasLt.so.14", "libcublasLt.so.13",
                                        "libcublasLt.so.12", "libcublasLt.so"};
    const char *reason = "";
    bool found = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (i < 3 && 14 - (int)i > driver_version / 1000)
            continue;
        const char *const one[] = {names[i], NULL};
        *lt = (cublaslt){.library = cuda_library_open(one, NULL)};
        if (!lt->library)
            continue;
        found = true;
        if (load_functions(lt)) {
            const lt_status status = lt->create(&lt->handle);
            if (status == LT_SUCCESS)
                return CT_OK;
            reason = lt->status_text(status);
        }
        char text[128];
        snprintf(text, sizeof text, "%s", reason); /* reason may be text of the library */
        cuda_library_close(lt->library);
        *lt = (cublaslt){0};
        error_set(error, CT_EDEVICE, "%s does not work with this driver (CUDA %d.%d)%s%s", names[i],
                  driver_version / 1000, driver_version % 1000 / 10, text[0] ? ": " : "", text);
        reason = "";
    }
    if (found)
        return CT_EDEVICE;
    return error_set(error, CT_ENOTFOUND,
                     "cuBLASLt (libcublasLt.so.12 or newer) was not found; install the CUDA "
                     "toolkit's libcublas, or put its folder into LD_LIBRARY_PATH");
}

/* "FOLDER/blas-NVIDIA-H200-sm90-130100.bin" */
static char *choices_path(const blas_params *params, size_t version)
{
    char name[192], gpu[sizeof params->device->name];
    size_t length = 0;
    for (const char *c = params->device->name; *c && length < sizeof gpu - 1; c++) {
        const bool plain =
            (*c >= '0' && *c <= '9') || (*c >= 'A' && *c <= 'Z') || (*c >= 'a' && *c <= 'z');
        gpu[length++] = plain ? *c : '-';
    }
    gpu[length] = 0;
    snprintf(name, sizeof name, "blas-%s-sm%d%d-%zu.bin", gpu, params->device->major,
             params->device->minor, version);
    return path_join(params->allocator, params->folder, name);
}

static product *add_product(blas *b, const blas_key *key);

static ct_status read_choices(blas *b, ct_error *error)
{
    blas_choice *choices;
    size_t count;
    blas_file_read(b->allocator, b->path, &choices, &count);
    ct_status status = CT_OK;
    for (size_t i = 0; i < count && status == CT_OK; i++) {
        product *e = add_product(b, &choices[i].key);
        if (e) {
            e->algo = choices[i].algo;
            e->known = true;
        } else {
            status = error_memory(error, sizeof *e, "a matrix product");
        }
    }
    mem_free(b->allocator, choices);
    return status;
}

ct_status blas_open(blas **out, const blas_params *params, ct_error *error)
{
    *out = NULL;
    blas *b = mem_zero_array(params->allocator, 1, sizeof *b);
    if (!b)
        return error_memory(error, sizeof *b, "matrix products");
    b->allocator = params->allocator;
    b->driver = params->driver;
    b->workspace = params->workspace;
    ct_status status = open_library(&b->lt, params->driver->version, error);
    if (status != CT_OK) {
        mem_free(b->allocator, b);
        return status;
    }
    pthread_mutex_init(&b->lock, NULL);
    const size_t v = b->lt.version();
    snprintf(b->version, sizeof b->version, "cuBLASLt %zu.%zu.%zu", v / 10000, v / 100 % 100,
             v % 100);
    if (params->folder) {
        b->path = choices_path(params, v);
        status = b->path ? read_choices(b, error)
                         : error_memory(error, strlen(params->folder), "a file name");
    }
    if (status != CT_OK) {
        blas_close(b);
        return status;
    }
    *out = b;
    return CT_OK;
}

static void forget_description(const blas *b, product *e)
{
    if (e->desc)
        b->lt.desc_destroy(e->desc);
    if (e->w)
        b->lt.layout_destroy(e->w);
    if (e->x)
        b->lt.layout_destroy(e->x);
    if (e->out)
        b->lt.layout_destroy(e->out);
    e->desc = NULL;
    e->w = e->x = e->out = NULL;
}

static void write_choices(const blas *b)
{
    size_t count = 0;
    for (int i = 0; i < BUCKETS; i++)
        for (const product *e = b->buckets[i]; e; e = e->next)
            count += e->learnt;
    blas_choice *choices = count ? mem_array(b->allocator, count, sizeof *choices) : NULL;
    if (!choices)
        return;
    size_t at = 0;
    for (int i = 0; i < BUCKETS; i++)
        for (const product *e = b->buckets[i]; e; e = e->next)
            if (e->learnt)
                choices[at++] = (blas_choice){e->key, e->algo};
    /* Where it cannot be written it is measured again the next time. */
    blas_file_add(b->allocator, b->path, choices, count, NULL);
    mem_free(b->allocator, choices);
}

void blas_close(blas *b)
{
    if (!b)
        return;
    if (b->path)
        write_choices(b);
    for (int i = 0; i < BUCKETS; i++)
        for (product *e = b->buckets[i], *next; e; e = next) {
            next = e->next;
            forget_description(b, e);
            mem_free(b->allocator, e);
        }
    b->lt.destroy(b->lt.handle);
    cuda_library_close(b->lt.library);
    pthread_mutex_destroy(&b->lock);
    mem_free(b->allocator, b->path);
    mem_free(b->allocator, b);
}

const char *blas_version(const blas *b)
{
    return b->version;
}

static ct_status lt_error(const blas *b, lt_status s, const blas_product *p, ct_error *error)
{
    const bool unsupported =
        s == LT_NOT_SUPPORTED || s == LT_INVALID_VALUE || s == LT_ARCH_MISMATCH;
    const ct_status code = s == LT_ALLOC_FAILED ? CT_ENOMEM
                           : unsupported        ? CT_EUNSUPPORTED
                                                : CT_EDEVICE;
    return error_set(error, code,
                     "%s cannot compute [%" PRId64 ", %" PRId64 "] x [%s%" PRId64 ", %" PRId64
                     "] of %s to %s%s%s%s%s: %s",
                     b->version, p->m, p->k, p->w_by_rows ? "" : "transposed ",
                     p->w_by_rows ? p->k : p->n, p->w_by_rows ? p->n : p->k, dtype_name(p->type),
                     dtype_name(p->out_type), p->scaled ? ", scaled" : "", p->bias ? ", bias" : "",
                     p->epilogue == BLAS_GELU_TANH ? ", GELU" : "", p->add ? ", added" : "",
                     b->lt.status_text(s));
}

/* ---- Products and their keys ---------------------------------------------------------------- */

static uint8_t lt_type(dtype type)
{
    switch (type) {
    case DTYPE_F32: return LT_R_32F;
    case DTYPE_F16: return LT_R_16F;
    case DTYPE_BF16: return LT_R_16BF;
    case DTYPE_F8_E4M3: return LT_R_8F_E4M3;
    case DTYPE_I8: return LT_R_8I;
    case DTYPE_I32: return LT_R_32I;
    default: return NO_TYPE;
    }
}

/* log2 of the bytes that an address is aligned to. No kernel asks for more than 16 in ways that
 * differ below 256, so what lies between counts as 16: fewer products to measure. */
static uint8_t alignment(cu_address address)
{
    if (address % 256 == 0)
        return 8;
    uint8_t log = 0;
    while (log < 4 && !(address >> log & 1))
        log++;
    return log;
}

/* False for what no library could do. */
static bool make_key(blas_key *key, const blas_product *p, const blas_operands *at)
{
    const int64_t count = p->count ? p->count : 1;
    const int64_t limit = INT32_MAX;
    *key = (blas_key){
        .m = p->m,
        .n = p->n,
        .k = p->k,
        .x_stride = p->x_stride,
        .w_stride = p->w_stride,
        .out_stride = p->out_stride,
        .count = count,
        .x_next = count > 1 ? p->x_next : 0,
        .w_next = count > 1 ? p->w_next : 0,
        .out_next = count > 1 ? p->out_next : 0,
        .type = lt_type(p->type),
        .out_type = lt_type(p->out_type),
        .bias_type = p->bias ? lt_type(p->bias_type) : NO_BIAS,
        .w_by_rows = p->w_by_rows,
        .add = p->add,
        .gelu = p->epilogue == BLAS_GELU_TANH,
        .scaled = p->scaled,
        .fast_sums = p->fast_sums,
        .out_align = alignment(at->out),
        .x_align = alignment(at->x),
        .w_align = alignment(at->w),
        .bias_align = p->bias ? alignment(at->bias) : 0,
        .x_scales_align = p->scaled ? alignment(at->x_scales) : 0,
        .w_scales_align = p->scaled ? alignment(at->w_scales) : 0,
    };
    return p->m > 0 && p->n > 0 && p->k > 0 && p->m <= limit && p->n <= limit && p->k <= limit &&
           count > 0 && count <= limit && p->x_stride >= p->k && p->out_stride >= p->n &&
           p->w_stride >= (p->w_by_rows ? p->n : p->k) && key->type != NO_TYPE &&
           key->out_type != NO_TYPE && key->bias_type != NO_TYPE &&
           (!p->scaled || (p->type == DTYPE_F8_E4M3 && (p->factor == 0 || p->factor == 1))) &&
           (p->type == DTYPE_I8) == (p->out_type == DTYPE_I32) &&
           (p->type != DTYPE_I8 || p->factor == 0 || p->factor == 1);
}

static unsigned bucket_of(const blas_key *key)
{
    hash128 hash = hash_begin();
    hash_add(&hash, key, sizeof *key);
    return (unsigned)(hash.low % BUCKETS);
}

static product *find_product(const blas *b, const blas_key *key)
{
    for (product *e = b->buckets[bucket_of(key)]; e; e = e->next)
        if (memcmp(&e->key, key, sizeof *key) == 0)
            return e;
    return NULL;
}

static product *add_product(blas *b, const blas_key *key)
{
    product *e = mem_zero_array(b->allocator, 1, sizeof *e);
    if (!e)
        return NULL;
    e->key = *key;
    product **bucket = &b->buckets[bucket_of(key)];
    e->next = *bucket;
    *bucket = e;
    return e;
}

/* ---- Descriptions --------------------------------------------------------------------------- */

static lt_status make_layout(const cublaslt *lt, lt_layout *layout, int type, int64_t rows,
                             int64_t columns, int64_t stride, int64_t count, int64_t next)
{
    lt_status s = lt->layout_create(layout, type, (uint64_t)rows, (uint64_t)columns, stride);
    if (s != LT_SUCCESS || count == 1)
        return s;
    const int32_t batch = (int32_t)count;
    s = lt->layout_set(*layout, LT_LAYOUT_BATCH_COUNT, &batch, sizeof batch);
    return s != LT_SUCCESS
               ? s
               : lt->layout_set(*layout, LT_LAYOUT_STRIDED_BATCH_OFFSET, &next, sizeof next);
}

static lt_status set_int(const cublaslt *lt, lt_desc desc, int attribute, int32_t value)
{
    return lt->desc_set(desc, attribute, &value, sizeof value);
}

static lt_status set_address(const cublaslt *lt, lt_desc desc, int attribute, cu_address value)
{
    const void *pointer = (const void *)(uintptr_t)value;
    return lt->desc_set(desc, attribute, &pointer, sizeof pointer);
}

/* Makes the four descriptions from the key. */
static lt_status describe(const blas *b, product *e)
{
    const cublaslt *lt = &b->lt;
    const blas_key *k = &e->key;
    const bool integers = k->type == LT_R_8I;
    lt_status s = lt->desc_create(&e->desc, integers ? LT_COMPUTE_32I : LT_COMPUTE_32F,
                                  integers ? LT_R_32I : LT_R_32F);
    if (s == LT_SUCCESS)
        s = set_int(lt, e->desc, LT_DESC_TRANSA, k->w_by_rows ? LT_OP_N : LT_OP_T);
    if (s == LT_SUCCESS)
        s = set_int(lt, e->desc, LT_DESC_TRANSB, LT_OP_N);
    const uint32_t epilogue = k->bias_type == NO_BIAS && !k->gelu
                                  ? LT_EPILOGUE_DEFAULT
                                  : (k->bias_type == NO_BIAS ? 0u : (uint32_t)LT_EPILOGUE_BIAS) |
                                        (k->gelu ? (uint32_t)LT_EPILOGUE_GELU : 0u);
    if (s == LT_SUCCESS)
        s = lt->desc_set(e->desc, LT_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (s == LT_SUCCESS && k->bias_type != NO_BIAS)
        s = set_int(lt, e->desc, LT_DESC_BIAS_DATA_TYPE, k->bias_type);
    if (s == LT_SUCCESS && k->scaled)
        s = set_int(lt, e->desc, LT_DESC_A_SCALE_MODE, LT_SCALE_OUTER_VEC_32F);
    if (s == LT_SUCCESS && k->scaled)
        s = set_int(lt, e->desc, LT_DESC_B_SCALE_MODE, LT_SCALE_OUTER_VEC_32F);
    if (s == LT_SUCCESS && k->fast_sums) {
        const int8_t on = 1;
        s = lt->desc_set(e->desc, LT_DESC_FAST_ACCUM, &on, sizeof on);
    }
    if (s == LT_SUCCESS)
        s = make_layout(lt, &e->w, k->type, k->w_by_rows ? k->n : k->k, k->w_by_rows ? k->k : k->n,
                        k->w_stride, k->count, k->w_next);
    if (s == LT_SUCCESS)
        s = make_layout(lt, &e->x, k->type, k->k, k->m, k->x_stride, k->count, k->x_next);
    if (s == LT_SUCCESS)
        s = make_layout(lt, &e->out, k->out_type, k->n, k->m, k->out_stride, k->count, k->out_next);
    if (s != LT_SUCCESS)
        forget_description(b, e);
    return s;
}

/* Puts the addresses into the description that are not arguments of a launch. The search for
 * algorithms looks at their alignment, too. */
static lt_status place(const blas *b, const product *e, const blas_operands *at)
{
    lt_status s = LT_SUCCESS;
    if (e->key.bias_type != NO_BIAS)
        s = set_address(&b->lt, e->desc, LT_DESC_BIAS_POINTER, at->bias);
    if (s == LT_SUCCESS && e->key.scaled)
        s = set_address(&b->lt, e->desc, LT_DESC_A_SCALE_POINTER, at->w_scales);
    if (s == LT_SUCCESS && e->key.scaled)
        s = set_address(&b->lt, e->desc, LT_DESC_B_SCALE_POINTER, at->x_scales);
    return s;
}

/* ---- Algorithms ----------------------------------------------------------------------------- */

/* Up to `wanted` algorithms, the one first that the library thinks is the fastest. */
static lt_status search(const blas *b, const product *e, int wanted, lt_candidate *found,
                        int *count)
{
    const cublaslt *lt = &b->lt;
    const blas_key *k = &e->key;
    const uint64_t workspace = b->workspace;
    /* Parts of a sum that is split are kept in float32 and added in a fixed order by a second
     * kernel. The other ways round them to the type of the result. */
    const uint32_t reduction = LT_REDUCTION_COMPUTE_TYPE;
    const uint32_t w = 1u << k->w_align, x = 1u << k->x_align, out = 1u << k->out_align;
    const uint64_t numerics = ~LT_IMPL_INPUT_TF32;
    lt_preference pref = NULL;
    *count = 0;
    lt_status s = lt->preference_create(&pref);
    if (s != LT_SUCCESS)
        return s;
    s = lt->preference_set(pref, LT_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (s == LT_SUCCESS)
        s = lt->preference_set(pref, LT_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction);
    if (s == LT_SUCCESS && k->type == LT_R_32F)
        s = lt->preference_set(pref, LT_PREF_IMPL_MASK, &numerics, sizeof numerics);
    if (s == LT_SUCCESS)
        s = lt->preference_set(pref, LT_PREF_MIN_ALIGNMENT_A, &w, sizeof w);
    if (s == LT_SUCCESS)
        s = lt->preference_set(pref, LT_PREF_MIN_ALIGNMENT_B, &x, sizeof x);
    if (s == LT_SUCCESS)
        s = lt->preference_set(pref, LT_PREF_MIN_ALIGNMENT_C, &out, sizeof out);
    if (s == LT_SUCCESS)
        s = lt->preference_set(pref, LT_PREF_MIN_ALIGNMENT_D, &out, sizeof out);
    int all = 0;
    if (s == LT_SUCCESS)
        s = lt->heuristic(lt->handle, e->desc, e->w, e->x, e->out, e->out, pref, wanted, found,
                          &all);
    lt->preference_destroy(pref);
    if (s != LT_SUCCESS)
        return s;
    for (int i = 0; i < all; i++)
        if (found[i].state == LT_SUCCESS && found[i].workspace <= b->workspace)
            found[(*count)++] = found[i];
    return *count ? LT_SUCCESS : LT_NOT_SUPPORTED;
}

/* Whether an algorithm of the file works here: it is a block of bytes that only the library can
 * judge. */
static bool check_known(const blas *b, const product *e)
{
    lt_candidate result = {0};
    return b->lt.check(b->lt.handle, e->desc, e->w, e->x, e->out, e->out, &e->algo, &result) ==
               LT_SUCCESS &&
           result.workspace <= b->workspace;
}

/* The entry of a product, with descriptions that hold the addresses, and an algorithm where there
 * is one. */
static lt_status get_product(blas *b, const blas_key *key, const blas_operands *at, product **out)
{
    product *e = find_product(b, key);
    if (!e)
        e = add_product(b, key);
    *out = e;
    if (!e)
        return LT_ALLOC_FAILED;
    lt_status s;
    if (e->described)
        return e->possible ? place(b, e, at) : LT_NOT_SUPPORTED;
    s = describe(b, e);
    if (s == LT_SUCCESS)
        s = place(b, e, at);
    if (s == LT_ALLOC_FAILED) {
        forget_description(b, e);
        return s;
    }
    e->described = true;
    if (s == LT_SUCCESS && e->known && check_known(b, e)) {
        e->possible = true;
        return s;
    }
    e->known = false;
    lt_candidate first;
    int count = 0;
    if (s == LT_SUCCESS)
        s = search(b, e, 1, &first, &count);
    if (s == LT_SUCCESS) {
        e->algo = first.algo;
        e->possible = true;
    }
    return s;
}

/* A launch that can be repeated. */
typedef struct call {
    const blas *b;
    const product *e;
    blas_operands at;
    cu_stream stream;
    cu_address workspace;
    float factor;
    cu_event from, to;
} call;

static lt_status launch(const call *c, const lt_algo *algo)
{
    const blas *b = c->b;
    const product *e = c->e;
    const float factor = c->factor, add = e->key.add ? 1.0f : 0.0f;
    const int32_t one = 1, add_integer = e->key.add;
    const bool integers = e->key.type == LT_R_8I;
    void *out = (void *)(uintptr_t)c->at.out;
    return b->lt.matmul(b->lt.handle, e->desc, integers ? (const void *)&one : &factor,
                        (const void *)(uintptr_t)c->at.w, e->w, (const void *)(uintptr_t)c->at.x,
                        e->x, integers ? (const void *)&add_integer : &add, out, e->out, out,
                        e->out, algo, (void *)(uintptr_t)c->workspace, b->workspace, c->stream);
}

/* Milliseconds for one launch of `repeats`; negative where the algorithm does not work. */
static ct_status time_launch(const call *c, const lt_algo *algo, int repeats, float *milliseconds,
                             ct_error *error)
{
    const cuda_driver *d = c->b->driver;
    *milliseconds = -1.0f;
    cu_result r = d->event_record(c->from, c->stream);
    bool works = true;
    for (int i = 0; i < repeats && works; i++)
        works = launch(c, algo) == LT_SUCCESS;
    if (r == 0)
        r = d->event_record(c->to, c->stream);
    if (r == 0)
        r = d->event_wait(c->to);
    float all = 0;
    if (r == 0)
        r = d->event_elapsed(&all, c->from, c->to);
    if (r != 0)
        return cuda_check(d, r, "measuring a matrix product", error);
    if (works)
        *milliseconds = all / (float)repeats;
    return CT_OK;
}

/* One measured candidate. */
typedef struct trial {
    const lt_algo *algo;
    float milliseconds;
} trial;

/* Measures all once, and the best few against each other: *best is the index, -1 if none works. */
static ct_status race(const call *c, const lt_candidate *candidates, int count, int *best,
                      ct_error *error)
{
    trial trials[MAX_CANDIDATES];
    int entered = 0, repeats = 1;
    *best = -1;
    for (int i = 0; i < count; i++) {
        trial t = {&candidates[i].algo, 0};
        /* The first launch of a kernel loads it. */
        ct_status status = time_launch(c, t.algo, 1, &t.milliseconds, error);
        if (status == CT_OK && t.milliseconds >= 0)
            status = time_launch(c, t.algo, repeats, &t.milliseconds, error);
        if (status == CT_OK && t.milliseconds >= 0 && entered == 0 && t.milliseconds < MEASURE_MS) {
            const float wanted = MEASURE_MS / (t.milliseconds > 1e-3f ? t.milliseconds : 1e-3f);
            repeats = wanted < MAX_REPEATS ? (int)wanted + 1 : MAX_REPEATS;
            status = time_launch(c, t.algo, repeats, &t.milliseconds, error);
        }
        if (status != CT_OK)
            return status;
        if (t.milliseconds < 0)
            continue;
        int at = entered++;
        for (; at > 0 && trials[at - 1].milliseconds > t.milliseconds; at--)
            trials[at] = trials[at - 1];
        trials[at] = t;
    }
    int finalists = 0;
    while (finalists < entered && finalists < FINALISTS &&
           trials[finalists].milliseconds <= SLOWER * trials[0].milliseconds)
        finalists++;
    for (int round = 0; finalists > 1 && round < ROUNDS; round++)
        for (int i = 0; i < finalists; i++) {
            float ms;
            const ct_status status = time_launch(c, trials[i].algo, repeats, &ms, error);
            if (status != CT_OK)
                return status;
            if (ms >= 0 && ms < trials[i].milliseconds)
                trials[i].milliseconds = ms;
        }
    int fastest = 0;
    for (int i = 1; i < finalists; i++)
        if (trials[i].milliseconds < trials[fastest].milliseconds)
            fastest = i;
    for (int i = 0; entered && i < count; i++)
        if (&candidates[i].algo == trials[fastest].algo)
            *best = i;
    return CT_OK;
}

/* Measuring must change nothing that anybody reads: the result goes to memory of its own, zeros at
 * first. False where there is none. */
static bool take_scratch(const call *c, cu_address *scratch)
{
    const cuda_driver *d = c->b->driver;
    const blas_key *k = &c->e->key;
    const size_t size = k->out_type == LT_R_16F || k->out_type == LT_R_16BF ? 2 : 4;
    const size_t bytes =
        size * (size_t)((k->count - 1) * k->out_next + (k->m - 1) * k->out_stride + k->n);
    *scratch = 0;
    if (d->mem_alloc(scratch, bytes) != 0)
        return false;
    return d->fill_bytes(*scratch, 0, bytes, c->stream) == 0;
}

/* Finds the fastest algorithm on the operands of a call. Where measuring is not possible the first
 * one stays, for now. */
static ct_status tune(const blas *b, product *e, call *c, ct_error *error)
{
    const cuda_driver *d = b->driver;
    lt_candidate candidates[MAX_CANDIDATES];
    int count, best = -1;
    if (search(b, e, MAX_CANDIDATES, candidates, &count) != LT_SUCCESS)
        return CT_OK;
    const cu_address out = c->at.out;
    cu_address scratch = 0;
    ct_status status = CT_OK;
    c->from = c->to = NULL;
    if (d->event_create(&c->from, 0) == 0 && d->event_create(&c->to, 0) == 0 &&
        take_scratch(c, &scratch)) {
        c->at.out = scratch;
        status = race(c, candidates, count, &best, error);
        c->at.out = out;
    }
    if (scratch)
        d->mem_free(scratch);
    if (c->from)
        d->event_destroy(c->from);
    if (c->to)
        d->event_destroy(c->to);
    if (status == CT_OK && best >= 0) {
        e->algo = candidates[best].algo;
        e->known = e->learnt = true;
    }
    return status;
}

/* ---- Use ------------------------------------------------------------------------------------ */

bool blas_can(blas *b, const blas_product *p)
{
    /* Nothing is read there; only its alignment counts. */
    const cu_address anywhere = 4096;
    const blas_operands at = {anywhere, anywhere, anywhere, anywhere, anywhere, anywhere};
    blas_key key;
    if (!make_key(&key, p, &at))
        return false;
    pthread_mutex_lock(&b->lock);
    product *e;
    const bool can = get_product(b, &key, &at, &e) == LT_SUCCESS;
    pthread_mutex_unlock(&b->lock);
    return can;
}

ct_status blas_multiply(blas *b, cu_stream stream, bool capturing, cu_address workspace,
                        const blas_product *p, const blas_operands *at, ct_error *error)
{
    blas_key key;
    if (!make_key(&key, p, at))
        return lt_error(b, LT_NOT_SUPPORTED, p, error);
    pthread_mutex_lock(&b->lock);
    product *e;
    ct_status status = CT_OK;
    lt_status s = get_product(b, &key, at, &e);
    if (s == LT_SUCCESS) {
        call c = {.b = b,
                  .e = e,
                  .at = *at,
                  .stream = stream,
                  .workspace = workspace,
                  .factor = p->factor == 0 ? 1.0f : p->factor};
        if (!e->known && !capturing)
            status = tune(b, e, &c, error);
        if (status == CT_OK)
            s = launch(&c, &e->algo);
    }
    pthread_mutex_unlock(&b->lock);
    if (status != CT_OK || s == LT_SUCCESS)
        return status;
    return lt_error(b, s, p, error);
}
