#include "pipeline/trace.h"

#include "core/mem.h"

static void add(trace *t, const char *name, dtype type, int rank, const int64_t *shape,
                const void *data)
{
    if (t->writer && t->status == CT_OK)
        t->status = safetensors_writer_add(t->writer, name, type, rank, shape, data, &t->error);
}

static bool trace_active(void *user)
{
    const trace *t = user;
    return t->active && t->writer && t->status == CT_OK;
}

/* Pictures inside a network are [height, width, channels]; the reference has channels first. */
static void trace_tensor(void *user, const char *name, const nn_tensor *value)
{
    trace *t = user;
    if (value->rank != 3) {
        add(t, name, DTYPE_F32, value->rank, value->n, value->data);
        return;
    }
    const int64_t pixels = value->n[0] * value->n[1], channels = value->n[2];
    float *planes = mem_array(t->allocator, (size_t)(pixels * channels), sizeof(float));
    if (!planes) {
        t->status = error_memory(&t->error, (size_t)(pixels * channels) * sizeof(float), name);
        return;
    }
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < channels; c++)
            planes[c * pixels + i] = value->data[i * channels + c];
    add(t, name, DTYPE_F32, 3, (const int64_t[]){channels, value->n[0], value->n[1]}, planes);
    mem_free(t->allocator, planes);
}

ct_status trace_open(trace *t, const ct_allocator *a, const char *path, bool modules,
                     ct_error *error)
{
    *t = (trace){.allocator = a, .modules = modules};
    t->hook = (nn_trace){t, trace_active, trace_tensor};
    return path ? safetensors_writer_open(&t->writer, a, path, error) : CT_OK;
}

void trace_floats(trace *t, const char *name, int rank, const int64_t *shape, const float *data)
{
    add(t, name, DTYPE_F32, rank, shape, data);
}

void trace_ids(trace *t, const char *name, const int32_t *ids, int64_t count)
{
    add(t, name, DTYPE_I32, 1, &count, ids);
}

ct_status trace_commit(trace *t, ct_error *error)
{
    if (!t->writer)
        return CT_OK;
    if (t->status != CT_OK) {
        if (error)
            *error = t->error;
        trace_abort(t);
        return t->status;
    }
    safetensors_writer *writer = t->writer;
    t->writer = NULL;
    return safetensors_writer_commit(writer, error);
}

void trace_abort(trace *t)
{
    safetensors_writer_abort(t->writer);
    t->writer = NULL;
}
