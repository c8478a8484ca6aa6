/* What a test sees of the driver that is none (fake_driver.c), under the name "fake_cuda". */
#ifndef FAKE_DRIVER_H
#define FAKE_DRIVER_H

#include <stdbool.h>
#include <stddef.h>

typedef struct fake_cuda_state {
    size_t limit;      /* bytes of memory that can be taken; 0: as many as the GPU has */
    size_t used, peak; /* as a driver hands memory out: in pages of 2 MiB, or of 512 bytes */
    size_t pinned;     /* bytes of the host */
    long allocations, fail_at; /* the fail_at-th one fails, of either memory; 0: none */
    long objects;              /* streams, events, allocations that are there */
    long misuse; /* memory freed that is still to be copied to or from; waiting, taking memory or
                  * copying what may change, while calls are recorded */
    long loads;  /* copies from the host */
    long launches, fail_launch; /* of kernels; the fail_launch-th one fails; 0: none */
    long captures, played;      /* recordings that ended; launches of them */
    bool blank;                 /* what comes back is zeros, since nothing was computed */
} fake_cuda_state;

#endif
