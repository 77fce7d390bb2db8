#include "exponential_avx512.h"
#include "operations.h"

namespace rwkv::avx512 {
namespace {

__m512 exponential_of(__m512 x) { return keep_nan(x, exponential(x)); }

}  // namespace

void wkv4(const Wkv4Channels& channels, float* numerator, float* denominator, float* exponent,
          float* y) {
    const size_t n = channels.size;
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512 k = _mm512_maskz_loadu_ps(mask, channels.k + i);
        const __m512 v = _mm512_maskz_loadu_ps(mask, channels.v + i);
        const __m512 top = _mm512_maskz_loadu_ps(mask, numerator + i);
        const __m512 bottom = _mm512_maskz_loadu_ps(mask, denominator + i);
        const __m512 before = _mm512_maskz_loadu_ps(mask, exponent + i);
        const __m512 bonus = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, channels.first + i), k);
        // Of a maximum with a NaN the second is taken, so a NaN of k stays; one of the state is
        // found again in `past`.
        __m512 greatest = _mm512_max_ps(before, bonus);
        __m512 past = exponential_of(_mm512_sub_ps(before, greatest));
        __m512 now = exponential_of(_mm512_sub_ps(bonus, greatest));
        const __m512 seen = _mm512_fmadd_ps(past, top, _mm512_mul_ps(now, v));
        _mm512_mask_storeu_ps(y + i, mask, _mm512_div_ps(seen, _mm512_fmadd_ps(past, bottom, now)));
        const __m512 aged = _mm512_add_ps(before, _mm512_maskz_loadu_ps(mask, channels.decay + i));
        greatest = _mm512_max_ps(aged, k);
        past = exponential_of(_mm512_sub_ps(aged, greatest));
        now = exponential_of(_mm512_sub_ps(k, greatest));
        _mm512_mask_storeu_ps(numerator + i, mask, _mm512_fmadd_ps(past, top, _mm512_mul_ps(now, v)));
        _mm512_mask_storeu_ps(denominator + i, mask, _mm512_fmadd_ps(past, bottom, now));
        _mm512_mask_storeu_ps(exponent + i, mask, greatest);
    }
}

}  // namespace rwkv::avx512
