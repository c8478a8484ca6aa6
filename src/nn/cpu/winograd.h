/* Winograd's convolution F(4x4, 3x3) (https://arxiv.org/abs/1509.09308): 4x4 results of a 3x3
 * convolution, from 6x6 inputs, with 36 products for each pair of channels instead of 144.
 *
 *     Y = A^T [ (G w G^T) . (B^T d B) ] A
 *
 * The matrices follow from six points at which polynomials are evaluated: 0, a, -a, b, -b and
 * infinity. The choice decides the rounding error; docs/architecture.md, Accuracy, derives it.
 * a = 5/8 and b = 3/2 make it 1.6 times that of a direct sum (the usual 1 and 2: 3.3 times), the
 * best of all pairs of eighths, and they and their powers here are exact in float32. */
#ifndef NN_CPU_WINOGRAD_H
#define NN_CPU_WINOGRAD_H

#define WINOGRAD_A 0.625f
#define WINOGRAD_B 1.5f

#define WINOGRAD_OUT 4 /* a tile has 4 x 4 results */
#define WINOGRAD_IN 6  /* and 6 x 6 inputs */
#define WINOGRAD_POSITIONS 36
#endif
