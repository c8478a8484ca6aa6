/* The speed of the kernels of rows. */
#ifndef TESTS_BENCH_KERNELS_H
#define TESTS_BENCH_KERNELS_H

/* Prints a table: every kernel on the numbers of one row that stay in the first-level cache, with
 * the definition and every vector width that this processor has. */
void bench_kernels(void);

#endif
