#include "nn/cpu/peak.h"

#include "core/clock.h"

#include <stddef.h>

static const cpu_peak_loop *find_loop(const cpu_gemm *gemm)
{
#if defined(__x86_64__)
    for (const cpu_peak_loop *loop = cpu_peak_loops_x86; loop->run; loop++)
        if (loop->compute == gemm->compute && loop->features == gemm->features)
            return loop;
#else
    (void)gemm;
#endif
    return NULL;
}

static double time_rounds(const cpu_peak_loop *loop, int64_t rounds)
{
    const double start = clock_seconds();
    loop->run(rounds);
    return clock_seconds() - start;
}

double cpu_peak_gflops(cpu_compute compute, uint32_t features, double seconds)
{
    const cpu_gemm *gemm = cpu_gemm_choose(compute, features);
    const cpu_peak_loop *loop = gemm ? find_loop(gemm) : NULL;
    if (!loop)
        return 0;
    if (gemm->begin)
        gemm->begin();
    const double start = clock_seconds();
    /* Rounds that take about a millisecond, so that many pass without an interruption. To find how
     * many is a part of the warm-up. */
    int64_t rounds = 1000;
    while (time_rounds(loop, rounds) < 1e-3)
        rounds *= 2;
    while (clock_seconds() - start < seconds / 4)
        time_rounds(loop, rounds);
    double best = time_rounds(loop, rounds);
    while (clock_seconds() - start < seconds) {
        const double time = time_rounds(loop, rounds);
        best = time < best ? time : best;
    }
    if (gemm->end)
        gemm->end();
    return (double)rounds * loop->operations / best * 1e-9;
}
