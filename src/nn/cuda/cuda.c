/* The CUDA device: its operation table and its memory. */
#include "nn/cuda/cuda.h"

const nn_device nn_cuda_device = {.name = "cuda", .align = CUDA_ALIGN, .lag = 1};
