/* The files of src/nn/cuda/kernels as the program carries them. */
#ifndef NN_CUDA_EMBEDDED_H
#define NN_CUDA_EMBEDDED_H

#include <stddef.h>

typedef struct cuda_embedded {
    const char *name; /* "rows.cu" */
    const char *text; /* ended by a zero byte */
} cuda_embedded;

/* By name; the last one has none. Written by tools/embed.py while building. */
extern const cuda_embedded cuda_embedded_files[];

#endif
