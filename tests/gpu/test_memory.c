/* The GPU's memory: weights arrive whole and go again, blocks come and go in time, what is planned
 * is what is taken, and a lack of memory is an error at any moment. Runs with the driver of
 * fake_driver.c, whose memory and copies are real; products and kernels do nothing here. */
#include "test_support.h"

#include "core/mem.h"
#include "fake_driver.h"
#include "nn/cuda/schedule.h"
#include "pipeline/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- A GPU ----------------------------------------------------------------------------------- */

static struct {
    cuda_gpu gpu;
    pool *threads;
    fake_cuda_state *fake;
} g;

/* Products that were recorded. */
typedef struct recorded_product {
    cu_stream stream;
    cu_address workspace, x, out;
    uint64_t x_bytes, out_bytes; /* from the first number to the last */
} recorded_product;

#define MAX_PRODUCTS 4096
static recorded_product products[MAX_PRODUCTS];
static int product_count;

static uint64_t bytes_of(int64_t rows, int64_t stride, int64_t n, dtype type)
{
    return (uint64_t)((rows - 1) * stride + n) * dtype_size(type);
}

/* What the tests do without: --wrap of the linker. */
ct_status __wrap_blas_multiply(blas *b, cu_stream stream, bool capturing, cu_address workspace,
                               const blas_product *p, const blas_operands *at, ct_error *error);
ct_status __wrap_blas_multiply(blas *b, cu_stream stream, bool capturing, cu_address workspace,
                               const blas_product *p, const blas_operands *at, ct_error *error)
{
    (void)b, (void)error;
    /* Whatever a product reads must be somewhere. */
    assert_true(at->x && at->w && at->out && p->m > 0);
    if (capturing && product_count < MAX_PRODUCTS)
        products[product_count++] = (recorded_product){
            .stream = stream,
            .workspace = workspace,
            .x = at->x,
            .out = at->out,
            .x_bytes = bytes_of(p->m, p->x_stride, p->k, p->type),
            .out_bytes = bytes_of(p->m, p->out_stride, p->n, p->out_type),
        };
    return CT_OK;
}

bool __wrap_blas_can(blas *b, const blas_product *p);
bool __wrap_blas_can(blas *b, const blas_product *p)
{
    (void)b;
    return p->m > 0;
}

const cuda_kernels *__wrap_cuda_gpu_kernels(cuda_gpu *gpu, dtype type, ct_error *error);
const cuda_kernels *__wrap_cuda_gpu_kernels(cuda_gpu *gpu, dtype type, ct_error *error)
{
    static const cuda_kernels none;
    (void)gpu, (void)type, (void)error;
    return &none;
}

static int open_gpu(void **state)
{
    (void)state;
    ct_error error;
    cu_device device;
    g.gpu.allocator = &mem_default;
    test_ok(pool_create(&g.threads, &mem_default, 2, &error), &error);
    g.gpu.threads = g.threads;
    g.gpu.half = DTYPE_BF16;
    test_ok(cuda_driver_open(&g.gpu.driver, &error), &error);
    test_ok(cuda_device_query(&g.gpu.driver, 0, &g.gpu.info, &error), &error);
    assert_int_equal(g.gpu.driver.device_get(&device, 0), 0);
    assert_int_equal(g.gpu.driver.context_retain(&g.gpu.context, device), 0);
    g.fake = cuda_library_symbol(g.gpu.driver.library, "fake_cuda");
    assert_non_null(g.fake);
    return 0;
}

static int close_gpu(void **state)
{
    (void)state;
    cuda_driver_close(&g.gpu.driver);
    pool_free(g.threads);
    return 0;
}

static void start_counting(void)
{
    assert_int_equal(g.fake->objects, 0);
    assert_int_equal(g.fake->used, 0);
    *g.fake = (fake_cuda_state){0};
}

/* ---- A network of weights that are only looked at -------------------------------------------- */

#define BLOCKS 7
#define TURNS 3 /* of the loop */
#define N 96
#define K 256
#define MATRIX ((size_t)N * K * 2)
#define CODES ((size_t)N * K / 2) /* 4 bits */
#define GROUPS ((size_t)N * (K / 64) * 2)
#define VECTOR ((size_t)N * 4)
#define BLOCK_BYTES (2 * MATRIX + CODES + 2 * GROUPS + VECTOR)

static struct {
    unsigned char data[BLOCKS + 1][BLOCK_BYTES]; /* the last is used once, before the loop */
    nn_weight first[BLOCKS + 1], second[BLOCKS + 1], packed[BLOCKS + 1], vector[BLOCKS + 1];
    size_t arena; /* of the loop */
} net;

