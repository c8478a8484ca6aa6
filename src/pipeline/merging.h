/* Rows of a matrix in a file as float32, with what LoRAs add to them. */
#ifndef PIPELINE_MERGING_H
#define PIPELINE_MERGING_H

#include "core/threads.h"
#include "io/lora.h"

typedef struct merging {
    lora_product product;
    const weight_view *from;
    float *numbers; /* of merging_run: [count, columns]; NULL where nothing is added */
    int64_t first, count;
} merging;

/* from: a matrix in F32, F16 or BF16. target NULL: nothing is added, and there is nothing to run.
 * Close it after a failure, too. */
ct_status merging_open(merging *m, const ct_allocator *a, const weight_view *from,
                       const lora_target *target, size_t rows, ct_error *error);
void merging_close(merging *m);
/* Rows first .. first+count-1, at most as many as merging_open was told. */
void merging_run(merging *m, pool *threads, int64_t first, int64_t count);

#endif
