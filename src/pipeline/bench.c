/* ct_bench: how fast the operations of a network are on this machine, as a share of its own peak.
 * They run as a model would call them, on numbers without meaning. Which shapes: bench_shapes.c. */
#include "core/clock.h"
#include "core/mem.h"
#include "nn/cpu/peak.h"
#include "pipeline/bench_shapes.h"
#include "pipeline/internal.h"

#include <stdio.h>
#include <string.h>

#define DEFAULT_SECONDS 0.5
#define DEFAULT_SIDE 512
#define HEAD_DIM 128 /* of all models */
#define GROUP 64
#define MAX_ROWS 65536
#define MIN_SIDE 64
#define MAX_SIDE 4096
#define SIDE_UNIT 16

typedef struct bench {
    ct_context *context;
    const ct_bench_params *p;
    double
        peak[CPU_COMPUTES];   /* of all threads with the context's kernels, 10^9 operations per s */
    const bench_model *model; /* whose shapes now, */
    int side;                 /* and for pictures of this size */
    unsigned char *weights;   /* stands for all weights */
    size_t weight_bytes;
} bench;

/* One line: what it runs. make takes the tensors, run is what is measured. */
typedef struct work {
    const bench *b;
    ct_bench_line line;
    nn_precision precision;
    double amount; /* operations, or bytes, of a run */
    void (*make)(nn *c, struct work *w);
    void (*run)(nn *c, struct work *w);
    int bits;        /* of a linear layer's weights; 0: bfloat16 */
    bool bias;       /* of a linear layer */
    int64_t m, n, k; /* linear, convolution (pixels of a side, channels, channels) */
    int64_t width;   /* attention, rows */
    int heads;
    nn_tensor x, y, out; /* what run reads and writes */
    nn_weight w, up, vector;
    nn_epilogue epilogue;
} work;

/* ---- Numbers --------------------------------------------------------------------------------- */

/* Pairs of bytes that are small numbers as bfloat16 and anything as codes of few bits. */
static void fill_weights(unsigned char *bytes, size_t size)
{
    uint64_t state = 1;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint64_t word = ((state ^ state >> 32) & 0x80ff80ff80ff80ffu) | 0x3c003c003c003c00u;
        memcpy(bytes + i, &word, 8);
    }
}

/* Uniform in -1..1. */
static void fill_floats(const nn_tensor *t)
{
    uint32_t state = 1;
    const int64_t count = t->data ? nn_count(t) : 0;
    for (int64_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        t->data[i] = (float)(int32_t)state * 0x1p-31f;
    }
}

static nn_weight make_weight(const bench *b, int bits, int rank, const int64_t *n)
{
    nn_weight w = {.name = "bench",
                   .type = DTYPE_BF16,
                   .rank = rank,
                   .data = b->weights,
                   .bits = bits,
                   .group = bits ? GROUP : 0};
    memcpy(w.n, n, (size_t)rank * sizeof *n);
    if (bits) /* scales behind all codes; the biases may be the same numbers */
        w.scales = w.biases = b->weights + n[0] * n[1];
    return w;
}

/* ---- Measuring ------------------------------------------------------------------------------- */

/* Runs until the time is over, at least three times. */
static void measure(nn *c, work *w)
{
    const double end = clock_seconds() + w->b->p->seconds;
    w->line.seconds = 0;
    for (w->line.runs = 0; w->line.runs < 3 || clock_seconds() < end; w->line.runs++) {
        double start = clock_seconds();
        w->run(c, w);
        double seconds = clock_seconds() - start;
        if (w->line.runs == 0 || seconds < w->line.seconds)
            w->line.seconds = seconds;
        if (nn_stopped(c))
            return;
    }
}

static ct_status run_work(const bench *b, work *w, ct_error *error)
{
    ct_context *context = b->context;
    nn_params params = {.allocator = &context->allocator,
                        .threads = context->threads,
                        .kernels = &context->kernels,
                        .dry = true,
                        .precision = w->precision,
                        .cancel = context->callbacks.cancel,
                        .cancel_user = context->callbacks.user};
    ct_status status = CT_OK;
    w->b = b;
    w->line.model = b->model->name;
    w->line.side = b->side;
    for (int real = 0; real < 2 && status == CT_OK; real++) {
        nn *c;
        params.dry = !real;
        status = nn_create(&c, &params, error);
        if (status != CT_OK)
            break;
        w->make(c, w);
        if (real)
            measure(c, w);
        else
            w->run(c, w);
        status = nn_status(c, error);
        params.arena_bytes = nn_peak(c);
        nn_free(c);
    }
    if (status != CT_OK)
        return status;
    w->line.rate = w->amount / w->line.seconds * 1e-9;
    b->p->line(b->p->user, &w->line);
    return CT_OK;
}

