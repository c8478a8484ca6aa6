/* The one header that models see: tensors, weights and the operations of a network.
 *
 * A network is written once, as straight-line C on these functions. It never learns how a number is
 * stored in a file, how many threads there are, or which kernels run.
 *
 * Errors stick: operations return nothing; the first failure (shape, memory, cancel) is kept in the
 * nn with the operation's name, later operations do nothing, and the caller looks once at the end
 * (nn_status). So a cancelled job stops within one operation.
 *
 * A dry run (nn_init with dry = true) executes the same calls without touching data: it validates
 * every shape and finds the peak of memory, which is then allocated once for the real run.
 *
 * Tensors are row-major. nn_new2 and nn_new3 make float32: the stream that layers add to, tables,
 * modulation. What lies between two products is made by nn_new_work2 and nn_new_work3 and has the
 * type that the device computes fastest with: float32 on the CPU, 16 bits on a GPU unless the
 * precision is NN_F32. Operations take either. A picture inside a network is
 * [height, width, channels].
 *
 * Tensors lie in the memory of the device, which may work later than it is told to: only
 * nn_download and nn_download_end wait for it.
 */
#ifndef NN_NN_H
#define NN_NN_H

#include "core/dtype.h"
#include "core/error.h"
#include "core/threads.h"

#define NN_MAX_RANK 4

/* A matrix may be a part of a wider one: its rows are `stride` numbers apart. Everything else is
 * without gaps (a matrix too where an operation does not say otherwise). */
typedef struct nn_tensor {
    int rank;
    int64_t n[NN_MAX_RANK];
    int64_t stride; /* of a matrix */
    bool operand;   /* not numbers but what products read: nn_new_operand */
    dtype type;     /* of the numbers; on the CPU always DTYPE_F32 */
    int shift;      /* they are stored divided by 2^shift: nn_new_input */
    float *data;    /* in the device's memory, NULL in a dry run; models do not look at it */
} nn_tensor;

/* A weight as the file has it: row-major, at any alignment. It is read in place and converted while
 * a kernel packs it. data NULL: no such weight.
 *
 * bits 0: numbers of type F32, F16, BF16, F8_E4M3 or F8_E5M2.
 * bits 2, 3, 4, 5, 6 or 8, matrices [N, K] only: MLX affine groups. data is a row of K * bits / 8
 * bytes for each output, a stream of unsigned codes, lowest bits first; each group of `group` codes
 * along K has a scale and a bias of `type`, [N, K / group]: number = scale * code + bias. */
typedef struct nn_weight {
    const char *name;
    dtype type;
    int rank;
    int64_t n[NN_MAX_RANK];
    const void *data;
    int bits;
    int64_t group;
    const void *scales, *biases;
    float factor;   /* F8 only: what every number is multiplied with; 0 counts as 1 */
    bool sensitive; /* stays in bfloat16 or float32 where others are computed in 8 bits */
    bool outliers;  /* its inputs have some far larger than others: in 8 bits both are rotated by a
                     * Hadamard matrix first, which spreads them */
} nn_weight;

static inline bool nn_has(const nn_weight *w)
{
    return w && w->data;
}

/* Rows first .. first+count-1 of a matrix, or elements of a vector. */
nn_weight nn_weight_rows(const nn_weight *w, int64_t first, int64_t count);

/* Receives named tensors while a network runs; used for traces. */
typedef struct nn_trace {
    void *user;
    bool (*active)(void *user); /* whether tensors are wanted now */
    void (*tensor)(void *user, const char *name, const nn_tensor *value); /* on the CPU */
} nn_trace;

/* How products (linear, attention) are computed; everything else is float32. */
typedef enum nn_precision {
    NN_F32,
    NN_BF16, /* operands rounded to bfloat16, sums in float32 */
    NN_INT8, /* linear: rows of activations and of weights as 8-bit integers with a scale for each
              * row, sums exact; weights marked sensitive, and attention: as NN_BF16 */
    NN_FP8,  /* likewise in e4m3, sums in float32: GPUs only */
    NN_FP16  /* as NN_BF16 in IEEE halves, on GPUs; what NN_BF16 is on those without bfloat16. Their
              * range ends at 65504: see nn_new_wide2 and nn_new_input */
} nn_precision;

/* How weights come and go while a network runs. A model knows nothing of it but where its blocks
 * begin; what is done there is the pipeline's choice (pipeline/residency.h). */
