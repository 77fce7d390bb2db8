// What the sampler does with whole vocabularies.

#include "lanes_avx512.h"
#include "exponential.h"
#include "operations.h"

namespace rwkv::avx512 {

float largest(const float* x, size_t n) {
    __m512 best = _mm512_set1_ps(x[0]);
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        best = _mm512_mask_max_ps(best, mask, best, _mm512_maskz_loadu_ps(mask, x + i));
    }
    return _mm512_reduce_max_ps(best);
}

double weigh(const float* x, size_t n, float maximum, float scale, float* weights) {
    const __m512 top = _mm512_set1_ps(maximum);
    const __m512 factor = _mm512_set1_ps(scale);
    __m512d low = _mm512_setzero_pd();
    __m512d high = _mm512_setzero_pd();
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512 exponent =
            _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), top), factor);
        const __mmask16 possible =
            _mm512_mask_cmp_ps_mask(mask, exponent, _mm512_set1_ps(-87.0f), _CMP_GE_OQ);
        const __m512 w = _mm512_maskz_mov_ps(possible, exponential(exponent));
        _mm512_mask_storeu_ps(weights + i, mask, w);
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(w)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(w, 1)));
    }
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

Mass mass_from(const float* weights, size_t n, float least) {
    const __m512 from = _mm512_set1_ps(least);
    __m512d low = _mm512_setzero_pd();
    __m512d high = _mm512_setzero_pd();
    size_t count = 0;
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512 all = _mm512_maskz_loadu_ps(mask, weights + i);
        const __mmask16 counted = _mm512_mask_cmp_ps_mask(mask, all, from, _CMP_GE_OQ);
        if (counted == 0) continue;
        const __m512 w = _mm512_maskz_mov_ps(counted, all);
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(w)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(w, 1)));
        count += static_cast<size_t>(__builtin_popcount(counted));
    }
    return {_mm512_reduce_add_pd(_mm512_add_pd(low, high)), count};
}

size_t keep_between(const float* weights, const uint32_t* ids, size_t n, float least, float end,
                    float* kept, uint32_t* kept_ids) {
    const __m512 from = _mm512_set1_ps(least);
    const __m512 to = _mm512_set1_ps(end);
    const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t count = 0;
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512 w = _mm512_maskz_loadu_ps(mask, weights + i);
        const __mmask16 above = _mm512_mask_cmp_ps_mask(mask, w, from, _CMP_GE_OQ);
        const __mmask16 chosen = _mm512_mask_cmp_ps_mask(above, w, to, _CMP_LT_OQ);
        if (chosen == 0) continue;
        if (kept_ids) {
            const __m512i which =
                ids ? _mm512_maskz_loadu_epi32(mask, ids + i)
                    : _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(i)), steps);
            _mm512_storeu_si512(kept_ids + count, _mm512_maskz_compress_epi32(chosen, which));
        }
        _mm512_storeu_ps(kept + count, _mm512_maskz_compress_ps(chosen, w));
        count += static_cast<size_t>(__builtin_popcount(chosen));
    }
    return count;
}

}  // namespace rwkv::avx512