static const char *const compute_names[] = {"fp32", "bf16", "int8"};

/* The product that a precision uses here, and the peak that goes with it. */
static void describe_product(const bench *b, work *w)
{
    const cpu_kernels *kernels = &b->context->kernels;
    cpu_compute compute = w->precision == NN_F32    ? CPU_F32
                          : w->precision == NN_INT8 ? CPU_INT8
                                                    : CPU_BF16;
    w->line.compute = compute_names[compute];
    if (!kernels->gemm[compute])
        compute = CPU_F32;
    w->line.kernel = kernels->gemm[compute]->name;
    w->line.peak = b->peak[compute];
    w->line.unit = compute == CPU_INT8 ? "GOP/s" : "GFLOP/s";
}

/* ---- Peak ------------------------------------------------------------------------------------ */

typedef struct peak_run {
    cpu_compute compute;
    uint32_t features;
    double seconds;
    double *rates; /* of each task */
} peak_run;

static void peak_task(void *user, int64_t index, int worker)
{
    (void)worker;
    const peak_run *r = user;
    r->rates[index] = cpu_peak_gflops(r->compute, r->features, r->seconds);
}

/* As many tasks as threads, all of the same length: each thread takes one. The best of three. */
static double measure_peak(const bench *b, const cpu_gemm *gemm, double *rates)
{
    ct_context *context = b->context;
    const int threads = pool_threads(context->threads);
    double best = 0;
    peak_run r = {gemm->compute, gemm->features, b->p->seconds / 3, rates};
    for (int round = 0; round < 3; round++) {
        double sum = 0;
        pool_run(context->threads, threads, peak_task, &r);
        for (int t = 0; t < threads; t++)
            sum += rates[t];
        best = sum > best ? sum : best;
    }
    return best;
}

static bool cancelled(const ct_context *context)
{
    const ct_callbacks *c = &context->callbacks;
    return c->cancel && c->cancel(c->user);
}

/* Whether the processor can, and no better one of the same features stands behind it. */
static bool has_peak(const cpu_gemm *gemm)
{
    return !(gemm->features & ~cpu_features()) &&
           gemm == cpu_gemm_choose(gemm->compute, gemm->features) &&
           gemm != cpu_gemm_reference(gemm->compute);
}

/* Of every instruction set that the processor has; shares are of what the context uses. */
static ct_status measure_peaks(bench *b, ct_error *error)
{
    ct_context *context = b->context;
    const size_t threads = (size_t)pool_threads(context->threads);
    double *rates = mem_array(&context->allocator, threads, sizeof *rates);
    ct_status status = CT_OK;
    if (!rates)
        return error_memory(error, threads * sizeof *rates, "the peaks");
    for (int i = 0; i < CPU_COMPUTES; i++)
        for (int j = 0; cpu_gemms[j] && status == CT_OK; j++) {
            const cpu_gemm *gemm = cpu_gemms[j];
            if ((int)gemm->compute != i || !has_peak(gemm))
                continue;
            const double rate = measure_peak(b, gemm, rates);
            if (gemm == context->kernels.gemm[i])
                b->peak[i] = rate;
            const ct_bench_line line = {.operation = "peak",
                                        .compute = compute_names[i],
                                        .kernel = gemm->name,
                                        .unit = i == CPU_INT8 ? "GOP/s" : "GFLOP/s",
                                        .runs = 3,
                                        .seconds = b->p->seconds / 3,
                                        .rate = rate,
                                        .peak = rate};
            if (rate > 0)
                b->p->line(b->p->user, &line);
            if (cancelled(context))
                status = error_set(error, CT_ECANCELLED, "cancelled");
        }
    mem_free(&context->allocator, rates);
    return status;
}

/* ---- Linear ---------------------------------------------------------------------------------- */

