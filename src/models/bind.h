/* Binding: the tensors of a component's files become the weights of a network, each checked for
 * presence, dtype and shape. The first failure sticks; the rest of the binding then does
 * nothing. Whatever the layout of the files, names are given as HF has them (io/names.h). */
#ifndef MODELS_BIND_H
#define MODELS_BIND_H

#include "io/json.h"
#include "io/jsonwrite.h"
#include "io/weights.h"
#include "nn/nn.h"

/* How the components of a model are loaded. */
typedef struct load_options {
    const ct_allocator *allocator;
    pool *threads;   /* for decoding; NULL: the calling thread alone */
    bool dequantize; /* decode quantized matrices to BF16 in memory of the weights */
    bool infer;      /* config.json may be missing: the tensors tell the dimensions */
} load_options;

typedef struct binder {
    weights *source;
    const load_options *options;
    ct_error *error;
    ct_status status;
    uint64_t parameters; /* of all tensors bound so far */
} binder;

/* The weight of this name, which must have exactly this shape and be F32, F16, BF16 or F8. */
nn_weight bind1(binder *b, int64_t n0, const char *format, ...) CORE_PRINTF(3, 4);
/* A matrix may also be quantized in MLX affine groups: codes [n0, n1 * bits / 32] in U32 under this
 * name, which then ends in .weight, and .scales and .biases [n0, n1 / group] beside it. */
nn_weight bind2(binder *b, int64_t n0, int64_t n1, const char *format, ...) CORE_PRINTF(4, 5);
/* A convolution [n0, n1, k, k]; [n0, k, k, n1] in layouts that have channels last. */
nn_weight bind_conv(binder *b, int64_t n0, int64_t n1, int64_t k, const char *format, ...)
    CORE_PRINTF(5, 6);

/* A convolution over time, rows and columns, [n0, n1, k, k, k], as it acts on a single picture: the
 * frames before it are zeros, so that only its last slice in time, [n0, n1, k, k], sees data. */
nn_weight bind_last_slice(binder *b, int64_t n0, int64_t n1, int64_t k, const char *format, ...)
    CORE_PRINTF(5, 6);
/* A convolution [n0, n1, frames, k, k] whose stride is its size: each kernel is a row of a matrix,
 * [n0, n1 * frames * k * k]. */
nn_weight bind_kernel_rows(binder *b, int64_t n0, int64_t n1, int64_t frames, int64_t k,
                           const char *format, ...) CORE_PRINTF(6, 7);
/* A vector that may be stored as [n0, 1, 1] or with more axes of 1. */
nn_weight bind_channels(binder *b, int64_t n0, const char *format, ...) CORE_PRINTF(3, 4);

/* What the files of a component look like. */
typedef struct component_format {
    const char *stem;         /* of the weight files */
    const char *class_prefix; /* of _class_name in config.json, or of one of its architectures */
    /* Writes the members that config.json would have, as far as the tensors tell them. */
    void (*infer)(const weights *w, json_writer *out);
} component_format;

/* Opens config.json (or infers it) and the weight files of a component. */
ct_status component_open(config *c, weights **w, const component_format *format,
                         const load_options *options, const char *directory, ct_error *error);

/* For inferring: the size of a tensor along an axis; 0, which no configuration allows, when there
 * is no such tensor. */
int64_t tensor_size(const weights *w, const char *name, int axis);
/* A member of a configuration. */
void infer_integer(json_writer *out, const char *key, int64_t value);

#endif
