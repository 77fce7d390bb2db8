// Units of activations, with AVX2.
#pragma once

#include "lanes_avx2.h"
#include "units.h"

namespace rwkv {
namespace {

template <int kBits>
Unit unit_of(const float* x, size_t n) {
    const __m256i magnitude = _mm256_set1_epi32(static_cast<int>(kMagnitude));
    __m256i largest = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += kLanes) {
        const __m256i values = _mm256_castps_si256(_mm256_maskload_ps(x + i, mask_of(n - i)));
        largest = _mm256_max_epu32(largest, _mm256_and_si256(values, magnitude));
    }
    alignas(32) uint32_t lanes[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
    for (const uint32_t lane : lanes) lanes[0] = lane > lanes[0] ? lane : lanes[0];
    return unit_for<kBits>(lanes[0]);
}

}  // namespace
}  // namespace rwkv
