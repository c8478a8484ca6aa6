/* The layouts of panels on AArch64: blocks of 1, 2 or 4 words of each row in turn.
 *
 * word (w, row) is at ((w / block) * rows + row) * block + w % block; words is a multiple of block.
 * Such a panel may be cut anywhere between blocks. */
#ifndef NN_CPU_ARM_PACK_H
#define NN_CPU_ARM_PACK_H

#include <stdint.h>

/* Blocks of 1, for products by lane: 8 rows, 12 rows. */
void arm_pack_8x1(void *panel, const void *const *rows, int64_t words);
void arm_pack_12x1(void *panel, const void *const *rows, int64_t words);
/* Blocks of 2, for products of 2x2 blocks. */
void arm_pack_8x2(void *panel, const void *const *rows, int64_t words);
void arm_pack_12x2(void *panel, const void *const *rows, int64_t words);
/* Blocks of 4, for products along k. */
void arm_pack_4x4(void *panel, const void *const *rows, int64_t words);

#endif
