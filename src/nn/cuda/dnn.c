/* Attention and convolutions by cuDNN: a plan for each shape, made when it is first met. */
#include "nn/cuda/dnn.h"
#include "core/mem.h"
#include "nn/cuda/dnn_file.h"
#include "nn/cuda/dnn_graph.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_CANDIDATES 8 /* of a convolution: 10 ms each to make */
#define ROUNDS 3
#define BETTER 0.97f /* an engine that the library likes less must take less than so much */
/* Engines that want more than this for themselves are not used. */
#define MAX_WORKSPACE ((size_t)512 << 20)
#define MAX_BLOCKS 64
#define MAX_POINTERS 8

/* Ids of tensors. Those of one graph differ. */
enum { ID_X = 1, ID_W, ID_OUT };
enum { ID_Q = 1, ID_K, ID_V, ID_RESULT, ID_SCALE, ID_LOWEST, ID_STATS };

/* All fields of a problem, compared as bytes; the rest is 0. */
typedef struct dnn_key {
    int64_t kind; /* 1 attention, 2 convolution */
    int64_t field[12];
} dnn_key;

typedef struct dnn_plan {
    struct dnn_plan *next;
    dnn_key key;
    bool made; /* false: there is no engine */
    dnn_graph graph;
    dnn_step step;
    size_t scratch; /* bytes for a result that nobody reads */
    cudnn_status reason;
} dnn_plan;

struct dnn {
    const ct_allocator *allocator;
    const cuda_driver *driver;
    cu_stream stream;
    cudnn lib;
    char version[DNN_VERSION_BYTES];
    char machine[256]; /* library and GPU: what a plan on disk belongs to */
    char *folder;      /* NULL: plans are not kept */
    dnn_plan *plans;
    /* The last block is the workspace. Smaller ones before it stay: a graph that was captured may
     * use them. */
    cu_address blocks[MAX_BLOCKS];
    int block_count;
    size_t workspace, memory; /* bytes of the last block, and of all */
};

/* ---- The library ---------------------------------------------------------------------------- */

static bool load_functions(cudnn *lib)
{
    bool all = true;
    void *symbol;
#define LOAD(member, type, name, parameters)                                                       \
    symbol = cuda_library_symbol(lib->library, name);                                              \
    all = all && symbol;                                                                           \
    memcpy(&lib->member, &symbol, sizeof symbol);
    CUDNN_FUNCTIONS(LOAD)
#undef LOAD
    return all;
}

/* With its number and its name, and no handle. */
static ct_status open_library(cudnn *lib, char version[DNN_VERSION_BYTES], ct_error *error)
{
    static const char *const names[] = {"libcudnn.so.9", NULL};
    lib->library = cuda_library_open(names, NULL);
    if (!lib->library)
        return error_set(error, CT_ENOTFOUND,
                         "cuDNN (libcudnn.so.9) was not found; calotype works without it, but "
                         "install it, or put its folder into LD_LIBRARY_PATH, to be faster");
    if (!load_functions(lib))
        return error_set(error, CT_EDEVICE, "libcudnn.so.9 lacks functions; install cuDNN 9");
    lib->number = lib->version();
    snprintf(version, DNN_VERSION_BYTES, "cuDNN %zu.%zu.%zu", lib->number / 10000,
             lib->number / 100 % 100, lib->number % 100);
    return CT_OK;
}

bool dnn_find(char version[DNN_VERSION_BYTES])
{
    cudnn lib = {0};
    const bool found = open_library(&lib, version, NULL) == CT_OK;
    cuda_library_close(lib.library);
    return found;
}

