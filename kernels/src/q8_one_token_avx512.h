// Products of q8 weights with one token, with AVX-512 and integer dot products.
//
// Weights are made 128 more, as the first factors have no sign; the sums of activations that start_sum
// takes make good for it.
#pragma once

#include "q8_lanes_avx512.h"

namespace rwkv {
namespace {

constexpr size_t kStrip = 64;  // columns in a vector

inline __m512i load_biased(const unsigned char* p, __mmask64 mask) {
    return _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, p), _mm512_set1_epi8(-128));
}

inline __mmask64 bytes_left(size_t count) {
    return count < 64 ? (__mmask64{1} << count) - 1 : ~__mmask64{0};
}

// The sums of eight fine groups in a row, from their products in fours: two groups to a vector.
inline __m256i sum_fines(__m512i a, __m512i b, __m512i c, __m512i d) {
    const auto add = [](__m512i x, __m512i y) {
        return _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
    };
    const __m512i ab = add(a, b);
    const __m512i cd = add(c, d);
    const __m512i sums = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    // Of the four parts of 128 bits the first two belong to the first groups of a to d.
    const __m512i pairs = _mm512_add_epi32(sums, _mm512_shuffle_i32x4(sums, sums, 0xB1));
    const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, pairs));
}

// The products of one row with one token, as sums of fine groups: `columns` from the start of
// `row` and `numbers`.
inline void sum_row(const unsigned char* row, const unsigned char* numbers, size_t columns, int32_t* sums) {
    size_t j = 0;
    for (; j + 4 * kStrip <= columns; j += 4 * kStrip) {
        __m512i products[4];
        for (size_t i = 0; i < 4; ++i) {
            const size_t at = j + i * kStrip;
            prefetch(row + at + kAhead);
            const __m512i weights =
                _mm512_xor_si512(_mm512_loadu_si512(row + at), _mm512_set1_epi8(-128));
            products[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights,
                                              _mm512_loadu_si512(numbers + at));
        }
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums + j / kFine),
                           sum_fines(products[0], products[1], products[2], products[3]));
    }
    if (j == columns) return;
    __m512i products[4] = {};
    for (size_t i = 0; i < 4 && j + i * kStrip < columns; ++i) {
        const size_t at = j + i * kStrip;
        products[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(),
                                          load_biased(row + at, bytes_left(columns - at)),
                                          _mm512_loadu_si512(numbers + at));
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums + j / kFine),
                       sum_fines(products[0], products[1], products[2], products[3]));
}

// The fine groups of 16 narrow rows, one group to a vector: kStrips * 64 columns or fewer.
template <size_t kStrips>
void sum_narrow(const Matrix& w, size_t row, size_t valid, const unsigned char* numbers,
                __m512i (&fines)[2 * kStrips]) {
    alignas(64) int32_t sums[kLanes][2 * kStrips];
    const __m512i x[2] = {_mm512_load_si512(numbers), _mm512_load_si512(numbers + (kStrips - 1) * kStrip)};
    const __mmask64 masks[2] = {bytes_left(w.columns), bytes_left(w.columns - (kStrips - 1) * kStrip)};
    constexpr size_t kRows = 4 / kStrips;
    for (size_t lane = 0; lane < kLanes; lane += kRows) {
        __m512i products[4];
        for (size_t i = 0; i < 4; ++i) {
            const size_t own = lane + i / kStrips < valid ? lane + i / kStrips : 0;
            const size_t strip = i % kStrips;
            const __m512i weights =
                load_biased(row_of(w, row + own) + strip * kStrip, masks[strip]);
            products[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, x[strip]);
        }
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums[lane]),
                           sum_fines(products[0], products[1], products[2], products[3]));
    }
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (size_t fine = 0; fine < 2 * kStrips; ++fine) {
        const __m512i places = _mm512_add_epi32(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(2 * kStrips)),
                                                _mm512_set1_epi32(static_cast<int>(fine)));
        const auto take = [&](size_t lane) {
            return _mm512_permutex2var_epi32(_mm512_load_si512(sums[lane]), places,
                                             _mm512_load_si512(sums[lane + kLanes / (2 * kStrips)]));
        };
        fines[fine] = take(0);
        if constexpr (kStrips == 2) {
            const __m256i upper = _mm512_castsi512_si256(take(kLanes / 2));
            fines[fine] = _mm512_inserti64x4(fines[fine], upper, 1);
        }
    }
}

