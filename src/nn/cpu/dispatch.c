/* Which kernels this program has, and which of them this processor can run. */
#include "nn/cpu/kernels.h"

#include <string.h>

extern const cpu_kernels cpu_kernels_reference, cpu_kernels_baseline;
#if defined(__x86_64__)
extern const cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512;
#endif

const cpu_kernels *const cpu_kernels_all[] = {
    &cpu_kernels_reference,
    &cpu_kernels_baseline,
#if defined(__x86_64__)
    &cpu_kernels_avx2,
    &cpu_kernels_avx512,
#endif
    NULL,
};

bool cpu_kernels_usable(const cpu_kernels *kernels)
{
#if defined(__x86_64__)
    /* __builtin_cpu_supports also asks whether the system saves the registers. */
    if (kernels == &cpu_kernels_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("bmi2");
    if (kernels == &cpu_kernels_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512cd");
#endif
    (void)kernels;
    return true;
}

ct_status cpu_kernels_choose(const cpu_kernels **out, const char *name, ct_error *error)
{
    const cpu_kernels *best = NULL;
    for (int i = 0; cpu_kernels_all[i]; i++) {
        const cpu_kernels *k = cpu_kernels_all[i];
        bool wanted = name && !strcmp(name, k->name);
        if (wanted && !cpu_kernels_usable(k))
            return error_set(error, CT_EUNSUPPORTED, "this processor cannot run the %s kernels",
                             name);
        if (wanted || (!name && cpu_kernels_usable(k)))
            best = k;
    }
    *out = best;
    if (!best)
        return error_set(error, CT_EINVAL,
                         "there are no kernels named \"%s\"; known are baseline%s and reference",
                         name, cpu_kernels_all[2] ? ", avx2, avx512" : "");
    return CT_OK;
}