static void make_network(void)
{
    uint32_t seed = 1;
    for (int b = 0; b <= BLOCKS; b++) {
        unsigned char *at = net.data[b];
        for (size_t i = 0; i < BLOCK_BYTES; i++)
            at[i] = (unsigned char)((seed = seed * 1664525u + 1013904223u) >> 24);
        net.first[b] = (nn_weight){"first", DTYPE_BF16, 2, {N, K}, .data = at};
        net.second[b] = (nn_weight){"second", DTYPE_BF16, 2, {N, K}, .data = at + MATRIX};
        at += 2 * MATRIX;
        net.packed[b] = (nn_weight){.name = "packed",
                                    .type = DTYPE_BF16,
                                    .rank = 2,
                                    .n = {N, K},
                                    .data = at,
                                    .bits = 4,
                                    .group = 64,
                                    .scales = at + CODES,
                                    .biases = at + CODES + GROUPS};
        at += CODES + 2 * GROUPS;
        net.vector[b] = (nn_weight){"vector", DTYPE_F32, 1, {N}, .data = at};
    }
}

/* Takes the weights of a block as they are when the stream gets there. */
static void use_block(nn *c, int b, unsigned char *seen)
{
    const size_t mark = nn_mark(c);
    const nn_weight *const pair[] = {&net.first[b], &net.second[b]}, *packed = &net.packed[b];
    const cuda_request request = {&packed, 1, STORE_PACKED, DTYPE_BF16};
    cuda_weight codes;
    dtype type;
    cu_address scales;
    ct_error error;
    cuda_scratch(c, 4096);
    const cu_address matrices = cuda_matrices(c, pair, 2, &type, &scales);
    const cu_address vector = cuda_floats(c, &net.vector[b]);
    if (c->error.code == CT_OK && cuda_store_get(c, &request, &codes, &error) != CT_OK)
        cuda_fail(c, &error);
    if (!cuda_idle(c)) {
        const cuda_driver *d = &g.gpu.driver;
        const cu_stream stream = cuda_of(c)->stream;
        d->copy_to_host(seen, matrices, 2 * MATRIX, stream);
        seen += 2 * MATRIX;
        d->copy_to_host(seen, codes.data, CODES, stream);
        d->copy_to_host(seen + CODES, codes.scales, GROUPS, stream);
        d->copy_to_host(seen + CODES + GROUPS, codes.biases, GROUPS, stream);
        d->copy_to_host(seen + CODES + 2 * GROUPS, vector, VECTOR, stream);
    }
    nn_release(c, mark);
}

/* Section 0 once, then section 1 as often as a job has steps. */
static void run_network(nn *c, unsigned char *seen)
{
    nn_section(c, 0, 8192);
    use_block(c, BLOCKS, seen);
    for (int turn = 0; turn < TURNS; turn++) {
        nn_section(c, 1, 16384);
        for (int b = 0; b < BLOCKS; b++) {
            nn_block(c);
            use_block(c, b, seen + (size_t)(1 + turn * BLOCKS + b) * BLOCK_BYTES);
        }
        nn_block(c);
    }
}

static nn_params params_of(cuda_schedule *schedule, cuda_store *store)
{
    return (nn_params){.allocator = &mem_default,
                       .threads = g.threads,
                       .gpu = &g.gpu,
                       .gpu_weights = store,
                       .gpu_schedule = schedule,
                       .precision = NN_BF16,
                       .arena_bytes = 8192};
}

static cuda_schedule *plan_network(void)
{
    cuda_schedule *schedule;
    ct_error error;
    nn *dry;
    test_ok(cuda_schedule_create(&schedule, &mem_default, &error), &error);
    nn_params params = params_of(schedule, NULL);
    params.dry = true;
    test_ok(nn_create(&dry, &params, &error), &error);
    run_network(dry, NULL);
    test_ok(nn_status(dry, &error), &error);
    nn_free(dry);
    test_ok(cuda_schedule_finish(schedule, &error), &error);
    assert_int_equal(cuda_schedule_blocks(schedule, 0), 1);
    assert_int_equal(cuda_schedule_blocks(schedule, 1), BLOCKS + 2);
    return schedule;
}

