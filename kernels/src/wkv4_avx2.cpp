#include "exponential_avx2.h"
#include "operations.h"

namespace rwkv::avx2 {
namespace {

__m256 exponential_of(__m256 x) { return keep_nan(x, exponential(x)); }

}  // namespace

void wkv4(const Wkv4Channels& channels, float* numerator, float* denominator, float* exponent,
          float* y) {
    const size_t n = channels.size;
    for (size_t i = 0; i < n; i += kLanes) {
        const __m256i mask = mask_of(n - i);
        const __m256 k = _mm256_maskload_ps(channels.k + i, mask);
        const __m256 v = _mm256_maskload_ps(channels.v + i, mask);
        const __m256 top = _mm256_maskload_ps(numerator + i, mask);
        const __m256 bottom = _mm256_maskload_ps(denominator + i, mask);
        const __m256 before = _mm256_maskload_ps(exponent + i, mask);
        const __m256 bonus = _mm256_add_ps(_mm256_maskload_ps(channels.first + i, mask), k);
        // Of a maximum with a NaN the second is taken, so a NaN of k stays; one of the state is
        // found again in `past`.
        __m256 greatest = _mm256_max_ps(before, bonus);
        __m256 past = exponential_of(_mm256_sub_ps(before, greatest));
        __m256 now = exponential_of(_mm256_sub_ps(bonus, greatest));
        const __m256 seen = _mm256_fmadd_ps(past, top, _mm256_mul_ps(now, v));
        _mm256_maskstore_ps(y + i, mask, _mm256_div_ps(seen, _mm256_fmadd_ps(past, bottom, now)));
        const __m256 aged = _mm256_add_ps(before, _mm256_maskload_ps(channels.decay + i, mask));
        greatest = _mm256_max_ps(aged, k);
        past = exponential_of(_mm256_sub_ps(aged, greatest));
        now = exponential_of(_mm256_sub_ps(k, greatest));
        _mm256_maskstore_ps(numerator + i, mask, _mm256_fmadd_ps(past, top, _mm256_mul_ps(now, v)));
        _mm256_maskstore_ps(denominator + i, mask, _mm256_fmadd_ps(past, bottom, now));
        _mm256_maskstore_ps(exponent + i, mask, greatest);
    }
}

}  // namespace rwkv::avx2
