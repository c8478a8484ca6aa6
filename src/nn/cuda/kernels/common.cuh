/* What all kernels share: storage types, 16-byte accesses, conversions and reductions.
 *
 * A file is compiled for one storage type T of activations, told by -DT_BF16, -DT_F16 or -DT_F32,
 * for any GPU from sm_75 on, without any header of the CUDA toolkit. Arithmetic is float32. No fast
 * math is expected of the compiler: where less than full precision is enough the code says so.
 *
 * Reductions have a fixed order, so a result depends on the shape and on nothing else. */
#ifndef COMMON_CUH
#define COMMON_CUH

#if defined(T_F32)
typedef float T;
#elif defined(T_F16) || defined(T_BF16)
typedef unsigned short T;
#else
#error "compile with -DT_BF16, -DT_F16 or -DT_F32"
#endif

#define DEVICE static __device__ __forceinline__
#define FULL_WARP 0xffffffffu

/* cuda_kind in nn/cuda/cuda.h */
enum { KIND_FLOAT, KIND_WORK, KIND_E4M3, KIND_INT8, KIND_INT32 };
/* dtype in core/dtype.h */
enum { TYPE_F32 = 0, TYPE_F16 = 1, TYPE_BF16 = 2, TYPE_F8_E4M3 = 13, TYPE_F8_E5M2 = 14 };
/* nn_activation in nn/nn.h */
enum { ACTIVATION_LINEAR, ACTIVATION_SILU, ACTIVATION_GELU_TANH };

/* The largest numbers that codes of 8 bits reach. */
#define E4M3_MAX 448.0f
#define INT8_MAX 127.0f

/* ---- Conversions, as core/dtype.h defines them ----------------------------------------------- */

DEVICE float bf16_to_float(unsigned short h)
{
    return __uint_as_float((unsigned)h << 16);
}

