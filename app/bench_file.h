/* What "calotype bench --json" printed, read back. The files may come from anywhere: whatever is
 * not as it should be is an error that names the file and the member. */
#ifndef APP_BENCH_FILE_H
#define APP_BENCH_FILE_H

#include "io/json.h"

#define BENCH_FILE_BYTES ((size_t)16 << 20) /* the most that a file may have */
#define BENCH_FILE_KERNELS 1024
#define BENCH_FILE_STEPS 1000

typedef enum bench_kind { BENCH_KERNELS, BENCH_MODEL } bench_kind;

/* Strings belong to the file, are UTF-8, and NULL where a member is absent or null. */
typedef struct bench_kernel {
    const char *op, *compute, *isa, *layer; /* never NULL */
    const char *weights, *model;
    int64_t m, n, k, size; /* 0 where absent */
    double rate;           /* GFLOP/s, or GB/s */
    double share;          /* of the peak; negative where it is absent */
} bench_kernel;

typedef struct bench_time {
    double median, least, most; /* seconds */
} bench_time;

typedef enum bench_stage {
    BENCH_LOAD,
    BENCH_ENCODE,
    BENCH_STEP,
    BENCH_DECODE,
    BENCH_PICTURE,
    BENCH_STAGES
} bench_stage;

typedef struct bench_file {
    json_value *root;
    const char *path; /* of the caller */
    bench_kind kind;
    const char *version, *date, *processor; /* never NULL */
    const char *isa, *gpu;
    int64_t threads;
    /* BENCH_KERNELS */
    bench_kernel *kernel;
    int kernels;
    /* BENCH_MODEL */
    const char *model, *precision; /* never NULL */
    int64_t width, height;
    bench_time stage[BENCH_STAGES];
    double *step; /* the median of each */
    int steps;
    double memory, gpu_memory; /* bytes; 0 where absent */
} bench_file;

/* Fails with CT_EFORMAT, CT_ENOMEM, or as json_parse and json_read do. After a failure there is
 * nothing to close. */
ct_status bench_file_parse(bench_file *out, const char *text, size_t length, const char *path,
                           ct_error *error);
ct_status bench_file_read(bench_file *out, const char *path, ct_error *error);
void bench_file_close(bench_file *f);

#endif