ct_status dnn_open(dnn **out, const dnn_params *params, ct_error *error)
{
    *out = NULL;
    dnn *d = mem_zero_array(params->allocator, 1, sizeof *d);
    if (!d)
        return error_memory(error, sizeof *d, "cuDNN");
    d->allocator = params->allocator;
    d->driver = params->driver;
    d->stream = params->stream;
    ct_status status = open_library(&d->lib, d->version, error);
    if (status == CT_OK) {
        cudnn_status s = d->lib.create(&d->lib.handle);
        if (s == CUDNN_OK)
            s = d->lib.set_stream(d->lib.handle, d->stream);
        if (s != CUDNN_OK)
            status = error_set(error, CT_EDEVICE, "%s does not work with this GPU or driver: %s",
                               d->version, d->lib.status_text(s));
    }
    if (status == CT_OK && params->folder) {
        snprintf(d->machine, sizeof d->machine, "%s, %s, sm%d%d", d->version, params->device->name,
                 params->device->major, params->device->minor);
        d->folder = mem_strdup(d->allocator, params->folder);
        if (!d->folder)
            status = error_memory(error, strlen(params->folder) + 1, "a file name");
    }
    if (status != CT_OK) {
        dnn_close(d);
        return status;
    }
    *out = d;
    return CT_OK;
}

static void free_plan(const dnn *d, dnn_plan *plan)
{
    dnn_graph_free(&plan->graph);
    mem_free(d->allocator, plan);
}

void dnn_close(dnn *d)
{
    if (!d)
        return;
    for (dnn_plan *p = d->plans, *next; p; p = next) {
        next = p->next;
        free_plan(d, p);
    }
    for (int i = 0; i < d->block_count; i++)
        d->driver->mem_free(d->blocks[i]);
    if (d->lib.handle)
        d->lib.destroy(d->lib.handle);
    cuda_library_close(d->lib.library);
    mem_free(d->allocator, d->folder);
    mem_free(d->allocator, d);
}

size_t dnn_memory(const dnn *d)
{
    return d->memory;
}

/* Makes sure that the workspace has so many bytes. */
static ct_status reserve(dnn *d, size_t bytes, ct_error *error)
{
    if (bytes <= d->workspace)
        return CT_OK;
    if (d->block_count == MAX_BLOCKS)
        return error_set(error, CT_EINTERNAL, "cuDNN's workspace grew %d times", MAX_BLOCKS);
    const size_t unit = (size_t)2 << 20;
    const size_t size = (bytes + unit - 1) / unit * unit;
    cu_address block = 0;
    const cu_result r = d->driver->mem_alloc(&block, size);
    if (r != 0)
        return cuda_check(d->driver, r, "taking memory for cuDNN", error);
    d->blocks[d->block_count++] = block;
    d->workspace = size;
    d->memory += size;
    return CT_OK;
}

static bool is_memory(cudnn_status s)
{
    return s == CUDNN_HOST_ALLOCATION_FAILED || s == CUDNN_DEVICE_ALLOCATION_FAILED;
}

static ct_status dnn_error(const dnn *d, cudnn_status s, const char *what, ct_error *error)
{
    const int kind = s / 1000 * 1000;
    const ct_status code = is_memory(s) ? CT_ENOMEM
                           : kind == CUDNN_NOT_SUPPORTED || kind == CUDNN_BAD_PARAM
                               ? CT_EUNSUPPORTED
                               : CT_EDEVICE;
    char detail[400] = "";
    d->lib.last_error(detail, sizeof detail);
    return error_set(error, code, "%s cannot compute %s: %s%s%s", d->version, what,
                     d->lib.status_text(s), detail[0] ? ": " : "", detail);
}

/* ---- Plans ---------------------------------------------------------------------------------- */

static dnn_plan *find_plan(const dnn *d, const dnn_key *key)
{
    for (dnn_plan *p = d->plans; p; p = p->next)
        if (memcmp(&p->key, key, sizeof *key) == 0)
            return p;
    return NULL;
}

static dnn_plan *new_plan(const dnn *d, const dnn_key *key)
{
    dnn_plan *p = mem_zero_array(d->allocator, 1, sizeof *p);
    if (!p)
        return NULL;
    p->key = *key;
    dnn_graph_init(&p->graph, &d->lib);
    return p;
}

static void start_again(const dnn *d, dnn_graph *g)
{
    dnn_graph_free(g);
    dnn_graph_init(g, &d->lib);
}

/* Keeps a plan that is complete, or the knowledge that there is none. Without memory nothing is
 * known. */
