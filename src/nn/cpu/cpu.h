/* Shared by the op_*.c files of the CPU device. */
#ifndef NN_CPU_CPU_H
#define NN_CPU_CPU_H

#include "nn/cpu/kernels.h"
#include "nn/nn_internal.h"

/* Tasks on the context's threads; nothing in a dry run or after a failure. */
void cpu_run(nn *c, int64_t count, void (*task)(void *user, int64_t index, int worker), void *user);
/* A weight as float32 in scratch memory, for vectors. NULL in a dry run, after a failure, and for a
 * weight that is not there. */
const float *cpu_floats(nn *c, const nn_weight *w);

size_t cpu_operand_bytes(const nn *c, int64_t m, int64_t k);
void cpu_prepare(nn *c, const nn_tensor *out, const nn_tensor *x);
void cpu_linear(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                const nn_epilogue *epilogue);
void cpu_linears(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *const *w,
                 const nn_weight *const *bias, int count);
void cpu_upload(nn *c, const nn_tensor *t, const float *data);
void cpu_download(nn *c, const nn_tensor *t, float *data);
void cpu_move(nn *c, void *to, const void *from, size_t bytes);
void cpu_move_rows(nn *c, void *to, size_t to_pitch, const void *from, size_t from_pitch,
                   size_t bytes, size_t rows);
void cpu_take(nn *c, const nn_tensor *out, const nn_tensor *x, int64_t index);
void cpu_add_scaled(nn *c, const nn_tensor *x, const nn_tensor *y, float factor);
void cpu_guide(nn *c, const nn_tensor *positive, const nn_tensor *negative, float guidance,
               bool normalize);
void cpu_guide_tokens(nn *c, const nn_tensor *positive, const nn_tensor *negative, float guidance,
                      int patch);
void cpu_patches(nn *c, const nn_tensor *tokens, const nn_tensor *planes, int patch,
                 bool channels_first, bool to_tokens);
void cpu_upload_planes(nn *c, const nn_tensor *picture, const float *planes, float factor,
                       float offset);
void cpu_download_planes(nn *c, const nn_tensor *picture, float *planes);
void cpu_conv2d(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
                const nn_weight *bias, const nn_conv *params);
void cpu_attention(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                   const nn_tensor *v, int heads, int kv_heads, bool causal);
void cpu_rms_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w, float eps,
                  const nn_tensor *scale);
void cpu_add_rms_norm(nn *c, const nn_tensor *x, const nn_tensor *y, const nn_weight *w, float eps,
                      const nn_tensor *gate, const nn_next_norm *next);
void cpu_layer_norm(nn *c, const nn_tensor *out, const nn_tensor *x, float eps,
                    const nn_tensor *scale, const nn_tensor *shift);
void cpu_head_norm_rope(nn *c, const nn_tensor *x, int heads, const nn_weight *w, float eps,
                        const nn_tensor *cosine, const nn_tensor *sine, nn_rope_pairs pairs);
void cpu_group_sums(nn *c, const nn_tensor *sums, int64_t first, const nn_tensor *x);
void cpu_group_factors(nn *c, const nn_tensor *norm, const nn_tensor *sums, int64_t width,
                       const nn_weight *w, const nn_weight *b, double eps,
                       const nn_weight *late_bias);
/* A picture in scratch memory. The bias of what made x is in it. */
nn_tensor cpu_pixel_norm(nn *c, const nn_tensor *x, const nn_pixel_norm *norm);
void cpu_apply_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_tensor *norm);

/* Asks for numbers that will be read soon. */
static inline void cpu_fetch(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16)
        __builtin_prefetch(x + i);
}

static inline int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t round_up(int64_t n, int64_t multiple)
{
    return ceil_div(n, multiple) * multiple;
}

#endif
