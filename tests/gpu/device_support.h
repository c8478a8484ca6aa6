/* Operations on a GPU beside the CPU in float32, on random numbers: test_device.c says how. */
#ifndef DEVICE_SUPPORT_H
#define DEVICE_SUPPORT_H

#include "test_support.h"

#include "nn/nn.h"

typedef struct test {
    const char *name;
    double bound[4]; /* relative L2 by nn_precision, that of NN_BF16 for NN_FP16; 0: not done */
    int64_t outputs; /* numbers that body downloads */
    void (*body)(nn *c, void *user, float *out);
    void *user;
} test;

/* 0, or the status of a program that cannot go on: 77 where there is no GPU. "fp16" as argument:
 * halves are of that type. */
int device_open(int argc, char **argv);
/* Prints the tally; the status of the program. */
int device_close(void);
/* A line for each precision. */
void run(const test *t);

uint32_t random32(void);
int64_t between(int64_t low, int64_t high);
void *allocate(int64_t bytes); /* zeros */
/* n random numbers of bfloat16, in -range .. range. */
float *numbers(int64_t n, float range);
/* A weight of any type, for the life of the process: copies on the GPU are known by address. */
nn_weight weight(dtype type, int bits, int rank, int64_t n0, int64_t n1);
/* [n, n], likewise. */
nn_weight identity(int64_t n);

nn_tensor put_float(nn *c, const float *data, int64_t m, int64_t n);
/* In the work type: through a picture, the only way in. */
nn_tensor put_picture(nn *c, const float *data, int64_t h, int64_t w, int64_t n);
nn_tensor put_work(nn *c, const float *data, int64_t m, int64_t n);
nn_tensor put(nn *c, bool work, const float *data, int64_t m, int64_t n);

void test_pictures(void); /* device_pictures.c */

#endif