static ct_status keep_plan(dnn *d, dnn_plan *p, const char *what, ct_error *error)
{
    if (!p->made && is_memory(p->reason)) {
        const ct_status status = dnn_error(d, p->reason, what, error);
        free_plan(d, p);
        return status;
    }
    if (!p->made)
        start_again(d, &p->graph);
    p->next = d->plans;
    d->plans = p;
    return CT_OK;
}

/* Fills in a plan from its file. */
static bool load_plan(const dnn *d, dnn_plan *p)
{
    if (!d->folder)
        return false;
    dnn_text text = {0};
    char *path = dnn_file_path(d->allocator, d->folder, d->machine, &p->key, sizeof p->key);
    p->made = path && dnn_file_read(d->allocator, path, &p->key, sizeof p->key, &text) &&
              dnn_plan_from_text(&p->graph, text.text, text.bytes, &p->step);
    p->scratch = p->made ? text.scratch : 0;
    if (!p->made)
        start_again(d, &p->graph);
    mem_free(d->allocator, text.text);
    mem_free(d->allocator, path);
    return p->made;
}

/* Where that fails, the plan is made again by the next run. */
static void store_plan(const dnn *d, const dnn_plan *p)
{
    if (!d->folder || !p->made)
        return;
    dnn_text text = {.scratch = p->scratch};
    char *path = dnn_file_path(d->allocator, d->folder, d->machine, &p->key, sizeof p->key);
    if (path)
        text.text = dnn_plan_text(&d->lib, d->allocator, &p->step, &text.bytes);
    if (text.text)
        dnn_file_write(path, &p->key, sizeof p->key, &text, NULL);
    mem_free(d->allocator, text.text);
    mem_free(d->allocator, path);
}

/* What a plan is given: pairs of an id and a pointer. */
typedef struct dnn_pointers {
    int count;
    int64_t id[MAX_POINTERS];
    void *pointer[MAX_POINTERS];
} dnn_pointers;

static void give(dnn_pointers *p, int64_t id, cu_address address)
{
    p->id[p->count] = id;
    p->pointer[p->count++] = (void *)(uintptr_t)address;
}

static void give_number(dnn_pointers *p, int64_t id, float *number)
{
    p->id[p->count] = id;
    p->pointer[p->count++] = number;
}

static cudnn_status run_step(const dnn *d, const dnn_step *step, const dnn_pointers *p,
                             cu_address workspace)
{
    return dnn_run(&d->lib, step, p->count, p->id, p->pointer, (void *)(uintptr_t)workspace);
}

static cu_address workspace_of(const dnn *d)
{
    return d->block_count ? d->blocks[d->block_count - 1] : 0;
}

static int data_type(dtype type)
{
    return type == DTYPE_BF16 ? DNN_BFLOAT16 : type == DTYPE_F16 ? DNN_HALF : DNN_FLOAT;
}

/* ---- Attention ------------------------------------------------------------------------------ */

/* [1, heads, rows, dim] in a matrix with rows of heads side by side. */
static dnn_shape heads_of(int64_t heads, int64_t rows, int64_t dim, int64_t stride)
{
    return (dnn_shape){4, {1, heads, rows, dim}, {rows * stride, dim, stride, 1}};
}

static void build_single(dnn_graph *g, const dnn_attention *p)
{
    const int type = data_type(p->type);
    const dnn_shape q = heads_of(p->heads, p->queries, p->dim, p->q_stride);
    const dnn_shape k = heads_of(p->kv_heads, p->keys, p->dim, p->k_stride);
    const dnn_shape v = heads_of(p->kv_heads, p->keys, p->dim, p->v_stride);
    const dnn_shape out = heads_of(p->heads, p->queries, p->dim, p->out_stride);
    dnn_sdpa(g, dnn_tensor(g, ID_Q, type, &q), dnn_tensor(g, ID_K, type, &k),
             dnn_tensor(g, ID_V, type, &v), dnn_number(g, ID_SCALE, DNN_FLOAT, 1),
             dnn_tensor(g, ID_RESULT, type, &out));
}

