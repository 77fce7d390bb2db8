// Products with q8 weights, for AVX-512 with and without integer dot products: the same numbers.
// A tile is 4 rows x up to 3 tokens, with 12 exact sums of a group and 12 sums over groups; for one
// token its rows follow one another.
#pragma once

#include "units_avx512.h"

namespace rwkv {
namespace {

constexpr size_t kRows = 4;
constexpr size_t kTokens = 3;
constexpr size_t kStep = 32;     // columns of one product
constexpr size_t kChunk = 4096;  // columns whose activations are held rounded, in whole groups

// Activations of some tokens, rounded; behind the last column of a chunk zeros fill the step.
struct Rounded {
    alignas(64) int16_t units[kTokens][kChunk];
    Unit unit[kTokens];
};

inline __m512i add_products(__m512i sum, __m512i a, __m512i b) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}

inline void round_units(const float* x, size_t n, float inverse, int16_t* units) {
    const __m512 factor = _mm512_set1_ps(inverse);
    const size_t padded = (n + kStep - 1) / kStep * kStep;
    for (size_t i = 0; i < padded; i += kLanes) {
        const __mmask16 mask = i >= n ? 0 : n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), factor);
        const __m256i narrow = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(scaled));
        _mm256_store_si256(reinterpret_cast<__m256i*>(units + i), narrow);
    }
}

// One row and one token. Rows one after the other are one stream, which the hardware follows.
template <bool kTail>
inline __m512 multiply_row(const unsigned char* row, const unsigned char* scales, const int16_t* units,
                           size_t columns) {
    __m512 sum = _mm512_setzero_ps();
    for (size_t begin = 0; begin < columns; begin += kGroup) {
        const size_t end = columns - begin < kGroup ? columns : begin + kGroup;
        __m512i dot = _mm512_setzero_si512();
        prefetch(row + begin + kAhead);
        prefetch(row + begin + kAhead + 64);
        const auto multiply = [&](size_t j, __m256i bytes) {
            const __m512i xs = _mm512_load_si512(reinterpret_cast<const __m512i*>(units + j));
            dot = add_products(dot, _mm512_cvtepi8_epi16(bytes), xs);
        };
        size_t j = begin;
        for (; j + kStep <= end; j += kStep) {
            multiply(j, _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(row + j)));
        }
        if constexpr (kTail) {
            if (j < end) multiply(j, _mm256_maskz_loadu_epi8((__mmask32{1} << (end - j)) - 1, row + j));
        }
        const __m512 scale = _mm512_set1_ps(load_scale(scales, begin / kGroup));
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sum);
    }
    return sum;
}

// Rows together and kT tokens.
template <int kT, bool kTail>
void multiply_together(const unsigned char* const* rows, const unsigned char* const* scales,
                       const Rounded& x, size_t stride, size_t columns, __m512 (&sums)[kRows][kT]) {
    for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
        for (int t = 0; t < kT; ++t) sums[r][t] = _mm512_setzero_ps();
    }
    const size_t ahead = kRows * stride;
    for (size_t begin = 0; begin < columns; begin += kGroup) {
        const size_t end = columns - begin < kGroup ? columns : begin + kGroup;
        __m512i dots[kRows][kT];
        for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
            for (int t = 0; t < kT; ++t) dots[r][t] = _mm512_setzero_si512();
            prefetch(rows[r] + begin + ahead);
            prefetch(rows[r] + begin + ahead + 64);
        }
        const auto multiply = [&](size_t j, __mmask32 mask, bool whole) {
            __m512i xs[kT];
            for (int t = 0; t < kT; ++t) {
                xs[t] = _mm512_load_si512(reinterpret_cast<const __m512i*>(x.units[t] + j));
            }
            for (size_t r = 0; r < kRows; ++r) {
                const __m256i bytes =
                    whole ? _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(rows[r] + j))
                          : _mm256_maskz_loadu_epi8(mask, rows[r] + j);
                const __m512i weights = _mm512_cvtepi8_epi16(bytes);
                for (int t = 0; t < kT; ++t) dots[r][t] = add_products(dots[r][t], weights, xs[t]);
            }
        };
        size_t j = begin;
        for (; j + kStep <= end; j += kStep) multiply(j, 0, true);
        if constexpr (kTail) {
            if (j < end) multiply(j, (__mmask32{1} << (end - j)) - 1, false);
        }
        for (size_t r = 0; r < kRows; ++r) {
            const __m512 scale = _mm512_set1_ps(load_scale(scales[r], begin / kGroup));
            for (int t = 0; t < kT; ++t) {
                sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r][t]), scale, sums[r][t]);
            }
        }
    }
}