/* Runs a plan; on success everything must have been seen. */
static ct_status follow(cuda_schedule *schedule, ct_error *error)
{
    cuda_store *store = NULL;
    nn *c = NULL;
    void *seen = NULL;
    const size_t all = (1 + TURNS * BLOCKS) * BLOCK_BYTES;
    ct_status status = cuda_store_create(&store, &g.gpu, error);
    const nn_params params = params_of(schedule, store);
    if (status == CT_OK)
        status = nn_create(&c, &params, error);
    if (status == CT_OK)
        status = cuda_check(&g.gpu.driver, g.gpu.driver.host_alloc(&seen, all, 0), "memory", error);
    if (status == CT_OK) {
        cuda_store_enter(store);
        run_network(c, seen);
        cuda_store_leave(store);
        g.gpu.driver.stream_wait(cuda_of(c)->stream);
        status = nn_status(c, error);
    }
    for (int i = 0; i < 1 + TURNS * BLOCKS && status == CT_OK; i++)
        test_bytes_equal((unsigned char *)seen + (size_t)i * BLOCK_BYTES,
                         net.data[i ? (i - 1) % BLOCKS : BLOCKS], BLOCK_BYTES);
    nn_free(c);
    cuda_store_free(store);
    if (seen)
        g.gpu.driver.host_free(seen);
    assert_int_equal(g.fake->misuse, 0);
    assert_int_equal(g.fake->objects, 0);
    assert_int_equal(g.fake->used, 0);
    assert_int_equal(g.fake->pinned, 0);
    return status;
}

/* What the plan says that the second section takes, arena included. */
static uint64_t planned(const cuda_schedule *schedule, unsigned keeps)
{
    return cuda_gpu_fixed_bytes(&g.gpu) + cuda_schedule_bytes(schedule, keeps) +
           cuda_schedule_buffers(schedule, 1) + cuda_gpu_cost(16384);
}

/* Operands have the memory of what is put into them: codes, or numbers where sides do not allow
 * codes. */
static void operands_fit(void **state)
{
    static const nn_precision precisions[] = {NN_F32, NN_BF16, NN_INT8, NN_FP8};
    (void)state;
    for (int i = 0; i < 4; i++)
        for (int64_t k = 4; k <= 96; k += 4) {
            nn *dry;
            ct_error error;
            nn_params params = params_of(NULL, NULL);
            params.dry = true;
            params.precision = precisions[i];
            test_ok(nn_create(&dry, &params, &error), &error);
            nn_tensor t = nn_new_operand(dry, 33, k);
            t.data = (float *)(void *)&net; /* any memory: codes and factors are told by it */
            const size_t numbers = 33 * (size_t)k, bytes = cuda_operand_bytes(dry, 33, k);
            const cu_address factors = cuda_scales_of(dry, &t);
            if (factors)
                assert_true(factors - cuda_at(&t) >= numbers &&
                            bytes >= factors - cuda_at(&t) + 33 * sizeof(float));
            else
                assert_true(bytes >= numbers * dtype_size(cuda_work_type(dry)));
            nn_free(dry);
        }
}

static void streams_blocks(void **state)
{
    (void)state;
    ct_error error;
    make_network();
    cuda_schedule *schedule = plan_network();
    for (int images = 0; images < 2; images++)
        for (int streamed = 0; streamed <= BLOCKS + 2; streamed++) {
            start_counting();
            cuda_schedule_stream(schedule, 1, streamed);
            cuda_schedule_keep(schedule, 0, 1u << 0);
            cuda_schedule_keep(schedule, 1, 1u << 1);
            cuda_schedule_set(schedule, true, images ? 1 : -1);
            test_ok(follow(schedule, &error), &error);
            assert_int_equal(g.fake->peak, planned(schedule, 2));
        }
    /* All streamed: two buffers, and from the second turn one copy for each block. */
    const uint64_t largest = cuda_schedule_largest(schedule, 1);
    assert_int_equal(cuda_schedule_bytes(schedule, 2), 0);
    assert_int_equal(cuda_schedule_buffers(schedule, 1), cuda_gpu_cost((size_t)(2 * largest)));
    const long uploads = g.fake->loads - (TURNS - 1) * BLOCKS;
    assert_int_equal(uploads, 6 * (BLOCKS + 1));
    cuda_schedule_free(schedule);
}

static void keeps_everything(void **state)
{
    (void)state;
    ct_error error;
    make_network();
    cuda_schedule *schedule = plan_network();
    start_counting();
    test_ok(follow(schedule, &error), &error); /* nobody trims: the arena is that of nn_create */
    assert_int_equal(g.fake->loads, 6 * (BLOCKS + 1));
    assert_int_equal(g.fake->peak,
                     planned(schedule, 3) - cuda_gpu_cost(16384) + cuda_gpu_cost(8192));
    cuda_schedule_free(schedule);
}

