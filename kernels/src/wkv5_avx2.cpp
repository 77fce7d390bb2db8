// Each value of y is one lane that adds the rows of the state in order.

#include "lanes_avx2.h"
#include "operations.h"

namespace rwkv::avx2 {
namespace {

// Columns [j, j + kV * lanes) of the state, or for kTail those left, fewer than the lanes.
template <int kV, bool kTail>
void update_columns(const Wkv5Head& head, size_t j, float bonus, float* state, float* y) {
    const size_t n = head.size;
    const __m256i mask = mask_of(n - j);
    __m256 v[kV], sums[kV];
    for (int c = 0; c < kV; ++c) {
        v[c] = load_lanes<kTail>(head.v + j + c * kLanes, mask);
        sums[c] = _mm256_mul_ps(v[c], _mm256_set1_ps(bonus));
    }
    for (size_t i = 0; i < n; ++i) {
        const __m256 receptance = _mm256_set1_ps(head.r[i]);
        const __m256 w = _mm256_set1_ps(head.w[i]);
        const __m256 k = _mm256_set1_ps(head.k[i]);
        for (int c = 0; c < kV; ++c) {
            float* place = state + i * n + j + c * kLanes;
            const __m256 row = load_lanes<kTail>(place, mask);
            sums[c] = _mm256_fmadd_ps(row, receptance, sums[c]);
            store_lanes<kTail>(place, mask, _mm256_fmadd_ps(row, w, _mm256_mul_ps(k, v[c])));
        }
    }
    for (int c = 0; c < kV; ++c) store_lanes<kTail>(y + j + c * kLanes, mask, sums[c]);
}

}  // namespace

void wkv5(const Wkv5Head& head, float* state, float* y) {
    const size_t n = head.size;
    __m256 products = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += kLanes) {
        const __m256i mask = mask_of(n - i);
        const __m256 first = _mm256_mul_ps(_mm256_maskload_ps(head.first + i, mask),
                                           _mm256_maskload_ps(head.k + i, mask));
        products = _mm256_fmadd_ps(_mm256_maskload_ps(head.r + i, mask), first, products);
    }
    const float bonus = sum_lanes(products);
    size_t j = 0;
    for (; j + 4 * kLanes <= n; j += 4 * kLanes) update_columns<4, false>(head, j, bonus, state, y);
    for (; j + kLanes <= n; j += kLanes) update_columns<1, false>(head, j, bonus, state, y);
    if (j < n) update_columns<1, true>(head, j, bonus, state, y);
}

}  // namespace rwkv::avx2
