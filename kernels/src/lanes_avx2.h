// Helpers of the AVX2 files. Static, so that no other file can be linked with them.
#pragma once

#include <immintrin.h>

#include "elements.h"

namespace rwkv {
namespace {

constexpr size_t kLanes = 8;

// The first `count` lanes of a load or store; any count from 8 means all of them.
inline __m256i mask_of(size_t count) {
    const int limit = count < kLanes ? static_cast<int>(count) : static_cast<int>(kLanes);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// kTail: only the lanes of the mask.
template <bool kTail>
inline __m256 load_lanes(const float* p, __m256i mask) {
    return kTail ? _mm256_maskload_ps(p, mask) : _mm256_loadu_ps(p);
}

template <bool kTail>
inline void store_lanes(float* p, __m256i mask, __m256 value) {
    if constexpr (kTail) {
        _mm256_maskstore_ps(p, mask, value);
    } else {
        _mm256_storeu_ps(p, value);
    }
}

// Into the second-level cache: there are too few buffers of the first to cover the memory's latency.
inline void prefetch(const unsigned char* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}

// How far ahead a single stream of weights is asked for, in bytes.
constexpr size_t kAhead = 4096;

template <bool kBf16>
inline __m256 load_weights(const unsigned char* row, size_t column) {
    if constexpr (kBf16) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(row + 2 * column));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    } else {
        return _mm256_castsi256_ps(
            _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(row + 4 * column)));
    }
}

// The first `count` < 8 weights, then zeros.
template <bool kBf16>
inline __m256 load_weights(const unsigned char* row, size_t column, size_t count) {
    float values[kLanes] = {};
    for (size_t i = 0; i < count; ++i) {
        values[i] = load(row, column + i, kBf16 ? Weights::bf16 : Weights::f32);
    }
    return _mm256_loadu_ps(values);
}

// The sums of the lanes of four vectors. Every sum of lanes goes through here, so that its order
// is always the same.
inline __m128 sum_lanes(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

inline float sum_lanes(__m256 a) {
    const __m256 zero = _mm256_setzero_ps();
    return _mm_cvtss_f32(sum_lanes(a, zero, zero, zero));
}

}  // namespace
}  // namespace rwkv
