/* Shared by nn.c and the devices; models do not include this. */
#ifndef NN_INTERNAL_H
#define NN_INTERNAL_H

#include "nn/nn.h"

/* What a device must be able to do. Arguments have been checked by nn.c. In a dry run a device only
 * takes the scratch memory that the real run will take. */
typedef struct nn_device {
    const char *name;
    void (*embed)(nn *c, const nn_tensor *out, const nn_weight *w, const int32_t *ids);
    void (*fill_rows)(nn *c, const nn_tensor *out, const nn_weight *w);
    size_t (*operand_bytes)(const nn *c, int64_t m, int64_t k);
    void (*prepare)(nn *c, const nn_tensor *out, const nn_tensor *x);
    void (*linear)(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                   const nn_epilogue *epilogue);
    void (*rms_norm)(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w, float eps,
                     const nn_tensor *scale);
    void (*add_rms_norm)(nn *c, const nn_tensor *x, const nn_tensor *y, const nn_weight *w,
                         float eps, const nn_tensor *gate);
    void (*layer_norm)(nn *c, const nn_tensor *out, const nn_tensor *x, float eps,
                       const nn_tensor *scale);
    void (*head_norm_rope)(nn *c, const nn_tensor *x, int heads, const nn_weight *w, float eps,
                           const nn_tensor *cosine, const nn_tensor *sine, nn_rope_pairs pairs);
    void (*attention)(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                      const nn_tensor *v, int heads, int kv_heads, bool causal);
    void (*silu)(nn *c, const nn_tensor *out, const nn_tensor *x);
    void (*tanh)(nn *c, const nn_tensor *x);
    void (*add_scalar)(nn *c, const nn_tensor *x, float value);
    void (*conv2d)(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                   const nn_weight *bias, const nn_conv *params);
    void (*group_sums)(nn *c, const nn_tensor *sums, int64_t first, const nn_tensor *x);
    void (*group_factors)(nn *c, const nn_tensor *norm, const nn_tensor *sums, int64_t width,
                          const nn_weight *w, const nn_weight *b, double eps);
    void (*apply_norm)(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_tensor *norm);
} nn_device;

extern const nn_device nn_cpu_device;

struct nn {
    nn_params params;
    const nn_device *device;
    char *arena; /* NULL in a dry run */
    size_t capacity, used, peak;
    ct_error error; /* sticky */
};

/* Memory from the arena, aligned; NULL in a dry run, and after a failure (nn_stopped tells). */
void *nn_scratch(nn *c, size_t count, size_t size);

#endif