typedef struct nn_residency {
    void *user;
    /* In a dry run: an operation will read these bytes of a weight. */
    void (*reads)(void *user, const void *data, size_t bytes);
    /* A block begins, in a dry run too: the weights read since the last one are done with. */
    void (*block)(void *user);
} nn_residency;

typedef struct nn_params {
    const ct_allocator *allocator;
    pool *threads;
    const struct cpu_kernels *kernels;
    struct cuda_gpu *gpu;               /* where to compute; NULL: on the CPU */
    struct cuda_store *gpu_weights;     /* of the model, on that GPU */
    struct cuda_schedule *gpu_schedule; /* what of them stays there; NULL: everything */
    bool dry;
    nn_precision precision;
    size_t arena_bytes;            /* for a real run: what the dry run found */
    const nn_trace *trace;         /* may be NULL */
    const nn_residency *residency; /* may be NULL */
    bool (*cancel)(void *user);    /* may be NULL */
    void *cancel_user;
} nn_params;

typedef struct nn nn;

ct_status nn_create(nn **out, const nn_params *params, ct_error *error);
void nn_free(nn *c); /* NULL is allowed */
/* Takes an nn for another run as if it were created with params, with the memory, and the
 * recordings, that it has. False where that does not do: another device, or memory that is too
 * small or far too large. */
bool nn_reuse(nn *c, const nn_params *params);
/* Bytes of its memory; 0 for NULL. */
size_t nn_arena_bytes(const nn *c);

/* Forgets the failure and all tensors, for the next run. */
void nn_reset(nn *c);
/* The sticky status; copies the message to error when it is not CT_OK. */
ct_status nn_status(const nn *c, ct_error *error);
/* Makes a failure stick, unless there is one already. */
void nn_fail(nn *c, ct_status status, const char *format, ...) CORE_PRINTF(3, 4);
/* True when an operation would do nothing, because of a failure. Asks the cancel callback. */
bool nn_stopped(nn *c);
bool nn_is_dry(const nn *c);
/* The most bytes that were in use at once, since nn_restart_peak if that was called. */
size_t nn_peak(const nn *c);
void nn_restart_peak(nn *c);
/* Gives the memory behind the first bytes back to the system until it is used again. Nothing may be
 * in use there. */
void nn_trim(nn *c, size_t bytes);

/* Another part of a job begins, 0 to 7, which may begin several times; a device that has memory of
 * its own decides by it what stays there. arena_bytes: what tensors take in it. */
void nn_section(nn *c, int section, size_t arena_bytes);
/* Between blocks: before each turn of the loop over a network's layers, and behind the last. */
void nn_block(nn *c);

/* What stands between nn_fork and nn_meanwhile may run at the same time as what stands between
 * nn_meanwhile and nn_join; neither reads what the other writes. The former is the smaller, and
 * knows no attention. All three are called, in this order, whatever fails in between. */
void nn_fork(nn *c);
void nn_meanwhile(nn *c);
void nn_join(nn *c);

/* Memory for activations: a stack. What was made after a mark goes with its release. */
size_t nn_mark(const nn *c);
void nn_release(nn *c, size_t mark);
/* Releases what was made after mark but for t, which is moved there. */
nn_tensor nn_keep(nn *c, size_t mark, const nn_tensor *t);
nn_tensor nn_new2(nn *c, int64_t n0, int64_t n1);
nn_tensor nn_new3(nn *c, int64_t n0, int64_t n1, int64_t n2);
/* Of the device's type under the present precision. */
nn_tensor nn_new_work2(nn *c, int64_t n0, int64_t n1);
nn_tensor nn_new_work3(nn *c, int64_t n0, int64_t n1, int64_t n2);
/* For results of a long product that a norm follows: of the device's type, or of float32 where that
 * has too small a range for sums. */
nn_tensor nn_new_wide2(nn *c, int64_t n0, int64_t n1);
/* A matrix [M, K] in the form in which the products of this precision read it, for several linear
 * layers (their weights without marks) on the same input. Written by nn_rms_norm, nn_layer_norm and
 * nn_prepare, read by nn_linear. */
nn_tensor nn_new_operand(nn *c, int64_t m, int64_t k);
/* The input [M, K] of a linear layer with w [N, K] alone, to be written by a linear layer with an
 * activation: an operand where the device can write one there, else as nn_new_work2. */
nn_tensor nn_new_input(nn *c, int64_t m, const nn_weight *w);
/* For what follows; returns what it was. An operand is used under the precision that it was made
 * in. */