/* Scores that no query may see become the lowest number: where row >= column is false. */
static cudnn_object build_mask(dnn_graph *g, cudnn_object scores, const dnn_shape *shape)
{
    cudnn_object row = dnn_between(g, DNN_INT32, shape), column = dnn_between(g, DNN_INT32, shape);
    cudnn_object seen = dnn_between(g, DNN_BOOLEAN, shape);
    cudnn_object masked = dnn_between(g, DNN_FLOAT, shape);
    dnn_pointwise(g, DNN_POINTWISE_GEN_INDEX, DNN_FLOAT, scores, NULL, NULL, row, 2);
    dnn_pointwise(g, DNN_POINTWISE_GEN_INDEX, DNN_FLOAT, scores, NULL, NULL, column, 3);
    dnn_pointwise(g, DNN_POINTWISE_CMP_GE, DNN_BOOLEAN, row, column, NULL, seen, 0);
    dnn_pointwise(g, DNN_POINTWISE_BINARY_SELECT, DNN_FLOAT, scores,
                  dnn_number(g, ID_LOWEST, DNN_FLOAT, 4), seen, masked, 0);
    return masked;
}

/* The graph that cuDNN takes for attention. Order and number of operations are part of the pattern:
 * without the logarithm of the sums, which nobody reads, cuDNN 9.19 does not know it. */
static void build_composed(dnn_graph *g, const dnn_attention *p)
{
    const int type = data_type(p->type);
    const dnn_shape q = heads_of(p->heads, p->queries, p->dim, p->q_stride);
    const dnn_shape v = heads_of(p->kv_heads, p->keys, p->dim, p->v_stride);
    const dnn_shape out = heads_of(p->heads, p->queries, p->dim, p->out_stride);
    const dnn_shape kt = {
        4, {1, p->kv_heads, p->dim, p->keys}, {p->keys * p->k_stride, p->dim, 1, p->k_stride}};
    const dnn_shape all = dnn_packed(1, p->heads, p->queries, p->keys);
    const dnn_shape rows = dnn_packed(1, p->heads, p->queries, 1);
    cudnn_object scores = dnn_between(g, DNN_FLOAT, &all);
    dnn_matmul(g, dnn_tensor(g, ID_Q, type, &q), dnn_tensor(g, ID_K, type, &kt), scores);
    cudnn_object scaled = dnn_between(g, DNN_FLOAT, &all);
    dnn_pointwise(g, DNN_POINTWISE_MUL, DNN_FLOAT, scores, dnn_number(g, ID_SCALE, DNN_FLOAT, 4),
                  NULL, scaled, 0);
    if (p->causal)
        scaled = build_mask(g, scaled, &all);
    cudnn_object most = dnn_between(g, DNN_FLOAT, &rows), sum = dnn_between(g, DNN_FLOAT, &rows);
    cudnn_object less = dnn_between(g, DNN_FLOAT, &all), power = dnn_between(g, DNN_FLOAT, &all);
    cudnn_object share = dnn_between(g, type, &all), log = dnn_between(g, DNN_FLOAT, &rows);
    dnn_reduce(g, DNN_REDUCE_MAX, scaled, most);
    dnn_pointwise(g, DNN_POINTWISE_SUB, DNN_FLOAT, scaled, most, NULL, less, 0);
    dnn_pointwise(g, DNN_POINTWISE_EXP, DNN_FLOAT, less, NULL, NULL, power, 0);
    dnn_reduce(g, DNN_REDUCE_ADD, power, sum);
    dnn_pointwise(g, DNN_POINTWISE_LOG, DNN_FLOAT, sum, NULL, NULL, log, 0);
    dnn_pointwise(g, DNN_POINTWISE_ADD, DNN_FLOAT, most, log, NULL,
                  dnn_tensor(g, ID_STATS, DNN_FLOAT, &rows), 0);
    dnn_pointwise(g, DNN_POINTWISE_DIV, DNN_FLOAT, power, sum, NULL, share, 0);
    dnn_matmul(g, share, dnn_tensor(g, ID_V, type, &v), dnn_tensor(g, ID_RESULT, type, &out));
}

static bool single_node(const dnn *d, const dnn_attention *p)
{
    return d->lib.number >= 91301 && !p->causal && !p->composed;
}

