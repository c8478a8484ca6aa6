#define _GNU_SOURCE
#include "nn/cpu/features.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The registers of AMX are switched on for each process by a request (Linux 5.16). */
static int amx_permitted(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif

#if defined(__x86_64__)
uint32_t cpu_features(void)
{
    uint32_t has = 0;
    /* __builtin_cpu_supports also asks whether the system saves the registers. */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi2"))
        has |= CPU_HAS_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd"))
        has |= CPU_HAS_AVX512;
#if defined(__linux__)
    unsigned a = 0, b = 0, c = 0, d = 0, sub = 0;
    if (!__get_cpuid_count(7, 0, &sub, &b, &c, &d))
        return has;
    if ((has & CPU_HAS_AVX512) && (c & (1u << 11)))
        has |= CPU_HAS_AVX512VNNI;
    const unsigned amx = 1u << 22 | 1u << 24 | 1u << 25; /* BF16, TILE, INT8 */
    if ((has & CPU_HAS_AVX512) && (d & amx) == amx && amx_permitted())
        has |= CPU_HAS_AMX;
    if (sub >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
        if ((has & CPU_HAS_AVX2) && (a & (1u << 4)))
            has |= CPU_HAS_AVXVNNI;
        if ((has & CPU_HAS_AVX512) && (a & (1u << 5)))
            has |= CPU_HAS_AVX512BF16;
    }
#endif
    return has;
}
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

uint32_t cpu_features(void)
{
    uint32_t has = 0;
    unsigned long one = getauxval(AT_HWCAP), two = getauxval(AT_HWCAP2);
    if (one & HWCAP_ASIMDDP)
        has |= CPU_HAS_DOTPROD;
    if (two & HWCAP2_I8MM)
        has |= CPU_HAS_I8MM;
    if (two & HWCAP2_BF16)
        has |= CPU_HAS_BF16;
    return has;
}
#elif defined(__aarch64__) && defined(__APPLE__)
#include <stddef.h>
#include <sys/sysctl.h>

/* bit, or 0 where the system says 0 or does not know the name. */
static uint32_t feature(const char *name, uint32_t bit)
{
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname(name, &has, &size, NULL, 0) == 0 && has ? bit : 0;
}

uint32_t cpu_features(void)
{
    return feature("hw.optional.arm.FEAT_DotProd", CPU_HAS_DOTPROD) |
           feature("hw.optional.arm.FEAT_I8MM", CPU_HAS_I8MM) |
           feature("hw.optional.arm.FEAT_BF16", CPU_HAS_BF16);
}
#else
uint32_t cpu_features(void)
{
    return 0;
}
#endif