nn_precision nn_set_precision(nn *c, nn_precision precision);

/* Rows first .. first+count-1 of a matrix or of a picture; the same memory. */
nn_tensor nn_rows(const nn_tensor *t, int64_t first, int64_t count);
/* Columns first .. first+count-1; the same memory. */
nn_tensor nn_columns(const nn_tensor *t, int64_t first, int64_t count);
/* The same memory as a matrix of [n0, n1]. */
nn_tensor nn_as2(nn *c, const nn_tensor *t, int64_t n0, int64_t n1);
int64_t nn_count(const nn_tensor *t);

/* Host memory to a tensor (of float32) and back; count must be that of the tensor. */
void nn_upload(nn *c, const nn_tensor *t, const float *data, int64_t count);
void nn_download(nn *c, const nn_tensor *t, float *data, int64_t count);
/* Host memory in which a tensor of float32 without gaps is to be written, nn_count numbers; NULL in
 * a dry run and after a failure, when there is nothing to write. nn_end_write must follow before
 * the tensor is used. At most 4 at once. */
float *nn_begin_write(nn *c, const nn_tensor *t);
void nn_end_write(nn *c, const nn_tensor *t);
/* A download that does not hold up a device which works in the background: begin takes the tensor
 * as it will be when the device gets there, end waits for that. Two may be under way: slot 0 or 1.
 * */
void nn_download_begin(nn *c, int slot, const nn_tensor *t);
/* Returns how many seconds ago the device was there. */
double nn_download_end(nn *c, int slot, float *data, int64_t count);
/* How many downloads should be begun before the first is ended, so that the device always has work:
 * 0 on the CPU, which works at once; else 1. */
int nn_lag(const nn *c);

/* Calls that are the same every time, tensors and their memory included, stand between
 * `if (nn_repeat_begin(c, key, count))` and nn_repeat_end inside of that: a device may record them
 * and play them back, and then begin returns false. What differs from time to time must be data
 * that is written before; what is made inside is not seen outside. The key is all that tells one
 * set of calls from others: a number for the place in the code, shapes, and whatever decides what
 * else is in memory. Precision and memory in use are added to it. Recordings last as long as c,
 * over nn_reset and nn_reuse. */
bool nn_repeat_begin(nn *c, const int64_t *key, int count);
enum { NN_PLACE_ENCODE = 1, NN_PLACE_EVALUATE, NN_PLACE_DECODE }; /* first numbers of keys */
void nn_repeat_end(nn *c);

/* From now on the results of every operation are looked at, and the first that has numbers which
 * are not finite fails, by its name and that of its weight. Nothing is recorded. Slow: for finding
 * out what went wrong with results that were found to be bad. when: "step 3 of 8"; NULL: no
 * longer. */
void nn_check_numbers(nn *c, const char *when);

/* out = x, same number of elements; the two may overlap. Matrices of one shape may be parts of
 * wider ones, and must not overlap then. */
void nn_copy(nn *c, const nn_tensor *out, const nn_tensor *x);
/* out [E, D] = x[:, index, :], x [E, S, D]. out may be a part of a wider matrix. */
void nn_take(nn *c, const nn_tensor *out, const nn_tensor *x, int64_t index);
/* Hands the tensor to the trace, if there is one. */
void nn_trace_tensor(nn *c, const nn_tensor *t, const char *format, ...) CORE_PRINTF(3, 4);

/* ---- Operations. out may be the same tensor as x where it says "in place". ------------------- */

/* out [S, D] = rows ids[0..S-1] of w [V, D]. */
void nn_embed(nn *c, const nn_tensor *out, const nn_weight *w, const int32_t *ids, int64_t count);

/* Every row of out [S, D] = w, a weight of D elements. */
void nn_fill_rows(nn *c, const nn_tensor *out, const nn_weight *w);

/* out [M, K] (an operand) = x. */
void nn_prepare(nn *c, const nn_tensor *out, const nn_tensor *x);

typedef enum nn_activation { NN_LINEAR, NN_SILU, NN_GELU_TANH } nn_activation;

/* The norm that follows: out [M, D] = rms_norm(x, w, eps), times scale; or with `layer`
 * layer_norm(x, eps), times scale, plus shift. out may be an operand. */
