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

// exp in float64: the series to r^13 leaves 4e-18 for |r| <= ln(2) / 2.
__m256d exponential_f64(__m256d x) {
    const __m256d tiny = _mm256_cmp_pd(x, _mm256_set1_pd(-690.0), _CMP_LT_OQ);
    x = _mm256_max_pd(x, _mm256_set1_pd(-690.0));
    const __m256d n = _mm256_round_pd(_mm256_mul_pd(x, _mm256_set1_pd(1.4426950408889634)),
                                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256d r = _mm256_fnmadd_pd(n, _mm256_set1_pd(6.93147180369123816490e-01), x);
    r = _mm256_fnmadd_pd(n, _mm256_set1_pd(1.90821492927058770002e-10), r);
    constexpr double kInverseFactorials[] = {
        1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
        1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0, 1.0};
    __m256d p = _mm256_set1_pd(1.0 / 6227020800.0);
    for (const double factor : kInverseFactorials) p = _mm256_fmadd_pd(p, r, _mm256_set1_pd(factor));
    const __m256i exponent = _mm256_slli_epi64(
        _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n)), _mm256_set1_epi64x(1023)), 52);
    return _mm256_andnot_pd(tiny, _mm256_mul_pd(p, _mm256_castsi256_pd(exponent)));
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

double exp_sum(const double* x, size_t n, double maximum, double scale, double* weights) {
    constexpr size_t kDoubles = 4;
    const __m256d top = _mm256_set1_pd(maximum);
    const __m256d factor = _mm256_set1_pd(scale);
    __m256d sum = _mm256_setzero_pd();
    size_t i = 0;
    for (; i + kDoubles <= n; i += kDoubles) {
        const __m256d e =
            exponential_f64(_mm256_mul_pd(_mm256_sub_pd(_mm256_loadu_pd(x + i), top), factor));
        _mm256_storeu_pd(weights + i, e);
        sum = _mm256_add_pd(sum, e);
    }
    double lanes[kDoubles];
    _mm256_storeu_pd(lanes, sum);
    double total = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    for (; i < n; ++i) {
        const __m256d e = exponential_f64(_mm256_set1_pd((x[i] - maximum) * scale));
        weights[i] = _mm256_cvtsd_f64(e);
        total += weights[i];
    }
    return total;
}

}  // namespace rwkv::avx2