static void survives_a_lack_of_memory(void **state)
{
    (void)state;
    make_network();
    cuda_schedule *schedule = plan_network();
    for (int streamed = 0; streamed <= BLOCKS + 2; streamed += 3) {
        cuda_schedule_stream(schedule, 1, streamed);
        cuda_schedule_keep(schedule, 1, 1u << 1);
        cuda_schedule_set(schedule, true, 1);
        long failures = 0;
        for (long n = 1;; n++) {
            ct_error error;
            start_counting();
            g.fake->fail_at = n;
            const ct_status status = follow(schedule, &error);
            if (g.fake->allocations < n)
                break;
            /* Without pinned memory for a block it is read from the file. */
            assert_true(status == CT_OK || status == CT_ENOMEM);
            failures += status != CT_OK;
        }
        assert_true(failures > 3);
    }
    /* Less than the plan says: an error with numbers. */
    ct_error error;
    start_counting();
    g.fake->limit = (size_t)planned(schedule, 2) - 512;
    test_error(follow(schedule, &error), CT_ENOMEM, &error, "MiB are free");
    start_counting();
    g.fake->limit = (size_t)planned(schedule, 2);
    test_ok(follow(schedule, &error), &error);
    cuda_schedule_free(schedule);
}

/* ---- The store ------------------------------------------------------------------------------- */

static void drops(void **state)
{
    (void)state;
    ct_error error;
    cuda_store *store;
    nn *c;
    dtype type;
    cu_address scales, before[BLOCKS], vector;
    make_network();
    start_counting();
    test_ok(cuda_store_create(&store, &g.gpu, &error), &error);
    const nn_params params = params_of(NULL, store);
    test_ok(nn_create(&c, &params, &error), &error);
    for (int b = 0; b < BLOCKS; b++) {
        const nn_weight *const pair[] = {&net.first[b], &net.second[b]};
        before[b] = cuda_matrices(c, pair, 2, &type, &scales);
        assert_true(cuda_floats(c, &net.vector[b]) != 0);
    }
    const size_t each = cuda_gpu_cost(2 * MATRIX) + cuda_gpu_cost(VECTOR);
    assert_int_equal(cuda_store_bytes(store), BLOCKS * each);
    const int64_t generation = cuda_store_generation(store);
    g.gpu.driver.stream_wait(cuda_of(c)->stream);
    cuda_store_drop(store, net.data[2], 2 * BLOCK_BYTES);
    assert_int_equal(cuda_store_bytes(store), (BLOCKS - 2) * each);
    assert_true(cuda_store_generation(store) > generation);
    const long loads = g.fake->loads;
    for (int b = 0; b < BLOCKS; b++) { /* those that stayed are found, the others come again */
        const nn_weight *const pair[] = {&net.first[b], &net.second[b]};
        const cu_address at = cuda_matrices(c, pair, 2, &type, &scales);
        if (b != 2 && b != 3)
            assert_true(at == before[b]);
        vector = cuda_floats(c, &net.vector[b]);
        g.gpu.driver.stream_wait(cuda_of(c)->stream);
        test_bytes_equal((void *)(uintptr_t)at, net.data[b], 2 * MATRIX);
        test_bytes_equal((void *)(uintptr_t)vector, net.vector[b].data, VECTOR);
    }
    assert_int_equal(g.fake->loads - loads, 2 * 3);
    /* Nothing goes while another run is under way. */
    cuda_schedule *schedule = plan_network();
    cuda_store_enter(store);
    cuda_store_enter(store);
    cuda_store_retain(store, schedule, 0, 1);
    assert_int_equal(cuda_store_bytes(store), BLOCKS * each);
    cuda_store_leave(store);
    cuda_store_retain(store, schedule, 0, 1);
    assert_int_equal(cuda_store_bytes(store), 0);
    cuda_store_leave(store);
    cuda_schedule_free(schedule);
    nn_free(c);
    cuda_store_free(store);
    assert_int_equal(g.fake->objects, 0);
}

/* ---- A model --------------------------------------------------------------------------------- */

typedef struct made {
    ct_context *context;
    ct_model *model;
    ct_image *reference; /* where the model takes one */
} made;

static made open_model(const char *name)
{
    made m = {0};
    g.fake->blank = true;
    ct_error error;
    ct_context_params params;
    ct_context_params_init(&params);
    params.threads = 2;
    params.device = "cpu";
    params.cache_memory = 0;
    test_ok(ct_context_create(&params, &m.context, &error), &error);
    g.gpu.threads = m.context->threads;
    m.context->gpu = &g.gpu;
    test_ok(ct_model_load(m.context, test_fixture(name), &m.model, &error), &error);
    if (ct_model_get_info(m.model)->max_references)
        test_ok(ct_image_load(m.context, test_fixture("klein/one_reference.0.png"), &m.reference,
                              &error),
                &error);
    return m;
}

