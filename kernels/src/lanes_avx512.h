// Helpers of the AVX-512 files. Static, so that no other file can be linked with them.
#pragma once

#include <immintrin.h>

#include "elements.h"

namespace rwkv {
namespace {

using Floats = __m512;
using Mask = __mmask16;
using Chosen = __mmask16;  // lanes that fulfil a condition

constexpr size_t kLanes = 16;

// The first `count` lanes of a load or store; any count from 16 means all of them.
inline Mask mask_of(size_t count) {
    return count < kLanes ? static_cast<Mask>((1u << count) - 1u) : Mask{0xFFFF};
}

// kTail: only the lanes of the mask.
template <bool kTail = true>
inline Floats load_lanes(const float* p, Mask mask) {
    return kTail ? _mm512_maskz_loadu_ps(mask, p) : _mm512_loadu_ps(p);
}

template <bool kTail = true>
inline void store_lanes(float* p, Mask mask, Floats value) {
    if constexpr (kTail) {
        _mm512_mask_storeu_ps(p, mask, value);
    } else {
        _mm512_storeu_ps(p, value);
    }
}

inline Floats load_lanes(const float* p) { return _mm512_loadu_ps(p); }
inline void store_lanes(float* p, Floats value) { _mm512_storeu_ps(p, value); }

inline Floats spread(float x) { return _mm512_set1_ps(x); }
inline Floats fmadd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats fnmadd(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
// Of a NaN and a number the second.
inline Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats to_nearest(Floats x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// x * 2^n for whole n.
inline Floats scale_by_power(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }

inline Chosen inside(Mask mask) { return mask; }
inline Chosen not_a_number(Floats x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
inline Floats only(Chosen chosen, Floats x) { return _mm512_maskz_mov_ps(chosen, x); }
inline Floats choose(Chosen chosen, Floats x, Floats otherwise) {
    return _mm512_mask_mov_ps(otherwise, chosen, x);
}

// Into the second-level cache: there are too few buffers of the first to cover the memory's latency.
inline void prefetch(const unsigned char* p) {
    _mm_prefetch(p, _MM_HINT_T1);
}

// How far ahead a single stream of weights is asked for, in bytes.
constexpr size_t kAhead = 4096;

template <bool kBf16>
inline Floats load_weights(const unsigned char* row, size_t column) {
    if constexpr (kBf16) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(row + 2 * column));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    } else {
        return _mm512_loadu_ps(row + 4 * column);
    }
}

// The first `count` < 16 weights, then zeros.
template <bool kBf16>
inline Floats load_weights(const unsigned char* row, size_t column, size_t count) {
    const Mask mask = mask_of(count);
    if constexpr (kBf16) {
        const __m256i half = _mm256_maskz_loadu_epi16(mask, row + 2 * column);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    } else {
        return _mm512_maskz_loadu_ps(mask, row + 4 * column);
    }
}

// The sums of the lanes of four vectors. Every sum of lanes goes through here, so that its order
// is always the same.
using Four = __m128;

inline Four sum_lanes(Floats a, Floats b, Floats c, Floats d) {
    const auto fold = [](__m512 v) {
        return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    };
    const __m256 ab = _mm256_hadd_ps(fold(a), fold(b));
    const __m256 cd = _mm256_hadd_ps(fold(c), fold(d));
    const __m256 abcd = _mm256_hadd_ps(ab, cd);
    return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

inline float sum_lanes(Floats a) {
    const __m512 zero = _mm512_setzero_ps();
    return _mm_cvtss_f32(sum_lanes(a, zero, zero, zero));
}

inline void store_four(float* p, Four four) { _mm_storeu_ps(p, four); }

}  // namespace
}  // namespace rwkv
