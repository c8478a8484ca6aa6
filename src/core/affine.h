/* Numbers in affine groups, as MLX quantises matrices (mlx.core.quantize, mode "affine").
 *
 * A row of K numbers is a stream of K unsigned codes of 2, 3, 4, 5, 6 or 8 bits, lowest bits
 * first; each group of `group` codes shares a scale and a bias: number = scale * code + bias. The
 * scale may be negative. K * bits is a multiple of 32: MLX keeps the stream in 32-bit words. */
#ifndef CORE_AFFINE_H
#define CORE_AFFINE_H

#include "core/dtype.h"

/* Whether codes may have so many bits. */
bool affine_bits(int64_t bits);

/* Numbers first .. first+count-1 of a row whose codes, scales and biases are given; type is that of
 * scales and biases: F32, F16 or BF16. All may lie at any alignment. Product and sum are rounded to
 * float32 one after the other. */
void affine_decode(float *out, const void *codes, int bits, int64_t group, const void *scales,
                   const void *biases, dtype type, int64_t first, int64_t count);

/* A row of count numbers, a multiple of group, to count * bits / 8 bytes of codes and count / group
 * scales and biases of type: the numbers of mlx.core.quantize, bit for bit. NaN and infinities have
 * no meaningful code. */
void affine_encode(void *codes, void *scales, void *biases, dtype type, const float *in,
                   int64_t count, int bits, int64_t group);

#endif