static void make_linear(nn *c, work *w)
{
    const int64_t n[] = {w->n, w->k};
    w->w = w->up = make_weight(w->b, w->bits, 2, n);
    w->vector = make_weight(w->b, 0, 1, n);
    if (w->epilogue.activation == NN_SILU)
        w->epilogue.up = &w->up;
    if (w->bias)
        w->epilogue.bias = &w->vector;
    w->x = nn_new_operand(c, w->m, w->k);
    w->out = nn_new2(c, w->m, w->n);
    size_t mark = nn_mark(c);
    w->y = nn_new2(c, w->m, w->k);
    fill_floats(&w->y);
    nn_prepare(c, &w->x, &w->y);
    nn_release(c, mark);
}

static void run_linear(nn *c, work *w)
{
    nn_linear(c, &w->out, &w->x, &w->w, &w->epilogue);
}

static bool wanted(const bench *b, nn_precision precision)
{
    const ct_precision asked = b->p->precision;
    return asked == CT_PRECISION_AUTO || asked == (precision == NN_F32    ? CT_PRECISION_FP32
                                                   : precision == NN_INT8 ? CT_PRECISION_INT8
                                                                          : CT_PRECISION_BF16);
}

static ct_status bench_gemm(bench *b, ct_error *error)
{
    static const struct {
        nn_precision precision;
        int bits;
        const char *weights;
    } ways[] = {
        {NN_F32, 0, "bf16"},    {NN_BF16, 0, "bf16"},   {NN_INT8, 0, "bf16"},
        {NN_BF16, 8, "8 bits"}, {NN_BF16, 4, "4 bits"}, {NN_INT8, 8, "8 bits"},
        {NN_INT8, 4, "4 bits"},
    };
    ct_status status = CT_OK;
    for (size_t j = 0; j < sizeof ways / sizeof *ways; j++)
        for (const bench_layer *l = b->model->layer; l->name && status == CT_OK; l++) {
            if (!wanted(b, ways[j].precision))
                continue;
            const bool swiglu = l->activation == NN_SILU;
            work w = {.make = make_linear,
                      .run = run_linear,
                      .precision = ways[j].precision,
                      .bits = ways[j].bits,
                      .bias = l->bias,
                      .m = b->p->rows ? b->p->rows : bench_rows(b->model, l->tokens, b->side),
                      .n = l->n,
                      .k = l->k};
            w.epilogue.activation = l->activation;
            w.amount = 2.0 * (double)(w.m * w.n * w.k) * (swiglu ? 2 : 1);
            w.line = (ct_bench_line){.operation = "gemm",
                                     .layer = l->name,
                                     .weights = ways[j].weights,
                                     .m = w.m,
                                     .n = swiglu ? 2 * w.n : w.n,
                                     .k = w.k};
            describe_product(b, &w);
            status = run_work(b, &w, error);
        }
    return status;
}

/* ---- Attention ------------------------------------------------------------------------------- */

/* Queries, keys and values are parts of one matrix, as models have them. */
static void make_attention(nn *c, work *w)
{
    w->x = nn_new2(c, w->m, 3 * w->width);
    w->out = nn_new2(c, w->m, w->width);
    fill_floats(&w->x);
}

static void run_attention(nn *c, work *w)
{
    const int64_t width = w->width;
    nn_tensor q = nn_columns(&w->x, 0, width), k = nn_columns(&w->x, width, width);
    nn_tensor v = nn_columns(&w->x, 2 * width, width);
    nn_attention(c, &w->out, &q, &k, &v, w->heads, w->heads, false);
}

static ct_status bench_attention(bench *b, ct_error *error)
{
    char name[64];
    snprintf(name, sizeof name, "%d heads of %d", b->model->heads, HEAD_DIM);
    ct_status status = CT_OK;
    for (int precision = NN_F32; precision <= NN_BF16 && status == CT_OK; precision++) {
        if (!wanted(b, (nn_precision)precision))
            continue;
        work w = {.make = make_attention,
                  .run = run_attention,
                  .precision = (nn_precision)precision,
                  .width = b->model->width,
                  .heads = b->model->heads,
                  .m = bench_rows(b->model, BENCH_BOTH, b->side)};
        w.amount = 4.0 * (double)(w.m * w.m) * (double)w.width;
        w.line = (ct_bench_line){
            .operation = "attention", .layer = name, .m = w.m, .n = w.m, .k = HEAD_DIM};
        describe_product(b, &w);
        status = run_work(b, &w, error);
    }
    return status;
}

