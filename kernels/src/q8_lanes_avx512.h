// What q8_tiles.h needs for AVX-512, with and without integer dot products: the same numbers.
#pragma once

#include "lanes_avx512.h"
#include "rounding.h"

namespace rwkv {
namespace {

using Ints = __m512i;

#ifdef __AVX512VNNI__
constexpr size_t kBytes = 1;
#else
constexpr size_t kBytes = 2;
#endif
constexpr int kTogether = 2;
constexpr int kTile = 6;

inline Floats zero_floats() { return _mm512_setzero_ps(); }
inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline void store_floats(float* p, Floats x) { _mm512_store_ps(p, x); }
inline Floats broadcast_float(const unsigned char* p) {
    return _mm512_set1_ps(*reinterpret_cast<const float*>(p));
}
inline Ints broadcast_int(const unsigned char* p) {
    int value;
    __builtin_memcpy(&value, p, sizeof value);
    return _mm512_set1_epi32(value);
}
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }

#ifdef __AVX512VNNI__
using Block = __m512i;

inline Block load_block(const unsigned char* p) { return _mm512_loadu_si512(p); }

using Numbers = __m512i;

inline Numbers load_numbers(const unsigned char* p) { return broadcast_int(p); }
inline Ints dot(Ints sums, Block weights, Numbers numbers) {
    return _mm512_dpbusd_epi32(sums, weights, numbers);
}
#else
// Columns 0 and 2, and 1 and 3, as 16-bit integers; activations lie in the same order.
struct Block {
    __m512i even;
    __m512i odd;
};

inline Block load_block(const unsigned char* p) {
    const __m512i bytes = _mm512_loadu_si512(p);
    return {_mm512_and_si512(bytes, _mm512_set1_epi16(255)), _mm512_srli_epi16(bytes, 8)};
}

using Numbers = Block;

inline Numbers load_numbers(const unsigned char* p) { return {broadcast_int(p), broadcast_int(p + 4)}; }
inline Ints dot(Ints sums, const Block& weights, const Numbers& numbers) {
    const __m512i even = _mm512_madd_epi16(weights.even, numbers.even);
    const __m512i odd = _mm512_madd_epi16(weights.odd, numbers.odd);
    return _mm512_add_epi32(_mm512_add_epi32(sums, even), odd);
}
#endif

// The largest magnitude of 32 floats, as bits.
inline uint32_t largest_of(__m512 a, __m512 b) {
    const __m512i magnitude = _mm512_set1_epi32(static_cast<int>(kMagnitude));
    const __m512i first = _mm512_and_si512(_mm512_castps_si512(a), magnitude);
    const __m512i second = _mm512_and_si512(_mm512_castps_si512(b), magnitude);
    return _mm512_reduce_max_epu32(_mm512_max_epu32(first, second));
}

inline __m512i round_lanes(__m512 x, const Unit& unit) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(unit.inverse)));
}

// Rounds 32 activations: numbers, their unit, and what sums of products with them begin with.
inline void round_fine(__m512 a, __m512 b, unsigned char* numbers, float* unit, int32_t* start) {
    const Unit own = fine_unit(largest_of(a, b));
    const __m512i first = round_lanes(a, own);
    const __m512i second = round_lanes(b, own);
#ifdef __AVX512VNNI__
    _mm_storeu_si128(reinterpret_cast<__m128i_u*>(numbers), _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128(reinterpret_cast<__m128i_u*>(numbers + 16), _mm512_cvtepi32_epi8(second));
#else
    _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(numbers), _mm512_cvtepi32_epi16(first));
    _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(numbers + 32), _mm512_cvtepi32_epi16(second));
#endif
    *start = own.inverse == 0 ? 0 : -128 * _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
    *unit = own.unit;
}

// As round_q8 of operations.h.
inline void round_activations(const float* x, size_t n, unsigned char* rounded) {
    const RoundedQ8 parts(n);
    float* units = reinterpret_cast<float*>(rounded);
    int32_t* starts = reinterpret_cast<int32_t*>(rounded + parts.sums);
    for (size_t i = 0; i < groups_of(n) * kGroup; i += kFine) {
        const auto lanes = [&](size_t at) {
            if (at >= n) return _mm512_setzero_ps();
            return _mm512_maskz_loadu_ps(n - at < kLanes ? mask_of(n - at) : 0xFFFF, x + at);
        };
        unsigned char* numbers = rounded + parts.numbers + i * kBytes;
        round_fine(lanes(i), lanes(i + kLanes), numbers, units + i / kFine, starts + i / kFine);
#ifndef __AVX512VNNI__
        // Of four numbers the two in the middle change places, see Block.
        const __m512i ordered = _mm512_loadu_si512(numbers);
        const __m512i low = _mm512_shufflelo_epi16(ordered, 0xD8);
        _mm512_storeu_si512(numbers, _mm512_shufflehi_epi16(low, 0xD8));
#endif
    }
}

}  // namespace
}  // namespace rwkv
