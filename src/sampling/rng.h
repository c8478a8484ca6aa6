/* Random numbers that are those of another tool for the same seed. */
#ifndef SAMPLING_RNG_H
#define SAMPLING_RNG_H

#include "core/threads.h"

#include <stdbool.h>
#include <stdint.h>

/* torch's CPU generator: MT19937 and the normal numbers that torch.randn makes from it. */
typedef struct torch_generator {
    uint32_t state[624];
    int used;       /* of the 624 numbers */
    bool has_saved; /* a second normal number of a small draw, for the next small draw */
    double saved;
} torch_generator;

void torch_seed(torch_generator *g, uint64_t seed);
/* torch.randn(n, dtype=float32, generator=g). Equal to torch up to the last digits of log, sin and
 * cos (about 1e-6; torch has vectorised ones). threads may be NULL. */
void torch_randn(torch_generator *g, float *out, int64_t n, pool *threads);

#endif