/* ---- Convolutions ---------------------------------------------------------------------------- */

static void make_conv(nn *c, work *w)
{
    const int64_t n[] = {w->n, w->n, 3, 3};
    w->w = make_weight(w->b, 0, 4, n);
    w->vector = make_weight(w->b, 0, 1, n);
    w->x = nn_new3(c, w->m, w->m, w->n);
    w->out = nn_new3(c, w->m, w->m, w->n);
    fill_floats(&w->x);
}

static void run_conv(nn *c, work *w)
{
    nn_conv2d(c, &w->out, &w->x, &w->w, &w->vector, NULL);
}

/* The operations of a direct convolution: with fewer products than that the share may exceed 1. */
static ct_status bench_convolution(bench *b, ct_error *error)
{
    ct_status status = CT_OK;
    for (int i = 0; i < BENCH_CONVS && status == CT_OK; i++) {
        const int64_t side = b->side / b->model->conv[i].divisor, pixels = side * side;
        const int64_t channels = b->model->conv[i].channels;
        char name[64];
        snprintf(name, sizeof name, "%d channels, %d x %d", (int)channels, (int)side, (int)side);
        work w = {.make = make_conv,
                  .run = run_conv,
                  .precision = NN_F32,
                  .m = side,
                  .n = channels,
                  .amount = 18.0 * (double)(pixels * channels * channels)};
        w.line = (ct_bench_line){
            .operation = "conv", .layer = name, .m = pixels, .n = channels, .k = 9 * channels};
        describe_product(b, &w);
        status = run_work(b, &w, error);
    }
    return status;
}

/* ---- Passes over rows ------------------------------------------------------------------------ */

static void make_rows(nn *c, work *w)
{
    const int64_t n[] = {w->width}, dim[] = {HEAD_DIM};
    w->vector = make_weight(w->b, 0, 1, n);
    w->w = make_weight(w->b, 0, 1, dim);
    w->x = nn_new2(c, w->m, w->width);
    w->y = nn_new2(c, w->m, w->width);
    w->out =
        w->precision == NN_F32 ? nn_new2(c, w->m, w->width) : nn_new_operand(c, w->m, w->width);
    fill_floats(&w->x);
    fill_floats(&w->y);
}

static void run_rms_norm(nn *c, work *w)
{
    nn_rms_norm(c, &w->out, &w->x, &w->vector, 1e-5, NULL);
}

static void run_add_rms_norm(nn *c, work *w)
{
    nn_add_rms_norm(c, &w->x, &w->y, &w->vector, 1e-5, NULL, NULL);
}

/* Cosines and sines are any numbers here. */
static void run_rope(nn *c, work *w)
{
    nn_tensor angles = w->y;
    angles.n[1] = angles.stride = HEAD_DIM / 2;
    nn_head_norm_rope(c, &w->x, w->heads, &w->w, 1e-5, &angles, &angles, NN_ROPE_INTERLEAVED);
}

static ct_status bench_passes(bench *b, ct_error *error)
{
    static const struct {
        const char *name;
        nn_precision precision;
        void (*run)(nn *c, work *w);
        int bytes; /* read and written for each number */
    } passes[] = {
        {"RMS norm", NN_F32, run_rms_norm, 8},
        {"RMS norm to bf16 operands", NN_BF16, run_rms_norm, 6},
        {"RMS norm to int8 operands", NN_INT8, run_rms_norm, 5},
        {"RMS norm, added", NN_F32, run_add_rms_norm, 12},
        {"norm of heads, rotation", NN_F32, run_rope, 8},
    };
    ct_status status = CT_OK;
    for (size_t i = 0; i < sizeof passes / sizeof *passes && status == CT_OK; i++) {
        work w = {.make = make_rows,
                  .run = passes[i].run,
                  .precision = passes[i].precision,
                  .width = b->model->width,
                  .heads = b->model->heads,
                  .m = b->p->rows ? b->p->rows : bench_rows(b->model, BENCH_BOTH, b->side)};
        w.amount = (double)(w.m * w.width) * passes[i].bytes;
        w.line =
            (ct_bench_line){.operation = "rows", .layer = passes[i].name, .m = w.m, .n = w.width};
        describe_product(b, &w);
        w.line.kernel = b->context->kernels.name;
        w.line.unit = "GB/s";
        w.line.peak = 0;
        status = run_work(b, &w, error);
    }
    return status;
}

