/* Bfloat16 and 8-bit products on tiles of 16 rows of 64 bytes (AMX).
 *
 *     tmm0..tmm3  sums: rows 0..15 with columns 0..15 and 16..31, rows 16..31 with the same
 *     tmm4, tmm5  rows 0..15 and 16..31, 16 words of each
 *     tmm6, tmm7  columns 0..15 and 16..31: a register row is one word of 16 columns
 *
 * A panel holds registers as they are loaded: 16 words of the first 16 rows or columns, of the
 * other 16, then the next 16 words. Inline assembly because the intrinsics of gcc 12 do not tell
 * the compiler what memory they read. Compilers never use these registers themselves, so they keep
 * their contents from one statement to the next. */
#include "nn/cpu/gemm.h"
#include "nn/cpu/x86/pack512.h"

enum {
    MR = 32,
    NR = 32,
    STEP = 16,            /* words of a register row */
    ROW_BYTES = 4 * STEP, /* of a register */
    TILE_BYTES = 16 * ROW_BYTES
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

/* The tile, but for the instruction that multiplies. A register of an operand is zeroed after its
 * last use: while the other hardware thread of the core is busy few tile registers are renamed, and
 * one that holds zeros takes none (1.8 times as fast then, measured on Sapphire Rapids). The next
 * panel is asked for a few lines at a time: the third-level cache sends 16 GB/s to a core, and
 * requests in a burst wait for one another. */
#define TILE(instruction)                                                                          \
    const char *x = a, *y = b, *ahead = next;                                                      \
    const int64_t lines_each = (lines * STEP + words - 1) / words;                                 \
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
    for (; words > 0; words -= STEP, x += 2 * TILE_BYTES, y += 2 * TILE_BYTES) {                   \
        LOAD(6, y, ROW_BYTES);                                                                     \
        LOAD(4, x, ROW_BYTES);                                                                     \
        MULTIPLY(instruction, 6, 4, 0);                                                            \
        for (int64_t i = 0; i < lines_each; i++, ahead += 64)                                      \
            _mm_prefetch(ahead, _MM_HINT_T1);                                                      \
        LOAD(5, x + TILE_BYTES, ROW_BYTES);                                                        \
        MULTIPLY(instruction, 6, 5, 2);                                                            \
        ZERO(6);                                                                                   \
        LOAD(7, y + TILE_BYTES, ROW_BYTES);                                                        \
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
static void fetching_bf16(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                          bool accumulate, const void *next, int64_t lines)
{
    TILE("tdpbf16ps");
}

static void fetching_int8(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                          bool accumulate, const void *next, int64_t lines)
{
    TILE("tdpbssd");
}

static void tile_bf16(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                      bool accumulate)
{
    fetching_bf16(words, a, b, c, ldc, accumulate, a, 0);
}

static void tile_int8(int64_t words, const void *a, const void *b, void *c, int64_t ldc,
                      bool accumulate)
{
    fetching_int8(words, a, b, c, ldc, accumulate, a, 0);
}

static void pack_rows(void *a, const void *const *rows, int64_t words)
{
    char *to = a;
    for (int64_t w = 0; w < words; w += STEP)
        for (int i = 0; i < MR; i++, to += ROW_BYTES)
            _mm512_storeu_si512(to, _mm512_loadu_si512((const char *)rows[i] + 4 * w));
}

static void pack_columns(void *b, const void *const *columns, int64_t words)
{
    char *to = b;
    for (int64_t w = 0; w < words; w += STEP)
        for (int i = 0; i < NR; i += 16, to += TILE_BYTES)
            pack_16x16((float *)(void *)to, 16, columns + i, w, 0xffff);
}

/* A row panel's and a column panel's slice are 20 KiB each: both, with a tile of sums, in the 48
 * KiB of first-level cache of Sapphire Rapids. A block's columns take 160 KiB and its sums 0.5 MiB
 * of 2 MiB, or of the half that is left where two threads share a core. */
#define SHAPE                                                                                      \
    .features = CPU_HAS_AVX512 | CPU_HAS_AMX, .mr = MR, .nr = NR, .step = STEP,                    \
    .block_words = 160, .block_columns = 256, .block_rows = 544, .begin = begin, .end = end,       \
    .pack_rows = pack_rows, .pack_columns = pack_columns

extern const cpu_gemm gemm_amx_bf16, gemm_amx_int8;
const cpu_gemm gemm_amx_bf16 = {
    .name = "amx",
    .compute = CPU_BF16,
    .element = GEMM_BFLOAT16,
    SHAPE,
    .tile = tile_bf16,
    .tile_fetching = fetching_bf16,
};
const cpu_gemm gemm_amx_int8 = {
    .name = "amx",
    .compute = CPU_INT8,
    .element = GEMM_INT8,
    SHAPE,
    .tile = tile_int8,
    .tile_fetching = fetching_int8,
};
