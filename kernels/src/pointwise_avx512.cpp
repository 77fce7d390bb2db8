#include "exponential_avx512.h"
#include "operations.h"

namespace rwkv::avx512 {
namespace {

__m512 negative(__m512 x) { return _mm512_sub_ps(_mm512_setzero_ps(), x); }

__m512 sigmoid_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return keep_nan(x, _mm512_div_ps(one, _mm512_add_ps(one, exponential(negative(x)))));
}

// A template, so that each map is inlined into its loop.
template <class Map>
void map_elements(float* x, const float* bias, size_t n, Map map) {
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512 value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + i),
                                           _mm512_maskz_loadu_ps(mask, bias + i));
        _mm512_mask_storeu_ps(x + i, mask, map(value));
    }
}

}  // namespace

void layer_norm(const float* x, const float* weight, const float* bias, size_t n, float eps,
                float* y) {
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, x + i));
    }
    const float length = static_cast<float>(n);
    const __m512 mean = _mm512_set1_ps(sum_lanes(sum) / length);
    __m512 squares = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512 d = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, x + i), mean);
        squares = _mm512_fmadd_ps(d, d, squares);
    }
    const __m128 variance = _mm_set_ss(sum_lanes(squares) / length + eps);
    const __m512 scale = _mm512_set1_ps(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(variance)));
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512 d = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), mean);
        const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(d, scale),
                                            _mm512_maskz_loadu_ps(mask, weight + i));
        const __m512 result = _mm512_add_ps(scaled, _mm512_maskz_loadu_ps(mask, bias + i));
        _mm512_mask_storeu_ps(y + i, mask, result);
    }
}

void token_shift(const float* x, const float* previous, const float* mix, size_t n, float* y) {
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512 now = _mm512_maskz_loadu_ps(mask, x + i);
        const __m512 step = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, previous + i), now);
        const __m512 mixed = _mm512_fmadd_ps(step, _mm512_maskz_loadu_ps(mask, mix + i), now);
        _mm512_mask_storeu_ps(y + i, mask, mixed);
    }
}

void sigmoid(float* x, const float* bias, size_t n) {
    map_elements(x, bias, n, [](__m512 value) { return sigmoid_of(value); });
}

void decay6(float* x, const float* bias, size_t n) {
    map_elements(x, bias, n, [](__m512 value) {
        return keep_nan(value, exponential(negative(exponential(value))));
    });
}

void decay7(float* x, const float* bias, size_t n) {
    map_elements(x, bias, n, [](__m512 value) {
        const __m512 s = sigmoid_of(value);
        return keep_nan(s, exponential(_mm512_mul_ps(s, _mm512_set1_ps(-0.606530660f))));
    });
}

}  // namespace rwkv::avx512
