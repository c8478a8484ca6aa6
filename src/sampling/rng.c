/* The algorithms are those of PyTorch's aten/src/ATen/native/cpu/DistributionTemplates.h and
 * aten/src/ATen/core/MT19937RNGEngine.h, re-implemented from their description. */
#include "sampling/rng.h"

#include <math.h>

#define N 624
#define M 397
#define BLOCK 16
#define TWO_PI 6.283185307179586

/* ---- MT19937 (Matsumoto and Nishimura, 1998) ------------------------------------------------- */

void torch_seed(torch_generator *g, uint64_t seed)
{
    *g = (torch_generator){.used = N};
    g->state[0] = (uint32_t)seed; /* torch keeps the lower half only */
    for (uint32_t i = 1; i < N; i++)
        g->state[i] = 1812433253u * (g->state[i - 1] ^ (g->state[i - 1] >> 30)) + i;
}

static uint32_t twist(uint32_t high, uint32_t low)
{
    uint32_t mixed = (high & 0x80000000u) | (low & 0x7fffffffu);
    return (mixed >> 1) ^ (low & 1u ? 0x9908b0dfu : 0u);
}

/* number i = number (i + M) % N ^ twist(number i, number (i + 1) % N), in loops for vectors */
static void next_state(torch_generator *g)
{
    uint32_t *x = g->state;
    for (int i = 0; i < N - M; i++)
        x[i] = x[i + M] ^ twist(x[i], x[i + 1]);
    for (int i = N - M; i < N - 1; i++)
        x[i] = x[i + M - N] ^ twist(x[i], x[i + 1]);
    x[N - 1] = x[M - 1] ^ twist(x[N - 1], x[0]);
    g->used = 0;
}

static uint32_t temper(uint32_t y)
{
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

static uint32_t random32(torch_generator *g)
{
    if (g->used == N)
        next_state(g);
    return temper(g->state[g->used++]);
}

/* ---- Normal numbers -------------------------------------------------------------------------- */

/* 24 random bits each in [0, 1). */
static void uniforms24(torch_generator *g, float *out, int64_t n)
{
    while (n > 0) {
        if (g->used == N)
            next_state(g);
        const uint32_t *x = g->state + g->used;
        const int left = N - g->used, count = n < left ? (int)n : left;
        for (int i = 0; i < count; i++)
            out[i] = (float)(int32_t)(temper(x[i]) & 0xffffffu) * 0x1p-24f;
        g->used += count;
        out += count;
        n -= count;
    }
}

/* 53 random bits in [0, 1); the first draw is the upper half. */
static double uniform53(torch_generator *g)
{
    uint64_t high = random32(g);
    uint64_t bits = high << 32 | random32(g);
    return (double)(bits & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

/* Draws of fewer than 16 numbers go one by one in double, two for every pair of uniforms. */
static double small_normal(torch_generator *g)
{
    if (g->has_saved) {
        g->has_saved = false;
        return g->saved;
    }
    double angle = TWO_PI * uniform53(g);
    double radius = sqrt(-2 * log1p(-uniform53(g)));
    g->saved = radius * sin(angle);
    g->has_saved = true;
    return radius * cos(angle);
}

/* Larger draws go in blocks of 16: the first half of the uniforms gives radii, the second
 * angles. */
static void transform_block(float *x)
{
    for (int i = 0; i < BLOCK / 2; i++) {
        float radius = sqrtf(-2 * logf(1 - x[i]));
        float angle = (float)TWO_PI * x[i + BLOCK / 2];
        x[i] = radius * cosf(angle);
        x[i + BLOCK / 2] = radius * sinf(angle);
    }
}

/* What a task of the pool transforms. */
#define TASK_BLOCKS 256

typedef struct transform {
    float *x;
    int64_t blocks;
} transform;

static void transform_task(void *user, int64_t index, int worker)
{
    (void)worker;
    const transform *t = user;
    const int64_t first = index * TASK_BLOCKS;
    for (int64_t i = first; i < t->blocks && i < first + TASK_BLOCKS; i++)
        transform_block(t->x + i * BLOCK);
}

void torch_randn(torch_generator *g, float *out, int64_t n, pool *threads)
{
    if (n < BLOCK) {
        for (int64_t i = 0; i < n; i++)
            out[i] = (float)small_normal(g);
        return;
    }
    uniforms24(g, out, n);
    transform t = {out, n / BLOCK};
    const int64_t tasks = (t.blocks + TASK_BLOCKS - 1) / TASK_BLOCKS;
    if (threads)
        pool_run(threads, tasks, transform_task, &t);
    for (int64_t i = 0; !threads && i < tasks; i++)
        transform_task(&t, i, 0);
    if (n % BLOCK) {
        /* The last 16 are drawn anew, over some that were done already. */
        uniforms24(g, out + n - BLOCK, BLOCK);
        transform_block(out + n - BLOCK);
    }
}