// Columns [start, start + columns) of the sums; those of the first chunk are stored, others added.
// kTail: the columns are no multiple of a step; see matmul_avx512.cpp.
template <int kT, bool kTail>
void multiply_tile(const Matrix& w, size_t row, size_t valid, const Rounded& x, size_t start,
                   size_t columns, float* y, size_t y_stride) {
    // Rows past the end repeat the last one; their sums are not stored.
    const unsigned char* rows[kRows];
    const unsigned char* scales[kRows];
    for (size_t r = 0; r < kRows; ++r) {
        const size_t own = row + (r < valid ? r : valid - 1);
        rows[r] = row_of(w, own) + start;
        scales[r] = scales_of(w, own) + start / kGroup * sizeof(float);
    }
    __m512 sums[kRows][kT];
    if constexpr (kT == 1) {
        for (size_t r = 0; r < kRows; ++r) {
            sums[r][0] = multiply_row<kTail>(rows[r], scales[r], x.units[0], columns);
        }
    } else {
        multiply_together<kT, kTail>(rows, scales, x, w.columns, columns, sums);
    }
    const __mmask8 stored = static_cast<__mmask8>((1u << valid) - 1u);
#pragma GCC unroll 3
    for (int t = 0; t < kT; ++t) {
        __m128 sum = sum_lanes(sums[0][t], sums[1][t], sums[2][t], sums[3][t]);
        sum = _mm_mul_ps(sum, _mm_set1_ps(x.unit[t].unit));
        float* own = y + t * y_stride + row;
        if (start > 0) sum = _mm_add_ps(sum, _mm_maskz_loadu_ps(stored, own));
        _mm_mask_storeu_ps(own, stored, sum);
    }
}

template <int kT>
void multiply_rows(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
                   float* y, size_t y_stride) {
    Rounded rounded;
    for (int t = 0; t < kT; ++t) rounded.unit[t] = unit_of<kBitsQ8>(x + t * x_stride, w.columns);
    for (size_t start = 0; start < w.columns; start += kChunk) {
        const size_t columns = w.columns - start < kChunk ? w.columns - start : kChunk;
        for (int t = 0; t < kT; ++t) {
            round_units(x + t * x_stride + start, columns, rounded.unit[t].inverse,
                        rounded.units[t]);
        }
        for (size_t row = first; row < last; row += kRows) {
            const size_t valid = last - row < kRows ? last - row : kRows;
            if (columns % kStep == 0) {
                multiply_tile<kT, false>(w, row, valid, rounded, start, columns, y, y_stride);
            } else {
                multiply_tile<kT, true>(w, row, valid, rounded, start, columns, y, y_stride);
            }
        }
    }
}

inline void multiply_q8(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
                        size_t tokens, float* y, size_t y_stride) {
    size_t t = 0;
    for (; t + kTokens <= tokens; t += kTokens) {
        multiply_rows<kTokens>(w, first, last, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    }
    x += t * x_stride;
    y += t * y_stride;
    switch (tokens - t) {
        case 1: return multiply_rows<1>(w, first, last, x, x_stride, y, y_stride);
        case 2: return multiply_rows<2>(w, first, last, x, x_stride, y, y_stride);
        default: return;
    }
}

}  // namespace
}  // namespace rwkv
