/* A trace: every stage of a run in one safetensors file, for comparison with the reference. */
#ifndef PIPELINE_TRACE_H
#define PIPELINE_TRACE_H

#include "io/safetensors.h"
#include "nn/nn.h"

typedef struct trace {
    const ct_allocator *allocator;
    safetensors_writer *writer; /* NULL: tracing is off, and every call does nothing */
    bool modules;               /* wanted: the output of every block */
    bool active;                /* now: only the positive prompt, the first step and the decoder */
    ct_status status;           /* sticky */
    ct_error error;
    nn_trace hook; /* hand &hook to nn_create where modules is set */
} trace;

/* path may be NULL. */
ct_status trace_open(trace *t, const ct_allocator *a, const char *path, bool modules,
                     ct_error *error);
void trace_floats(trace *t, const char *name, int rank, const int64_t *shape, const float *data);
void trace_ids(trace *t, const char *name, const int32_t *ids, int64_t count);
/* Completes the file, or reports the first failure. */
ct_status trace_commit(trace *t, ct_error *error);
void trace_abort(trace *t);

#endif