static void close_model(made *m)
{
    ct_image_free(&m->reference);
    ct_model_free(&m->model);
    m->context->gpu = NULL; /* which is not the context's */
    ct_context_free(&m->context);
    g.gpu.threads = g.threads;
    assert_int_equal(g.fake->objects, 0);
    assert_int_equal(g.fake->misuse, 0);
}

static ct_generate_params small_picture(const made *m, ct_precision precision)
{
    ct_generate_params p;
    ct_generate_params_init(&p);
    p.prompt = "a red apple";
    p.references = (const ct_image *const *)&m->reference;
    p.reference_count = m->reference ? 1 : 0;
    p.width = p.height = 64;
    p.steps = 3;
    p.precision = precision;
    /* Not what takes less: then no limit would be the least of one way. */
    p.cfg_batch = precision == CT_PRECISION_FP32 ? CT_CFG_BATCH_ON : CT_CFG_BATCH_OFF;
    return p;
}

/* Generates twice under a limit; the peak must be what the plan says. */
static ct_gpu_choice check_limit(const char *name, ct_precision precision, uint64_t limit)
{
    made m = open_model(name);
    ct_generate_params p = small_picture(&m, precision);
    ct_memory_plan plan;
    ct_error error;
    ct_job *job;
    ct_image *image;
    p.max_vram = limit;
    ct_memory_plan_init(&plan);
    test_ok(ct_model_plan(m.model, &p, &plan, &error), &error);
    const ct_gpu_choice c = plan.gpu.chosen;
    if (!c.fits) {
        test_error(ct_job_create(m.model, &p, &job, &error), CT_ENOMEM, &error,
                   "of the GPU's memory at the least");
        close_model(&m);
        return c;
    }
    for (int i = 0; i < 2; i++) { /* the second finds what the first has left */
        test_ok(ct_job_create(m.model, &p, &job, &error), &error);
        assert_int_equal(ct_job_get_info(job)->gpu_peak_bytes, c.peak_bytes);
        assert_int_equal(ct_job_get_info(job)->streamed_blocks, c.streamed_blocks);
        for (uint64_t seed = 0; seed < 2; seed++) {
            test_ok(ct_job_run(job, seed, &image, &error), &error);
            ct_image_free(&image);
        }
        ct_job_free(&job);
    }
    print_message("%s, %s: way %d, %d + %d blocks, strips of %d: planned %llu, taken %zu\n", name,
                  ct_precision_name(precision), (int)c.way, c.encoder_blocks, c.streamed_blocks,
                  c.strip_height, (unsigned long long)c.peak_bytes, g.fake->peak);
    /* Memory that an upload takes besides need not be taken when the rest is at its peak. */
    const uint64_t besides = plan.gpu.fixed_bytes - cuda_gpu_fixed_bytes(&g.gpu);
    assert_true(g.fake->peak <= c.peak_bytes && g.fake->peak + besides >= c.peak_bytes);
    close_model(&m);
    return c;
}

/* One job of a model that is opened anew, with results in a folder; the weights that are on the GPU
 * behind it. */
static size_t run_with_cache(const char *name, const char *folder, int way, ct_gpu_stage stage[3])
{
    start_counting();
    made m = open_model(name);
    ct_generate_params p = small_picture(&m, CT_PRECISION_BF16);
    ct_memory_plan plan;
    ct_image *image;
    ct_error error;
    m.context->cache = mem_strdup(&m.context->allocator, folder);
    ct_memory_plan_init(&plan);
    test_ok(ct_model_plan(m.model, &p, &plan, &error), &error);
    p.max_vram = plan.gpu.way[way].peak_bytes;
    memcpy(stage, plan.gpu.stage, sizeof plan.gpu.stage);
    test_ok(ct_generate(m.model, &p, &image, &error), &error);
    ct_image_free(&image);
    assert_true(g.fake->peak <= plan.gpu.way[way].peak_bytes);
    const size_t bytes = cuda_store_bytes(m.model->gpu_weights);
    close_model(&m);
    return bytes;
}

