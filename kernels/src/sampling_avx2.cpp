// What the sampler does with whole vocabularies.

#include "exponential_avx2.h"
#include "operations.h"

namespace rwkv::avx2 {
namespace {

// The weights of the lanes that are inside, -1 in the others, which no weight is.
__m256 weights_of(const float* weights, size_t count) {
    const __m256i mask = mask_of(count);
    return _mm256_blendv_ps(_mm256_set1_ps(-1.0f), _mm256_maskload_ps(weights, mask),
                            _mm256_castsi256_ps(mask));
}

double sum_doubles(__m256d v) {
    double lanes[4];
    _mm256_storeu_pd(lanes, v);
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

}  // namespace

float largest(const float* x, size_t n) {
    __m256 best = _mm256_set1_ps(x[0]);
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) best = _mm256_max_ps(best, _mm256_loadu_ps(x + i));
    float lanes[kLanes];
    _mm256_storeu_ps(lanes, best);
    for (size_t lane = 1; lane < kLanes; ++lane) {
        lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
    }
    for (; i < n; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    return lanes[0];
}

double weigh(const float* x, size_t n, float maximum, float scale, float* weights) {
    const __m256 top = _mm256_set1_ps(maximum);
    const __m256 factor = _mm256_set1_ps(scale);
    __m256d low = _mm256_setzero_pd();
    __m256d high = _mm256_setzero_pd();
    for (size_t i = 0; i < n; i += kLanes) {
        const __m256i mask = mask_of(n - i);
        const __m256 exponent =
            _mm256_mul_ps(_mm256_sub_ps(_mm256_maskload_ps(x + i, mask), top), factor);
        const __m256 possible =
            _mm256_and_ps(_mm256_castsi256_ps(mask),
                          _mm256_cmp_ps(exponent, _mm256_set1_ps(-87.0f), _CMP_GE_OQ));
        const __m256 w = _mm256_and_ps(possible, exponential(exponent));
        _mm256_maskstore_ps(weights + i, mask, w);
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(w)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(w, 1)));
    }
    return sum_doubles(_mm256_add_pd(low, high));
}

Mass mass_from(const float* weights, size_t n, float least) {
    const __m256 from = _mm256_set1_ps(least);
    __m256d low = _mm256_setzero_pd();
    __m256d high = _mm256_setzero_pd();
    size_t count = 0;
    for (size_t i = 0; i < n; i += kLanes) {
        const __m256 all = weights_of(weights + i, n - i);
        const __m256 counted = _mm256_cmp_ps(all, from, _CMP_GE_OQ);
        const int mask = _mm256_movemask_ps(counted);
        if (mask == 0) continue;
        const __m256 w = _mm256_and_ps(counted, all);
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(w)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(w, 1)));
        count += static_cast<size_t>(__builtin_popcount(static_cast<unsigned>(mask)));
    }
    return {sum_doubles(_mm256_add_pd(low, high)), count};
}

size_t keep_between(const float* weights, const uint32_t* ids, size_t n, float least, float end,
                    float* kept, uint32_t* kept_ids) {
    const __m256 from = _mm256_set1_ps(least);
    const __m256 to = _mm256_set1_ps(end);
    size_t count = 0;
    for (size_t i = 0; i < n; i += kLanes) {
        const __m256 w = weights_of(weights + i, n - i);
        const __m256 chosen = _mm256_and_ps(_mm256_cmp_ps(w, from, _CMP_GE_OQ),
                                            _mm256_cmp_ps(w, to, _CMP_LT_OQ));
        unsigned mask = static_cast<unsigned>(_mm256_movemask_ps(chosen));
        if (mask == 0) continue;
        float lanes[kLanes];
        _mm256_storeu_ps(lanes, w);
        for (; mask != 0; mask &= mask - 1) {
            const size_t lane = static_cast<size_t>(__builtin_ctz(mask));
            if (kept_ids) kept_ids[count] = ids ? ids[i + lane] : static_cast<uint32_t>(i + lane);
            kept[count++] = lanes[lane];
        }
    }
    return count;
}

}  // namespace rwkv::avx2
