/* The fastest that the processor multiplies: loops on registers alone, with enough sums that none
 * waits for itself. What they compute does not matter (zeros). */
#include "nn/cpu/peak.h"

#include <stddef.h>

/* Twelve times an instruction X(sum): at most 6 cycles of latency, two at a time. */
#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
/* Six products of register tiles take 96 cycles, each has a latency of 52. */
#define SIX(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define EIGHT(X) SIX(X) X(6) X(7)

/* rounds times body, between before and after. Compilers check that the instructions belong to the
 * function's target. */
#define LOOP(name, instruction_sets, before, body, after)                                          \
    __attribute__((target(instruction_sets))) static void name(int64_t rounds)                     \
    {                                                                                              \
        __asm__ volatile(before ".p2align 5\n1:\n\t" body "dec %[rounds]\n\tjnz 1b\n\t" after      \
                         : [rounds] "+r"(rounds)                                                   \
                         :                                                                         \
                         : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",   \
                           "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");  \
    }
#define VECTOR_LOOP(name, instruction_sets, body)                                                  \
    LOOP(name, instruction_sets, "vzeroall\n\t", body, "vzeroupper")
#define TILE_LOOP(name, instruction_sets, body)                                                    \
    LOOP(name, instruction_sets, EIGHT(TILE_ZERO), body, "")

#define FMA256(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #n "\n\t"
#define FMA512(n) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #n "\n\t"
#define BF16_512(n) "vdpbf16ps %%zmm14, %%zmm15, %%zmm" #n "\n\t"
/* Products and the additions that belong to them, each of the products before: so they fill more of
 * the ports (Zen 3) than one after the other. */
#define INT16_256(n)                                                                               \
    "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n\t"                                                       \
    "vpaddd %%ymm13, %%ymm" #n ", %%ymm" #n "\n\t"                                                 \
    "vpmaddwd %%ymm14, %%ymm15, %%ymm13\n\t"                                                       \
    "vpaddd %%ymm12, %%ymm" #n ", %%ymm" #n "\n\t"
#define INT8_256(n) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #n "\n\t"
#define INT8_512(n) "vpdpbusd %%zmm14, %%zmm15, %%zmm" #n "\n\t"
#define TILE_ZERO(n) "tilezero %%tmm" #n "\n\t"
#define TILE_BF16(n) "tdpbf16ps %%tmm6, %%tmm7, %%tmm" #n "\n\t"
#define TILE_INT8(n) "tdpbssd %%tmm6, %%tmm7, %%tmm" #n "\n\t"

VECTOR_LOOP(fma256, "avx2,fma", TWELVE(FMA256))
VECTOR_LOOP(int16_256, "avx2", SIX(INT16_256))
VECTOR_LOOP(int8_256, "avxvnni", TWELVE(INT8_256))
VECTOR_LOOP(fma512, "avx512f", TWELVE(FMA512))
VECTOR_LOOP(bf16_512, "avx512bf16", TWELVE(BF16_512))
VECTOR_LOOP(int8_512, "avx512vnni", TWELVE(INT8_512))
TILE_LOOP(bf16_tile, "amx-tile,amx-bf16", SIX(TILE_BF16))
TILE_LOOP(int8_tile, "amx-tile,amx-int8", SIX(TILE_INT8))

/* Operations: 2 for each product, lanes, products of a word, instructions of a round. */
const cpu_peak_loop cpu_peak_loops_x86[] = {
    {CPU_F32, CPU_HAS_AVX2, 2 * 8 * 1 * 12, fma256},
    {CPU_F32, CPU_HAS_AVX512, 2 * 16 * 1 * 12, fma512},
    {CPU_BF16, CPU_HAS_AVX512 | CPU_HAS_AVX512BF16, 2 * 16 * 2 * 12, bf16_512},
    {CPU_BF16, CPU_HAS_AVX512 | CPU_HAS_AMX, 2 * 16 * 16 * 16 * 2 * 6, bf16_tile},
    {CPU_INT8, CPU_HAS_AVX2, 2 * 8 * 2 * 12, int16_256},
    {CPU_INT8, CPU_HAS_AVX2 | CPU_HAS_AVXVNNI, 2 * 8 * 4 * 12, int8_256},
    {CPU_INT8, CPU_HAS_AVX512 | CPU_HAS_AVX512VNNI, 2 * 16 * 4 * 12, int8_512},
    {CPU_INT8, CPU_HAS_AVX512 | CPU_HAS_AMX, 2 * 16 * 16 * 16 * 4 * 6, int8_tile},
    {.run = NULL},
};