/* What is known is not computed, so its weights are not copied to the GPU. */
static void leaves_out_what_is_known(void **state)
{
    (void)state;
    static const char *const names[] = {"turbo/model", "klein/model", "../../models/emoji-256"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int way = 0; way <= CT_GPU_STREAMED; way++) {
            test_folder folder;
            ct_gpu_stage stage[3];
            test_folder_create(&folder);
            const size_t all = run_with_cache(names[i], folder.path, way, stage);
            assert_int_equal(test_folder_count(&folder), i == 1 ? 3 : 2);
            const size_t rest = run_with_cache(names[i], folder.path, way, stage);
            assert_int_equal(test_folder_count(&folder), i == 1 ? 3 : 2);
            print_message("%s, way %d: %zu bytes, then %zu of weights there; text encoder %llu\n",
                          names[i], way, all, rest, (unsigned long long)stage[0].weight_bytes);
            if (way == CT_GPU_ALL)
                assert_true(rest + stage[CT_STAGE_ENCODE].weight_bytes <= all);
            test_folder_remove(&folder);
        }
}

static void plans_as_it_takes(void **state)
{
    (void)state;
    static const char *const names[] = {"turbo/model", "base/model", "klein/model",
                                        "../../models/emoji-256"};
    static const ct_precision precisions[] = {CT_PRECISION_BF16, CT_PRECISION_INT8,
                                              CT_PRECISION_FP32};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (size_t k = 0; k < sizeof precisions / sizeof *precisions; k++) {
            start_counting();
            made m = open_model(names[i]);
            const ct_generate_params p = small_picture(&m, precisions[k]);
            ct_memory_plan plan;
            ct_error error;
            ct_memory_plan_init(&plan);
            test_ok(ct_model_plan(m.model, &p, &plan, &error), &error);
            assert_int_equal(plan.gpu.chosen.way, CT_GPU_ALL);
            assert_true(plan.gpu.chosen.fits);
            assert_true(plan.gpu.total_bytes == (uint64_t)141 << 30);
            close_model(&m);
            const ct_gpu_choice *way = plan.gpu.way;
            for (int w = 0; w < 3; w++)
                assert_true(way[w].peak_bytes > way[w + 1].peak_bytes);
            for (int w = 0; w <= CT_GPU_STREAMED; w++) {
                start_counting();
                const ct_gpu_choice c = check_limit(names[i], precisions[k], way[w].peak_bytes);
                assert_true(c.fits && (int)c.way == w);
            }
            start_counting(); /* some of the blocks */
            const ct_gpu_choice some = check_limit(
                names[i], precisions[k],
                (way[CT_GPU_TURNS].peak_bytes + 3 * way[CT_GPU_STREAMED].peak_bytes) / 4);
            if (i == 3 && k == 0) /* in the others activations decide */
                assert_true(some.streamed_blocks > 0 && some.host_bytes > 0 &&
                            some.streamed_blocks < way[CT_GPU_STREAMED].streamed_blocks);
            start_counting();
            assert_false(
                check_limit(names[i], precisions[k], way[CT_GPU_STREAMED].peak_bytes - 1).fits);
        }
}

/* What the driver says is what bench counts. */
static void tells_what_is_free(void **state)
{
    (void)state;
    start_counting();
    made m = open_model("turbo/model");
    uint64_t before, after, total;
    cu_address block;
    ct_error error;
    test_ok(ct_context_gpu_memory(m.context, &before, &total, &error), &error);
    assert_true(total == (uint64_t)141 << 30 && before <= total);
    test_ok(cuda_gpu_alloc(&g.gpu, &block, 5 << 20, "a test", &error), &error);
    test_ok(ct_context_gpu_memory(m.context, &after, &total, &error), &error);
    assert_true(before - after == 6 << 20); /* whole pages of 2 MiB */
    g.gpu.driver.mem_free(block);
    close_model(&m);
}

/* The same of networks whose parts are all small. */
static void plans_small_parts(void **state)
{
    (void)state;
    static const char *const names[] = {"qwen/model", "qwen_edit/model"};
    for (int i = 0; i < 4; i++) {
        const ct_precision precision = i / 2 ? CT_PRECISION_FP32 : CT_PRECISION_BF16;
        start_counting();
        made m = open_model(names[i % 2]);
        const ct_generate_params p = small_picture(&m, precision);
        ct_memory_plan plan;
        ct_error error;
        ct_memory_plan_init(&plan);
        test_ok(ct_model_plan(m.model, &p, &plan, &error), &error);
        close_model(&m);
        for (int w = 0; w <= CT_GPU_STREAMED; w++) {
            start_counting();
            assert_true(check_limit(names[i % 2], precision, plan.gpu.way[w].peak_bytes).fits);
        }
    }
}

