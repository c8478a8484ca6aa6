/* Shared by nn.c, context.c and the devices; models do not include this. */
#ifndef NN_INTERNAL_H
#define NN_INTERNAL_H

#include "nn/nn.h"

/* What a device must be able to do. Arguments have been checked by nn.c. In a dry run a device only
 * takes the scratch memory that the real run will take. */
typedef struct nn_device {
    const char *name;
    bool host_memory; /* the arena is memory of the host */
    size_t align;     /* of every tensor */
    int lag;          /* nn_lag */
    bool conv_sums;   /* conv2d heeds nn_conv's sums and late_bias; else group_sums follows it */
    /* Memory and movement. What a CPU does not need may be NULL. */
    ct_status (*open)(nn *c, ct_error *error);
    void (*close)(nn *c);
    void (*reset)(nn *c); /* before a run, on the thread that will run */
    char *(*arena_alloc)(nn *c, size_t bytes, ct_error *error);
    void (*arena_free)(nn *c);
    dtype (*work_type)(const nn *c);
    dtype (*wide_type)(const nn *c);  /* NULL: the work type */
    int (*hidden_shift)(const nn *c); /* NULL: 0 */
    void (*upload)(nn *c, const nn_tensor *t, const float *data);
    void (*download)(nn *c, const nn_tensor *t, float *data);
    float *(*begin_write)(nn *c, const nn_tensor *t);
    void (*end_write)(nn *c, const nn_tensor *t);
    void (*download_begin)(nn *c, int slot, const nn_tensor *t);
    double (*download_end)(nn *c, int slot, float *data, int64_t count);
    bool (*repeat_begin)(nn *c, uint64_t key);
    void (*repeat_end)(nn *c);
    void (*fork)(nn *c); /* these three may be NULL; fork in a dry run, too */
    void (*meanwhile)(nn *c);
    void (*join)(nn *c);
    int64_t (*count_broken)(nn *c, const nn_tensor *t); /* numbers that are not finite */
    void (*section)(nn *c, int section, size_t arena_bytes);
    void (*block)(nn *c);                                          /* these two in a dry run, too */
    void (*move)(nn *c, void *to, const void *from, size_t bytes); /* may overlap */
    /* rows of bytes that begin to_pitch and from_pitch bytes apart */
    void (*move_rows)(nn *c, void *to, size_t to_pitch, const void *from, size_t from_pitch,
                      size_t bytes, size_t rows);
    void (*take)(nn *c, const nn_tensor *out, const nn_tensor *x, int64_t index);
    /* Operations. */
    void (*embed)(nn *c, const nn_tensor *out, const nn_weight *w, const int32_t *ids);
    void (*fill_rows)(nn *c, const nn_tensor *out, const nn_weight *w);
    size_t (*operand_bytes)(const nn *c, int64_t m, int64_t k);
    /* Whether a linear layer writes the operand of the next one, w; NULL: never. */
    bool (*writes_operand)(const nn *c, const nn_weight *w);
    void (*prepare)(nn *c, const nn_tensor *out, const nn_tensor *x);
    void (*linear)(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                   const nn_epilogue *epilogue);
    void (*linears)(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *const *w,
                    const nn_weight *const *bias, int count); /* bias not NULL */
    void (*rms_norm)(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w, float eps,
                     const nn_tensor *scale);
    void (*add_rms_norm)(nn *c, const nn_tensor *x, const nn_tensor *y, const nn_weight *w,
                         float eps, const nn_tensor *gate, const nn_next_norm *next);
    void (*layer_norm)(nn *c, const nn_tensor *out, const nn_tensor *x, float eps,
                       const nn_tensor *scale, const nn_tensor *shift); /* shift: may be NULL */
    void (*head_norm_rope)(nn *c, const nn_tensor *x, int heads, const nn_weight *w, float eps,
                           const nn_tensor *cosine, const nn_tensor *sine, nn_rope_pairs pairs);
    void (*attention)(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                      const nn_tensor *v, int heads, int kv_heads, bool causal);
    /* NULL: attention of one after the other. */
    void (*attention_segments)(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                               const nn_tensor *v, int heads, const int32_t *ends, int count);
    void (*silu)(nn *c, const nn_tensor *out, const nn_tensor *x);
    void (*gelu)(nn *c, const nn_tensor *x);
    void (*multiply)(nn *c, const nn_tensor *x, const nn_tensor *y);
    void (*tanh)(nn *c, const nn_tensor *x);
    void (*add_scalar)(nn *c, const nn_tensor *x, float value);
    void (*add_scaled)(nn *c, const nn_tensor *x, const nn_tensor *y, float factor);
    void (*guide)(nn *c, const nn_tensor *positive, const nn_tensor *negative, float guidance,
                  bool normalize);
    void (*guide_tokens)(nn *c, const nn_tensor *positive, const nn_tensor *negative,
                         float guidance, int patch);
    void (*patches)(nn *c, const nn_tensor *tokens, const nn_tensor *planes, int patch,
                    bool channels_first, bool to_tokens);
    void (*upload_planes)(nn *c, const nn_tensor *picture, const float *planes, float factor,
                          float offset);
    void (*download_planes)(nn *c, const nn_tensor *picture, float *planes);
    void (*conv2d)(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                   const nn_weight *bias, const nn_conv *params);
    void (*group_sums)(nn *c, const nn_tensor *sums, int64_t first, const nn_tensor *x);
    void (*group_factors)(nn *c, const nn_tensor *norm, const nn_tensor *sums, int64_t width,
                          const nn_weight *w, const nn_weight *b, double eps,
                          const nn_weight *late_bias); /* may be NULL */
    void (*apply_norm)(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_tensor *norm);
} nn_device;

extern const nn_device nn_cpu_device, nn_cuda_device;

struct nn {
    nn_params params;
    const nn_device *device;
    void *device_state;
    char *arena; /* NULL in a dry run */
    size_t capacity, used, peak;
    nn_tensor slot[2]; /* of a host_memory device: what nn_download_begin was given */
    struct {
        size_t used, peak;
    } fork;             /* at nn_fork */
    ct_error error;     /* sticky */
    char checking[48];  /* when; "": results are not looked at */
    const char *behind; /* while checking: the weight that was used last */
};

/* inspect.c: fails where results are checked and t has numbers that are not finite. */
void nn_inspect(nn *c, const char *operation, const nn_weight *w, const nn_tensor *t);

static inline size_t nn_element(const nn_tensor *t)
{
    return t->type == DTYPE_F32 ? 4 : 2;
}

/* Where number `offset` of a tensor is. */
static inline float *nn_at(const nn_tensor *t, int64_t offset)
{
    return t->data ? (float *)(void *)((char *)t->data + (size_t)offset * nn_element(t)) : NULL;
}

/* Memory from the arena, aligned; NULL in a dry run, and after a failure (nn_stopped tells). */
void *nn_scratch(nn *c, size_t count, size_t size);

#endif
