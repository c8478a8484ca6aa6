/* Tensor cores, and what feeds them, for the storage type T (-DT_BF16, -DT_F16 or -DT_F32):
 * numbers of 16 bits by their bits, products with sums in float32, tiles in shared memory, copies
 * that do not wait. Nothing of the toolkit's headers. TENSOR_CORES is 0 where T has none on this
 * architecture. */
#ifndef MMA_CUH
#define MMA_CUH

#include "common.cuh"

#if defined(T_F16) && __CUDA_ARCH__ >= 750
#define TENSOR_CORES 1
#elif defined(T_BF16) && __CUDA_ARCH__ >= 800
#define TENSOR_CORES 1
#else
#define TENSOR_CORES 0
#endif

/* 2^x; 0 for -Inf, NaN for NaN. Error at most 2^-22 of the value. */
DEVICE float fast_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#if TENSOR_CORES

/* Shared memory as the instructions below address it. */
DEVICE unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

/* The compiler is to forget where a value comes from: it would compute all addresses that are made
 * from it before a loop, and has no registers to keep them in. */
DEVICE void forget(unsigned &x)
{
    asm volatile("" : "+r"(x));
}

/* 16 bytes to shared memory, or zeros where not valid: then nothing is read. Both addresses are
 * multiples of 16. There when copies_wait has come back, for this thread; for others after a
 * barrier behind that. */
DEVICE void copy16(unsigned to, const void *from, bool valid)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    uint4 x = {0, 0, 0, 0};
    if (valid)
        x = *(const uint4 *)from;
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z),
                 "r"(x.w)
                 : "memory");
#endif
}

/* For all copies of this thread. */
DEVICE void copies_wait()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* Four 8x8 matrices of numbers of 16 bits. Lane i gives the address of row i % 8 of matrix i / 8;
 * register m of lane i gets numbers 2 * (i % 4) and the next one of row i / 4 of matrix m. */
DEVICE void load_matrices(unsigned (&r)[4], unsigned address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* The same, transposed: numbers of rows 2 * (i % 4) and the next one in column i / 4. */
DEVICE void load_transposed(unsigned (&r)[4], unsigned address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* c [16, 8] += a [16, 16] b [16, 8]. With g = lane / 4 and t = lane % 4, words hold pairs of
 * numbers along the 16 that are summed:
 *   a: rows g, g + 8, g, g + 8, at 2t, 2t, 2t + 8, 2t + 8
 *   b: column g, at 2t and 2t + 8
 *   c: row g, columns 2t and 2t + 1; then row g + 8 */
DEVICE void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
#if defined(T_BF16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    /* Turing sums 8 at a time. */
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

#endif

/* ---- Hopper: a warpgroup of 128 threads multiplies what lies in shared memory ----------------- */

#if TENSOR_CORES && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WARPGROUP_CORES 1
#else
#define WARPGROUP_CORES 0
#endif

#if WARPGROUP_CORES

/* How tiles lie: rows of 64 numbers (128 bytes), the 16-byte part p of row r at p ^ (r % 8), tiles
 * at multiples of 1024 bytes. The hardware undoes that ("128-byte swizzle"). */
#define SWIZZLED_128 (1ull << 62)

/* Numbers that are summed follow each other in a row: `at` is that of the first row, 8 rows are
 * 1024 bytes. 16 of them further on is 32 bytes. */
DEVICE unsigned long long along_rows(unsigned at)
{
    return SWIZZLED_128 | (unsigned long long)(1024 >> 4) << 32 | 1ull << 16 | (at & 0x3ffffu) >> 4;
}

/* Numbers that are summed are below each other: 8 of them are 1024 bytes, and the next 64 columns
 * lie `next` bytes behind. 16 of them further on is 2048 bytes. */
DEVICE unsigned long long along_columns(unsigned at, unsigned next)
{
    return SWIZZLED_128 | (unsigned long long)(1024 >> 4) << 32 |
           (unsigned long long)(next >> 4) << 16 | (at & 0x3ffffu) >> 4;
}

/* What this thread has written to shared memory is seen by the tensor cores, behind a barrier. */
DEVICE void publish_shared()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Before products, where registers that they read or add to have been written. */
DEVICE void products_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* Ends a group of products. */
DEVICE void products_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until but the last COUNT groups are done. Until then nothing may touch their registers. */
template <int COUNT> DEVICE void products_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(COUNT) : "memory");
}

/* The compiler is to leave these registers where they are, before and behind this. */
DEVICE void pin(float (&d)[16][4])
{
#pragma unroll
    for (int n = 0; n < 16; n++)
        asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

/* Warp w of the group has rows 16w .. 16w+15 of d [64, 128], as multiply_add has them. */
#define RESULTS4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define RESULTS16(n) RESULTS4(n), RESULTS4(n + 1), RESULTS4(n + 2), RESULTS4(n + 3)
#define RESULTS RESULTS16(0), RESULTS16(4), RESULTS16(8), RESULTS16(12)
#define REGISTERS                                                                                  \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                      \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63} "
#if defined(T_BF16)
#define WARPGROUP_PRODUCT "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
#else
#define WARPGROUP_PRODUCT "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
#endif

/* d = a [64, 16] b [128, 16]^T, or d += that; both along rows. */
DEVICE void multiply_tiles(float (&d)[16][4], unsigned long long a, unsigned long long b, int add)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" WARPGROUP_PRODUCT REGISTERS
                 ", %64, %65, p, 1, 1, 0, 0;\n}"
                 : RESULTS
                 : "l"(a), "l"(b), "r"(add));
}

/* d += a [64, 16] b [16, 128]; a in registers as multiply_add has it, b along columns. */
DEVICE void multiply_add_tile(float (&d)[16][4], const unsigned (&a)[4], unsigned long long b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n" WARPGROUP_PRODUCT REGISTERS
                 ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
                 : RESULTS
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif
#endif