/* One picture; what the job took is given back, what the model holds is not. */
static ct_status make_picture(const made *m, const ct_generate_params *p, ct_error *error)
{
    ct_image *image = NULL;
    const ct_status status = ct_generate(m->model, p, &image, error);
    assert_true((image != NULL) == (status == CT_OK));
    ct_image_free(&image);
    assert_int_equal(g.fake->misuse, 0);
    /* What weights pass through belongs to the model. */
    /* What weights pass through, and a little that the network has which is kept. */
    assert_true(g.fake->pinned <= 3 * ((size_t)32 << 20) + ((size_t)1 << 20));
    return status;
}

static void model_survives_a_lack_of_memory(void **state)
{
    (void)state;
    start_counting();
    made m = open_model("turbo/model");
    ct_generate_params p = small_picture(&m, CT_PRECISION_BF16);
    ct_memory_plan plan;
    ct_error error;
    ct_memory_plan_init(&plan);
    test_ok(ct_model_plan(m.model, &p, &plan, &error), &error);
    for (int way = 0; way <= CT_GPU_STREAMED; way++) {
        long failures = 0;
        p.max_vram = plan.gpu.way[way].peak_bytes;
        for (long n = 1;; n += 1 + n / 8) { /* the first ones all, then some */
            g.fake->allocations = 0;
            g.fake->fail_at = n;
            const ct_status status = make_picture(&m, &p, &error);
            if (g.fake->allocations < n)
                break;
            assert_true(status == CT_OK || status == CT_ENOMEM);
            failures += status != CT_OK;
        }
        g.fake->fail_at = 0;
        g.fake->peak = g.fake->used;
        assert_true(failures > 2);
        test_ok(make_picture(&m, &p, &error), &error); /* what was left behind does not matter */
        assert_true(g.fake->peak <= plan.gpu.way[way].peak_bytes);
    }
    close_model(&m);
}

/* ---- Recordings ------------------------------------------------------------------------------ */

typedef struct watch {
    int decoded;        /* units that were reported */
    long asked, cancel; /* the cancel-th question whether to go on is answered with no; 0: none */
} watch;

static void watch_progress(void *user, const ct_progress *progress)
{
    watch *w = user;
    if (progress->stage == CT_STAGE_DECODE && progress->step > 0)
        assert_int_equal(progress->step, ++w->decoded);
}

static bool watch_cancel(void *user)
{
    watch *w = user;
    return ++w->asked == w->cancel;
}

static ct_status run_job(ct_job *job, watch *w, ct_error *error)
{
    ct_image *image = NULL;
    w->decoded = 0;
    w->asked = 0;
    g.fake->launches = g.fake->captures = g.fake->played = 0;
    const ct_status status = ct_job_run(job, 1, &image, error);
    ct_image_free(&image);
    assert_int_equal(g.fake->misuse, 0);
    return status;
}

/* Run, recorded, played back twice: steps, of which a run has three, and the decoder. */
static void check_recordings(ct_job *job, watch *w, long launches[4], long asked[4])
{
    static const int captures[] = {1, 1, 0, 0}, played[] = {2, 4, 4, 4};
    ct_error error;
    for (int i = 0; i < 4; i++) {
        const int units = w->decoded;
        test_ok(run_job(job, w, &error), &error);
        assert_int_equal(g.fake->captures, captures[i]);
        assert_int_equal(g.fake->played, played[i]);
        assert_true(i ? w->decoded == units : w->decoded > 2);
        launches[i] = g.fake->launches;
        asked[i] = w->asked;
    }
    assert_true(launches[0] > launches[1] && launches[1] > launches[2]);
    assert_int_equal(launches[2], launches[3]);
}

/* What fails, or is cancelled, while it is recorded is recorded the next time. launches, asked:
 * of a job that was recorded. */
static void check_broken_recordings(ct_job *job, watch *w, const long launches[4],
                                    const long asked[4])
{
    ct_error error;
    test_ok(run_job(job, w, &error), &error);
    g.fake->fail_launch = (launches[1] + launches[2]) / 2;
    assert_int_equal(run_job(job, w, &error), CT_EDEVICE);
    assert_int_equal(w->decoded, 0);
    g.fake->fail_launch = 0;
    w->cancel = (asked[1] + asked[2]) / 2;
    assert_int_equal(run_job(job, w, &error), CT_ECANCELLED);
    assert_int_equal(w->decoded, 0);
    assert_int_equal(g.fake->captures, 1);
    w->cancel = 0;
    for (int i = 0; i < 2; i++) {
        test_ok(run_job(job, w, &error), &error);
        assert_int_equal(g.fake->captures, i == 0);
        assert_int_equal(g.fake->played, 4);
    }
}