DEVICE unsigned short bf16_from_float(float f)
{
#if __CUDA_ARCH__ >= 800
    unsigned short h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
#else
    unsigned bits = __float_as_uint(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (unsigned short)((bits >> 16) | 0x40u);
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

/* Two numbers in a word, low in its lower half. */
DEVICE unsigned bf16_pair(float low, float high)
{
#if __CUDA_ARCH__ >= 800
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return bf16_from_float(low) | (unsigned)bf16_from_float(high) << 16;
#endif
}

DEVICE float f16_to_float(unsigned short h)
{
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

DEVICE unsigned short f16_from_float(float f)
{
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

DEVICE unsigned f16_pair(float low, float high)
{
#if __CUDA_ARCH__ >= 800
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return f16_from_float(low) | (unsigned)f16_from_float(high) << 16;
#endif
}

/* Exact: the exponent is moved by a multiplication, which also handles subnormals. */
DEVICE float e4m3_to_float(unsigned char h)
{
    const float magnitude = __uint_as_float((h & 0x7fu) << 20) * __uint_as_float(0x7b800000u);
    unsigned bits = __float_as_uint(magnitude);
    bits |= (h & 0x7fu) == 0x7fu ? 0x7fc00000u : 0u;
    return __uint_as_float(bits | (h & 0x80u) << 24);
}

DEVICE float e5m2_to_float(unsigned char h)
{
    return f16_to_float((unsigned short)(h << 8));
}

/* To nearest, ties to even; what is beyond 448 becomes 448, NaN stays NaN. */
DEVICE unsigned e4m3_by_integers(float f)
{
    unsigned bits = __float_as_uint(f);
    const unsigned sign = bits >> 24 & 0x80u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return sign | 0x7fu;
    if (bits >= 0x43e00000u) /* 448 */
        return sign | 0x7eu;
    if (bits < 0x3c800000u) /* 2^-6: counts units of 2^-9, the last bits of 2^14 + f */
        return sign | (__float_as_uint(__uint_as_float(bits) + 16384.0f) - 0x46800000u);
    return sign | ((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - 960u;
}

/* Two codes, low in the lower byte. */
DEVICE unsigned e4m3_pair(float low, float high)
{
#if __CUDA_ARCH__ >= 890
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return e4m3_by_integers(low) | e4m3_by_integers(high) << 8;
#endif
}

/* Of a number between -127 and 127. */
DEVICE unsigned int8_code(float f)
{
    return (unsigned)__float2int_rn(f) & 0xffu;
}

#if defined(T_F32)
DEVICE float from_work(T x)
{
    return x;
}
DEVICE T to_work(float x)
{
    return x;
}
#else
#if defined(T_F16)
#define WORK_TO_FLOAT f16_to_float
#define WORK_FROM_FLOAT f16_from_float
#define WORK_PAIR f16_pair
#else
#define WORK_TO_FLOAT bf16_to_float
#define WORK_FROM_FLOAT bf16_from_float
#define WORK_PAIR bf16_pair
#endif
DEVICE float from_work(T x)
{
    return WORK_TO_FLOAT(x);
}
DEVICE T to_work(float x)
{
    return WORK_FROM_FLOAT(x);
}
#endif

/* ---- Memory -------------------------------------------------------------------------------------
 * Kinds are constants wherever it matters: everything here is inlined, and a caller tells cases
 * apart once, so that loads follow each other without a decision between them. */

DEVICE int kind_size(int kind)
{
    if (kind == KIND_FLOAT || kind == KIND_INT32)
        return 4;
    return kind == KIND_WORK ? (int)sizeof(T) : 1;
}

/* The address of number i. */
DEVICE const void *number_at(int kind, const void *p, long long i)
{
    return (const char *)p + i * kind_size(kind);
}

DEVICE void *number_at(int kind, void *p, long long i)
{
    return (char *)p + i * kind_size(kind);
}

DEVICE bool is_aligned(const void *p, int bytes)
{
    return ((unsigned long long)p & (unsigned long long)(bytes - 1)) == 0;
}

DEVICE float load1(int kind, const void *p, long long i)
{
    if (kind == KIND_FLOAT)
        return ((const float *)p)[i];
    if (kind == KIND_WORK)
        return from_work(((const T *)p)[i]);
    if (kind == KIND_INT32)
        return (float)((const int *)p)[i];
    if (kind == KIND_INT8)
        return (float)((const signed char *)p)[i];
    return e4m3_to_float(((const unsigned char *)p)[i]);
}

/* KIND_FLOAT or KIND_WORK */
DEVICE void store1(int kind, void *p, long long i, float v)
{
    if (kind == KIND_FLOAT)
        ((float *)p)[i] = v;
    else
        ((T *)p)[i] = to_work(v);
}

DEVICE void set4(float *v, float a, float b, float c, float d)
{
    v[0] = a;
    v[1] = b;
    v[2] = c;
    v[3] = d;
}

DEVICE void load_floats4(float *v, const void *p)
{
    const float4 x = *(const float4 *)p;
    set4(v, x.x, x.y, x.z, x.w);
}

DEVICE void store_floats4(void *p, const float *v)
{
    *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]);
}

#if !defined(T_F32)
DEVICE void unpack2(float *v, unsigned pair)
{
    v[0] = WORK_TO_FLOAT((unsigned short)pair);
    v[1] = WORK_TO_FLOAT((unsigned short)(pair >> 16));
}
#endif

/* Four numbers of T from an address that is a multiple of their size. */
DEVICE void load_work4(float *v, const void *p)
{
#if defined(T_F32)
    load_floats4(v, p);
#else
    const uint2 x = *(const uint2 *)p;
    unpack2(v, x.x);
    unpack2(v + 2, x.y);
#endif
}

DEVICE void store_work4(void *p, const float *v)
{
#if defined(T_F32)
    store_floats4(p, v);
#else
    *(uint2 *)p = make_uint2(WORK_PAIR(v[0], v[1]), WORK_PAIR(v[2], v[3]));
#endif
}

/* Eight numbers from a 16-byte boundary. */
DEVICE void load_work8(float *v, const void *p)
{
#if defined(T_F32)
    load_floats4(v, p);
    load_floats4(v + 4, (const float *)p + 4);
#else
    const uint4 x = *(const uint4 *)p;
    unpack2(v, x.x);
    unpack2(v + 2, x.y);
    unpack2(v + 4, x.z);
    unpack2(v + 6, x.w);
#endif
}

DEVICE void store_work8(void *p, const float *v)
{
#if defined(T_F32)
    store_floats4(p, v);
    store_floats4((float *)p + 4, v + 4);
#else
    *(uint4 *)p = make_uint4(WORK_PAIR(v[0], v[1]), WORK_PAIR(v[2], v[3]), WORK_PAIR(v[4], v[5]),
                             WORK_PAIR(v[6], v[7]));
#endif
}

/* Eight numbers of T as they are in memory: fewer registers while they are on their way. */
#if defined(T_F32)
typedef struct eight {
    float4 low, high;
} eight;

DEVICE eight load_eight(const T *p)
{
    const eight e = {*(const float4 *)p, *(const float4 *)(p + 4)};
    return e;
}

DEVICE void unpack8(float *n, const eight &e)
{
    set4(n, e.low.x, e.low.y, e.low.z, e.low.w);
    set4(n + 4, e.high.x, e.high.y, e.high.z, e.high.w);
}
#else
typedef uint4 eight;

DEVICE eight load_eight(const T *p)
{
    return *(const uint4 *)p;
}

DEVICE void unpack8(float *n, const eight &e)
{
    unpack2(n, e.x);
    unpack2(n + 2, e.y);
    unpack2(n + 4, e.z);
    unpack2(n + 6, e.w);
}
#endif

#if !defined(T_F32)
DEVICE eight pack8(const float *v)
{
    return make_uint4(WORK_PAIR(v[0], v[1]), WORK_PAIR(v[2], v[3]), WORK_PAIR(v[4], v[5]),
                      WORK_PAIR(v[6], v[7]));
}
#endif

DEVICE void clear8(float *n)
{
    set4(n, 0.0f, 0.0f, 0.0f, 0.0f);
    set4(n + 4, 0.0f, 0.0f, 0.0f, 0.0f);
}

/* Numbers i .. i+3, i a multiple of 4, p aligned; KIND_FLOAT, KIND_WORK or KIND_INT32. */
DEVICE void load4(float *v, int kind, const void *p, long long i)
{
    const void *at = number_at(kind, p, i);
    if (kind == KIND_FLOAT) {
        load_floats4(v, at);
    } else if (kind == KIND_WORK) {
        load_work4(v, at);
    } else {
        const int4 x = *(const int4 *)at;
        set4(v, (float)x.x, (float)x.y, (float)x.z, (float)x.w);
    }
}

/* KIND_FLOAT or KIND_WORK */
DEVICE void store4(int kind, void *p, long long i, const float *v)
{
    if (kind == KIND_FLOAT)
        store_floats4(number_at(kind, p, i), v);
    else
        store_work4(number_at(kind, p, i), v);
}

/* Numbers i .. i+7, i a multiple of 8. */
DEVICE void load8(float *v, int kind, const void *p, long long i)
{
    if (kind == KIND_FLOAT) {
        load_floats4(v, number_at(kind, p, i));
        load_floats4(v + 4, number_at(kind, p, i + 4));
    } else {
        load_work8(v, number_at(kind, p, i));
    }
}

DEVICE void store8(int kind, void *p, long long i, const float *v)
{
    if (kind == KIND_FLOAT) {
        store_floats4(number_at(kind, p, i), v);
        store_floats4(number_at(kind, p, i + 4), v + 4);
    } else {
        store_work8(number_at(kind, p, i), v);
    }
}

/* ---- Reductions: the same bits in every thread. Blocks of whole warps ------------------------ */

DEVICE float warp_sum(float v)
{
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        v += __shfl_xor_sync(FULL_WARP, v, distance);
    return v;
}

DEVICE float warp_max(float v)
{
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, distance));
    return v;
}

DEVICE unsigned warp_max(unsigned v)
{
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(FULL_WARP, v);
#else
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        v = max(v, __shfl_xor_sync(FULL_WARP, v, distance));
    return v;
#endif
}

/* A number of each warp to all warps: lane i gets that of warp i, or `none` behind the last. */
template <class N> DEVICE N exchange_warps(N v, N none)
{
    __shared__ N part[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (int)blockDim.x >> 5;
    __syncthreads(); /* the last exchange has been read */
    if (lane == 0)
        part[warp] = v;
    __syncthreads();
    return lane < warps ? part[lane] : none;
}

DEVICE float block_sum(float v)
{
    v = warp_sum(v);
    return blockDim.x == 32 ? v : warp_sum(exchange_warps(v, 0.0f));
}

DEVICE float block_max(float v)
{
    v = warp_max(v);
    return blockDim.x == 32 ? v : warp_max(exchange_warps(v, __uint_as_float(0xff800000u)));
}

DEVICE unsigned block_max(unsigned v)
{
    v = warp_max(v);
    return blockDim.x == 32 ? v : warp_max(exchange_warps(v, 0u));
}

/* The absolute value as a whole number, in the same order; NaN is above all. */
DEVICE unsigned magnitude_bits(float v)
{
    return __float_as_uint(v) & 0x7fffffffu;
}

/* ---- Functions ----------------------------------------------------------------------------------
 * Where results have 16 bits at most, in the few bits less of the special function unit. */

DEVICE float exponential(float x)
{
#if defined(T_F32)
    return expf(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
    return y;
#endif
}

/* y is at least 1. */
DEVICE float quotient(float x, float y)
{
#if defined(T_F32)
    return x / y;
#else
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(y));
    return x * inverse;
#endif
}

DEVICE float silu(float x)
{
    return quotient(x, 1.0f + exponential(-x));
}

/* 0.5 x (1 + tanh u) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3) */
DEVICE float gelu_tanh(float x)
{
    const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return quotient(x, 1.0f + exponential(-2.0f * u));
}

/* ---- Codes of 8 bits with a factor for each row ---------------------------------------------- */

typedef struct row_codes {
    float factor;  /* number = factor * code */
    float inverse; /* code = number * inverse */
} row_codes;

/* most: the largest magnitude_bits of the row. */
DEVICE row_codes row_codes_for(int kind, unsigned most)
{
    const float limit = kind == KIND_E4M3 ? E4M3_MAX : INT8_MAX, amax = __uint_as_float(most);
    row_codes r = {amax / limit, limit / amax};
    if (amax < 1e-30f) { /* nothing but zeros, or so small that the inverse has no bits */
        r.factor = 0.0f;
        r.inverse = 0.0f;
    }
    return r;
}

DEVICE unsigned codes4(int kind, const float *v, float inverse)
{
    if (kind == KIND_E4M3)
        return e4m3_pair(v[0] * inverse, v[1] * inverse) | e4m3_pair(v[2] * inverse, v[3] * inverse)
                                                               << 16;
    return int8_code(v[0] * inverse) | int8_code(v[1] * inverse) << 8 |
           int8_code(v[2] * inverse) << 16 | int8_code(v[3] * inverse) << 24;
}

/* ---- Rows in registers --------------------------------------------------------------------------
 * A thread holds four times 4 numbers of a row, so a block of n / 16 threads (a multiple of 32, at
 * most 1024) holds all of it. n is a multiple of 4 and rows are aligned: in_groups. Numbers behind
 * the end of the row are 0. `first` is the first number of the part of the row that is held. */

#define HELD 16

/* Whether rows of n numbers that lie `stride` apart from p on can be read and written so. */
DEVICE bool in_groups(const void *p, long long stride, int n)
{
    return ((stride | n) & 3) == 0 && is_aligned(p, 16);
}

DEVICE int held_span()
{
    return HELD * (int)blockDim.x;
}

/* The place in the row of what is held at 4 * i. */
DEVICE int held_at(int first, int i)
{
    return first + 4 * ((int)threadIdx.x + i * (int)blockDim.x);
}

DEVICE void held_load(float *v, int kind, const void *row, int first, int n)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = held_at(first, i);
        set4(v + 4 * i, 0.0f, 0.0f, 0.0f, 0.0f);
        if (at < n)
            load4(v + 4 * i, kind, row, at);
    }
}

/* As KIND_FLOAT or KIND_WORK. */
DEVICE void held_store(int kind, void *row, int first, int n, const float *v)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = held_at(first, i);
        if (at < n)
            store4(kind, row, at, v + 4 * i);
    }
}