typedef struct nn_next_norm {
    const nn_tensor *out;
    const nn_weight *w; /* not of a layer norm */
    double eps;
    const nn_tensor *scale; /* [D]; may be NULL but for a layer norm */
    bool layer;
    const nn_tensor *shift; /* [D]; may be NULL */
} nn_next_norm;

/* What follows a product while its results are in the cache, in this order. */
typedef struct nn_epilogue {
    const nn_weight *bias; /* [N] */
    nn_activation activation;
    const nn_weight *up;      /* [N, K]: value * (x up^T), so NN_SILU makes SwiGLU; without bias */
    const nn_tensor *gate;    /* [N]: gate * value */
    bool add;                 /* out += value instead of out = value */
    const nn_next_norm *next; /* with add: of the new out, which is float32 */
} nn_epilogue;

/* out [M, N] = epilogue(x [M, K] w^T), w [N, K]; epilogue may be NULL. out and x may be parts of
 * wider matrices; x may be an operand, out what nn_new_input made. */
void nn_linear(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
               const nn_epilogue *epilogue);

/* out [M, N0 + N1 + ...] = x w[i]^T + bias[i], side by side: layers on the same input, which may be
 * one product. bias may be NULL, or some of its entries. At most 4. */
void nn_linears(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *const *w,
                const nn_weight *const *bias, int count);

/* out [M, D] = x / sqrt(mean(x^2) + eps) * w, then times scale [D] if that is given. In place. out
 * may be an operand. */
void nn_rms_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w, double eps,
                 const nn_tensor *scale);

/* x [M, D] += gate [D] * rms_norm(y, w, eps); without gate: factor 1. Then next, unless NULL. */
void nn_add_rms_norm(nn *c, const nn_tensor *x, const nn_tensor *y, const nn_weight *w, double eps,
                     const nn_tensor *gate, const nn_next_norm *next);

/* out [M, D] = (x - mean) / sqrt(var + eps) * scale [D], plus shift [D] if that is given. In place.
 * out may be an operand. */
void nn_layer_norm(nn *c, const nn_tensor *out, const nn_tensor *x, double eps,
                   const nn_tensor *scale, const nn_tensor *shift);

typedef enum nn_rope_pairs {
    NN_ROPE_INTERLEAVED, /* features (2k, 2k+1) are one complex number: the diffusion
                          * transformers */
    NN_ROPE_HALVES       /* features (k, k + D/2): Qwen and its relatives */
} nn_rope_pairs;

/* In place on x [S, H*D], which may be a part of a wider matrix: RMSNorm with w [D] over each head
 * (none if w is NULL), then rotation by the angles whose cosine and sine are given, [S, D/2]. */
void nn_head_norm_rope(nn *c, const nn_tensor *x, int heads, const nn_weight *w, double eps,
                       const nn_tensor *cosine, const nn_tensor *sine, nn_rope_pairs pairs);

/* out [Sq, H*D] = softmax(q k^T / sqrt(D)) v for each head; q [Sq, H*D], k and v [Sk, G*D] where G
 * divides H (grouped queries: head h uses h / (H/G)). causal: query i sees keys 0..i (Sq = Sk). All
 * may be parts of wider matrices; out may be the same memory as q. */
void nn_attention(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                  const nn_tensor *v, int heads, int kv_heads, bool causal);

/* The same within segments of rows: the first ends before row ends[0], the next before ends[1], the
 * last of `count` at S; rows see those of their own. q, k, v and out [S, H*D]. ends belongs to the
 * host: not in calls that are recorded. */
void nn_attention_segments(nn *c, const nn_tensor *out, const nn_tensor *q, const nn_tensor *k,
                           const nn_tensor *v, int heads, const int32_t *ends, int count);

/* out = x / (1 + exp(-x)). In place. */
void nn_silu(nn *c, const nn_tensor *out, const nn_tensor *x);
/* x = x / 2 * (1 + erf(x / sqrt(2))): GELU itself, not the approximation of NN_GELU_TANH. */
void nn_gelu(nn *c, const nn_tensor *x);
/* x = x * y, number by number. */
void nn_multiply(nn *c, const nn_tensor *x, const nn_tensor *y);
/* x = tanh(x). */
void nn_tanh(nn *c, const nn_tensor *x);
/* x = x + value. */
void nn_add_scalar(nn *c, const nn_tensor *x, double value);

/* x = x + factor * y, float32. */
void nn_add_scaled(nn *c, const nn_tensor *x, const nn_tensor *y, double factor);
/* positive = p + g * (p - n) in place, float32; normalize: not longer (L2) than p. */
void nn_guide(nn *c, const nn_tensor *positive, const nn_tensor *negative, double guidance,
              bool normalize);
