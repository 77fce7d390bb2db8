// Each value of y is one lane that adds the rows of the state in order.

#include "lanes_avx512.h"
#include "operations.h"

namespace rwkv::avx512 {
namespace {

// Columns [j, j + kV * lanes) of the state, or for kTail those left, fewer than the lanes.
template <int kV, bool kTail>
void update_columns(const Wkv5Head& head, size_t j, float bonus, float* state, float* y) {
    const size_t n = head.size;
    const __mmask16 mask = n - j < kLanes ? mask_of(n - j) : 0xFFFF;
    __m512 v[kV], sums[kV];
    for (int c = 0; c < kV; ++c) {
        v[c] = load_lanes<kTail>(head.v + j + c * kLanes, mask);
        sums[c] = _mm512_mul_ps(v[c], _mm512_set1_ps(bonus));
    }
    for (size_t i = 0; i < n; ++i) {
        const __m512 receptance = _mm512_set1_ps(head.r[i]);
        const __m512 w = _mm512_set1_ps(head.w[i]);
        const __m512 k = _mm512_set1_ps(head.k[i]);
        for (int c = 0; c < kV; ++c) {
            float* place = state + i * n + j + c * kLanes;
            const __m512 row = load_lanes<kTail>(place, mask);
            sums[c] = _mm512_fmadd_ps(row, receptance, sums[c]);
            store_lanes<kTail>(place, mask, _mm512_fmadd_ps(row, w, _mm512_mul_ps(k, v[c])));
        }
    }
    for (int c = 0; c < kV; ++c) store_lanes<kTail>(y + j + c * kLanes, mask, sums[c]);
}

}  // namespace

void wkv5(const Wkv5Head& head, float* state, float* y) {
    const size_t n = head.size;
    __m512 products = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512 first = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, head.first + i),
                                           _mm512_maskz_loadu_ps(mask, head.k + i));
        products = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, head.r + i), first, products);
    }
    const float bonus = sum_lanes(products);
    size_t j = 0;
    for (; j + 4 * kLanes <= n; j += 4 * kLanes) update_columns<4, false>(head, j, bonus, state, y);
    for (; j + kLanes <= n; j += kLanes) update_columns<1, false>(head, j, bonus, state, y);
    if (j < n) update_columns<1, true>(head, j, bonus, state, y);
}

}  // namespace rwkv::avx512
