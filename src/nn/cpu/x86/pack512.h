/* Transposing words with vectors of 16 of them. */
#ifndef NN_CPU_X86_PACK512_H
#define NN_CPU_X86_PACK512_H

#include <immintrin.h>
#include <stdint.h>

/* Words of sources 0, 4, 8 and 12, four of each. */
static inline __m512 pack_load_4x4(const void *const *sources, int64_t word)
{
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps((const float *)sources[0] + word));
    v = _mm512_insertf32x4(v, _mm_loadu_ps((const float *)sources[4] + word), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps((const float *)sources[8] + word), 2);
    return _mm512_insertf32x4(v, _mm_loadu_ps((const float *)sources[12] + word), 3);
}

/* Words word..word+15 of 16 sources to 16 rows of the sources' numbers, stride floats apart. Of a
 * row the numbers are written whose bit is set in which. */
static inline void pack_16x16(float *to, int64_t stride, const void *const *sources, int64_t word,
                              __mmask16 which)
{
    for (int w = 0; w < 16; w += 4, to += 4 * stride) {
        const __m512 a = pack_load_4x4(sources, word + w);
        const __m512 b = pack_load_4x4(sources + 1, word + w);
        const __m512 c = pack_load_4x4(sources + 2, word + w);
        const __m512 d = pack_load_4x4(sources + 3, word + w);
        const __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
        const __m512d low2 = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
        const __m512d high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
        const __m512d high2 = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
        _mm512_mask_storeu_ps(to, which, _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2)));
        _mm512_mask_storeu_ps(to + stride, which, _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2)));
        _mm512_mask_storeu_ps(to + 2 * stride, which,
                              _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2)));
        _mm512_mask_storeu_ps(to + 3 * stride, which,
                              _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2)));
    }
}

#endif