template <size_t kStrips>
void multiply_narrow(const Matrix& w, size_t first, size_t last, const unsigned char* x, float* y) {
    const RoundedQ8 parts(w.columns);
    for (size_t row = first; row < last; row += kLanes) {
        const size_t valid = last - row < kLanes ? last - row : kLanes;
        const __mmask16 mask = mask_of(valid);
        __m512i fines[2 * kStrips];
        sum_narrow<kStrips>(w, row, valid, x + parts.numbers, fines);
        __m512 part = _mm512_setzero_ps();
        for (size_t i = 0; i < 2 * kStrips; ++i) {
            const __m512i dots = _mm512_add_epi32(fines[i], start_sum(x + parts.sums + 4 * i));
            part = _mm512_fmadd_ps(to_floats(dots), broadcast_float(x + 4 * i), part);
        }
        const __m512 scale = _mm512_maskz_loadu_ps(mask, scales_of(w, row));
        const __m512 total = _mm512_fmadd_ps(part, scale, _mm512_setzero_ps());
        _mm512_mask_storeu_ps(y + row, mask, total);
    }
}

// One token: rows one after the other are one stream, which the hardware follows.
inline void multiply_one(const Matrix& w, size_t first, size_t last, const unsigned char* x, float* y) {
    constexpr size_t kPiece = 4096;  // columns at a time
    constexpr size_t kSums = kPiece / kFine;
    if (w.columns <= kStrip) return multiply_narrow<1>(w, first, last, x, y);
    if (w.columns <= 2 * kStrip) return multiply_narrow<2>(w, first, last, x, y);
    const RoundedQ8 parts(w.columns);
    const size_t groups = groups_of(w.columns);
    for (size_t row = first; row < last; row += kLanes) {
        const size_t valid = last - row < kLanes ? last - row : kLanes;
        const __mmask16 mask = mask_of(valid);
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(groups)));
        __m512 total = _mm512_setzero_ps();
        for (size_t begin = 0; begin < w.columns; begin += kPiece) {
            const size_t columns = w.columns - begin < kPiece ? w.columns - begin : kPiece;
            alignas(64) int32_t sums[kLanes][kSums];
            for (size_t lane = 0; lane < valid; ++lane) {
                sum_row(row_of(w, row + lane) + begin, x + parts.numbers + begin, columns, sums[lane]);
            }
            for (size_t fine = 0; fine * kFine < columns; fine += kLanes) {
                __m512i v[kLanes];
                for (size_t lane = 0; lane < kLanes; ++lane) {
                    v[lane] = _mm512_load_si512(sums[lane < valid ? lane : 0] + fine);
                }
                transpose(v);
                for (size_t i = 0; i < kLanes && (fine + i) * kFine < columns; i += kFines) {
                    __m512 part = _mm512_setzero_ps();
                    const size_t own = begin / kFine + fine + i;
                    for (size_t j = 0; j < kFines; ++j) {
                        const __m512i dots =
                            _mm512_add_epi32(v[i + j], start_sum(x + parts.sums + 4 * (own + j)));
                        part = _mm512_fmadd_ps(to_floats(dots), broadcast_float(x + 4 * (own + j)), part);
                    }
                    const unsigned char* scales = scales_of(w, row) + 4 * (own / kFines);
                    const __m512 scale = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, places,
                                                                  scales, sizeof(float));
                    total = _mm512_fmadd_ps(part, scale, total);
                }
            }
        }
        _mm512_mask_storeu_ps(y + row, mask, total);
    }
}

}  // namespace
}  // namespace rwkv