static bool attention_fits(const dnn_attention *p)
{
    return (p->type == DTYPE_F16 || p->type == DTYPE_BF16) && p->heads > 0 && p->kv_heads > 0 &&
           p->heads % p->kv_heads == 0 && p->dim > 0 && p->dim % 8 == 0 && p->queries > 0 &&
           p->keys > 0 && (p->q_stride | p->k_stride | p->v_stride | p->out_stride) % 8 == 0;
}

static ct_status plan_attention(dnn *d, const dnn_attention *p, const dnn_key *key,
                                const char *what, dnn_plan **out, ct_error *error)
{
    dnn_plan *plan = new_plan(d, key);
    if (!plan)
        return error_memory(error, sizeof *plan, "a plan of cuDNN");
    *out = plan;
    if (load_plan(d, plan))
        return keep_plan(d, plan, what, error);
    dnn_graph *g = &plan->graph;
    const unsigned barred = 1u << DNN_NOTE_NONDETERMINISTIC;
    plan->reason = CUDNN_NOT_SUPPORTED;
    const bool fits = attention_fits(p);
    if (fits && single_node(d, p)) {
        build_single(g, p);
        plan->made = dnn_graph_plans(g, barred, MAX_WORKSPACE, &plan->step, 1) == 1;
        plan->reason = g->status;
    }
    if (fits && !plan->made) {
        start_again(d, g);
        build_composed(g, p);
        plan->made = dnn_graph_plans(g, barred, MAX_WORKSPACE, &plan->step, 1) == 1;
        plan->scratch = ((size_t)(p->heads * p->queries) * sizeof(float) + 255) / 256 * 256;
        plan->reason = g->status;
    }
    store_plan(d, plan);
    return keep_plan(d, plan, what, error);
}

ct_status dnn_attend(dnn *d, const dnn_attention *p, const dnn_attention_operands *at,
                     ct_error *error)
{
    const dnn_key key = {1,
                         {p->type, p->heads, p->kv_heads, p->dim, p->queries, p->keys, p->q_stride,
                          p->k_stride, p->v_stride, p->out_stride, p->causal, p->composed}};
    char what[160];
    snprintf(what, sizeof what,
             "attention of %" PRId64 " queries to %" PRId64 " keys, %d and %d heads of %d, %s%s",
             p->queries, p->keys, p->heads, p->kv_heads, p->dim, dtype_name(p->type),
             p->causal ? ", causal" : "");
    dnn_plan *plan = find_plan(d, &key);
    ct_status status = plan ? CT_OK : plan_attention(d, p, &key, what, &plan, error);
    if (status != CT_OK)
        return status;
    if (!plan->made || (at->q | at->k | at->v | at->out) % 16 != 0)
        return error_set(error, CT_EUNSUPPORTED, "%s has no engine for %s: %s", d->version, what,
                         plan->made ? "addresses must be multiples of 16"
                                    : d->lib.status_text(plan->reason));
    status = reserve(d, plan->scratch + plan->step.workspace, error);
    if (status != CT_OK)
        return status;
    float scale = (float)(1.0 / sqrt((double)p->dim));
    /* Before 9.10 the library took no infinity here. */
    float lowest = d->lib.number < 91000 ? -FLT_MAX : -INFINITY;
    dnn_pointers given = {0};
    give(&given, ID_Q, at->q);
    give(&given, ID_K, at->k);
    give(&given, ID_V, at->v);
    give(&given, ID_RESULT, at->out);
    give_number(&given, ID_SCALE, &scale);
    if (p->causal)
        give_number(&given, ID_LOWEST, &lowest);
    if (plan->scratch) /* composed */
        give(&given, ID_STATS, workspace_of(d));
    const cudnn_status s = run_step(d, &plan->step, &given, workspace_of(d) + plan->scratch);
    return s == CUDNN_OK ? CT_OK : dnn_error(d, s, what, error);
}

/* ---- Convolution ---------------------------------------------------------------------------- */

static int64_t out_size(const dnn_conv *p, int64_t in)
{
    return (in + p->pad_before + p->pad_after - p->kernel) / p->stride + 1;
}

