/* Binding: the tensors of a component's files become the weights of a network, each checked for
 * presence, dtype and shape. The first failure sticks; the rest of the binding then does
 * nothing. */
#ifndef MODELS_BIND_H
#define MODELS_BIND_H

#include "io/json.h"
#include "io/weights.h"
#include "nn/nn.h"

typedef struct binder {
    const weights *source;
    ct_error *error;
    ct_status status;
    uint64_t parameters; /* of all tensors bound so far */
} binder;

/* The weight of this name, which must have exactly this shape and be F32, F16 or BF16. */
nn_weight bind1(binder *b, int64_t n0, const char *format, ...) CORE_PRINTF(3, 4);
nn_weight bind2(binder *b, int64_t n0, int64_t n1, const char *format, ...) CORE_PRINTF(4, 5);
/* A convolution [n0, n1, k, k]. */
nn_weight bind_conv(binder *b, int64_t n0, int64_t n1, int64_t k, const char *format, ...)
    CORE_PRINTF(5, 6);

/* Opens config.json and the weight files of a component. class_name must be the _class_name of the
 * configuration, or one of its architectures. */
ct_status component_open(config *c, weights **w, const ct_allocator *a, const char *directory,
                         const char *stem, const char *class_prefix, ct_error *error);

#endif
