// Helpers of the AVX-512 files. Static, so that no other file can be linked with them.
#pragma once

#include <immintrin.h>

#include "elements.h"

namespace rwkv {
namespace {

constexpr size_t kLanes = 16;

inline __mmask16 mask_of(size_t count) { return static_cast<__mmask16>((1u << count) - 1u); }

// kTail: only the lanes of the mask.
template <bool kTail>
inline __m512 load_lanes(const float* p, __mmask16 mask) {
    return kTail ? _mm512_maskz_loadu_ps(mask, p) : _mm512_loadu_ps(p);
}

template <bool kTail>
inline void store_lanes(float* p, __mmask16 mask, __m512 value) {
    if constexpr (kTail) {
        _mm512_mask_storeu_ps(p, mask, value);
    } else {
        _mm512_storeu_ps(p, value);
    }
}

// Into the second-level cache: there are too few buffers of the first to cover the memory's latency.
inline void prefetch(const unsigned char* p) {
    _mm_prefetch(p, _MM_HINT_T1);
}

// How far ahead a single stream of weights is asked for, in bytes.
constexpr size_t kAhead = 4096;

template <bool kBf16>
inline __m512 load_weights(const unsigned char* row, size_t column) {
    if constexpr (kBf16) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(row + 2 * column));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    } else {
        return _mm512_loadu_ps(row + 4 * column);
    }
}

template <bool kBf16>
inline __m512 load_weights(const unsigned char* row, size_t column, __mmask16 mask) {
    if constexpr (kBf16) {
        const __m256i half = _mm256_maskz_loadu_epi16(mask, row + 2 * column);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    } else {
        return _mm512_maskz_loadu_ps(mask, row + 4 * column);
    }
}

// The sums of the lanes of four vectors. Every sum of lanes goes through here, so that its order
// is always the same.
inline __m128 sum_lanes(__m512 a, __m512 b, __m512 c, __m512 d) {
    const auto fold = [](__m512 v) {
        return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    };
    const __m256 ab = _mm256_hadd_ps(fold(a), fold(b));
    const __m256 cd = _mm256_hadd_ps(fold(c), fold(d));
    const __m256 abcd = _mm256_hadd_ps(ab, cd);
    return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

inline float sum_lanes(__m512 a) {
    const __m512 zero = _mm512_setzero_ps();
    return _mm_cvtss_f32(sum_lanes(a, zero, zero, zero));
}

}  // namespace
}  // namespace rwkv
