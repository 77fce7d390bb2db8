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

// exp in float64: the series to r^13 leaves 4e-18 for |r| <= ln(2) / 2.
__m512d exponential_f64(__m512d x) {
    const __mmask8 tiny = _mm512_cmp_pd_mask(x, _mm512_set1_pd(-690.0), _CMP_LT_OQ);
    const __m512d n = _mm512_roundscale_pd(_mm512_mul_pd(x, _mm512_set1_pd(1.4426950408889634)),
                                           _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512d r = _mm512_fnmadd_pd(n, _mm512_set1_pd(6.93147180369123816490e-01), x);
    r = _mm512_fnmadd_pd(n, _mm512_set1_pd(1.90821492927058770002e-10), r);
    constexpr double kInverseFactorials[] = {
        1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
        1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0, 1.0};
    __m512d p = _mm512_set1_pd(1.0 / 6227020800.0);
    for (const double factor : kInverseFactorials) p = _mm512_fmadd_pd(p, r, _mm512_set1_pd(factor));
    return _mm512_mask_mov_pd(_mm512_scalef_pd(p, n), tiny, _mm512_setzero_pd());
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

double exp_sum(const double* x, size_t n, double maximum, double scale, double* weights) {
    constexpr size_t kDoubles = 8;
    const __m512d top = _mm512_set1_pd(maximum);
    const __m512d factor = _mm512_set1_pd(scale);
    __m512d sum = _mm512_setzero_pd();
    for (size_t i = 0; i < n; i += kDoubles) {
        const __mmask8 mask = n - i < kDoubles ? static_cast<__mmask8>((1u << (n - i)) - 1u) : 0xFF;
        const __m512d value = _mm512_mul_pd(
            _mm512_maskz_sub_pd(mask, _mm512_maskz_loadu_pd(mask, x + i), top), factor);
        const __m512d e = exponential_f64(value);
        _mm512_mask_storeu_pd(weights + i, mask, e);
        sum = _mm512_mask_add_pd(sum, mask, sum, e);
    }
    double lanes[kDoubles];
    _mm512_storeu_pd(lanes, sum);
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
           ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

}  // namespace rwkv::avx512
