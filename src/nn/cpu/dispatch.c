/* Which tiers of kernels this program has, and which of them this processor can run. */
#include "nn/cpu/kernels.h"

#include <string.h>

extern const cpu_kernels cpu_kernels_reference, cpu_kernels_baseline;
#if defined(__x86_64__)
extern const cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512;
#endif

/* A tier: kernels for rows, and what products may need. */
static const struct tier {
    const char *name;
    uint32_t features;
    const cpu_kernels *rows;
} tiers[] = {
    {"reference", 0, &cpu_kernels_reference},
    {"baseline", 0, &cpu_kernels_baseline},
#if defined(__x86_64__)
    {"avx2", CPU_HAS_AVX2, &cpu_kernels_avx2},
    {"avxvnni", CPU_HAS_AVX2 | CPU_HAS_AVXVNNI, &cpu_kernels_avx2},
#define AVX512 (CPU_HAS_AVX2 | CPU_HAS_AVX512)
#define AVX512_ALL (AVX512 | CPU_HAS_AVX512VNNI | CPU_HAS_AVX512BF16)
    {"avx512", AVX512, &cpu_kernels_avx512},
    {"avx512vnni", AVX512 | CPU_HAS_AVX512VNNI, &cpu_kernels_avx512},
    {"avx512bf16", AVX512_ALL, &cpu_kernels_avx512},
    {"amx", AVX512_ALL | CPU_HAS_AMX, &cpu_kernels_avx512},
#elif defined(__aarch64__)
    {"dotprod", CPU_HAS_DOTPROD, &cpu_kernels_baseline},
    {"i8mm", CPU_HAS_DOTPROD | CPU_HAS_I8MM, &cpu_kernels_baseline},
    {"bf16", CPU_HAS_DOTPROD | CPU_HAS_I8MM | CPU_HAS_BF16, &cpu_kernels_baseline},
#endif
};

enum { TIERS = sizeof tiers / sizeof *tiers };

bool cpu_kernels_tier(cpu_kernels *out, int index)
{
    if (index < 0 || index >= TIERS)
        return false;
    *out = *tiers[index].rows;
    out->name = tiers[index].name;
    out->features = tiers[index].features;
    for (int i = 0; i < CPU_COMPUTES; i++)
        out->gemm[i] = index == 0 ? cpu_gemm_reference((cpu_compute)i)
                                  : cpu_gemm_choose((cpu_compute)i, out->features);
    return true;
}

bool cpu_kernels_usable(const cpu_kernels *kernels)
{
    return !(kernels->features & ~cpu_features());
}

/* Taken only when asked for: on Intel's processors one vdpbf16ps, which is two products in each
 * lane, takes as long as four vfmadd231ps (Sapphire Rapids: 154 against 298 GFLOP/s on two cores),
 * so bfloat16 is faster as float32. */
static bool slow_here(const cpu_kernels *tier)
{
#if defined(__x86_64__)
    return !strcmp(tier->name, "avx512bf16") && __builtin_cpu_is("intel");
#else
    (void)tier;
    return false;
#endif
}

ct_status cpu_kernels_choose(cpu_kernels *out, const char *name, ct_error *error)
{
    cpu_kernels tier;
    bool found = false;
    for (int i = 0; cpu_kernels_tier(&tier, i); i++) {
        bool wanted = name && !strcmp(name, tier.name);
        if (wanted && !cpu_kernels_usable(&tier))
            return error_set(error, CT_EUNSUPPORTED, "this processor cannot run the %s kernels",
                             name);
        if (wanted || (!name && !slow_here(&tier) && cpu_kernels_usable(&tier))) {
            *out = tier;
            found = true;
        }
    }
    if (found)
        return CT_OK;
    char known[256] = "";
    for (int i = 1; i < TIERS; i++) {
        strncat(known, tiers[i].name, sizeof known - strlen(known) - 1);
        strncat(known, ", ", sizeof known - strlen(known) - 1);
    }
    return error_set(error, CT_EINVAL,
                     "there are no kernels named \"%s\"; known are %sand reference", name, known);
}
