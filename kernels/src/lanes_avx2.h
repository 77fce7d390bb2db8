// Helpers of the AVX2 files. Static, so that no other file can be linked with them.
#pragma once

#include <immintrin.h>

#include "elements.h"

namespace rwkv {
namespace {

using Floats = __m256;
using Mask = __m256i;
using Chosen = __m256;  // lanes that fulfil a condition

constexpr size_t kLanes = 8;

// The first `count` lanes of a load or store; any count from 8 means all of them.
inline Mask mask_of(size_t count) {
    const int limit = count < kLanes ? static_cast<int>(count) : static_cast<int>(kLanes);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// kTail: only the lanes of the mask.
template <bool kTail = true>
inline Floats load_lanes(const float* p, Mask mask) {
    return kTail ? _mm256_maskload_ps(p, mask) : _mm256_loadu_ps(p);
}

template <bool kTail = true>
inline void store_lanes(float* p, Mask mask, Floats value) {
    if constexpr (kTail) {
        _mm256_maskstore_ps(p, mask, value);
    } else {
        _mm256_storeu_ps(p, value);
    }
}

inline Floats load_lanes(const float* p) { return _mm256_loadu_ps(p); }
inline void store_lanes(float* p, Floats value) { _mm256_storeu_ps(p, value); }

inline Floats spread(float x) { return _mm256_set1_ps(x); }
inline Floats fmadd(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats fnmadd(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
// Of a NaN and a number the second.
inline Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats to_nearest(Floats x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// x * 2^n for whole n in [-126, 127].
inline Floats scale_by_power(Floats x, Floats n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return x * _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

inline Chosen inside(Mask mask) { return _mm256_castsi256_ps(mask); }
inline Chosen not_a_number(Floats x) { return _mm256_cmp_ps(x, x, _CMP_UNORD_Q); }
inline Chosen at_least(Floats a, Floats b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
inline Chosen below(Floats a, Floats b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline Chosen both(Chosen a, Chosen b) { return _mm256_and_ps(a, b); }
inline Floats only(Chosen chosen, Floats x) { return _mm256_and_ps(chosen, x); }
inline Floats choose(Chosen chosen, Floats x, Floats otherwise) {
    return _mm256_blendv_ps(otherwise, x, chosen);
}
inline unsigned bits_of(Chosen chosen) { return static_cast<unsigned>(_mm256_movemask_ps(chosen)); }

// Into the second-level cache: there are too few buffers of the first to cover the memory's latency.
inline void prefetch(const unsigned char* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}

// How far ahead a single stream of weights is asked for, in bytes.
constexpr size_t kAhead = 4096;

template <bool kBf16>
inline Floats load_weights(const unsigned char* row, size_t column) {
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
inline Floats load_weights(const unsigned char* row, size_t column, size_t count) {
    float values[kLanes] = {};
    for (size_t i = 0; i < count; ++i) {
        values[i] = load(row, column + i, kBf16 ? Weights::bf16 : Weights::f32);
    }
    return _mm256_loadu_ps(values);
}

// To the nearest bfloat16, ties to even.
inline Floats round_bf16(Floats x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
    const __m256i rounded = _mm256_and_si256(_mm256_add_epi32(bits, half), upper);
    return choose(not_a_number(x), x, _mm256_castsi256_ps(rounded));
}

// The sums of the lanes of four vectors. Every sum of lanes goes through here, so that its order
// is always the same.
using Four = __m128;

inline Four sum_lanes(Floats a, Floats b, Floats c, Floats d) {
    const __m256 abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

inline float sum_lanes(Floats a) {
    const __m256 zero = _mm256_setzero_ps();
    return _mm_cvtss_f32(sum_lanes(a, zero, zero, zero));
}

inline void store_four(float* p, Four four) { _mm_storeu_ps(p, four); }

// The first `count` <= 4 of them.
inline void store_four(float* p, size_t count, Four four) {
    _mm_maskstore_ps(p, _mm256_castsi256_si128(mask_of(count)), four);
}

// Sums of float32 lanes in float64.
struct Doubles {
    __m256d low = _mm256_setzero_pd();
    __m256d high = _mm256_setzero_pd();

    void add(Floats x) {
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
    }
    double total() const {
        double lanes[4];
        _mm256_storeu_pd(lanes, _mm256_add_pd(low, high));
        return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    }
};

}  // namespace
}  // namespace rwkv
