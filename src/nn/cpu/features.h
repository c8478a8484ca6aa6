/* What the processor and the system let a program use. */
#ifndef NN_CPU_FEATURES_H
#define NN_CPU_FEATURES_H

#include <stdint.h>

enum {
    /* x86-64 */
    CPU_HAS_AVX2 = 1 << 0,       /* with FMA, BMI2 and F16C */
    CPU_HAS_AVXVNNI = 1 << 1,    /* 8-bit products on 256-bit vectors */
    CPU_HAS_AVX512 = 1 << 2,     /* F, BW, DQ, VL and CD */
    CPU_HAS_AVX512VNNI = 1 << 3, /* 8-bit products on 512-bit vectors */
    CPU_HAS_AVX512BF16 = 1 << 4,
    CPU_HAS_AMX = 1 << 5, /* TILE, BF16 and INT8, and the system's permission to use them */
    /* AArch64, where NEON is always there */
    CPU_HAS_DOTPROD = 1 << 8,
    CPU_HAS_I8MM = 1 << 9,
    CPU_HAS_BF16 = 1 << 10,
};

/* Of this machine. Asks the system for permission to use AMX where the processor has it. */
uint32_t cpu_features(void);

#endif
