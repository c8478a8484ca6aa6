/* Graphs of cuDNN: objects are made, given attributes, and finalized; operations refer to tensors,
 * the graph to operations, plans to the graph. */
#include "nn/cuda/dnn_graph.h"
#include "core/mem.h"

#include <stdbool.h>

#define MAX_CONFIGS 16
#define MAX_NOTES 16
#define ALIGNMENT 16 /* bytes; of all addresses that are given */

void dnn_graph_init(dnn_graph *g, const cudnn *lib)
{
    *g = (dnn_graph){.lib = lib, .virtual_id = 1000};
}

void dnn_graph_free(dnn_graph *g)
{
    while (g->count > 0)
        g->lib->object_destroy(g->objects[--g->count]);
    g->operation_count = 0;
}

void dnn_graph_drop(dnn_graph *g, cudnn_object object)
{
    for (int i = 0; i < g->count; i++)
        if (g->objects[i] == object) {
            g->lib->object_destroy(object);
            g->objects[i] = g->objects[--g->count];
            return;
        }
}

dnn_shape dnn_packed(int64_t a, int64_t b, int64_t c, int64_t d)
{
    return (dnn_shape){4, {a, b, c, d}, {b * c * d, c * d, d, 1}};
}

dnn_shape dnn_channels_last(int64_t n, int64_t c, int64_t h, int64_t w)
{
    return (dnn_shape){4, {n, c, h, w}, {c * h * w, 1, c * w, c}};
}

/* ---- Objects -------------------------------------------------------------------------------- */

static cudnn_object make(dnn_graph *g, int type)
{
    if (g->status != CUDNN_OK)
        return NULL;
    cudnn_object object = NULL;
    if (g->count == DNN_OBJECTS)
        g->status = CUDNN_NOT_SUPPORTED;
    else
        g->status = g->lib->object_create(type, &object);
    if (g->status != CUDNN_OK)
        return NULL;
    g->objects[g->count++] = object;
    return object;
}

static void set(dnn_graph *g, cudnn_object object, int attribute, int type, int64_t count,
                const void *values)
{
    if (g->status == CUDNN_OK)
        g->status = g->lib->set(object, attribute, type, count, values);
}

static void set_object(dnn_graph *g, cudnn_object object, int attribute, cudnn_object value)
{
    set(g, object, attribute, DNN_TYPE_DESCRIPTOR, 1, &value);
}

static void set_type(dnn_graph *g, cudnn_object object, int attribute, int type)
{
    set(g, object, attribute, DNN_TYPE_DATA_TYPE, 1, &type);
}

static cudnn_object finish(dnn_graph *g, cudnn_object object)
{
    if (g->status == CUDNN_OK)
        g->status = g->lib->finalize(object);
    return g->status == CUDNN_OK ? object : NULL;
}

static void finish_operation(dnn_graph *g, cudnn_object operation)
{
    if (!finish(g, operation))
        return;
    if (g->operation_count == DNN_OPERATIONS)
        g->status = CUDNN_NOT_SUPPORTED;
    else
        g->operations[g->operation_count++] = operation;
}

/* ---- Tensors and operations ----------------------------------------------------------------- */

static cudnn_object tensor(dnn_graph *g, int64_t id, int type, const dnn_shape *shape, int flag)
{
    const int64_t alignment = ALIGNMENT;
    const bool yes = true;
    cudnn_object t = make(g, DNN_TENSOR);
    set_type(g, t, DNN_TENSOR_DATA_TYPE, type);
    set(g, t, DNN_TENSOR_DIMENSIONS, DNN_TYPE_INT64, shape->rank, shape->dims);
    set(g, t, DNN_TENSOR_STRIDES, DNN_TYPE_INT64, shape->rank, shape->strides);
    set(g, t, DNN_TENSOR_UNIQUE_ID, DNN_TYPE_INT64, 1, &id);
    set(g, t, DNN_TENSOR_BYTE_ALIGNMENT, DNN_TYPE_INT64, 1, &alignment);
    if (flag)
        set(g, t, flag, DNN_TYPE_BOOLEAN, 1, &yes);
    return finish(g, t);
}

cudnn_object dnn_tensor(dnn_graph *g, int64_t id, int type, const dnn_shape *shape)
{
    return tensor(g, id, type, shape, 0);
}