/* The same on planes [C, H, W], where afterwards each token, patch * patch pixels of all channels,
 * is exactly as long (L2) as it was in positive. */
void nn_guide_tokens(nn *c, const nn_tensor *positive, const nn_tensor *negative, double guidance,
                     int patch);

/* planes [C, H, W] to tokens [H/patch * W/patch, patch * patch * C] with features [py, px,
 * channel], and back. planes are float32. */
void nn_patches(nn *c, const nn_tensor *tokens, const nn_tensor *planes, int patch);
void nn_from_patches(nn *c, const nn_tensor *planes, const nn_tensor *tokens, int patch);
/* The same with features [channel, py, px]. */
void nn_pack(nn *c, const nn_tensor *tokens, const nn_tensor *planes, int patch);
void nn_unpack(nn *c, const nn_tensor *planes, const nn_tensor *tokens, int patch);
/* picture [H, W, C] = planes [C, H, W] of the host * factor + offset, and planes = picture. */
void nn_upload_planes(nn *c, const nn_tensor *picture, const float *planes, double factor,
                      double offset);
void nn_download_planes(nn *c, const nn_tensor *picture, float *planes);

/* A norm of every pixel over its channels: silu(x / sqrt(mean(x^2) + eps) * w). */
typedef struct nn_pixel_norm {
    const nn_weight *w; /* [I] */
    double eps;
    const nn_weight *late_bias; /* that of the convolution which made x, if it was told that the
                                 * bias may come late; otherwise NULL */
} nn_pixel_norm;

typedef struct nn_conv {
    int stride;            /* 1 or 2; 0 counts as 1 */
    bool pad_bottom_right; /* zeros only below and to the right (stride 2 of the VAE encoder);
                             * otherwise kernel/2 zeros on every side */
    bool upsample;         /* the input is first doubled in both directions, nearest neighbour */
    /* The input is silu(x * norm[0] + norm[1]), [2, I], as nn_group_factors makes it; NULL: x. */
    const nn_tensor *norm;
    /* The input is x so normed; NULL: x. Stride 1, without upsample and norm. */
    const nn_pixel_norm *pixel_norm;
    bool add; /* out += the result instead of out = */
    /* The sums of each row of out, as nn_group_sums makes them, [Ho, ...]; NULL: none are wanted.
     */
    const nn_tensor *sums;
    /* out is read through a norm and not otherwise, that which is made from its sums or a
     * pixel_norm, so a device may leave the bias to that norm (not to the sums).
     * nn_group_factors, or the pixel_norm, must be told. */
    bool late_bias;
    /* x and out are a horizontal band of a larger picture: how many of the first and last rows of x
     * are neighbours of the band and no part of it. Where there are none zeros are padded. The
     * result is that of the whole picture, bit for bit, if the band begins and ends at multiples of
     * 4 rows of the whole out (or ends with it). Stride 1 only. */
    int64_t above, below;
} nn_conv;

/* out [Ho, Wo, O] = convolution of x [H, W, I] with w [O, I, k, k] (k = 1 or 3) plus bias [O].
 * On the CPU always in float32. */
void nn_conv2d(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_weight *w,
               const nn_weight *bias, const nn_conv *params);

/* A group norm over a picture that need not be in memory as a whole: the sums of each of its rows,
 * then what each channel is multiplied with and what is added. */
nn_tensor nn_new_sums(nn *c, int64_t rows, int groups);
/* Rows first .. first+H-1 of sums = those of x [H, W, C]. */
void nn_group_sums(nn *c, const nn_tensor *sums, int64_t first, const nn_tensor *x);
/* norm [2, C]: (x - mean) / sqrt(var + eps) * w + b = x * norm[0] + norm[1], for rows of width
 * pixels. The sums are added in the order of the rows. late_bias: that of the convolution which
 * made x, if it was told that the bias may come late; otherwise NULL. */
void nn_group_factors(nn *c, const nn_tensor *norm, const nn_tensor *sums, int64_t width,
                      const nn_weight *w, const nn_weight *b, double eps,
                      const nn_weight *late_bias);
/* out [H, W, C] = x * norm[0] + norm[1]. In place. */
void nn_apply_norm(nn *c, const nn_tensor *out, const nn_tensor *x, const nn_tensor *norm);

#endif
