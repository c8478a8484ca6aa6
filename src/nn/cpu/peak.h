/* The machine's own peak: what products could reach if memory cost nothing. */
#ifndef NN_CPU_PEAK_H
#define NN_CPU_PEAK_H

#include "nn/cpu/gemm.h"

/* Of one thread, in 10^9 operations per second (a product and its sum are two), with the
 * instruction of the product that cpu_gemm_choose gives; the processor must have these features.
 * Takes about this many seconds. Best after a warm-up, so threads that call it side by side find
 * what they have together. 0: there is no such product, or no loop for it (the definition). */
double cpu_peak_gflops(cpu_compute compute, uint32_t features, double seconds);

/* A loop of an instruction set on registers alone. */
typedef struct cpu_peak_loop {
    cpu_compute compute;
    uint32_t features;           /* of the cpu_gemm that it belongs to */
    double operations;           /* of a round */
    void (*run)(int64_t rounds); /* rounds > 0; between begin and end of the cpu_gemm */
} cpu_peak_loop;

/* run is NULL at the end. */
extern const cpu_peak_loop cpu_peak_loops_x86[];

#endif
