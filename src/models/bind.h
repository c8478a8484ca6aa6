/* Binding: the tensors of a component's files become the weights of a network, each checked for
 * presence, dtype and shape. The first failure sticks; the rest of the binding then does
 * nothing. Whatever the layout of the files, names are given as HF has them (io/names.h). */
#ifndef MODELS_BIND_H
#define MODELS_BIND_H

#include "io/json.h"
#include "io/jsonwrite.h"
#include "io/lora.h"
#include "io/weights.h"
#include "nn/nn.h"

/* A matrix whose numbers are made in memory of the weights. */
typedef struct bound_matrix {
    nn_weight from, to;
    weights *source;
    const lora_target *target; /* NULL: it is only decoded */
} bound_matrix;

/* What was bound without its numbers: bind_memory_fill makes them when all parts are there and it
 * is known that the LoRAs fit. */
typedef struct bind_memory {
    lora_set *lora; /* NULL: none */
    bound_matrix *list;
    size_t count, capacity;
    uint64_t bytes; /* of the matrices */
} bind_memory;

/* How the components of a model are loaded. */
typedef struct load_options {
    const ct_allocator *allocator;
    pool *threads;       /* for decoding; NULL: the calling thread alone */
    bool dequantize;     /* decode quantized matrices to BF16 in memory of the weights */
    bool infer;          /* config.json may be missing: the tensors tell the dimensions */
    bind_memory *memory; /* NULL: matrices are decoded as they are bound, and there are no LoRAs */
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

/* For bind2: gives w, the matrix of this HF name as the file has it, memory of its own where it
 * must be decoded or LoRAs change it. LoRAs keep the type of a matrix, but FP8 becomes BF16, and
 * groups of fewer than 8 bits become groups of 8 (dequantize: BF16), as small changes would be
 * rounded away. */
ct_status bind_in_memory(const binder *b, const char *name, const weight_view *v, nn_weight *w);
/* Makes the numbers; the same for any number of threads. LoRAs fail with CT_ENOMEM where the
 * system has not that much memory. */
ct_status bind_memory_fill(const bind_memory *memory, const load_options *options, ct_error *error);
void bind_memory_free(bind_memory *memory, const ct_allocator *a); /* the list */

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