DEVICE void held_store_codes(int kind, void *row, int first, int n, const float *v, float inverse)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = held_at(first, i);
        if (at < n)
            *(unsigned *)((unsigned char *)row + at) = codes4(kind, v + 4 * i, inverse);
    }
}

DEVICE void held_scale(float *v, float factor)
{
#pragma unroll
    for (int i = 0; i < HELD; i++)
        v[i] *= factor;
}

/* v *= w */
DEVICE void held_multiply(float *v, const float *w, int first, int n)
{
    float by[HELD];
    held_load(by, KIND_FLOAT, w, first, n);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        v[i] *= by[i];
}

/* v += y */
DEVICE void held_add(float *v, int kind, const void *y, int first, int n)
{
    float by[HELD];
    held_load(by, kind, y, first, n);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        v[i] += by[i];
}

DEVICE float held_sum(const float *v)
{
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < HELD; i++)
        sum[i % 4] += v[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

DEVICE float held_squares(const float *v)
{
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < HELD; i++)
        sum[i % 4] = fmaf(v[i], v[i], sum[i % 4]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

DEVICE unsigned held_most(const float *v)
{
    unsigned most = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        most = max(most, magnitude_bits(v[i]));
    return most;
}

/* A whole row, of any kind but KIND_INT32. factor: where the row's factor goes, for codes. */
DEVICE void held_store_row(int kind, void *row, float *factor, int n, const float *v)
{
    if (kind == KIND_FLOAT || kind == KIND_WORK) {
        held_store(kind, row, 0, n, v);
        return;
    }
    const row_codes codes = row_codes_for(kind, block_max(held_most(v)));
    held_store_codes(kind, row, 0, n, v, codes.inverse);
    if (threadIdx.x == 0)
        *factor = codes.factor;
}

/* ---- Rows in fewer registers ----------------------------------------------------------------------
 * As numbers of T: a thread holds four times 8 of them, so a block of n / 32 threads holds a row. n is
 * a multiple of 8. Blocks are half as large as with HELD, and four of them hide each other's waiting
 * where two did. */

#define PACKED 4

#if !defined(T_F32)

/* Whether rows of n numbers can be read and written so. */
DEVICE bool in_eights(const void *p, long long stride, int n)
{
    return ((stride | n) & 7) == 0 && is_aligned(p, 16);
}

DEVICE int packed_at(int i)
{
    return 8 * ((int)threadIdx.x + i * (int)blockDim.x);
}

/* The largest magnitude as bits of T; NaN is above all. */
DEVICE unsigned packed_most(const eight *e)
{
    unsigned low = 0, high = 0;
#pragma unroll
    for (int i = 0; i < PACKED; i++) {
        const unsigned words[4] = {e[i].x, e[i].y, e[i].z, e[i].w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            low = max(low, words[k] & 0x7fffu);
            high = max(high, words[k] & 0x7fff0000u);
        }
    }
    return max(low, high >> 16);
}

/* A whole row as codes. Numbers behind its end are 0. */
DEVICE void packed_store_codes(int kind, void *row, float *factor, int n, const eight *e)
{
    const unsigned most = block_max(packed_most(e));
    const row_codes r = row_codes_for(kind, magnitude_bits(WORK_TO_FLOAT((unsigned short)most)));
#pragma unroll
    for (int i = 0; i < PACKED; i++) {
        float v[8];
        if (packed_at(i) >= n)
            continue;
        unpack8(v, e[i]);
        *(uint2 *)((unsigned char *)row + packed_at(i)) =
            make_uint2(codes4(kind, v, r.inverse), codes4(kind, v + 4, r.inverse));
    }
    if (threadIdx.x == 0)
        *factor = r.factor;
}

#endif

/* ---- Rows of any width at any alignment: value(i) is number i -------------------------------- */

template <class F> DEVICE void any_store_row(int kind, void *row, float *factor, int n, F value)
{
    if (kind == KIND_FLOAT || kind == KIND_WORK) {
#pragma unroll 1
        for (int i = threadIdx.x; i < n; i += blockDim.x)
            store1(kind, row, i, value(i));
        return;
    }
    unsigned most = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        most = max(most, magnitude_bits(value(i)));
    const row_codes codes = row_codes_for(kind, block_max(most));
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const float v = value(i) * codes.inverse;
        ((unsigned char *)row)[i] =
            (unsigned char)(kind == KIND_E4M3 ? e4m3_pair(v, 0.0f) : int8_code(v));
    }
    if (threadIdx.x == 0)
        *factor = codes.factor;
}

template <class F> DEVICE float any_sum(int n, F value)
{
    float sum = 0.0f;
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        sum += value(i);
    return block_sum(sum);
}

#endif
