/* Building graphs of cuDNN, and plans that execute them. */
#ifndef NN_CUDA_DNN_GRAPH_H
#define NN_CUDA_DNN_GRAPH_H

#include "core/error.h"
#include "nn/cuda/cudnn.h"

#define DNN_OBJECTS 192
#define DNN_OPERATIONS 16

/* All objects of a graph and its plans; they live as long as the plans are used. Errors stick: the
 * first one is kept in status, and later calls do nothing and return NULL. */
typedef struct dnn_graph {
    const cudnn *lib;
    cudnn_status status;
    cudnn_object objects[DNN_OBJECTS];
    int count;
    cudnn_object operations[DNN_OPERATIONS];
    int operation_count;
    int64_t virtual_id; /* of the last tensor between operations */
} dnn_graph;

void dnn_graph_init(dnn_graph *g, const cudnn *lib);
void dnn_graph_free(dnn_graph *g);

typedef struct dnn_shape {
    int rank;
    int64_t dims[4], strides[4]; /* strides in numbers */
} dnn_shape;

/* Numbers packed, the last dimension innermost. */
dnn_shape dnn_packed(int64_t a, int64_t b, int64_t c, int64_t d);
/* A picture with channels last: dimensions are N, C, H, W to the library, whatever is innermost. */
dnn_shape dnn_channels_last(int64_t n, int64_t c, int64_t h, int64_t w);
/* Tensors; the type is DNN_FLOAT and so on. An id names one that is given when a plan runs. */
cudnn_object dnn_tensor(dnn_graph *g, int64_t id, int type, const dnn_shape *shape);
/* A single number in host memory, of so many dimensions. */
cudnn_object dnn_number(dnn_graph *g, int64_t id, int type, int rank);
cudnn_object dnn_between(dnn_graph *g, int type, const dnn_shape *shape);

/* Operations. b and t may be NULL; axis counts for DNN_POINTWISE_GEN_INDEX. */
void dnn_pointwise(dnn_graph *g, int mode, int compute, cudnn_object x, cudnn_object b,
                   cudnn_object t, cudnn_object y, int64_t axis);
void dnn_matmul(dnn_graph *g, cudnn_object a, cudnn_object b, cudnn_object c);
void dnn_reduce(dnn_graph *g, int mode, cudnn_object x, cudnn_object y);
void dnn_sdpa(dnn_graph *g, cudnn_object q, cudnn_object k, cudnn_object v, cudnn_object scale,
              cudnn_object out);
void dnn_convolution(dnn_graph *g, cudnn_object x, cudnn_object w, cudnn_object y, int64_t stride,
                     int64_t pad_before, int64_t pad_after);

typedef struct dnn_step {
    cudnn_object plan;
    size_t workspace; /* bytes */
} dnn_step;

/* Plans for the operations so far, those first that the library thinks are the fastest, at most
 * `wanted` of engines without a numerical note of the mask `barred` (1 << DNN_NOTE_...) and with at
 * most `workspace` bytes. Returns how many; where it is 0, g->status tells why. */
int dnn_graph_plans(dnn_graph *g, unsigned barred, size_t workspace, dnn_step *steps, int wanted);

/* A plan as text, its kernels included, in memory of a; NULL where that is not possible. */
char *dnn_plan_text(const cudnn *lib, const ct_allocator *a, const dnn_step *step, size_t *bytes);
/* A plan from such a text; false where it does not work here. The graph needs no operations. */
bool dnn_plan_from_text(dnn_graph *g, const char *text, size_t bytes, dnn_step *step);

/* Frees one object before the graph: a plan that is not wanted. */
void dnn_graph_drop(dnn_graph *g, cudnn_object object);

/* Runs a plan in the handle's stream. */
cudnn_status dnn_run(const cudnn *lib, const dnn_step *step, int count, const int64_t *ids,
                     void *const *pointers, void *workspace);

#endif
