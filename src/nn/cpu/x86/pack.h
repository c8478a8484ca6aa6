/* Transposing words: the panels of every product here are word by word, the numbers of all sources
 * side by side. 128-bit vectors are fast enough for it (memory is slower) and fit any number of
 * sources that is even. */
#ifndef NN_CPU_X86_PACK_H
#define NN_CPU_X86_PACK_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

static inline __m128 pack_load(const void *source, int64_t word)
{
    return _mm_loadu_ps((const float *)((const char *)source + 4 * word));
}

/* Four words of four sources; panel rows are count words apart. */
static inline void pack_4x4(float *to, int count, const void *const *sources, int64_t word)
{
    __m128 a = pack_load(sources[0], word), b = pack_load(sources[1], word);
    __m128 c = pack_load(sources[2], word), d = pack_load(sources[3], word);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a);
    _mm_storeu_ps(to + count, b);
    _mm_storeu_ps(to + 2 * count, c);
    _mm_storeu_ps(to + 3 * count, d);
}

/* Four words of two sources. */
static inline void pack_2x4(float *to, int count, const void *const *sources, int64_t word)
{
    __m128 a = pack_load(sources[0], word), b = pack_load(sources[1], word);
    __m128 low = _mm_unpacklo_ps(a, b), high = _mm_unpackhi_ps(a, b);
    _mm_storel_pi((__m64 *)(void *)to, low);
    _mm_storeh_pi((__m64 *)(void *)(to + count), low);
    _mm_storel_pi((__m64 *)(void *)(to + 2 * count), high);
    _mm_storeh_pi((__m64 *)(void *)(to + 3 * count), high);
}

/* span words (a multiple of 4) of count sources, from word on, to a panel's rows at to. */
static inline void pack_span(float *to, const void *const *sources, int count, int64_t word,
                             int span)
{
    int i = 0;
    for (; i + 4 <= count; i += 4)
        for (int w = 0; w < span; w += 4)
            pack_4x4(to + w * count + i, count, sources + i, word + w);
    if (i < count)
        for (int w = 0; w < span; w += 4)
            pack_2x4(to + w * count + i, count, sources + i, word + w);
}

/* Words word..words-1 of panel [words][count] from count sources of words each. count is even; a
 * constant, so that all inner loops unroll. A cache line of each source is used up at once: sources
 * a power of two apart share few places in the cache. */
static inline void pack_words_from(void *panel, const void *const *sources, int count, int64_t word,
                                   int64_t words)
{
    float *to = panel;
    for (; word + 16 <= words; word += 16)
        pack_span(to + word * count, sources, count, word, 16);
    for (; word + 4 <= words; word += 4)
        pack_span(to + word * count, sources, count, word, 4);
    for (; word < words; word++)
        for (int i = 0; i < count; i++)
            memcpy(to + word * count + i, (const char *)sources[i] + 4 * word, 4);
}

static inline void pack_words(void *panel, const void *const *sources, int count, int64_t words)
{
    pack_words_from(panel, sources, count, 0, words);
}

#endif
