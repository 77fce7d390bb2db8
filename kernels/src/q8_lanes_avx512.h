// What q8_tiles.h needs for AVX-512, with and without integer dot products: the same numbers.
#pragma once

#include "lanes_avx512.h"
#include "rounding.h"

namespace rwkv {
namespace {

using Ints = __m512i;

#ifdef __AVX512VNNI__
constexpr size_t kTogether = 4;
#else
constexpr size_t kTogether = 2;
#endif
constexpr size_t kTile = 12;

inline Floats zero_floats() { return _mm512_setzero_ps(); }
inline Floats load_floats(const float* p) { return _mm512_load_ps(p); }
inline void store_floats(float* p, Floats x) { _mm512_store_ps(p, x); }
inline Floats broadcast_float(const unsigned char* p) {
    return _mm512_set1_ps(*reinterpret_cast<const float*>(p));
}
inline Ints broadcast_int(const unsigned char* p) {
    int value;
    __builtin_memcpy(&value, p, sizeof value);
    return _mm512_set1_epi32(value);
}
inline Ints load_ints(const int32_t* p) { return _mm512_load_si512(p); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }

inline Ints dot(Ints sums, Ints weights, Ints numbers) {
#ifdef __AVX512VNNI__
    return _mm512_dpbusd_epi32(sums, weights, numbers);
#else
    return _mm512_add_epi32(sums, _mm512_madd_epi16(weights, numbers));
#endif
}

// With integer dot products weights are 128 more than they should be, because the first factors
// have no sign.
inline Ints start_sum(const unsigned char* p) {
#ifdef __AVX512VNNI__
    return broadcast_int(p);
#else
    static_cast<void>(p);
    return _mm512_setzero_si512();
#endif
}

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

// Rounds 32 activations: numbers, their unit, and what start_sum takes.
inline void round_fine(__m512 a, __m512 b, unsigned char* numbers, float* unit, int32_t* start) {
    const Unit own = fine_unit(largest_of(a, b));
    const __m512i first = round_lanes(a, own);
    const __m512i second = round_lanes(b, own);
#ifdef __AVX512VNNI__
    _mm_storeu_si128(reinterpret_cast<__m128i_u*>(numbers), _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128(reinterpret_cast<__m128i_u*>(numbers + 16), _mm512_cvtepi32_epi8(second));
    *start = own.inverse == 0 ? 0 : -128 * _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
#else
    _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(numbers), _mm512_cvtepi32_epi16(first));
    _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(numbers + 32), _mm512_cvtepi32_epi16(second));
    static_cast<void>(start);
#endif
    *unit = own.unit;
}

// As round_q8 of operations.h.
inline void round_activations(const float* x, size_t n, unsigned char* rounded) {
    const RoundedQ8 parts(n);
    float* units = reinterpret_cast<float*>(rounded);
    int32_t* starts = reinterpret_cast<int32_t*>(rounded + parts.sums);
    constexpr size_t kNumberBytes = 4 / kTogether;
    for (size_t i = 0; i < groups_of(n) * kGroup; i += kFine) {
        const auto lanes = [&](size_t at) {
            if (at >= n) return _mm512_setzero_ps();
            return _mm512_maskz_loadu_ps(n - at < kLanes ? mask_of(n - at) : 0xFFFF, x + at);
        };
        round_fine(lanes(i), lanes(i + kLanes), rounded + parts.numbers + i * kNumberBytes,
                   units + i / kFine, starts + i / kFine);
    }
}

// 16 vectors of 16 ints: columns become rows.
inline void transpose(__m512i (&v)[16]) {
    __m512i u[16];
    for (int i = 0; i < 16; i += 2) {
        u[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        u[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(u[i], u[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(u[i], u[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(u[i + 1], u[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(u[i + 1], u[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        const __m512i a = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xDD);
        const __m512i c = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xDD);
        u[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        u[i + 8] = _mm512_shuffle_i32x4(a, c, 0xDD);
        u[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        u[i + 12] = _mm512_shuffle_i32x4(b, d, 0xDD);
    }
    for (int i = 0; i < 16; ++i) v[i] = u[i];
}

inline void pack_rows(const Matrix& w, size_t row, size_t valid, size_t column, size_t count,
                      int32_t* to) {
    const unsigned char* rows[16];
    for (size_t r = 0; r < 16; ++r) rows[r] = row_of(w, row + (r < valid ? r : valid - 1)) + column;
    constexpr size_t kStep = 16 * kTogether;
    for (size_t j = 0; j < kGroup; j += kStep) {
        const size_t left = j < count ? count - j : 0;
        const __mmask64 mask = left < 64 ? (__mmask64{1} << left) - 1 : ~__mmask64{0};
        // Rows are too short for the hardware to learn, so what comes after these columns is asked
        // for: at the end of the rows, in the next ones. Behind the end of the matrix this is harmless.
        constexpr size_t kAhead = 256;
        const bool ends = column + j + kAhead >= w.columns;
        const size_t ahead = j + kAhead + (ends ? 15 * w.columns : 0);
        __m512i v[16];
        for (size_t r = 0; r < 16; ++r) {
            if (j % 64 == 0) prefetch(rows[r] + ahead);
#ifdef __AVX512VNNI__
            v[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, rows[r] + j),
                                    _mm512_set1_epi8(-128));
#else
            v[r] = _mm512_cvtepi8_epi16(
                _mm256_maskz_loadu_epi8(static_cast<__mmask32>(mask), rows[r] + j));
#endif
        }
        transpose(v);
        for (size_t i = 0; i < 16; ++i) _mm512_store_si512(to + (j / kTogether + i) * 16, v[i]);
    }
}

}  // namespace
}  // namespace rwkv