static void build_convolution(dnn_graph *g, const dnn_conv *p)
{
    const dnn_shape x = dnn_channels_last(1, p->in, p->height, p->width);
    const dnn_shape w = dnn_channels_last(p->out, p->in, p->kernel, p->kernel);
    const dnn_shape y = dnn_channels_last(1, p->out, out_size(p, p->height), out_size(p, p->width));
    const int type = data_type(p->type);
    dnn_convolution(g, dnn_tensor(g, ID_X, type, &x), dnn_tensor(g, ID_W, type, &w),
                    dnn_tensor(g, ID_OUT, type, &y), p->stride, p->pad_before, p->pad_after);
}

static cudnn_status run_convolution(const dnn *d, const dnn_step *step, const dnn_conv_operands *at,
                                    cu_address workspace)
{
    dnn_pointers given = {0};
    give(&given, ID_X, at->x);
    give(&given, ID_W, at->w);
    give(&given, ID_OUT, at->out);
    return run_step(d, step, &given, workspace);
}

/* The smallest time of a plan in milliseconds; negative where it does not work. */
static ct_status time_convolution(const dnn *d, const dnn_step *step, const dnn_conv_operands *at,
                                  cu_address workspace, const cu_event *events, float *milliseconds,
                                  ct_error *error)
{
    const cuda_driver *driver = d->driver;
    *milliseconds = -1.0f;
    for (int round = 0; round <= ROUNDS; round++) { /* the first one loads the kernel */
        cu_result r = driver->event_record(events[0], d->stream);
        if (run_convolution(d, step, at, workspace) != CUDNN_OK) {
            *milliseconds = -1.0f;
            return CT_OK;
        }
        if (r == 0)
            r = driver->event_record(events[1], d->stream);
        if (r == 0)
            r = driver->event_wait(events[1]);
        float ms = 0;
        if (r == 0)
            r = driver->event_elapsed(&ms, events[0], events[1]);
        if (r != 0)
            return cuda_check(driver, r, "measuring a convolution", error);
        if (round == 1 || (round > 1 && ms < *milliseconds))
            *milliseconds = ms;
    }
    return CT_OK;
}

/* The fastest of several plans; the first one where measuring is impossible. */
static ct_status choose(const dnn *d, const dnn_step *candidates, int count,
                        const dnn_conv_operands *at, int *best, ct_error *error)
{
    *best = 0;
    if (count == 1)
        return CT_OK;
    cu_address memory = 0; /* the workspace of the engine that wants most */
    cu_event events[2] = {NULL, NULL};
    size_t most = 0;
    for (int i = 0; i < count; i++)
        most = candidates[i].workspace > most ? candidates[i].workspace : most;
    ct_status status = CT_OK;
    for (int i = 0; i < 2 && status == CT_OK; i++)
        status = cuda_check(d->driver, d->driver->event_create(&events[i], 0),
                            "measuring a convolution", error);
    if (status == CT_OK && most)
        status = cuda_check(d->driver, d->driver->mem_alloc(&memory, most),
                            "taking memory to measure a convolution", error);
    float fastest = -1.0f;
    for (int i = 0; i < count && status == CT_OK; i++) {
        float ms;
        status = time_convolution(d, &candidates[i], at, memory, events, &ms, error);
        if (status == CT_OK && ms >= 0 && (fastest < 0 || ms < BETTER * fastest)) {
            fastest = ms;
            *best = i;
        }
    }
    if (memory)
        d->driver->mem_free(memory);
    for (int i = 0; i < 2; i++)
        if (events[i])
            d->driver->event_destroy(events[i]);
    /* Too little memory to measure is no reason not to compute. */
    return status == CT_ENOMEM ? CT_OK : status;
}

/* Engines that would not compute what is asked for. Fourier transforms and Winograd's method round
 * worse than sums do; tensor cores see float32 as TF32. */
