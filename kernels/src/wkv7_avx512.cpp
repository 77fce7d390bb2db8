#include "lanes_avx512.h"
#include "operations.h"

namespace rwkv::avx512 {
namespace {

// Rows [i, i + kR) of the state. Two passes over them: what is removed must be known first.
// kTail: the head's size is no multiple of the lanes.
template <int kR, bool kTail>
void update_rows(const Wkv7Head& head, size_t i, float* state, float* y) {
    const size_t n = head.size;
    const __m512 zero = _mm512_setzero_ps();
    __m512 removed[4] = {zero, zero, zero, zero};
    __m512 read[4] = {zero, zero, zero, zero};
    for (size_t j = 0; j < n; j += kLanes) {
        const __mmask16 mask = n - j < kLanes ? mask_of(n - j) : 0xFFFF;
        const __m512 kk = load_lanes<kTail>(head.kk + j, mask);
        for (int r = 0; r < kR; ++r) {
            const __m512 row = load_lanes<kTail>(state + (i + r) * n + j, mask);
            removed[r] = _mm512_fnmadd_ps(row, kk, removed[r]);
        }
    }
    float amounts[4];
    _mm_storeu_ps(amounts, sum_lanes(removed[0], removed[1], removed[2], removed[3]));
    for (size_t j = 0; j < n; j += kLanes) {
        const __mmask16 mask = n - j < kLanes ? mask_of(n - j) : 0xFFFF;
        const __m512 w = load_lanes<kTail>(head.w + j, mask);
        const __m512 k = load_lanes<kTail>(head.k + j, mask);
        const __m512 kk_a = load_lanes<kTail>(head.kk_a + j, mask);
        const __m512 receptance = load_lanes<kTail>(head.r + j, mask);
        for (int r = 0; r < kR; ++r) {
            float* place = state + (i + r) * n + j;
            __m512 row = load_lanes<kTail>(place, mask);
            __m512 added = _mm512_mul_ps(k, _mm512_set1_ps(head.v[i + r]));
            added = _mm512_fmadd_ps(kk_a, _mm512_set1_ps(amounts[r]), added);
            row = _mm512_fmadd_ps(row, w, added);
            store_lanes<kTail>(place, mask, row);
            read[r] = _mm512_fmadd_ps(row, receptance, read[r]);
        }
    }
    float sums[4];
    _mm_storeu_ps(sums, sum_lanes(read[0], read[1], read[2], read[3]));
    for (int r = 0; r < kR; ++r) y[i + r] = sums[r];
}

template <bool kTail>
void update_state(const Wkv7Head& head, float* state, float* y) {
    size_t i = 0;
    for (; i + 4 <= head.size; i += 4) update_rows<4, kTail>(head, i, state, y);
    for (; i < head.size; ++i) update_rows<1, kTail>(head, i, state, y);
}

}  // namespace

void wkv7(const Wkv7Head& head, float* state, float* y) {
    if (head.size % kLanes == 0) {
        update_state<false>(head, state, y);
    } else {
        update_state<true>(head, state, y);
    }
}

}  // namespace rwkv::avx512
