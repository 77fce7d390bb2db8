// Units of activations, with AVX-512.
#pragma once

#include "lanes_avx512.h"
#include "units.h"

namespace rwkv {
namespace {

template <int kBits>
Unit unit_of(const float* x, size_t n) {
    const __m512i magnitude = _mm512_set1_epi32(static_cast<int>(kMagnitude));
    __m512i largest = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512i bits = _mm512_and_si512(_mm512_maskz_loadu_epi32(mask, x + i), magnitude);
        largest = _mm512_max_epu32(largest, bits);
    }
    return unit_for<kBits>(_mm512_reduce_max_epu32(largest));
}

}  // namespace
}  // namespace rwkv
