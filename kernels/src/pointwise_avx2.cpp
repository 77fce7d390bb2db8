#include "exponential_avx2.h"
#include "operations.h"

namespace rwkv::avx2 {
namespace {

__m256 negative(__m256 x) { return _mm256_sub_ps(_mm256_setzero_ps(), x); }

__m256 sigmoid_of(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f);
    return keep_nan(x, _mm256_div_ps(one, _mm256_add_ps(one, exponential(negative(x)))));
}

// A template, so that each map is inlined into its loop.
template <class Map>
void map_elements(float* x, const float* bias, size_t n, Map map) {
    for (size_t i = 0; i < n; i += kLanes) {
        const __m256i mask = mask_of(n - i);
        const __m256 value =
            _mm256_add_ps(_mm256_maskload_ps(x + i, mask), _mm256_maskload_ps(bias + i, mask));
        _mm256_maskstore_ps(x + i, mask, map(value));
    }
}

}  // namespace

void layer_norm(const float* x, const float* weight, const float* bias, size_t n, float eps,
                float* y) {
    __m256 sum = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += kLanes) {
        sum = _mm256_add_ps(sum, _mm256_maskload_ps(x + i, mask_of(n - i)));
    }
    const float length = static_cast<float>(n);
    const __m256 mean = _mm256_set1_ps(sum_lanes(sum) / length);
    __m256 squares = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += kLanes) {
        const __m256i mask = mask_of(n - i);
        const __m256 d = _mm256_and_ps(_mm256_sub_ps(_mm256_maskload_ps(x + i, mask), mean),
                                       _mm256_castsi256_ps(mask));
        squares = _mm256_fmadd_ps(d, d, squares);
    }
    const __m128 variance = _mm_set_ss(sum_lanes(squares) / length + eps);
    const __m256 scale = _mm256_set1_ps(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(variance)));
    for (size_t i = 0; i < n; i += kLanes) {
        const __m256i mask = mask_of(n - i);
        const __m256 d = _mm256_sub_ps(_mm256_maskload_ps(x + i, mask), mean);
        const __m256 scaled =
            _mm256_mul_ps(_mm256_mul_ps(d, scale), _mm256_maskload_ps(weight + i, mask));
        _mm256_maskstore_ps(y + i, mask, _mm256_add_ps(scaled, _mm256_maskload_ps(bias + i, mask)));
    }
}

void token_shift(const float* x, const float* previous, const float* mix, size_t n, float* y) {
    for (size_t i = 0; i < n; i += kLanes) {
        const __m256i mask = mask_of(n - i);
        const __m256 now = _mm256_maskload_ps(x + i, mask);
        const __m256 step = _mm256_sub_ps(_mm256_maskload_ps(previous + i, mask), now);
        const __m256 mixed = _mm256_fmadd_ps(step, _mm256_maskload_ps(mix + i, mask), now);
        _mm256_maskstore_ps(y + i, mask, mixed);
    }
}

void sigmoid(float* x, const float* bias, size_t n) {
    map_elements(x, bias, n, [](__m256 value) { return sigmoid_of(value); });
}

void decay6(float* x, const float* bias, size_t n) {
    map_elements(x, bias, n, [](__m256 value) {
        return keep_nan(value, exponential(negative(exponential(value))));
    });
}

void decay7(float* x, const float* bias, size_t n) {
    map_elements(x, bias, n, [](__m256 value) {
        const __m256 s = sigmoid_of(value);
        return keep_nan(s, exponential(_mm256_mul_ps(s, _mm256_set1_ps(-0.606530660f))));
    });
}

}  // namespace rwkv::avx2
