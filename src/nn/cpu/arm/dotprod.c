/* int8 by SDOT (Armv8.2 with FEAT_DotProd: Cortex-A55, A75 and later, Neoverse, Apple A11): each
 * lane adds the 4 products of a word. */
#include "nn/cpu/arm/int8.h"
#include "nn/cpu/gemm.h"

#define MULTIPLY(sums, columns, rows, lane) vdotq_laneq_s32(sums, columns, rows, lane)

#include "nn/cpu/arm/tile_lanes.h"

extern const cpu_gemm gemm_dotprod;
const cpu_gemm gemm_dotprod = {.name = "dotprod",
                               .features = CPU_HAS_DOTPROD,
                               .compute = CPU_INT8,
                               .element = GEMM_INT8,
                               LANES_SHAPE};
