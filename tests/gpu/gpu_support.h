/* A GPU under test: numbers here and there, errors in units of their bounds, times. */
#ifndef GPU_SUPPORT_H
#define GPU_SUPPORT_H

#include "test_support.h"

#include "core/dtype.h"
#include "nn/cuda/driver.h"

#define WORKSPACE ((size_t)64 << 20)
#define SAMPLES 400 /* results of a large case that are checked */

extern struct gpu {
    bool there;
    cuda_driver d;
    cuda_device_info info;
    cu_context context;
    cu_stream stream;
    cu_address workspace;
    ct_error why; /* it is not there */
} gpu;
extern int failures; /* since need_gpu */

/* cmocka's group functions. Without a GPU open_gpu succeeds. */
int open_gpu(void **state);
int close_gpu(void **state);
/* Skips the test without a GPU. */
void need_gpu(void);
void check_driver(cu_result r, const char *what);
uint32_t random32(void);

/* Numbers as the GPU has them, what they stand for, and where they are there. */
typedef struct numbers {
    dtype type;
    size_t count;
    unsigned char *raw;
    cu_address at;
} numbers;

/* Random numbers in -1 to 1 (-8 to 8 of e4m3, -127 to 127 of int8), here and there. */
numbers make_numbers(dtype type, size_t count);
void free_numbers(numbers *n);
void download(numbers *n);
numbers copy_of(const numbers *n); /* here alone */
double get(const numbers *n, size_t i);
/* What rounding a result to the type may change, relative to it: half a unit in the last place,
 * where units are largest. */
double rounding(dtype type);

/* The largest error of a case in units of its bound, and the errors' size beside the results'. */
typedef struct tally {
    double worst, errors, results;
    long checked;
} tally;

void compare(tally *t, double actual, double expected, double bound);
/* One line for a case; counts a failure. */
void report(const char *name, const tally *t, bool untouched, const char *rest);
void report_error(const char *name, const ct_error *error);
/* Milliseconds of one of `count` calls. */
double time_calls(ct_status (*call)(void *user, ct_error *error), void *user, int count);

#endif