/* ---- All ------------------------------------------------------------------------------------- */

void ct_bench_params_init(ct_bench_params *params)
{
    *params = (ct_bench_params){.struct_size = sizeof *params, .what = CT_BENCH_ALL};
}

static ct_status check(const ct_context *context, const ct_bench_params *p, ct_error *error)
{
    if (!context || !p)
        return error_set(error, CT_EINVAL, "ct_bench: an argument is NULL");
    if (p->struct_size != sizeof *p)
        return error_set(error, CT_EINVAL, "ct_bench: call ct_bench_params_init first");
    if (!p->line)
        return error_set(error, CT_EINVAL, "ct_bench: a function for the lines is needed");
    if (p->what == 0 || (p->what & ~(unsigned)CT_BENCH_ALL))
        return error_set(error, CT_EINVAL, "ct_bench: there is no work numbered %u", p->what);
    if (p->models & ~(unsigned)CT_BENCH_ALL_MODELS)
        return error_set(error, CT_EINVAL, "ct_bench: there is no model numbered %u", p->models);
    if (p->rows < 0 || p->rows > MAX_ROWS)
        return error_set(error, CT_EINVAL, "rows is %d; it must be 1 to %d", p->rows, MAX_ROWS);
    if (p->side_count < 0 || (p->side_count > 0 && !p->sides))
        return error_set(error, CT_EINVAL, "ct_bench: %d sides, but none are given", p->side_count);
    for (int i = 0; i < p->side_count; i++)
        if (p->sides[i] < MIN_SIDE || p->sides[i] > MAX_SIDE || p->sides[i] % SIDE_UNIT != 0)
            return error_set(error, CT_EINVAL,
                             "a side of %d pixels; it must be %d to %d, in multiples of %d",
                             p->sides[i], MIN_SIDE, MAX_SIDE, SIDE_UNIT);
    if (p->precision != CT_PRECISION_AUTO && p->precision != CT_PRECISION_FP32 &&
        p->precision != CT_PRECISION_BF16 && p->precision != CT_PRECISION_INT8)
        return error_set(error, CT_EINVAL,
                         "the processor has no products in that precision; it has fp32, bf16 and "
                         "int8");
    if (!(p->seconds >= 0 && p->seconds <= 3600))
        return error_set(error, CT_EINVAL, "seconds is %g; it must be 0 to 3600", p->seconds);
    return CT_OK;
}

static ct_status bench_size(bench *b, ct_error *error)
{
    static const struct {
        unsigned what;
        ct_status (*run)(bench *b, ct_error *error);
    } parts[] = {
        {CT_BENCH_GEMM, bench_gemm},
        {CT_BENCH_ATTENTION, bench_attention},
        {CT_BENCH_CONVOLUTION, bench_convolution},
        {CT_BENCH_ROWS, bench_passes},
    };
    ct_status status = CT_OK;
    for (size_t i = 0; i < sizeof parts / sizeof *parts && status == CT_OK; i++)
        if (b->p->what & parts[i].what)
            status = parts[i].run(b, error);
    return status;
}

ct_status ct_bench(ct_context *context, const ct_bench_params *params, ct_error *error)
{
    static const int one_side[] = {DEFAULT_SIDE};
    ct_status status = check(context, params, error);
    if (status != CT_OK)
        return status;
    ct_bench_params p = *params;
    if (p.models == 0)
        p.models = CT_BENCH_Z_IMAGE;
    if (p.side_count == 0) {
        p.sides = one_side;
        p.side_count = 1;
    }
    if (p.seconds == 0)
        p.seconds = DEFAULT_SECONDS;
    bench b = {.context = context, .p = &p};
    /* As 8 bits with its scales a matrix is smaller. */
    b.weight_bytes = bench_weight_bytes(p.models);
    b.weights = mem_alloc_aligned(&context->allocator, b.weight_bytes);
    if (!b.weights)
        return error_memory(error, b.weight_bytes, "weights");
    fill_weights(b.weights, b.weight_bytes);
    status = measure_peaks(&b, error);
    for (b.model = bench_models; b.model->name; b.model++)
        for (int i = 0; i < p.side_count && (p.models & b.model->bit) && status == CT_OK; i++) {
            b.side = p.sides[i];
            status = bench_size(&b, error);
        }
    mem_free_aligned(&context->allocator, b.weights);
    return status;
}
