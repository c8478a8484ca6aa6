/* ct_bench: how fast the operations of a network are on this machine, as a share of its own peak.
 * They run as a model would call them, on numbers without meaning. */
#include "core/clock.h"
#include "core/mem.h"
#include "nn/cpu/peak.h"
#include "pipeline/internal.h"

#include <string.h>

#define DEFAULT_SECONDS 0.5
#define DEFAULT_ROWS 1088 /* 512 x 512 pixels and a caption: 1024 patches and 64 tokens */
#define HEADS 30
#define HEAD_DIM 128
#define WIDTH (HEADS * HEAD_DIM) /* of Z-Image */
#define HIDDEN 10240
#define GROUP 64
#define MAX_ROWS 65536

typedef struct bench {
    ct_context *context;
    const ct_bench_params *p;
    double peak[CPU_COMPUTES]; /* of all threads, 10^9 operations per second */
    unsigned char *weights;    /* stands for all weights */
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
    int bits;            /* of a linear layer's weights; 0: bfloat16 */
    int64_t m, n, k;     /* linear, convolution (pixels of a side, channels, channels) */
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

/* The product that a precision uses here, and the peak that goes with it. */
static void describe_product(const bench *b, work *w)
{
    static const char *const names[] = {"fp32", "bf16", "int8"};
    const cpu_kernels *kernels = &b->context->kernels;
    cpu_compute compute = w->precision == NN_F32    ? CPU_F32
                          : w->precision == NN_INT8 ? CPU_INT8
                                                    : CPU_BF16;
    w->line.compute = names[compute];
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

/* As many tasks as threads, all of the same length: each thread takes one. */
static ct_status measure_peaks(bench *b, ct_error *error)
{
    static const char *const names[] = {"fp32", "bf16", "int8"};
    ct_context *context = b->context;
    const int threads = pool_threads(context->threads);
    double *rates = mem_array(&context->allocator, (size_t)threads, sizeof *rates);
    if (!rates)
        return error_memory(error, (size_t)threads * sizeof *rates, "the peaks");
    for (int i = 0; i < CPU_COMPUTES; i++) {
        const cpu_gemm *gemm = context->kernels.gemm[i];
        if (!gemm || gemm == cpu_gemm_reference((cpu_compute)i))
            continue;
        peak_run r = {(cpu_compute)i, context->kernels.features, b->p->seconds / 3, rates};
        for (int round = 0; round < 3; round++) {
            double sum = 0;
            pool_run(context->threads, threads, peak_task, &r);
            for (int t = 0; t < threads; t++)
                sum += rates[t];
            b->peak[i] = sum > b->peak[i] ? sum : b->peak[i];
        }
        const ct_bench_line line = {.operation = "peak",
                                    .shape = "registers alone",
                                    .compute = names[i],
                                    .kernel = gemm->name,
                                    .unit = i == CPU_INT8 ? "GOP/s" : "GFLOP/s",
                                    .runs = 3,
                                    .seconds = r.seconds,
                                    .rate = b->peak[i],
                                    .peak = b->peak[i]};
        if (b->peak[i] > 0)
            b->p->line(b->p->user, &line);
    }
    mem_free(&context->allocator, rates);
    return CT_OK;
}

/* ---- Linear ---------------------------------------------------------------------------------- */

static void make_linear(nn *c, work *w)
{
    const int64_t n[] = {w->n, w->k};
    w->w = w->up = make_weight(w->b, w->bits, 2, n);
    if (w->epilogue.activation == NN_SILU)
        w->epilogue.up = &w->up;
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

static ct_status bench_linear(bench *b, ct_error *error)
{
    static const struct {
        const char *name;
        int64_t n, k;
        bool swiglu;
    } layers[] = {
        {"attention, to q, k, v and out", WIDTH, WIDTH, false},
        {"feed-forward, SwiGLU", HIDDEN, WIDTH, true},
        {"feed-forward, down", WIDTH, HIDDEN, false},
    };
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
        for (size_t i = 0; i < sizeof layers / sizeof *layers && status == CT_OK; i++) {
            work w = {.make = make_linear,
                      .run = run_linear,
                      .precision = ways[j].precision,
                      .bits = ways[j].bits,
                      .m = b->p->rows,
                      .n = layers[i].n,
                      .k = layers[i].k};
            if (layers[i].swiglu)
                w.epilogue.activation = NN_SILU;
            w.amount = 2.0 * (double)(w.m * w.n * w.k) * (layers[i].swiglu ? 2 : 1);
            w.line = (ct_bench_line){.operation = "linear",
                                     .shape = layers[i].name,
                                     .weights = ways[j].weights,
                                     .m = w.m,
                                     .n = layers[i].swiglu ? 2 * w.n : w.n,
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
    w->x = nn_new2(c, w->m, 3 * WIDTH);
    w->out = nn_new2(c, w->m, WIDTH);
    fill_floats(&w->x);
}

static void run_attention(nn *c, work *w)
{
    nn_tensor q = nn_columns(&w->x, 0, WIDTH), k = nn_columns(&w->x, WIDTH, WIDTH);
    nn_tensor v = nn_columns(&w->x, 2 * WIDTH, WIDTH);
    nn_attention(c, &w->out, &q, &k, &v, HEADS, HEADS, false);
}

static ct_status bench_attention(bench *b, ct_error *error)
{
    /* 512 x 512 and 1024 x 1024 pixels with a caption */
    static const int64_t lengths[] = {DEFAULT_ROWS, 4160};
    ct_status status = CT_OK;
    for (int precision = NN_F32; precision <= NN_BF16; precision++)
        for (int i = 0; i < 2 && status == CT_OK; i++) {
            work w = {.make = make_attention,
                      .run = run_attention,
                      .precision = (nn_precision)precision,
                      .m = lengths[i]};
            w.amount = 4.0 * (double)(w.m * w.m) * WIDTH;
            w.line = (ct_bench_line){.operation = "attention",
                                     .shape = "30 heads of 128",
                                     .m = w.m,
                                     .n = w.m,
                                     .k = HEAD_DIM};
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
static ct_status bench_conv(bench *b, ct_error *error)
{
    static const struct {
        const char *name;
        int64_t channels, side;
    } layers[] = {
        {"512 channels, 64 x 64", 512, 64},
        {"512 channels, 128 x 128", 512, 128},
        {"256 channels, 256 x 256", 256, 256},
        {"128 channels, 512 x 512", 128, 512},
    };
    ct_status status = CT_OK;
    for (size_t i = 0; i < sizeof layers / sizeof *layers && status == CT_OK; i++) {
        const int64_t pixels = layers[i].side * layers[i].side, channels = layers[i].channels;
        work w = {.make = make_conv,
                  .run = run_conv,
                  .precision = NN_F32,
                  .m = layers[i].side,
                  .n = channels,
                  .amount = 18.0 * (double)(pixels * channels * channels)};
        w.line = (ct_bench_line){.operation = "convolution",
                                 .shape = layers[i].name,
                                 .m = pixels,
                                 .n = channels,
                                 .k = 9 * channels};
        describe_product(b, &w);
        status = run_work(b, &w, error);
    }
    return status;
}

/* ---- Passes over rows ------------------------------------------------------------------------ */

static void make_rows(nn *c, work *w)
{
    const int64_t n[] = {WIDTH}, dim[] = {HEAD_DIM};
    w->vector = make_weight(w->b, 0, 1, n);
    w->w = make_weight(w->b, 0, 1, dim);
    w->x = nn_new2(c, w->m, WIDTH);
    w->y = nn_new2(c, w->m, WIDTH);
    w->out = w->precision == NN_F32 ? nn_new2(c, w->m, WIDTH) : nn_new_operand(c, w->m, WIDTH);
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
    nn_head_norm_rope(c, &w->x, HEADS, &w->w, 1e-5, &angles, &angles, NN_ROPE_INTERLEAVED);
}

static ct_status bench_rows(bench *b, ct_error *error)
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
                  .m = b->p->rows};
        w.amount = (double)(w.m * WIDTH) * passes[i].bytes;
        w.line =
            (ct_bench_line){.operation = "rows", .shape = passes[i].name, .m = w.m, .n = WIDTH};
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
    if (p->rows < 0 || p->rows > MAX_ROWS)
        return error_set(error, CT_EINVAL, "rows is %d; it must be 1 to %d", p->rows, MAX_ROWS);
    if (!(p->seconds >= 0 && p->seconds <= 3600))
        return error_set(error, CT_EINVAL, "seconds is %g; it must be 0 to 3600", p->seconds);
    return CT_OK;
}

ct_status ct_bench(ct_context *context, const ct_bench_params *params, ct_error *error)
{
    static const struct {
        unsigned what;
        ct_status (*run)(bench *b, ct_error *error);
    } parts[] = {
        {CT_BENCH_LINEAR, bench_linear},
        {CT_BENCH_ATTENTION, bench_attention},
        {CT_BENCH_CONVOLUTION, bench_conv},
        {CT_BENCH_ROWS, bench_rows},
    };
    ct_status status = check(context, params, error);
    if (status != CT_OK)
        return status;
    ct_bench_params p = *params;
    if (p.rows == 0)
        p.rows = DEFAULT_ROWS;
    if (p.seconds == 0)
        p.seconds = DEFAULT_SECONDS;
    bench b = {.context = context, .p = &p};
    /* The largest matrix as bfloat16; as 8 bits with its scales it is smaller. */
    b.weight_bytes = (size_t)HIDDEN * WIDTH * 2;
    b.weights = mem_alloc_aligned(&context->allocator, b.weight_bytes);
    if (!b.weights)
        return error_memory(error, b.weight_bytes, "weights");
    fill_weights(b.weights, b.weight_bytes);
    status = measure_peaks(&b, error);
    for (size_t i = 0; i < sizeof parts / sizeof *parts && status == CT_OK; i++)
        if (p.what & parts[i].what)
            status = parts[i].run(&b, error);
    mem_free_aligned(&context->allocator, b.weights);
    return status;
}
