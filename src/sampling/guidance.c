#include "sampling/guidance.h"

#include <math.h>

void guidance_combine(float *positive, const float *negative, int64_t n, double g, bool normalize)
{
    double before = 0, after = 0;
    for (int64_t i = 0; i < n; i++) {
        float p = positive[i];
        positive[i] = p + (float)g * (p - negative[i]);
        before += (double)p * (double)p;
        after += (double)positive[i] * (double)positive[i];
    }
    if (!normalize || after <= before)
        return;
    float factor = (float)sqrt(before / after);
    for (int64_t i = 0; i < n; i++)
        positive[i] *= factor;
}