static unsigned barred_notes(dtype type, bool strict)
{
    unsigned barred = 1u << DNN_NOTE_NONDETERMINISTIC | 1u << DNN_NOTE_FFT |
                      1u << DNN_NOTE_WINOGRAD | 1u << DNN_NOTE_WINOGRAD_TILE_4x4 |
                      1u << DNN_NOTE_WINOGRAD_TILE_6x6 | 1u << DNN_NOTE_WINOGRAD_TILE_13x13;
    if (strict)
        barred |= 1u << DNN_NOTE_REDUCED_PRECISION_REDUCTION;
    if (type == DTYPE_F32)
        barred |= 1u << DNN_NOTE_TENSOR_CORE | 1u << DNN_NOTE_DOWN_CONVERT_INPUTS;
    return barred;
}

static int convolution_plans(const dnn *d, dnn_graph *g, const dnn_conv *p, dnn_step *candidates)
{
    int count = 0;
    /* Sums in 16 bits only where there is nothing else, and never of float32. */
    for (int strict = 1; strict >= (p->type == DTYPE_F32) && count == 0; strict--) {
        start_again(d, g);
        build_convolution(g, p);
        count = dnn_graph_plans(g, barred_notes(p->type, strict), MAX_WORKSPACE, candidates,
                                MAX_CANDIDATES);
    }
    return count;
}

static ct_status plan_convolution(dnn *d, const dnn_conv *p, const dnn_key *key,
                                  const dnn_conv_operands *at, const char *what, dnn_plan **out,
                                  ct_error *error)
{
    dnn_plan *plan = new_plan(d, key);
    if (!plan)
        return error_memory(error, sizeof *plan, "a plan of cuDNN");
    *out = plan;
    if (load_plan(d, plan))
        return keep_plan(d, plan, what, error);
    dnn_step candidates[MAX_CANDIDATES];
    dnn_graph *g = &plan->graph;
    const int count = convolution_plans(d, g, p, candidates);
    int best = 0;
    plan->made = count > 0;
    plan->reason = g->status;
    if (plan->made) {
        const ct_status status = choose(d, candidates, count, at, &best, error);
        if (status != CT_OK) {
            free_plan(d, plan);
            return status;
        }
        plan->step = candidates[best];
    }
    for (int i = 0; i < count; i++)
        if (i != best)
            dnn_graph_drop(g, candidates[i].plan);
    store_plan(d, plan);
    return keep_plan(d, plan, what, error);
}

static bool convolution_fits(const dnn_conv *p)
{
    return (p->type == DTYPE_F32 || p->type == DTYPE_F16 || p->type == DTYPE_BF16) && p->in > 0 &&
           p->out > 0 && p->kernel > 0 && p->stride > 0 && p->pad_before >= 0 &&
           p->pad_after >= 0 && p->height + p->pad_before + p->pad_after >= p->kernel &&
           p->width + p->pad_before + p->pad_after >= p->kernel && p->height > 0 && p->width > 0;
}

ct_status dnn_convolve(dnn *d, const dnn_conv *p, const dnn_conv_operands *at, ct_error *error)
{
    const dnn_key key = {2,
                         {p->type, p->height, p->width, p->in, p->out, p->kernel, p->stride,
                          p->pad_before, p->pad_after}};
    char what[160];
    snprintf(what, sizeof what,
             "a convolution of [%" PRId64 ", %" PRId64 ", %" PRId64 "] to %" PRId64
             " channels, kernel %d, stride %d, %s",
             p->height, p->width, p->in, p->out, p->kernel, p->stride, dtype_name(p->type));
    if (!convolution_fits(p) || (at->x | at->w | at->out) % 16 != 0)
        return error_set(error, CT_EUNSUPPORTED,
                         "%s has no engine for %s: shape, type or alignment to 16 bytes",
                         d->version, what);
    dnn_plan *plan = find_plan(d, &key);
    ct_status status = plan ? CT_OK : plan_convolution(d, p, &key, at, what, &plan, error);
    if (status != CT_OK)
        return status;
    if (!plan->made)
        return error_set(error, CT_EUNSUPPORTED, "%s has no engine for %s: %s", d->version, what,
                         d->lib.status_text(plan->reason));
    status = reserve(d, plan->step.workspace, error);
    if (status != CT_OK)
        return status;
    const cudnn_status s = run_convolution(d, &plan->step, at, workspace_of(d));
    return s == CUDNN_OK ? CT_OK : dnn_error(d, s, what, error);
}
