/* Bfloat16 and 8-bit products on tiles of 16 rows of 64 bytes (AMX).
 *
 *     tmm0..tmm3  sums: rows 0..15 with columns 0..15 and 16..31, rows 16..31 with the same
 *     tmm4, tmm5  rows 0..15 and 16..31, 16 words of each
 *     tmm6, tmm7  columns 0..15 and 16..31: a register row is one word of 16 columns
 *
 * A panel of rows holds 32 rows of 16 words, then the next 16 words of the 32 rows; a panel of
 * columns is word by word like those of AVX-512. Inline assembly because the intrinsics of gcc 12
 * do not tell the compiler what memory they read. Compilers never use these registers themselves,
 * so they keep their contents from one statement to the next. */
#include "nn/cpu/gemm.h"
#include "nn/cpu/x86/pack.h"

enum {
    MR = 32,
    NR = 32,
    STEP = 16,           /* words of a register row */
    ROW_BYTES = 4 * STEP /* from one row to the next in a panel of rows */
};

/* The shape of the eight registers, as ldtilecfg reads it: every one 16 rows of 64 bytes. */
typedef struct amx_shape {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} amx_shape;

static void begin(void)
{
    static const amx_shape shape = {.palette = 1,
                                    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                    .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
}

static void end(void)
{
    __asm__ volatile("tilerelease" : : : "memory");
}

#define ZERO(n) __asm__ volatile("tilezero %%tmm" #n : :)
/* Sixteen rows at address, stride bytes apart. */
#define LOAD(n, address, stride)                                                                   \
    __asm__ volatile("tileloadd (%0, %1, 1), %%tmm" #n                                             \
                     :                                                                             \
                     : "r"(address), "r"((int64_t)(stride))                                        \
                     : "memory")
#define STORE(n, address, stride)                                                                  \
    __asm__ volatile("tilestored %%tmm" #n ", (%0, %1, 1)"                                         \
                     :                                                                             \
                     : "r"(address), "r"((int64_t)(stride))                                        \
                     : "memory")
/* AT&T: columns, rows, sums. */
#define MULTIPLY(instruction, columns, rows, sums)                                                 \
    __asm__ volatile(instruction " %%tmm" #columns ", %%tmm" #rows ", %%tmm" #sums : :)

/* The tile, but for the instruction that multiplies. */
#define TILE(instruction)                                                                          \
    const char *x = a, *y = b;                                                                     \
    char *left = c, *right = left + 64;                                                            \
    char *left_below = left + 64 * ldc, *right_below = left_below + 64;                            \
    if (accumulate) {                                                                              \
        LOAD(0, left, 4 * ldc);                                                                    \
        LOAD(1, right, 4 * ldc);                                                                   \
        LOAD(2, left_below, 4 * ldc);                                                              \
        LOAD(3, right_below, 4 * ldc);                                                             \
    } else {                                                                                       \
        ZERO(0);                                                                                   \
        ZERO(1);                                                                                   \
        ZERO(2);                                                                                   \
        ZERO(3);                                                                                   \
    }                                                                                              \
    for (; words > 0; words -= STEP, x += MR * ROW_BYTES, y += STEP * 4 * NR) {                    \
        LOAD(6, y, 4 * NR);                                                                        \
        LOAD(4, x, ROW_BYTES);                                                                     \
        MULTIPLY(instruction, 6, 4, 0);                                                            \
        LOAD(5, x + 16 * ROW_BYTES, ROW_BYTES);                                                    \
        MULTIPLY(instruction, 6, 5, 2);                                                            \
        ZERO(6);                                                                                   \
        LOAD(7, y + 64, 4 * NR);                                                                   \
        MULTIPLY(instruction, 7, 4, 1);                                                            \
        ZERO(4);                                                                                   \
        MULTIPLY(instruction, 7, 5, 3);                                                            \
        ZERO(5);                                                                                   \
        ZERO(7);                                                                                   \
    }                                                                                              \
    STORE(0, left, 4 * ldc);                                                                       \
    STORE(1, right, 4 * ldc);                                                                      \
    STORE(2, left_below, 4 * ldc);                                                                 \
    STORE(3, right_below, 4 * ldc)

/* Denormal numbers count as zero. */
static void tile_bf16(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                      bool accumulate)
{
    TILE("tdpbf16ps");
}

static void tile_int8(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                      bool accumulate)
{
    TILE("tdpbssd");
}

static void pack_rows(void *a, const void *const *rows, int64_t words)
{
    char *to = a;
    for (int64_t w = 0; w < words; w += STEP)
        for (int i = 0; i < MR; i++, to += ROW_BYTES)
            memcpy(to, (const char *)rows[i] + 4 * w, ROW_BYTES);
}

static void pack_columns(void *b, const void *const *columns, int64_t words)
{
    pack_words(b, columns, NR, words);
}

/* A row panel's and a column panel's slice are 20 KiB each: both, with a tile of sums, in the 48
 * KiB of first-level cache of Sapphire Rapids. A block's columns take 80 KiB and its sums 0.5 MiB
 * of 2 MiB. Wider blocks read the rows less often but were slower on 16 processors. */
#define SHAPE                                                                                      \
    .features = CPU_HAS_AVX512 | CPU_HAS_AMX, .mr = MR, .nr = NR, .step = STEP,                    \
    .block_words = 160, .block_columns = 128, .block_rows = 1088, .begin = begin, .end = end,      \
    .pack_rows = pack_rows, .pack_columns = pack_columns

extern const cpu_gemm gemm_amx_bf16, gemm_amx_int8;
const cpu_gemm gemm_amx_bf16 = {
    .name = "amx",
    .compute = CPU_BF16,
    .element = GEMM_BFLOAT16,
    SHAPE,
    .tile = tile_bf16,
};
const cpu_gemm gemm_amx_int8 = {
    .name = "amx",
    .compute = CPU_INT8,
    .element = GEMM_INT8,
    SHAPE,
    .tile = tile_int8,
};