cudnn_object dnn_number(dnn_graph *g, int64_t id, int type, int rank)
{
    const dnn_shape one = {rank, {1, 1, 1, 1}, {1, 1, 1, 1}};
    return tensor(g, id, type, &one, DNN_TENSOR_IS_BY_VALUE);
}

cudnn_object dnn_between(dnn_graph *g, int type, const dnn_shape *shape)
{
    return tensor(g, ++g->virtual_id, type, shape, DNN_TENSOR_IS_VIRTUAL);
}

void dnn_pointwise(dnn_graph *g, int mode, int compute, cudnn_object x, cudnn_object b,
                   cudnn_object t, cudnn_object y, int64_t axis)
{
    cudnn_object kind = make(g, DNN_POINTWISE);
    set(g, kind, DNN_POINTWISE_MODE, DNN_TYPE_POINTWISE_MODE, 1, &mode);
    set_type(g, kind, DNN_POINTWISE_MATH_PREC, compute);
    if (mode == DNN_POINTWISE_GEN_INDEX)
        set(g, kind, DNN_POINTWISE_AXIS, DNN_TYPE_INT64, 1, &axis);
    finish(g, kind);
    cudnn_object operation = make(g, DNN_OPERATION_POINTWISE);
    set_object(g, operation, DNN_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
    set_object(g, operation, DNN_OPERATION_POINTWISE_XDESC, x);
    if (b)
        set_object(g, operation, DNN_OPERATION_POINTWISE_BDESC, b);
    if (t)
        set_object(g, operation, DNN_OPERATION_POINTWISE_TDESC, t);
    set_object(g, operation, DNN_OPERATION_POINTWISE_YDESC, y);
    finish_operation(g, operation);
}

void dnn_matmul(dnn_graph *g, cudnn_object a, cudnn_object b, cudnn_object c)
{
    cudnn_object kind = make(g, DNN_MATMUL);
    set_type(g, kind, DNN_MATMUL_COMP_TYPE, DNN_FLOAT);
    finish(g, kind);
    cudnn_object operation = make(g, DNN_OPERATION_MATMUL);
    set_object(g, operation, DNN_OPERATION_MATMUL_ADESC, a);
    set_object(g, operation, DNN_OPERATION_MATMUL_BDESC, b);
    set_object(g, operation, DNN_OPERATION_MATMUL_CDESC, c);
    set_object(g, operation, DNN_OPERATION_MATMUL_DESC, kind);
    finish_operation(g, operation);
}

void dnn_reduce(dnn_graph *g, int mode, cudnn_object x, cudnn_object y)
{
    cudnn_object kind = make(g, DNN_REDUCTION);
    set_type(g, kind, DNN_REDUCTION_COMP_TYPE, DNN_FLOAT);
    set(g, kind, DNN_REDUCTION_OPERATOR, DNN_TYPE_REDUCTION_OPERATOR, 1, &mode);
    finish(g, kind);
    cudnn_object operation = make(g, DNN_OPERATION_REDUCTION);
    set_object(g, operation, DNN_OPERATION_REDUCTION_DESC, kind);
    set_object(g, operation, DNN_OPERATION_REDUCTION_XDESC, x);
    set_object(g, operation, DNN_OPERATION_REDUCTION_YDESC, y);
    finish_operation(g, operation);
}

void dnn_sdpa(dnn_graph *g, cudnn_object q, cudnn_object k, cudnn_object v, cudnn_object scale,
              cudnn_object out)
{
    cudnn_object operation = make(g, DNN_OPERATION_SDPA_FWD);
    set_object(g, operation, DNN_SDPA_FWD_QDESC, q);
    set_object(g, operation, DNN_SDPA_FWD_KDESC, k);
    set_object(g, operation, DNN_SDPA_FWD_VDESC, v);
    set_object(g, operation, DNN_SDPA_FWD_ODESC, out);
    set_object(g, operation, DNN_SDPA_FWD_SCALEDESC, scale);
    finish_operation(g, operation);
}

void dnn_convolution(dnn_graph *g, cudnn_object x, cudnn_object w, cudnn_object y, int64_t stride,
                     int64_t pad_before, int64_t pad_after)
{
    const int64_t two = 2, ones[] = {1, 1}, strides[] = {stride, stride},
                  before[] = {pad_before, pad_before}, after[] = {pad_after, pad_after};
    const int mode = DNN_CROSS_CORRELATION;
    const float one = 1.0f, zero = 0.0f;
    cudnn_object kind = make(g, DNN_CONVOLUTION);
    set_type(g, kind, DNN_CONVOLUTION_COMP_TYPE, DNN_FLOAT);
    set(g, kind, DNN_CONVOLUTION_CONV_MODE, DNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(g, kind, DNN_CONVOLUTION_SPATIAL_DIMS, DNN_TYPE_INT64, 1, &two);
    set(g, kind, DNN_CONVOLUTION_PRE_PADDINGS, DNN_TYPE_INT64, 2, before);
    set(g, kind, DNN_CONVOLUTION_POST_PADDINGS, DNN_TYPE_INT64, 2, after);
    set(g, kind, DNN_CONVOLUTION_DILATIONS, DNN_TYPE_INT64, 2, ones);
    set(g, kind, DNN_CONVOLUTION_FILTER_STRIDES, DNN_TYPE_INT64, 2, strides);
    finish(g, kind);
    cudnn_object operation = make(g, DNN_OPERATION_CONVOLUTION_FORWARD);
    set_object(g, operation, DNN_CONVOLUTION_FORWARD_X, x);
    set_object(g, operation, DNN_CONVOLUTION_FORWARD_W, w);
    set_object(g, operation, DNN_CONVOLUTION_FORWARD_Y, y);
    set_object(g, operation, DNN_CONVOLUTION_FORWARD_CONV_DESC, kind);
    set(g, operation, DNN_CONVOLUTION_FORWARD_ALPHA, DNN_TYPE_FLOAT, 1, &one);
    set(g, operation, DNN_CONVOLUTION_FORWARD_BETA, DNN_TYPE_FLOAT, 1, &zero);
    finish_operation(g, operation);
}

/* ---- Plans ---------------------------------------------------------------------------------- */

/* The configurations of engines that the library proposes; they are objects of g. */
static int configurations(dnn_graph *g, cudnn_object graph, int mode, cudnn_object *configs)
{
    cudnn_object search = make(g, DNN_ENGINEHEUR);
    set_object(g, search, DNN_ENGINEHEUR_OPERATION_GRAPH, graph);
    set(g, search, DNN_ENGINEHEUR_MODE, DNN_TYPE_HEUR_MODE, 1, &mode);
    finish(g, search);
    int made = 0;
    while (made < MAX_CONFIGS && (configs[made] = make(g, DNN_ENGINECFG)) != NULL)
        made++;
    int64_t count = 0;
    if (g->status == CUDNN_OK)
        g->status =
            g->lib->get(search, DNN_ENGINEHEUR_RESULTS, DNN_TYPE_DESCRIPTOR, made, &count, configs);
    if (g->status != CUDNN_OK)
        return 0;
    return count < made ? (int)count : made;
}

/* Whether the engine of a configuration has none of the notes. One that cannot be asked is taken to
 * have them all. */
static bool allowed(dnn_graph *g, cudnn_object config, unsigned barred)
{
    if (!barred)
        return true;
    cudnn_object engine = make(g, DNN_ENGINE);
    int notes[MAX_NOTES];
    int64_t count = 0;
    if (!engine ||
        g->lib->get(config, DNN_ENGINECFG_ENGINE, DNN_TYPE_DESCRIPTOR, 1, &count, &engine) !=
            CUDNN_OK ||
        g->lib->get(engine, DNN_ENGINE_NUMERICAL_NOTE, DNN_TYPE_NUMERICAL_NOTE, MAX_NOTES, &count,
                    notes) != CUDNN_OK)
        return false;
    for (int64_t i = 0; i < count && i < MAX_NOTES; i++)
        if (notes[i] >= 0 && notes[i] < 32 && (barred >> notes[i] & 1u))
            return false;
    return true;
}

static bool finish_plan(dnn_graph *g, cudnn_object plan, size_t workspace, dnn_step *step)
{
    finish(g, plan);
    int64_t bytes = 0, count = 0;
    if (g->status == CUDNN_OK)
        g->status =
            g->lib->get(plan, DNN_EXECUTION_PLAN_WORKSPACE_SIZE, DNN_TYPE_INT64, 1, &count, &bytes);
    if (g->status != CUDNN_OK || bytes < 0 || (uint64_t)bytes > workspace)
        return false;
    *step = (dnn_step){plan, (size_t)bytes};
    return true;
}

/* A plan that cannot be made is no error: the next configuration may do. */
static bool make_plan(dnn_graph *g, cudnn_object config, size_t workspace, dnn_step *step)
{
    cudnn_object plan = make(g, DNN_EXECUTION_PLAN);
    set(g, plan, DNN_EXECUTION_PLAN_HANDLE, DNN_TYPE_HANDLE, 1, &g->lib->handle);
    set_object(g, plan, DNN_EXECUTION_PLAN_ENGINE_CONFIG, config);
    return finish_plan(g, plan, workspace, step);
}

char *dnn_plan_text(const cudnn *lib, const ct_allocator *a, const dnn_step *step, size_t *bytes)
{
    const int attribute = DNN_EXECUTION_PLAN_JSON_REPRESENTATION;
    int64_t count = 0;
    if (lib->get(step->plan, attribute, DNN_TYPE_CHAR, 0, &count, NULL) != CUDNN_OK || count <= 0)
        return NULL;
    char *text = mem_alloc(a, (size_t)count);
    const int64_t wanted = count;
    if (text && lib->get(step->plan, attribute, DNN_TYPE_CHAR, wanted, &count, text) == CUDNN_OK &&
        count <= wanted) {
        *bytes = (size_t)count;
        return text;
    }
    mem_free(a, text);
    return NULL;
}

bool dnn_plan_from_text(dnn_graph *g, const char *text, size_t bytes, dnn_step *step)
{
    cudnn_object plan = make(g, DNN_EXECUTION_PLAN);
    set(g, plan, DNN_EXECUTION_PLAN_HANDLE, DNN_TYPE_HANDLE, 1, &g->lib->handle);
    set(g, plan, DNN_EXECUTION_PLAN_JSON_REPRESENTATION, DNN_TYPE_CHAR, (int64_t)bytes, text);
    return finish_plan(g, plan, SIZE_MAX, step);
}

int dnn_graph_plans(dnn_graph *g, unsigned barred, size_t workspace, dnn_step *steps, int wanted)
{
    cudnn_object graph = make(g, DNN_OPERATIONGRAPH);
    set(g, graph, DNN_OPERATIONGRAPH_HANDLE, DNN_TYPE_HANDLE, 1, &g->lib->handle);
    set(g, graph, DNN_OPERATIONGRAPH_OPS, DNN_TYPE_DESCRIPTOR, g->operation_count, g->operations);
    finish(g, graph);
    if (g->status != CUDNN_OK)
        return 0;
    static const int modes[] = {DNN_HEUR_MODE_A, DNN_HEUR_MODE_FALLBACK};
    int made = 0;
    cudnn_status reason = CUDNN_NOT_SUPPORTED;
    for (int m = 0; m < 2 && made == 0; m++) {
        cudnn_object configs[MAX_CONFIGS];
        const int count = configurations(g, graph, modes[m], configs);
        for (int i = 0; i < count && made < wanted; i++) {
            if (allowed(g, configs[i], barred) && make_plan(g, configs[i], workspace, &steps[made]))
                made++;
            if (g->status != CUDNN_OK)
                reason = g->status;
            g->status = CUDNN_OK;
        }
        if (g->status != CUDNN_OK)
            reason = g->status;
        g->status = CUDNN_OK;
    }
    if (!made)
        g->status = reason;
    return made;
}

cudnn_status dnn_run(const cudnn *lib, const dnn_step *step, int count, const int64_t *ids,
                     void *const *pointers, void *workspace)
{
    cudnn_object pack;
    cudnn_status s = lib->object_create(DNN_VARIANT_PACK, &pack);
    if (s != CUDNN_OK)
        return s;
    s = lib->set(pack, DNN_VARIANT_PACK_WORKSPACE, DNN_TYPE_VOID_PTR, 1, &workspace);
    if (s == CUDNN_OK)
        s = lib->set(pack, DNN_VARIANT_PACK_DATA_POINTERS, DNN_TYPE_VOID_PTR, count, pointers);
    if (s == CUDNN_OK)
        s = lib->set(pack, DNN_VARIANT_PACK_UNIQUE_IDS, DNN_TYPE_INT64, count, ids);
    if (s == CUDNN_OK)
        s = lib->finalize(pack);
    if (s == CUDNN_OK)
        s = lib->execute(lib->handle, step->plan, pack);
    lib->object_destroy(pack);
    return s;
}