static void records(void **state)
{
    (void)state;
    static const char *const names[] = {"turbo/model", "klein/model", "qwen/model"};
    for (int i = 0; i < 3; i++) {
        ct_error error;
        ct_job *job;
        long launches[4], asked[4];
        start_counting();
        made m = open_model(names[i]);
        watch w = {0};
        const ct_callbacks callbacks = {
            .user = &w, .progress = watch_progress, .cancel = watch_cancel};
        ct_generate_params p = small_picture(&m, CT_PRECISION_BF16);
        p.callbacks = &callbacks;
        test_ok(ct_job_create(m.model, &p, &job, &error), &error);
        check_recordings(job, &w, launches, asked);
        ct_job_free(&job);
        p.width = 32; /* on the same network, beside what it has recorded */
        test_ok(ct_job_create(m.model, &p, &job, &error), &error);
        check_broken_recordings(job, &w, launches, asked);
        ct_job_free(&job);
        p.width = 64;
        test_ok(ct_job_create(m.model, &p, &job, &error), &error);
        for (int k = 0; k < 2; k++)
            test_ok(run_job(job, &w, &error), &error);
        assert_int_equal(g.fake->captures, 0);
        assert_int_equal(g.fake->launches, launches[2]);
        ct_job_free(&job);
        close_model(&m);
    }
}

static bool apart(cu_address a, uint64_t a_bytes, cu_address b, uint64_t b_bytes)
{
    return a + a_bytes <= b || b + b_bytes <= a;
}

/* Neither writes what the other reads or writes. */
static void check_beside(const recorded_product *a, const recorded_product *b)
{
    assert_true(a->stream != b->stream);
    assert_true(apart(a->workspace, CUDA_WORKSPACE, b->workspace, CUDA_WORKSPACE));
    assert_true(apart(a->workspace, CUDA_WORKSPACE, b->out, b->out_bytes));
    assert_true(apart(a->out, a->out_bytes, b->out, b->out_bytes));
    assert_true(apart(a->out, a->out_bytes, b->x, b->x_bytes));
    assert_true(apart(a->x, a->x_bytes, b->out, b->out_bytes));
}

/* Where text and picture have weights of their own the text's products are a branch, and what the
 * two branches work in is apart. Two sequences at once (cfg_batch) have two runs of text. */
static void text_goes_beside(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        ct_precision precision;
        int texts; /* runs of text in a branch */
    } cases[] = {{"turbo/model", CT_PRECISION_BF16, 0},
                 {"klein/model", CT_PRECISION_BF16, 1},
                 {"klein_base/model", CT_PRECISION_FP32, 2},
                 {"qwen/model", CT_PRECISION_BF16, 1},
                 {"qwen/model", CT_PRECISION_FP32, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ct_error error;
        ct_job *job;
        start_counting();
        made m = open_model(cases[i].name);
        watch w = {0};
        const ct_generate_params p = small_picture(&m, cases[i].precision);
        test_ok(ct_job_create(m.model, &p, &job, &error), &error);
        product_count = 0;
        for (int k = 0; k < 2; k++)
            test_ok(run_job(job, &w, &error), &error);
        assert_true(product_count > 0 && product_count < MAX_PRODUCTS);
        const cu_stream main = products[0].stream; /* a picture is embedded first */
        int pairs = 0;
        for (int k = 0, end; k < product_count; k = end + 1) {
            for (end = k; end < product_count && products[end].stream != main;)
                end++;
            /* So many products of the other branch at least belong to the same fork. */
            const int mates = cases[i].texts ? (end - k) / cases[i].texts : 0;
            assert_true(cases[i].texts || end == k);
            for (int a = k; a < end; a++)
                for (int b = end; b < end + mates; b++, pairs++)
                    check_beside(&products[a], &products[b]);
        }
        assert_int_equal(pairs > 0, cases[i].texts > 0);
        ct_job_free(&job);
        close_model(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operands_fit),
        cmocka_unit_test(streams_blocks),
        cmocka_unit_test(keeps_everything),
        cmocka_unit_test(survives_a_lack_of_memory),
        cmocka_unit_test(drops),
        cmocka_unit_test(plans_as_it_takes),
        cmocka_unit_test(tells_what_is_free),
        cmocka_unit_test(plans_small_parts),
        cmocka_unit_test(leaves_out_what_is_known),
        cmocka_unit_test(model_survives_a_lack_of_memory),
        cmocka_unit_test(records),
        cmocka_unit_test(text_goes_beside),
    };
    return cmocka_run_group_tests(tests, open_gpu, close_gpu);
}
